"""What a vector of the residual stream says: its ranks of tokens, and those of every layer (the
logit lens).

What a vector passes on its way into words:

none    the unembedding alone. Only the scale of the vector is lost.
scale   the final norm's own scale (a LayerNorm takes the mean off, too), without its bias: what
        adding the vector does to the logits of a long residual stream.
final   the final norm with all its parts, as if the vector were the residual stream.

Ranks begin at 1; a token's rank is one more than the tokens with a higher score.

Shapes: B rows, K vectors of each, C tokens that are looked for, L layers, D embed, V vocab.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Params
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.models.vocabulary import unembed
from jaxedit.sharding import on_mesh_of

Through = Literal["none", "scale", "final"]
KS = (1, 5, 10, 50, 100)


def ranks(
    params: Params,
    x_BKD: Array,
    token_BC: Array | np.ndarray,
    cfg: ModelConfig,
    through: Through = "none",
) -> Array:
    """The rank of each token among all that each vector says, [B, K, C]; 0 of a token -1."""
    with on_mesh_of(params), jax.default_matmul_precision("highest"):
        return _ranks(params, x_BKD, token_BC, cfg, through)


@partial(jax.jit, static_argnames=("cfg", "through"))
def _ranks(
    params: Params, x_BKD: Array, token_BC: Array, cfg: ModelConfig, through: Through
) -> Array:
    logits_BKV = say(params, x_BKD, cfg, through)

    def one(token_B: Array) -> Array:
        at_BK1 = jnp.maximum(token_B, 0)[:, None, None]
        own_BK1 = jnp.take_along_axis(logits_BKV, at_BK1, axis=-1)
        rank_BK = 1 + (logits_BKV > own_BK1).sum(-1)
        return jnp.where(token_B[:, None] >= 0, rank_BK, 0)

    return jnp.stack([one(token_BC[:, c]) for c in range(token_BC.shape[1])], -1)


def say(params: Params, x_BKD: Array, cfg: ModelConfig, through: Through) -> Array:
    """Scores of all tokens, [B, K, V]."""
    if through == "final":
        return unembed(params, x_BKD, cfg)
    without_bias = lambda p: {k: x for k, x in p.items() if k != "b"}
    plain = dict(params) | {"norm": without_bias(params["norm"])}
    if "head" in params:
        plain["head"] = without_bias(params["head"])
    if through == "none":  # a norm that only divides by a number keeps the order of the scores
        plain["norm"], cfg = {"w": jnp.ones(cfg.embed)}, cfg.replace(norm="rms")
    return unembed(plain, x_BKD, cfg)


class Lens(NamedTuple):
    """What the last column's residual stream says after every layer, as if after the last."""

    rank: Array  # [B, L] the answer's
    p: Array  # [B, L]
    first: Array  # [B, L, K] the tokens that are said first


@partial(jax.jit, static_argnames=("cfg", "top"))
def lens(
    params: Params, tokens_BS: Array, pos_BS: Array, answer_B: Array, cfg: ModelConfig,
    top: int = 3,
) -> Lens:  # fmt: skip
    """The logit lens, rows padded on the left."""
    last_B1 = jnp.full((len(tokens_BS), 1), tokens_BS.shape[1] - 1)
    out = forward(
        params, tokens_BS, cfg, pos_BT=pos_BS, reads={"resid_post": last_B1}, logits_at=last_B1
    )
    x_BLD = out.reads["resid_post"][:, :, 0].swapaxes(0, 1)
    rank_BL = _ranks(params, x_BLD, answer_B[:, None], cfg, "final")[..., 0]
    p_BLV = jax.nn.softmax(unembed(params, x_BLD, cfg))
    p_BL = jnp.take_along_axis(p_BLV, answer_B[:, None, None], -1)[..., 0]
    return Lens(rank_BL, p_BL, jax.lax.top_k(p_BLV, top)[1])


def hits(rank_NL: Array | np.ndarray, ks: Sequence[int] = KS) -> dict[int, Any]:
    """Hit@k: the share of N ranks that are among the k highest, at every layer."""
    rank = np.asarray(rank_NL)
    return {k: (rank <= k).mean(0) for k in ks}
