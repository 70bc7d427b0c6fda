"""The corner of a model that a vector moves, added at one token of one layer.

Layers up to that one and columns before the token never see it, so they run once (`freeze`); what
is run for every vector (`corner`) are the layers above, the columns from the token on, and logits
at the columns that a loss reads, for which alone the last layer is computed.

Shapes as in data.aligned; B = N R rows, M some of them, D embed.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Cache, Params
from jaxedit.data.aligned import Aligned
from jaxedit.models.cache import init_cache
from jaxedit.models.config import ModelConfig
from jaxedit.models.layers import columns, mlp, norm
from jaxedit.models.transformer import run_blocks
from jaxedit.models.vocabulary import embed, unembed
from jaxedit.sharding import constrain

Deltas = dict[str, Array]  # site -> [N, D] float32


@struct.dataclass
class Strip:
    """Rows from the token on, above the layer: what a vector at the token reaches. M rows."""

    x_MTD: Array  # the residual stream
    pos_MT: Array
    cache: Cache  # keys and values of the columns before the token


@struct.dataclass
class Frozen:
    """What the vector cannot reach."""

    said: Strip  # the contexts' rows
    about: Strip | None  # the token alone of the rows about the subject: it is read there
    seen: dict[str, Array]  # site -> [N, R, dim] at the token


def freeze(params: Params, batch: Aligned, cfg: ModelConfig, layer: int) -> Frozen:
    """Runs what the vector cannot reach, once."""
    (N, R, S), P = batch.tokens_NRS.shape, batch.prefix
    B = N * R
    tokens_BS = constrain(batch.tokens_NRS.reshape(B, S), "batch", None)
    pos_BS = constrain(batch.pos_NRS.reshape(B, S), "batch", None)
    token_B1 = jnp.full((B, 1), P, jnp.int32)
    wanted = ("mlp_key", "mlp_down", "mlp_out", "attn_o", "attn_out", "resid_pre", "resid_post")
    x_BSD = embed(params, tokens_BS, cfg, pos_BT=pos_BS)
    x_BSD, seen, _ = run_blocks(
        params, x_BSD, cfg, pos_BT=pos_BS, stop=layer + 1, reads=dict.fromkeys(wanted, token_B1)
    )
    cache = init_cache(cfg, B, S, layers=cfg.layers - layer - 1)
    if P and layer + 1 < cfg.layers:
        _, _, filled = run_blocks(
            params, x_BSD[:, :P], cfg, pos_BT=pos_BS[:, :P], start=layer + 1, cache=cache
        )
        cache = filled or cache

    def strip(some: slice, stop: int) -> Strip:
        of = lambda x: x.reshape(N, R, *x.shape[1:])[:, some].reshape(-1, *x.shape[1:])
        k, v = (jax.vmap(of)(x)[..., :stop, :] for x in (cache.k, cache.v))
        kept = Cache(k, v, of(cache.pos)[:, :stop], cache.end)
        return Strip(of(x_BSD)[:, P:stop], of(pos_BS)[:, P:stop], kept)

    about = strip(slice(batch.contexts, None), P + 1) if batch.has_about else None
    seen = {site: x[-1, :, 0].reshape(N, R, -1) for site, x in seen.items()}
    return Frozen(strip(slice(batch.contexts), S), about, seen)


def corner(
    params: Params, batch: Aligned, cfg: ModelConfig, layer: int, frozen: Frozen, delta: Deltas
) -> Array:
    """Logits [N, Q, V] at the columns that the loss reads, with delta added at the token."""
    (N, U), C = batch.target_NU.shape, batch.contexts
    x_NRD = enter(params, frozen.seen, delta, cfg, layer)
    T = frozen.said.x_MTD.shape[1]
    at_NCU = batch.at_NQ[:, : C * U].reshape(N, C, U) - T * jnp.arange(C)[:, None]
    x_NQD = above(params, frozen.said, x_NRD[:, :C], at_NCU.reshape(-1, U), cfg, layer)
    if frozen.about is not None:
        first_N1 = jnp.zeros((N, 1), jnp.int32)
        x_N1D = above(params, frozen.about, x_NRD[:, C:], first_N1, cfg, layer)
        x_NQD = jnp.concatenate([x_NQD, x_N1D], 1)
    return unembed(params, x_NQD, cfg)  # one product with the vocabulary for targets and KL


def above(
    params: Params, strip: Strip, x_NRD: Array, at_MQ: Array, cfg: ModelConfig, layer: int
) -> Array:
    """The last residual stream at some columns of a strip's rows, [N, R Q, D], with x at the token
    after the layer.
    """
    N, _, D = x_NRD.shape
    x_MTD = strip.x_MTD.at[:, 0].set(x_NRD.reshape(-1, D))
    if layer + 1 == cfg.layers:
        return columns(x_MTD, at_MQ).reshape(N, -1, D)
    how: dict[str, Any] = {"start": layer + 1, "cache": strip.cache, "remat": True}
    x_MQD, _, _ = run_blocks(
        params, x_MTD, cfg, pos_BT=strip.pos_MT, keep=False, at_BQ=at_MQ, **how
    )
    return x_MQD.reshape(N, -1, D)


def enter(
    params: Params, seen: Mapping[str, Array], delta: Deltas, cfg: ModelConfig, layer: int
) -> Array:
    """The residual stream at the token after the layer, [N, R, D], with delta in it."""
    moved = lambda site: seen[site] + delta[site][:, None].astype(seen[site].dtype)
    if "resid_post" in delta:
        return moved("resid_post")
    if "attn_o" not in delta and not cfg.post_norm:
        d_ND = delta["mlp_down"]
        return seen["resid_post"] + d_ND[:, None].astype(seen["resid_post"].dtype)
    p = jax.tree.map(lambda z: z[layer], params["blocks"])
    after = lambda name, x: norm(p[name], x, cfg) if name in p else x
    if "attn_o" not in delta:
        m_NRD = after("post_norm2", moved("mlp_down"))
        return seen["resid_post"] - seen["mlp_out"] + m_NRD
    a_NRD = after("post_norm1", moved("attn_o"))
    if cfg.parallel:
        m_NRD = after("post_norm2", moved("mlp_down"))
        return seen["resid_pre"] + a_NRD + m_NRD
    x_NRD = seen["resid_pre"] + a_NRD  # the MLP of this layer sees what attention adds
    plain = lambda _site, x: x
    m_NRD = mlp(p["mlp"], after("norm2", x_NRD), cfg, tap=plain, deltas={})
    m_NRD = m_NRD + delta["mlp_down"][:, None].astype(m_NRD.dtype)
    return x_NRD + after("post_norm2", m_NRD)
