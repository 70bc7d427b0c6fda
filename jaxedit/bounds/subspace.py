"""Parameters that only move in a subspace: theta = theta0 + P w, over any set of arrays.

What moves is a tree (low-rank factors, or all weights), as one vector: its leaves one after the
other, in the order of the tree. One projection serves all of it, or each leaf has its own and a
share of the coordinates. FiLM moves nothing but the norms and the biases.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array
from jaxedit.bounds.project import Projection, make

Kind = Literal["kron", "square", "dense", "sparse", "fastfood", "identity"]


@dataclasses.dataclass(frozen=True)
class SubspaceConfig:
    dim: int = 1000  # coordinates; identity has as many as there are parameters
    kind: Kind = "kron"
    scope: Literal["all", "each"] = "all"  # one projection, or one for every array
    film: bool = False  # only norms and biases move
    seed: int = 137


@struct.dataclass
class Subspace:
    """Where parameters may move to. A pytree: its arrays are arguments of a program, not in it."""

    parts: tuple[Projection, ...]
    moved: tuple[bool, ...] = struct.field(pytree_node=False)  # leaves of the tree
    shapes: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)
    structure: Any = struct.field(pytree_node=False)

    @property
    def dim(self) -> int:
        return sum(p.d for p in self.parts)

    @property
    def size(self) -> int:
        """How many parameters move."""
        return sum(p.D for p in self.parts)


def subspace(tree: Any, cfg: SubspaceConfig) -> Subspace:
    """The subspace of a tree of arrays."""
    paths, structure = jax.tree.flatten_with_path(tree)
    moved = tuple(not cfg.film or is_film(jax.tree_util.keystr(path)) for path, _ in paths)
    shapes = tuple(tuple(x.shape) for _, x in paths)
    sizes = [math.prod(s) for s, on in zip(shapes, moved, strict=True) if on]
    if not sizes:
        raise ValueError("film moves norms and biases: there are none among low-rank factors")
    total = sum(sizes)
    if cfg.scope == "all" or cfg.kind == "identity":
        return Subspace((make(cfg.kind, total, cfg.dim, cfg.seed),), moved, shapes, structure)
    if not len(sizes) <= cfg.dim <= total:
        raise ValueError(
            f"{cfg.dim} coordinates for {len(sizes)} arrays of {total} numbers: at least one each, "
            "and no more than there are numbers"
        )
    dims = shares(sizes, cfg.dim)
    parts = tuple(
        make(cfg.kind, D, d, cfg.seed + i) for i, (D, d) in enumerate(zip(sizes, dims, strict=True))
    )
    return Subspace(parts, moved, shapes, structure)


def is_film(path: str) -> bool:
    return "norm" in path or path.endswith("['b']")


def shares(sizes: list[int], dim: int) -> list[int]:
    """dim coordinates in proportion to sizes: at least one each, at most as many as there are."""
    total = sum(sizes)
    out = [max(1, dim * n // total) for n in sizes]
    while (left := dim - sum(out)) != 0:
        step = 1 if left > 0 else -1
        room = [i for i, n in enumerate(sizes) if (out[i] < n if step > 0 else out[i] > 1)]
        ahead = lambda i, step=step: step * (dim * sizes[i] / total - out[i])
        for i in sorted(room, key=ahead, reverse=True)[: abs(left)]:
            out[i] += step
    return out


def move(space: Subspace, tree: Any, w_d: Array) -> Any:
    """The tree at w: theta0 + P w."""
    ends, pieces = 0, []
    for part in space.parts:
        pieces.append(part(w_d[ends : ends + part.d]))
        ends += part.d
    flat = jnp.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    at, out = 0, []
    for x, on, shape in zip(jax.tree.leaves(tree), space.moved, space.shapes, strict=True):
        if on:
            n = math.prod(shape)
            out.append(x + flat[at : at + n].reshape(shape).astype(x.dtype))
            at += n
        else:
            out.append(x)
    return jax.tree.unflatten(space.structure, out)
