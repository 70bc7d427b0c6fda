r"""Random projections P of a small vector w [d] into many parameters [D], never written out.

The Kronecker one: P w = the entries `take` of vec(Q1 W Q2ᵀ) followed by E w', where W holds the
first entries of w, and w' the rest. Q1 [m1, k1], Q2 [m2, k2] have orthonormal columns. It costs
about 2 D √d operations; P itself would be D d numbers.

`kron` takes the smallest grid that holds all of D and all of d, so that every parameter moves and
every coordinate counts. `square` is the form of Lotfi et al. (2024): √D and √d rounded down, with a
dense block E for what is left over; where d or D is a square it has parameters that never move or
coordinates without effect. The others are what they compared with, or what a subspace is compared
with: `identity` is none at all.

Every projection is a function of its seed, the same on all devices: numbers are drawn and
orthogonalised in float64 on the host.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array

matmul = partial(jnp.matmul, precision="highest")  # what is decoded must not depend on the device


@struct.dataclass
class Projection:
    """A linear map of w [d] to [D], its transpose, and the arrays that both use."""

    arrays: Any
    d: int = struct.field(pytree_node=False)
    D: int = struct.field(pytree_node=False)

    def __call__(self, w_d: Array) -> Array:
        return project(self.arrays, w_d)


@jax.custom_vjp
def project(arrays: Any, w_d: Array) -> Array:
    """P w, [D]. Its gradient is a product with Pᵀ that gathers; a scatter would take far longer."""
    return arrays.forward(w_d)


def _forward(arrays: Any, w_d: Array) -> tuple[Array, Any]:
    return arrays.forward(w_d), (arrays, w_d)


def _back(kept: Any, g_D: Array) -> tuple[None, Array]:
    arrays, w_d = kept
    return None, arrays.transpose(g_D, w_d.shape[0])


project.defvjp(_forward, _back)


@struct.dataclass
class Kron:
    left: Array  # Q1 [m1, k1]
    right: Array  # Q2 [m2, k2]
    extra: Array  # E [D', d'], [0, 0] where nothing is left over
    take: Array  # [D] int32: which entry of (grid, left over) a parameter is
    back: Array  # [m1 m2 + D'] int32: which parameter an entry is; D where it is none

    def forward(self, w_d: Array) -> Array:
        k1, k2 = self.left.shape[1], self.right.shape[1]
        inner = w_d.shape[0] - self.extra.shape[1]
        w = jnp.pad(w_d[:inner], (0, max(k1 * k2 - inner, 0))).reshape(k1, k2)
        grid = matmul(matmul(self.left, w), self.right.T).ravel()
        return jnp.concatenate([grid, matmul(self.extra, w_d[inner:])])[self.take]

    def transpose(self, g_D: Array, d: int) -> Array:
        m1, m2 = self.left.shape[0], self.right.shape[0]
        inner = d - self.extra.shape[1]
        g = jnp.append(g_D, jnp.zeros(1, g_D.dtype))[self.back]
        w = matmul(matmul(self.left.T, g[: m1 * m2].reshape(m1, m2)), self.right)
        return jnp.concatenate([w.ravel()[:inner], matmul(self.extra.T, g[m1 * m2 :])])


@struct.dataclass
class Dense:
    """Any matrix: what small cases are compared with."""

    p: Array  # [D, d]

    def forward(self, w_d: Array) -> Array:
        return matmul(self.p, w_d)

    def transpose(self, g_D: Array, d: int) -> Array:
        return matmul(self.p.T, g_D)


@struct.dataclass
class Sparse:
    """A few entries in every column."""

    rows: Array  # [nonzeros] int32
    columns: Array
    values: Array
    size: int = struct.field(pytree_node=False)  # D

    def forward(self, w_d: Array) -> Array:
        return jnp.zeros(self.size, w_d.dtype).at[self.rows].add(self.values * w_d[self.columns])

    def transpose(self, g_D: Array, d: int) -> Array:
        return jnp.zeros(d, g_D.dtype).at[self.columns].add(self.values * g_D[self.rows])


@struct.dataclass
class Fastfood:
    """S H G Π H B: two Walsh–Hadamard transforms stand for a dense matrix (Le et al., 2013)."""

    b: Array  # [n] signs
    order: Array  # [n]
    back: Array
    g: Array  # [n] normal
    s: Array  # [D] with the scale in it

    def forward(self, w_d: Array) -> Array:
        x = self.b * jnp.pad(w_d, (0, len(self.b) - len(w_d)))
        return self.s * hadamard(self.g * hadamard(x)[self.order])[: len(self.s)]

    def transpose(self, g_D: Array, d: int) -> Array:
        x = jnp.pad(self.s * g_D, (0, len(self.b) - len(self.s)))
        return (self.b * hadamard((self.g * hadamard(x))[self.back]))[:d]


@struct.dataclass
class Identity:
    """No projection: w is all parameters."""

    def forward(self, w_d: Array) -> Array:
        return w_d

    def transpose(self, g_D: Array, d: int) -> Array:
        return g_D


def hadamard(x_n: Array) -> Array:
    """The Walsh–Hadamard transform of 2**k numbers, not normalised."""
    half = 1
    while half < len(x_n):
        pairs = x_n.reshape(-1, 2, half)
        x_n = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).ravel()
        half *= 2
    return x_n


def orthonormal(random: np.random.RandomState, rows: int, columns: int) -> np.ndarray:
    """Random orthonormal columns, the same wherever they are made."""
    q, r = np.linalg.qr(random.standard_normal((rows, columns)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def kron(D: int, d: int, random: np.random.RandomState) -> Kron:
    m1, k1 = math.isqrt(D - 1) + 1, math.isqrt(d - 1) + 1
    m2, k2 = -(-D // m1), -(-d // k1)
    left, right = orthonormal(random, m1, k1), orthonormal(random, m2, k2)
    return laid_out(left, right, np.zeros((0, 0)), random.permutation(m1 * m2)[:D])


def square(D: int, d: int, random: np.random.RandomState) -> Kron:
    m, k = math.isqrt(D), math.isqrt(d)
    left, right = orthonormal(random, m, k), orthonormal(random, m, k)
    rest, more = D - m * m, d - k * k
    extra = random.standard_normal((rest, more)) / math.sqrt(rest or D)
    return laid_out(left, right, extra, random.permutation(D))


def laid_out(left: np.ndarray, right: np.ndarray, extra: np.ndarray, take: np.ndarray) -> Kron:
    entries = len(left) * len(right) + len(extra)
    back = np.full(entries, len(take), np.int32)
    back[take] = np.arange(len(take))
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    return Kron(f32(left), f32(right), f32(extra), jnp.asarray(take, jnp.int32), jnp.asarray(back))


def dense(D: int, d: int, random: np.random.RandomState) -> Dense:
    return Dense(jnp.asarray(random.standard_normal((D, d)) / math.sqrt(D), jnp.float32))


def sparse(D: int, d: int, random: np.random.RandomState) -> Sparse:
    """Entries ±D**-¼, each with probability D**-½: columns of length one, on average."""
    count = random.binomial(D * d, D**-0.5)
    at = random.randint(0, D * d, count, np.int64)
    values = (2 * random.randint(0, 2, count) - 1) * D**-0.25
    i32 = lambda x: jnp.asarray(x, jnp.int32)
    return Sparse(i32(at // d), i32(at % d), jnp.asarray(values, jnp.float32), D)


def fastfood(D: int, d: int, random: np.random.RandomState) -> Fastfood:
    n = 1 << (D - 1).bit_length()
    signs, order = 2.0 * random.randint(0, 2, n) - 1, random.permutation(n)
    # scaled so that a column of P has length one, on average
    s = random.uniform(size=D) * math.sqrt(3 / D) / math.sqrt(n)
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    i32 = lambda x: jnp.asarray(x, jnp.int32)
    return Fastfood(
        f32(signs), i32(order), i32(np.argsort(order)), f32(random.standard_normal(n)), f32(s)
    )


KINDS = {"kron": kron, "square": square, "dense": dense, "sparse": sparse, "fastfood": fastfood}


def make(kind: str, D: int, d: int, seed: int) -> Projection:
    """A projection of [d] into [D]."""
    if kind == "identity":
        return Projection(Identity(), D, D)
    if kind not in KINDS:
        raise ValueError(f"projection {kind!r}: one of identity, {', '.join(KINDS)}")
    if not 1 <= d <= D:
        raise ValueError(
            f"a subspace of {d} dimensions: from 1 to the {D} parameters that it moves; "
            "identity is all of them"
        )
    return Projection(KINDS[kind](D, d, np.random.RandomState(seed)), d, D)
