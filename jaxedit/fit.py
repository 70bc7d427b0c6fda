"""Whether deltas fit a model, and in one line why not. Shapes as in jaxedit.delta."""

from collections.abc import Mapping

import jax
import numpy as np

from jaxedit.base import Delta, Deltas, Dense, LowRank, chain
from jaxedit.delta import parts, size


def check(deltas: Deltas, matrices: Mapping[str, tuple[int, int]], num_layers: int) -> None:
    """Raises where deltas do not fit a model with these matrices (path -> (I, O))."""
    for path, v in deltas.items():
        if path not in matrices:
            known = ", ".join(matrices) or "no such matrix"
            raise ValueError(f"delta {path!r}: the model has {known}")
        for d in chain(v):
            if not isinstance(d, LowRank | Dense):
                raise ValueError(f"delta {path!r} is a {type(d).__name__}, not LowRank or Dense")
            if wrong := misfit(path, d, matrices[path]) or mislaid(path, d, num_layers):
                shapes = " and ".join(str(list(x.shape)) for x in parts(d))
                raise ValueError(f"delta {path!r} of shape {shapes}: {wrong}")


def misfit(path: str, d: Delta, matrix: tuple[int, int]) -> str:
    """What is wrong with the arrays of a delta; empty where nothing is."""
    lead, shapes = int("/" in path), [tuple(x.shape) for x in parts(d)]
    if len({len(s) for s in shapes}) > 1 or len(shapes[0]) - lead not in (2, 3):
        n = "n, " * lead
        return f"expected [{n}I, R] and [{n}R, O] ([{n}I, O] of a Dense), or a B before I and R"
    if size(d) != tuple(matrix):
        return f"it changes {list(size(d))}, the matrix is {list(matrix)}"
    if isinstance(d, LowRank) and d.a.shape[-1] != d.b.shape[-2]:
        return f"the ranks differ, {d.a.shape[-1]} and {d.b.shape[-2]}"
    if lead and len({s[0] for s in shapes}) > 1:
        return "both must lead with the same number of layers"
    rows = [s[lead] for s in shapes if len(s) == lead + 3]
    rows += [d.layers.shape[1]] if d.layers is not None and d.layers.ndim == 2 else []
    return f"its parts have {sorted(set(rows))} rows" if len(set(rows) - {1}) > 1 else ""


def mislaid(path: str, d: Delta, num_layers: int) -> str:
    """What is wrong with the layers of a delta; empty where nothing is."""
    if "/" not in path:
        return "" if d.layers is None else "it names layers; this matrix belongs to none"
    n, wide = len(parts(d)[0]), parts(d)[0].ndim == 4
    if d.layers is None:
        return "" if n == num_layers else f"it names no layers, the model has {num_layers}"
    shape = tuple(d.layers.shape)
    if shape[:1] != (n,) or len(shape) > 1 + wide:
        allowed = f"[{n}]" + f" or [{n}, rows]" * wide
        return f"its layers have shape {list(shape)}, expected {allowed}"
    if isinstance(d.layers, jax.core.Tracer):
        return ""
    for column in np.asarray(d.layers).reshape(n, -1).T.tolist():
        named = [i for i in column if i != -1]
        if bad := [i for i in named if not 0 <= i < num_layers]:
            return f"it changes layer {bad[0]}, the model has layers 0 to {num_layers - 1}"
        if len(set(named)) < len(named):
            return f"it names a layer twice, {named}; join them with delta.compose"
    return ""
