"""What an editor found, on the host: whether it is an edit, of which request, without padding."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxedit import delta
from jaxedit.base import Deltas, Dense, LowRank, Write, chain
from jaxedit.data.aligned import Aligned
from jaxedit.edit.record import Edit
from jaxedit.edit.stats import on_host

LONG, FEW = 100, 5  # characters of a text, lines of a list
OFF = 0.01  # how far a solve may be off, before what it gives is no edit


def trouble(info: Mapping[str, np.ndarray], n: int) -> str:
    """Why there is no edit for request n; empty where there is one."""
    if info["failed"][n] >= 0:
        return f"not finite at step {info['failed'][n]} of the search"
    if "error" in info and not info["error"][n] <= OFF:
        return f"its solve is off by {info['error'][n]:.2g}; collect more text, or set a ridge"
    if "norm" in info and not np.isfinite(info["norm"][n]):
        return "its change of the weights is not finite"
    return ""


def brief(why: str) -> str:
    """A line of provenance about a request that failed, with no more than the start of its text."""
    text, mark, reason = why.rpartition(f"{why[:1]}: ")
    return f"{text[:LONG]}…{mark}{reason}" if len(text) > LONG else why


def told(failed: Sequence[str]) -> list[str]:
    """The first of them, each in a line, and how many more there are."""
    more = [f"and {len(failed) - FEW:,} more"] if len(failed) > FEW else []
    return [*(f"failed: {brief(why)}" for why in failed[:FEW]), *more]


def unkept(edits: Sequence[Edit]) -> list[str]:
    """Lines about edits that are none, which a ledger is not given."""
    failed = [why for edit in edits for why in edit.failed]
    count = sum(bool(edit.failed) for edit in edits)
    note = f"{count:,} of {len(edits):,} edits failed and {'is' if count == 1 else 'are'} not kept"
    return [note, *told(failed)] if count else []


def whole(x: float) -> float | None:
    """A number as JSON has it, which knows no NaN."""
    return x if math.isfinite(x) else None


def fetch(tree: Any) -> Any:
    """Arrays on the host, whole on every host of a job."""
    return jax.tree.map(on_host, tree)


def written(writes: Mapping[str, Write], row: int) -> dict[str, Write]:
    """One row's writes."""
    one = lambda x: x[:, row : row + 1] if x.shape[1] > 1 else x
    return {
        site: dataclasses.replace(w, mask=one(w.mask), value=one(w.value))
        for site, w in writes.items()
    }


def real(index: Sequence[np.ndarray], batches: Sequence[Aligned]) -> tuple[list[int], np.ndarray]:
    """The places of the requests, in order, and the rows that they have: not those of padding."""
    good = np.concatenate([b.valid_N for b in batches])
    places = np.concatenate(index)
    order = np.argsort(places)
    return places[order].tolist(), np.flatnonzero(good)[order]


def add(total: Mapping[str, Dense], deltas: Deltas) -> dict[str, Dense]:
    """The sum of all edits so far, in float32."""
    out = dict(total)
    for path, v in deltas.items():
        for d in chain(v):
            have = out.get(path)
            new = delta.product(d)
            out[path] = Dense(new if have is None else have.w + new, d.layers)
    return out


def trim(d: Any) -> Any:
    """Without the ranks that are zero: of requests that only filled the batch, or failed."""
    if isinstance(d, tuple):
        return tuple(map(trim, d))
    if not isinstance(d, LowRank):
        return d
    lead = tuple(range(d.a.ndim - 1))
    used = np.abs(np.asarray(d.a)).max(lead) > 0
    return LowRank(d.a[..., used], d.b[..., used, :], d.layers)
