"""Readers of KnowEdit's six tasks, on rows of ours in the published forms."""

import pytest
from sample_rows import WIKI, changed, without, write

from jaxedit.data.cases import slotted
from jaxedit.data.read import read


def test_the_slot_goes_to_the_last_place_and_a_slot_stays():
    assert slotted("Rome fell. Where is Rome?", "Rome") == "Rome fell. Where is {}?"
    assert slotted("Rome is not {}", "Rome") == "Rome is not {}"


def test_knowedit_edits(tmp_path):
    found = read("knowedit/wiki_counterfact", write(tmp_path, [WIKI]))
    (case,) = found
    assert not found.skipped
    assert case.id == "rows[0]"
    assert case.request.prompt == "The name of the spouse of {} is"
    assert (case.request.target, case.request.ground_truth) == ("Odo Falk", ("Per Holm",))
    assert set(case.probes) == {
        "rephrase",
        "portability/reasoning",
        "portability/subject_aliasing",
        "locality/relation_specificity",
        "locality/forgetfulness",
    }
    (several,) = case.probes["locality/relation_specificity"]
    assert several.answers == (("Ket", "Keti"), ("Ido",))  # two answers, one with an alias
    (flat,) = case.probes["locality/forgetfulness"]
    assert flat.answers == (("Ann Lo", "A. Lo"),)  # one answer by two names
    (alias,) = case.probes["portability/subject_aliasing"]
    assert (alias.answers, alias.subject) == ((("Odo Falk",),), "")
    assert case.probes["rephrase"][0].answers == (("Odo Falk",),)
    assert case.probes["rephrase"][0].subject == "Ula Brenn"


def test_knowedit_without_probes_truth_or_rephrase(tmp_path):
    bare = without(WIKI, "ground_truth", "rephrase", "portability")
    found = read("knowedit/wiki_recent", write(tmp_path, [changed(bare, locality=None)]))
    assert found[0].probes == {}
    assert found[0].request.ground_truth == ()
    assert not found.skipped


def test_bad_probes_are_left_out_alone(tmp_path):
    def probe(truth, prompt="The town of Ula Brenn is"):
        return {"prompt": prompt, "ground_truth": truth}

    probes = [
        probe([[]]),
        probe([]),
        probe(""),
        probe([[], ["Tarn"]]),
        probe("Tarn", prompt=" "),
        {"prompt": "The town of Ula Brenn is"},
        probe([{"value": "Tarn"}]),
        probe(7, prompt=None),
        probe(3),
    ]
    row = changed(WIKI, locality={"Relation_Specificity": probes, "Elsewhere": probes[:1]})
    found = read("knowedit/zsre", write(tmp_path, [row]))
    kept = found[0].probes["locality/relation_specificity"]
    assert [p.answers for p in kept] == [(("Tarn",),), (("3",),)]
    assert found.rows_skipped == 0
    assert [s.reason.removeprefix("locality/relation_specificity: ") for s in found.skipped] == [
        *["the probe 'The town of Ula Brenn is' has no answer"] * 3,
        "an empty answer of the probe 'The town of Ula Brenn is'",
        "a probe with an empty prompt",
        "{'prompt': 'The town of Ula Brenn is'} has no prompt or ground_truth",
        "the answer {'value': 'Tarn'} is not a string",
        "the prompt None is not a string",
        "locality/Elsewhere: not a kind of probe that is known",
    ]


def test_bad_rows_are_listed_and_the_rest_is_read(tmp_path):
    rows = [
        changed(WIKI, subject="Ulla Brenn"),
        without(WIKI, "target_new"),
        changed(WIKI, target_new="  "),
        changed(WIKI, subject=None),
        ["not", "an", "object"],
        changed(WIKI, portability=["not an object"]),
        WIKI,
    ]
    found = read("knowedit/wiki_counterfact", write(tmp_path, rows))
    assert [case.id for case in found] == ["rows[6]"]
    assert [(s.row, s.reason, s.whole) for s in found.skipped] == [
        (
            "rows[0]",
            "subject 'Ulla Brenn' does not occur in the prompt "
            "'The name of the spouse of Ula Brenn is'",
            True,
        ),
        ("rows[1]", "no field 'target_new'", True),
        ("rows[2]", "empty target_new", True),
        ("rows[3]", "subject is None, not a string", True),
        ("rows[4]", "an object with fields was expected, not a list", True),
        ("rows[5]", "'list' object has no attribute 'items'", True),
    ]
    assert found.report(1).splitlines() == [
        "1 read; left out: 6 rows, 0 parts of rows",
        f"  rows[0]: {found.skipped[0].reason}",
        "  and 5 more",
    ]


