"""The two ends of the model: token embeddings in, logits out; and changes of their table."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Deltas, Params, chains
from jaxedit.models.config import ModelConfig
from jaxedit.models.layers import norm, softcap, times_turned
from jaxedit.models.products import wide
from jaxedit.sharding import constrain


def embed(
    params: Params,
    tokens_BT: Array,
    cfg: ModelConfig,
    *,
    pos_BT: Array,
    deltas: Deltas | None = None,
) -> Array:
    """Token embeddings (scaled, with learned positions where the model has them), [B, T, D] in
    cfg.dtype.
    """
    x_BTD = rows(params["embed"]["w"], tokens_BT).astype(cfg.dtype)
    for delta in chains(deltas).get("embed", ()):
        x_BTD = x_BTD + lookup(delta, tokens_BT).astype(cfg.dtype)
    if cfg.embed_scale != 1:
        x_BTD = x_BTD * jnp.asarray(cfg.embed_scale, cfg.dtype)
    if "pos" in params:
        x_BTD = x_BTD + rows(params["pos"]["w"], jnp.maximum(pos_BT, 0)).astype(cfg.dtype)
    return x_BTD


def rows(table_ID: Array, i_BT: Array) -> Array:
    """Rows of a table, [B, T, D]. Each device takes its columns of them for its whole fsdp group,
    so that neither the table nor the batch is gathered.
    """
    return constrain(table_ID[i_BT], "group", None, "embed")


def lookup(delta: Any, tokens_BT: Array) -> Array:
    """The rows of a change of the embedding table: a one-hot vector times the delta, without the
    one-hot.
    """
    if hasattr(delta, "a"):
        rows = (
            delta.a[tokens_BT]
            if delta.a.ndim == 2
            else jax.vmap(lambda a, t: a[t])(delta.a, tokens_BT)
        )
        return rows @ delta.b
    return (
        delta.w[tokens_BT] if delta.w.ndim == 2 else jax.vmap(lambda w, t: w[t])(delta.w, tokens_BT)
    )


def unembed(
    params: Params, x_BTD: Array, cfg: ModelConfig, *, deltas: Deltas | None = None
) -> Array:
    """Final norm and head: float32 logits, accumulated in float32 whatever the compute dtype."""
    return head(params, norm(params["norm"], x_BTD, cfg), cfg, deltas=deltas)


def head(params: Params, x_BTD: Array, cfg: ModelConfig, *, deltas: Deltas | None = None) -> Array:
    """Logits of what is normed already."""
    f32 = jnp.float32
    if cfg.tied or "wt" in params["head"]:
        w = params["embed"]["w"] if cfg.tied else params["head"]["wt"]
        logits_BTV = wide(times_turned, x_BTD, w.astype(x_BTD.dtype))
    else:
        logits_BTV = wide(times, x_BTD, params["head"]["w"].astype(x_BTD.dtype))
    if not cfg.tied and "b" in params["head"]:
        logits_BTV = logits_BTV + params["head"]["b"].astype(f32)
    changes = chains(deltas)
    if cfg.tied:  # the table is the head: its change is a change of both
        for delta in changes.get("embed", ()):
            logits_BTV = logits_BTV + flip(delta)(x_BTD).astype(f32)
    for delta in changes.get("head", ()):
        logits_BTV = logits_BTV + delta(x_BTD).astype(f32)
    return constrain(softcap(logits_BTV, cfg.logit_softcap), "batch", None, "vocab")


def times(x_BTI: Array, w_IO: Array, dtype: Any) -> Array:
    return jnp.matmul(x_BTI, w_IO, preferred_element_type=dtype)


def flip(delta: Any) -> Any:
    """The transposed change."""
    if hasattr(delta, "a"):
        return type(delta)(delta.b.swapaxes(-1, -2), delta.a.swapaxes(-1, -2))
    return type(delta)(delta.w.swapaxes(-1, -2))
