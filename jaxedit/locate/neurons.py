"""Neurons: scores [L, F] from any method, sets of neurons from scores, and what sets do to a model.

A neuron is a unit of `mlp_key`, the input of a down projection, after the activation function and,
in a gated MLP, after the gate. Whatever finds neurons gives scores of one form, so one set of
selectors and of interventions serves all.

Shapes: N facts or prompts, P prompts of a fact, L layers, F neurons of a layer, B rows of a batch.
Scores and sets (bool) have any leading axes, […, L, F].
"""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Scale

SITE: Literal["mlp_key"] = "mlp_key"


def highest(scores: Array | np.ndarray, k: int, *, over: float = -jnp.inf) -> Array:
    """The k highest of each fact's scores [N, …], as sets [N, …]; of equal ones the first.

    over: what does not score more is in none, so that a set may have fewer than k.
    """
    N, X = len(scores), int(np.prod(scores.shape[1:]))
    if not 1 <= k <= X:
        raise ValueError(f"the {k} highest of {X} scores")
    return _highest(jnp.asarray(scores), over, k) if N else jnp.zeros(scores.shape, bool)


@partial(jax.jit, static_argnames="k")
def _highest(scores: Array, over: float, k: int) -> Array:
    x_NX = scores.reshape(len(scores), -1)
    best_Nk, at_Nk = jax.lax.top_k(x_NX, k)
    rows_N1 = jnp.arange(len(x_NX))[:, None]
    some = jnp.zeros(x_NX.shape, bool).at[rows_N1, at_Nk].set(best_Nk > over)
    return some.reshape(scores.shape)


def above(scores: Array, share: float) -> Array:
    """The neurons that score more than a share of the largest score, over all layers: coarse sets.

    The authors of knowledge neurons take 0.2 of it, EleutherAI 0.3; of activations 0.5.
    """
    if not 0 <= share < 1:
        raise ValueError(f"a share {share} of the largest score: from 0 to below 1")
    return jnp.asarray(scores) > share * jnp.max(scores, (-2, -1), keepdims=True)


def among(sets: Array, share: float, least: int = 1) -> Array:
    """The neurons in at least a share of P sets [P, …, L, F], and in at least so many of them."""
    count = jnp.asarray(sets).sum(0)
    # a share of 0.7 of ten is seven, whatever 0.7 * 10 is in binary
    return count >= max(least, int(np.ceil(share * len(sets) - 1e-9)), 1)


def without_common(sets: Array, share: float) -> Array:
    """Sets [N, …] less the neurons that are in more than a share of them."""
    kept = jnp.asarray(sets)
    return kept & ~(kept.mean(0) > share)


def rarity(sets: Array) -> Array:
    """How particular each neuron is to few of N sets: log(N / (n + 1)) where n have it (the inverse
    cluster attribution of QRNCA); [L, F].
    """
    count = jnp.asarray(sets).sum(0)
    return jnp.log(len(sets) / (count + 1).astype(jnp.float32))


class Refined(NamedTuple):
    sets_NLF: np.ndarray
    share: float  # of a fact's prompts, after it was moved
    free: float  # neurons of a fact, on average, at the share that was asked for
    forced: float  # the same at the share it was moved to
    consistent: float  # of coarse neurons, the share that is in all coarse sets of its fact


