"""SLAG: updates in sequence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import off
from small_lessons import (
    LAYERS,
    full_gradient,
    lessons,
    parts,
    stirred,
    trained,
    weights,
    with_weights,
    world,
)

from jaxedit import delta
from jaxedit.edit import inner, learner
from jaxedit.edit.learner import Learned, ObjectiveConfig
from jaxedit.edit.weights import ke, slag
from jaxedit.edit.weights.slag import SlagConfig
from jaxedit.models.sites import matrices

OPT = SlagConfig(LAYERS, sequence=2, reader=8, condition=16, hidden=12, scale=300.0)
START = LAYERS[0]


@pytest.fixture(scope="module")
def learned():
    """Next to nothing is added to the gated gradient, which would hide it."""
    now = stirred(learner.first(jax.random.key(3), slag.LEARNER, OPT, world().cfg))
    for path, net in now.trained["matrices"].items():
        I, O = matrices(world().cfg)[path]
        at = slice(2 * O + I, 2 * O + 2 * I)
        net["upper"] = {k: x.at[..., at].multiply(0.01) for k, x in net["upper"].items()}
    return now


def change(learned, part, deltas=None):
    how = {"apart": True, "train": True, "deltas": deltas}
    return ke.change(learned, world().params, [part], OPT, world().cfg, **how)[0]


def row(tree, i):
    return jax.tree.map(lambda x: x[i : i + 1], tree)


def merged(deltas):
    """The model's weights with the change of one model in them."""
    mats = weights(world().params, deltas)
    mats = {path: w + delta.product(deltas[path])[:, 0] for path, w in mats.items()}
    return with_weights(world().params, mats)


def naive(trained, learned, so_far):
    """The loss of two sequences of two updates, on merged weights."""
    some, total, goal = lessons(4), 0.0, OPT.objective
    edit, said, kept = (parts(some)[i] for i in range(3))
    now, m = Learned(trained, learned.running), world()
    for g in range(2):
        before = m.params
        for i in range(2):
            part = row(edit, 2 * i + g)
            # the network, of the gradient of the merged weights
            how = {"apart": True, "train": True}
            new, _ = ke.change(now, before, [part], OPT, m.cfg, **how)
            mats = weights(before, new)
            after = {path: w + delta.product(new[path])[:, 0] for path, w in mats.items()}
            after = with_weights(before, after)
            facts = [2 * j + g for j in range(2) if j == i or (so_far and j < i)]
            told, count = 0.0, 0.0
            for part in (row(p, j) for p in (edit, said) for j in facts):
                logp = inner.told(after, inner.above(after, *part, m.cfg, START)[0], part[1], m.cfg)
                told += inner.nll(logp, part[1]).sum()
                count += inner.tokens(part[1]).sum()
            x, rows = row(kept, 2 * i + g)
            seen = inner.whole(rows)
            p, q = (
                inner.told(z, inner.above(z, x, rows, m.cfg, START)[0], seen, m.cfg)
                for z in (before, after)
            )
            kl = inner.divergence(jax.lax.stop_gradient(p), q)
            total += goal.edit * told / count / 4 + goal.local * inner.mean(kl, seen)[0] / 4
            before = jax.tree.map(jax.lax.stop_gradient, after)
    return total


def test_the_second_update_is_of_the_model_that_the_first_left(learned):
    edit = parts(lessons())[0]
    first = delta.scale(change(learned, row(edit, 0)), 10)
    second = change(learned, row(edit, 1), first)
    # the network's answer to the gradient of the merged weights
    grads = full_gradient(merged(first), row(edit[1], 1), OPT.targets)
    h = ke.read(learned.trained, world().params, row(edit[1], 1))
    for path, grad in grads.items():
        net = learned.trained["matrices"][path]
        alpha, beta, gamma, shift, eta = (x[:, 0] for x in ke.gates(net, h, *grad.shape[1:]))
        outer = lambda x, y: x[:, :, None] * jax.nn.softmax(y)[:, None]
        wanted = outer(gamma, alpha) * grad + outer(shift, beta)
        wanted *= OPT.scale * jax.nn.sigmoid(eta)[:, None]
        assert off(delta.product(second[path])[:, 0], wanted) < 1e-4
        unedited = change(learned, row(edit, 1))[path]
        assert off(delta.product(unedited)[:, 0], wanted) > 1e-2


@pytest.mark.parametrize("so_far", [False, True])
def test_the_gradient_is_that_of_updates_one_after_the_other(learned, so_far):
    """On merged weights; none flows into the updates before."""
    opt = dataclasses.replace(OPT, so_far=so_far)
    # as many tokens in every row, so that means of rows are means of tokens
    run = lambda some: learner.gradient(
        learned, world().params, some, slag.LEARNER, opt, world().cfg
    )
    # sequence by sequence, as the naive one has it
    wanted_loss, wanted = 0.0, None
    for g in range(2):
        some = jax.tree.map(lambda x, g=g: x[g::2], lessons(4))
        grad, found, _ = run(some)
        share = lambda x: x / 2
        grad = jax.tree.map(share, grad)
        wanted = grad if wanted is None else jax.tree.map(jnp.add, wanted, grad)
        wanted_loss += found["loss"] / 2
    loss, grad = jax.value_and_grad(naive)(learned.trained, learned, so_far)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (wanted, grad)), strict=True):
        assert off(a, b) < 1e-3


def test_sequences_side_by_side_are_sequences_alone(learned):
    some = lessons(4)
    edit = slag.in_turn(parts(some)[0], 2)
    facts = [slag.in_turn(part, 2) for part in parts(some)]
    old = slag.nothing(facts[0], OPT, world().cfg)
    for i in range(2):
        _, new, _ = slag.after(learned, world().params, old, facts, i, OPT, world().cfg)
        old = slag.placed(old, new, i)
    for g in range(2):
        one = lambda i, g=g: jax.tree.map(lambda x: x[i, g : g + 1], edit)
        first = change(learned, one(0))
        second = change(learned, one(1), first)
        for path, d in old.items():
            wanted = delta.product(first[path]) + delta.product(second[path])
            assert off(delta.product(d)[:, g], wanted[:, 0]) < 1e-4


def test_training_lowers_the_loss():
    opt = dataclasses.replace(OPT, sequence=4, step=0.005, scale=50.0)
    _, found = trained(slag.LEARNER, opt, 25, 3e-3)
    assert found[-1]["edit_loss"] < 0.6 * found[0]["edit_loss"]
    assert found[-1]["success"] > found[0]["success"]


def test_settings_that_cannot_be(learned):
    with pytest.raises(ValueError, match="at least 1"):
        SlagConfig((1,), sequence=0)
    with pytest.raises(ValueError, match="one after the other"):
        SlagConfig((1,), objective=ObjectiveConfig(together=True))
    opt = dataclasses.replace(OPT, sequence=3)
    with pytest.raises(ValueError, match=r"4 lessons at once .*sequence=3"):
        learner.gradient(learned, world().params, lessons(4), slag.LEARNER, opt, world().cfg)