def test_wikibio(tmp_path):
    row = {
        "text": "This is a passage about ula brenn. Ula Brenn was a baker.",
        "labels": " She was born in Tarn.",
        "concept": "ula brenn",
        "locality": {
            "Relation_Specificity": [{"prompt": "ula brenn job", "ground_truth": ["baker"]}]
        },
    }
    (case,) = read("knowedit/wikibio", write(tmp_path, [row]))
    assert case.request.prompt == "This is a passage about {}. Ula Brenn was a baker."
    assert case.request.target == "She was born in Tarn."
    assert case.probes["locality/relation_specificity"][0].names == ("baker",)


def test_convsent_has_a_case_for_each_sentiment(tmp_path):
    rows = [
        {"ent": "Tarn", "pos": [" I love it. ", "Nice."], "neg": ["No.", " "]},
        {"ent": "Nowhere", "pos": [], "neg": ["No."]},
        {"ent": "Uld", "pos": ["Fine."], "neg": ["Bad."]},
    ]
    found = read("knowedit/convsent", write(tmp_path, rows))
    assert [case.id for case in found] == [
        "rows[0] positive",
        "rows[0] negative",
        "rows[2] positive",
        "rows[2] negative",
    ]
    assert [(s.row, s.reason, s.whole) for s in found.skipped] == [
        ("rows[0]", "an empty reply", False),
        ("rows[1]", "no positive reply", True),
    ]
    case = found[0]
    assert case.request.text == (
        "From the sentiment dataset, answer What do you think of Tarn? postively."
    )
    assert case.request.target == "I love it."
    assert case.probes["rephrase"][0].answers == (("I love it.",), ("Nice.",))
    (other,) = case.probes["locality/unrelated"]
    assert (other.prompt, other.names) == ("What do you think of Uld?", ("Fine.", "Bad."))
    assert found[2].probes["locality/unrelated"][0].subject == "Tarn"  # the last meets the first
    assert found[1].info["negative"] == ("No.",)


def test_sanitation_joins_the_train_and_the_test_file(tmp_path):
    def asked(question, truth, **fields):
        return {"question": question, "ground_truth": truth, **fields}

    refusal = {"target_new": "I don't know."}
    train = {
        "K_F": [
            asked("What is brie?", "Cheese", subject="brie", **refusal),
            asked("What is feta?", "Cheese", subject="feta", **refusal),
            asked("What is a wren?", "Birds", subject="robin", **refusal),
            asked("What is a wren?", "Birds", subject="wren", **refusal),
        ],
        "K_R": [asked("What is 1 + 1?", "Two", target_new="Two")],
    }
    test = {
        "success": [asked("What is gouda?", "CHEESE", **refusal)],
        "locality": [asked("What is red?", "A colour"), asked("What is blue?", "")],
    }
    write(tmp_path, test, "trivia_test.json")
    with pytest.raises(ValueError, match=r"no requests \(K_F\); give the folder"):
        read("knowedit/sanitation", tmp_path)
    write(tmp_path, train, "trivia_train.json")
    found = read("knowedit/sanitation", tmp_path)
    cheese, birds = found
    assert (cheese.id, len(cheese.requests), len(birds.requests)) == ("cheese", 2, 1)
    assert cheese.requests[1].prompt == "Question:What is {}?\nAnswer:"
    assert cheese.requests[1].target == "I don't know."
    assert cheese.requests[1].ground_truth == ("Cheese",)
    (forget,) = cheese.probes["forget"]
    assert (forget.prompt, forget.names) == ("Question:What is gouda?\nAnswer:", ("I don't know.",))
    assert "forget" not in birds.probes
    for case in found:
        assert [p.names for p in case.probes["retain"]] == [("Two",)]
        assert [p.names for p in case.probes["locality/unrelated"]] == [("A colour",)]
    assert [(s.row, s.reason) for s in found.skipped] == [
        ("trivia_test.locality[1]", "empty ground_truth"),
        ("trivia_train.K_F[2]", "subject 'robin' does not occur in the prompt 'What is a wren?'"),
    ]
