r"""Bounds on the true risk, from losses of n of the m documents: float64, on the host.

A hypothesis g has a prior P(g), fixed before the data; nats = ln 1/P(g). Its loss on a document
lies in [low, high], of width D. n of m documents are evaluated, drawn with replacement.

- "hoeffding": with probability 1 - δ, for every g of K candidates (models, alphas) that did not
  depend on which n were drawn, and any fixed s in (0, 1), here n / (n + m),

      R ≤ R̂_n + D √((nats + ln 1/(s δ)) / 2m) + D √((ln K + ln 1/((1-s) δ)) / 2n)

- "paper": the same without ln K, as Lotfi et al. (2024) compute it. It does not hold for the best
  of several alphas, and is here to be compared with.
- "betting": E Π (1 + u_k) ≤ (1 + E u)^m for u_k = s (y - x_k) / D_y > -1, D_y = high - y, so that
  with ν = (1/m) Σ ln(1 + u_k), by Markov's inequality, a union over the prior and a grid of y, s,

      R ≤ y + D_y / s · (1 - exp(ν - (nats + ln(grid / (δ/2))) / m))

  where ν is bounded from below by its mean on the n documents and their variance (Maurer and
  Pontil, 2009), with the other half of δ, shared by the grid and the K candidates. It adapts to how
  little the losses vary: several times tighter.

Where all m are evaluated (`whole`) what the n would cost is dropped.
"""

import math
from typing import Literal

import numpy as np

Theorem = Literal["hoeffding", "betting", "paper"]
# Of the betting bound: y as shares of the range, s. Fixed, so that the union over them is honest.
SHARES = np.linspace(0.1, 0.9, 9)
BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9])
SLACK = 1e-9  # of losses at the ends of their range


