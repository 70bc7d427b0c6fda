"""The parts of a block as functions of arrays. B batch, T query, S key, N heads, K kv heads, G = N
/ K, H head dim.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array
from jaxedit.models.attention import attend
from jaxedit.models.config import ModelConfig, Rope, inverse_frequencies

ACTS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
Tap = Callable[[str, Array], Array]


def linear(p: Mapping[str, Array], x_BTI: Array, deltas: Iterable[Any] = ()) -> Array:
    """The only place where a weight matrix is used: x @ (W + deltas) + b."""
    if "wt" in p:  # as `turn` makes it
        y_BTO = times_turned(x_BTI, p["wt"].astype(x_BTI.dtype))
    else:
        # as a product of two matrices: XLA's CPU copies less in the gradient of that
        B, T, I = x_BTI.shape
        y_BTO = (x_BTI.reshape(B * T, I) @ p["w"].astype(x_BTI.dtype)).reshape(B, T, -1)
    if "b" in p:
        y_BTO = y_BTO + p["b"].astype(x_BTI.dtype)
    for delta in deltas:
        y_BTO = y_BTO + delta(x_BTI)
    return y_BTO


def times_turned(x_BTI: Array, wt_OI: Array, dtype: Any = None) -> Array:
    """x @ wtᵀ. XLA's CPU products of few rows are fastest with the rows last in the result."""
    if jax.default_backend() == "cpu" and x_BTI.shape[0] * x_BTI.shape[1] <= 256:
        y_OBT = jnp.einsum("bti,oi->obt", x_BTI, wt_OI, preferred_element_type=dtype)
        return y_OBT.transpose(1, 2, 0)
    B, T, I = x_BTI.shape
    y_MO = jnp.einsum("mi,oi->mo", x_BTI.reshape(B * T, I), wt_OI, preferred_element_type=dtype)
    return y_MO.reshape(B, T, -1)


def turn(p: Any) -> Any:
    """A layer with its matrices as "wt" [O, I], which `linear` takes too; see `times_turned`."""
    if not isinstance(p, dict):
        return p
    out = {k: turn(v) for k, v in p.items()}
    if "w" in out and out["w"].ndim == 2:
        out["wt"] = out.pop("w").T
    return out


def columns(x_BTD: Array, at_BQ: Array) -> Array:
    """x at some columns of every row, [B, Q, D]."""
    return jnp.take_along_axis(x_BTD, at_BQ[..., None], 1)


def norm(p: Mapping[str, Array], x: Array, cfg: ModelConfig) -> Array:
    """LayerNorm or RMSNorm over the last axis, in float32."""
    y = x.astype(jnp.float32)
    if cfg.norm == "layer":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + cfg.eps)
    w = p["w"].astype(jnp.float32)
    y = y * (1 + w if cfg.norm == "rms1p" else w)
    return (y + p["b"].astype(jnp.float32) if "b" in p else y).astype(x.dtype)


def rotations(ropes: tuple[Rope, ...], pos_BT: Array, dim: int) -> Array:
    """sin and cos of every kind of RoPE in a model, [kinds, 2, B, T, dim / 2].

    Where the frequencies depend on the length (dynamic, longrope), it is the row's own: what a row
    of a batch computes does not depend on its neighbours.
    """
    length_B = pos_BT.max(1) + 1

    def one(rope: Rope) -> Array:
        inv = jnp.asarray(inverse_frequencies(rope, dim))
        if rope.kind == "longrope":
            long = jnp.asarray(inverse_frequencies(rope, dim, long=True))
            inv = jnp.where((length_B > rope.original_len)[:, None, None], long, inv)
        elif rope.kind == "dynamic":
            stretch_B = rope.factor * jnp.maximum(length_B / rope.original_len, 1) - (
                rope.factor - 1
            )
            theta_B = rope.theta * stretch_B ** (dim / (dim - 2))
            inv = theta_B[:, None, None] ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
        angle_BTh = pos_BT[..., None].astype(jnp.float32) * inv
        return jnp.stack([jnp.sin(angle_BTh), jnp.cos(angle_BTh)]) * rope.attention_factor

    return jnp.stack([one(r) for r in ropes])


