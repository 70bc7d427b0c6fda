"""What edits change in the weights: how much, along how many directions, and where.

The changes of a matrix, ΔW [I, O], are compared as in "A Comprehensive Study of Knowledge Editing"
(section 5.1). Matrices are [in, out] here: an *input* of mlp/down is a neuron and its row the value
that the neuron adds, what the survey calls a column of the value layer.

norm, spectral           Frobenius norm of ΔW, its largest singular value
relative                 norm over the Frobenius norm of W
rank                     singular values above what rounding leaves of a zero
effective_rank           exp of the entropy of the singular values' shares (Roy & Vetterli, 2007)
stable_rank              (norm / spectral)²
below/f                  share of entries smaller than f times the largest
carry/entries            least share of the entries with 90% of the squared mass; of a normal matrix
                         0.44
carry/inputs, /outputs   least share of the rows (columns) with 90% of it
top/inputs, /outputs     share of it in the five rows (columns) with most

Singular values come from the small core of the factors. What depends on every entry is counted in
blocks of rows, so that of a LowRank the product is never held whole.

Shapes: I inputs, O outputs, R rank, P blocks of K rows (P K >= I) that are the rows of the map, Q
its columns.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxedit import delta
from jaxedit.base import Array, Deltas, Dense, LowRank, Params
from jaxedit.delta import matmul
from jaxedit.edit.conflicts import Place, pieces
from jaxedit.edit.record import Edit
from jaxedit.edit.stats import on_host
from jaxedit.evaluate.metrics import bootstrap
from jaxedit.merge import leaf
from jaxedit.sharding import on_mesh_of

BELOW = (1e-3, 1e-2, 1e-1)
CARRY = 0.9
TOP = 5
PIXELS = 32  # rows and columns of a map
TINY = float(jnp.finfo(jnp.float32).tiny)
Pool = Literal["mean", "max"]
Part = LowRank | Dense  # of one matrix: a [I, R], b [R, O]; w [I, O]


# One matrix


@partial(jax.jit, static_argnames=("pixels", "pool"))
def measure(part: Part, pixels: int = PIXELS, pool: Pool = "mean") -> dict[str, Array]:
    """The numbers above (but "relative"), and the map of |ΔW| [P, Q], pooled."""
    s_R = singular_values(part)
    norm, spectral = jnp.sqrt(jnp.square(s_R).sum()), s_R.max(initial=0)
    I, O = size(part)
    share_R = s_R / jnp.maximum(s_R.sum(), TINY)
    entropy = -jnp.where(share_R > 0, share_R * jnp.log(jnp.maximum(share_R, TINY)), 0).sum()
    out = {
        "norm": norm,
        "spectral": spectral,
        "rank": (s_R > spectral * max(I, O) * jnp.finfo(jnp.float32).eps).sum(),
        "effective_rank": jnp.where(spectral > 0, jnp.exp(entropy), 0),
        "stable_rank": jnp.square(norm / spectral),
    }
    blocks, take = in_blocks(part, pixels)
    largest_P, in_PK, out_PO, map_PQ = jax.lax.map(
        lambda block: look(take(block), pixels, pool), blocks
    )
    largest, in_I, out_O = largest_P.max(), in_PK.reshape(-1)[:I], out_PO.sum(0)
    for f in BELOW:
        at_least_P = jax.lax.map(lambda b, f=f: (take(b) >= f * largest).sum(), blocks)
        out[f"below/{f:g}"] = 1 - at_least_P.astype(jnp.float32).sum() / float(I * O)
    out["carry/entries"] = carrying(take, blocks, largest) / float(I * O)
    for name, mass in (("inputs", in_I), ("outputs", out_O)):
        mass = jnp.sort(mass)[::-1] / mass.sum()
        out[f"carry/{name}"] = ((jnp.cumsum(mass) < CARRY).sum() + 1) / len(mass)
        out[f"top/{name}"] = mass[:TOP].sum()
    if pool == "mean":  # over the entries that there are: the last row and column hold fewer
        map_PQ = map_PQ / (held(I, pixels)[:, None] * held(O, pixels))
    return out | {"map": map_PQ}


def size(part: Part) -> tuple[int, int]:
    left, right = (part.w, part.w) if isinstance(part, Dense) else (part.a, part.b)
    return left.shape[0], right.shape[1]


def singular_values(part: Part) -> Array:
    """Of ΔW; of a LowRank those of the core between orthonormal factors, [R]."""
    if isinstance(part, Dense):
        return jnp.linalg.svd(part.w.astype(jnp.float32), compute_uv=False)
    left, right = (
        jnp.linalg.qr(x.astype(jnp.float32), mode="r") for x in (part.a, part.b.swapaxes(-1, -2))
    )
    return jnp.linalg.svd(matmul(left, right.T), compute_uv=False)


@jax.jit
def input_norms(part: Part) -> Array:
    """How much each input's row changes, [I]."""
    if isinstance(part, Dense):
        return jnp.linalg.norm(part.w.astype(jnp.float32), axis=1)
    right = jnp.linalg.qr(part.b.astype(jnp.float32).T, mode="r")
    return jnp.linalg.norm(matmul(part.a.astype(jnp.float32), right.T), axis=1)


