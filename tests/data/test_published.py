"""The published files themselves: every record is read or listed. Needs $JAXEDIT_DATA."""

import os
from collections import Counter
from pathlib import Path

import pytest

from jaxedit.data.read import read

DATA = os.environ.get("JAXEDIT_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="JAXEDIT_DATA is not set")


def published(name, inside, split=None):
    return read(name, Path(DATA or "", inside), split)


def probes(cases):
    count = Counter()
    for case in cases:
        count.update({key: len(found) for key, found in case.probes.items()})
    return dict(count)


def check(found, records, parts=0):
    assert len(found) + found.rows_skipped == records
    assert found.rows_skipped == 0
    assert len(found.skipped) == parts
    assert len({item.id for item in found}) == len(found)


def test_wiki_recent():
    found = published("knowedit/wiki_recent", "knowedit/wiki_recent", "train")
    check(found, 570, parts=17)
    # 7 probes without any answer are gone; 10 have lost an empty one among several.
    said = Counter("has no answer" in skip.reason for skip in found.skipped)
    assert said == {True: 7, False: 10}
    assert probes(found) == {
        "portability/subject_aliasing": 52,
        "portability/reasoning": 476,
        "portability/logical_generalization": 223,
        "locality/relation_specificity": 1648 - 7,
        "locality/forgetfulness": 298,
    }


def test_wiki_counterfact():
    found = published("knowedit/wiki_counterfact", "knowedit/wiki_counterfact")
    check(found, 839)
    assert probes(found) == {
        "rephrase": 839,
        "portability/subject_aliasing": 2358,
        "portability/reasoning": 2082,
        "portability/logical_generalization": 405,
        "locality/relation_specificity": 5486,
        "locality/forgetfulness": 468,
    }


def test_knowedit_zsre():
    found = published("knowedit/zsre", "knowedit/ZsRE")
    check(found, 1301)
    assert probes(found) == {
        "rephrase": 1301,
        "portability/subject_aliasing": 263,
        "portability/reasoning": 771,
        "portability/logical_generalization": 267,
        "locality/relation_specificity": 2602,
    }


def test_wikibio():
    found = published("knowedit/wikibio", "knowedit/WikiBio")
    check(found, 306)
    assert probes(found) == {"locality/relation_specificity": 612}


def test_convsent():
    found = published("knowedit/convsent", "knowedit/convsent")
    check(found, 2 * 800)
    assert probes(found) == {"rephrase": 4 * 1600, "locality/unrelated": 1600}


def test_sanitation():
    found = published("knowedit/sanitation", "knowedit/Sanitation")
    assert not found.skipped
    assert [case.id for case in found] == [
        "cheese",
        "birds",
        "paris",
        "julius caesar",
        "finland",
    ]
    assert all(len(case.requests) == 16 for case in found)
    assert all(len(case.probes["forget"]) == 16 for case in found)
    assert all(len(case.probes["retain"]) == 453 for case in found)
    assert all(len(case.probes["locality/unrelated"]) == 453 for case in found)


def test_counterfact_in_both_forms():
    found = published("counterfact", "counterfact")
    check(found, 10_000 + 1_919 + 1_129)
    assert probes(found) == {
        "rephrase": 11_919 + 2 * 1_129,
        "locality/neighborhood": 11_919 + 10 * 1_129,
        "attribute": 10 * 1_129,
        "generation": 10 * 1_129,
    }
    check(published("counterfact", "counterfact", "val"), 1_919)
    check(published("counterfact", "counterfact/counterfact_rome_schema_subset.json"), 1_129)


@pytest.mark.parametrize("name", ["zsre", "zsre/true"])
def test_zsre(name):
    found = published(name, "zsre")
    check(found, 1037)
    hops = {"portability/reasoning": 1037} if name == "zsre" else {}
    assert probes(found) == {"rephrase": 1037, "locality/unrelated": 1037, **hops}


def test_mquake():
    found = published("mquake", "mquake")
    check(found, 883)
    assert sum(len(case.requests) for case in found) == 2344
    assert probes(found) == {"multi_hop": 3 * 783 + 100, "single_hop": 3016}


def test_known_1000():
    check(published("known_1000", "known_1000"), 1209)


def test_pararel():
    found = published("pararel", "pararel")
    check(found, 27_610)
    assert len({fact.relation for fact in found}) == 39
    patterns = {fact.relation: fact.patterns for fact in found}
    assert sum(map(len, patterns.values())) == 329
    prompts = {fact.relation: (fact.prompt, *fact.paraphrases) for fact in found}
    assert all(prompts.values())


def test_questions():
    mmlu = published("mmlu", "eval/mmlu", "test")
    check(mmlu, 14_042)
    assert len({question.subject for question in mmlu}) == 57
    check(published("mmlu", "eval/mmlu", "validation"), 1_531)
    check(published("commonsense_qa", "eval/commonsense_qa"), 1_221)
    check(published("gsm8k", "eval/gsm8k"), 1_319)
    piqa = published("piqa", "eval/piqa")
    check(piqa, 1_838)
    labels = Path(DATA or "", "eval/piqa/valid-labels.lst").exists()
    assert all((question.answer is not None) == labels for question in piqa)


@pytest.mark.parametrize("inside", ["transfer/gsm", "transfer/mmlu"])
def test_transfer(inside):
    found = published("transfer", inside)
    check(found, 1_032)
    assert all(len(dialogue.messages) == 2 for dialogue in found)
