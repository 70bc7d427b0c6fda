"""A name for the weights of a model, so that an edit knows the base that it was made for."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxedit.base import Array, Params
from jaxedit.sharding import constrain, on_mesh_of


def checksum(params: Params) -> str:
    """A name for the values of params, the same on any mesh, device and dtype that holds them.

    64 bits per leaf, hashed where the weights lie: they never travel to the host.
    """
    flat = dict(sorted(traverse_util.flatten_dict(params, sep="/").items()))
    with on_mesh_of(params):
        hashes = np.asarray(_hash(tuple(flat.values())))
    text = "".join(
        f"{path} {list(x.shape)} {one:08x}{two:08x}\n"
        for (path, x), (one, two) in zip(flat.items(), hashes.tolist(), strict=True)
    )
    return hashlib.sha256(text.encode()).hexdigest()


@jax.jit
def _hash(leaves: tuple[Array, ...]) -> Array:
    """[leaves, 2] uint32: sums, in any order, of every value's bits mixed with its position's."""

    def matrix(x: Array, start: Array) -> Array:
        bits = _bits(x)
        return jnp.stack([_mix(bits ^ _place(x.shape, s) ^ start[s]).sum() for s in (0, 1)])

    def one(x: Array) -> Array:
        if x.ndim < 3:
            return matrix(x, jnp.zeros(2, jnp.uint32))
        # layer by layer: not every backend fuses the mixing into the sum
        starts = jnp.stack([_table(len(x), x.ndim, s) for s in (0, 1)], 1)
        return jax.lax.map(lambda layer: matrix(*layer), (x, starts)).sum(0)

    return constrain(jnp.stack([one(x) for x in leaves]), None, None)


def _place(shape: tuple[int, ...], seed: int) -> Array:
    """A random-looking number per position: the xor of one table per axis (tabulation hashing)."""
    out = jnp.zeros((), jnp.uint32)
    for axis, n in enumerate(shape):
        out = out ^ _table(n, axis, seed).reshape(n, *[1] * (len(shape) - axis - 1))
    return out


def _table(n: int, axis: int, seed: int) -> Array:
    start = (2 * axis + seed + 1) * 0x9E3779B9 % 2**32
    return _mix(_mix(jnp.arange(n, dtype=jnp.uint32)) + jnp.uint32(start))


def _mix(h: Array) -> Array:
    """MurmurHash3's finalizer: a bijection of uint32, so that one changed bit always shows."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    return h ^ (h >> jnp.uint32(16))


def _bits(x: Array) -> Array:
    """The bits of the value as float32."""
    if x.dtype == jnp.bfloat16:  # by integers: a device may flush what is subnormal
        return jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << jnp.uint32(16)
    if x.dtype not in (jnp.float32, jnp.float16):
        raise ValueError(f"weights in {x.dtype}; a checksum is of float32, bfloat16 or float16")
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
