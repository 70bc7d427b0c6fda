"""The algebra of weight changes: one per row of a batch, composed, scaled, approximated, checked.

`Deltas` maps a matrix to its change, or to a tuple of changes that add up. A path with a "/"
("mlp/down") is a matrix of the blocks, whose arrays lead with n layers; "embed" and "head" have no
such axis. Then comes B where every row of a batch has a change of its own. I, O: the matrix [I, O];
R rank; L all layers. `jaxedit.merge` puts them into weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Delta, Deltas, Dense, LowRank, chain

matmul = partial(jnp.matmul, precision="highest")  # these products are small, their errors are not


# One per row of a batch


def row(deltas: Deltas, i: int | Array) -> dict[str, Any]:
    """Row i of per-row deltas, as shared ones; what all rows share stays as it is."""

    def one(path: str, d: Delta) -> Delta:
        rows = count_rows(path, d)
        if rows is None:
            return d
        if not isinstance(i, jax.Array) and not -rows <= i < rows:
            raise ValueError(f"row {i} of delta {path!r}, which has {rows}")
        d = _broadcast(path, d, rows)
        take = lambda x: x[:, i] if "/" in path else x[i]
        return _over(take, d, None if d.layers is None else d.layers[:, i])

    return _each(one, deltas)


def stack(edits: Sequence[Deltas]) -> dict[str, Delta]:
    """N shared deltas as one delta per row, so that one forward runs all edits: [n, N, I, R].

    Ranks and layers are padded to the largest, with zeros and with layer -1. Done on the host: in
    XLA every N would be another program with N operands.
    """
    if not edits:
        raise ValueError("no deltas to stack")
    singles = [single(e) for e in edits]
    return {
        path: _stack(path, [e.get(path) for e in singles])
        for path in dict.fromkeys(p for e in singles for p in e)
    }


def _stack(path: str, ds: list[Delta | None]) -> Delta:
    have = {i: d for i, d in enumerate(ds) if d is not None}
    first = next(iter(have.values()))
    for d in have.values():
        if count_rows(path, d) is not None:
            raise ValueError(f"delta {path!r} has one change per row already; stack shared deltas")
        if size(d) != size(first):
            raise ValueError(f"deltas {path!r} change {size(first)} and {size(d)}: two models")
    kind: Any = Dense if any(isinstance(d, Dense) for d in have.values()) else LowRank
    have = {i: d if isinstance(d, kind) else Dense(product(d), d.layers) for i, d in have.items()}

    def join(lead: int, arrays: dict[int, np.ndarray], fill: int = 0) -> Array:
        shape = np.max([x.shape for x in arrays.values()], 0)
        dtype = reduce(_wider, [x.dtype for x in arrays.values()])
        out = np.full((*shape[:lead], len(ds), *shape[lead:]), fill, dtype)
        for i, x in arrays.items():
            at: list[slice | int] = [slice(n) for n in x.shape]
            at.insert(lead, i)
            out[tuple(at)] = x
        return jnp.asarray(out)

    lead = int("/" in path)
    columns = zip(*map(parts, have.values()), strict=True)
    arrays = [join(lead, dict(zip(have, map(np.asarray, xs), strict=True))) for xs in columns]
    if not lead or all(d.layers is None for d in have.values()):
        return kind(*arrays)
    numbers = {i: np.asarray(_numbers(d)) for i, d in have.items()}
    return kind(*arrays, join(1, numbers, -1))


def _wider(x: Any, y: Any) -> Any:
    """The dtype that holds both: float32 where two floats differ, whatever the promotion rules."""
    return x if x == y else np.promote_types(x, y) if x.kind == y.kind == "i" else jnp.float32


def scatter(deltas: Deltas, num_layers: int) -> dict[str, Delta]:
    """The same deltas with layers=None: arrays lead with L layers, zeros where none is edited."""

    def one(path: str, d: Delta) -> Delta:
        if d.layers is None:
            return d
        rows = count_rows(path, d)
        d = d if rows is None else _broadcast(path, d, rows)
        at: Any = drop_missing(_numbers(d), num_layers)
        at = at if rows is None else (at, jnp.arange(rows))
        empty = lambda x: jnp.zeros((num_layers, *x.shape[1:]), x.dtype)
        return _over(lambda x: empty(x).at[at].set(x, mode="drop"), d, None)

    return {path: one(path, d) for path, d in single(deltas).items()}


# Algebra


def compose(x: Deltas, y: Deltas) -> dict[str, Delta]:
    """Both changes at once: ranks add, layers unite; with a Dense the sum is Dense.

    Layer numbers are joined on the host: call it outside jit.
    """
    x, y = single(x), single(y)
    out = dict(x) | {path: d for path, d in y.items() if path not in x}
    return out | {path: _add(path, x[path], y[path]) for path in x if path in y}


def single(deltas: Deltas) -> dict[str, Delta]:
    """One change per matrix: tuples of them composed."""
    return {path: reduce(partial(_add, path), chain(v)) for path, v in deltas.items()}


def _add(path: str, x: Delta, y: Delta) -> Delta:
    rows = {count_rows(path, x), count_rows(path, y)} - {None}
    if len(rows - {1}) > 1:
        raise ValueError(
            f"deltas {path!r} have {count_rows(path, x)} and {count_rows(path, y)} rows"
        )
    if rows:
        x, y = (_broadcast(path, d, max(r for r in rows if r)) for d in (x, y))
    layers = None
    if "/" in path and (x.layers is not None or y.layers is not None):
        x, y, layers = _align(path, x, y)
    if isinstance(x, LowRank) and isinstance(y, LowRank):
        return LowRank(_concat(x.a, y.a, -1), _concat(x.b, y.b, -2), layers)
    return Dense(product(x) + product(y), layers)


def _concat(x: Array, y: Array, axis: int) -> Array:
    kind = _wider(x.dtype, y.dtype)
    return jnp.concatenate([x.astype(kind), y.astype(kind)], axis)


def _align(path: str, x: Delta, y: Delta) -> tuple[Delta, Delta, Array | None]:
    """Both on the union of their layers, [u] or [u, B], zero where one has none."""
    if any(isinstance(d.layers, jax.core.Tracer) for d in (x, y)):
        raise ValueError(f"the layers of deltas {path!r} are traced: compose them outside jit")
    rows = count_rows(path, x)
    shared = rows is None
    tall = lambda n: np.broadcast_to(n.reshape(len(n), -1), (len(n), rows or 1))
    columns = [tall(np.asarray(_numbers(d))) for d in (x, y)]  # [n, B], B = 1 where shared
    sets = zip(*(c.T.tolist() for c in columns), strict=True)
    unions = [sorted({*p, *q} - {-1}) for p, q in sets]
    union = np.full((max(1, *map(len, unions)), len(unions)), -1, np.int32)
    for j, u in enumerate(unions):
        union[: len(u), j] = u

    def place(d: Delta, have: np.ndarray) -> Delta:
        same = have[:, None] == union  # [n, u, B]
        at, hit = same.argmax(0), same.any(0) & (union >= 0)

        def take(v: Array) -> Array:
            v = v[:, None] if shared else v
            spread = lambda z: jnp.asarray(z).reshape(*z.shape, *[1] * (v.ndim - 2))
            v = jnp.where(spread(hit), jnp.take_along_axis(v, spread(at), 0), 0)
            return v[:, 0] if shared else v

        return _over(take, d, None)

    every = (x.layers is None or y.layers is None) and not (union < 0).any()
    layers = None if every else jnp.asarray(union[:, 0] if shared else union)
    return place(x, columns[0]), place(y, columns[1]), layers


def scale(deltas: Deltas, s: float | Array) -> dict[str, Any]:
    """s times the change."""
    times = lambda x: x * jnp.asarray(s, x.dtype)
    one = lambda _, d: replace(d, b=times(d.b)) if isinstance(d, LowRank) else _over(times, d)
    return _each(one, deltas)


def negate(deltas: Deltas) -> dict[str, Any]:
    return scale(deltas, -1)


def truncate(deltas: Deltas, rank: int) -> dict[str, LowRank]:
    """The best approximation of at most this rank, as LowRank; of a Dense too.

    QR of both factors and the SVD of an [R, R] core; [I, O] is never formed.
    """
    if rank < 1:
        raise ValueError(f"rank {rank}; it must be at least 1")
    return {path: _truncate(d, rank) for path, d in single(deltas).items()}


@partial(jax.jit, static_argnames="rank")
def _truncate(d: Delta, rank: int) -> LowRank:
    kind = parts(d)[0].dtype
    left, core, right = _factor(d)
    u, s, vt = jnp.linalg.svd(core, full_matrices=False)
    root = jnp.sqrt(s[..., :rank])  # to both factors: half the range for low precision
    a, b = u[..., :rank] * root[..., None, :], root[..., None] * vt[..., :rank, :]
    if left is not None and right is not None:
        a, b = matmul(left, a), matmul(b, right)
    return LowRank(a.astype(kind), b.astype(kind), d.layers)


def norm(deltas: Deltas, ord: str = "fro") -> dict[str, Array]:
    """Size of each matrix's change, [n] or [n, B] ([] or [B] for "embed"): "fro" or "spectral".

    From the core of the factors: the sum of squares of traces would lose half of the digits where
    composed edits cancel.
    """
    if ord not in ("fro", "spectral"):
        raise ValueError(f"norm {ord!r}: one of fro, spectral")
    return {path: _norm(d, ord) for path, d in single(deltas).items()}


@partial(jax.jit, static_argnames="ord")
def _norm(d: Delta, ord: str) -> Array:
    core = _factor(d)[1]
    if ord == "fro":
        found = jnp.sqrt(jnp.sum(jnp.square(core), (-1, -2)))
    else:
        found = jnp.linalg.svd(core, compute_uv=False).max(-1, initial=0)
    if d.layers is None:
        return found
    return jnp.where((d.layers if d.layers.ndim == found.ndim else d.layers[:, None]) < 0, 0, found)


def _factor(d: Delta) -> tuple[Array | None, Array, Array | None]:
    """left @ core @ right, with orthonormal left and right (None: the core is the matrix)."""
    if isinstance(d, Dense):
        return None, product(d), None
    left, ra = jnp.linalg.qr(d.a.astype(jnp.float32))
    right, rb = jnp.linalg.qr(d.b.astype(jnp.float32).swapaxes(-1, -2))
    return left, matmul(ra, rb.swapaxes(-1, -2)), right.swapaxes(-1, -2)


def rank(deltas: Deltas) -> dict[str, int]:
    """How many ranks the form of each change has room for."""
    return {p: min(parts(d)[0].shape[-1], *size(d)) for p, d in single(deltas).items()}


# The form of a delta; `jaxedit.fit` says whether it is a model's


def _each(one: Callable[[str, Any], Any], deltas: Deltas) -> dict[str, Any]:
    """`one(path, delta)` of every delta; tuples stay tuples."""
    many = lambda v: type(v) in (tuple, list)
    return {k: tuple(one(k, d) for d in v) if many(v) else one(k, v) for k, v in deltas.items()}


def parts(d: Delta) -> tuple[Array, ...]:
    return (d.a, d.b) if isinstance(d, LowRank) else (d.w,)


def _over(fn: Callable[[Array], Array], d: Delta, *layers: Array | None) -> Delta:
    """fn of every array of a delta; its layers, or the ones given."""
    kind: Any = type(d)
    return kind(*map(fn, parts(d)), layers[0] if layers else d.layers)


def size(d: Delta) -> tuple[int, int]:
    x = parts(d)
    return x[0].shape[-2], x[-1].shape[-1]


def _numbers(d: Delta) -> Array:
    return jnp.arange(len(parts(d)[0]), dtype=jnp.int32) if d.layers is None else d.layers


def count_rows(path: str, d: Delta) -> int | None:
    """B of a delta with one change per row; None where all rows share it."""
    lead = int("/" in path)
    sizes = [x.shape[lead] for x in parts(d) if x.ndim == lead + 3]
    sizes += [d.layers.shape[1]] if d.layers is not None and d.layers.ndim == 2 else []
    return max(sizes) if sizes else None


def _broadcast(path: str, d: Delta, rows: int) -> Delta:
    """A delta with the axis of rows written out, in the arrays and in the layers."""
    lead = int("/" in path)

    def wide(x: Array, ndim: int) -> Array:
        x = x if x.ndim == ndim else jnp.expand_dims(x, lead)
        return jnp.broadcast_to(x, (*x.shape[:lead], rows, *x.shape[lead + 1 :]))

    layers = None if d.layers is None else wide(d.layers, 2)
    return _over(lambda x: wide(x, lead + 3), d, layers)


def drop_missing(layers: Array, num_layers: int) -> Array:
    """Layer numbers with -1 (no layer) moved beyond the end, where a scatter drops it."""
    return jnp.where(layers < 0, num_layers, layers)


def product(d: Delta) -> Array:
    """The change as a matrix, in float32: [..., I, O]."""
    if isinstance(d, Dense):
        return d.w.astype(jnp.float32)
    return matmul(d.a.astype(jnp.float32), d.b.astype(jnp.float32))
