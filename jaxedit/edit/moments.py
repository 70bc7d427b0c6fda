"""Sums of k kᵀ over text, for all wanted layers in one pass of the model.

A key is the input of mlp/down at a token; padding is left out. n layers, F mlp.
"""

import heapq
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Params
from jaxedit.data.documents import Document, Source, read
from jaxedit.data.requests import bucket
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import run_blocks
from jaxedit.models.vocabulary import embed
from jaxedit.sharding import constrain, on_mesh_of

SITE = "mlp_key"
CHUNK = 1000  # documents that the tokenizer is given at once


def tokenise(
    tokenizer: Any, text: Source, documents: int, length: int
) -> tuple[list[list[int]], int]:
    """The documents with the least hashes, cut to `length` tokens, and how many could not be read:
    a random choice, the same in any order.
    """
    skipped = 0

    def found() -> Iterator[Document]:
        nonlocal skipped
        for item in read(text):
            if isinstance(item, Document):
                yield item
            else:
                skipped += 1

    chosen = heapq.nsmallest(documents, found(), key=lambda d: (d.hash, d.text))
    if not chosen:
        raise ValueError(f"the text has no documents; {skipped} could not be read")
    rows: list[list[int]] = []
    for at in range(0, len(chosen), CHUNK):
        texts = [d.text for d in chosen[at : at + CHUNK]]
        ids = tokenizer(
            texts, truncation=True, max_length=length, return_attention_mask=False, verbose=False
        )["input_ids"]
        rows += [row for row in ids if row]
    return rows, skipped


class Part(NamedTuple):
    """One forward pass: tokens and positions [B, T]."""

    tokens: np.ndarray
    pos: np.ndarray


def parts(rows: Sequence[Sequence[int]], batch: int, multiple: int) -> Iterator[Part]:
    """Rows of like length together, about `batch` tokens in each part; few shapes. A part has a
    multiple of `multiple` rows.
    """
    order = sorted(rows, key=len)
    at = 0
    while at < len(order):
        T = bucket(len(order[at]))
        B = max(batch // T // multiple, 1) * multiple
        same = order[at : at + B]
        same = [row for row in same if bucket(len(row)) == T]
        tokens, pos = np.zeros((B, T), np.int32), np.full((B, T), -1, np.int32)
        for b, row in enumerate(same):
            tokens[b, : len(row)], pos[b, : len(row)] = row, np.arange(len(row))
        yield Part(tokens, pos)
        at += len(same)


def accumulate(
    sums_nFF: Array,
    params: Params,
    tokens_BT: np.ndarray,
    pos_BT: np.ndarray,
    cfg: ModelConfig,
    layers: tuple[int, ...],
) -> Array:
    """The sums with those of one part; `layers` rise."""
    with on_mesh_of(params):
        return _accumulate(sums_nFF, params, tokens_BT, pos_BT, cfg, layers)


@partial(jax.jit, static_argnames=("cfg", "layers"), donate_argnums=0)
def _accumulate(
    sums_nFF: Array,
    params: Params,
    tokens_BT: Array,
    pos_BT: Array,
    cfg: ModelConfig,
    layers: tuple[int, ...],
) -> Array:
    """In float32; only one layer's keys exist at a time."""
    tokens_BT, pos_BT = (constrain(x, "batch", None) for x in (tokens_BT, pos_BT))
    x_BTD = embed(params, tokens_BT, cfg, pos_BT=pos_BT)
    start, out = 0, []
    for n, layer in enumerate(layers):
        through = partial(run_blocks, params, cfg=cfg, pos_BT=pos_BT)
        x_BTD, _, _ = through(x_BTD=x_BTD, start=start, stop=layer)
        x_BTD, seen, _ = through(x_BTD=x_BTD, start=layer, stop=layer + 1, reads={SITE: None})
        start = layer + 1
        keys_BTF = jnp.where((pos_BT >= 0)[..., None], seen[SITE][0], 0)
        keys_MF = keys_BTF.reshape(-1, keys_BTF.shape[-1])
        new_FF = jnp.matmul(
            keys_MF.T, keys_MF, precision="highest", preferred_element_type=jnp.float32
        )
        out.append(constrain(sums_nFF[n] + new_FF, "mlp", None))
    return jnp.stack(out)
