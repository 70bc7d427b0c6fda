"""The algebra of weight changes: merge and undo, one per row of a batch, compose, approximate,
identify.

`Deltas` maps a matrix to its change, or to a tuple of changes that add up. A path with a "/"
("mlp/down") is a matrix of the blocks, whose arrays lead with n layers; "embed" and "head" have no
such axis. Then comes B where every row of a batch has a change of its own. I, O: the matrix [I, O];
R rank; L all layers.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxedit.base import Array, Delta, Deltas, Dense, LowRank, Params
from jaxedit.sharding import constrain, on_mesh_of

matmul = partial(jnp.matmul, precision="highest")  # these products are small, their errors are not


# Merge and undo


class Kept(NamedTuple):
    """Weights as they were: w [n, I, O] of the layers [n], or a whole leaf (layers None)."""

    w: Array
    layers: Array | None


def apply(params: Params, deltas: Deltas) -> Params:
    """New params with shared deltas merged: added in float32, rounded once to the weight's dtype.

    Leaves that no delta touches are the input's own. Keep `original` (or the old params) to undo:
    subtracting an edit from bfloat16 weights does not give them back.
    """
    deltas = single(deltas)
    weights = _touched(params, deltas)
    for path, d in deltas.items():
        if (rows := _rows(path, d)) is not None:
            raise ValueError(
                f"delta {path!r} has one change per row ({rows} rows) and a weight can take one; "
                "choose it with delta.row(deltas, i)"
            )
    with on_mesh_of(params):
        return _put(params, weights, _merge(weights, deltas))


def original(params: Params, deltas: Deltas) -> dict[str, tuple[Kept, ...]]:
    """The exact weights that `apply` would change, and no others; for `restore`."""
    weights = _touched(params, deltas)
    with on_mesh_of(params):
        return {
            path: tuple(Kept(_keep(w, d.layers), d.layers) for d in _chain(deltas[path]))
            for path, w in weights.items()
        }


def restore(params: Params, kept: Mapping[str, tuple[Kept, ...]]) -> Params:
    """Params with the kept weights back in their places, bit for bit; undo merges last to first."""
    weights = _touched(params, kept)
    with on_mesh_of(params):
        return _put(params, weights, _unmerge(weights, dict(kept)))


@jax.jit
def _merge(weights: dict[str, Array], deltas: dict[str, Delta]) -> dict[str, Array]:
    def plus(w_IO: Array, d: Delta) -> Array:
        kind = jnp.promote_types(w_IO.dtype, jnp.float32)
        return (w_IO.astype(kind) + product(d).astype(kind)).astype(w_IO.dtype)

    def one(path: str, w: Array, d: Delta) -> Array:
        if "/" not in path:
            return plus(w, d)

        # layer by layer: the products of all layers at once would be a second copy of the weights
        def step(w_LIO: Array, xs: tuple[Array, Delta]) -> tuple[Array, None]:
            layer, d = xs
            at = jnp.clip(layer, 0, len(w_LIO) - 1)
            old_IO = jax.lax.dynamic_index_in_dim(w_LIO, at, keepdims=False)
            new_IO = jnp.where(at == layer, plus(old_IO, d), old_IO)
            return jax.lax.dynamic_update_index_in_dim(w_LIO, new_IO, at, 0), None

        layers = jnp.arange(len(w)) if d.layers is None else d.layers
        return jax.lax.scan(step, w, (layers, replace(d, layers=None)))[0]

    return {path: one(path, w, deltas[path]) for path, w in weights.items()}


@jax.jit
def _keep(w: Array, layers: Array | None) -> Array:
    return w if layers is None else w.at[layers].get(mode="clip")


@jax.jit
def _unmerge(
    weights: dict[str, Array], kept: dict[str, tuple[Kept, ...]]
) -> dict[str, Array]:
    def back(w: Array, k: Kept) -> Array:
        return k.w if k.layers is None else w.at[_drop(k.layers, len(w))].set(k.w, mode="drop")

    return {path: reduce(back, kept[path], w) for path, w in weights.items()}


def _drop(layers: Array, num_layers: int) -> Array:
    """Layer numbers with -1 (no layer) moved beyond the end, where a scatter drops it."""
    return jnp.where(layers < 0, num_layers, layers)


def product(d: Delta) -> Array:
    """The change as a matrix, in float32: [..., I, O]."""
    if isinstance(d, Dense):
        return d.w.astype(jnp.float32)
    return matmul(d.a.astype(jnp.float32), d.b.astype(jnp.float32))


def leaf(path: str) -> str:
    """Where the parameter tree keeps the matrix: "mlp/down" -> "blocks/mlp/down/w"."""
    return f"blocks/{path}/w" if "/" in path else f"{path}/w"


def _touched(params: Params, deltas: Mapping[str, Any]) -> dict[str, Array]:
    """The weights that deltas (or kept weights) belong to, by path; refuses what does not fit."""
    flat = traverse_util.flatten_dict(params, sep="/")
    weights = {path: flat[leaf(path)] for path in deltas if leaf(path) in flat}
    shapes = {path: w.shape for path, w in weights.items()}
    depth = next((s[0] for path, s in shapes.items() if "/" in path), 0)
    changes = {
        k: tuple(Dense(d.w, d.layers) if isinstance(d, Kept) else d for d in _chain(v))
        for k, v in deltas.items()
    }
    check(changes, {path: (s[-2], s[-1]) for path, s in shapes.items()}, depth)
    return weights


def _put(params: Params, old: dict[str, Array], new: dict[str, Array]) -> Params:
    """Params with new weights, laid out over devices as the old ones are."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, w in new.items():
        traced = isinstance(w, jax.core.Tracer) or not isinstance(old[path], jax.Array)
        flat[leaf(path)] = w if traced else jax.device_put(w, old[path].sharding)
    return traverse_util.unflatten_dict(flat, sep="/")


