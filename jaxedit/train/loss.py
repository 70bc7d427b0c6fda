"""The loss of a language model, without ever holding all logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Deltas, Params
from jaxedit.models.config import ModelConfig
from jaxedit.models.specs import pin
from jaxedit.models.transformer import hidden
from jaxedit.models.vocabulary import unembed
from jaxedit.sharding import on_mesh_of

LOGITS = 2**27  # how many logits are in memory at once: more are computed part by part


def next_token(
    params: Params,
    tokens_BT: Array,
    cfg: ModelConfig,
    *,
    pos_BT: Array | None = None,
    deltas: Deltas | None = None,
    remat: bool = False,
    unroll: bool = False,
    plain: bool = False,
) -> tuple[Array, Array]:
    """Sum of -log p(token | those before) in nats, and how many were predicted.

    tokens_BT [B, T+1]: each but the last predicts the next. pos_BT [B, T+1]: positions, -1 at
    padding, which is neither seen nor predicted. plain: promises that padding is on the right only.
    Has no forward-mode derivative where logits are computed in parts.
    """
    with on_mesh_of(params):
        before_BT, next_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        params = pin(params, cfg)
        seen_BT = None if pos_BT is None else pos_BT[:, :-1]
        counts_BT = jnp.ones(next_BT.shape, bool) if pos_BT is None else pos_BT[:, 1:] >= 0
        x_BTD = hidden(
            params,
            before_BT,
            cfg,
            pos_BT=seen_BT,
            deltas=deltas,
            remat=remat,
            unroll=unroll,
            plain=plain,
        )
        total = cross_entropy(params, x_BTD, next_BT, counts_BT, cfg, deltas)
        return total, counts_BT.sum(dtype=jnp.float32)


def over_parts(
    loss: Callable[[Any, Any], tuple[Array, Array]], trained: Any, parts: Any
) -> tuple[Array, Any]:
    """The mean over all that the parts of a batch (leaves lead with them) count, and its gradient:
    loss(trained, part) is a sum and how many it is of.
    """

    def one(sums: Any, part: Any) -> tuple[Any, None]:
        (value, count), grads = jax.value_and_grad(loss, has_aux=True)(trained, part)
        return jax.tree.map(jnp.add, sums, (value, count, grads)), None

    zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, trained))
    (value, count, grads), _ = jax.lax.scan(one, zero, parts)
    mean = lambda x: x / jnp.maximum(count, 1)
    return mean(value), jax.tree.map(mean, grads)


def cross_entropy(
    params: Params, x_BTD: Array, next_BT: Array, counts_BT: Array, cfg: ModelConfig, deltas: Any
) -> Array:
    """Over the vocabulary, in parts along time."""
    used = ("norm", "head", "embed") if cfg.tied else ("norm", "head")
    only = lambda tree: {k: v for k, v in tree.items() if k in used}
    weights = only(params), only(deltas or {})

    def part(weights: Any, x_BtD: Array, fixed: tuple[Array, Array]) -> Array:
        (ends, changes), (next_Bt, counts_Bt) = weights, fixed
        logits_BtV = unembed(ends, x_BtD, cfg, deltas=changes)
        picked_Bt = jnp.take_along_axis(logits_BtV, next_Bt[..., None], -1)[..., 0]
        losses_Bt = jax.nn.logsumexp(logits_BtV, -1) - picked_Bt
        return jnp.where(counts_Bt, losses_Bt, 0).sum()

    B, T = next_BT.shape
    parts = parts_of(B * T * cfg.vocab, T)
    if parts == 1:
        return part(weights, x_BTD, (next_BT, counts_BT))
    cut = lambda z: z.reshape(B, parts, T // parts, *z.shape[2:]).swapaxes(0, 1)
    return in_parts(part, weights, cut(x_BTD), (cut(next_BT), cut(counts_BT)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_parts(loss: Callable[..., Array], weights: Any, x: Array, fixed: Any) -> Array:
    """The sum of loss(weights, x[i], fixed[i]). Where its gradient is wanted it is computed at
    once, part by part: nothing has to be kept for later, nor computed twice.
    """
    add = lambda total, part: (total + loss(weights, *part), None)
    return jax.lax.scan(add, jnp.float32(0), (x, fixed))[0]


def _ahead(loss: Callable[..., Array], weights: Any, x: Array, fixed: Any) -> tuple[Array, Any]:
    def one(sums: Any, part: Any) -> tuple[Any, Array]:
        value, (by_weights, by_x) = jax.value_and_grad(loss, argnums=(0, 1))(weights, *part)
        add = lambda a, b: a + b.astype(jnp.float32)
        return jax.tree.map(add, sums, (value, by_weights)), by_x

    zero = (jnp.float32(0), jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights))
    (total, by_weights), by_x = jax.lax.scan(one, zero, (x, fixed))
    return total, (weights, by_weights, by_x)


def _back(_: Any, kept: Any, g: Array) -> tuple[Any, Array, None]:
    weights, by_weights, by_x = kept
    times = lambda gradient, like: (gradient.astype(jnp.float32) * g).astype(like.dtype)
    return jax.tree.map(times, by_weights, weights), times(by_x, by_x), None


in_parts.defvjp(_ahead, _back)


def parts_of(logits: int, T: int, most: int = 0) -> int:
    """The least number of equal parts of T columns that keeps each below `most`, or LOGITS."""
    wanted = -(-logits // (most or LOGITS))
    return next((n for n in range(wanted, T) if T % n == 0), T)
