"""How much fits into memory at once."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxedit.data.aligned import Requests, Tokens
from jaxedit.edit.editor import Editor
from jaxedit.models.config import Model
from jaxedit.sharding import mesh_of

MOST = 256  # requests in one program: beyond, nothing is gained
CPU_BYTES = 1 << 31  # for one program on a CPU, which does not say how much it has
SHARE = 0.5  # of the memory that a device has left


def in_programs(found: Requests, model: Model, editor: Editor, size: int) -> Requests:
    """The requests in batches of `size`, or of as many as memory allows; of whole shares of the
    mesh.
    """
    mesh = mesh_of(model.params)
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    if not size:
        most = max((footprint(t, model) for t in found.found), default=1)
        fits = max(min(room(model) * multiple // most, MOST), 1)
        size = min(1 << (fits.bit_length() - 1), max(len(found.found), 1))
    return dataclasses.replace(found, size=-(-size // multiple) * multiple, multiple=multiple)


def footprint(one: Tokens, model: Model) -> int:
    """About how many bytes a search holds for one request: activations of the layers that it goes
    back through, the cache, logits.
    """
    cfg, wide = model.cfg, jnp.dtype(model.cfg.dtype).itemsize
    rows, tail, length = len(one.rows), one.tail, max(map(len, one.rows))
    rows *= 2 if one.beside else 1  # one of the texts beside is searched through too
    activations = rows * tail * cfg.layers * (6 * cfg.embed + 3 * cfg.mlp) * wide
    scores = rows * tail * length * cfg.layers * cfg.heads * 4
    cache = 2 * rows * length * cfg.layers * cfg.kv_heads * cfg.head_dim * wide
    logits = 4 * (rows * len(one.target) + 1) * cfg.vocab * 4
    return activations + scores + cache + logits


def room(model: Model) -> int:
    """Bytes that a program may take on a device: the same on every host, and whenever it is asked,
    so that a run that goes on cuts its batches as before.
    """
    shards = [x.addressable_shards[0] for x in jax.tree.leaves(model.params)]
    device = shards[0].device
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return CPU_BYTES
    free = int(SHARE * (stats["bytes_limit"] - sum(s.data.nbytes for s in shards)))
    return max(free >> 26, 1) << 26
