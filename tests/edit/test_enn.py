"""Editable networks: inner steps and the gradient through them, on merged weights."""

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
    loss_of,
    parts,
    trained,
    weights,
    with_weights,
    world,
)

import jaxedit
from jaxedit import delta
from jaxedit.data.cases import EditRequest
from jaxedit.data.world.cases import cases
from jaxedit.data.world.facts import make
from jaxedit.edit import inner, learner
from jaxedit.edit.learner import Learned, ObjectiveConfig
from jaxedit.edit.runner import Ready
from jaxedit.edit.weights import enn
from jaxedit.edit.weights.enn import EnnConfig

GOAL = ObjectiveConfig(edit=1.0, local=1.0)
OPT = EnnConfig(LAYERS, steps=2, step=0.02, objective=GOAL)
PATHS = OPT.targets


@pytest.fixture(scope="module")
def learned():
    """With an initial change, and step sizes that differ."""
    now = learner.first(jax.random.key(0), enn.LEARNER, OPT, world().cfg)
    noise = lambda i, x: 0.01 * jax.random.normal(jax.random.key(i), x.shape)
    start = {path: noise(i, x) for i, (path, x) in enumerate(now.trained["start"].items())}
    steps = {path: x * jnp.array([1.0, 0.7]) for path, x in now.trained["steps"].items()}
    return Learned({"start": start, "steps": steps}, now.running)


def change(learned, part, opt=OPT, apart=True, train=False, deltas=None):
    how = {"apart": apart, "train": train, "deltas": deltas}
    return enn.change(learned, world().params, [part], opt, world().cfg, **how)[0]


def row(tree, i):
    return jax.tree.map(lambda x: x[i : i + 1], tree)


def descended(trained, rows, steps):
    """The matrices after plain gradient descent on the rows' summed loss."""
    base = world().params
    mats = {path: w + trained["start"][path] for path, w in weights(base, PATHS).items()}
    for _ in range(steps):
        grads = full_gradient(with_weights(base, mats), rows, PATHS)
        mats = {path: w - trained["steps"][path][:, None, None] * grads[path]
                for path, w in mats.items()}  # fmt: skip
    return mats


@pytest.mark.parametrize("steps", [1, 2])
def test_inner_steps_are_gradient_descent(learned, steps):
    opt = dataclasses.replace(OPT, steps=steps)
    edit = parts(lessons())[0]
    found = change(learned, edit, opt)
    assert found["mlp/up"][1].a.shape[-1] == steps * edit[0].shape[1]
    for i in range(len(edit[1])):
        mats = descended(learned.trained, row(edit[1], i), steps)
        one = delta.single(delta.row(found, i))
        for path, w in weights(world().params, PATHS).items():
            assert off(delta.product(one[path]), mats[path] - w) < 1e-5


def naive(trained, some, steps, first_order=False):
    """The objective with matrices formed, edit by edit."""
    m, kept_rows = world(), jax.tree.map(lambda x: jnp.asarray(x)[:, 2], some)
    base = m.params
    start = {path: w + trained["start"][path] for path, w in weights(base, PATHS).items()}

    def told(params, rows):
        x_BTD, _ = inner.above(params, inner.stem(params, rows, m.cfg, 0), rows, m.cfg, 0)
        return inner.told(params, x_BTD, inner.whole(rows), m.cfg)

    total, kls, count = 0.0, 0.0, inner.tokens(inner.whole(kept_rows)).sum()
    N = len(some)
    for i in range(N):
        edit, said, kept = (row(jax.tree.map(lambda x, j=j: jnp.asarray(x)[:, j], some), i)
                            for j in range(3))  # fmt: skip
        mats = start
        for _ in range(steps):
            grads = full_gradient(with_weights(base, mats), edit, PATHS)
            grads = jax.lax.stop_gradient(grads) if first_order else grads
            mats = {path: w - trained["steps"][path][:, None, None] * grads[path]
                    for path, w in mats.items()}  # fmt: skip
        after = with_weights(base, mats)
        total += loss_of(after, said).sum() * inner.tokens(said).sum()
        for params in (after, with_weights(base, start)):
            kl = inner.divergence(told(base, kept), told(params, kept))
            kls += jnp.where(inner.whole(kept).mask_BU, kl, 0).sum() / count
    said = jax.tree.map(lambda x: jnp.asarray(x)[:, 1], some)
    return total / inner.tokens(said).sum() + kls


