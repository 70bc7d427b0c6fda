"""What is claimed of a hypothesis, from its losses on some of the documents."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxedit.bounds import baselines, risk
from jaxedit.bounds.bound import certify, smoothing
from jaxedit.bounds.risk import Read, ReadConfig
from jaxedit.bounds.sample import Sample

THEOREMS = ("betting", "hoeffding", "paper")


@dataclasses.dataclass(frozen=True)
class ClaimConfig:
    """What is claimed, with which probability, from how many documents."""

    theorem: Literal["betting", "hoeffding", "paper"] = "hoeffding"
    delta: float = 0.05  # what is claimed of a model holds together with probability 1 - delta
    evaluated: int = 10_000  # n, drawn among the m; 0: all are evaluated
    topk: tuple[int, ...] = (1, 5, 10)
    pilot: int = 0  # alpha is chosen on so many other documents; 0: on the same, and paid for
    candidates: int = 1  # models that are compared on the same n documents
    fresh: int = 20_000  # documents drawn anew, to show the true risk; 0: none
    read: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta}: between 0 and 1")
        for name in ("evaluated", "pilot", "fresh"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: a number of documents, or 0")
        if min(self.topk, default=1) < 1 or self.candidates < 1:
            raise ValueError(f"topk={self.topk}, candidates={self.candidates}: from 1 on")


class Seen(NamedTuple):
    """What was evaluated: documents of the sample, others to choose alpha on, and new ones."""

    main: Read
    pilot: Read | None
    fresh: Read | None


def chosen(cfg: ClaimConfig, sample: Sample) -> dict[str, np.ndarray]:
    """Which documents are evaluated, for what."""
    n = cfg.evaluated
    out = {"main": sample.subsample(n, cfg.seed) if n else sample.documents_m}
    if cfg.pilot:
        out["pilot"] = sample.subsample(cfg.pilot, cfg.seed + 1)
    if cfg.fresh:
        out["fresh"] = sample.fresh(cfg.fresh, cfg.seed)
    return out


def parted(some: dict[str, np.ndarray], take: Callable[[np.ndarray], Read]) -> Seen:
    ends = np.cumsum([0, *map(len, some.values())])
    places = {k: np.arange(a, b) for k, a, b in zip(some, ends, ends[1:], strict=False)}
    one = lambda name: take(places[name]) if name in places else None
    main = one("main")
    assert main is not None
    return Seen(main, one("pilot"), one("fresh"))


def claims(
    claim: ClaimConfig, alphas: Sequence[float], sample: Sample, seen: Seen,
    nats: Callable[[float], float], theorem: str = "", alpha: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """What holds together with probability 1 - delta: bits per token, and errors of top k.

    nats: what the file with an alpha takes. alpha: the one that is stated; 0: the best of them. A
    pilot's choice is stated alone: the list of all alphas holds too, but not together with it.
    """
    vocab = sample.vocab
    delta = claim.delta / (1 + len(claim.topk))
    theorem = theorem or claim.theorem
    whole = not claim.evaluated

    def bound(
        x_n: np.ndarray, low: float, high: float, alpha: float, candidates: int, all_of: bool
    ) -> float:
        return certify(
            theorem, x_n, low=low, high=high, nats=nats(alpha), m=len(sample), delta=delta,
            candidates=candidates, whole=all_of,
        )  # fmt: skip

    def smoothed(read: Read, alpha: float, candidates: int, all_of: bool) -> tuple[float, float]:
        x_n = risk.losses(read, alpha, vocab)
        return float(x_n.mean()), bound(x_n, *smoothing(alpha, vocab), alpha, candidates, all_of)

    # the one that a pilot chose need not pay for the others
    found = {a: smoothed(seen.main, a, claim.candidates * len(alphas), whole) for a in alphas}
    known = {a: smoothed(seen.pilot, a, 1, False) for a in alphas} if seen.pilot else found
    best = alpha or min(alphas, key=lambda a: known[a][1])
    shown, stated = found[best]
    if seen.pilot:
        shown, stated = smoothed(seen.main, best, claim.candidates, whole)
    bits: dict[str, Any] = {"alpha": best, "risk": shown, "bound": stated}
    bits["alphas"] = [{"alpha": a, "risk": r, "bound": b} for a, (r, b) in found.items()]
    bits["vacuous"] = math.log2(vocab)
    out = {"bits": bits}
    for k in claim.topk:
        x_n = risk.errors(seen.main, k)
        value = bound(x_n, 0.0, 1.0, best, claim.candidates, whole)
        out[f"top{k}"] = {"risk": float(x_n.mean()), "bound": value, "vacuous": 1 - k / vocab}
    if seen.fresh is not None:
        bits["fresh"] = float(risk.losses(seen.fresh, best, vocab).mean())
        for k in claim.topk:
            out[f"top{k}"]["fresh"] = float(risk.errors(seen.fresh, k).mean())
    return out


def beside(claim: ClaimConfig, alphas: Sequence[float], sample: Sample) -> dict[str, Any]:
    """The trivial hypotheses, each with a certificate of its own by the same theorem: it holds with
    probability 1 - delta by itself.
    """
    some = chosen(claim, sample)
    together = np.concatenate(list(some.values()))
    out = {}
    for table in baselines.tables(baselines.counts(sample)):
        read = baselines.read(table, sample, together)
        size = table.bits // 8 + -(-len(alphas).bit_length() // 8)  # its alpha is one of the list
        nats = 8 * size * math.log(2)
        found = claims(claim, alphas, sample, parted(some, read.take), partial(fixed, nats))
        out[table.name] = {"bytes": size} | {
            k: {name: v[name] for name in ("risk", "bound", "fresh", "alpha") if name in v}
            for k, v in found.items()
        }
    return out


def fixed(nats: float, _alpha: float) -> float:
    """A file of one length, whatever its alpha."""
    return nats
