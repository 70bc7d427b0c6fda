"""Positive definite systems, solved as float64 would, in float32 alone: the same on a CPU, a GPU
and a TPU.

A Cholesky factor in float32 gives a first answer; it is refined with residuals that are computed
almost exactly: matrices are cut into slices of eight bits, whose products float32 adds up without
rounding (Ozaki et al., 2012). Each refinement gains what the factor is good for, so the result is
right to float32 as long as the condition is below about 1e7; `error` says so, and is what the last
refinement still moved.

F unknowns, N right hand sides.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array

SLICES, BITS, CHUNK = 6, 8, 512  # 2 · 7 bits of a product and 9 of the sum: float32 holds 24
ROUNDS, GOOD = 30, 1e-7
dot = partial(jnp.matmul, precision="highest")


@struct.dataclass
class Factored:
    """A positive definite matrix, and the Cholesky factor of it scaled to a unit diagonal."""

    matrix_FF: Array
    scale_F: Array
    factor_FF: Array


class Solved(NamedTuple):
    x_FN: Array
    error_N: Array  # of x, relative
    low_FN: Array  # what x has lost in float32's rounding


@jax.jit
def factor(matrix_FF: Array, ridge: float | Array = 0.0) -> Factored:
    """ridge: times the mean of the diagonal, is added to it. NaN where it is not positive."""
    matrix_FF = matrix_FF.astype(jnp.float32)
    diagonal_F = jnp.diagonal(matrix_FF)
    matrix_FF = matrix_FF + jnp.diag(jnp.full_like(diagonal_F, ridge * diagonal_F.mean()))
    scale_F = jax.lax.rsqrt(jnp.diagonal(matrix_FF))
    unit_FF = matrix_FF * scale_F[:, None] * scale_F
    return Factored(matrix_FF, scale_F, jnp.linalg.cholesky((unit_FF + unit_FF.T) / 2))


@jax.jit
def solve(f: Factored, b_FN: Array) -> Solved:
    """matrix⁻¹ b."""

    def roughly(r_FN: Array) -> Array:
        r_FN = jax.scipy.linalg.cho_solve((f.factor_FF, True), r_FN * f.scale_F[:, None])
        return r_FN * f.scale_F[:, None]

    def left(x_FN: Array) -> Array:
        high_FN, low_FN = product(f.matrix_FF, x_FN)
        return roughly(b_FN - high_FN - low_FN)

    def step(state: tuple) -> tuple:
        i, x_FN, _, before_N, _ = state
        move_FN = left(x_FN)
        error_N = size(move_FN) / jnp.maximum(size(x_FN), jnp.finfo(jnp.float32).tiny)
        better_N = error_N < before_N  # NaN is not
        x_FN = jnp.where(better_N, x_FN + move_FN, x_FN)
        return i + 1, x_FN, better_N.any(), jnp.where(better_N, error_N, before_N), error_N

    def go_on(state: tuple) -> Array:
        i, _, moving, error_N, _ = state
        return (i < ROUNDS) & moving & ~(error_N <= GOOD).all()

    x_FN = roughly(b_FN.astype(jnp.float32))
    far_N = jnp.where(jnp.isfinite(x_FN).all(0), 1.0, jnp.nan) * jnp.full(x_FN.shape[1], jnp.inf)
    state = (jnp.int32(0), x_FN, jnp.bool_(True), far_N, far_N)
    _, x_FN, _, error_N, _ = jax.lax.while_loop(go_on, step, state)
    return Solved(x_FN, error_N, left(x_FN))


@partial(jax.jit, static_argnames="apart")
def spread(f: Factored, keys_FN: Array, weight: float | Array, *, apart: bool = False) -> Solved:
    """(weight · C + K Kᵀ)⁻¹ K, the directions in which keys are read when C is to stay; `apart`:
    each key by itself, as if the others were not there.

    By the push-through identity: C⁻¹ K (weight · I + Kᵀ C⁻¹ K)⁻¹, a system of N unknowns. A key of
    zeros has a direction of zeros.
    """
    y_FN, error_N, rest_FN = solve(f, keys_FN)
    none_N = jnp.where(size(keys_FN) == 0, 1.0, 0.0)
    if apart:
        high_N11, low_N11 = jax.vmap(product)(keys_FN.T[:, None], y_FN.T[:, :, None])
        gram_N = high_N11[:, 0, 0] + (low_N11[:, 0, 0] + (keys_FN * rest_FN).sum(0))
        by_N = weight + gram_N + none_N
        return Solved(y_FN / by_N, error_N, rest_FN / by_N)
    high_NN, low_NN = product(keys_FN.T, y_FN)
    gram_NN = high_NN + (low_NN + dot(keys_FN.T, rest_FN))
    whole_NN = (gram_NN + gram_NN.T) / 2 + jnp.diag(weight + none_N)
    x_NF, inner_F, low_NF = solve(factor(whole_NN), y_FN.T)
    return Solved(x_NF.T, jnp.maximum(error_N, inner_F.max()), low_NF.T)


def product(a_MK: Array, b_KN: Array) -> tuple[Array, Array]:
    """a @ b as the sum of two arrays: right to 2⁻⁴⁷ of the largest factors, float32 is to 2⁻²⁴."""
    M, K = a_MK.shape
    pad = -K % CHUNK if K > CHUNK else 0
    chunk = min(K, CHUNK)
    a_MK, b_KN = jnp.pad(a_MK, ((0, 0), (0, pad))), jnp.pad(b_KN, ((0, pad), (0, 0)))
    a_sMK, b_sKN = slices(a_MK, 1), slices(b_KN, 0)
    N = b_KN.shape[1]
    pieces = (
        a_sMK.reshape(SLICES, M, -1, chunk).transpose(2, 0, 1, 3),
        b_sKN.reshape(SLICES, -1, chunk, N).transpose(1, 0, 2, 3),
    )

    def add(total: tuple, piece: tuple) -> tuple:
        a_sMk, b_skN = piece
        for i in range(SLICES):
            for j in range(SLICES - i):
                total = plus(total, dot(a_sMk[i], b_skN[j]))
        return total, None

    zero = jnp.zeros((M, N), jnp.float32)
    return jax.lax.scan(add, (zero, zero), pieces)[0]


def slices(x: Array, axis: int) -> Array:
    """x as a sum of SLICES arrays of few bits each, aligned along `axis`."""
    _, exponent = jnp.frexp(jnp.abs(x).max(axis, keepdims=True))
    out = []
    for s in range(SLICES):
        unit = jnp.ldexp(jnp.float32(1), exponent - (BITS - 1) - s * BITS)
        part = jnp.where(unit > 0, jnp.round(x / jnp.where(unit > 0, unit, 1)) * unit, 0)
        out.append(part)
        x = x - part
    return jnp.stack(out)


def plus(total: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """A sum in two parts, and what rounding took from the larger one (Knuth's two-sum)."""
    high, low = total
    new = high + x
    seen = new - high
    return new, low + ((high - (new - seen)) + (x - seen))


def size(x_FN: Array) -> Array:
    """The columns' largest numbers."""
    return jnp.abs(x_FN).max(0)


def null_space(matrix_FF: Array, threshold: float) -> tuple[Array, int]:
    """The projection onto directions whose second moment is below the threshold, and how many there
    are.
    """
    values_F, vectors_FF = _eigen(matrix_FF)
    kept_F = np.asarray(values_F) < threshold
    basis = vectors_FF[:, : int(kept_F.sum())]  # values rise
    return dot(basis, basis.T), int(kept_F.sum())


@jax.jit
def _eigen(matrix_FF: Array) -> tuple[Array, Array]:
    return jnp.linalg.eigh((matrix_FF + matrix_FF.T) / 2)


def rank(matrix_FF: Array) -> int:
    """The rank of a symmetric matrix of float32 numbers; on the host, in float64."""
    values_F = np.linalg.eigvalsh(np.asarray(matrix_FF, np.float64))
    return int((values_F > len(values_F) * np.finfo(np.float32).eps * values_F.max()).sum())
