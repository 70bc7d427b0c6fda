"""KnowledgeEditor: its network against loops and whole matrices, its constraint, its training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import off
from small_lessons import LAYERS, full_gradient, lessons, parts, stirred, trained, world

from jaxedit import delta
from jaxedit.edit import learner
from jaxedit.edit.learner import Learned, ObjectiveConfig
from jaxedit.edit.weights import ke
from jaxedit.edit.weights.ke import KeConfig

OPT = KeConfig(LAYERS, reader=8, condition=16, hidden=12, scale=50.0, margin=0.1)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def learned():
    return stirred(learner.first(KEY, ke.LEARNER, OPT, world().cfg))


def change(learned, some, apart=True, opt=OPT):
    how = {"apart": apart, "train": False}
    return ke.change(learned, world().params, some, opt, world().cfg, **how)[0]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def states(p, tokens):
    """The last state of an LSTM over tokens, by a loop."""
    p, table = jax.tree.map(np.asarray, (p, world().params["embed"]["w"]))
    h = c = np.zeros(OPT.reader)
    for token in tokens:
        i, f, g, o = np.split(table[token] @ p["in"] + h @ p["state"] + p["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def alone(some, i):
    return jax.tree.map(lambda x: x[i : i + 1], some)


def test_the_lstm_reads_request_and_target(learned):
    """By a loop over the tokens of each, forwards and backwards; padding is not read."""
    edit = parts(lessons())[0][1]
    found = ke.read(learned.trained, world().params, edit)
    p = jax.tree.map(np.asarray, learned.trained["condition"])
    for row, h in enumerate(found):
        tokens = np.asarray(edit.tokens_BT[row])[np.asarray(edit.pos_BT[row]) >= 0]
        both = [states(learned.trained["lstm"]["forward"], tokens)]
        both.append(states(learned.trained["lstm"]["backward"], tokens[::-1]))
        wanted = np.tanh(np.concatenate(both) @ p["w"] + p["b"])
        np.testing.assert_allclose(h, wanted, atol=1e-5)


def test_padding_and_the_rest_of_the_batch_do_not_matter(learned):
    edit = parts(lessons())[0][1]
    found = ke.read(learned.trained, world().params, edit)
    left = edit.replace(  # padding on the other side, and the last token of the target left out
        tokens_BT=jnp.pad(edit.tokens_BT, [(0, 0), (3, 0)], constant_values=7),
        pos_BT=jnp.pad(edit.pos_BT, [(0, 0), (3, 0)], constant_values=-1),
        at_BU=edit.at_BU + 3,
    )
    last = jnp.argmax(left.pos_BT, 1)[:, None]
    left = left.replace(pos_BT=jnp.where(jnp.arange(left.pos_BT.shape[1]) == last, -1, left.pos_BT))
    np.testing.assert_allclose(ke.read(learned.trained, world().params, left), found, atol=1e-6)
    for i in range(len(edit)):
        one = ke.read(learned.trained, world().params, alone(edit, i))
        np.testing.assert_allclose(one[0], found[i], atol=1e-6)


def test_the_change_is_that_of_the_whole_gradient(learned):
    """σ(η) (Â ⊙ ∇W + B̂), with every matrix formed."""
    edit = parts(lessons())[0]
    found = change(learned, [edit])
    p = jax.tree.map(np.asarray, learned.trained["matrices"])
    h = np.asarray(ke.read(learned.trained, world().params, edit[1]))
    for row in range(len(edit[1])):
        grads = full_gradient(world().params, alone(edit[1], row), OPT.targets)
        for path, grad in grads.items():
            product = delta.product(delta.row(found, row)[path])
            I, O = grad.shape[1:]
            assert found[path].a.shape[-1] == edit[0].shape[1] + 1  # ranks: tokens and one
            for n in range(len(LAYERS)):
                lower, upper = (
                    {k: x[n] for k, x in p[path][q].items()} for q in ("lower", "upper")
                )
                out = np.tanh(h[row] @ lower["w"] + lower["b"]) @ upper["w"] + upper["b"]
                alpha, beta, gamma, shift, eta = np.split(out, [O, 2 * O, 2 * O + I, 2 * (O + I)])
                A, B = np.outer(gamma, softmax(alpha)), np.outer(shift, softmax(beta))
                wanted = OPT.scale * sigmoid(eta) * (A * np.asarray(grad[n]) + B)
                assert off(product[n], wanted) < 1e-5


def test_side_by_side_is_alone_and_together_is_the_sum(learned):
    edit = parts(lessons())[0]
    found, both = change(learned, [edit]), change(learned, [edit], apart=False)
    for path in OPT.targets:
        every = delta.product(found[path])
        assert off(delta.product(both[path]), every.sum(1)) < 1e-5
        for i in range(len(edit[1])):
            one = change(learned, [alone(edit, i)])
            assert off(delta.product(one[path])[:, 0], every[:, i]) < 1e-5


def test_a_row_that_only_fills_the_batch_changes_nothing(learned):
    x, rows = parts(lessons())[0]
    rows = rows.replace(mask_BU=rows.mask_BU & (jnp.arange(len(rows)) != 1)[:, None])
    for d in change(learned, [(x, rows)]).values():
        sizes = jnp.abs(delta.product(d)).max((0, 2, 3))
        assert (sizes > 0).tolist() == [True, False, True, True]


def test_the_first_change_is_a_step_of_gradient_descent():
    edit = jax.tree.map(lambda x: x[:1], parts(lessons())[0])
    opt = dataclasses.replace(OPT, step=0.01)
    found = change(learner.first(KEY, ke.LEARNER, opt, world().cfg), [edit], opt=opt)
    for path, grad in full_gradient(world().params, edit[1], OPT.targets).items():
        assert off(delta.product(found[path])[:, 0], -0.01 * grad) < 1e-5


def test_the_multiplier_rises_where_the_constraint_is_not_met(learned):
    """And never below zero; the gradient is that of the Lagrangian."""
    some, m = lessons(), world()
    run = lambda now, opt: learner.gradient(now, m.params, some, ke.LEARNER, opt, m.cfg)
    grad, found, running = run(learned, OPT)
    kl = float(found["local_kl"])
    total = found["edit_loss"] + (kl - OPT.margin)
    np.testing.assert_allclose(found["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(running["multiplier"], 1 + OPT.ascent * (kl - OPT.margin), rtol=1e-5)
    wide = dataclasses.replace(OPT, margin=100.0)
    assert float(run(learned, wide)[2]["multiplier"]) == 0
    # two wordings of one length: the mean of both losses
    weighed = lambda outer, edit, local: dataclasses.replace(
        OPT, margin=None, objective=ObjectiveConfig(edit, local, outer)
    )
    terms = [run(learned, weighed(*how))[0] for how in (("said", 0.5, 0.5), ("edit", 0.5, 0.5))]
    for found, *wanted in zip(*map(jax.tree.leaves, (grad, *terms)), strict=True):
        assert off(found, sum(wanted)) < 1e-4 or float(jnp.abs(found).max()) < 1e-7
    assert run(learned, weighed("said", 1.0, 1.0))[2] == learned.running


@pytest.mark.parametrize("margin", [0.1, None])
def test_training_lowers_the_loss(margin):
    goal = ObjectiveConfig(1.0, 1.0)
    opt = dataclasses.replace(
        OPT, reader=16, condition=32, hidden=32, margin=margin, objective=goal
    )
    now, found = trained(ke.LEARNER, opt, 25, 3e-3)
    assert found[-1]["edit_loss"] < 0.5 * found[0]["edit_loss"]
    some = lessons(8)
    scores = learner.measure(now, world().params, some, ke.LEARNER, opt, world().cfg)
    assert float(scores["reliability"]) > 0.5


def test_settings_that_cannot_be():
    for how in ({"hidden": 0}, {"scale": 0.0}, {"margin": -1.0}, {"ascent": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            KeConfig((1,), **how)


def test_the_running_tree_is_only_the_multiplier(learned):
    assert isinstance(learned, Learned)
    assert list(learned.running) == ["multiplier"]