def smoothing(alpha: float, vocab: int) -> tuple[float, float]:
    """The range of -log2((1 - alpha) p + alpha / V)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: between 0 and 1, both excluded")
    high = math.log2(vocab / alpha)
    return high - math.log2(1 + (1 - alpha) * vocab / alpha), high


def certify(
    theorem: str, losses_n: np.ndarray, *, low: float, high: float, nats: float, m: int,
    delta: float, candidates: int = 1, whole: bool = False,
) -> float:  # fmt: skip
    """The bound on the true risk. whole: losses_n are those of all m documents."""
    x = check(losses_n, low, high, nats, m, delta, candidates, whole)
    if theorem == "betting":
        return betting(x, low, high, nats, m, delta, candidates, whole)
    if theorem not in ("hoeffding", "paper"):
        raise ValueError(f"theorem {theorem!r}: one of hoeffding, betting, paper")
    several = candidates if theorem == "hoeffding" else 1
    n = len(x)
    s = 1.0 if whole else n / (n + m)
    bound = x.mean() + (high - low) * math.sqrt((nats - math.log(s * delta)) / (2 * m))
    if not whole:
        rest = math.log(several) - math.log((1 - s) * delta)
        bound += (high - low) * math.sqrt(rest / (2 * n))
    return float(bound)


def check(
    losses_n: np.ndarray, low: float, high: float, nats: float, m: int, delta: float,
    candidates: int, whole: bool,
) -> np.ndarray:  # fmt: skip
    x = np.asarray(losses_n, np.float64)
    if not len(x):
        raise ValueError("no documents were evaluated")
    if len(x) > m or (whole and len(x) != m):
        raise ValueError(f"{len(x)} documents evaluated of m={m}")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: between 0 and 1, both excluded")
    if not nats >= 0 or candidates < 1:  # NaN too
        raise ValueError(f"nats={nats} and candidates={candidates}: at least 0 and 1")
    if not (x.min() >= low - SLACK and x.max() <= high + SLACK):
        raise ValueError(f"losses from {x.min()} to {x.max()}: they must lie in [{low}, {high}]")
    return np.clip(x, low, high)


def betting(
    x: np.ndarray, low: float, high: float, nats: float, m: int, delta: float, candidates: int,
    whole: bool,
) -> float:  # fmt: skip
    grid = len(SHARES) * len(BETS)
    first = delta if whole else delta / 2
    price = (nats + math.log(grid / first)) / m
    odds = math.log(2 * grid * candidates / (delta / 2))
    best = math.inf
    for y in low + (high - low) * SHARES:
        gap = high - y
        log_sn = np.log1p(BETS[:, None] * ((y - x) / gap))
        nu_s = log_sn.mean(1)
        if not whole:
            reach_s = np.log1p(BETS * (y - low) / gap) - np.log1p(-BETS)
            nu_s -= bernstein(log_sn, reach_s, odds)
        best = min(best, (y + gap / BETS * (1 - np.exp(nu_s - price))).min())
    return float(best)


def bernstein(x_sn: np.ndarray, reach_s: np.ndarray, odds: float) -> np.ndarray:
    """How far means of n independent numbers, in intervals of length `reach`, may be above their
    expectations, but for a probability of 2 exp(-odds) each.
    """
    n = x_sn.shape[1]
    if n < 2:
        return reach_s
    return np.sqrt(2 * x_sn.var(1, ddof=1) * odds / n) + 7 * reach_s * odds / (3 * (n - 1))


def martingale(
    losses_n: np.ndarray, widths: np.ndarray, *, nats: float, tokens: int, delta: float,
    candidates: int = 1,
) -> float:  # fmt: skip
    """Lotfi et al. (NeurIPS 2024): tokens, not documents, of which n positions are evaluated.

    What it bounds is another risk: of next tokens drawn again after the *training* contexts. It
    says nothing of new documents. widths: of the losses at these positions, which have to be equal,
    as one alpha makes them: of widths that vary those at n positions say nothing of the largest.
    """
    x, n, wide = np.asarray(losses_n, np.float64), len(losses_n), float(np.max(widths, initial=0))
    if not 0 < n <= tokens or not 0 < delta < 1:
        raise ValueError(f"{n} positions of {tokens} tokens, delta={delta}")
    if not nats >= 0 or candidates < 1:
        raise ValueError(f"nats={nats} and candidates={candidates}: at least 0 and 1")
    if not np.ptp(widths) <= SLACK:
        raise ValueError(f"widths from {np.min(widths)} to {wide}: they must be equal")
    if not np.ptp(x) <= wide + SLACK:
        raise ValueError(f"losses from {x.min()} to {x.max()}: wider than {wide}")
    s = n / (n + tokens)
    bound = x.mean() + wide * math.sqrt((nats - math.log(s * delta)) / (2 * tokens))
    rest = math.log(candidates) - math.log((1 - s) * delta)
    return float(bound + wide * math.sqrt(rest / (2 * n)))


def mcallester(risk: float, nats: float, m: int, delta: float) -> float:
    """McAllester's bound, as the predecessors of Lotfi et al. use it for 0-1 losses."""
    return risk + math.sqrt((nats + math.log(m / delta)) / (2 * m - 1))


def convexity(risk: float, nats: float, m: int, delta: float) -> float:
    """The bound of Thiemann et al. (2017), convex in its parameter λ, at the best λ."""
    rest = nats + math.log(2 * math.sqrt(m) / delta)
    part = 2 / (math.sqrt(2 * m * risk / rest + 1) + 1)
    return risk / (1 - part / 2) + rest / (m * part * (1 - part / 2))


def catoni(risk: float, nats: float, m: int, delta: float, step: float = 1.0001) -> float:
    """Catoni's bound (2007, theorem 1.2.8) at the best λ > 1, which powers of `step` stand for: the
    union over them is paid for.
    """

    def value(log: float) -> float:
        part = math.exp(log)
        union = 2 * math.log((2 * math.log(step) + log) / math.log(step))
        rest = step / part * (nats - math.log(delta) + union)
        return math.expm1(-part / m * (risk + rest)) / math.expm1(-part / m)

    low, high = 0.0, math.log(100.0 * m)
    for _ in range(200):  # golden section: it falls, then rises
        a, b = low + 0.381966 * (high - low), low + 0.618034 * (high - low)
        low, high = (low, b) if value(a) < value(b) else (a, high)
    return value((low + high) / 2)
