"""Neuron-level attribution (Yu and Ananiadou, 2024): what a vector adds to an answer's probability.

A vector v that is added to the residual stream x raises the log-probability of the answer w by

    Imp(v) = log p(w | x + v) - log p(w | x),     p(· | x) = softmax(E (x / s · g))

at the column that predicts w, with the final norm's scale s held at what it is in the run: the
direct effect, through no later layer. Vectors are what layers, heads, and neurons add:

    neuron of an MLP      m_f W_down[f]                                  x: before the MLP
    neuron of attention   a[head, source] v[source, head, d] W_o[head, d]    x: before the layer

Exact values cost a row of logits each. The slope of log p at x times v costs next to nothing and
ranks almost as well, so the exact ones are of those that it ranks highest.

Query neurons are the MLPs' neurons of lower layers that switch attention neurons on: the share that
what they add at the source column has in the neuron's value there.

Shapes: B rows, S columns, L layers, F neurons, N heads, K kv heads, H head dim, D embed, V vocab,
C candidates.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Params, Scale, Writes, chains
from jaxedit.locate.direct import gain, increases, observe, patterns, slopes, subvalues
from jaxedit.models.config import ModelConfig
from jaxedit.sharding import on_mesh_of

EXACT = 300  # neurons of a row whose importance is exact
f32 = jnp.float32


@struct.dataclass
class Heads:
    """The attention neurons that add most."""

    score: Array  # [B, C], the highest first
    layer: Array
    head: Array
    dim: Array  # in the head
    source: Array  # column


def importance(
    params: Params,
    tokens_BS: Array,
    pos_BS: Array,
    answer_B: Array | None,
    cfg: ModelConfig,
    *,
    exact: int = EXACT,
    writes: Writes | None = None,
) -> Array:
    """How much each neuron of the MLPs adds to the answer's log-probability, [B, L, F]: exact for
    the `exact` that are highest to first order, to first order for the others.

    answer_B None: what the model says. writes: the run is one with them (see `silence`).
    """
    with on_mesh_of(params):
        return _importance(params, tokens_BS, pos_BS, answer_B, cfg, exact, chains(writes))


def difference(
    params: Params,
    tokens_BS: Array,
    pos_BS: Array,
    answer_B: Array | None,
    cfg: ModelConfig,
    *,
    other: Params | None = None,
    writes: Writes | None = None,
    exact: int = EXACT,
) -> Array:
    """What of each neuron's importance is gone in another run of the same answer, [B, L, F]: one
    with writes (`silence`: comparative neuron analysis), or of other weights, as after an edit.

    answer_B None: what the first run says, in both.
    """
    if (other is None) == (writes is None):
        raise ValueError("a difference is to one other run: give other (weights), or writes")
    if answer_B is None:
        answer_B = observe(params, tokens_BS, pos_BS, None, cfg, {}).answer
    given = (tokens_BS, pos_BS, answer_B, cfg)
    changed = importance(params if other is None else other, *given, exact=exact, writes=writes)
    return importance(params, *given, exact=exact) - changed


@partial(jax.jit, static_argnames=("cfg", "exact"))
def _importance(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array | None, cfg: ModelConfig,
    exact: int, writes: dict,
) -> Array:  # fmt: skip
    run = observe(params, tokens_BS, pos_BS, answer_B, cfg, writes)
    act_LBF, w_LFD = run.act[:, :, -1].astype(f32), params["blocks"]["mlp"]["down"]["w"]
    slope_LBD = slopes(params, run.mid, run, cfg)
    first_LBF = act_LBF * jnp.einsum("lbd,lfd->lbf", run.mlp_post * slope_LBD, w_LFD.astype(f32))
    first_BLF = first_LBF.swapaxes(0, 1)
    if not exact:
        return first_BLF
    B, L, F = first_BLF.shape
    flat_BM = first_BLF.reshape(B, -1)
    _, at_BC = jax.lax.top_k(flat_BM, min(exact, L * F))
    layer_BC, unit_BC = at_BC // F, at_BC % F
    rows_B1 = jnp.arange(B)[:, None]
    v_BCD = act_LBF[layer_BC, rows_B1, unit_BC][..., None] * w_LFD[layer_BC, unit_BC].astype(f32)
    v_BCD = v_BCD * run.mlp_post[layer_BC, rows_B1]
    found_BC = increases(params, run.mid, v_BCD, layer_BC, run, cfg)
    return flat_BM.at[rows_B1, at_BC].set(found_BC).reshape(B, L, F)


@partial(jax.jit, static_argnames=("cfg", "most"))
def attention_neurons(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array | None, cfg: ModelConfig,
    most: int = EXACT,
) -> Heads:  # fmt: skip
    """The attention neurons that add most, a layer, head, number in it and source column each:
    those that are highest to first order, with their exact importance.
    """
    run = observe(params, tokens_BS, pos_BS, answer_B, cfg, {})
    N, H = cfg.heads, cfg.head_dim
    weight_LBNS = patterns(params, tokens_BS, pos_BS, cfg, run.attn_out)
    w_LID = params["blocks"]["attn"]["o"]["w"].astype(f32)
    slope_LBD = run.attn_post * slopes(params, run.pre[:, :, -1], run, cfg)
    pull_LBNH = jnp.einsum("lbd,lid->lbi", slope_LBD, w_LID).reshape(*slope_LBD.shape[:2], N, H)
    sub_LBNHS = subvalues(run.value, weight_LBNS, cfg)
    L, B, _, _, S = sub_LBNHS.shape
    first_BM = (sub_LBNHS * pull_LBNH[..., None]).swapaxes(0, 1).reshape(B, -1)
    _, at_BC = jax.lax.top_k(first_BM, min(most, first_BM.shape[1]))
    layer_BC, head_BC, dim_BC, source_BC = jnp.unravel_index(at_BC, (L, N, H, S))
    rows_B1 = jnp.arange(B)[:, None]
    size_BC = sub_LBNHS[layer_BC, rows_B1, head_BC, dim_BC, source_BC]
    v_BCD = size_BC[..., None] * w_LID[layer_BC, head_BC * H + dim_BC]
    v_BCD = v_BCD * run.attn_post[layer_BC, rows_B1]
    score_BC = increases(params, run.pre[:, :, -1], v_BCD, layer_BC, run, cfg)
    order_BC = jnp.argsort(-score_BC, -1)
    take = lambda x_BC: jnp.take_along_axis(x_BC, order_BC, 1)
    return Heads(*map(take, (score_BC, layer_BC, head_BC, dim_BC, source_BC)))


@partial(jax.jit, static_argnames="cfg")
def parts(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array | None, cfg: ModelConfig
) -> dict[str, Array]:
    """What whole layers and heads add: {"attn": [B, L], "mlp": [B, L], "heads": [B, L, N]}."""
    run = observe(params, tokens_BS, pos_BS, answer_B, cfg, {})
    N, H = cfg.heads, cfg.head_dim
    weight_LBNS = patterns(params, tokens_BS, pos_BS, cfg, run.attn_out)
    z_LBNH = subvalues(run.value, weight_LBNS, cfg).sum(-1)
    w_LNHD = params["blocks"]["attn"]["o"]["w"].astype(f32).reshape(cfg.layers, N, H, cfg.embed)
    head_LBND = jnp.einsum("lbnh,lnhd->lbnd", z_LBNH, w_LNHD) * run.attn_post[:, :, None]
    L, B = head_LBND.shape[:2]
    layer_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    pre_LBD, one = run.pre[:, :, -1], partial(increases, params, run=run, cfg=cfg)
    whole = lambda x_LBD: x_LBD.swapaxes(0, 1).astype(f32)
    heads_BM = one(pre_LBD, whole(head_LBND).reshape(B, L * N, -1), jnp.repeat(layer_BL, N, 1))
    return {
        "attn": one(pre_LBD, whole(run.attn_out[:, :, -1]), layer_BL),
        "mlp": one(run.mid, whole(run.mlp_out), layer_BL),
        "heads": heads_BM.reshape(B, L, N),
    }


@partial(jax.jit, static_argnames=("cfg", "top"))
def query_neurons(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array | None, cfg: ModelConfig,
    top: int = 30,
) -> Array:  # fmt: skip
    """How much neurons of the MLPs feed the `top` attention neurons that add most, [B, L, F].

    An attention neuron's key is its column of W_v under the layer's norm; a neuron's share in it is
    (m_f W_down[f] · key) / (x · key) at the source column, and counts times the importance.
    """
    run = observe(params, tokens_BS, pos_BS, answer_B, cfg, {})
    found = attention_neurons(params, tokens_BS, pos_BS, answer_B, cfg, max(top, EXACT))
    group = cfg.heads // cfg.kv_heads
    w_LFD = params["blocks"]["mlp"]["down"]["w"].astype(f32)
    v_LDK = params["blocks"]["attn"]["v"]["w"].astype(f32)
    gain_LD = jnp.ones((cfg.layers, cfg.embed))
    if "norm1" in params["blocks"]:
        gain_LD = gain(params["blocks"]["norm1"], cfg)

    def row(b: Array, one: Heads) -> Array:
        def add(sum_LF: Array, n: Heads) -> tuple[Array, None]:
            column = (n.head // group) * cfg.head_dim + n.dim
            key_D = gain_LD[n.layer] * v_LDK[n.layer, :, column]
            key_D = key_D - key_D.mean() if cfg.norm == "layer" else key_D
            whole = run.pre[n.layer, b, n.source].astype(f32) @ key_D
            post_LD = run.mlp_post_S[:, b, n.source]
            feed_LF = run.act[:, b, n.source].astype(f32) * jnp.einsum(
                "lfd,ld->lf", w_LFD, post_LD * key_D
            )
            below_L1 = (jnp.arange(cfg.layers) < n.layer)[:, None]
            return sum_LF + jnp.where(below_L1, n.score * feed_LF / whole, 0), None

        first = jax.tree.map(lambda x: x[:top], one)
        return jax.lax.scan(add, jnp.zeros((cfg.layers, cfg.mlp)), first)[0]

    return jax.lax.map(lambda z: row(*z), (jnp.arange(len(tokens_BS)), found))


def silence(cfg: ModelConfig, layer: int, heads: Mapping[int, Any] | list[int]) -> dict[str, Scale]:
    """Writes that take heads of a layer out: for the difference of importance between two runs,
    with and without them (comparative neuron analysis).
    """
    if not 0 <= layer < cfg.layers or any(not 0 <= n < cfg.heads for n in heads):
        raise ValueError(f"layer {layer}, heads {list(heads)}: of {cfg.layers}, {cfg.heads} heads")
    factor_N = jnp.ones(cfg.heads).at[jnp.asarray(list(heads), jnp.int32)].set(0)
    factor = jnp.repeat(factor_N, cfg.head_dim)[None, None, None]
    return {"attn_z": Scale(jnp.ones((1, 1, 1), bool), factor, jnp.array([layer]))}
