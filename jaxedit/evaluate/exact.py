"""Exact answers: is every token of a right answer the model's first choice, given those before."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import delta
from jaxedit.base import Array, Deltas, Params, Writes
from jaxedit.data.cases import Probe
from jaxedit.data.requests import probe_batches
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.sharding import mesh_of


def exact(
    model: Model,
    probes: Sequence[Probe],
    *,
    ending: str = "",
    size: int = 256,
    deltas: Deltas | None = None,
    writes: Writes | None = None,
    each: Sequence[Deltas] | None = None,
) -> np.ndarray:
    """For every probe, would greedy decoding say one of its answers, by any of its names? bool [n].

    ending: follows the answer and counts with it ("." tells "Kovu" from "Kovufi"). Deltas and
    writes are those of every row; `each` gives every probe deltas of its own.
    """
    if each is not None and len(each) != len(probes):
        raise ValueError(f"{len(each)} deltas for {len(probes)} probes: one for each")
    named = [(i, name) for i, probe in enumerate(probes) for name in probe.names]
    if not named:
        raise ValueError("no probe has an answer to compare with")
    pairs = [(probes[i].prompt, name + ending) for i, name in named]
    mesh = mesh_of(model.params)
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    size = -(-size // multiple) * multiple
    hit = np.zeros(len(named), bool)
    for index, batch in probe_batches(model.tokenizer, pairs, size=size, multiple=multiple):
        if each is not None:
            rows = [each[named[i][0]] for i in index.tolist()]
            rows += rows[-1:] * (len(batch.valid_B) - len(rows))
            deltas = delta.stack(rows) if any(rows) else {}
        right_B = all_first(
            model.params, batch.tokens_BT, batch.pos_BT, batch.target_BT, model.cfg, deltas, writes
        )
        hit[index] = np.asarray(right_B)[: len(index)]
    right = np.zeros(len(probes), bool)
    np.logical_or.at(right, [i for i, _ in named], hit)
    return right


@partial(jax.jit, static_argnames="cfg")
def all_first(
    params: Params,
    tokens_BT: Array,
    pos_BT: Array,
    target_BT: Array,
    cfg: ModelConfig,
    deltas: Any = None,
    writes: Any = None,
) -> Array:
    """Is each row's target what greedy decoding says, [B]."""
    out = forward(params, tokens_BT, cfg, pos_BT=pos_BT, deltas=deltas, writes=writes)
    next_BT = jnp.roll(tokens_BT, -1, axis=1)
    return jnp.where(target_BT, out.logits.argmax(-1) == next_BT, True).all(1)
