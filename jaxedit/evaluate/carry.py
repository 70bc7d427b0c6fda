"""Many edits in one forward: every row of a batch carries the change of one of them.

E edits side by side, B rows. The edits lie on the device once; a row takes its own by number.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit import delta
from jaxedit.base import Array, LowRank, Write, chain
from jaxedit.edit.record import Edit


@struct.dataclass
class Carried:
    """E edits as one delta and write with an axis of edits; or a single one, shared by all rows."""

    deltas: dict[str, Any]
    writes: dict[str, Any]
    single: bool = struct.field(pytree_node=False, default=False)

    def rows(self, edit_B: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """Deltas and writes of a batch whose rows belong to these edits."""
        if self.single:
            return self.deltas, self.writes
        pick = lambda lead: lambda x: jnp.take(x, edit_B, axis=lead)
        deltas = {k: jax.tree.map(pick(int("/" in k)), d) for k, d in self.deltas.items()}
        writes = {k: jax.tree.map(pick(int(k != "embed")), w) for k, w in self.writes.items()}
        return deltas, writes


def carry(edits: Sequence[Edit], count: int = 0) -> Carried:
    """The edits side by side, filled up to `count` with empty ones, so that few shapes occur."""
    if len(edits) == 1:
        alone = {path: tuple(map(in_steps, chain(v))) for path, v in edits[0].deltas.items()}
        return Carried(alone, dict(edits[0].writes), single=True)
    if not all(map(stacks, edits)):
        raise ValueError("writes that depend on the column cannot stand side by side")
    empty: list[dict[str, Any]] = [{} for _ in range(count - len(edits))]
    deltas = delta.stack([*(e.deltas for e in edits), *empty])
    deltas = {path: in_steps(d) for path, d in deltas.items()}
    sites = dict.fromkeys(site for e in edits for site in e.writes)
    writes = {site: beside([*(e.writes.get(site) for e in edits), *empty]) for site in sites}
    return Carried(deltas, writes)


def distinct(edits: Sequence[Edit]) -> tuple[list[Edit], list[int]]:
    """The edits without their prefixes, each once, and which of them each edit is: memories of one
    router share what they carry.
    """
    number: dict[Any, int] = {}
    found: list[Edit] = []
    which: list[int] = []
    for edit in edits:
        leaves, shape = jax.tree.flatten((dict(edit.deltas), dict(edit.writes)))
        which.append(number.setdefault((shape, *map(id, leaves)), len(found)))
        if which[-1] == len(found):
            found.append(edit)
    return found, which


def stacks(edit: Edit) -> bool:
    """Can it stand beside others: its writes are plain ones that hold in every column."""
    found = [w for v in edit.writes.values() for w in chain(v)]
    single = all(len(chain(v)) == 1 for v in edit.writes.values())
    plain = all(type(w) is Write and w.mask.shape[1:] == (1, 1) for w in found)
    return single and plain and "embed" not in edit.writes


def in_steps(d: Any) -> Any:
    """A low-rank delta with its rank filled up to a power of two."""
    if not isinstance(d, LowRank):
        return d
    more = (1 << (d.a.shape[-1] - 1).bit_length()) - d.a.shape[-1] if d.a.shape[-1] else 1
    if not more:
        return d
    wide = lambda x, axis: jnp.pad(
        x, [(0, more if i == x.ndim + axis else 0) for i in range(x.ndim)]
    )
    return LowRank(wide(d.a, -1), wide(d.b, -2), d.layers)


def beside(writes: Sequence[Any]) -> Write:
    """One edit's write for each row: mask [n, E, 1], layers [n, E]; of the others nothing."""
    have = {i: chain(w)[0] for i, w in enumerate(writes) if w}
    first = next(iter(have.values()))
    if any(w.add != first.add for w in have.values()):
        raise ValueError("writes that set and writes that add cannot stand side by side")
    n = max(w.value.shape[0] for w in have.values())
    value = np.zeros((n, len(writes), 1, first.value.shape[-1]), np.float32)
    mask = np.zeros((n, len(writes), 1), bool)
    layers = np.full((n, len(writes)), -1, np.int32)
    for i, w in have.items():
        m = w.value.shape[0]
        value[:m, i], mask[:m, i] = np.asarray(w.value)[:, 0], np.asarray(w.mask)[:, 0]
        layers[:m, i] = np.arange(m) if w.layers is None else np.asarray(w.layers).reshape(m)
    return Write(jnp.asarray(mask), jnp.asarray(value), jnp.asarray(layers), add=first.add)


def groups(edits: Sequence[Edit], room: int, rows: int) -> list[tuple[list[int], int]]:
    """Which edits go side by side, and how many rows a batch of them may have.

    An edit so large that a batch cannot carry several (a whole matrix of a large model) stands
    alone: then it is shared by all rows and costs nothing by the row. So does one whose writes
    cannot be stacked.
    """
    out: list[tuple[list[int], int]] = []
    some: list[int] = []
    size = max((nbytes(e) for e in edits), default=0)
    together = room // size if size else 2 * (rows + len(edits))
    fits = together >= 64
    power = lambda n: 1 << max(n, 1).bit_length() - 1
    width = min(rows, power(together // 2)) if fits else rows
    most = power(together - width)  # they are filled up to a power of two
    for i, edit in enumerate(edits):
        if fits and stacks(edit) and all(alike(edit, edits[j]) for j in some):
            some.append(i)
        else:
            out.append(([i], rows))
        if len(some) >= most:
            out.append((some, width))
            some = []
    return [*out, (some, width)] if some else out


def alike(x: Edit, y: Edit) -> bool:
    """Do they write in the same way at the sites that both write to."""
    how = lambda e: {site: chain(w)[0].add for site, w in e.writes.items()}
    ours, theirs = how(x), how(y)
    return all(ours[site] == theirs[site] for site in ours.keys() & theirs.keys())


def nbytes(edit: Edit) -> int:
    leaves = jax.tree.leaves((dict(edit.deltas), dict(edit.writes)))
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in leaves)


def with_prefix(
    prefix: tuple[int, ...], tokens: tuple[int, ...], bos: int | None
) -> tuple[int, ...]:
    """A row's tokens behind the edit's own, after the token that begins every text."""
    first = 1 if tokens and bos is not None and tokens[0] == bos else 0
    return (*tokens[:first], *prefix, *tokens[first:])
