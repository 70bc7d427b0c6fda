"""Bounds against the published code, and against simulated data whose true risk is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxedit.bounds import bound
from jaxedit.bounds.bound import certify, martingale, smoothing

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/bounds/bounds.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["llm_subsampling_bound"])
def test_the_papers_bound_is_its_codes(case):
    width = case["Delta"]
    low = 0.0 if case["kind"] == "topk" else case["train_error"] - width / 2
    losses = np.full(case["n"], case["train_error"])
    found = certify("paper", losses, low=low, high=low + width, nats=case["div_nats"],
                    m=case["m"], delta=0.05)  # fmt: skip
    assert abs(found - case["bound"]) < 1e-12


@pytest.mark.parametrize("case", GOLDEN["other_bounds"])
def test_the_predecessors_bounds(case):
    given = (case["train_error"], case["div_nats"], case["n"], 0.05)
    assert abs(bound.mcallester(*given) - case["mcallester"]) < 1e-12
    assert abs(bound.convexity(*given) - case["convexity"]) < 1e-12
    assert abs(bound.catoni(*given) - case["catoni_opt"]) < 1e-6


def test_smoothing_says_how_far_losses_go():
    for alpha, vocab in ((0.1, 257), (0.5, 50257), (1e-4, 10)):
        low, high = smoothing(alpha, vocab)
        loss = lambda p, a=alpha, v=vocab: -math.log2((1 - a) * p + a / v)
        assert abs(loss(0.0) - high) < 1e-12
        assert abs(loss(1.0) - low) < 1e-12


# Simulated data: hypotheses whose true risks are known, one of which is chosen by its bound.
SETS, M, N, DELTA = 2000, 400, 150, 0.1
ALPHAS = 2  # versions of each hypothesis, compared on the same n


def simulate(kind: str, seed: int = 0):
    """Losses [SETS, hypotheses, M] in [0, 1] and their expectations."""
    random = np.random.RandomState(seed)
    risks = np.array([0.2, 0.27, 0.35])
    shape = (SETS, len(risks), M)
    if kind == "steady":  # of little variance
        x = risks[:, None] + 0.05 * (random.random_sample(shape) - 0.5)
    elif kind == "errors":  # nothing or all
        x = (random.random_sample(shape) < risks[:, None]).astype(float)
    else:  # mostly small, seldom as large as can be
        rare = random.random_sample(shape) < risks[:, None] / 8
        x = np.where(rare, 1.0, 0.0) + np.where(rare, 0, (risks * 7 / 8 / (1 - risks / 8))[:, None])
    return x, risks


def violations(theorem: str, kind: str) -> float:
    """How often the bound that looks best is below the true risk."""
    x, risks = simulate(kind)
    random = np.random.RandomState(1)
    missed = 0
    nats = math.log(len(risks) * ALPHAS)
    for losses in x:
        some = random.randint(M, size=N)
        # versions of a hypothesis: its losses pulled towards 1 by a little
        bounds, truth = [], []
        for pull in np.linspace(0, 0.003, ALPHAS):
            drawn = losses[:, some] * (1 - pull) + pull
            for g, risk in enumerate(risks):
                bounds.append(certify(theorem, drawn[g], low=0, high=1, nats=nats, m=M,
                                      delta=DELTA, candidates=len(risks) * ALPHAS))  # fmt: skip
                truth.append(risk * (1 - pull) + pull)
        best = int(np.argmin(bounds))
        missed += truth[best] > bounds[best]
    return missed / SETS


@pytest.mark.parametrize("kind", ["steady", "errors", "rare"])
def test_hoeffding_holds(kind):
    assert violations("hoeffding", kind) <= DELTA


@pytest.mark.parametrize("kind", ["steady", "errors", "rare"])
def test_betting_holds(kind):
    assert violations("betting", kind) <= DELTA


def test_the_papers_bound_does_not_pay_for_the_choice():
    """Of many alphas on few documents the best looks better than it is: ln K is what that costs."""
    random = np.random.RandomState(0)
    m, n, several, missed = 10**9, 20, 400, {"paper": 0, "hoeffding": 0}
    for _ in range(500):
        means = (random.random_sample((several, n)) < 0.5).mean(1)
        best = np.full(n, means.min())
        for theorem in missed:
            missed[theorem] += certify(theorem, best, low=0, high=1, nats=math.log(several), m=m,
                                       delta=DELTA, candidates=several) < 0.5  # fmt: skip
    assert missed["hoeffding"] / 500 <= DELTA
    assert missed["paper"] / 500 > DELTA


@pytest.mark.parametrize("theorem", ["hoeffding", "betting"])
def test_the_best_of_many_on_few_documents_is_paid_for(theorem):
    """Nearly all doubt is in the n here: half of either theorem's second term would not do."""
    random = np.random.RandomState(0)
    n, several, missed = 60, 200, 0
    for _ in range(200):
        x = (random.random_sample((several, n)) < 0.5).astype(float)
        best = x[x.mean(1).argmin()]
        missed += certify(theorem, best, low=0, high=1, nats=math.log(several), m=10**9,
                          delta=DELTA, candidates=several) < 0.5  # fmt: skip
    assert missed / 200 <= DELTA