def refine(
    coarse: Sequence[Array | np.ndarray], *, share: float = 0.7, least: int = 3,
    between: tuple[float, float] = (2, 5), step: float = 0.05, rounds: int = 6,
) -> Refined:  # fmt: skip
    """The refined sets of N facts from the coarse sets [P, L, F] of each one's prompts: neurons in
    a share of the prompts and in at least `least` of them.

    The authors then move the share until facts have 2 to 5 neurons on average, which makes any
    result sparse: what they have without that is told too (`between` (0, inf): not moved).
    """
    if not len(coarse):
        raise ValueError("no facts whose neurons could be refined")
    few = [i for i, sets in enumerate(coarse) if len(sets) < least]
    if few:
        raise ValueError(
            f"fact {few[0]} has {len(coarse[few[0]])} prompts; to be in at least {least} of them "
            "takes as many: give more prompts, or a smaller `least`"
        )
    count = [np.asarray(sets).sum(0) for sets in coarse]
    need = lambda sets, at: max(least, int(np.ceil(at * len(sets) - 1e-9)), 1)
    at_share = lambda at: np.stack(
        [n >= need(sets, at) for n, sets in zip(count, coarse, strict=True)]
    )
    size = lambda found: float(found.sum((1, 2)).mean())
    at, found = share, at_share(share)
    free = size(found)
    for _ in range(rounds):
        if between[0] <= size(found) <= between[1]:
            break
        moved = round(at + (step if size(found) > between[1] else -step), 10)
        if not 0 < moved <= 1:
            break
        at, found = moved, at_share(moved)
    every = [(n == len(sets)).sum() / max((n > 0).sum(), 1)
             for n, sets in zip(count, coarse, strict=True)]  # fmt: skip
    return Refined(found, at, free, size(found), float(np.mean(every)))


def random_like(key: Array, sets_NLF: Array) -> Array:
    """As many neurons of each set, in the same layers, at random and none of the set's own: the
    control that every finder has to beat.
    """
    sets_NLF = jnp.asarray(sets_NLF)
    drawn = jax.random.uniform(key, sets_NLF.shape)
    order_NLF = jnp.where(sets_NLF, -1.0, drawn)
    rank_NLF = jnp.argsort(jnp.argsort(-order_NLF, -1), -1)
    return (rank_NLF < sets_NLF.sum(-1, keepdims=True)) & ~sets_NLF


def sets(places: Iterable[Collection[Any]], shape: tuple[int, ...]) -> np.ndarray:
    """Collections of layers, or of (layer, neuron), as sets [N, *shape]."""
    some = list(places)
    out = np.zeros((len(some), *shape), bool)
    for mask, mine in zip(out, some, strict=True):
        for place in mine:
            at = place if isinstance(place, tuple) else (place,)
            if len(at) != len(shape) or not all(0 <= i < n for i, n in zip(at, shape, strict=True)):
                raise ValueError(f"place {place}: not in {list(shape)}")
            mask[at] = True
    return out


def listed(scores_LF: Array, k: int) -> list[tuple[int, int, float]]:
    """The k highest as (layer, neuron, score), the highest first."""
    x_LF = np.asarray(scores_LF, np.float64)
    best = np.argsort(-x_LF, axis=None, kind="stable")[:k]
    layer, neuron = np.unravel_index(best, x_LF.shape)
    return [(int(i), int(f), float(x_LF[i, f])) for i, f in zip(layer, neuron, strict=True)]


def times(sets_BLF: Array, factor: float | Array, at_BT: Array | None = None) -> dict[str, Scale]:
    """Writes that multiply the activations of each row's neurons: 0 suppresses, 2 enhances.

    at_BT: the columns where (all of them by default, in generation too). One set for all rows: a
    leading axis of 1.
    """
    factor_LB1F = jnp.where(jnp.asarray(sets_BLF), jnp.asarray(factor, jnp.float32), jnp.float32(1))
    factor_LB1F = factor_LB1F.swapaxes(0, 1)[:, :, None]
    L = len(factor_LB1F)
    at_BT = jnp.ones((1, 1), bool) if at_BT is None else at_BT
    return {SITE: Scale(jnp.broadcast_to(at_BT, (L, *at_BT.shape)), factor_LB1F)}


def alike(scores: Array | np.ndarray) -> float:
    """How strongly N vectors of scores agree: R = (σ₁² - 1) / (N - 1) of the normed vectors, 1
    where all are the same, 0 where they are orthogonal (Niu et al., 2024).
    """
    x_NX = np.asarray(scores, np.float64).reshape(len(scores), -1)
    if len(x_NX) < 2:
        raise ValueError(f"{len(x_NX)} vector: agreement is between two at least")
    x_NX = x_NX / np.maximum(np.linalg.norm(x_NX, axis=1, keepdims=True), 1e-30)
    largest = np.linalg.eigvalsh(x_NX @ x_NX.T)[-1]
    return float((largest - 1) / (len(x_NX) - 1))
