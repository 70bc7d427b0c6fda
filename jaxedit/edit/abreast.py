"""Changes that hold one for each row of a batch: of several batches together, and of rows again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxedit.base import Dense, LowRank

Deltas = dict[str, Any]


def joined(some: Sequence[Deltas]) -> Deltas:
    """Changes of several batches, one for each request, side by side."""
    return {path: side_by_side([d[path] for d in some]) for path in some[0]}


def side_by_side(xs: Sequence[Any]) -> Any:
    first = xs[0]
    if isinstance(first, tuple):
        return tuple(side_by_side(x) for x in zip(*xs, strict=True))
    if isinstance(first, Dense):
        shared = first.w.ndim == 3
        return first if shared else Dense(jnp.concatenate([x.w for x in xs], 1), first.layers)
    R = max(x.a.shape[-1] for x in xs)
    wide = lambda x, axis: jnp.pad(
        x, [(0, R - n if i == axis else 0) for i, n in enumerate(x.shape)]
    )
    a, b = [wide(x.a, 3) for x in xs], [wide(x.b, 2) for x in xs]
    return LowRank(jnp.concatenate(a, 1), jnp.concatenate(b, 1), first.layers)


def repeated(deltas: Mapping[str, Any], times: int) -> Deltas:
    """Changes of N rows for `times` N rows; a shared one stays."""

    def one(d: Any) -> Any:
        if isinstance(d, tuple):
            return tuple(map(one, d))
        wide = 3 if isinstance(d, LowRank | Dense) else 0
        arrays = {f.name: getattr(d, f.name) for f in dataclasses.fields(d) if f.name != "layers"}
        tile = lambda x: x if x.ndim == wide else jnp.concatenate([x] * times, 1)
        return dataclasses.replace(d, **{k: tile(x) for k, x in arrays.items()})

    return {path: one(d) for path, d in deltas.items()}
