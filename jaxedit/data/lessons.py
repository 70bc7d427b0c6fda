"""What an editor learns from: edits, each with another wording and with something it must leave
alone, drawn anew at every step.

A lesson is three rows: the request and its target, another wording and the same target, and a
prompt that the edit does not concern, with its answer. Shapes: N lessons, T columns, U tokens.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxedit.data.answers import Answers, answers
from jaxedit.data.asked import WORLD, edit_cases
from jaxedit.data.cases import EditCase, EditRequest, Probe, Skipped
from jaxedit.data.requests import Marked, Row, mark, tokenise
from jaxedit.data.world.relations import RELATIONS, phrases

NOWHERE = (-1, -1)
PARTS = 3  # rows of a lesson
LOCAL = (
    "locality/relation_specificity",
    "locality/neighborhood",
    "locality/distracting",
    "locality/unrelated",
)
Fact = tuple[str, str]  # subject, prompt


@dataclasses.dataclass(frozen=True)
class LessonConfig:
    sources: tuple[str, ...]  # as data/asked.py has them; a fact may have several, to other targets
    without: tuple[str, ...] = ()  # sources whose facts are left out: those to be edited later
    validation: int = 64  # facts that are kept for validation
    said: tuple[str, ...] = ("rephrase",)  # keys of probes that have the new answer
    kept: tuple[str, ...] = LOCAL  # keys of probes whose answers stay; each as often as the others
    longest: int = 64  # tokens of a row; longer ones are left out
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources or not self.kept or self.validation < 1:
            raise ValueError(f"{self}: needs sources, kept, and at least one fact for validation")


class Lesson(NamedTuple):
    """An edit, tokenised."""

    request: EditRequest
    kind: str  # of edit: a changed fact, a new one …; "" where the source does not say
    edit: Row
    said: tuple[Row, ...]
    kept: tuple[tuple[tuple[str, Row], ...], ...]  # by key: prompts and rows


@dataclasses.dataclass(frozen=True)
class Lessons:
    """Edits by fact: one of a fact's is drawn. Kinds of edit come in turn, however many facts each
    has: of new facts there is no end, of those that a model knows there is.
    """

    facts: tuple[tuple[Lesson, ...], ...]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.facts)

    @functools.cached_property
    def by_kind(self) -> list[list[int]]:
        """Facts of each kind of edit."""
        out: dict[str, list[int]] = {}
        for i, variants in enumerate(self.facts):
            out.setdefault(variants[0].kind, []).append(i)
        return [out[kind] for kind in sorted(out)]

    def draw(self, step: int, count: int) -> list[Lesson]:
        """`count` edits of different facts: every one of a kind before any comes again."""
        fewest = min(map(len, self.by_kind))
        if -(-count // len(self.by_kind)) > fewest:
            raise ValueError(
                f"{count} edits of different facts at once; there are {len(self)}"
                + (f", {fewest} of a kind" if len(self.by_kind) > 1 else "")
            )
        out: list[Lesson] = []
        for at in range(step * count, (step + 1) * count):
            nth, k = divmod(at, len(self.by_kind))
            some = self.by_kind[k]
            epoch, i = divmod(nth, len(some))
            which = [epoch, k] if len(self.by_kind) > 1 else [epoch]
            order = np.random.RandomState([self.seed, *which]).permutation(len(some))
            variants = self.facts[some[order[i]]]
            random = np.random.RandomState([self.seed, *which, i])
            out.append(variants[random.randint(len(variants))])
        return out

    def batch(self, step: int, count: int) -> Answers:
        """[N, 3, …]: of every lesson the edit, another wording, and what is kept. A prompt that
        another edit of the batch concerns is not drawn.
        """
        return asked(self.draw(step, count), np.random.RandomState([self.seed, 1 << 20, step]))

    def every(self, size: int) -> Iterator[Answers]:
        """All facts once, the same ones each time, `size` at a time."""
        for at in range(0, len(self.facts) - len(self.facts) % size or len(self.facts), size):
            some = [variants[0] for variants in self.facts[at : at + size]]
            yield asked(some, np.random.RandomState([self.seed, at]))


def asked(some: Sequence[Lesson], random: np.random.RandomState) -> Answers:
    """The rows of lessons, [N, 3, …]."""
    edited = {lesson.request.text for lesson in some}
    rows: list[Row] = []
    for lesson in some:
        rows += [lesson.edit, lesson.said[random.randint(len(lesson.said))]]
        rows.append(pick(lesson, edited, random))
    flat = answers(rows, len(rows))
    return jax.tree.map(lambda x: x.reshape(-1, PARTS, x.shape[-1]), flat)


def pick(lesson: Lesson, edited: set[str], random: np.random.RandomState) -> Row:
    """What is kept: of a key, then of its prompts; the last resort is any.

    A prompt may begin with another sentence ("distracting"), so its end says what it asks.
    """
    ends = tuple(edited)
    free = [[row for prompt, row in rows if not prompt.endswith(ends)] for rows in lesson.kept]
    free = [rows for rows in free if rows] or [[row for _, row in rows] for rows in lesson.kept]
    rows = free[random.randint(len(free))]
    return rows[random.randint(len(rows))]


def load(cfg: LessonConfig, tokenizer: Any) -> tuple[Lessons, Lessons, list[Skipped]]:
    """Lessons to train on and to validate on, of different facts, and what was left out."""
    taken = {fact(r) for source in cfg.without for r in requests_of(source)}
    cases: list[EditCase] = []
    skipped: list[Skipped] = []
    for source in cfg.sources:
        found, left_out = edit_cases(source)
        skipped += left_out
        cases += [worded(case) if source.startswith(WORLD) else case for case in found]
    alone = [case for case in cases if len(case.requests) == 1]
    skipped += [Skipped(c.id, "several requests in one case") for c in cases if len(c.requests) > 1]
    wanted = [case for case in alone if fact(case.request) not in taken]
    by_fact: dict[Fact, list[Lesson]] = {}
    for case, lesson in zip(wanted, lessons(wanted, cfg, tokenizer), strict=True):
        if isinstance(lesson, str):
            skipped.append(Skipped(case.id, lesson))
        else:
            by_fact.setdefault(fact(case.request), []).append(lesson)
    if len(by_fact) <= cfg.validation:
        why = f"; {skipped[0].row}: {skipped[0].reason}" if skipped else ""
        raise ValueError(
            f"{len(by_fact)} facts to learn from, of which {cfg.validation} are for validation: "
            f"give more sources, or set validation{why}"
        )
    every = Lessons(tuple(tuple(some) for some in by_fact.values()), cfg.seed)
    held = validation(every, cfg)
    choose = lambda some: Lessons(tuple(every.facts[i] for i in sorted(some)), cfg.seed)
    return choose({*range(len(every))} - held), choose(held), skipped


def validation(every: Lessons, cfg: LessonConfig) -> set[int]:
    """Facts at random, as many of each kind of edit as there are, in turn."""
    random = np.random.RandomState(cfg.seed)
    piles = [random.permutation(some).tolist() for some in every.by_kind]
    turns = itertools.zip_longest(*piles)
    order = [i for turn in turns for i in turn if i is not None]
    return set(order[: cfg.validation])


def requests_of(source: str) -> Iterator[EditRequest]:
    for case in edit_cases(source)[0]:
        yield from case.requests


def fact(request: EditRequest) -> Fact:
    return request.subject, request.prompt


def worded(case: EditCase) -> EditCase:
    """A world's case with the wordings that its texts use, in the place of those held out."""
    target, subject = ((case.request.target,),), case.request.subject
    texts = phrases(RELATIONS[case.info["relation"]])[1:]
    said = tuple(Probe(text.replace("{}", subject), target, subject) for text in texts)
    return dataclasses.replace(case, probes={**case.probes, "rephrase": said})