# One per row of a batch


def row(deltas: Deltas, i: int | Array) -> dict[str, Any]:
    """Row i of per-row deltas, as shared ones; what all rows share stays as it is."""

    def one(path: str, d: Delta) -> Delta:
        rows = _rows(path, d)
        if rows is None:
            return d
        if not isinstance(i, jax.Array) and not -rows <= i < rows:
            raise ValueError(f"row {i} of delta {path!r}, which has {rows}")
        d = _broadcast(path, d, rows)
        take = lambda x: x[:, i] if "/" in path else x[i]
        return _over(take, d, None if d.layers is None else d.layers[:, i])

    many = lambda v: type(v) in (tuple, list)
    return {
        k: tuple(one(k, d) for d in v) if many(v) else one(k, v) for k, v in deltas.items()
    }


def stack(edits: Sequence[Deltas]) -> dict[str, Delta]:
    """N shared deltas as one delta per row, so that one forward runs all edits: [n, N, I, R].

    Ranks and layers are padded to the largest, with zeros and with layer -1.
    """
    if not edits:
        raise ValueError("no deltas to stack")
    singles = [single(e) for e in edits]
    return {
        path: _stack(path, [e.get(path) for e in singles])
        for path in dict.fromkeys(p for e in singles for p in e)
    }


def _stack(path: str, ds: list[Delta | None]) -> Delta:
    have = [d for d in ds if d is not None]
    for d in have:
        if _rows(path, d) is not None:
            raise ValueError(f"delta {path!r} has one change per row already; stack shared deltas")
    if any(isinstance(d, Dense) for d in have):
        have = [Dense(product(d), d.layers) for d in have]
    lead = "/" in path
    whole = not lead or all(d.layers is None for d in have)
    sizes = [tuple(np.max([x.shape for x in xs], 0)) for xs in zip(*map(_parts, have))]
    kinds = [reduce(jnp.promote_types, (x.dtype for x in xs)) for xs in zip(*map(_parts, have))]
    rest = iter(have)
    arrays: list[list[Array]] = []
    layers = []
    for given in ds:
        d = None if given is None else next(rest)
        xs = [jnp.zeros((0,) * len(s)) for s in sizes] if d is None else _parts(d)
        arrays.append([_grow(x.astype(k), s) for x, s, k in zip(xs, sizes, kinds, strict=True)])
        if not whole:
            numbers = jnp.zeros(0, jnp.int32) if d is None else _numbers(d)
            layers.append(_grow(numbers.astype(jnp.int32), sizes[0][:1], -1))
    joined = [jnp.stack(xs, int(lead)) for xs in zip(*arrays, strict=True)]
    return type(have[0])(*joined, layers=None if whole else jnp.stack(layers, 1))


def _grow(x: Array, shape: tuple[int, ...], fill: int = 0) -> Array:
    """x in the corner of a larger array."""
    if x.shape == tuple(shape):
        return x
    return jnp.pad(x, [(0, n - m) for m, n in zip(x.shape, shape)], constant_values=fill)


def scatter(deltas: Deltas, num_layers: int) -> dict[str, Delta]:
    """The same deltas with layers=None: arrays lead with all L layers, zeros where none is edited."""

    def one(path: str, d: Delta) -> Delta:
        if d.layers is None:
            return d
        rows = _rows(path, d)
        d = d if rows is None else _broadcast(path, d, rows)
        at: Any = _drop(d.layers, num_layers)
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
    return {path: reduce(partial(_add, path), _chain(v)) for path, v in deltas.items()}


def _add(path: str, x: Delta, y: Delta) -> Delta:
    rows = {_rows(path, x), _rows(path, y)} - {None}
    if len(rows - {1}) > 1:
        raise ValueError(f"deltas {path!r} have {sorted(map(str, rows))} rows; they must agree")
    if rows:
        x, y = (_broadcast(path, d, max(r for r in rows if r)) for d in (x, y))
    layers = None
    if "/" in path and (x.layers is not None or y.layers is not None):
        x, y, layers = _align(path, x, y)
    if isinstance(x, LowRank) and isinstance(y, LowRank):
        return LowRank(_concat(x.a, y.a, -1), _concat(x.b, y.b, -2), layers)
    return Dense(product(x) + product(y), layers)


def _concat(x: Array, y: Array, axis: int) -> Array:
    kind = jnp.promote_types(x.dtype, y.dtype)
    return jnp.concatenate([x.astype(kind), y.astype(kind)], axis)


def _align(path: str, x: Delta, y: Delta) -> tuple[Delta, Delta, Array | None]:
    """Both on the union of their layers, [u] or [u, B], zero where one has none."""
    if any(isinstance(d.layers, jax.core.Tracer) for d in (x, y)):
        raise ValueError(f"the layers of deltas {path!r} are traced: compose them outside jit")
    shared = _rows(path, x) is None
    columns = [np.asarray(_numbers(d)) for d in (x, y)]
    columns = [c.reshape(len(c), -1) for c in columns]
    unions = [
        sorted({*p, *q} - {-1})
        for p, q in zip(*(c.T.tolist() for c in np.broadcast_arrays(*columns[:1], ) + columns[1:]))
    ]
    raise NotImplementedError


