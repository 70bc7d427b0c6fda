"""A run of edits as a config: what, with which method, on which model; with a summary."""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit import settings
from jaxedit.data.asked import requests
from jaxedit.data.cases import EditRequest, Skipped
from jaxedit.data.requests import mark
from jaxedit.edit.ledger import Ledger
from jaxedit.edit.methods import EDITORS, configure, name_of, override
from jaxedit.edit.presets import MODELS
from jaxedit.edit.record import Edit
from jaxedit.edit.results import unkept
from jaxedit.edit.room import room
from jaxedit.edit.runner import WORLD_TEXT, stream
from jaxedit.edit.stats import Stats, StatsConfig, collect, load
from jaxedit.evaluate.ask import Asker, Pair
from jaxedit.evaluate.observe import NOWHERE
from jaxedit.evaluate.protocol import joined
from jaxedit.files import whole
from jaxedit.hf.load import load as load_model
from jaxedit.models.config import Model
from jaxedit.progress import Progress, is_first, quiet
from jaxedit.sharding import ONE_DEVICE, MeshConfig

RESULTS, EDITS, LEDGER = "results.jsonl", "edits", "ledger"
EASY = "-easyedit"
Asked = tuple[list[EditRequest], list[Skipped]]


@dataclasses.dataclass(frozen=True)
class EditTask:
    """What `python -m jaxedit.edit` takes."""

    model: str  # a folder, a hub name, a checkpoint, or one that ships
    requests: str  # world:SIZE:SEED:COUNT, NAME:PATH of a dataset, or a file (data/asked.py)
    editor: Any  # a method's config: RomeConfig, MemitConfig …
    limit: int = 0  # requests; 0: all
    independent: bool = True  # an edit for each request; False: a sequence, in a ledger
    batch: int = 0  # requests of an edit in a sequence; 0: as many as the method takes
    stats: StatsConfig = dataclasses.field(default_factory=StatsConfig)
    moments: str = ""  # a folder with second moments, or a published .npz: instead of `stats`
    mesh: MeshConfig = ONE_DEVICE
    dtype: settings.Dtype | None = None  # None: as stored
    size: int = 0  # requests in one program; 0: as memory allows
    seed: int = 0
    workdir: str = "runs/edit"

    def __post_init__(self) -> None:
        name_of(self.editor)


def for_model(method: str, preset: str) -> EditTask:
    """A method with the published settings for a model; "NAME-easyedit" for EasyEdit's."""
    name = preset.removesuffix(EASY)
    cfg = configure(
        method, None, preset=name, protocol="easyedit" if preset.endswith(EASY) else "paper"
    )
    ours = name in ("world", "world-llama")
    return EditTask(
        MODELS[name].hub,
        "world:small:0:200" if ours else "requests.jsonl",
        cfg,
        stats=WORLD_TEXT if ours else StatsConfig(),
        dtype="float32" if ours else None,
        workdir=f"runs/{method}-{preset}",
    )


@dataclasses.dataclass(frozen=True)
class Line:
    """What came of one request."""

    place: int
    request: EditRequest
    edit: Edit
    said: bool  # does the edited model say the target

    @property
    def failed(self) -> bool:
        return "failed" in self.edit.provenance

    def to_json(self) -> dict[str, Any]:
        about = self.edit.provenance
        return {
            "place": self.place, "request": dataclasses.asdict(self.request), "said": self.said,
            "result": about.get("result", {}), "failed": about.get("failed"),
        }  # fmt: skip


def read(cfg: EditTask, progress: Progress = quiet) -> Model:
    return load_model(cfg.model, cfg.mesh.make(), cfg.dtype, progress=progress)


def moments(cfg: EditTask, model: Model, progress: Progress = quiet) -> Stats | None:
    """The second moments that the method needs."""
    wanted = EDITORS[name_of(cfg.editor)].make(cfg.editor).stats
    if not wanted:
        return None
    if cfg.moments:
        return load(cfg.moments, wanted)
    return collect(model, cfg.stats, wanted, progress=progress)


def begin(cfg: EditTask) -> Asked:
    """What is asked; refuses a work directory that another run has filled."""
    found, folder = requests(cfg.requests, cfg.limit), Path(cfg.workdir)
    if cfg.independent:
        finished(folder / RESULTS, digest(cfg))
    elif (folder / LEDGER).exists():
        raise ValueError(f"{folder / LEDGER} exists: a sequence cannot be resumed; move it away")
    return found


