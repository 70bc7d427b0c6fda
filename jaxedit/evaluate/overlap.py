"""Do related facts lie in one place, and unrelated ones in others: RSim (Ju & Zhang, 2023), as "A
Comprehensive Study of Knowledge Editing" (section 5.2) applies it to located layers; here of
located neurons, of layers, and of what edits change.

    RSim = max((related - all others) / (1 - all others), 0)

where `related` is the mean similarity of the places of facts of one group (of one subject, say),
and `all others` that of facts of the group to facts outside it: 1 where the facts of a group lie in
one place and others do not, 0 where they are no more alike than any.

Shapes: N, M facts; their places have any shape ([L] layers, [L, F] neurons), as X in a row. I
inputs of a matrix, n layers.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array
from jaxedit.edit.record import Edit
from jaxedit.evaluate.analysis import input_norms, parts
from jaxedit.locate.neurons import highest

Kind = Literal["jaccard", "dice", "cosine"]
SHARE = 0.01  # of a matrix's inputs count as those that an edit changes most


def overlap(sets_a: Any, sets_b: Any, kind: Kind = "jaccard") -> Array:
    """How alike the places of facts are, each of a [N, …] with each of b [M, …]: [N, M] in [0, 1].

    jaccard: |a ∩ b| / |a ∪ b| of sets (bool). dice: 2 |a ∩ b| / (|a| + |b|), which is the share of
    the places in common if all sets have one size. cosine: of scores. Nothing is unlike anything.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"similarity {kind!r}: one of {', '.join(get_args(Kind))}")
    if sets_a.shape[1:] != sets_b.shape[1:]:
        raise ValueError(f"places {list(sets_a.shape[1:])} and {list(sets_b.shape[1:])} differ")
    if kind != "cosine" and not (sets_a.dtype == sets_b.dtype == bool):
        raise ValueError(f"{kind} is of sets (bool), not of {sets_a.dtype}; see highest(scores, k)")
    return _overlap(sets_a, sets_b, kind)


@partial(jax.jit, static_argnames="kind")
def _overlap(sets_a: Array, sets_b: Array, kind: Kind) -> Array:
    a_NX, b_MX = (x.reshape(len(x), -1).astype(jnp.float32) for x in (sets_a, sets_b))
    both_NM = jnp.matmul(a_NX, b_MX.T, precision="highest")
    a_N1, b_M = jnp.square(a_NX).sum(1)[:, None], jnp.square(b_MX).sum(1)
    if kind == "jaccard":
        whole_NM = a_N1 + b_M - both_NM
    elif kind == "dice":
        whole_NM = (a_N1 + b_M) / 2
    else:
        whole_NM = jnp.sqrt(a_N1) * jnp.sqrt(b_M)
    return jnp.where(whole_NM > 0, both_NM / jnp.where(whole_NM > 0, whole_NM, 1), 0)


def rsim(
    scores: Array | np.ndarray,
    groups: Sequence[Hashable],
    *,
    k: int | None = None,
    kind: Kind = "jaccard",
) -> dict[str, float | int] | None:
    """RSim of facts by their places [N, …], the mean over groups, with what it is made of.

    groups: of each fact, what it shares with those that it is related to; None: nothing. scores:
    sets, or with k scores whose k highest are the places. {"rsim", "related", "others", "groups"};
    None where no group has two facts, or nothing is outside of it.
    """
    if len(groups) != len(scores):
        raise ValueError(f"{len(groups)} groups for {len(scores)} facts: one for each")
    places = scores if k is None else highest(scores, k)
    return relative(np.asarray(overlap(places, places, kind), np.float64), groups)


def relative(alike_NN: np.ndarray, groups: Sequence[Hashable]) -> dict[str, float | int] | None:
    """RSim from the similarities of facts."""
    N = len(groups)
    found = []
    for group in dict.fromkeys(g for g in groups if g is not None):
        mine = np.array([g == group for g in groups])
        size = int(mine.sum())
        if 1 < size < N:
            inside = alike_NN[mine][:, mine]
            related = (inside.sum() - np.trace(inside)) / (size * (size - 1))
            other = alike_NN[mine][:, ~mine].mean()
            more = (related - other) / (1 - other) if other < 1 else 0.0
            found.append((max(more, 0.0), related, other))
    if not found:
        return None
    mean = dict(zip(("rsim", "related", "others"), np.mean(found, 0).tolist(), strict=True))
    return mean | {"groups": len(found)}


def changed(edits: Sequence[Edit], path: str = "mlp/down") -> tuple[np.ndarray, list[int]]:
    """How much each edit changes each input of a matrix, [N, n, I], and in which layers; zeros
    where an edit changes nothing.
    """
    found = [
        {
            place[1]: np.asarray(input_norms(part))
            for place, part in parts(e.deltas)
            if place[0] == path
        }
        for e in edits
    ]
    layers = sorted({layer or 0 for each in found for layer in each})
    width = max((len(x) for each in found for x in each.values()), default=0)
    out = np.zeros((len(edits), len(layers), width), np.float32)
    for row, each in zip(out, found, strict=True):
        for layer, size_I in each.items():
            row[layers.index(layer or 0)] = size_I
    return out, layers


def shared(
    edits: Sequence[Edit],
    groups: Mapping[str, Sequence[Hashable]],
    *,
    path: str = "mlp/down",
    k: int | None = None,
    kind: Kind = "jaccard",
) -> dict[str, Any]:
    """Do edits of related facts change the same neurons: RSim of the k inputs that each changes
    most (None: a hundredth of them), for every way of grouping: {"subject": [of each edit], …}.
    """
    size_NnI, layers = changed(edits, path)
    does = size_NnI.max((1, 2), initial=0) > 0
    k = k or max(1, round(SHARE * size_NnI[0].size)) if does.any() else 1
    out: dict[str, Any] = {"path": path, "layers": layers, "k": k, "edits": int(does.sum())}
    for name, labels in groups.items():
        if len(labels) != len(edits):
            raise ValueError(f"{name}: {len(labels)} groups for {len(edits)} edits: one for each")
        mine = [label for label, yes in zip(labels, does, strict=True) if yes]
        out[name] = rsim(size_NnI[does], mine, k=k, kind=kind) if mine else None
    return out
