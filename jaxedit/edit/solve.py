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
    rest_FF: Array | None = None  # what the matrix has lost in float32's rounding


Pair = tuple[Array, Array]  # numbers, and what float32 has rounded away of them


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


def factored(pair: Pair) -> Factored:
    """A matrix in two parts."""
    high_FF, low_FF = pair
    return factor(high_FF + low_FF).replace(matrix_FF=high_FF, rest_FF=low_FF)


def roughly(f: Factored, b_FN: Array) -> Array:
    """matrix⁻¹ b, as good as the factor is in float32: for what is an estimate anyway."""
    return f.scale_F[:, None] * jax.scipy.linalg.cho_solve(
        (f.factor_FF, True), b_FN * f.scale_F[:, None]
    )


@jax.jit
def solve(f: Factored, b_FN: Array, rest_FN: Array | float = 0.0) -> Solved:
    """matrix⁻¹ (b + rest)."""

    def left(x_FN: Array) -> Array:
        high_FN, low_FN = product(f.matrix_FF, x_FN)
        if f.rest_FF is not None:
            low_FN += dot(f.rest_FF, x_FN)
        return roughly(f, b_FN - high_FN + (rest_FN - low_FN))

    def step(state: tuple) -> tuple:
        i, x_FN, move_FN, error_N, _ = state
        new_FN = x_FN + move_FN
        rest_FN = left(new_FN)
        new_N = size(rest_FN) / jnp.maximum(size(new_FN), jnp.finfo(jnp.float32).tiny)
        better_N = new_N < error_N  # NaN is not
        x_FN = jnp.where(better_N, new_FN, x_FN)
        move_FN = jnp.where(better_N, rest_FN, move_FN)
        return i + 1, x_FN, move_FN, jnp.where(better_N, new_N, error_N), better_N.any()

    def go_on(state: tuple) -> Array:
        i, _, _, error_N, moving = state
        return (i < ROUNDS) & moving & ~(error_N <= GOOD).all()

    b_FN = b_FN.astype(jnp.float32)
    none_N = jnp.full(b_FN.shape[1], jnp.inf)
    state = (jnp.int32(0), jnp.zeros_like(b_FN), roughly(f, b_FN), none_N, jnp.bool_(True))
    _, x_FN, move_FN, error_N, _ = jax.lax.while_loop(go_on, step, state)
    return Solved(jnp.where(jnp.isfinite(error_N), x_FN, jnp.nan), error_N, move_FN)


@partial(jax.jit, static_argnames="apart")
def spread(f: Factored, keys_FN: Array, weight: float | Array, *, apart: bool = False) -> Solved:
    """(weight · C + K Kᵀ)⁻¹ K, the directions in which keys are read when C is to stay; `apart`:
    each key by itself, as if the others were not there.

    By the push-through identity: C⁻¹ K (weight · I + Kᵀ C⁻¹ K)⁻¹, a system of N unknowns. Where
    keys are nearly equal it is an ill one: it keeps what float32 would round away. A key of zeros
    has a direction of zeros.
    """
    y_FN, error_N, rest_FN = solve(f, keys_FN)
    none_N = jnp.where(size(keys_FN) == 0, 1.0, 0.0)
    if apart:
        high_N11, low_N11 = jax.vmap(product)(keys_FN.T[:, None], y_FN.T[:, :, None])
        gram_N = high_N11[:, 0, 0] + (low_N11[:, 0, 0] + (keys_FN * rest_FN).sum(0))
        by_N = weight + gram_N + none_N
        return Solved(y_FN / by_N, error_N, rest_FN / by_N)
    high_NN, low_NN = product(keys_FN.T, y_FN)
    low_NN += dot(keys_FN.T, rest_FN)
    high_NN, low_NN = plus((high_NN, low_NN), jnp.diag(weight + none_N))
    x_NF, inner_F, low_NF = solve(factored((high_NN, low_NN)), y_FN.T, rest_FN.T)
    return Solved(x_NF.T, jnp.maximum(error_N, inner_F.max()), low_NF.T)


