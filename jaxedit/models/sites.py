"""The named places of the forward pass, and the one function through which activations are read or
changed.

| site       | what                                                  | TransformerLens       |
|------------|-------------------------------------------------------|-----------------------|
| embed      | token embedding, with learned positions if any        | hook_embed + pos      |
| resid_pre  | residual stream before the block                      | hook_resid_pre        |
| attn_in    | input of q, k, v, after the norm                      | (ln1, with its scale) |
| attn_q/k/v | the projections, all heads, before their norm, RoPE   | attn.hook_q/k/v       |
| attn_z     | input of the output projection, all heads             | attn.hook_z           |
| attn_o     | its output, before a post-norm if there is one        |                       |
| attn_out   | what attention adds to the residual stream            | hook_attn_out         |
| resid_mid  | between attention and MLP (not in parallel blocks)    | hook_resid_mid        |
| mlp_in     | input of the MLP, after the norm                      | (ln2, with its scale) |
| mlp_pre    | before the activation function (of the gate if gated) | mlp.hook_pre          |
| mlp_up     | the linear half of a gated MLP                        | mlp.hook_pre_linear   |
| mlp_key    | input of mlp/down: ROME's k, a knowledge neuron       | mlp.hook_post         |
| mlp_down   | output of mlp/down, before a post-norm: ROME's v      |                       |
| mlp_out    | what the MLP adds to the residual stream              | hook_mlp_out          |
| resid_post | residual stream after the block                       | hook_resid_post       |

`mlp_down` and `mlp_out` (and `attn_o`, `attn_out`) differ only where outputs are normed: Gemma 2/3,
OLMo-2, GLM-4.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxedit.base import Array, Cache
from jaxedit.models.config import ModelConfig


def sites(cfg: ModelConfig) -> dict[str, int]:
    """site -> its width, for the sites that this architecture has."""
    D, F, H = cfg.embed, cfg.mlp, cfg.head_dim
    out = {"embed": D, "resid_pre": D, "attn_in": D}
    out |= {"attn_q": cfg.heads * H, "attn_k": cfg.kv_heads * H, "attn_v": cfg.kv_heads * H}
    out |= {"attn_z": cfg.heads * H, "attn_o": D, "attn_out": D}
    out |= {} if cfg.parallel else {"resid_mid": D}
    out |= {"mlp_in": D, "mlp_pre": F}
    out |= {"mlp_up": F} if cfg.gated else {}
    return out | {"mlp_key": F, "mlp_down": D, "mlp_out": D, "resid_post": D}


def matrices(cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """The weights that a delta may change: path -> (in, out). "head" also where it is the table of
    embeddings: a change of it alone, which the embeddings do not see.
    """
    D, F, H = cfg.embed, cfg.mlp, cfg.head_dim
    n, k = cfg.heads * H, cfg.kv_heads * H
    out = {"attn/q": (D, n), "attn/k": (D, k), "attn/v": (D, k), "attn/o": (n, D)}
    out |= {"mlp/gate": (D, F)} if cfg.gated else {}
    out |= {"mlp/up": (D, F), "mlp/down": (F, D), "embed": (cfg.vocab, D)}
    return out | {"head": (D, cfg.vocab)}


def check_names(
    kind: str, given: Mapping[str, Any], allowed: Mapping[str, Any], cfg: ModelConfig
) -> None:
    """A misspelt name fails here, by name; it is never ignored."""
    for name in given:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{kind} {name!r}: {cfg.family} has {', '.join(allowed)}{hint}")


def tap(
    site: str, x_BTD: Array, reads: Mapping[str, Any], writes: Mapping[str, Any], seen: dict
) -> Array:
    """The only place where activations are replaced (first) and recorded (then)."""
    for write in writes.get(site, ()):
        x_BTD = write(x_BTD)
    if site in reads:
        pos_BP = reads[site]
        seen[site] = (
            x_BTD if pos_BP is None else jnp.take_along_axis(x_BTD, pos_BP[..., None], axis=1)
        )
    return x_BTD


def split(named: dict[str, tuple]) -> dict[str, tuple]:
    """What the scan slices: the leaves on all layers; None in the place of the others."""
    return {k: tuple(v if v.layers is None else None for v in vs) for k, vs in named.items()}


def join(sliced: dict[str, tuple], named: dict[str, tuple], layer: Array) -> dict[str, tuple]:
    """One layer's writes or deltas: what the scan sliced, and the others picked."""
    one = lambda s, v: v.at(layer) if s is None else s
    return {
        k: tuple(one(s, v) for s, v in zip(sliced[k], vs, strict=True)) for k, vs in named.items()
    }


def check_shapes(
    tokens_BT: Array, pos_BT: Array | None, cache: Cache | None, cfg: ModelConfig
) -> None:
    shape = tokens_BT.shape
    if len(shape) != 2 or not jnp.issubdtype(tokens_BT.dtype, jnp.integer):
        raise ValueError(
            f"tokens are {tokens_BT.dtype}{list(shape)}; they must be integers [batch, time]"
        )
    if pos_BT is not None and pos_BT.shape != shape:
        raise ValueError(f"pos_BT has shape {list(pos_BT.shape)}, the tokens have {list(shape)}")
    if cfg.learned_pos and pos_BT is None and cache is None and shape[1] > cfg.max_len:
        raise ValueError(
            f"{shape[1]} tokens, but {cfg.family} has learned positions for {cfg.max_len}"
        )
    if cache is not None and cache.pos.shape[0] != shape[0]:
        raise ValueError(f"the cache holds {cache.pos.shape[0]} rows, the batch has {shape[0]}")
    if cache is not None and shape[1] > cache.pos.shape[1]:
        raise ValueError(f"{shape[1]} tokens do not fit into a cache of {cache.pos.shape[1]} slots")
