"""Sparse probing (Gurnee et al., 2023): do a few neurons tell a feature?

Activations X of neurons at N places (tokens, or ends of prompts) and a label y of each. With one
neuron the best probe is exact: of all thresholds and both directions the one with the highest F1,
for all neurons at once. With k, a rule ranks neurons, and a logistic regression with balanced
classes and a small ridge is fitted by Newton's method on the k highest. What is told is measured on
places that were not used, beside two controls: shuffled labels, and random neurons.

Shapes: N places, X neurons (any axes, [L, F] too), k chosen ones.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array

Rule = Literal["mean", "f", "mi", "l1", "random"]
KS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128)
BINS = 10  # of the mutual information
RIDGE = 1e-3
f32 = jnp.float32


class Threshold(NamedTuple):
    """The best probe of one neuron, for every neuron [X]."""

    f1: Array
    at: Array  # predicted where sign * x > sign * at
    sign: Array


def check(x_NX: Any, y_N: Any) -> tuple[Array, Array]:
    x, y = jnp.asarray(x_NX, f32), jnp.asarray(np.asarray(y_N), f32)
    if y.ndim != 1 or len(x) != len(y) or x.ndim < 2:
        raise ValueError(f"activations {list(x.shape)}, labels {list(y.shape)}: [N, …] and [N]")
    if not set(np.unique(np.asarray(y))) == {0.0, 1.0}:
        raise ValueError("labels are of two classes, 0 and 1, both of which occur")
    return x, y


def best_threshold(x_NX: Array | np.ndarray, y_N: Array | np.ndarray) -> Threshold:
    """Exact for k = 1: equal activations are on one side of a threshold."""
    x, y = check(x_NX, y_N)
    found = _best_threshold(x.reshape(len(x), -1), y)
    return Threshold(*(z.reshape(x.shape[1:]) for z in found))


@jax.jit
def _best_threshold(x_NX: Array, y_N: Array) -> Threshold:
    N = len(y_N)
    order_NX = jnp.argsort(x_NX, 0)
    x_NX = jnp.take_along_axis(x_NX, order_NX, 0)
    before_NX = jnp.cumsum(y_N[order_NX], 0)  # positives up to and with place i
    total, count_N1 = y_N.sum(), jnp.arange(1, N + 1, dtype=f32)[:, None]
    f1 = lambda true, said: 2 * true / jnp.maximum(said + total, 1)
    # a threshold after place i: the places above it are predicted, or those up to it
    up_NX, down_NX = f1(total - before_NX, N - count_N1), f1(before_NX, count_N1)
    # after the last place: nothing is above, everything is below
    splits_NX = jnp.concatenate([x_NX[1:] > x_NX[:-1], jnp.ones((1, x_NX.shape[1]), bool)])
    up_NX, down_NX = (jnp.where(splits_NX, z, -1.0) for z in (up_NX, down_NX))
    after_NX = jnp.concatenate([x_NX[1:], x_NX[-1:] + 1])
    middle_NX = (x_NX + after_NX) / 2
    pick = lambda z, i: jnp.take_along_axis(z, i[None], 0)[0]
    at_up, at_down = up_NX.argmax(0), down_NX.argmax(0)
    is_up = pick(up_NX, at_up) >= pick(down_NX, at_down)
    at = jnp.where(is_up, at_up, at_down)
    best = jnp.where(is_up, pick(up_NX, at_up), pick(down_NX, at_down))
    return Threshold(best, pick(middle_NX, at), jnp.where(is_up, 1.0, -1.0))


def rank(
    x_NX: Array | np.ndarray, y_N: Array | np.ndarray, rule: Rule = "mean",
    *, key: Array | None = None, l1: float = 0.1,
) -> Array:  # fmt: skip
    """How much each neuron tells by itself (l1: beside the others), [X]; higher is more.

    mean: difference of the classes' means over the pooled deviation. f: the F statistic. mi: mutual
    information with the neuron in ten quantiles, in nats. l1: |weight| in a logistic regression
    with that share of the penalty at which all weights are zero. random: nothing.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule {rule!r}: of {', '.join(get_args(Rule))}")
    if rule == "random" and key is None:
        raise ValueError("rule 'random' takes a key")
    x, y = check(x_NX, y_N)
    flat = x.reshape(len(x), -1)
    if rule == "random":
        assert key is not None
        return jax.random.uniform(key, x.shape[1:])
    rules: dict[str, Any] = {"mean": _mean, "f": _f, "mi": _mi, "l1": partial(_l1, share=l1)}
    return rules[rule](flat, y).reshape(x.shape[1:])


def moments(x_NX: Array, y_N: Array) -> tuple[Array, Array, Array, Array]:
    """Means of the classes, the sum of squares within them, and the positives."""
    n1 = y_N.sum()
    n0 = len(y_N) - n1
    mean1, mean0 = (y_N @ x_NX) / n1, ((1 - y_N) @ x_NX) / n0
    within = jnp.square(x_NX - jnp.where(y_N[:, None] > 0, mean1, mean0)).sum(0)
    return mean1, mean0, within, n1


