"""Neurons of a few things rather than of all: of queries (QRNCA), of languages or tasks (LAPE).

QRNCA (Chen et al., 2024). Of each cluster of queries (a fact in several wordings, or a domain) the
attributions above a share of the largest are added up and normed; a neuron that many clusters have
counts for less, log(C / (n + 1)), and those of the highest that are still in many are taken out.

LAPE (Tang et al., 2024). p[k] is the share of language k's tokens at which a neuron is active (its
gate, or what goes into its activation function, is positive). Over languages, normed to add up to
one, p has an entropy: low where a neuron is active in few of them. Of the neurons whose best p is
above the `bar` (a quantile of all p) the share with the lowest entropy is kept, each for all the
languages whose p is above the bar. With tasks, relations or domains in the place of languages the
same finds theirs.

Shapes: C clusters, P queries of one, K languages, L layers, F neurons, B rows, T columns.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.locate import neurons
from jaxedit.locate.passes import Batch, one_pass
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import on_mesh_of


def qrnca(
    scores: Sequence[np.ndarray | Array], *, share: float = 0.2, top: int = 20, common: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [C, L, F] and the neurons (bool) of C clusters, from attributions [P, L, F] of each.

    share: of a query's largest score, below which a neuron is none of its. top: neurons of a
    cluster. common: those in more than this share of the clusters are taken out of all of them,
    after the others were counted, as the authors do it: a cluster may have fewer than `top`.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} cluster: what is particular takes two at least")
    summed = []
    for some in scores:
        x_PLF = np.asarray(some, np.float32)
        summed.append(np.where(neurons.above(jnp.asarray(x_PLF), share), x_PLF, 0).sum(0))
    sum_CLF = np.stack(summed)
    norm_C11 = np.maximum(sum_CLF.max((1, 2), keepdims=True), 1e-30)
    rare_LF = np.asarray(neurons.rarity(jnp.asarray(sum_CLF > 0)))
    weighed_CLF = sum_CLF / norm_C11 * np.maximum(rare_LF, 0)
    best = neurons.highest(weighed_CLF, min(top, weighed_CLF[0].size), over=0.0)
    return weighed_CLF, np.asarray(neurons.without_common(best, common))


class Specific(NamedTuple):
    """The neurons of each of K languages."""

    sets_KLF: np.ndarray
    entropy_LF: np.ndarray  # in nats; inf where a neuron is never active enough
    bar: float  # the share of tokens above which a neuron counts as a language's


def lape(
    active_KLF: np.ndarray, tokens_K: np.ndarray, *, quantile: float = 0.95, share: float = 0.01
) -> Specific:
    """The neurons of each language, from how often every neuron was active in how many tokens.

    quantile: the bar, of all p. share: of all neurons, those with the lowest entropy.
    """
    active, tokens = np.asarray(active_KLF, np.float64), np.asarray(tokens_K, np.float64)
    if len(active) < 2 or len(active) != len(tokens) or (tokens <= 0).any():
        said = f"{len(active)} languages with {tokens.tolist()} tokens"
        raise ValueError(f"{said}: two at least, and a token of each")
    if not (0 < share <= 1 and 0 <= quantile < 1):
        raise ValueError(f"quantile={quantile}, share={share}: within [0, 1), (0, 1]")
    p_KLF = active / tokens[:, None, None]
    bar = float(np.quantile(p_KLF, quantile))
    sum_LF = p_KLF.sum(0)
    part_KLF = p_KLF / np.where(sum_LF > 0, sum_LF, 1)
    logs = np.log(np.where(part_KLF > 0, part_KLF, 1))
    entropy_LF = np.where(p_KLF.max(0) > bar, -(part_KLF * logs).sum(0), np.inf)
    count = max(round(share * entropy_LF.size), 1)
    order = np.argsort(entropy_LF, axis=None, kind="stable")[:count]
    kept = np.zeros(entropy_LF.size, bool)
    kept[order] = np.isfinite(entropy_LF.ravel()[order])
    return Specific(kept.reshape(entropy_LF.shape) & (p_KLF > bar), entropy_LF, bar)


@struct.dataclass
class Counts:
    """int64, on the host."""

    active: np.ndarray  # [L, F]
    seen: np.ndarray  # tokens


def count(
    params: Params, cfg: ModelConfig, batches: Iterable[Batch], progress: Progress = quiet,
    total: int = 0, file: str | Path | None = None,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """At how many tokens each neuron is active [L, F], of how many; streamed, exact.

    file: where it is kept as it goes, and goes on if the model and the texts so far are the same.
    """

    def more(counts: Counts, batch: Batch) -> Counts:
        with on_mesh_of(params):
            found = _active(params, *map(jnp.asarray, batch), cfg)
        seen = np.asarray(counts.seen + (np.asarray(batch[1]) >= 0).sum())
        return Counts(counts.active + np.asarray(found, np.int64), seen)

    start = Counts(np.zeros((cfg.layers, cfg.mlp), np.int64), np.zeros((), np.int64))
    found = one_pass(
        start, batches, more, params=params, settings="", what="counts",
        file=None if file is None else Path(file), progress=progress, total=total,
    )  # fmt: skip
    return np.asarray(found.active), int(found.seen)


@partial(jax.jit, static_argnames="cfg")
def _active(params: Params, tokens_BT: Array, pos_BT: Array, cfg: ModelConfig) -> Array:
    first_B1 = jnp.zeros((len(tokens_BT), 1), jnp.int32)
    out = forward(
        params, tokens_BT, cfg, pos_BT=pos_BT, reads={"mlp_pre": None}, logits_at=first_B1
    )
    is_on = (out.reads["mlp_pre"] > 0) & (pos_BT >= 0)[None, :, :, None]
    return is_on.astype(jnp.int32).sum((1, 2))


def matrix(
    params: Params, cfg: ModelConfig, sets_KLF: np.ndarray, texts: Sequence[Sequence[Batch]],
    factor: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Mean loss of a next token [1 + K, N] on N kinds of text: first of the model as it is, then
    with the neurons of each of K sets multiplied by `factor` everywhere. Where sets are of kinds,
    what the diagonal loses more than the rest is what is specific about them.
    """
    none = np.zeros((1, *sets_KLF.shape[1:]), bool)
    rows = []
    for mine in np.concatenate([none, sets_KLF])[:, None]:
        row = []
        for batches in texts:
            with on_mesh_of(params):
                sums = [
                    np.asarray(_loss(params, *map(jnp.asarray, batch), jnp.asarray(mine),
                                     jnp.float32(factor), cfg), np.float64)
                    for batch in batches
                ]  # fmt: skip
            loss, tokens = np.sum(sums, 0)
            row.append(loss / max(tokens, 1))
        rows.append(row)
    return np.array(rows)


@partial(jax.jit, static_argnames="cfg")
def _loss(
    params: Params, tokens_BT: Array, pos_BT: Array, set_1LF: Array, factor: Array, cfg: ModelConfig
) -> Array:
    writes = neurons.times(set_1LF, factor)
    logits = forward(params, tokens_BT, cfg, pos_BT=pos_BT, writes=writes).logits[:, :-1]
    real = (pos_BT[:, 1:] >= 0) & (pos_BT[:, :-1] >= 0)
    logp = jax.nn.log_softmax(logits)
    each = -jnp.take_along_axis(logp, tokens_BT[:, 1:, None], -1)[..., 0]
    return jnp.stack([jnp.where(real, each, 0).sum(), real.astype(jnp.float32).sum()])
