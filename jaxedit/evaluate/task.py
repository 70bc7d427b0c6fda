"""An evaluation as a config: which edits, on which cases, in which order; its records and summary.

The work directory gets config.json, cases.jsonl (records), summary.json, summary.csv,
analysis.json, timing.json. The same command goes on where a stopped run was, and ends with the same
bytes: parts are computed whole, and what is recorded is not computed again. A sequence makes its
edits again to go on.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxedit import settings
from jaxedit.checksum import checksum
from jaxedit.data.asked import edit_cases
from jaxedit.data.cases import EditCase, Skipped
from jaxedit.edit.methods import EDITORS, configure, name_of, override
from jaxedit.edit.presets import MODELS
from jaxedit.edit.record import Edit
from jaxedit.edit.room import room
from jaxedit.edit.runner import WORLD_TEXT, prepare, resolve
from jaxedit.edit.stats import Stats, StatsConfig
from jaxedit.edit.task import EASY
from jaxedit.evaluate import findings, outcome, protocol, records
from jaxedit.evaluate.ability import AbilityConfig, measure
from jaxedit.evaluate.ask import Asker
from jaxedit.evaluate.observe import AskConfig
from jaxedit.evaluate.protocol import How, Key, Part, Plan
from jaxedit.evaluate.records import Records
from jaxedit.evaluate.references import of_sources
from jaxedit.files import whole
from jaxedit.models.config import Model
from jaxedit.progress import Clock, Progress, is_first, quiet
from jaxedit.sharding import ONE_DEVICE, MeshConfig

VERSION = 2  # of what is asked and recorded: another one is another run


@dataclasses.dataclass(frozen=True)
class EvaluateTask:
    """What `python -m jaxedit.evaluate` takes."""

    model: str  # a folder, a hub name, a checkpoint, or one that ships
    data: tuple[str, ...]  # world:SIZE:SEED:COUNT, NAME:PATH of a dataset, or a file; mixed if many
    editor: Any  # a method's config: RomeConfig, MemitConfig …
    how: How = "independent"
    limit: int = 0  # cases of each of the data; 0: all
    batch: int = 0  # batch: cases that share an edit; sequence: requests of an edit, 0: as many as
    # the method takes
    at: tuple[int, ...] = (1, 10, 100, 500, 1000)  # sequence: after how many cases to ask
    most: int = 100  # sequence: cases that are asked each time; 0: all
    analyse: int = 16  # edits whose change of the weights is looked at; of a sequence all, if any
    chunk: int = 64  # independent: cases in one part
    ask: AskConfig = dataclasses.field(default_factory=AskConfig)
    # sequence: exams and a text that the model is given each time it is asked, to see it drift
    drift: AbilityConfig = dataclasses.field(default_factory=AbilityConfig)
    stats: StatsConfig = dataclasses.field(default_factory=StatsConfig)
    moments: str = ""  # a folder with second moments, or a published .npz: instead of `stats`
    references: str = ""  # a folder with CounterFact's attribute_snippets.json, for consistency;
    # a world has references of its own
    mesh: MeshConfig = ONE_DEVICE
    dtype: settings.Dtype | None = None  # None: as stored
    size: int = 0  # requests in one program; 0: as memory allows
    seed: int = 0
    workdir: str = "runs/evaluate"

    def __post_init__(self) -> None:
        name = name_of(self.editor)
        most = EDITORS[name].make(self.editor).together
        if self.how == "batch" and self.batch < 1:
            raise ValueError("how=batch: set batch, how many cases share an edit")
        if self.batch and self.how in ("independent", "round"):
            raise ValueError(
                f"batch={self.batch}: with how={self.how} every case has its own edit; leave it "
                "out, or set how=batch"
            )
        if most and self.batch > most:
            raise ValueError(
                f"batch={self.batch}: {name} takes {most} request at a time; set how=independent "
                "or how=sequence, or take memit"
            )
        if self.how != "sequence" and (self.drift.sets or self.drift.text.paths):
            raise ValueError(
                f"drift: with how={self.how} nothing accumulates; leave it out, or set how=sequence"
            )
        if self.chunk < 1 or self.limit < 0 or self.most < 0:
            raise ValueError(
                f"chunk={self.chunk} limit={self.limit} most={self.most}: chunk is at least 1, the "
                "others at least 0"
            )


def for_data(
    data: str | Sequence[str], method: str, model: str = "world", **more: Any
) -> EvaluateTask:
    """A method with the published settings for a model ("NAME-easyedit" for EasyEdit's)."""
    name, easy = model.removesuffix(EASY), model.endswith(EASY)
    ours = name in ("world", "world-llama")
    cfg = configure(method, None, preset=name, protocol="easyedit" if easy else "paper")
    sources = (data,) if isinstance(data, str) else tuple(data)
    return EvaluateTask(
        MODELS[name].hub, sources, cfg, ask=AskConfig("easyedit" if easy else "paper"),
        stats=WORLD_TEXT if ours else StatsConfig(), dtype="float32" if ours else None, **more,
    )  # fmt: skip


def methods_for(model: str) -> tuple[str, ...]:
    """The methods that have settings for a model."""
    found = []
    for method in EDITORS:
        with contextlib.suppress(ValueError):
            configure(method, None, preset=model)
            found.append(method)
    return tuple(found)


def read(cfg: EvaluateTask) -> tuple[list[EditCase], list[Skipped]]:
    """What `gather` finds, without the sources."""
    pairs, skipped = gather(cfg)
    return [case for _, case in pairs], skipped


def gather(cfg: EvaluateTask) -> tuple[list[tuple[str, EditCase]], list[Skipped]]:
    """The cases, each with its source, and the rows that were none. Several sources are mixed, a
    case of each in turn.
    """
    found, skipped = [], []
    for source in cfg.data:
        some, without = edit_cases(source, cfg.limit)
        found.append([(source, case) for case in some])
        skipped += without
    longest = max(map(len, found), default=0)
    mixed = [cases[i] for i in range(longest) for cases in found if i < len(cases)]
    if not mixed:
        raise ValueError(f"data {cfg.data}: no case to evaluate")
    return mixed, skipped


def go(
    cfg: EvaluateTask,
    model: Model,
    stats: Stats | None = None,
    progress: Progress = quiet,
    name: str = "",
    collecting: Progress = quiet,
) -> dict[str, Any]:
    """Runs what is left of an evaluation; returns its summary, as summary.json has it."""
    override(cfg.editor, {}, model.cfg)  # layers that the model has not are told before all else
    pairs, skipped = gather(cfg)
    cases = [case for _, case in pairs]
    folder = Path(cfg.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    kept = Records(folder, digest(cfg, model, cases))
    keys = all_keys(cfg, cases)
    done = kept.done(keys)
    to_analyse = agreed(cfg.analyse > 0 and not findings.is_there(folder, kept.digest))
    if len(done) < len(keys) or to_analyse:
        clock("preparing")
        writer = records.Writer(
            model.tokenizer, cfg.ask.protocol, of_sources(cfg.data, cfg.references),
            [source for source, _ in pairs],
        )  # fmt: skip
        plan = plan_of(cfg, model, cases, stats, lambda key: key in done, clock, collecting)
        count, made, sequence = len(done), dict[int, Edit](), tuple[Edit, ...]()
        for part in parts(cfg, plan):
            if part.joined is not None and (cfg.drift.sets or cfg.drift.text.paths):
                clock("drift")
                now = {"edits": part.keys[0].at, **measure(model, cfg.drift, part.joined)}
                findings.add_drift(folder, kept.digest, now)
            clock("scoring")
            kept.add(writer.part(part))
            own = zip(part.keys, part.edits, strict=True)
            made |= {k.place: edit for k, edit in own if k.place < cfg.analyse}
            sequence = part.made
            count += sum(key not in done for key in part.keys)
            progress(count, len(keys))
        if to_analyse:
            clock("analysis")
            there = [kept.found[k] for k in keys if k in kept.found]
            last = [r for r in there if r.get("at", 0) == keys[-1].at]
            how = (cfg.how, cfg.batch, cfg.analyse)
            found = findings.of_run(plan, last, *how, made=made, sequence=sequence)
            if is_first():
                text = json.dumps({"run": kept.digest, **found}) + "\n"
                whole(folder / findings.FILE, text)
    clock("summary")
    result = outcome.summarise(cfg, kept, keys, skipped, name)
    if is_first():
        clock.stop()
        outcome.write(folder, result, cfg, clock.spent)
    return result


def agreed(answer: bool) -> bool:
    """The first process's answer, on every host of a job."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(answer)))


def plan_of(
    cfg: EvaluateTask,
    model: Model,
    cases: Sequence[EditCase],
    stats: Stats | None,
    done: Callable[[Key], bool],
    clock: Callable[[str], None] = lambda stage: None,
    collecting: Progress = quiet,
) -> Plan:
    if wanted := EDITORS[name_of(cfg.editor)].make(cfg.editor).stats:
        given = stats if stats is not None else (cfg.moments or cfg.stats)
        stats = resolve(model, given, wanted, collecting)
    ready = prepare(
        model, cfg.editor, stats=stats, seed=cfg.seed, size=cfg.size, skip=True,
        protocol=cfg.ask.protocol,
    )  # fmt: skip
    return Plan(ready, Asker(model, room(model)), cases, cfg.ask, cfg.chunk, done, clock)


def parts(cfg: EvaluateTask, plan: Plan) -> Iterator[Part]:
    if cfg.how == "batch":
        return protocol.batch(plan, cfg.batch)
    if cfg.how == "sequence":
        return protocol.sequence(plan, cfg.batch, cfg.at, cfg.most)
    return {"independent": protocol.independent, "round": protocol.round_trip}[cfg.how](plan)


def all_keys(cfg: EvaluateTask, cases: Sequence[EditCase]) -> list[Key]:
    """Every record of the run, in order."""
    if cfg.how != "sequence":
        return [Key(0, i) for i in range(len(cases))]
    step = cfg.batch or EDITORS[name_of(cfg.editor)].make(cfg.editor).together
    stops = protocol.stops(cfg.at, cases, step)
    return [key for n in stops for key in protocol.keys_at(n, cfg.most)]


def digest(cfg: EvaluateTask, model: Model, cases: Sequence[EditCase]) -> str:
    """A name for what decides the numbers."""
    what = dataclasses.asdict(cfg)
    del what["workdir"]
    what |= {"method": name_of(cfg.editor), "model": checksum(model.params), "version": VERSION}
    return records.digest(what | {"cases": [dataclasses.asdict(case) for case in cases]})