@jax.jit
def _mean(x_NX: Array, y_N: Array) -> Array:
    mean1, mean0, within, _ = moments(x_NX, y_N)
    return jnp.abs(mean1 - mean0) / jnp.sqrt(jnp.maximum(within / (len(y_N) - 2), 1e-12))


@jax.jit
def _f(x_NX: Array, y_N: Array) -> Array:
    mean1, mean0, within, n1 = moments(x_NX, y_N)
    between = n1 * (len(y_N) - n1) / len(y_N) * jnp.square(mean1 - mean0)
    return between / jnp.maximum(within / (len(y_N) - 2), 1e-12)


@jax.jit
def _mi(x_NX: Array, y_N: Array) -> Array:
    edges = jnp.quantile(x_NX, jnp.linspace(0, 1, BINS + 1)[1:-1], axis=0)
    bin_NX = (x_NX[None] > edges[:, None]).sum(0)
    p1, out = y_N.mean(), jnp.zeros(x_NX.shape[1])
    for b in range(BINS):
        here_NX = (bin_NX == b).astype(f32)
        size, both1 = here_NX.mean(0), (y_N @ here_NX) / len(y_N)
        for both, p in ((both1, p1), (size - both1, 1 - p1)):
            seen = (both > 1e-9) & (size > 0)
            ratio = jnp.where(seen, both / jnp.where(seen, size * p, 1), 1)
            out = out + jnp.where(seen, both, 0) * jnp.log(ratio)
    return out


@jax.jit
def _l1(x_NX: Array, y_N: Array, share: float) -> Array:
    """Proximal gradients with momentum, on activations of deviation one."""
    x = (x_NX - x_NX.mean(0)) / jnp.maximum(x_NX.std(0), 1e-6)
    weight_N = balance(y_N) / len(y_N)
    # the bias absorbs the classes' sizes: with balanced classes it starts at zero
    penalty = share * jnp.abs((weight_N * (y_N - 0.5)) @ x).max()
    v = jnp.ones(x.shape[1])
    for _ in range(12):  # the largest singular value, which bounds the curvature
        v = x.T @ (weight_N * (x @ v))
        v = v / jnp.maximum(jnp.linalg.norm(v), 1e-12)
    step = 4 / jnp.maximum(v @ (x.T @ (weight_N * (x @ v))), 1e-12) / 1.1

    def one(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        w, old = carry
        z = w + i / (i + 3) * (w - old)
        slope = x.T @ (weight_N * (jax.nn.sigmoid(x @ z) - y_N))
        moved = z - step * slope
        new = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - step * penalty, 0)
        return (new, w), None

    zero = jnp.zeros(x.shape[1])
    (w, _), _ = jax.lax.scan(one, (zero, zero), jnp.arange(300, dtype=f32))
    return jnp.abs(w)


def balance(y_N: Array) -> Array:
    """Weights with which both classes count the same."""
    n1 = y_N.sum()
    return jnp.where(y_N > 0, len(y_N) / (2 * n1), len(y_N) / (2 * (len(y_N) - n1)))


class Probe(NamedTuple):
    w: Array  # [k], of scaled activations
    b: Array
    scale: Array  # [k] by which activations are divided


@partial(jax.jit, static_argnames="rounds")
def fit(x_Nk: Array, y_N: Array, *, ridge: float = RIDGE, rounds: int = 30) -> Probe:
    """Logistic regression with balanced classes, by Newton's method; the bias has no ridge. The
    authors divide activations by ten deviations.
    """
    x_Nk, y_N = x_Nk.astype(f32), y_N.astype(f32)
    scale = 10 * jnp.maximum(x_Nk.std(0), 1e-3)
    one_Nk = jnp.concatenate([x_Nk / scale, jnp.ones((len(y_N), 1))], 1)
    weight_N = balance(y_N) / len(y_N)
    k = x_Nk.shape[1]
    lasting = jnp.full(k + 1, ridge / 100).at[k].set(0)  # of weights as if of one deviation

    def loss(w: Array) -> Array:
        z = one_Nk @ w
        return (weight_N * (jax.nn.softplus(z) - y_N * z)).sum() + 0.5 * (lasting * w * w).sum()

    def newton(w: Array, _: Any) -> tuple[Array, None]:
        p = jax.nn.sigmoid(one_Nk @ w)
        slope = one_Nk.T @ (weight_N * (p - y_N)) + lasting * w
        curve = (one_Nk.T * (weight_N * p * (1 - p))) @ one_Nk + jnp.diag(lasting + 1e-9)
        move = jnp.linalg.solve(curve, slope)
        sizes = 0.5 ** jnp.arange(8, dtype=f32)  # as far as it helps
        losses = jax.vmap(lambda s: loss(w - s * move))(sizes)
        best = jnp.where(losses.min() < loss(w), sizes[losses.argmin()], 0.0)
        return w - best * move, None

    w, _ = jax.lax.scan(newton, jnp.zeros(k + 1), length=rounds)
    return Probe(w[:k], w[k], scale)


