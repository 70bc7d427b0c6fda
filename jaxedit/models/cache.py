"""Keys and values of the tokens so far, and how a CPU decodes with them.

`run_blocks` keeps them stacked over the layers, [L, B, K, S, H]; a loop over many tokens takes the
stacks apart first.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Cache, Params
from jaxedit.models.config import ModelConfig
from jaxedit.models.layers import turn


def init_cache(cfg: ModelConfig, batch: int, length: int, layers: int | None = None) -> Cache:
    """An empty cache of `length` slots for a batch."""
    shape = (cfg.layers if layers is None else layers, batch, cfg.kv_heads, length, cfg.head_dim)
    zeros = jnp.zeros(shape, cfg.dtype)
    return Cache(zeros, zeros, jnp.full((batch, length), -1, jnp.int32), jnp.int32(0))


def unstack(params: Params, cache: Cache, cfg: ModelConfig) -> tuple[Params, Cache]:
    """Layers one by one and their matrices turned, which is how a CPU decodes fastest.

    A scan slices every layer's weights and cache out of their stacks at each token; here that is
    done once, before the loop over tokens, for a second copy of the weights.
    """
    layers = range(cfg.layers)
    cut = lambda tree, i: jax.tree.map(lambda z: z[i], tree)
    out = {**params, "blocks": tuple(turn(cut(params["blocks"], i)) for i in layers)}
    out |= {"head": turn(params["head"])} if "head" in params else {}
    k, v = (tuple(stack[i] for i in layers) for stack in (cache.k, cache.v))
    return out, Cache(k, v, cache.pos, cache.end)


def run_unstacked(
    one: Any, put: Any, blocks: tuple, x_BTD: Array, xs: tuple, cache: Cache | None, pos_BS: Array
) -> tuple[Array, dict[str, Array], Cache]:
    """What the scan of `run_blocks` does, layer by layer, on what `unstack` made."""
    if cache is None:
        raise ValueError("unstacked layers are for decoding, with a cache")
    numbers, _, writes, deltas = xs
    old, kept, read = cache, [], []
    for j, p in enumerate(blocks):

        def store(k_BKTH: Array, v_BKTH: Array, j: int = j) -> tuple[Array, Array]:
            kept.append((put(old.k[j], k_BKTH), put(old.v[j], v_BKTH)))
            return kept[-1]

        w, d = (jax.tree.map(lambda z, j=j: z[j], named) for named in (writes, deltas))
        x_BTD, found = one(x_BTD, numbers[j], p, w, d, store)
        read.append(found)
    k, v = tuple(k for k, _ in kept), tuple(v for _, v in kept)
    end = old.end + x_BTD.shape[1]
    seen = jax.tree.map(lambda *z: jnp.stack(z), *read)
    return x_BTD, seen, Cache(k, v, pos=pos_BS, end=end)