def rotate(x_BTNH: Array, sincos: Array, cfg: ModelConfig) -> Array:
    """Turns the first rotary_dim numbers of each head by the position's angles; sincos [2, B, T,
    h].
    """
    r = cfg.rotary_dim
    turned, rest = x_BTNH[..., :r].astype(jnp.float32), x_BTNH[..., r:]
    sin, cos = sincos[0][:, :, None], sincos[1][:, :, None]
    if cfg.rope_interleaved:
        x1, x2 = turned[..., 0::2], turned[..., 1::2]
    else:
        x1, x2 = turned[..., : r // 2], turned[..., r // 2 :]
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    if cfg.rope_interleaved:
        turned = jnp.stack([y1, y2], -1).reshape(turned.shape)
    else:
        turned = jnp.concatenate([y1, y2], -1)
    turned = turned.astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


def softcap(x: Array, cap: float) -> Array:
    return cap * jnp.tanh(x / cap) if cap else x


def attention(
    p: Mapping[str, Any],
    x_BTD: Array,
    cfg: ModelConfig,
    *,
    store: Callable[[Array, Array], tuple[Array, Array]],
    pos_BT: Array,
    pos_BS: Array,
    window: Array | None,
    sincos: Array | None,
    plain: bool,
    tap: Tap,
    deltas: Mapping[str, Any],
    at_BQ: Array | None = None,
) -> Array:
    """Self-attention. `store` takes the new keys and values and gives back all that are to be
    attended to. at_BQ: the columns that ask; None: all.
    """
    x_BTD = tap("attn_in", x_BTD)
    asks, pos_BQ = x_BTD, pos_BT
    if at_BQ is not None:
        asks, pos_BQ = columns(x_BTD, at_BQ), jnp.take_along_axis(pos_BT, at_BQ, 1)

    def project(name: str, x_BTD: Array) -> Array:
        y_BTO = tap(f"attn_{name}", linear(p[name], x_BTD, deltas.get(f"attn/{name}", ())))
        weight = p.get(f"{name}_norm")
        heads = (*y_BTO.shape[:2], -1, cfg.head_dim)
        if weight is None:
            return y_BTO.reshape(heads)
        if cfg.qk_norm == "full":
            return norm(weight, y_BTO, cfg).reshape(heads)
        return norm(weight, y_BTO.reshape(heads), cfg)

    q_BTNH, k_BTKH, v_BTKH = project("q", asks), project("k", x_BTD), project("v", x_BTD)
    if sincos is not None:
        mine = sincos if at_BQ is None else jax.vmap(columns, (0, None))(sincos, at_BQ)
        q_BTNH, k_BTKH = rotate(q_BTNH, mine, cfg), rotate(k_BTKH, sincos, cfg)
    k_BKSH, v_BKSH = store(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
    z_BTNH = attend(
        q_BTNH, k_BKSH, v_BKSH, cfg, pos_BT=pos_BQ, pos_BS=pos_BS, window=window, plain=plain
    )
    z_BTO = tap("attn_z", z_BTNH.reshape(*z_BTNH.shape[:2], -1))
    return tap("attn_o", linear(p["o"], z_BTO, deltas.get("attn/o", ())))


def mlp(
    p: Mapping[str, Any], x_BTD: Array, cfg: ModelConfig, *, tap: Tap, deltas: Mapping[str, Any]
) -> Array:
    """key = act(x W_up), or act(x W_gate) * (x W_up) where gated; value = key @ W_down."""
    x_BTD = tap("mlp_in", x_BTD)
    act = ACTS[cfg.act]
    up_BTF = linear(p["up"], x_BTD, deltas.get("mlp/up", ()))
    if "gate" in p:
        gate_BTF = tap("mlp_pre", linear(p["gate"], x_BTD, deltas.get("mlp/gate", ())))
        key_BTF = act(gate_BTF) * tap("mlp_up", up_BTF)
    else:
        key_BTF = act(tap("mlp_pre", up_BTF))
    key_BTF = tap("mlp_key", key_BTF)
    return tap("mlp_down", linear(p["down"], key_BTF, deltas.get("mlp/down", ())))
