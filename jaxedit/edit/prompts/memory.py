"""What stands before a prompt: texts as tokens, and rows behind them.

Shapes as in data.answers; S tokens of a separator, P tokens of a memory.
"""

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Deltas, Params
from jaxedit.data.answers import Answers
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.sharding import constrain


def memories(tokens_BT: Array, pos_BT: Array, separator_S: Array, bos: int | None) -> Array:
    """Texts and the separator as what stands before a prompt, without the token that begins every
    text: [B, T + S], -1 beyond.
    """
    keep_BT = (pos_BT >= 0) & ~begins(tokens_BT, pos_BT, bos)
    order_BT = jnp.where(keep_BT, pos_BT, tokens_BT.shape[1]).argsort(1)
    sorted_BT = jnp.take_along_axis(tokens_BT, order_BT, 1)
    n_B1, S = keep_BT.sum(1, keepdims=True), separator_S.shape[0]
    text_BP = jnp.pad(sorted_BT, ((0, 0), (0, S)))
    at_BP = jnp.broadcast_to(jnp.arange(text_BP.shape[1]), text_BP.shape)
    ends_BP = jnp.take(separator_S, (at_BP - n_B1).clip(0, max(S - 1, 0))) if S else text_BP
    return jnp.where(at_BP < n_B1, text_BP, jnp.where(at_BP < n_B1 + S, ends_BP, -1))


def begins(tokens_BT: Array, pos_BT: Array, bos: int | None) -> Array:
    """Is it the token that begins every text."""
    return (pos_BT == 0) & (tokens_BT == (-1 if bos is None else bos))


def behind(tokens_BP: Array, rows: Answers, bos: int | None) -> Answers:
    """Rows behind what stands before them; positions say the order, padding may lie between."""
    row_tokens_BT, pos_BT = jnp.asarray(rows.tokens_BT), jnp.asarray(rows.pos_BT)
    first_BT = begins(row_tokens_BT, pos_BT, bos)
    n_B1, P = (tokens_BP >= 0).sum(1, keepdims=True), tokens_BP.shape[1]
    at_BP = jnp.where(tokens_BP >= 0, jnp.arange(P) + first_BT.sum(1, keepdims=True), -1)
    after_BT = jnp.where((pos_BT < 0) | first_BT, pos_BT, pos_BT + n_B1)
    return Answers(
        jnp.concatenate([jnp.maximum(tokens_BP, 0), row_tokens_BT], 1),
        jnp.concatenate([at_BP, after_BT], 1),
        jnp.asarray(rows.at_BU) + P, rows.target_BU, rows.mask_BU,
    )  # fmt: skip


def answered(
    params: Params, rows: Answers, cfg: ModelConfig, deltas: Deltas | None = None
) -> Array:
    """Log-probabilities in the place of the answers' tokens, [B, U, V]."""
    tokens_BT, pos_BT = (constrain(jnp.asarray(x), "batch", None)
                         for x in (rows.tokens_BT, rows.pos_BT))  # fmt: skip
    out = forward(
        params, tokens_BT, cfg, pos_BT=pos_BT, deltas=deltas, logits_at=jnp.asarray(rows.at_BU),
        remat=True,
    )  # fmt: skip
    return jax.nn.log_softmax(out.logits)
