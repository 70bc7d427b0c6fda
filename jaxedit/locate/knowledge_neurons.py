"""Knowledge neurons (Dai et al., 2022): how much every neuron contributes to an answer.

With activations a of a layer at the column that predicts a token, the score of neuron f is the
integral of the slope of the token's probability p while all of the layer's activations grow from
zero to what they are, a sum at m points α_j:

    score_f = a_f / m · Σ_j  ∂p(α_j a) / ∂a_f

The scores of a layer add up to p(a) - p(0): what the layer's neurons do together.

Only that one column is run again, with a cache of those before it, from the layers where it differs
on; layers and points are rows of one batch.

Shapes: B rows, S columns, L layers, F neurons, V vocab, J pairs of a layer and a point.
"""

import itertools
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Cache, Params, Write
from jaxedit.locate.neurons import SITE
from jaxedit.models.cache import init_cache
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward, run_blocks
from jaxedit.models.vocabulary import embed, unembed
from jaxedit.sharding import constrain, on_mesh_of

Site = Literal["mlp_key", "mlp_pre"]
Points = Literal["midpoint", "right", "left", "linspace"]
AT_ONCE = 128  # rows that are differentiated together: more gain nothing


def attribute(
    params: Params,
    tokens_BS: Array,
    pos_BS: Array,
    answer_B: Array | None,
    cfg: ModelConfig,
    *,
    site: Site = SITE,
    points: Points = "midpoint",
    steps: int = 20,
    groups: int = 0,
) -> tuple[Array, Array]:
    """The score of every neuron [B, L, F] for the answer that follows a row's last column, and the
    answer: the token given, or the most likely one. Rows are padded on the left (pos -1).

    points: α_j in the middle of m steps (by far the least error), at their ends ("right", the
    paper), at their beginnings ("left", the authors' code), or m points from 0 to 1 ("linspace",
    EleutherAI's code). site: where a neuron is; EleutherAI's code takes it before the nonlinearity.
    groups: of layers, each one program that leaves out the layers below it (0: of six).
    """
    if site not in get_args(Site) or points not in get_args(Points) or steps < 1:
        raise ValueError(
            f"site {site!r}, points {points!r}, steps {steps}: {', '.join(get_args(Site))}; "
            f"{', '.join(get_args(Points))}; at least 1"
        )
    with on_mesh_of(params):
        return _attribute(params, tokens_BS, pos_BS, answer_B, cfg, site, points, steps, groups)


@partial(jax.jit, static_argnames=("cfg", "site", "points", "steps", "groups"))
def _attribute(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array | None, cfg: ModelConfig,
    site: Site, points: Points, steps: int, groups: int,
) -> tuple[Array, Array]:  # fmt: skip
    tokens_BS, pos_BS = constrain(tokens_BS, "batch", None), constrain(pos_BS, "batch", None)
    cfg = cfg.replace(attention="einsum")  # one column attends
    cache, pos_B1 = remember(params, tokens_BS, pos_BS, cfg), pos_BS[:, -1:]
    plain = forward(params, tokens_BS[:, -1:], cfg, pos_BT=pos_B1, cache=cache,
                    reads={site: None, "resid_pre": None})  # fmt: skip
    act_LBF = plain.reads[site][:, :, 0].astype(jnp.float32)
    answer_B = plain.logits[:, 0].argmax(-1) if answer_B is None else answer_B

    def slope(start: int, layer: Array, alpha: Array) -> Array:
        rest = Cache(cache.k[start:], cache.v[start:], cache.pos, cache.end)

        def likely(x_BF: Array) -> Array:
            write = Write(jnp.ones((1, 1, 1), bool), x_BF[None, :, None], layer[None])
            x_B1D, _, _ = run_blocks(
                params, plain.reads["resid_pre"][start], cfg, start=start, pos_BT=pos_B1,
                cache=rest, keep=False, writes={site: write},
            )  # fmt: skip
            p_BV = jax.nn.softmax(unembed(params, x_B1D, cfg)[:, 0])
            return jnp.take_along_axis(p_BV, answer_B[:, None], 1).sum()

        return jax.grad(likely)(alpha * act_LBF[layer])

    def group(start: int, stop: int) -> Array:
        alpha_m = places(points, steps)
        J = (stop - start) * steps
        c = max(k for k in range(1, J + 1) if J % k == 0 and k <= max(AT_ONCE // len(pos_B1), 1))
        layer_Jc = jnp.repeat(jnp.arange(start, stop), steps).reshape(-1, c)
        alpha_Jc = jnp.tile(alpha_m, stop - start).reshape(-1, c)

        def add(sum_lBF: Array, job: tuple[Array, Array]) -> tuple[Array, None]:
            layer_c, alpha_c = job
            slope_cBF = jax.vmap(partial(slope, start))(layer_c, alpha_c)
            return sum_lBF.at[layer_c - start].add(slope_cBF), None

        return jax.lax.scan(add, jnp.zeros_like(act_LBF[start:stop]), (layer_Jc, alpha_Jc))[0]

    n = groups or max(cfg.layers // 6, 1)
    ends = sorted({round(cfg.layers * i / n) for i in range(n + 1)})
    sum_LBF = jnp.concatenate([group(i, j) for i, j in itertools.pairwise(ends)])
    return (act_LBF * sum_LBF / steps).swapaxes(0, 1), answer_B


def remember(params: Params, tokens_BS: Array, pos_BS: Array, cfg: ModelConfig) -> Cache:
    """A cache of all columns but the last."""
    cache = init_cache(cfg, *tokens_BS.shape)
    if tokens_BS.shape[1] == 1:
        return cache
    pos_BT = pos_BS[:, :-1]
    x_BTD = embed(params, tokens_BS[:, :-1], cfg, pos_BT=pos_BT)
    return run_blocks(params, x_BTD, cfg, pos_BT=pos_BT, cache=cache)[2] or cache


def places(points: Points, steps: int) -> Array:
    """Where the slope is taken, from 0 to 1."""
    if points == "linspace":
        return jnp.linspace(0, 1, steps)
    first = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[points]
    return (jnp.arange(steps, dtype=jnp.float32) + first) / steps


@partial(jax.jit, static_argnames="cfg")
def activations(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array | None, cfg: ModelConfig
) -> Array:
    """What neurons are at the last column, [B, L, F]: the baseline of the authors, which looks at
    no answer.
    """
    last_B1 = jnp.full((len(tokens_BS), 1), tokens_BS.shape[1] - 1)
    out = forward(params, tokens_BS, cfg, pos_BT=pos_BS, reads={SITE: last_B1}, logits_at=last_B1)
    return out.reads[SITE][:, :, 0].astype(jnp.float32).swapaxes(0, 1)
