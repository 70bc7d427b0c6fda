"""MLPs as memories of keys and values (Geva et al., 2021, 2022).

A neuron's key is what makes it fire; its value is its row of the down projection, which it adds to
the residual stream as often as it fires:

    MLP(x) = Σ_f m_f v_f + b,     m the activations (mlp_key), v the rows of W_down

Triggers of a key are the places of a corpus where it fires most, at most one in a text. A value,
read through the unembedding, says tokens; it agrees with a trigger if the one it says first is the
token that comes next there.

Shapes: B texts, T columns, L layers, F neurons, t triggers of each, M neurons that are looked at,
K neurons that dominate, D embed, V vocab.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.locate.lens import Through, say
from jaxedit.locate.passes import Batch, one_pass
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.models.vocabulary import unembed
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import on_mesh_of


@struct.dataclass
class Triggers:
    """Of every neuron the places where it fires most, the strongest first."""

    score: Array  # [L, F, t], -inf where there are fewer texts
    text: Array  # number of the text, in the order given
    column: Array
    next: Array  # the token that comes after, -1 where the text ends
    texts: Array  # how many there were


def triggers(
    params: Params, cfg: ModelConfig, batches: Iterable[Batch], *, top: int = 50,
    file: str | Path | None = None, progress: Progress = quiet, total: int = 0,
) -> Triggers:  # fmt: skip
    """A pass over texts as (tokens [B, T], positions, -1 at padding), one row each.

    file: where it is kept as it goes, and goes on if the model and the texts so far are the same.
    """
    shape = (cfg.layers, cfg.mlp, top)
    none = lambda: jnp.full(shape, -1, jnp.int32)
    worst = jnp.full(shape, -jnp.inf)
    start = Triggers(worst, none(), none(), none(), jnp.zeros((), jnp.int32))

    def more(found: Triggers, batch: Batch) -> Triggers:
        with on_mesh_of(params):
            return add(params, found, *map(jnp.asarray, batch), cfg)

    return one_pass(
        start, batches, more, params=params, settings=f"{top}", what="triggers",
        file=None if file is None else Path(file), progress=progress, total=total,
    )  # fmt: skip


@partial(jax.jit, static_argnames="cfg", donate_argnames="old")
def add(
    params: Params, old: Triggers, tokens_BT: Array, pos_BT: Array, cfg: ModelConfig
) -> Triggers:
    """The triggers with those of more texts."""
    B, _ = tokens_BT.shape
    first_B1 = jnp.zeros((B, 1), jnp.int32)
    out = forward(
        params, tokens_BT, cfg, pos_BT=pos_BT, reads={"mlp_key": None}, logits_at=first_B1
    )
    act_LBTF = out.reads["mlp_key"].astype(jnp.float32)
    act_LBTF = jnp.where((pos_BT >= 0)[None, :, :, None], act_LBTF, -jnp.inf)
    best_LFB, at_LFB = (x.transpose(0, 2, 1) for x in (act_LBTF.max(2), act_LBTF.argmax(2)))
    next_BT = jnp.where(jnp.roll(pos_BT, -1, 1) > pos_BT, jnp.roll(tokens_BT, -1, 1), -1)
    text_LFB = jnp.broadcast_to(old.texts + jnp.arange(B, dtype=jnp.int32), best_LFB.shape)
    text_LFB = jnp.where(jnp.isfinite(best_LFB), text_LFB, -1)  # rows that only fill the batch
    new = (best_LFB, text_LFB, at_LFB.astype(jnp.int32), next_BT[jnp.arange(B), at_LFB])
    before = (old.score, old.text, old.column, old.next)
    both = [jnp.concatenate(pair, -1) for pair in zip(before, new, strict=True)]
    _, order = jax.lax.top_k(both[0], old.score.shape[-1])
    score, text, column, follows = (jnp.take_along_axis(x, order, -1) for x in both)
    return Triggers(score, text, column, follows, old.texts + B)


def values(
    params: Params, cfg: ModelConfig, places: Sequence[tuple[int, int]], *, top: int = 10,
    through: Through = "none",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The tokens that neurons' values say, the first ones first, and their scores, [M, top]."""
    layer_M, unit_M = (jnp.asarray(x, jnp.int32) for x in zip(*places, strict=True))
    with on_mesh_of(params):
        tokens, scores = _values(params, layer_M, unit_M, cfg, top, through)
    return np.asarray(tokens), np.asarray(scores)


@partial(jax.jit, static_argnames=("cfg", "top", "through"))
def _values(
    params: Params, layer_M: Array, unit_M: Array, cfg: ModelConfig, top: int, through: Through
) -> tuple[Array, Array]:
    def one(place: tuple[Array, Array]) -> tuple[Array, Array]:
        row_D = params["blocks"]["mlp"]["down"]["w"][place].astype(jnp.float32)
        return jax.lax.top_k(say(params, row_D[None, None], cfg, through)[0, 0], top)

    score_MK, token_MK = jax.lax.map(one, (layer_M, unit_M), batch_size=min(64, len(layer_M)))
    return token_MK, score_MK


