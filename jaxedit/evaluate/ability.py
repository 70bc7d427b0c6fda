"""What a model can do at all, before and after an edit: exams, and the perplexity of a text."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit import settings
from jaxedit.data.documents import Source
from jaxedit.data.exams import Question
from jaxedit.data.read import read
from jaxedit.edit.record import Edit
from jaxedit.evaluate.choice import FORMS, MEASURES, Answered, Exam, Sheet, choose
from jaxedit.evaluate.likelihood import ROWS
from jaxedit.evaluate.metrics import bootstrap
from jaxedit.evaluate.perplexity import perplexity
from jaxedit.models.config import Model
from jaxedit.progress import Progress, quiet
from jaxedit.settings import suggest
from jaxedit.sharding import ONE_DEVICE, MeshConfig

REASONS = 5  # why questions were skipped: as many are told


@dataclasses.dataclass(frozen=True)
class AbilityConfig:
    """Which questions and which text.

    A set is FORM:PATH, FORM one of `choice.FORMS` (mmlu, mmlu/text, piqa …), PATH a file, a folder
    or a hub dataset; PATH@SPLIT takes one split of a folder or a hub dataset.
    """

    sets: tuple[str, ...] = ()
    shots: int = 0  # examples before each question
    # Sets that the examples are taken from, by dataset ("mmlu:…/dev.jsonl"); without one they come
    # from the set itself, where no question is its own example.
    examples: tuple[str, ...] = ()
    limit: int = 0  # questions of a set, evenly spread over it; 0: all
    text: Source = dataclasses.field(default_factory=Source)  # for the perplexity; may be empty
    length: int = 0  # tokens of a window of text; 0: as many as the model reads, at most 1024
    windows: int = 0  # the first so many; 0: all
    size: int = ROWS  # rows of a batch

    def __post_init__(self) -> None:
        for spec in (*self.sets, *self.examples):
            split_name(spec)
        if min(self.shots, self.limit, self.length, self.windows) < 0 or self.size < 1:
            raise ValueError(
                f"shots={self.shots} limit={self.limit} length={self.length} "
                f"windows={self.windows} size={self.size}: numbers from 0 on, size from 1 on"
            )


@dataclasses.dataclass(frozen=True)
class AbilityTask:
    """What `python -m jaxedit.evaluate` takes to examine a model, before and after an edit."""

    model: str  # a folder, a hub name, a checkpoint, or one that ships
    edit: str = ""  # a file that Edit.save wrote; "": the model alone
    ability: AbilityConfig = dataclasses.field(default_factory=AbilityConfig)
    mesh: MeshConfig = ONE_DEVICE
    dtype: settings.Dtype | None = None  # None: as stored
    workdir: str = "runs/ability"

    def __post_init__(self) -> None:
        if not (self.ability.sets or self.ability.text.paths):
            raise ValueError("nothing is asked: give ability.sets, ability.text.paths or both")


def measure(
    model: Model, cfg: AbilityConfig, edit: Edit | None = None, progress: Progress = quiet
) -> dict[str, Any]:
    """{"exams": what `ability` gives, "text": what `perplexity` gives}: what is asked for."""
    out: dict[str, Any] = {}
    if cfg.sets:
        out["exams"] = ability(model, exams(cfg), edit, size=cfg.size, progress=progress)
    if cfg.text.paths:
        out["text"] = perplexity(
            model, cfg.text, edit, length=cfg.length, limit=cfg.windows, size=cfg.size,
            progress=progress,
        )  # fmt: skip
    return out


def exams(cfg: AbilityConfig) -> dict[str, Exam]:
    """The sets of a config, by form, or as they were written where two have the same."""
    out: dict[str, Exam] = {}
    shown = {dataset(spec): questions(spec) for spec in cfg.examples} if cfg.shots else {}
    for spec in cfg.sets:
        found = questions(spec)
        few = shown.get(dataset(spec), found) if cfg.shots else ()
        known = spread([q for q in found if q.answer is not None], cfg.limit)
        some = [*known, *(q for q in found if q.answer is None)]
        form, _ = split_name(spec)
        out[spec if form in out else form] = Exam(some, form, cfg.shots, few)
    return out


def split_name(spec: str) -> tuple[str, str]:
    """Form and place of a set."""
    form, colon, path = spec.partition(":")
    if not colon or not path:
        raise ValueError(f"set {spec!r}: write FORM:PATH, FORM one of {', '.join(FORMS)}")
    if form not in FORMS or form == "plain":
        raise ValueError(f"set {spec!r}: {suggest(form, [f for f in FORMS if f != 'plain'])}")
    return form, path


def dataset(spec: str) -> str:
    return split_name(spec)[0].partition("/")[0]


def questions(spec: str) -> tuple[Question, ...]:
    path, at, split = split_name(spec)[1].rpartition("@")
    if not at or Path(f"{path}@{split}").expanduser().exists():
        path, split = split_name(spec)[1], ""
    return read(dataset(spec), path, split or None).items


def spread(items: Sequence[Question], limit: int) -> Sequence[Question]:
    """As many of them at equal distances: files are often sorted by subject."""
    if not limit or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def ability(
    model: Model,
    exams: Mapping[str, Exam],
    edit: Edit | None = None,
    *,
    size: int = ROWS,
    progress: Progress = quiet,
) -> dict[str, dict[str, Any]]:
    """For each exam what the model can do, before the edit and after it, as JSON; see `summarise`.

    The edit must be of this model.
    """
    if edit is not None:
        edit.check(model)
    each = 1 if edit is None else 2
    total = each * sum(len(exam.questions) for exam in exams.values())
    done, out = 0, {}
    for name, exam in exams.items():
        sheets = []
        for one in (None, edit)[:each]:
            share = lambda n, of, at=done: progress(at + n, total)
            sheets.append(choose(model, exam, one, size=size, progress=share))
            done += len(exam.questions)
            progress(done, total)
        out[name] = {"form": exam.form, "shots": exam.shots} | summarise(*sheets)
    return out


def summarise(before: Sheet, after: Sheet | None = None) -> dict[str, Any]:
    """Accuracies with 95% intervals, by measure; `chance`: what guessing gives.

    With two sheets, of the questions that both have: also the paired difference, the share of
    questions of which another choice is preferred now, and the counts of right answers that were
    lost and gained (by acc).
    """
    pairs = [(a, a) for a in before.answered]
    if after is not None:
        there = {id(a.question): a for a in after.answered}
        olds = [a for a in before.answered if id(a.question) in there]
        pairs = [(a, there[id(a.question)]) for a in olds]
    last = after or before
    out: dict[str, Any] = {
        "questions": len(pairs),
        "unknown": before.unknown,
        "skipped": len(last.skipped),
        "reasons": [f"{s.row}: {s.reason}" for s in last.skipped[:REASONS]],
        "cut": last.cut,
    }
    if not pairs:
        return out
    out["chance"] = float(np.mean([1 / len(old.choices) for old, _ in pairs]))
    out["before"] = {m: mean([old.is_right(m) for old, _ in pairs]) for m in MEASURES}
    if after is not None:
        moves = {m: [(old.is_right(m), new.is_right(m)) for old, new in pairs] for m in MEASURES}
        out["after"] = {m: mean([new for _, new in moves[m]]) for m in MEASURES}
        out["change"] = {m: mean([int(new) - int(old) for old, new in moves[m]]) for m in MEASURES}
        out["changed"] = mean([old.pick() != new.pick() for old, new in pairs])
        out["lost"] = sum(old and not new for old, new in moves["acc"])
        out["gained"] = sum(new and not old for old, new in moves["acc"])
    subjects: dict[str, list[tuple[Answered, Answered]]] = {}
    for old, new in pairs:
        subjects.setdefault(old.question.subject, []).append((old, new))
    if 1 < len(subjects) <= len(pairs) // 2:  # otherwise they are no groups
        share = lambda some: float(np.mean([a.is_right() for a in some]))
        out["subjects"] = {
            name: {"n": len(some), "before": share([old for old, _ in some])}
            | ({"after": share([new for _, new in some])} if after is not None else {})
            for name, some in sorted(subjects.items())
        }
    return out


def mean(values: Sequence[float]) -> dict[str, float]:
    return bootstrap(np.asarray(values, np.float64))._asdict()


def table(found: Mapping[str, Any]) -> str:
    """For a terminal: what was asked, accuracy or perplexity before and after, how many."""
    rows = [("", "before", "after", "95% of the change", "of")]
    for name, one in found.get("exams", {}).items():
        if "before" not in one:
            rows.append((name, "", "", "no question with a known answer", "0"))
        for m in ("acc", "acc_norm"):
            if "before" in one:
                rows.append((f"{name} {m}", *cells(one, m, 100, " %"), f"{one['questions']:,}"))
    if text := found.get("text"):
        rows.append(("nats per token", *cells(text, "", 1, ""), f"{text['tokens']:,} tokens"))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{c:{'<' if i == 0 else '>'}{w}}" for i, (c, w) in
                  enumerate(zip(row, wide, strict=True))) for row in rows
    )  # fmt: skip


def cells(one: Mapping[str, Any], measure: str, scale: float, unit: str) -> tuple[str, str, str]:
    """Before, after, and the interval of the change."""
    pick = lambda when: one[when][measure] if measure else one[when]["nll"]
    show = lambda x: f"{scale * x:.{1 if unit else 3}f}{unit}"
    if "after" not in one:
        return show(pick("before")["mean"]), "", ""
    change = pick("change")
    return (
        show(pick("before")["mean"]), show(pick("after")["mean"]),
        f"{show(change['low'])} to {show(change['high'])}",
    )  # fmt: skip
