"""Causal attention over positions: an einsum that does everything, and two fused kernels where they
suffice.

Positions, not columns, decide who sees whom: a key is seen from the same or a later position, if it
is not padding (-1) and not beyond the window. So left and right padding and a partly filled cache
are all the same case.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as tpu

from jaxedit import sharding
from jaxedit.base import Array
from jaxedit.models.config import ModelConfig
from jaxedit.models.products import wide

KERNELS = ("auto", "einsum", "cudnn", "flash")


def attend(
    q_BTNH: Array,
    k_BKSH: Array,
    v_BKSH: Array,
    cfg: ModelConfig,
    *,
    pos_BT: Array,
    pos_BS: Array,
    window: Array | None,
    plain: bool = False,
) -> Array:
    """softmax(q kᵀ · scale) v under the causal mask, [B, T, N, H].

    plain: positions are columns, nothing is cached, and padding is on the right, where nobody reads
    what comes out; a kernel then needs no mask.
    """
    scale = cfg.head_dim**-0.5 if cfg.attn_scale is None else cfg.attn_scale
    k_BKSH, v_BKSH = k_BKSH.astype(q_BTNH.dtype), v_BKSH.astype(q_BTNH.dtype)
    kernel = choose(cfg, q_BTNH.shape, q_BTNH.dtype, pos_BT is pos_BS)
    if kernel == "flash":
        return flash(q_BTNH, k_BKSH, v_BKSH, pos_BT, scale)
    if kernel == "cudnn":
        causal = plain and window is None
        mask = None if causal else visible(pos_BT, pos_BS, window)[:, None]
        k_BSKH, v_BSKH = k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2)
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=mask, is_causal=causal, scale=scale, implementation="cudnn"
        )
    mask_BTS = visible(pos_BT, pos_BS, window)
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    # heads before time: one plain matrix product per row and head, which every backend does well
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    scores = lambda q, k, dtype: jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=dtype)
    s_BKGTS = wide(scores, q_BKGTH, k_BKSH) * scale
    if cfg.attn_softcap:
        s_BKGTS = cfg.attn_softcap * jnp.tanh(s_BKGTS / cfg.attn_softcap)
    w_BKGTS = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], s_BKGTS, -1e30), -1)
    z_BKGTH = jnp.einsum("bkgts,bksh->bkgth", w_BKGTS.astype(v_BKSH.dtype), v_BKSH)
    return z_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def visible(pos_BT: Array, pos_BS: Array, window: Array | None) -> Array:
    """mask [B, T, S]: does a query see a key."""
    gap_BTS = pos_BT[:, :, None] - pos_BS[:, None, :]
    keep_BTS = (gap_BTS >= 0) & (pos_BS >= 0)[:, None]
    return keep_BTS if window is None else keep_BTS & ((window == 0) | (gap_BTS < window))


def choose(cfg: ModelConfig, q_shape: tuple, dtype: jnp.dtype, no_cache: bool) -> str:
    """The kernel for these shapes: what cfg.attention names, or the platform's own where its
    features suffice.

    The fused kernels have no forward-mode derivative and no second derivative: methods that need
    them ask for "einsum". Equal to it within bfloat16's rounding (2e-2 of outputs of size 1).
    """
    if cfg.attention not in KERNELS:
        raise ValueError(f"attention {cfg.attention!r}: one of {', '.join(KERNELS)}")
    if cfg.attention != "auto":
        return cfg.attention
    T, H = q_shape[1], q_shape[3]
    platform = jax.default_backend()
    half = dtype in (jnp.bfloat16, jnp.float16)
    if platform == "gpu" and half and not cfg.attn_softcap and T > 1 and H <= 128 and H % 8 == 0:
        return "cudnn"
    # the kernel works on blocks of 128 and knows neither windows nor a softcap; a cache is ragged
    # on the left
    plain = no_cache and not cfg.attn_softcap and not any(cfg.windows) and T % 128 == 0
    if platform == "tpu" and plain and H % 64 == 0:
        return "flash"
    return "einsum"


def flash(q_BTNH: Array, k_BKTH: Array, v_BKTH: Array, pos_BT: Array, scale: float) -> Array:
    """The TPU's flash kernel. Positions rise along a row, so causal in columns is causal in
    positions.
    """
    N, K = q_BTNH.shape[2], k_BKTH.shape[1]
    wide = lambda x: jnp.repeat(x, N // K, axis=1)
    real_BT = (pos_BT >= 0).astype(jnp.int32)

    def run(q: Array, k: Array, v: Array, real: Array) -> Array:
        return tpu.flash_attention(
            q, k, v, segment_ids=tpu.SegmentIds(real, real), causal=True, sm_scale=scale
        )

    mesh = jax.sharding.get_abstract_mesh()
    args = (q_BTNH.swapaxes(1, 2), wide(k_BKTH), wide(v_BKTH), real_BT)
    if not mesh.empty and mesh.size > 1:  # a Pallas call does not partition itself
        heads = sharding.partition(("batch", "heads", None, None), args[0].shape, mesh.shape)
        rows = sharding.partition(("batch", None), real_BT.shape, mesh.shape)
        run = partial(
            jax.shard_map, in_specs=(heads,) * 3 + (rows,), out_specs=heads, check_vma=False
        )(run)
    return run(*args).swapaxes(1, 2)