def in_blocks(part: Part, pixels: int) -> tuple[Array, Callable[[Array], Array]]:
    """Rows of a factor in blocks [P, K, R|O], padded with zeros, and a block's |ΔW| [K, O]."""
    rows = part.w if isinstance(part, Dense) else part.a
    K = per_pixel(len(rows), pixels)
    P = -(-len(rows) // K)
    blocks = jnp.pad(rows, ((0, P * K - len(rows)), (0, 0))).reshape(P, K, -1)
    f32 = jnp.float32
    if isinstance(part, Dense):
        return blocks, lambda w_KO: jnp.abs(w_KO.astype(f32))
    return blocks, lambda a_KR: jnp.abs(matmul(a_KR.astype(f32), part.b.astype(f32)))


def per_pixel(length: int, pixels: int) -> int:
    return max(-(-length // pixels), 1)


def held(length: int, pixels: int) -> np.ndarray:
    """How many of `length` entries fall into each pixel."""
    step = per_pixel(length, pixels)
    starts = np.arange(0, length, step)
    return np.minimum(length - starts, step).astype(np.float32)


def look(x_KO: Array, pixels: int, pool: Pool) -> tuple[Array, Array, Array, Array]:
    """Of one block: its largest entry, squared mass by row and by column, its row of the map."""
    O = x_KO.shape[1]
    step = per_pixel(O, pixels)
    x_KQS = jnp.pad(x_KO, ((0, 0), (0, -O % step))).reshape(len(x_KO), -1, step)
    map_Q = x_KQS.max((0, 2)) if pool == "max" else x_KQS.sum((0, 2))
    square_KO = jnp.square(x_KO)
    return x_KO.max(), square_KO.sum(1), square_KO.sum(0), map_Q


def carrying(take: Callable[[Array], Array], blocks: Array, largest: Array) -> Array:
    """The least number of entries whose squares add up to 90% of the sum of all.

    The size of the last of them is found bit by bit: floats above zero are in the order of their
    bits, so that no entries need be sorted or held.
    """
    bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.int32)

    def above(least: Array) -> tuple[Array, Array]:
        """Entries of at least so many bits: how many, and their squared mass."""

        def one(block: Array) -> tuple[Array, Array]:
            x_KO = take(block)
            there = bits(x_KO) >= least
            return there.sum(), jnp.where(there, jnp.square(x_KO), 0).sum()

        count_P, mass_P = jax.lax.map(one, blocks)
        return count_P.astype(jnp.float32).sum(), mass_P.sum()

    goal = CARRY * above(jnp.int32(0))[1]

    def halve(_: Array, span: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = span  # the mass above low reaches the goal, that above high does not
        middle = low + (high - low) // 2
        reached = above(middle)[1] >= goal
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    low, high = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), bits(largest) + 1))
    count, mass = above(high)
    last = jnp.square(jax.lax.bitcast_convert_type(low, jnp.float32))
    return count + jnp.ceil((goal - mass) / last)


