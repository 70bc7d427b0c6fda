"""The ledger of edits: an ordered record of what was done to one base model, which itself never
changes, so that undoing is leaving out.

`edit.log` says how it lies on disk. Of a job of several processes, one keeps the ledger.

I: input of a matrix, O output, R rank, n layers.
"""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from jaxedit import delta
from jaxedit.base import Delta, Deltas, Dense, LowRank, chain
from jaxedit.checksum import checksum
from jaxedit.data.cases import EditRequest
from jaxedit.edit import log
from jaxedit.edit.conflicts import (
    ALIKE,
    Contradiction,
    Directions,
    Layer,
    Overlap,
    claims_of,
    contradictions,
    directions,
    overlaps,
    pieces,
    requests_of,
)
from jaxedit.edit.log import Entry, Log, describe
from jaxedit.edit.record import Edit
from jaxedit.hf import peft
from jaxedit.hf.save import save
from jaxedit.models.config import Model, ModelConfig
from jaxedit.progress import Progress, quiet


class Diff(NamedTuple):
    here: list[str]  # ids of what only this ledger has
    there: list[str]


class Ledger:
    """Edits of one base model in the order they were added. Every call sees what other processes
    appended before it.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(os.path.abspath(folder))
        self.base = log.read_base(self.folder)
        self.cfg = ModelConfig.from_dict(self.base["config"])
        self._log = Log(self.folder)
        self._directions: dict[str, Directions] = {}  # of the edits that were compared before

    @classmethod
    def create(cls, folder: str | os.PathLike, model: Model) -> Self:
        """A new ledger of edits of this model: one pass over its weights."""
        folder = Path(os.path.abspath(folder))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists; Ledger.open it, or choose another name")
        about = {"family": model.cfg.family, "checksum": checksum(model.params)}
        log.create(folder, about | {"config": model.cfg.to_dict()})
        return cls(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Self:
        """The ledger of a folder; reading it needs no right to write there."""
        return cls(folder)

    def add(self, edit: Edit) -> str:
        """Appends an edit and returns its id when it is on disk; refuses one that does not fit or
        was made on another base.
        """
        self._check(edit)
        return self._log.add(edit, describe(edit))

    def edits(self, active: bool | None = True) -> list[Entry]:
        """What the log says of the edits that stand (True), were undone (False), or all (None), in
        order.
        """
        self._log.refresh()
        return [e for e in self._log.entries.values() if active is None or e.active == active]

    def entry(self, id: str | int) -> Entry:
        """What the log says of one edit, "0007" or 7."""
        self._log.refresh()
        return self._log.find(id)

    def load(self, id: str | int) -> Edit:
        """The edit itself; refuses a file that is not the one that was added."""
        return self._log.load(self.entry(id))

    def undo(self, *ids: str | int) -> list[str]:
        """Takes edits out; their files stay, for `redo`. Returns the standing edits that were made
        on top of them.
        """
        gone = self._log.switch("undo", ids)
        return [e.id for e in self.edits() if any(e.is_after(g) for g in gone)]

    def undo_all(self) -> None:
        self._log.switch("undo", None)

    def redo(self, *ids: str | int) -> list[str]:
        """Puts edits back in their old places; returns the undone ones that they were made on."""
        back = self._log.switch("redo", ids)
        return [e.id for e in self.edits(active=False) if any(b.is_after(e) for b in back)]

    def compose(self) -> dict[str, Any]:
        """The standing edits as one change: a pure function of them and their order."""
        entries = self.edits()
        if bad := [e for e in entries if e.beyond]:
            raise ValueError(
                f"edit {', '.join(e.id for e in bad)} has {bad[0].beyond[0]}, which cannot be "
                "merged into weights or exported; undo it, or load it and pass it to each forward"
            )
        return join([self._log.load(e).deltas for e in entries])

    def merge(self, model: Model, *, force: bool = False) -> Model:
        """The base with the standing edits in its weights; refuses another model (not with force)
        after one pass over its weights.
        """
        return Edit(deltas=self.compose(), provenance={"base": self.base}).merge(model, force=force)

    def export_peft(self, folder: str | os.PathLike, base_name: str | None = None) -> None:
        """The standing edits as one PEFT adapter, see `jaxedit.hf.peft.export`."""
        peft.export(self.compose(), self.cfg, folder, base_name)

    def export_hf(
        self,
        model: Model,
        folder: str | os.PathLike,
        *,
        force: bool = False,
        progress: Progress = quiet,
    ) -> None:
        """The merged model as a Hugging Face folder, see `jaxedit.save`."""
        save(self.merge(model, force=force), folder, progress=progress)

    def conflicts(
        self, asked: EditRequest | Edit | None = None, *, threshold: float = ALIKE
    ) -> list[Contradiction | Overlap]:
        """Where the standing edits contradict or overlap a request or an edit; None: one another.

        A request has no directions yet, so only what it asks for is compared. Directions stay in
        memory for the next question.
        """
        entries = self.edits()
        have = [claim for e in entries for claim in e.claims]
        if asked is None:
            rows = {e.id: self._find_directions(e) for e in entries}
            return [*contradictions(have), *overlaps(rows, threshold=threshold)]
        if isinstance(asked, EditRequest):
            about: Mapping[str, Any] = {"request": dataclasses.asdict(asked)}
            return list(contradictions(have, claims_of(None, requests_of(about))))
        self._check(asked)
        new = directions(asked.deltas)
        near = [e for e in entries if any(c[:2] in new for c in e.changes)]
        rows = {e.id: self._find_directions(e) for e in near}
        asks = claims_of(None, requests_of(asked.provenance))
        return [*contradictions(have, asks), *overlaps(rows, new, threshold)]

    def diff(self, other: "Ledger | Iterable[str]") -> Diff:
        """What stands here and not there: in another ledger, where content tells edits apart, or
        in a list of ids.
        """
        if isinstance(other, Ledger):
            x, y = ([(e.sha256, e.id) for e in ledger.edits()] for ledger in (self, other))
        else:
            x, y = [(e.id, e.id) for e in self.edits()], [(id, id) for id in other]
        return Diff(subtract(x, y), subtract(y, x))

    def find_damage(self) -> dict[str, str]:
        """What is wrong with the file of an edit, undone ones too, by id; {} where all is well."""
        out = {}
        for e in self.edits(None):
            try:
                self._log.load(e)
            except (ValueError, OSError) as error:
                out[e.id] = str(error)
        return out

    def check_base(self, made: Mapping[str, Any]) -> None:
        """Raises where edits of another base than this are made: of that in an edit's provenance,
        {"checksum", "family"}.
        """
        if made.get("checksum") and made["checksum"] != self.base["checksum"]:
            raise ValueError(
                f"this ledger is of a {self.base['family']} with checksum "
                f"{self.base['checksum'][:12]}, the edit of a {made.get('family', 'model')} with "
                f"{made['checksum'][:12]}; a ledger holds edits of one base"
            )

    def _check(self, edit: Edit) -> None:
        """Raises where an edit does not fit the base, by its shapes and by the checksum that it
        carries: the weights are not looked at.
        """
        self.check_base(edit.provenance.get("base") or {})
        edit.check(Model({}, self.cfg), force=True)
        for path, v in edit.deltas.items():
            if any(delta.count_rows(path, d) is not None for d in chain(v)):
                raise ValueError(
                    f"delta {path!r} has one change per row and a ledger takes one; choose it "
                    "with delta.row(deltas, i)"
                )

    def _find_directions(self, e: Entry) -> Directions:
        if e.id not in self._directions:
            self._directions[e.id] = directions(self._log.load(e).deltas)
        return self._directions[e.id]


def join(many: Iterable[Deltas]) -> dict[str, Any]:
    """All of these shared deltas at once, on the host, at a cost that grows with their number alone
    (`delta.compose` in turn copies what it has at every step).

    Ranks are padded with zeros to a power of two, or to a multiple of 256: a ledger that grows is
    not a new program at every edit. A matrix with factors and full changes gets both, as a tuple.
    """
    low: dict[str, dict[Layer, list]] = defaultdict(lambda: defaultdict(list))
    full: dict[str, dict[Layer, tuple[np.ndarray]]] = defaultdict(dict)
    for deltas in many:
        for path, v in deltas.items():
            for d in chain(v):
                for (_, layer), arrays in pieces(path, d):
                    if isinstance(d, LowRank):
                        low[path][layer].append(arrays)
                    else:
                        (before,) = full[path].get(layer, (np.float32(0),))
                        full[path][layer] = (before + arrays[0].astype(np.float32),)
    out: dict[str, Any] = {}
    for path in dict.fromkeys([*low, *full]):
        parts: list[Delta] = [join_factors(low[path])] if path in low else []
        parts += [stack_layers(Dense, full[path])] if path in full else []
        out[path] = parts[0] if len(parts) == 1 else tuple(parts)
    return out


def join_factors(parts: Mapping[Layer, Sequence[tuple[np.ndarray, ...]]]) -> Delta:
    """One LowRank of several per layer."""
    ranks = [sum(a.shape[-1] for a, _ in of) for of in parts.values()]
    most = max(*ranks, 1)
    R = min(1 << (most - 1).bit_length(), -(-most // 256) * 256)
    kinds = {x.dtype for of in parts.values() for ab in of for x in ab}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)

    def wide(arrays: Iterable[np.ndarray], axis: int) -> np.ndarray:
        x = np.concatenate([x.astype(kind) for x in arrays], axis)
        return np.pad(x, [(0, R - n if j == axis else 0) for j, n in enumerate(x.shape)])

    pairs = {
        n: (wide((a for a, _ in of), 1), wide((b for _, b in of), 0)) for n, of in parts.items()
    }
    return stack_layers(LowRank, pairs)


def stack_layers(kind: Any, layers: Mapping[Layer, tuple[np.ndarray, ...]]) -> Delta:
    """A delta of its arrays at every layer; without a layer axis outside the blocks."""
    if None in layers:
        return kind(*map(jnp.asarray, layers[None]))
    numbers = sorted(n for n in layers if n is not None)
    arrays = (np.stack(x) for x in zip(*(layers[n] for n in numbers), strict=True))
    return kind(*map(jnp.asarray, arrays), jnp.array(numbers, jnp.int32))


def subtract(x: Sequence[tuple[str, str]], y: Sequence[tuple[str, str]]) -> list[str]:
    """Ids of the (key, id) pairs of x whose key y does not have, or not so many times."""
    left = Counter(key for key, _ in y)
    out = []
    for key, id in x:
        left[key] -= 1
        if left[key] < 0:
            out.append(id)
    return out