@pytest.mark.parametrize(("steps", "first_order"), [(1, False), (2, False), (2, True)])
def test_the_gradient_goes_through_the_steps(learned, steps, first_order):
    some = lessons(2)
    opt = dataclasses.replace(OPT, steps=steps, first_order=first_order)
    found = learner.gradient(learned, world().params, some, enn.LEARNER, opt, world().cfg)
    loss, grad = jax.value_and_grad(naive)(learned.trained, some, steps, first_order)
    np.testing.assert_allclose(found[1]["loss"], loss, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found[0], grad)), strict=True):
        assert off(a, b) < 1e-4


def test_side_by_side_is_alone(learned):
    edit = parts(lessons())[0]
    found = change(learned, edit)
    for i in range(len(edit[1])):
        alone = delta.single(delta.row(change(learned, row(edit, i)), 0))
        one = delta.single(delta.row(found, i))
        for path in PATHS:
            assert off(delta.product(one[path]), delta.product(alone[path])) < 1e-5


def test_together_is_a_step_on_the_mean_of_all_tokens(learned):
    opt = dataclasses.replace(OPT, steps=1)
    edit = parts(lessons())[0]
    found = delta.single(change(learned, edit, opt, apart=False))
    count = inner.tokens(edit[1])
    mean = lambda mats: (
        (loss_of(with_weights(world().params, mats), edit[1]) * count).sum() / count.sum()
    )
    start = {p: w + learned.trained["start"][p] for p, w in weights(world().params, PATHS).items()}
    for path, g in jax.grad(mean)(start).items():
        wanted = learned.trained["start"][path] - learned.trained["steps"][path][:, None, None] * g
        assert off(delta.product(found[path]), wanted) < 1e-5


def test_training_lowers_the_loss():
    opt = dataclasses.replace(OPT, steps=1)
    _, found = trained(enn.LEARNER, opt, 20, 1e-3)
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]
    assert found[0]["base_kl"] == pytest.approx(0, abs=1e-6)


def test_a_sequence_takes_the_initial_change_once(learned):
    """And edits of several batches side by side share it; all are saved, read and merged."""
    m, requests = world(), [case.request for case in cases(make("small"), 6)]
    assert isinstance(requests[0], EditRequest)
    editor = enn.enn(OPT)
    state = editor.init(jax.random.key(0), m, learned)
    ready = Ready(editor, m, state, ((("{}",),),)[0], {"method": "enn"}, size=2)
    first, second = (edit for _, edit in ready.sequence(requests[:2], 1))
    kinds = lambda edit: [type(d).__name__ for d in edit.deltas["mlp/up"]]
    assert kinds(first) == ["Dense", "LowRank"]
    assert kinds(second) == ["LowRank"]
    for _, edit in ready.each(requests):
        assert kinds(edit) == ["Dense", "LowRank"]
        norms = delta.norm(edit.deltas)
        wanted = np.sqrt(sum(np.square(x).sum() for x in norms.values()))
        np.testing.assert_allclose(edit.provenance["result"]["norm"], wanted, rtol=1e-4)
        edit.check(m)
    both = jaxedit.Edit(deltas=first.deltas).merge(m)
    assert jaxedit.Edit(deltas=second.deltas).merge(both).cfg == m.cfg


def test_settings_that_cannot_be():
    for how in ({"steps": 0}, {"step": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            EnnConfig((1,), **how)