def go(
    cfg: EditTask,
    model: Model,
    stats: Stats | None,
    progress: Progress = quiet,
    found: Asked | None = None,
) -> tuple[dict[str, Any], list[Skipped]]:
    """Makes the edits; returns what came of them, and the requests that could not be read.

    Independent edits go on where a stopped run was. found: what `begin` has read, if it was called.
    """
    override(cfg.editor, {}, model.cfg)  # layers that the model has not are told before all else
    asked, skipped = found or begin(cfg)
    folder = Path(cfg.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    how: dict[str, Any] = {"stats": stats, "seed": cfg.seed, "size": cfg.size, "skip": True}
    if cfg.independent:
        lines = each(cfg, model, asked, folder, how, progress)
    else:
        lines = sequence(cfg, model, asked, folder, how, progress)
    return summary(cfg, lines, time.monotonic() - start), skipped


def each(
    cfg: EditTask,
    model: Model,
    asked: Sequence[EditRequest],
    folder: Path,
    how: dict[str, Any],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Edits/NUMBER.safetensors and a line of results.jsonl for every request."""
    lines = finished(folder / RESULTS, digest(cfg))
    left = [i for i in range(len(asked)) if i not in lines]
    (folder / EDITS).mkdir(exist_ok=True)
    count = lambda done, total: progress(len(asked) - total + done, len(asked))
    waiting: list[tuple[int, Edit]] = []
    with open(folder / RESULTS, "a") as out:
        if not lines and is_first():
            print(json.dumps({"run": digest(cfg)}), file=out, flush=True)

        def flush() -> None:
            places = [left[i] for i, _ in waiting]
            edits = [edit for _, edit in waiting]
            told = said(model, [asked[i] for i in places], edits)
            for place, edit, right in zip(places, edits, told, strict=True):
                line = Line(place, asked[place], edit, bool(right)).to_json()
                if is_first():
                    edit.save(folder / EDITS / f"{place:06}.safetensors")
                    print(json.dumps(line), file=out, flush=True)
                lines[place] = line
            waiting.clear()

        some = [asked[i] for i in left]
        for places, edit in stream(model, some, cfg.editor, True, progress=count, **how):
            waiting.append((places[0], edit))
            if len(waiting) == 32:
                flush()
        if waiting:
            flush()
        os.fsync(out.fileno())
    return [lines[i] for i in sorted(lines)]


def sequence(
    cfg: EditTask,
    model: Model,
    asked: Sequence[EditRequest],
    folder: Path,
    how: dict[str, Any],
    progress: Progress,
) -> list[dict[str, Any]]:
    """A ledger of edits, each on the model as the ones before it left it; asked for at the end."""
    ledger = Ledger.create(folder / LEDGER, model) if is_first() else None
    found: list[tuple[list[int], Edit]] = []
    for places, edit in stream(
        model, asked, cfg.editor, False, batch=cfg.batch, progress=progress, **how
    ):
        if ledger is not None and not edit.failed:
            ledger.add(edit)
        found.append((places, edit))
    if is_first():
        for note in unkept([edit for _, edit in found]):
            print(note, file=sys.stderr)
    total = joined([edit for _, edit in found])
    right = said(model, asked, [total], [0] * len(asked))
    lines = []
    for places, edit in found:
        about = edit.provenance
        used = about.get("requests") or [about.get("request")]  # without those left out
        for place in places:
            line = Line(place, asked[place], edit, bool(right[place])).to_json()
            n = used.index(line["request"]) if line["request"] in used else None
            line["result"] = {
                k: (v[n] if isinstance(v, list) else v)
                for k, v in line["result"].items()
                if n is not None
            }
            lines.append(line)
    if is_first():
        whole(folder / RESULTS, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def said(
    model: Model,
    asked: Sequence[EditRequest],
    edits: Sequence[Edit],
    edit_of: Sequence[int] | None = None,
) -> np.ndarray:
    """Does each edited model say its request's target: that of edits[edit_of[i]], or edits[i]."""
    texts = [mark(r.text, r.target, NOWHERE) for r in asked]
    which = range(len(asked)) if edit_of is None else edit_of
    pairs = Asker(model, room(model)).forced(texts, which, edits)
    return np.array([isinstance(p, Pair) and p.after.said == p.after.target for p in pairs], bool)


def digest(cfg: EditTask) -> str:
    """A name for what decides the results."""
    what = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in ("workdir", "size")}
    what["method"] = name_of(cfg.editor)
    return hashlib.sha256(settings.to_json(what).encode()).hexdigest()[:16]


def finished(file: Path, name: str) -> dict[int, dict[str, Any]]:
    """The lines of a run that was stopped, by place; an unfinished last one is left out."""
    if not file.exists():
        return {}
    lines = list(whole_lines(file))
    if lines and lines[0].get("run") != name:
        raise ValueError(f"{file} is of a run with other settings: choose another workdir")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {line["place"]: line for line in lines[1:]}


def whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def summary(cfg: EditTask, lines: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Numbers for a table."""
    good = [line for line in lines if not line["failed"]]
    numbers = lambda name: [x["result"][name] for x in good if name in x["result"]] or [0.0]
    return {
        "method": name_of(cfg.editor), "model": cfg.model, "requests": len(lines),
        "failed": len(lines) - len(good), "success": sum(x["said"] for x in lines) / len(lines),
        "seconds": round(seconds, 2), "seconds per edit": round(seconds / len(lines), 4),
        "mean loss": float(np.mean(numbers("loss"))), "mean norm": float(np.mean(numbers("norm"))),
        "worst solve": max(numbers("error")),
    }  # fmt: skip
