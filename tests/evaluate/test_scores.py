"""The numbers of a case, worked out by hand from what was said."""

import math

import pytest

from jaxedit.data.cases import EditCase, EditRequest, Probe
from jaxedit.evaluate import scores
from jaxedit.evaluate.scores import score
from jaxedit.evaluate.seen import EDIT, Asked, Forced, Observed, Seen
from jaxedit.evaluate.texts import References, TfIdf, ngram_entropy

REQUEST = EditRequest("{} was born in", "Ula", "Tarn", ("Uld",))


def forced(share: float = 1.0, logp: float = -1.0, size: int = 4, seed: int = 0) -> Forced:
    """An answer of some tokens, the first share of which are said."""
    target = tuple(range(10 * seed, 10 * seed + size))
    said = tuple(t if i < share * size else -t - 1 for i, t in enumerate(target))
    return Forced(target, said, (logp,) * size)


def seen(*answers, text=None, **more) -> Seen:
    """Answers as lists of shares of tokens said, by name."""
    made = tuple(tuple(forced(s, seed=i) for i, s in enumerate(names)) for names in answers)
    return Seen(made, text=text, **more)


def ask(key, after, before=None, answers=(("Tarn",),), kl=None, known=(), **more) -> Asked:
    probe = Probe("Where?", tuple(tuple(names) for names in answers), **more)
    return Asked(key, probe, before or after, after, kl, known)


def observed(*asked, requests=(REQUEST,), info=None, **more) -> Observed:
    return Observed(EditCase("0", tuple(requests), {}, info or {}), tuple(asked), **more)


def test_success_by_tokens_exactly_and_in_text():
    case = observed(
        ask(EDIT, seen([1.0], text=" Tarn, she")),
        ask("rephrase", seen([0.75], text=" Uld")),
        ask("rephrase", seen([1.0], text=" the town of TARN")),
    )
    assert score(case) == {
        "edit_success/token": 1,
        "edit_success/exact": 1,
        "edit_success/generation": 1,
        "generalization/token": 0.875,
        "generalization/exact": 0.5,
        "generalization/generation": 0.5,
    }
    assert score(case, "easyedit") == {"edit_success/token": 1, "generalization/token": 0.875}


def test_every_request_of_a_case_counts():
    case = observed(ask(EDIT, seen([1.0])), ask(EDIT, seen([0.5])), requests=(REQUEST,) * 2)
    assert score(case) == {"edit_success/token": 0.75, "edit_success/exact": 0.5}


def test_the_protocols_differ_where_an_answer_has_several_names():
    said = seen([0.25, 1.0], [0.5], text="the language Ido")
    case = observed(ask("portability/reasoning", said, answers=[["Ket", "Keti"], ["Ido"]]))
    paper = score(case)
    assert paper["portability/reasoning/token"] == paper["portability/reasoning/exact"] == 1
    assert paper["portability/generation"] == 1  # another answer than the first
    assert score(case, "easyedit") == {
        "portability/reasoning/token": 0.25,
        "portability/token": 0.25,
    }
    with pytest.raises(ValueError, match="protocol 'rome': one of paper, easyedit"):
        score(case, "rome")


def test_a_key_counts_once_however_many_probes_it_has():
    case = observed(
        ask("portability/reasoning", seen([1.0])),
        ask("portability/reasoning", seen([0.5])),
        ask("portability/reasoning", seen([0.0])),
        ask("portability/subject_aliasing", seen([1.0])),
    )
    for protocol in ("paper", "easyedit"):
        found = score(case, protocol)
        assert found["portability/reasoning/token"] == 0.5
        assert found["portability/token"] == 0.75
        assert not [name for name in found if "logical" in name]


def test_probes_of_a_group_are_one_test():
    best = [
        ask("portability/reasoning", seen([share]), group="a", rule="any") for share in (0.25, 1.0)
    ]
    worst = [
        ask("portability/reasoning", seen([share]), group="b", rule="all") for share in (0.25, 1.0)
    ]
    found = score(observed(*best, *worst, ask("portability/reasoning", seen([1.0]))))
    assert found["portability/token"] == pytest.approx((1 + 0.25 + 1) / 3)
    assert found["portability/exact"] == pytest.approx(2 / 3)
    # EasyEdit knows no groups
    assert score(observed(*best, *worst), "easyedit")["portability/token"] == 0.625