# Edits


def parts(deltas: Deltas) -> list[tuple[Place, Part]]:
    """Shared deltas matrix by matrix: (path, layer) and its change, of a rank that is a power of
    two, so that edits of different ranks are few programs.
    """
    found: list[tuple[Place, Part]] = []
    for path, d in delta.single(deltas).items():
        if (rows := delta.count_rows(path, d)) is not None:
            raise ValueError(
                f"delta {path!r} has one change per row ({rows} rows); take one with delta.row"
            )
        found += [(place, part_of(*arrays)) for place, arrays in pieces(path, d)]
    return found


def part_of(*arrays: Any) -> Part:
    """NumPy arrays stay what they are: a jitted function puts them where its mesh wants them."""
    if len(arrays) == 1:
        return Dense(*arrays)
    a, b = arrays
    more = (1 << max(a.shape[1] - 1, 0).bit_length()) - a.shape[1]
    wide: Any = (np.pad(a, ((0, 0), (0, more))), np.pad(b, ((0, more), (0, 0))))
    return LowRank(*wide)


def weights(
    edits: Sequence[Edit], params: Params, *, pixels: int = PIXELS, pool: Pool = "mean"
) -> dict[str, Any]:
    """What edits of one model change, by matrix, as JSON has it:

    {"mlp/down": {"layers": [5], "shape": [I, O], "norm": [{"mean", "low", "high", "n"}], …, "map":
    [[[…]]]}}. Lists have an entry per layer (null: a matrix outside the blocks): the mean over the
    n edits that change it with its 95% interval; of `map` the mean of |ΔW|, in pixels of means or
    of maxima.
    """
    if pool not in get_args(Pool) or pixels < 1:
        raise ValueError(f"pool={pool!r}, pixels={pixels}: mean or max, and at least one pixel")
    found: dict[Place, list[dict[str, np.ndarray]]] = defaultdict(list)
    shapes: dict[str, tuple[int, int]] = {}
    for edit in edits:
        for place, part in parts(edit.deltas):
            seen = {k: np.asarray(x) for k, x in measure(part, pixels, pool).items()}
            if 0 < seen["norm"] < np.inf:
                shapes[place[0]] = size(part)
                found[place].append(seen)
    out: dict[str, Any] = {}
    for path, sizes in norms(params, list(shapes)).items():
        layers = sorted((layer for p, layer in found if p == path), key=lambda i: i or 0)
        for layer in layers:
            for seen in found[path, layer]:
                seen["relative"] = seen["norm"] / sizes[layer or 0]
        some = [found[path, layer] for layer in layers]
        each = {
            name: [averaged([s[name] for s in of_layer]) for of_layer in some]
            for name in some[0][0]
            if name != "map"
        }
        maps = [shorten(np.mean([s["map"] for s in of_layer], 0)) for of_layer in some]
        out[path] = {"layers": layers, "shape": list(shapes[path]), **each, "map": maps}
    return out


def norms(params: Params, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """The Frobenius norms of weights, by path: [L], or [1] outside the blocks."""
    flat = traverse_util.flatten_dict(params, sep="/")
    missing = [path for path in paths if leaf(path) not in flat]
    if missing:
        raise ValueError(f"edits change {missing[0]!r}, which these params have not")
    with on_mesh_of(params):
        return {path: on_host(_norms(flat[leaf(path)])) for path in paths}


@jax.jit
def _norms(w: Array) -> Array:
    square = jnp.square(w.astype(jnp.float32)).sum((-1, -2))
    return jnp.atleast_1d(jnp.sqrt(square))


def averaged(values: Sequence[Any]) -> dict[str, float] | None:
    """The mean of what is a number and its 95% interval, as JSON has it; None of nothing."""
    finite = np.asarray([v for v in values if np.isfinite(v)], np.float64)
    return bootstrap(finite)._asdict() if len(finite) else None


def shorten(x: np.ndarray) -> Any:
    """Nested lists, in four digits: maps are looked at."""
    return [shorten(row) for row in x] if x.ndim else float(f"{float(x):.4g}")