def product(a_MK: Array, b_KN: Array) -> tuple[Array, Array]:
    """a @ b as the sum of two arrays: right to 2⁻⁴⁵ of K of the largest factors, where float32 is
    to 2⁻²⁴.
    """
    (M, K), N = a_MK.shape, b_KN.shape[1]
    chunk, pad = min(K, CHUNK), -K % min(K, CHUNK)
    a_cMk = jnp.pad(a_MK, ((0, 0), (0, pad))).reshape(M, -1, chunk).swapaxes(0, 1)
    b_ckN = jnp.pad(b_KN, ((0, pad), (0, 0))).reshape(-1, chunk, N)
    top_M1, top_1N = largest(a_MK, 1), largest(b_KN, 0)

    pairs = [(i, j) for i in range(SLICES) for j in range(SLICES - i)]
    places = tuple(jnp.array(x) for x in zip(*pairs, strict=True))

    def add(total: tuple, piece: tuple) -> tuple:
        a_sMk, b_skN = slices(piece[0], top_M1), slices(piece[1], top_1N)
        one = lambda total, ij: (plus(total, dot(a_sMk[ij[0]], b_skN[ij[1]])), None)
        return jax.lax.scan(one, total, places)  # a loop: short to compile

    zero = jnp.zeros((M, N), jnp.float32)
    return jax.lax.scan(add, (zero, zero), (a_cMk, b_ckN))[0]


def times(a_MF: Array, x: Solved) -> Array:
    """a x, of which large parts may cancel."""
    high_MN, low_MN = product(a_MF, x.x_FN)
    return high_MN + (low_MN + dot(a_MF, x.low_FN))


def largest(x: Array, axis: int) -> Array:
    """The exponent of the largest number along an axis."""
    return jnp.frexp(jnp.abs(x).max(axis, keepdims=True))[1]


def slices(x: Array, top: Array) -> Array:
    """x as a sum of SLICES arrays of few bits each; top: the exponent that they are aligned to."""

    def cut(x: Array, s: Array) -> tuple[Array, Array]:
        unit = jnp.ldexp(jnp.float32(1), top - (BITS - 1) - s * BITS)
        part = jnp.where(unit > 0, jnp.round(x / jnp.where(unit > 0, unit, 1)) * unit, 0)
        return x - part, part

    return jax.lax.scan(cut, x, jnp.arange(SLICES))[1]


def plus(total: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """A sum in two parts, and what rounding took from the larger one (Knuth's two-sum)."""
    high, low = total
    new = high + x
    seen = new - high
    return new, low + ((high - (new - seen)) + (x - seen))


def sum_of(one: Pair, more: Pair) -> Pair:
    high, low = plus(one, more[0])
    return high, low + more[1]


def size(x_FN: Array) -> Array:
    """The columns' largest numbers."""
    return jnp.abs(x_FN).max(0)


def null_space(matrix_FF: Array, threshold: float) -> tuple[Array, int]:
    """The projection onto directions whose second moment is below the threshold, and how many there
    are.
    """
    free_FF, count = _null_space(matrix_FF, threshold)
    return free_FF, int(count)


@jax.jit
def _null_space(matrix_FF: Array, threshold: float) -> tuple[Array, Array]:
    values_F, vectors_FF = jnp.linalg.eigh((matrix_FF + matrix_FF.T) / 2)
    kept_F = values_F < threshold
    basis_FF = jnp.where(kept_F, vectors_FF, 0)
    return dot(basis_FF, basis_FF.T), kept_F.sum()


def rank(matrix_FF: Array) -> int:
    """The rank of a symmetric matrix of float32 numbers; on the host, in float64."""
    values_F = np.linalg.eigvalsh(np.asarray(matrix_FF, np.float64))
    return int((values_F > len(values_F) * np.finfo(np.float32).eps * values_F.max()).sum())