def test_locality_is_agreement_with_the_unedited_model():
    before = Seen(((Forced((1, 2, 3), (7, 2, 3), (-1.0,) * 3),),))
    after = Seen(((Forced((1, 2, 3), (7, 2, 9), (-1.0,) * 3),),))
    case = observed(
        ask("locality/relation_specificity", after, before, kl=0.5),
        ask("locality/relation_specificity", before, before, kl=0.1),
        ask("locality/forgetfulness", seen([1.0]), seen([0.0, 1.0])),
        ask("locality/unrelated", seen([1.0]), seen([0.5])),
    )
    found = score(case)
    assert found["locality/relation_specificity/agreement"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["locality/relation_specificity/exact"] == 0  # agrees, but was wrong before
    assert found["locality/relation_specificity/kl"] == pytest.approx(0.3)
    assert found["locality/forgetfulness/exact_before"] == 1  # by its other name
    assert found["locality/forgetfulness/agreement"] == 0  # under the first name
    assert found["locality/unrelated/exact_before"] == 0
    assert found["locality/agreement"] == pytest.approx((5 / 6 + 0 + 1 / 2) / 3)
    assert found["locality/exact"] == pytest.approx(2 / 3)
    assert "locality/forgetfulness/kl" not in found
    # right() says the same of one probe, for a record
    assert [scores.right(a) for a in case.asked] == [False, True, False, False]
    assert set(score(case, "easyedit")) == {
        "locality/relation_specificity/agreement",
        "locality/forgetfulness/agreement",
        "locality/unrelated/agreement",
        "locality/agreement",
    }


def test_without_answers_generations_are_compared():
    after, before = Seen(text="It is in Uld"), Seen(text="It is in Tarn now")
    found = score(observed(ask("locality/unrelated", after, before, answers=())))
    assert found == {"locality/unrelated/agreement": 0.6, "locality/agreement": 0.6}
    assert score(observed(ask("locality/unrelated", Seen(), answers=()))) == {}


def test_counterfact_compares_the_new_and_the_true_answer():
    high, low = forced(logp=math.log(0.5)), forced(logp=math.log(0.25), size=2)
    success, failure = Seen(new=high, true=low), Seen(new=low, true=high)
    neighbours = [failure, failure, failure, success]
    found = score(
        observed(
            ask(EDIT, success),
            ask("rephrase", success),
            ask("rephrase", failure),
            *[ask("locality/neighborhood", s, answers=[["Uld"]]) for s in neighbours],
            ask("locality/distracting", failure, answers=[["Uld"]]),
        )
    )  # fmt: skip
    assert found["edit_success/probability"] == 1
    assert found["edit_success/magnitude"] == pytest.approx(0.25)
    assert found["generalization/probability"] == 0.5
    assert found["generalization/magnitude"] == pytest.approx(0)
    assert found["locality/neighborhood/probability"] == 0.75  # true above new
    assert found["locality/neighborhood/magnitude"] == pytest.approx(0.125)
    assert not [name for name in found if "distracting" in name]


def hop(share, text, answer):
    return ask("single_hop", seen([share], text=text), answers=[[answer]])


def test_mquake_counts_edits_facts_and_questions():
    phrasings = [
        ask("multi_hop", seen([0.0], text=after), Seen(text=before), group="chain", rule="any",
            answers=[["Tarn", "Tarnia"]])
        for after, before in (("Nowhere", "in Uld"), ("in Tarnia", "?"), ("Uld", "?"))
    ]  # fmt: skip
    edits = [ask(EDIT, seen([1.0], text=text)) for text in (" Tarn", " Uld")]
    case = observed(*edits, *phrasings, requests=(REQUEST,) * 2, info={"answer": ("Uld", "Old")})
    found = score(case)
    assert found["mquake/edit_wise"] == 0.5
    assert found["mquake/instance_wise"] == 0  # of the edits, as no single facts are listed
    assert found["mquake/multi_hop"] == 1  # the second phrasing says the other name
    assert found["mquake/multi_hop_before"] == 1
    told = [hop(0.0, "Odo, I think", "Odo"), hop(0.0, "Tarn", "Tarn")]
    assert score(observed(*told))["mquake/instance_wise"] == 1
    assert score(observed(*told, hop(1.0, "no", "Ket")))["mquake/instance_wise"] == 0
    # without text, first choices say what greedy decoding would say
    assert score(observed(hop(1.0, None, "Ket")))["mquake/instance_wise"] == 1
    assert score(observed(hop(0.75, None, "Ket")))["mquake/instance_wise"] == 0


def test_ripple_tests_count_where_the_unedited_model_knows_their_conditions():
    condition = Probe("Who?", (("Odo",),))

    def test(text, group, rule="any", known=(True,), answers=(("Ket",),)):
        return ask("ripple/compositionality_1", Seen(text=text), known=known, group=group,
                   rule=rule, conditions=(condition,), answers=answers)  # fmt: skip

    passed = [test("Ket", "0"), test("no", "0")]
    failed = [test("Ket", "1", "all"), test("no", "1", "all")]
    unknown = [test("no", "2", known=(False,))]
    unasked = [test("no", "3", known=())]
    found = score(observed(*passed, *failed, *unknown, *unasked))
    assert found == {"ripple/compositionality_1": 0.5}
    assert score(observed(*unknown)) == {}
    # all answers are needed, by any name
    both = [["Ket", "Keti"], ["Ido"]]
    assert score(observed(test("Keti", "4", answers=both)))["ripple/compositionality_1"] == 0
    found = score(observed(test("Ido and Keti", "4", answers=both)))
    assert found["ripple/compositionality_1"] == 1
    plain = ask("ripple/preservation", Seen(text="Tarn"))
    assert score(observed(plain)) == {"ripple/preservation": 1}


def test_sanitation_refuses_what_is_forgotten_and_keeps_the_rest():
    refusal = [["I don't know."]]
    kept = ask("locality/unrelated", seen([0.0], text="blue and old"),
               seen([0.0], text="blue and new"), answers=[["blue"]])  # fmt: skip
    found = score(
        observed(
            ask("forget", Seen(text=" I DON'T KNOW. Sorry"), answers=refusal),
            ask("forget", Seen(text=" Paris"), answers=refusal),
            ask("retain", Seen(text="a b c"), Seen(text="a b c d"), answers=[["a"]]),
            kept,
        )
    )
    assert found["sanitation/forget"] == 0.5
    assert found["sanitation/retain"] == 0.75
    assert found["locality/unrelated/agreement"] == pytest.approx(2 / 3)  # of the generations
    assert found["locality/unrelated/exact"] == 0
    # with another tokenizer another share
    letters = score(observed(ask("forget", Seen(text="")), kept), tokenise=list)
    assert letters["locality/agreement"] == 0.75
    # without "forget" or "retain" agreement is under the answer
    assert score(observed(kept))["locality/agreement"] == 1


def test_convsent_weighs_sentiment_and_topic():
    info = {"sentiment": "negative", "positive": ("good",), "negative": ("bad", "worse")}
    reply = lambda logp, size=2: forced(logp=logp, size=size)
    before = Seen(((reply(-2.0),), (reply(-2.0),)))
    after = Seen(((reply(-2.0),), (reply(-3.5, 4),)), against=(reply(-4.0),))
    case = observed(
        ask("rephrase", after, before, answers=[["bad"], ["worse"]]),
        ask("locality/unrelated", seen([1.0]), kl=0.25),
        info=info,
    )
    found = score(case)
    # wanted: (2 · -2 + 4 · -3.5) / 6 = -3, before -2, against -4
    assert found["convsent/expression"] == pytest.approx(1 / (1 + math.exp(-1)) * math.exp(-1))
    assert found["convsent/drift"] == 0.25
    assert "convsent/expression" not in score(observed(*case.asked))  # another dataset


def test_fluency_is_of_whole_texts_and_consistency_of_all_together():
    beginnings = ("Ula grew up", "Ula works")
    continued = ((" in Uld with her", "with sheep, with sheep"), (" as a baker", "as a baker"))
    case = observed(beginnings=beginnings, continued=continued)
    found = score(case)
    # a tokenizer may have dropped the first blank of what it decoded
    whole = ["Ula grew up with sheep, with sheep", "Ula works as a baker"]
    assert found["fluency"] == pytest.approx(sum(map(ngram_entropy, whole)) / 2)
    assert set(found) == {"fluency", "fluency_before"}
    fitted = TfIdf.fit(["sheep baker", "uld baker"])
    found = score(case, references=References(fitted, ("Sheep!",)))
    assert found["consistency"] == pytest.approx(fitted.similarity("sheep sheep baker", "sheep"))
    assert found["consistency_before"] == 0
    assert scores.join("Ula", ", who") == "Ula, who"


def everything(before: float, after: float, say_before: str, say_after: str) -> Observed:
    """Probes of all kinds: what should change is said to a share before and to another after, what
    should not is said in full.
    """
    answers = [["Tarn", "Tarnia"], ["Tarno"]]
    now = lambda share, text: seen([share, 0.0], [0.0], text=text)
    new, true = forced(logp=-0.1 if after == 1 else -3.0), forced(logp=-1.0)
    changed = [
        ask(key, Seen(now(after, say_after).answers, new, true, text=say_after),
            now(before, say_before), answers=answers)
        for key in (EDIT, "rephrase", "portability/reasoning", "single_hop", "multi_hop")
    ]  # fmt: skip
    stays = Seen(seen([1.0]).answers, forced(logp=-9.0), forced(logp=-0.1), text="Uld")
    keys = ("relation_specificity", "forgetfulness", "neighborhood", "unrelated")
    unchanged = [ask(f"locality/{key}", stays, kl=0.0, answers=[["Uld"]]) for key in keys]
    ripple = [ask("ripple/preservation", stays, answers=[["Uld"]])]
    return observed(*changed, *unchanged, *ripple, info={"answer": ("Uld",)})


def test_a_perfect_edit_has_the_best_score_everywhere():
    for protocol in ("paper", "easyedit"):
        found = score(everything(0.0, 1.0, "Uld", "in Tarn"), protocol)
        lower = {name: v for name, v in found.items() if name.endswith("kl")}
        assert set(lower.values()) <= {0.0}
        best = {n: v for n, v in found.items() if n not in lower and not n.endswith("magnitude")}
        assert set(best.values()) == {1.0}, best
        assert len(best) > 8


def test_doing_nothing_leaves_all_alone_and_changes_no_success():
    found = score(everything(0.25, 0.25, "Uld", "Uld"))
    assert found["locality/agreement"] == found["locality/exact"] == 1
    assert found["ripple/preservation"] == 1
    assert found["edit_success/token"] == found["portability/token"] == 0.25
    zeros = ("exact", "generation", "probability")
    assert all(found[f"edit_success/{name}"] == 0 for name in zeros)
    assert found["mquake/multi_hop"] == 0
    assert found["mquake/multi_hop_before"] == 1


def test_a_case_without_probes_or_tokens_has_no_numbers():
    assert score(observed()) == score(observed(), "easyedit") == {}
    empty = Seen(((Forced((), (), ()),),))
    assert score(observed(ask(EDIT, empty), ask("locality/unrelated", empty))) == {}
    some = observed(ask("portability/reasoning", empty), ask("portability/reasoning", seen([0.5])))
    assert score(some, "easyedit")["portability/token"] == 0.5  # a blank answer is dropped
    blank = Seen(((Forced((), (), ()),), *seen([1.0]).answers))
    assert score(observed(ask(EDIT, blank)), "easyedit") == {}  # no other takes its place
    assert score(observed(ask(EDIT, blank)))["edit_success/token"] == 1