def apply(probe: Probe, x_Nk: Array) -> Array:
    """Log-odds [N]."""
    return (x_Nk.astype(f32) / probe.scale) @ probe.w + probe.b


def metrics(score_N: Array | np.ndarray, y_N: Array | np.ndarray) -> dict[str, float]:
    """Of log-odds (predicted where above zero): the usual ones, in float64, exact with ties."""
    score, y = np.asarray(score_N, np.float64), np.asarray(y_N) > 0
    said = score > 0
    tp, fp = float((said & y).sum()), float((said & ~y).sum())
    fn, tn = float((~said & y).sum()), float((~said & ~y).sum())
    N, over = tp + fp + fn + tn, lambda a, b: a / b if b else 0.0
    precision, recall, spared = over(tp, tp + fp), over(tp, tp + fn), over(tn, tn + fp)
    chance = over((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn), N * N)
    corr = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "f1": over(2 * tp, 2 * tp + fp + fn), "mcc": over(tp * tn - fp * fn, corr),
        "kappa": over((tp + tn) / N - chance, 1 - chance), "fmi": np.sqrt(precision * recall),
        "precision": precision, "recall": recall, "balanced_accuracy": (recall + spared) / 2,
        "average_precision": average_precision(score, y), "roc_auc": roc_auc(score, y),
    }  # fmt: skip


def average_precision(score_N: np.ndarray, y_N: np.ndarray) -> float:
    """Σ (R_n - R_{n-1}) P_n over distinct scores, the highest first."""
    order = np.argsort(-score_N, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score_N[order])), len(order) - 1]
    true = np.cumsum(y_N[order])[last]
    precision, recall = true / (last + 1), true / max(true[-1], 1)
    return float((np.diff(np.r_[0, recall]) * precision).sum())


def roc_auc(score_N: np.ndarray, y_N: np.ndarray) -> float:
    """How often a positive scores above a negative, ties counting half."""
    n1, n0 = int(y_N.sum()), int((~y_N).sum())
    if not n1 or not n0:
        return 0.5
    _, place, count = np.unique(score_N, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[y_N].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def study(
    key: Array, x_NX: Array | np.ndarray, y_N: Array | np.ndarray, *, ks: Sequence[int] = KS,
    rule: Rule = "mean", train: float = 0.7, telescopic: bool = False, candidates: int = 512,
) -> dict[str, Any]:  # fmt: skip
    """What k neurons tell of places that were not used, for every k; the neurons; and the controls.

    Neurons are ranked and fitted on a share `train` of the places. telescopic: the k are those with
    the largest weights among the next larger k, from `candidates` down, not the k that rank
    highest. {"k": {k: {"neurons", "metrics", "shuffled", "random"}}, "one": {"neuron", "f1"}}.
    """
    x, y = check(x_NX, y_N)
    split, mix, draw = jax.random.split(key, 3)
    order = jax.random.permutation(split, len(y))
    some, rest = order[: round(train * len(y))], order[round(train * len(y)) :]
    flat = x.reshape(len(x), -1)
    x1, y1, x2, y2 = flat[some], y[some], flat[rest], y[rest]
    check(x1, y1)
    ks = sorted({k for k in ks if k <= flat.shape[1]})
    place = lambda i: tuple(int(j) for j in np.unravel_index(int(i), x.shape[1:]))
    shuffled = jax.random.permutation(mix, y1)
    anyone = jax.random.permutation(draw, flat.shape[1])
    out: dict[str, Any] = {"k": {}, "train": len(some), "test": len(rest)}

    def measured(chosen: Array, labels: Array) -> tuple[dict[str, float], Probe]:
        probe = fit(x1[:, chosen], labels)
        return metrics(apply(probe, x2[:, chosen]), y2), probe

    def choose(labels: Array) -> dict[int, Array]:
        best = jnp.argsort(-rank(x1, labels, rule, key=draw))
        if not telescopic:
            return {k: best[:k] for k in ks}
        chosen, left = {}, best[:candidates]
        for k in reversed(ks):
            probe = fit(x1[:, left], labels)
            left = left[jnp.argsort(-jnp.abs(probe.w))][:k]
            chosen[k] = left
        return chosen

    real, mixed = choose(y1), choose(shuffled)
    for k in ks:
        out["k"][k] = {
            "neurons": [place(i) for i in real[k]],
            "metrics": measured(real[k], y1)[0],
            "shuffled": measured(mixed[k], shuffled)[0],
            "random": measured(anyone[:k], y1)[0],
        }
    one = best_threshold(x1, y1)
    i = int(one.f1.argmax())
    said = float(one.sign[i]) * (x2[:, i] - one.at[i])
    out["one"] = {"neuron": place(i), "train_f1": float(one.f1[i]), **metrics(said, y2)}
    return out
