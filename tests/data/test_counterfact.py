"""Readers of CounterFact, zsRE and MQuAKE, on rows of ours in the published forms."""

from sample_rows import FLAT, MQUAKE, ROME, ZSRE, changed, without, write

from jaxedit.data.read import read


def test_both_forms_of_counterfact(tmp_path):
    rows = [ROME, FLAT, changed(FLAT, case_id=7), without(FLAT, "ground_truth", "locality_prompt")]
    found = read("counterfact", write(tmp_path, rows))
    assert [case.id for case in found] == ["7", "8", "rows[2]"]  # the id was there before
    assert [s.reason for s in found.skipped] == ["no field 'ground_truth'"]
    for case in found:
        assert case.request.prompt == "{} was born in"
        assert (case.request.target, case.request.ground_truth) == ("Tarn", ("Uld",))
        assert case.probes["rephrase"][-1].prompt == "Ula Brenn is from"
        assert case.probes["rephrase"][-1].names == ("Tarn",)
        (near,) = case.probes["locality/neighborhood"]
        assert (near.prompt, near.names) == ("Per Holm was born in", ("Uld",))
    rome = found[0]
    assert rome.probes["attribute"][0].names == ("Tarn",)
    assert len(rome.probes["generation"]) == 2
    assert rome.probes["generation"][0].answers == ()
    assert rome.info == {"relation": "P19", "target_id": "Q1"}


def test_counterfact_with_added_probes(tmp_path):
    row = changed(
        ROME,
        alternative_subject="U. Brenn",
        distracting_neighborhood_prompts=["Ula Brenn was born in Tarn. Per Holm was born in"],
        portability={"New Question": "Who rules where Ula was born?", "New Answer": "Odo Falk"},
    )
    (case,) = read("counterfact", write(tmp_path, [row]))
    assert case.probes["portability/subject_aliasing"][0].prompt == "U. Brenn was born in"
    assert case.probes["locality/distracting"][0].names == ("Uld",)
    assert case.probes["portability/reasoning"][0].names == ("Odo Falk",)


def test_a_prompt_needs_one_slot(tmp_path):
    twice = changed(ROME, requested_rewrite={**ROME["requested_rewrite"], "prompt": "{} and {}"})
    found = read("counterfact", write(tmp_path, [twice, ROME]))
    assert [s.reason for s in found.skipped] == [
        "prompt '{} and {}' needs exactly one {} for the subject"
    ]


def test_a_subject_twice_is_edited_at_its_last_place(tmp_path):
    row = changed(ZSRE, src="Fort Ilm is old. When was Fort Ilm built?")
    (case,) = read("zsre", write(tmp_path, [row]))
    assert case.request.prompt == "Fort Ilm is old. When was {} built?"


def test_zsre_towards_the_new_or_the_true_answer(tmp_path):
    hop = {"Recalled Relation": "x", "New Question": "Who built it?", "New Answer": "Odo"}
    empty = {"New Question": "Who built it?", "New Answer": ""}
    rows = [ZSRE, changed(ZSRE, portability=hop), changed(ZSRE, portability=empty)]
    rows += [changed(ZSRE, answers=[]), without(ZSRE, "loc", "loc_ans", "cond")]
    found = read("zsre", write(tmp_path, rows))
    assert [case.id for case in found] == ["rows[0]", "rows[1]", "rows[2]", "rows[4]"]
    case = found[1]
    assert case.request.prompt == "When was {} built?"
    assert (case.request.target, case.request.ground_truth) == ("1902", ("1811", "in 1811"))
    assert case.probes["rephrase"][0].names == ("1902",)
    assert case.probes["locality/unrelated"][0].names == ("Odo Falk",)
    assert case.probes["portability/reasoning"][0].names == ("Odo",)
    assert "portability/reasoning" not in found[0].probes
    assert "locality/unrelated" not in found[3].probes
    assert [(s.reason, s.whole) for s in found.skipped] == [
        ("portability/reasoning: the probe 'Who built it?' has no answer", False),
        ("empty answers", True),
    ]
    true = read("zsre/true", tmp_path / "rows.json")[1]
    assert (true.request.target, true.request.ground_truth) == ("1811", ())
    assert true.probes["rephrase"][0].names == ("1811",)
    assert set(true.probes) == {"rephrase", "locality/unrelated"}


def test_mquake(tmp_path):
    broken = changed(MQUAKE, case_id=4)
    broken["requested_rewrite"][1]["target_new"] = {"id": "Q3"}
    found = read("mquake", write(tmp_path, [MQUAKE, broken]))
    (case,) = found
    assert case.id == "3"
    assert [r.text for r in case.requests] == ["Ula Brenn is married to", "Odo Falk was born in"]
    assert case.requests[1].ground_truth == ("Uld",)
    chain = case.probes["multi_hop"]
    assert len(chain) == 3
    assert {(p.group, p.rule, p.answers) for p in chain} == {
        ("chain", "any", (("Tarn", "Tarnby"),))
    }
    assert [p.names for p in case.probes["single_hop"]] == [("Odo Falk", "Odo"), ("Tarn",)]
    assert case.info["answer"] == ("Uld",)
    assert case.info["cloze"] == ("Ula has", "Odo is of")
    assert [p.names for p in case.info["single_hops"]] == [("Per Holm",)]
    assert [s.reason for s in found.skipped] == ["no field 'str'"]


def test_mquake_collections_keep_their_ids_apart(tmp_path):
    rows = [changed(MQUAKE, _case_id_space=s, _source=s[0]) for s in ("A set", "B set")]
    found = read("mquake", write(tmp_path, rows))
    assert [case.id for case in found] == ["A set 3", "B set 3"]
    assert found[1].info["source"] == "B"


def test_a_bad_hop_is_left_out_alone(tmp_path):
    hops = [{"answer": "Tarn"}, {"question": "Odo's town?", "answer_alias": ["Tarnby"]}]
    row = changed(MQUAKE, new_single_hops=[*hops, *MQUAKE["new_single_hops"]], single_hops=None)
    found = read("mquake", write(tmp_path, [row]))
    assert len(found[0].probes["single_hop"]) == 2
    assert [(s.reason, s.whole) for s in found.skipped] == [
        ("single_hop: the prompt None is not a string", False),
        ('single_hop: the probe "Odo\'s town?" has no answer', False),
    ]