def lessons(cases: Sequence[EditCase], cfg: LessonConfig, tokenizer: Any) -> Iterator[Lesson | str]:
    """Every case as a lesson, or why it is none."""
    texts: list[Marked] = []
    number: dict[tuple[str, str], int] = {}

    def add(prompt: str, answer: str) -> int:
        if (prompt, answer) not in number:
            number[prompt, answer] = len(texts)
            texts.append(mark(prompt, answer, NOWHERE))
        return number[prompt, answer]

    plans = []
    for case in cases:
        request = case.request
        said = [p for key in cfg.said for p in case.probes.get(key, ())]
        kept = {
            key: [
                (p.prompt, add(p.prompt, p.names[0])) for p in case.probes.get(key, ()) if p.names
            ]
            for key in cfg.kept
        }
        edit = add(request.text, request.target)
        texts_said = [add(p.prompt, request.target) for p in said]
        plans.append((request, case.info.get("kind", ""), edit, texts_said, kept))
    found = {i: fitting(row, cfg) for i, row in tokenise(tokenizer, list(enumerate(texts)))}
    for plan in plans:
        yield settled(*plan, found, cfg)


def fitting(row: Row | str, cfg: LessonConfig) -> Row | str:
    if isinstance(row, str) or len(row.tokens) <= cfg.longest:
        return row
    return f"{len(row.tokens)} tokens; longest={cfg.longest}"


def settled(
    request: EditRequest,
    kind: str,
    edit: int,
    said: Sequence[int],
    kept: Mapping[str, Sequence[tuple[str, int]]],
    found: Mapping[int, Row | str],
    cfg: LessonConfig,
) -> Lesson | str:
    """A lesson of the rows that could be made."""
    if isinstance(row := found[edit], str):
        return row
    rows = lambda some: [r for i in some if isinstance(r := found[i], Row)]
    mine = [tuple((p, r) for p, i in kept[key] for r in rows([i])) for key in cfg.kept]
    mine = [some for some in mine if some]
    if not mine:
        return f"nothing to be kept beside it: none of {', '.join(cfg.kept)}"
    return Lesson(request, kind, row, tuple(rows(said)) or (row,), tuple(mine))
