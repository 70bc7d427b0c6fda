"""Few levels for many numbers: uniform bins, exact k-means, and levels that are trained.

On the host in float64; only `snap`, which training goes through, is JAX. Levels are float16 in the
end: what is coded, and what the model that is evaluated has.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array

EDGE = 1e-6  # beyond the largest number, so that it lies inside the last bin


def uniform(w_d: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Bins of one width over [-max |w|, max |w|]: symbols [d], and levels, the means of the bins.

    An empty bin's level is its left edge; it costs its 16 bits, unless `used` takes it out.
    """
    check(w_d, levels)
    most = np.abs(w_d).max() + EDGE
    edges = np.linspace(-most, most, levels + 1)
    symbols = np.clip(np.digitize(w_d, edges) - 1, 0, levels - 1)
    counts = np.bincount(symbols, minlength=levels)
    sums = np.bincount(symbols, weights=w_d, minlength=levels)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), edges[:-1])
    return symbols, means


def kmeans(w_d: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The levels with the least squared error, exactly: symbols [d], levels in ascending order.

    In one dimension clusters are intervals of the sorted numbers, so a dynamic programme over their
    ends finds the best. The best begin of the last cluster never moves left as its end moves right
    (the cost is concave Monge), so each row of the programme takes d log d steps.
    """
    check(w_d, levels)
    order = np.argsort(w_d, kind="stable")
    x = np.asarray(w_d, np.float64)[order]
    x = x - (middle := x.mean())
    levels = min(levels, len(np.unique(x)))
    n = len(x)
    one, two = (np.concatenate([[0.0], np.cumsum(z)]) for z in (x, x * x))

    def cost(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Squared error of a cluster of [begin, end) around its mean."""
        total = one[end] - one[begin]
        return np.maximum(two[end] - two[begin] - total * total / (end - begin), 0)

    best = cost(np.zeros(n, int), np.arange(1, n + 1))  # of the first i + 1 numbers
    begins = [np.zeros(n, int)]
    for k in range(1, levels):
        best, begin = row(best, cost, k)
        begins.append(begin)
    cuts, end = [n], n
    for begin in reversed(begins):
        end = int(begin[end - 1])
        cuts.append(end)
    cuts = cuts[::-1]
    sorted_symbols = np.repeat(np.arange(levels), np.diff(cuts))
    symbols = np.empty(n, int)
    symbols[order] = sorted_symbols
    means = np.add.reduceat(x, cuts[:-1]) / np.diff(cuts) + middle
    return symbols, means


def row(best: np.ndarray, cost, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One more cluster: the least errors of the first i + 1 numbers, and where the last begins.

    Breadth first: ends halfway between those that are settled look only between their begins.
    """
    n = len(best)
    out, begin = np.full(n, np.inf), np.full(n, k)
    low, high = np.array([k]), np.array([n - 1])  # ends of each stretch that is not settled
    first, last = np.array([k]), np.array([n - 1])  # where their begins may be
    while len(low):
        mid = (low + high) // 2
        stop = np.minimum(last, mid)
        count = stop - first + 1
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        which = np.repeat(np.arange(len(mid)), count)
        at = np.arange(count.sum()) - starts[which] + first[which]
        found = best[at - 1] + cost(at, mid[which] + 1)
        out[mid] = np.minimum.reduceat(found, starts)
        hits = np.flatnonzero(found == out[mid][which])
        chosen = at[hits[np.searchsorted(which[hits], np.arange(len(mid)))]]
        begin[mid] = chosen
        parts = [
            (low, mid - 1, first, chosen),
            (mid + 1, high, chosen, last),
        ]
        low, high, first, last = (np.concatenate(z) for z in zip(*parts, strict=True))
        keep = low <= high
        low, high, first, last = low[keep], high[keep], first[keep], last[keep]
    return out, begin


KINDS = {"uniform": uniform, "kmeans": kmeans}


def used(symbols: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same numbers by float16 levels that occur, each once, in ascending order."""
    values = levels.astype(np.float16)[symbols]
    kept, again = np.unique(values, return_inverse=True)
    return again.reshape(-1), kept


def nearest(w_d: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """For every number the symbol of the level nearest to it."""
    order = np.argsort(levels)
    between = (levels[order][1:] + levels[order][:-1]) / 2
    return order[np.searchsorted(between, w_d)]


@jax.custom_vjp
def snap(w_d: Array, levels_K: Array) -> Array:
    """Every number's nearest level. Gradients pass to the number as if it were not rounded, and to
    each level the sum of those that are rounded to it.
    """
    return levels_K[closest(w_d, levels_K)]


def closest(w_d: Array, levels_K: Array) -> Array:
    return jnp.abs(w_d[:, None] - levels_K).argmin(1)


def _forward(w_d: Array, levels_K: Array) -> tuple[Array, tuple[Array, Array]]:
    at = closest(w_d, levels_K)
    return levels_K[at], (at, levels_K)


def _back(kept: tuple[Array, Array], g_d: Array) -> tuple[Array, Array]:
    at, levels_K = kept
    return g_d, jnp.zeros_like(levels_K).at[at].add(g_d)


snap.defvjp(_forward, _back)


def half(levels_K: Array) -> Array:
    """Levels as float16 holds them, with the gradient of those that it does not."""
    rounded = levels_K.astype(jnp.float16).astype(levels_K.dtype)
    return levels_K + jax.lax.stop_gradient(rounded - levels_K)


def check(w_d: np.ndarray, levels: int) -> None:
    if levels < 2:
        raise ValueError(f"{levels} levels: at least 2")
    if not np.isfinite(w_d).all() or np.abs(w_d).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError("numbers that float16 cannot hold: not finite, or beyond 65,504")
