"""Deltas into weights and out again: merging, and an undo that gives back every bit."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import NamedSharding

from jaxedit.base import Array, Delta, Deltas, Dense, Params, chain
from jaxedit.delta import count_rows, drop_missing, product, single
from jaxedit.fit import check
from jaxedit.models.config import ModelConfig
from jaxedit.sharding import on_mesh_of


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
    with on_mesh_of(params):
        return _put(params, weights, _merge(weights, deltas))


def original(params: Params, deltas: Deltas) -> dict[str, tuple[Kept, ...]]:
    """The exact weights that `apply` would change, and no others; for `restore`."""
    weights = _touched(params, deltas)
    with on_mesh_of(params):
        return {
            path: tuple(Kept(_keep(w, d.layers), d.layers) for d in chain(deltas[path]))
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
        return (w_IO.astype(jnp.float32) + product(d)).astype(w_IO.dtype)

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
def _unmerge(weights: dict[str, Array], kept: dict[str, tuple[Kept, ...]]) -> dict[str, Array]:
    def back(w: Array, k: Kept) -> Array:
        return (
            k.w if k.layers is None else w.at[drop_missing(k.layers, len(w))].set(k.w, mode="drop")
        )

    return {path: reduce(back, kept[path], w) for path, w in weights.items()}


def _touched(params: Params, deltas: Mapping[str, Any]) -> dict[str, Array]:
    """The weights that deltas (or kept weights) belong to, by path; refuses what does not fit."""
    flat = traverse_util.flatten_dict(params, sep="/")
    if "head" in deltas and leaf("head") not in flat:
        raise ValueError(
            "delta 'head': the head of this model is its embedding table; merge.untie gives it one "
            "of its own"
        )
    weights = {path: flat[leaf(path)] for path in deltas if leaf(path) in flat}
    shapes = {path: w.shape for path, w in weights.items()}
    depth = next((s[0] for path, s in shapes.items() if "/" in path), 0)
    changes = {
        k: tuple(Dense(d.w, d.layers) if isinstance(d, Kept) else d for d in chain(v))
        for k, v in deltas.items()
    }
    check(changes, {path: (s[-2], s[-1]) for path, s in shapes.items()}, depth)
    for path, ds in changes.items():
        if rows := [r for d in ds if (r := count_rows(path, d)) is not None]:
            raise ValueError(
                f"delta {path!r} has one change per row ({rows[0]} rows) and a weight takes one; "
                "choose it with delta.row(deltas, i)"
            )
    return weights


def _put(params: Params, old: dict[str, Array], new: dict[str, Array]) -> Params:
    """Params with new weights, laid out over devices as the old ones are."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, w in new.items():
        where = None if isinstance(w, jax.core.Tracer) else getattr(old[path], "sharding", None)
        # (device_put onto a single device would also bind the weight to it)
        flat[leaf(path)] = jax.device_put(w, where) if isinstance(where, NamedSharding) else w
    return traverse_util.unflatten_dict(flat, sep="/")


def untie(params: Params, cfg: ModelConfig) -> tuple[Params, ModelConfig]:
    """A head of its own for a model whose head is its embedding table, so that a change of the head
    alone can be merged.
    """
    if not cfg.tied:
        return params, cfg
    with on_mesh_of(params):
        head = {"w": params["embed"]["w"].T}
    return {**params, "head": head}, cfg.replace(tied=False)


def leaf(path: str) -> str:
    """Where the parameter tree keeps the matrix: "mlp/down" -> "blocks/mlp/down/w"."""
    return f"blocks/{path}/w" if "/" in path else f"{path}/w"
