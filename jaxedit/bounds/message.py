"""An edit as bytes: which matrices change, and their changes as factors of few levels.

A file says how many matrices change; of each the matrix, the layer, and the rank; then of all left
factors and of all right ones the float16 levels, how often each occurs, and the symbols. It decodes
to shared deltas, and what is measured is what it decodes to. No file is the beginning of another.

Columns of a left factor and rows of a right one are of one size, so that few levels serve both.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxedit import delta
from jaxedit.base import Deltas, LowRank
from jaxedit.bounds import code
from jaxedit.bounds.quantize import kmeans, used
from jaxedit.models.config import ModelConfig
from jaxedit.models.sites import matrices

MATRICES, LEVELS = 1 << 10, 1 << 8  # at most, in a file


class Change(NamedTuple):
    """Of one matrix of one layer."""

    path: str
    layer: int | None  # None: outside the blocks
    a_IR: np.ndarray
    b_RO: np.ndarray


@dataclasses.dataclass(frozen=True)
class Message:
    """Rounded changes, all left factors by one list of levels and all right ones by another."""

    changes: tuple[Change, ...]
    symbols: tuple[np.ndarray, np.ndarray]
    levels: tuple[np.ndarray, np.ndarray]

    @property
    def bits(self) -> float:
        """What the numbers take by information alone: a file is a few bytes longer."""
        return sum(
            code.ideal_bits(s, len(v)) for s, v in zip(self.symbols, self.levels, strict=True)
        )


def changes(deltas: Deltas, rank: int) -> list[Change]:
    """The changes of each matrix and layer, of at most that rank; without those that do nothing."""
    found = []
    for path, d in delta.truncate(deltas, rank).items():
        a, b = np.asarray(d.a, np.float32), np.asarray(d.b, np.float32)
        if "/" not in path:
            found.append(Change(path, None, a, b))
            continue
        numbers = range(len(a)) if d.layers is None else np.asarray(d.layers).tolist()
        found += [Change(path, int(n), a[i], b[i]) for i, n in enumerate(numbers) if n >= 0]
    return [kept for c in found if (kept := without_nothing(c)) is not None]


def without_nothing(change: Change) -> Change | None:
    size_R = np.linalg.norm(change.a_IR, axis=0) * np.linalg.norm(change.b_RO, axis=1)
    kept = size_R > 1e-6 * max(size_R.max(initial=0), 1e-30)
    if not size_R.any():
        return None
    return change._replace(a_IR=change.a_IR[:, kept], b_RO=change.b_RO[kept])


def rounded(some: list[Change], levels: int) -> Message:
    """The same changes by at most so many levels of each side."""
    sides = []
    for field in ("a_IR", "b_RO"):
        w = np.concatenate([getattr(c, field).ravel() for c in some] or [np.zeros(0)])
        symbols, values = kmeans(w.astype(np.float64), levels) if len(w) else (w.astype(int), w)
        sides.append(used(symbols, values) if len(w) else (symbols, values.astype(np.float16)))
    (sa, va), (sb, vb) = sides
    return Message(tuple(put_back(some, va[sa], vb[sb])), (sa, sb), (va, vb))


def put_back(some: list[Change], a: np.ndarray, b: np.ndarray) -> list[Change]:
    out, at_a, at_b = [], 0, 0
    for c in some:
        a_IR = a[at_a : at_a + c.a_IR.size].reshape(c.a_IR.shape).astype(np.float32)
        b_RO = b[at_b : at_b + c.b_RO.size].reshape(c.b_RO.shape).astype(np.float32)
        out.append(c._replace(a_IR=a_IR, b_RO=b_RO))
        at_a, at_b = at_a + c.a_IR.size, at_b + c.b_RO.size
    return out


def encode(message: Message, cfg: ModelConfig) -> bytes:
    out, sizes = code.Encoder(), matrices(cfg)
    if len(message.changes) >= MATRICES or max(map(len, message.levels)) > LEVELS:
        raise ValueError(
            f"{len(message.changes)} changed matrices, {max(map(len, message.levels))} levels: "
            f"below {MATRICES}, at most {LEVELS}"
        )
    out.put(len(message.changes), 1, MATRICES)
    for c in message.changes:
        out.put(list(sizes).index(c.path), 1, len(sizes))
        if c.layer is not None:
            out.put(c.layer, 1, cfg.layers)
        out.put(c.a_IR.shape[1] - 1, 1, min(sizes[c.path]))
    for symbols, levels in zip(message.symbols, message.levels, strict=True):
        if not len(symbols):
            continue
        counts = np.bincount(symbols, minlength=len(levels)).tolist()
        out.put(len(levels) - 1, 1, LEVELS)
        code.put_levels(out, levels)
        code.put_counts(out, counts)
        code.put_symbols(out, symbols, counts)
    return out.finish()


def decode(data: bytes, cfg: ModelConfig) -> dict[str, LowRank]:
    """The deltas that a file says, of matrices of this model."""
    file, sizes = code.Decoder(data), matrices(cfg)
    some = []
    for _ in range(file.get(MATRICES)):
        path = list(sizes)[file.get(len(sizes))]
        layer = file.get(cfg.layers) if "/" in path else None
        rank, (I, O) = file.get(min(sizes[path])) + 1, sizes[path]
        some.append(Change(path, layer, np.zeros((I, rank)), np.zeros((rank, O))))
    sides, symbols, levels = [], [], []
    for field in ("a_IR", "b_RO"):
        n = sum(getattr(c, field).size for c in some)
        found, values = np.zeros(0, int), np.zeros(0, np.float16)
        if n:
            count = file.get(LEVELS) + 1
            values = code.get_levels(file, count)
            found = code.get_symbols(file, code.get_counts(file, n, count))
        sides.append(values[found])
        symbols.append(found)
        levels.append(values)
    (a, b), (sa, sb), (va, vb) = sides, symbols, levels
    message = Message(tuple(put_back(some, a, b)), (sa, sb), (va, vb))
    if encode(message, cfg) != data:
        raise ValueError("the file is damaged: what it decodes to has other bytes")
    return deltas_of(message.changes)


def deltas_of(some: tuple[Change, ...] | list[Change]) -> dict[str, LowRank]:
    """Changes as shared deltas; of one matrix the ranks are filled up to the largest."""
    out = {}
    for path in dict.fromkeys(c.path for c in some):
        mine = [c for c in some if c.path == path]
        wide = max(c.a_IR.shape[1] for c in mine)
        pad = [wide - c.a_IR.shape[1] for c in mine]
        a = np.stack([np.pad(c.a_IR, ((0, 0), (0, p))) for c, p in zip(mine, pad, strict=True)])
        b = np.stack([np.pad(c.b_RO, ((0, p), (0, 0))) for c, p in zip(mine, pad, strict=True)])
        if mine[0].layer is None:
            out[path] = LowRank(jnp.asarray(a[0]), jnp.asarray(b[0]))
        else:
            layers = jnp.asarray([c.layer for c in mine], jnp.int32)
            out[path] = LowRank(jnp.asarray(a), jnp.asarray(b), layers)
    return out
