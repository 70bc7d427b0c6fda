"""Metrics of tokens and probabilities, one number each, in float64 on the host.

Log-probabilities are natural; `logp_U` are those of an answer's U tokens, each given those before.
Metrics of text are in `texts`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

CELLS = 1 << 20  # numbers that the bootstrap holds at once


def token_accuracy(said: Sequence[int], target: Sequence[int]) -> float:
    """Share of the target's tokens that are the model's first choice, with the target's tokens
    before them: EasyEdit's "acc", and zsRE's in ROME and MEMIT.
    """
    alike(said, target)
    return agreement(target, said)


def exact_match(said: Sequence[int], target: Sequence[int]) -> bool:
    """Is every token of the target the model's first choice: would greedy decoding say it."""
    alike(said, target)
    return tuple(said) == tuple(target)


def alike(said: Sequence[int], target: Sequence[int]) -> None:
    if len(said) != len(target) or not len(target):
        raise ValueError(
            f"{len(said)} tokens said for a target of {len(target)}: needs one for each, at least 1"
        )


def agreement(before: Sequence[object], after: Sequence[object]) -> float:
    """Share of the places of `before` where `after` has the same.

    With first choices under a given answer this is EasyEdit's locality, with generated tokens that
    of Sanitation, where the text after the edit may be shorter: what it lacks is not the same.
    Where there was nothing before, 1 if there is nothing after.
    """
    if not len(before):
        return float(not len(after))
    return sum(a == b for a, b in zip(before, after, strict=False)) / len(before)


def probability(logp_U: Sequence[float]) -> float:
    """exp of the mean log-probability of an answer's tokens: CounterFact's P(answer), which does
    not shrink with the answer's length.
    """
    if not len(logp_U):
        raise ValueError("an answer without tokens has no probability")
    return float(np.exp(np.mean(np.asarray(logp_U, np.float64))))


def probability_success(logp_U: Sequence[float], other_U: Sequence[float]) -> bool:
    """P(answer) > P(other answer): CounterFact's "success" (ES, PS; NS with the two exchanged)."""
    return float(np.mean(np.asarray(logp_U, np.float64))) > float(
        np.mean(np.asarray(other_U, np.float64))
    )


def probability_magnitude(logp_U: Sequence[float], other_U: Sequence[float]) -> float:
    """P(answer) - P(other answer), in [-1, 1]: CounterFact's "magnitude" (EM, PM, NM)."""
    return probability(logp_U) - probability(other_U)


def harmonic_mean(values: Sequence[float]) -> float:
    """Of shares; 0 if one of them is: CounterFact's Score, of ES, PS and NS."""
    found = np.asarray(values, np.float64)
    if not found.size or (found < 0).any():
        raise ValueError(f"harmonic mean of {list(values)}: needs numbers, none below 0")
    return float(found.size / np.sum(1 / found)) if found.all() else 0.0


def perplexity(nll_N: Sequence[float]) -> float:
    """exp of the mean negative log-likelihood of tokens, in nats each."""
    if not len(nll_N):
        raise ValueError("no tokens to take the perplexity of")
    return float(np.exp(np.mean(np.asarray(nll_N, np.float64))))


def expression(
    wanted: Sequence[Sequence[float]],
    against: Sequence[Sequence[float]],
    wanted_before: Sequence[Sequence[float]],
) -> float:
    """ConvSent's edit success: does the edited model prefer replies of the wanted sentiment, and
    are they still at least as likely as they were.

    σ(w - a) · min(1, exp(w - w₀)), the means of log-probabilities over all tokens of all replies:
    w of the wanted ones after the edit, w₀ before it, a of the others after it.
    """
    w, a, before = (
        float(np.mean(np.concatenate([np.asarray(r, np.float64) for r in replies])))
        for replies in (wanted, against, wanted_before)
    )
    return sigmoid(w - a) * math.exp(min(0.0, w - before))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def drift(before_UV: np.ndarray, after_UV: np.ndarray) -> float:
    """Mean over U places of KL(before ‖ after), in nats, from log-probabilities of all V tokens:
    ConvSent's locality ("dd"). Lower is better.
    """
    before, after = np.asarray(before_UV, np.float64), np.asarray(after_UV, np.float64)
    p = np.exp(before)
    gap = np.subtract(before, after, out=np.zeros_like(p), where=p > 0)  # 0 log 0 is 0
    return float((p * gap).sum(-1).mean())


class Interval(NamedTuple):
    """A mean over cases, and the interval in which it is expected with other cases like them."""

    mean: float
    low: float
    high: float
    n: int  # cases


def bootstrap(
    values_NM: np.ndarray,
    combine: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile interval of the mean of [N] values, over resampled cases.

    Of [N, M] values it takes the means of the columns, each over the cases that have it (the others
    hold NaN), and `combine` makes [R, M] means into R numbers; the columns are resampled together,
    so that what they share in a case counts. The same values and seed give the same interval. One
    case cannot say how much cases differ: its interval is its value.
    """
    values = np.asarray(values_NM, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.shape[1] != 1 and combine is None:
        raise ValueError(f"values {values.shape}: several columns need `combine`")
    there = ~np.isnan(values)
    if not values.size or not there.any(0).all():
        raise ValueError("no values to take the mean of")
    combine = combine or (lambda means: means[:, 0])
    N, M = values.shape
    filled, least, most = np.where(there, values, 0.0), np.nanmin(values, 0), np.nanmax(values, 0)

    def means(rows: np.ndarray | slice) -> np.ndarray:
        """[R, M], NaN where none of the rows has the column."""
        sums, counts = filled[rows].sum(-2), there[rows].sum(-2)
        found = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        return np.clip(found, least, most)  # or equal values have a mean beside themselves

    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // (N * M))
    drawn = [
        means(rng.integers(N, size=(min(at_once, resamples - at), N)))
        for at in range(0, resamples, at_once)
    ]
    found = np.concatenate(drawn)
    found = combine(found[~np.isnan(found).any(1)])
    mean = float(combine(means(slice(None))[None])[0])
    tail = 100 * (1 - level) / 2
    low, high = (
        (float(x) for x in np.percentile(found, [tail, 100 - tail])) if N > 1 else (mean,) * 2
    )
    return Interval(mean, low, high, int(there.sum(0).min()))