def test_betting_is_tighter_where_losses_vary_little():
    random = np.random.RandomState(0)
    x = 9 + 0.5 * random.standard_normal(10_000)
    given = {"low": 0.9, "high": 19.0, "nats": 40_000.0, "m": 8_000_000, "delta": 0.05}
    tight, wide = (certify(t, x, **given) - x.mean() for t in ("betting", "hoeffding"))
    assert 0 < tight < wide / 3


def test_evaluating_all_costs_less():
    x = np.random.RandomState(0).random_sample(1000)
    for theorem in ("hoeffding", "betting"):
        given = {"low": 0.0, "high": 1.0, "nats": 5.0, "m": 1000, "delta": 0.05}
        assert certify(theorem, x, **given, whole=True) < certify(theorem, x, **given)


def test_the_martingale_bound_holds_and_counts_tokens():
    random = np.random.RandomState(0)
    missed = 0
    for _ in range(2000):
        # next tokens' risk drifts with what came before: its mean over positions is the target
        risk = 0.3 + 0.2 * np.sin(np.arange(400) / 40 + random.random_sample())
        x = (random.random_sample(400) < risk).astype(float)
        some = random.randint(400, size=200)
        found = martingale(x[some], np.ones(200), nats=0.0, tokens=400, delta=0.1)
        missed += risk.mean() > found
    assert missed / 2000 <= 0.1
    assert martingale(x, np.ones(400), nats=100.0, tokens=10**6, delta=0.1) < certify(
        "hoeffding", x, low=0, high=1, nats=100.0, m=10**4, delta=0.1
    )


@pytest.mark.parametrize(
    ("message", "losses", "widths", "change"),
    [
        ("must be equal", [0.0, 0.5], [0.0, 1.0], {}),  # rare wide positions are seldom seen
        ("wider than 1", [0.0, 9.0], [1.0, 1.0], {}),
        ("nats=-5", [0.0, 0.5], [1.0, 1.0], {"nats": -5.0}),
        ("candidates=0", [0.0, 0.5], [1.0, 1.0], {"candidates": 0}),
        ("0 positions", [], [], {}),
    ],
)
def test_martingale_refuses_what_it_does_not_bound(message, losses, widths, change):
    given = {"nats": 1.0, "tokens": 99, "delta": 0.1} | change
    with pytest.raises(ValueError, match=message):
        martingale(np.array(losses), np.array(widths), **given)


def test_mistakes_are_one_line():
    good = {"low": 0.0, "high": 1.0, "nats": 1.0, "m": 10, "delta": 0.05}
    x = np.full(5, 0.5)
    for message, theorem, losses, change in (
        ("11 documents evaluated of m=10", "hoeffding", np.full(11, 0.5), {}),
        ("no documents", "hoeffding", x[:0], {}),
        ("delta=1.0", "hoeffding", x, {"delta": 1.0}),
        ("nats=-1", "betting", x, {"nats": -1.0}),
        ("nats=nan", "hoeffding", x, {"nats": math.nan}),
        ("must lie in", "betting", x + 1, {}),
        ("one of hoeffding, betting, paper", "hoefding", x, {}),
        ("5 documents evaluated of m=10", "betting", x, {"whole": True}),
    ):
        with pytest.raises(ValueError, match=message):
            certify(theorem, losses, **(good | change))
    with pytest.raises(ValueError, match=r"alpha=1\.0"):
        smoothing(1.0, 10)
