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
    """The mean of [N] values, one a case, and its percentile interval over resampled cases.

    Of [N, M] values it takes the means of the columns (`resampled_means`), and `combine` makes
    [R, M] of them into R numbers. The same values and seed give the same interval. One case cannot
    say how much cases differ: its interval is its value.
    """
    values_NM = np.asarray(values_NM, np.float64)
    values_NM = values_NM[:, None] if values_NM.ndim == 1 else values_NM
    if values_NM.shape[1] != 1 and combine is None:
        raise ValueError(f"values {values_NM.shape}: several columns need `combine`")
    combine = combine or (lambda means_RM: means_RM[:, 0])
    mean = float(combine(column_means(values_NM))[0])
    drawn_RM = resampled_means(values_NM, resamples, seed)
    drawn_R = combine(drawn_RM[~np.isnan(drawn_RM).any(1)])
    return interval(mean, drawn_R, int((~np.isnan(values_NM)).sum(0).min()), level)


def interval(mean: float, resampled_R: np.ndarray, n: int, level: float = 0.95) -> Interval:
    """Between the percentiles of what resampled cases give; those that give NaN do not count."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(resampled_R, [tail, 100 - tail])
    return Interval(mean, float(low), float(high), n)


def resampled_means(values_NM: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The means of M columns over each choice of N cases, with repetition, [R, M].

    A mean is over the cases that have the column, those without it hold NaN. A choice is the same
    for all columns, so that what they share in a case is not lost when they are combined.
    """
    N = len(values_NM)
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // max(N, 1))
    means = []
    for at in range(0, resamples, at_once):
        R = min(at_once, resamples - at)
        rows_RN = rng.integers(N, size=(R, N)) + N * np.arange(R)[:, None]
        times_RN = np.bincount(rows_RN.ravel(), minlength=R * N).reshape(R, N)
        means.append(column_means(values_NM, times_RN.astype(np.float64)))
    return np.concatenate(means)


def column_means(values_NM: np.ndarray, times_RN: np.ndarray | None = None) -> np.ndarray:
    """The means of columns with each case taken so many times (once), over the cases that have the
    column, [R, M]; NaN where none of those taken has it.
    """
    there_NM = ~np.isnan(values_NM)
    if not values_NM.size or not there_NM.any(0).all():
        raise ValueError("no values to take the mean of")
    times_RN = np.ones((1, len(values_NM))) if times_RN is None else times_RN
    sums_RM = times_RN @ np.where(there_NM, values_NM, 0.0)
    counts_RM = times_RN @ there_NM.astype(np.float64)
    found_RM = np.divide(sums_RM, counts_RM, out=np.full_like(sums_RM, np.nan), where=counts_RM > 0)
    # or the mean of equal values would be beside them
    return np.clip(found_RM, np.nanmin(values_NM, 0), np.nanmax(values_NM, 0))
