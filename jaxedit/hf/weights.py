"""Weights of ours out of the files' tensors, block by block, straight into the devices' memory."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxedit.hf.families import Key, family_keys
from jaxedit.models.config import ModelConfig
from jaxedit.models.specs import nest, shardings, specs
from jaxedit.progress import Progress, quiet
from jaxedit.tensorfile import Tensor

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}
PIECE = 1 << 22  # bytes read at once by a thread
Block = tuple[tuple[int, int], ...]  # (start, stop) along each axis


def stored_shape(key: Key, ours: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a file's tensor, from those of the weights that it holds, layer axis and all."""
    parts = [shape[1:] if "{}" in key.hf else shape for shape in ours]
    shape = (*parts[0][:-1], sum(p[-1] for p in parts))
    return shape[::-1] if key.out_in else shape


def read_params(
    tensors: Mapping[str, Tensor],
    cfg: ModelConfig,
    mesh: Mesh | None,
    dtype: np.dtype | None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The parameter tree, leaf by leaf: the host never holds more than one leaf's local part."""
    table, out = specs(cfg), {}
    where = shardings(cfg, mesh) if mesh is not None else {}
    done, total = 0, sum(math.prod(s.shape) for s in table.values())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for key in family_keys(cfg):
            for part, path in enumerate(key.ours):
                leaf = Leaf(key, part, tuple(table[p].shape for p in key.ours), cfg, tensors, dtype)
                out[path] = place(leaf, where.get(path), pool)
                progress(done := done + math.prod(leaf.shape), total)
    return nest(out)


def place(leaf: "Leaf", sharding: NamedSharding | None, pool: ThreadPoolExecutor) -> jax.Array:
    """A weight on its devices. What several of them hold or share a file's row of is read once."""
    bounds = lambda index: tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
    if sharding is None:
        whole = tuple((0, n) for n in leaf.shape)
        return jax.device_put(leaf.read({whole}, pool)[whole])
    indices = sharding.addressable_devices_indices_map(leaf.shape).values()
    blocks = leaf.read({bounds(index) for index in indices}, pool)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda i: blocks[bounds(i)])


class Leaf(NamedTuple):
    """One weight of ours, and the tensors that hold it: one per layer, or one in all."""

    key: Key
    part: int  # which of key.ours it is
    shapes: tuple[tuple[int, ...], ...]  # of all of key.ours
    cfg: ModelConfig
    tensors: Mapping[str, Tensor]
    dtype: np.dtype | None  # None: as stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.part]

    def read(self, blocks: set[Block], pool: ThreadPoolExecutor) -> dict[Block, np.ndarray]:
        """These blocks of the weight, in one pass over what of the files lies between them."""
        stacked = "{}" in self.key.hf
        names = [self.key.hf.format(i) for i in range(self.shape[0])] if stacked else [self.key.hf]
        stored = FLOATS.get(self.tensors[names[0]].dtype)
        if stored is None:
            kind = self.tensors[names[0]].dtype
            raise ValueError(f"{names[0]} is stored as {kind}; weights are {', '.join(FLOATS)}")
        dtype = self.dtype or jnp.dtype(stored)
        out = {block: aligned([stop - start for start, stop in block], dtype) for block in blocks}
        layers = {b: (x, b[1:]) if stacked else (x[None], b) for b, x in out.items()}
        inner = [b for _, b in layers.values()]
        around = tuple(
            (min(a for a, _ in axis), max(z for _, z in axis)) for axis in zip(*inner, strict=True)
        )

        def fill(j: int) -> None:
            for piece in self.pieces(around, dtype.itemsize):
                x = self.read_one(self.tensors[names[j]], piece)
                for rows, block in layers.values():
                    common = [
                        (max(a, c), min(z, d)) for (a, z), (c, d) in zip(piece, block, strict=True)
                    ]
                    if all(a < z for a, z in common):
                        to = tuple(
                            slice(a - c, z - c)
                            for (a, z), (c, _) in zip(common, block, strict=True)
                        )
                        cut = tuple(
                            slice(a - c, z - c)
                            for (a, z), (c, _) in zip(common, piece, strict=True)
                        )
                        rows[j][to] = x[cut]

        list(pool.map(fill, range(len(names))))
        return out

    def pieces(self, block: Block, itemsize: int) -> Iterator[Block]:
        """A block in parts of about PIECE bytes, whole rows of the file."""
        axis = len(block) - 1 if self.key.out_in else 0  # files that store [out, in]: our columns
        first, last = block[axis]
        size = math.prod(stop - start for start, stop in block) * itemsize
        row = max(size // max(last - first, 1), 1)
        H = self.cfg.head_dim
        step = max(PIECE // row // H, 1) * H  # whole heads, as files interleave them
        for start in range(first, last, step):
            yield (*block[:axis], (start, min(start + step, last)), *block[axis + 1 :])

    def read_one(self, tensor: Tensor, block: Block) -> np.ndarray:
        """A block, (in, out) or (out,), of the weight in one of its tensors."""
        key, H = self.key, self.cfg.head_dim
        start, stop = block[-1]
        by_head = key.by_head and len(key.ours) > 1
        if by_head:  # q, k and v of head 0, then of head 1, …: read whole heads, keep ours
            first, last = start // H, -(-stop // H)
            columns = slice(first * 3 * H, last * 3 * H)
        else:
            offset = sum(shape[-1] for shape in self.shapes[: self.part])
            columns = slice(offset + start, offset + stop)
        inputs = [slice(a, b) for a, b in block[:-1]]
        x = tensor.read(columns, *inputs) if key.out_in else tensor.read(*inputs, columns)
        x = x.T if key.out_in else x
        if by_head:
            x = x.reshape(*x.shape[:-1], last - first, 3, H)[..., self.part, :]
            x = x.reshape(*x.shape[:-2], -1)[..., start - first * H : stop - first * H]
        return x


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array that starts on 64 bytes: a CPU device then takes it as it is, others from it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
