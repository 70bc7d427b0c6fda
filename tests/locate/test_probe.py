"""Probes against everything tried out, and what planted and rotated neurons must show."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.locate import probe

RANDOM = np.random.RandomState(0)
N, X, PLANTED = 240, 30, 17
Y = RANDOM.rand(N) < 0.3
ACTS = RANDOM.standard_normal((N, X)).astype(np.float32)
ACTS[:, PLANTED] = np.where(Y, 2.0, 0.0) + 0.5 * RANDOM.standard_normal(N)


def f1_of(said, y):
    return 2 * (said & y).sum() / max(said.sum() + y.sum(), 1)


def test_the_best_threshold_is_the_best_of_all():
    x = RANDOM.randint(0, 6, (40, 5)).astype(np.float32)  # with many ties
    y = RANDOM.rand(40) < 0.4
    found = probe.best_threshold(x, y)
    for i in range(5):
        cuts = np.r_[x[:, i].min() - 1, np.unique(x[:, i])]
        every = [f1_of(s * x[:, i] > s * c, y) for c in cuts + 0.5 for s in (1, -1)]
        assert found.f1[i] == pytest.approx(max(every), rel=1e-6)
        said = found.sign[i] * x[:, i] > found.sign[i] * found.at[i]
        assert f1_of(np.asarray(said), y) == pytest.approx(max(every), rel=1e-6)


def test_neurons_may_have_any_axes():
    whole = probe.best_threshold(ACTS, Y)
    layers = probe.best_threshold(ACTS.reshape(N, 5, 6), Y)
    np.testing.assert_array_equal(layers.f1.ravel(), whole.f1)
    assert int(whole.f1.argmax()) == PLANTED


@pytest.mark.parametrize("rule", ["mean", "f", "mi", "l1"])
def test_every_rule_finds_a_planted_neuron(rule):
    scores = probe.rank(ACTS, Y, rule)
    assert int(scores.argmax()) == PLANTED
    turned = probe.rank(-ACTS, Y, rule)
    assert int(turned.argmax()) == PLANTED  # also one that is lower where the feature is


def test_rules_by_hand():
    x, y = np.array([[0.0], [2.0], [3.0], [5.0]]), np.array([0, 0, 1, 1])
    assert probe.rank(x, y, "mean")[0] == pytest.approx(3 / np.sqrt((1 + 1 + 1 + 1) / 2))
    assert probe.rank(x, y, "f")[0] == pytest.approx(3**2 * 1 / 2)
    told = np.repeat([[0.0], [1.0]], 50, 0)
    assert probe.rank(told, told[:, 0], "mi")[0] == pytest.approx(np.log(2), rel=1e-5)
    assert probe.rank(np.tile(told, (2, 1)), np.repeat([0, 1], 100), "mi")[0] == pytest.approx(
        0, abs=1e-6
    )
    assert not probe.rank(ACTS, Y, "l1", l1=1.01).any()  # above the penalty that leaves nothing
    a, b = (probe.rank(ACTS, Y, "random", key=jax.random.key(i)) for i in (0, 1))
    assert (a != b).any()


def test_the_fit_is_where_the_slope_is_zero():
    x, y = jnp.asarray(ACTS[:, PLANTED - 2 : PLANTED + 1]), jnp.asarray(Y, jnp.float32)
    found = probe.fit(x, y)
    weight = probe.balance(y) / N

    def loss(w, b):
        z = (x / found.scale) @ w + b
        ridge = 0.5 * probe.RIDGE / 100 * (w**2).sum()
        return (weight * (jax.nn.softplus(z) - y * z)).sum() + ridge

    slopes = jax.grad(loss, (0, 1))(found.w, found.b)
    assert max(float(jnp.abs(s).max()) for s in slopes) < 1e-5
    np.testing.assert_allclose(probe.fit(x[:, ::-1], y).w[::-1], found.w, rtol=1e-3)
    perfect = probe.fit(jnp.asarray(Y, jnp.float32)[:, None], y)  # separable: the ridge holds it
    assert np.isfinite(perfect.w).all()
    assert ((probe.apply(perfect, jnp.asarray(Y, jnp.float32)[:, None]) > 0) == Y).all()


def test_metrics_by_counting():
    score = np.array([3.0, 1, 1, 0.5, -1, -1, -2, 1])
    y = np.array([1, 1, 0, 0, 1, 0, 0, 1])
    found = probe.metrics(score, y)
    tp, fp, fn, tn = 3, 2, 1, 2
    assert found["f1"] == pytest.approx(6 / 9)
    assert found["precision"] == pytest.approx(3 / 5)
    assert found["recall"] == pytest.approx(3 / 4)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert found["mcc"] == pytest.approx((tp * tn - fp * fn) / np.sqrt(5 * 4 * 4 * 3))
    assert found["kappa"] == pytest.approx((5 / 8 - 1 / 2) / (1 / 2))
    assert found["fmi"] == pytest.approx(np.sqrt(3 / 5 * 3 / 4))
    pairs = [(a, b) for a, b in itertools.product(score[y > 0], score[y == 0])]
    wins = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert found["roc_auc"] == pytest.approx(wins)
    # by threshold: (recall, precision) at 3, 1, 0.5, -1, -2
    want = 1 / 4 * 1 + 2 / 4 * 3 / 4 + 0 + 1 / 4 * 4 / 7
    assert found["average_precision"] == pytest.approx(want)


@pytest.mark.parametrize("telescopic", [False, True])
def test_a_study_finds_what_is_planted_and_not_what_is_shuffled(telescopic):
    found = probe.study(
        jax.random.key(0), ACTS.reshape(N, 5, 6), Y, ks=(1, 3), telescopic=telescopic
    )
    assert found["k"][1]["neurons"] == [divmod(PLANTED, 6)]
    assert divmod(PLANTED, 6) in found["k"][3]["neurons"]
    assert found["k"][1]["metrics"]["f1"] > 0.85
    assert found["one"]["neuron"] == divmod(PLANTED, 6)
    assert found["one"]["f1"] > 0.85
    assert found["k"][1]["shuffled"]["roc_auc"] < 0.75
    assert found["k"][1]["random"]["roc_auc"] < 0.75


def test_a_rotation_hides_a_neuron_and_not_what_the_layer_knows():
    turn, _ = np.linalg.qr(RANDOM.standard_normal((X, X)))
    turned = ACTS @ turn.astype(np.float32)
    plain, hidden = (probe.study(jax.random.key(0), x, Y, ks=(1, X)) for x in (ACTS, turned))
    f1 = lambda some, k: some["k"][k]["metrics"]["f1"]
    assert f1(plain, 1) > f1(hidden, 1) + 0.2
    assert f1(hidden, X) == pytest.approx(f1(plain, X), abs=0.05)


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match=r"activations \[240, 30\], labels \[3\]"):
        probe.best_threshold(ACTS, Y[:3])
    with pytest.raises(ValueError, match="two classes"):
        probe.rank(ACTS, np.zeros(N))
    with pytest.raises(ValueError, match="rule 'best': of mean, f, mi, l1, random"):
        probe.rank(ACTS, Y, "best")
    with pytest.raises(ValueError, match="takes a key"):
        probe.rank(ACTS, Y, "random")