class Agreement(NamedTuple):
    rate_LF: np.ndarray  # of a neuron's triggers, those whose next token its value says first
    best_LF: np.ndarray  # the same of its strongest trigger alone
    chance: float  # of all pairs of neurons' values and triggers of others in their layer


def agreement(
    params: Params, cfg: ModelConfig, found: Triggers, *, through: Through = "none"
) -> Agreement:
    """How often what a value says is what follows its key's triggers."""
    L, F, _ = found.score.shape
    places = [(layer, f) for layer in range(L) for f in range(F)]
    said_LF = values(params, cfg, places, top=1, through=through)[0].reshape(L, F)
    next_LFt, real = np.asarray(found.next), np.asarray(found.next) >= 0
    same = (next_LFt == said_LF[..., None]) & real
    rate = same.sum(-1) / np.maximum(real.sum(-1), 1)
    chance = []
    for layer in range(L):  # of how many triggers a token follows, times how many values say it
        size = cfg.vocab
        follows = np.bincount(next_LFt[layer][real[layer]], minlength=size).astype(np.float64)
        says = np.bincount(said_LF[layer], minlength=size)
        chance.append(follows @ says / max(follows.sum(), 1) / F)
    return Agreement(rate, same[..., 0].astype(np.float64), float(np.mean(chance)))


@struct.dataclass
class Updates:
    """What each layer's MLP adds at the last column, neuron by neuron. Rows of B."""

    size: Array  # [B, L, F] |m_f| |v_f|: how much a neuron dominates
    top: Array  # [B, L, K] the neurons with the largest
    covered: Array  # [B, L] |Σ of those| / |MLP(x)|
    before: Array  # [B, L] the token that the residual stream says before the MLP
    after: Array  # [B, L] and after it
    saturates: Array  # [B, L] bool: the final token becomes the first choice here, and stays it
    eliminates: Array  # [B, L] bool: another token stops being the first choice here


@partial(jax.jit, static_argnames=("cfg", "top"))
def updates(
    params: Params, tokens_BS: Array, pos_BS: Array, cfg: ModelConfig, *, top: int = 10
) -> Updates:
    """Dominant sub-updates, and where the answer is settled (Geva et al., 2022), rows padded on the
    left. Saturation and elimination are of MLPs alone, as the residual stream is read.
    """
    last_B1 = jnp.full((len(tokens_BS), 1), tokens_BS.shape[1] - 1)
    names = ("mlp_key", "resid_pre", "attn_out", "mlp_out")
    out = forward(params, tokens_BS, cfg, pos_BT=pos_BS, logits_at=last_B1,
                  reads=dict.fromkeys(names, last_B1))  # fmt: skip
    key_BLF, pre_BLD, attn_BLD, mlp_BLD = (
        out.reads[n][:, :, 0].swapaxes(0, 1).astype(jnp.float32) for n in names
    )
    w_LFD = params["blocks"]["mlp"]["down"]["w"].astype(jnp.float32)
    size_BLF = jnp.abs(key_BLF) * jnp.linalg.norm(w_LFD, axis=-1)
    _, at_BLK = jax.lax.top_k(size_BLF, top)
    layers = jnp.arange(cfg.layers)[None, :, None]
    m_BLK = jnp.take_along_axis(key_BLF, at_BLK, -1)
    part_BLD = jnp.einsum("blk,blkd->bld", m_BLK, w_LFD[layers, at_BLK])
    size = partial(jnp.linalg.norm, axis=-1)
    cfg_dtype = lambda x: x.astype(cfg.dtype)
    first = lambda x_BLD: unembed(params, cfg_dtype(x_BLD), cfg).argmax(-1)
    mid_BLD = pre_BLD + attn_BLD
    before_BL, after_BL = first(mid_BLD), first(mid_BLD + mlp_BLD)
    final_B1 = out.logits[:, 0].argmax(-1)[:, None]
    is_final = after_BL == final_B1
    stays = jnp.flip(jnp.cumprod(jnp.flip(is_final.astype(jnp.int32), 1), 1), 1) > 0
    return Updates(
        size_BLF, at_BLK, size(part_BLD) / jnp.maximum(size(mlp_BLD), 1e-30), before_BL, after_BL,
        stays & (before_BL != final_B1), before_BL != after_BL,
    )  # fmt: skip


def subupdates(params: Params, key_XF: Array, layer: int) -> Array:
    """What each neuron of a layer adds, [X, F, D]; with the bias they add up to `mlp_down`."""
    w_FD: Any = params["blocks"]["mlp"]["down"]["w"][layer]
    return key_XF.astype(jnp.float32)[..., None] * w_FD.astype(jnp.float32)
