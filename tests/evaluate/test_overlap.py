"""Similarities of places, by hand, and RSim of planted ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.base import Dense, LowRank
from jaxedit.edit.record import Edit
from jaxedit.evaluate.overlap import changed, overlap, rsim, shared
from jaxedit.locate.neurons import highest, sets

LAYERS = sets([{0, 1}, {1, 2}, {0, 1, 2, 3}, set()], (5,))


def test_overlaps_of_layers_by_hand():
    jaccard = [[1, 1 / 3, 1 / 2, 0], [1 / 3, 1, 1 / 2, 0], [1 / 2, 1 / 2, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(overlap(LAYERS, LAYERS), jaccard, rtol=1e-6)
    dice = [[1, 1 / 2, 2 / 3, 0]]
    np.testing.assert_allclose(overlap(LAYERS[:1], LAYERS, "dice"), dice, rtol=1e-6)
    scores = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]], np.float32)
    cosine = [[1, 24 / 25, 0], [24 / 25, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(overlap(scores, scores, "cosine"), cosine, rtol=1e-6)


def test_neurons_are_places_too():
    neurons = sets([[(0, 3), (1, 2)], [(0, 3)]], (2, 4))
    assert neurons.sum() == 3
    np.testing.assert_allclose(overlap(neurons, neurons), [[1, 0.5], [0.5, 1]])


def test_the_highest_scores_are_the_places():
    scores = jnp.array([[[0.0, 5.0], [1.0, 4.0]], [[2.0, 2.0], [2.0, 1.0]]])
    found = highest(scores, 2)
    assert found.tolist() == [[[False, True], [False, True]], [[True, True], [False, False]]]


def test_rsim_by_hand():
    """Two groups of two: alike within by a half and by all, across by a quarter at most."""
    places = sets([{0, 1, 2}, {1, 2, 3}, {5}, {5}, {0}], (6,))
    found = rsim(places, ["a", "a", "b", "b", None])
    other = (1 / 3) / 6  # of a's six pairs with others only {0, 1, 2} and {0} meet; of b's none
    assert found["groups"] == 2
    assert found["related"] == pytest.approx((0.5 + 1) / 2)
    assert found["others"] == pytest.approx((other + 0) / 2)
    assert found["rsim"] == pytest.approx(((0.5 - other) / (1 - other) + 1) / 2)


def test_rsim_of_planted_places():
    """One where groups have their own neurons, nought where facts are anywhere."""
    r = np.random.RandomState(0)
    groups = list(np.repeat(range(8), 4))
    own = r.rand(8, 3, 40).repeat(4, 0).astype(np.float32)
    assert rsim(own, groups, k=6)["rsim"] == pytest.approx(1)
    assert rsim(own > 0.9, groups)["related"] == pytest.approx(1)
    noisy = rsim(own + 0.1 * r.rand(32, 3, 40).astype(np.float32), groups, k=6)
    assert 0.2 < noisy["rsim"] < 1
    anywhere = rsim(r.rand(32, 3, 40).astype(np.float32), groups, k=6)
    assert anywhere["rsim"] < 0.05
    assert anywhere["related"] == pytest.approx(anywhere["others"], abs=0.03)
    assert rsim(own, groups, kind="cosine")["related"] == pytest.approx(1)


def test_less_alike_than_others_is_nought():
    places = sets([{0}, {1}, {0}, {1}], (2,))
    assert rsim(places, ["a", "a", "b", "b"])["rsim"] == 0
    same = sets([{0}] * 4, (2,))
    assert (
        rsim(same, ["a", "a", "b", "b"])["rsim"] == 0
    )  # all are alike: nothing tells groups apart


def test_no_groups_no_number():
    places = sets([{0}, {1}], (2,))
    assert rsim(places, ["a", "b"]) is None
    assert rsim(places, ["a", "a"]) is None
    assert rsim(places, [None, None]) is None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="jaccard is of sets"):
        overlap(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="similarity 'hamming'"):
        overlap(LAYERS, LAYERS, "hamming")
    with pytest.raises(ValueError, match="the 6 highest of 5 scores"):
        highest(np.ones((2, 5)), 6)
    with pytest.raises(ValueError, match="place 7"):
        sets([{7}], (5,))
    with pytest.raises(ValueError, match="1 groups for 4 facts"):
        rsim(LAYERS, ["a"])
    with pytest.raises(ValueError, match="subject: 1 groups for 2 edits"):
        shared([Edit(), Edit()], {"subject": ["a"]})


def test_how_much_edits_change_the_inputs():
    r = np.random.RandomState(0)
    a, b = r.randn(2, 6, 3).astype(np.float32), r.randn(2, 3, 4).astype(np.float32)
    low = Edit(deltas={"mlp/down": LowRank(jnp.asarray(a), jnp.asarray(b), jnp.array([4, 1]))})
    w = r.randn(1, 6, 4).astype(np.float32)
    dense = Edit(deltas={"mlp/down": Dense(jnp.asarray(w), jnp.array([2]))})
    found, layers = changed([low, Edit(), dense])
    assert layers == [1, 2, 4]
    assert found.shape == (3, 3, 6)
    np.testing.assert_allclose(found[0, [2, 0]], np.linalg.norm(a @ b, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(found[2, 1], np.linalg.norm(w[0], axis=-1), rtol=1e-5)
    assert not found[1].any()
    assert not found[0, 1].any()


def test_edits_that_change_the_same_neurons():
    """Two facts change the same neurons along any outputs; an edit that does nothing is no fact."""
    r = np.random.RandomState(0)

    def edit(neurons):
        a = np.full((1, 50, 1), 1e-3, np.float32)
        a[0, neurons] = r.randn(len(neurons), 1) + 3
        b = r.randn(1, 1, 8).astype(np.float32)
        return Edit(deltas={"mlp/down": LowRank(jnp.asarray(a), jnp.asarray(b), jnp.array([2]))})

    edits = [edit([1, 2, 3]), Edit(), edit([7, 8, 9]), edit([1, 2, 3]), edit([8, 9, 10])]
    groups = {"subject": ["a", "a", "b", "a", "b"], "relation": list("vwxyz")}
    found = shared(edits, groups, k=3)
    assert (found["edits"], found["k"], found["layers"]) == (4, 3, [2])
    assert found["subject"]["related"] == pytest.approx((1 + 2 / 4) / 2)
    assert found["subject"]["others"] == 0
    assert found["relation"] is None
    assert shared(edits, groups)["k"] == 1  # a hundredth of 50, at least one
    assert shared([Edit()], {"subject": ["a"]})["subject"] is None
