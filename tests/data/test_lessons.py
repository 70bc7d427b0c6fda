"""Lessons: which facts are learned from, and what a batch of them holds."""

import json

import numpy as np
import pytest

from jaxedit.data.asked import edit_cases
from jaxedit.data.lessons import LOCAL, PARTS, LessonConfig, load
from jaxedit.data.world.relations import RELATIONS, held_out
from jaxedit.data.world.vocabulary import tokenizer

ALL = "world:tiny:0:100"
CFG = LessonConfig(sources=(ALL,), without=("world:tiny:0:20",), validation=10)


@pytest.fixture(scope="module")
def words():
    return tokenizer()


@pytest.fixture(scope="module")
def found(words):
    return load(CFG, words)


def facts(lessons):
    return {(some[0].request.subject, some[0].request.prompt) for some in lessons.facts}


def texts(words, lessons, b, part):
    """A row's prompt and answer as text."""
    row = lessons.take((b, part))
    n = int((row.pos_BT >= 0).sum())
    first = int(row.at_BU[0]) + 1
    answer = row.target_BU[: int(row.mask_BU.sum())]
    assert row.tokens_BT[first:n].tolist() == answer.tolist()
    return words.decode(row.tokens_BT[:first]), words.decode(answer)


def test_trained_validated_and_edited_facts_are_different_ones(found):
    train, held, skipped = found
    edited = {(c.request.subject, c.request.prompt) for c in edit_cases("world:tiny:0:20")[0]}
    assert (len(train), len(held), len(skipped)) == (70, 10, 0)
    assert not facts(train) & facts(held)
    assert not (facts(train) | facts(held)) & edited


def test_a_lesson_is_a_request_another_wording_and_something_that_stays(words, found):
    train, _, _ = found
    lessons = train.batch(3, 16)
    assert lessons.tokens_BT.shape[:2] == (16, PARTS)
    cases = {c.request.text: c for c in edit_cases(ALL)[0]}
    for b in range(16):
        prompt, target = texts(words, lessons, b, 0)
        case = cases[prompt.strip()]
        assert target.strip() == case.request.target
        said, again = texts(words, lessons, b, 1)
        assert again == target
        assert said != prompt
        assert case.request.subject in said
        unseen = [p.replace("{}", case.request.subject)
                  for p in held_out(RELATIONS[case.info["relation"]])]  # fmt: skip
        assert said.strip() not in unseen
        kept, answer = texts(words, lessons, b, 2)
        probes = [p for key in LOCAL for p in case.probes.get(key, ())]
        assert (kept.strip(), answer.strip()) in {(p.prompt, p.names[0]) for p in probes}


def test_every_fact_comes_once_before_any_comes_again(found):
    train, _, _ = found
    drawn = [lesson.request for step in range(7) for lesson in train.draw(step, 10)]
    assert len({(r.subject, r.prompt) for r in drawn}) == 70
    again = [lesson.request for step in range(7, 14) for lesson in train.draw(step, 10)]
    assert [r.text for r in again] != [r.text for r in drawn]
    assert {r.text for r in again} == {r.text for r in drawn}


def test_a_step_is_the_same_whenever_it_is_asked_for(found):
    train, _, _ = found
    once, twice = train.batch(5, 8), train.batch(5, 8)
    for x, y in zip(vars(once).values(), vars(twice).values(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(once.tokens_BT[0], train.batch(6, 8).tokens_BT[0])


def test_what_is_kept_is_nothing_that_another_edit_of_the_batch_changes(words, found):
    train, _, _ = found
    lessons = train.batch(0, len(train))
    asked = {texts(words, lessons, b, 0)[0] for b in range(len(train))}
    kept = [texts(words, lessons, b, 2)[0] for b in range(len(train))]
    assert sum(prompt in asked for prompt in kept) <= len(train) // 20  # where there is no other


def test_validation_asks_the_same_every_time(found):
    _, held, _ = found
    first, second = list(held.every(4)), list(held.every(4))
    assert [len(x) for x in first] == [4, 4]
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x.tokens_BT, y.tokens_BT)


def test_published_rows_and_those_that_teach_nothing(words, tmp_path):
    rows = [
        {"prompt": "Sizi is governed from", "subject": "Sizi", "target": "Bili"},
        {"prompt": "In Sizi people speak", "subject": "Sizi", "target": "Gevi"},
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"0 facts to learn from, of which 1 .*nothing to be kept"):
        load(LessonConfig((str(file),), validation=1), words)


def test_too_few_facts_are_told(words):
    with pytest.raises(ValueError, match="80 facts to learn from, of which 80 are for validation"):
        load(LessonConfig((ALL,), CFG.without, validation=80), words)
    train, _, _ = load(CFG, words)
    with pytest.raises(ValueError, match="71 edits of different facts at once; there are 70"):
        train.batch(0, 71)


def test_kinds_of_edit_come_in_turn_however_many_facts_each_has(words):
    """Else of a source of 20 changed facts and hundreds of new ones nearly all are new ones, of
    whose subjects nothing is known that could be forgotten.
    """
    sources = ("world:tiny:0:20", *(f"world:tiny:0:40:insertion:{draw}" for draw in range(20, 23)))
    train, held, _ = load(LessonConfig(sources, validation=8), words)
    kinds = lambda some: sorted(lesson.kind for lesson in some)
    assert kinds(facts[0] for facts in held.facts) == ["counterfactual"] * 4 + ["insertion"] * 4
    drawn = [train.draw(step, 8) for step in range(4)]
    assert all(kinds(some) == ["counterfactual"] * 4 + ["insertion"] * 4 for some in drawn)
    changed = [x.request.text for some in drawn for x in some if x.kind == "counterfactual"]
    assert len(set(changed)) == 16  # all of them, each once
    with pytest.raises(ValueError, match=r"34 edits of different facts at once; .*, 16 of a kind"):
        train.draw(0, 34)
