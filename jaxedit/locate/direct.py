"""What vectors add to an answer directly: the parts of attribution.

The column that predicts an answer is the last one; the final norm's scale is held at what it is in
the run, and biases are left out, so that what is added to the residual stream is added to logits.
A norm after a sublayer multiplies by what it does in the run.

Shapes as in locate.attribution.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Params, Write
from jaxedit.models.config import ModelConfig
from jaxedit.models.layers import norm
from jaxedit.models.transformer import forward
from jaxedit.models.vocabulary import head

ROWS = 64  # of logits at once
f32 = jnp.float32


@struct.dataclass
class Run:
    """What attribution needs of a forward pass."""

    act: Array  # [L, B, S, F] at mlp_key
    pre: Array  # [L, B, S, D] residual stream before each layer
    mid: Array  # [L, B, D] with attention's output, at the last column
    scale: Array  # [B] of the final norm
    attn_post: Array  # [L, B, D] by which a post-norm multiplies, at the last column
    mlp_post: Array  # [L, B, D]
    mlp_post_S: Array  # [L, B, S, D] at every column
    attn_out: Array  # [L, B, S, D]
    mlp_out: Array  # [L, B, D] at the last column
    value: Array  # [L, B, S, K, H]
    answer: Array  # [B]


def observe(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array | None, cfg: ModelConfig,
    writes: dict,
) -> Run:  # fmt: skip
    B, S = tokens_BS.shape
    last_B1 = jnp.full((B, 1), S - 1)
    names = ("mlp_key", "resid_pre", "attn_out", "attn_v", "attn_o", "mlp_out", "mlp_down")
    out = forward(
        params, tokens_BS, cfg, pos_BT=pos_BS, writes=writes, logits_at=last_B1,
        reads=dict.fromkeys(names) | {"resid_post": last_B1},
    )  # fmt: skip
    seen = out.reads
    last = seen["resid_post"][-1, :, 0].astype(f32)
    centred = last - last.mean(-1, keepdims=True) if cfg.norm == "layer" else last
    mlp_post = multiplier(params["blocks"].get("post_norm2"), seen["mlp_down"], cfg)
    return Run(
        act=seen["mlp_key"],
        pre=seen["resid_pre"],
        mid=(seen["resid_pre"] + seen["attn_out"])[:, :, -1],
        scale=jax.lax.rsqrt(jnp.square(centred).mean(-1) + cfg.eps),
        attn_post=multiplier(params["blocks"].get("post_norm1"), seen["attn_o"][:, :, -1], cfg),
        mlp_post=mlp_post[:, :, -1],
        mlp_post_S=mlp_post,
        attn_out=seen["attn_out"],
        mlp_out=seen["mlp_out"][:, :, -1],
        value=seen["attn_v"].reshape(cfg.layers, B, S, cfg.kv_heads, cfg.head_dim),
        answer=out.logits[:, 0].argmax(-1) if answer_B is None else answer_B,
    )


def multiplier(p: Mapping[str, Array] | None, x: Array, cfg: ModelConfig) -> Array:
    """What a post-norm multiplies its input by, entry by entry; ones where there is none."""
    if p is None:
        return jnp.ones(x.shape, f32)
    y = jax.vmap(lambda p, x: norm(p, x, cfg))(p, x.astype(f32))
    return jnp.where(x == 0, 0, y / jnp.where(x == 0, 1, x.astype(f32)))


def gain(p: Mapping[str, Array], cfg: ModelConfig) -> Array:
    """What a norm multiplies by."""
    w = p["w"].astype(f32)
    return 1 + w if cfg.norm == "rms1p" else w


def logp(params: Params, x: Array, scale: Array, answer: Array, cfg: ModelConfig) -> Array:
    """log p(answer | x) of one vector [D], the final norm's scale held."""
    p = params["norm"]
    x = x - x.mean() if cfg.norm == "layer" else x
    x = x * scale * gain(p, cfg)
    plain = params
    if "head" in params:
        plain = params | {"head": {k: w for k, w in params["head"].items() if k != "b"}}
    return jax.nn.log_softmax(head(plain, x[None, None], cfg)[0, 0])[answer]


def slopes(params: Params, x_LBD: Array, run: Run, cfg: ModelConfig) -> Array:
    """The slope of log p(answer | x) at every layer's x."""
    one = jax.grad(lambda x, scale, answer: logp(params, x, scale, answer, cfg))
    row = jax.vmap(one)  # over B
    return jax.lax.map(lambda x_BD: row(x_BD, run.scale, run.answer), x_LBD.astype(f32))


def increases(
    params: Params, x_LBD: Array, v_BCD: Array, layer_BC: Array, run: Run, cfg: ModelConfig
) -> Array:
    """log p(answer | x + v) - log p(answer | x), x that of the vector's layer, [B, C]."""
    B, C, D = v_BCD.shape
    row_BC = jnp.broadcast_to(jnp.arange(B)[:, None], (B, C))
    at = partial(logp, params, cfg=cfg)
    base_LB = jax.lax.map(lambda x_BD: jax.vmap(at)(x_BD, run.scale, run.answer), x_LBD.astype(f32))

    def one(z: tuple[Array, Array, Array]) -> Array:
        v_D, layer, b = z
        with_v = at(x_LBD[layer, b].astype(f32) + v_D, run.scale[b], run.answer[b])
        return with_v - base_LB[layer, b]

    flat = (v_BCD.reshape(-1, D), layer_BC.reshape(-1), row_BC.reshape(-1))
    return jax.lax.map(one, flat, batch_size=min(ROWS, B * C)).reshape(B, C)


def patterns(
    params: Params, tokens_BS: Array, pos_BS: Array, cfg: ModelConfig, attn_out_LBSD: Array
) -> Array:
    """The weights with which the last column's heads attend, [L, B, N, S], of all layers in one
    run: with unit vectors for values, what a head reads is its weights; what attention adds is
    held, so that the residual stream stays that of the run.
    """
    B, S = tokens_BS.shape
    L, N, K, H = cfg.layers, cfg.heads, cfg.kv_heads, cfg.head_dim
    last_B1, always = jnp.full((B, 1), S - 1), jnp.ones((L, 1, 1), bool)
    found = []
    for begin in range(0, S, H):
        unit_SH = jnp.eye(S, H, -begin)
        value = jnp.broadcast_to(jnp.tile(unit_SH, (1, K)), (L, 1, S, K * H))
        writes = {"attn_v": Write(always, value), "attn_out": Write(always, attn_out_LBSD)}
        z_LBNH = forward(
            params, tokens_BS, cfg, pos_BT=pos_BS, writes=writes, reads={"attn_z": last_B1},
            logits_at=last_B1,
        ).reads["attn_z"].reshape(L, B, N, H)  # fmt: skip
        found.append(z_LBNH[..., : min(H, S - begin)])
    return jnp.concatenate(found, -1).astype(f32)


def subvalues(value_LBSKH: Array, weight_LBNS: Array, cfg: ModelConfig) -> Array:
    """What each source column brings to each number of each head, [L, B, N, H, S]."""
    value_LBNHS = jnp.repeat(value_LBSKH.astype(f32), cfg.heads // cfg.kv_heads, 3).transpose(
        0, 1, 3, 4, 2
    )
    return value_LBNHS * weight_LBNS[:, :, :, None]
