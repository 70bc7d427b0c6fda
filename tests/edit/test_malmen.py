"""MALMEN: its least squares and its gradients against float64, plain autodiff and itself."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_malmen import OPT, Exact, around, found_of, plain
from golden_edits import off
from small_lessons import lessons, parts, trained, world

from jaxedit import delta, edit
from jaxedit.data.aligned import aligned
from jaxedit.data.asked import requests
from jaxedit.edit import learner, solve
from jaxedit.edit.learner import Learned
from jaxedit.edit.weights import malmen
from jaxedit.edit.weights.malmen import MalmenConfig
from jaxedit.edit.weights.mend import by_shape

BOTH = [OPT, dataclasses.replace(OPT, tokens="text")]
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def learned():
    """A network that is not at its start, where half of all relus are at their kink."""
    found = learner.first(KEY, malmen.LEARNER, OPT, world().cfg)
    leaves, form = jax.tree.flatten(found.trained)
    noise = lambda x, i: x * (1 + 0.1 * random(x, i)) if float(jnp.abs(x).max()) else random(x, i)
    random = lambda x, i: 0.3 * jax.random.normal(jax.random.fold_in(KEY, i), x.shape)
    moved = jax.tree.unflatten(form, [noise(x, i) for i, x in enumerate(leaves)])
    some = malmen.factors(world().params, parts(lessons(8, 1))[0], OPT, world().cfg)
    return Learned(moved, malmen.counted(found.running, some))


@partial(jax.jit, static_argnames=("apart", "opt"))
def change(learned, some, apart=False, opt=OPT):
    how = {"apart": apart, "train": False}
    return malmen.change(learned, world().params, some, opt, world().cfg, **how)[0]


def gradient(learned, some, opt=OPT):
    return learner.gradient(learned, world().params, some, malmen.LEARNER, opt, world().cfg)


def rows(part, which):
    return jax.tree.map(lambda x: x[which], part)


def alone(part, i):
    return rows(part, slice(i, i + 1))


@pytest.mark.parametrize("opt", BOTH)
def test_the_change_is_the_least_squares_in_float64(learned, opt):
    """Of what each token wants; and the whole of it is the authors' method, to float32."""
    cfg, part = world().cfg, parts(lessons())[0]
    found = found_of(part, opt)
    whole = Exact(learned.running, found).shift(learned.trained)
    wanted = malmen.differences(learned, found, opt, cfg)
    ridges = by_shape(learned.trained["ridges"], opt, cfg)
    deltas = change(learned, [part], opt=opt)
    for name, s in by_shape({p: d.w for p, d in deltas.items()}, opt, cfg).items():
        for g in range(len(s)):
            wide = lambda x: np.asarray(x, np.float64).reshape(-1, x.shape[-1])
            u, d, ridge = wide(found[name].u[g]), wide(wanted[name][g]), float(ridges[name][g])
            gram = u.T @ u + np.exp(ridge) * np.eye(u.shape[1])
            assert off(s[g], np.linalg.solve(gram, u.T @ d)) < 1e-5
            assert off(s[g], whole[name][g]) < 1e-4


def test_the_tokens_are_those_that_say_the_answer_or_all():
    part = parts(lessons())[0]
    said, every = (malmen.factors(world().params, part, opt, world().cfg) for opt in BOTH)
    rows = part[1]
    for name, f in said.items():
        assert f.u.shape[1:3] == rows.at_BU.shape
        for b in range(len(rows)):
            for c in range(rows.at_BU.shape[1]):
                wanted = jnp.where(rows.mask_BU[b, c], every[name].u[:, b, rows.at_BU[b, c]], 0)
                np.testing.assert_array_equal(f.u[:, b, c], wanted)
    count = (np.asarray(rows.pos_BT) >= 0).sum()
    assert int((every["512x128"].u[0] != 0).any(-1).sum()) <= count


def test_one_request_alone_is_one_together(learned):
    edit = parts(lessons())[0]
    for opt in BOTH:
        every = change(learned, [edit], apart=True, opt=opt)
        for i in range(len(edit[1])):
            one = change(learned, [alone(edit, i)], opt=opt)
            for path in opt.targets:
                assert off(delta.product(every[path])[:, i], one[path].w) < 2e-5


def test_how_requests_are_cut_into_batches_does_not_matter(learned):
    edit = parts(lessons())[0]
    whole = change(learned, [edit])
    cut = change(learned, [rows(edit, slice(0, 1)), rows(edit, slice(1, 4))])
    for path in OPT.targets:
        assert off(cut[path].w, whole[path].w) < 1e-5


def test_a_row_that_only_fills_the_batch_changes_nothing(learned):
    x, some = parts(lessons())[0]
    filled = some.replace(mask_BU=some.mask_BU & (jnp.arange(len(some)) != 1)[:, None])
    without = rows((x, some), jnp.array([0, 2, 3]))
    for opt in BOTH:
        one, other = change(learned, [(x, filled)], opt=opt), change(learned, [without], opt=opt)
        for path in opt.targets:
            assert off(one[path].w, other[path].w) < 1e-5


@pytest.mark.parametrize("opt", BOTH)
def test_the_gradient_is_that_of_the_whole(learned, opt):
    some = lessons()
    found = found_of(parts(some)[0], opt)
    now = Learned(learned.trained, malmen.counted(learned.running, found))
    goal = dataclasses.replace(opt.objective, edit=0.7, local=1.3, where=opt.tokens)
    opt = dataclasses.replace(opt, objective=goal)
    grad, metrics = around(now, found, some, opt)
    (loss, out), wanted = plain(now, found, some, opt)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    for name in ("edit_loss", "local_kl", "success", "locality"):
        np.testing.assert_allclose(metrics[name], out[name], rtol=1e-3)
    assert jax.tree.structure(grad) == jax.tree.structure(learned.trained)
    for found, exact in zip(jax.tree.leaves(grad), jax.tree.leaves(wanted), strict=True):
        assert off(found, exact) < 1e-3


def test_hyper_gradients_are_finite_differences_in_float64(learned):
    """Of the sum of ∂L/∂S ⊙ S, by λ, by η, and by a few weights of every part of the networks."""
    some, m = lessons(), world()
    found = found_of(parts(some)[0], OPT)
    now = Learned(learned.trained, malmen.counted(learned.running, found))
    grad, _ = around(now, found, some)
    exact = Exact(now.running, found)
    shift = {name: jnp.float32(s) for name, s in exact.shift(now.trained).items()}
    outer = jax.jit(malmen.outer, static_argnums=(3, 4))
    pull, _ = outer(m.params, malmen.dense(shift, OPT, m.cfg), some, OPT, m.cfg)
    pull = by_shape(pull, OPT, m.cfg)
    leaves, form = jax.tree.flatten(jax.tree.map(lambda x: np.asarray(x, np.float64), now.trained))

    def pairing(i, at, h):
        moved = [x.copy() for x in leaves]
        moved[i][at] += h
        shift = exact.shift(jax.tree.unflatten(form, moved))
        return sum((np.asarray(pull[name], np.float64) * s).sum() for name, s in shift.items())

    for i, slope in enumerate(jax.tree.leaves(grad)):
        slope = np.asarray(slope)
        for nth in range(2):  # the largest: what is nearly zero has no relative error
            at = np.unravel_index(np.abs(slope).ravel().argsort()[-1 - nth], slope.shape)
            h = 1e-5 * max(abs(leaves[i][at]), 1e-3)
            wanted = (pairing(i, at, h) - pairing(i, at, -h)) / (2 * h)
            np.testing.assert_allclose(slope[at], wanted, rtol=1e-3)


def test_the_size_of_chunks_does_not_matter(learned):
    some = lessons()
    edit = parts(some)[0]
    found = found_of(edit, OPT)
    for i in range(len(some)):
        for name, f in found_of(alone(edit, i), OPT).items():
            assert off(f.u, found[name].u[:, i : i + 1]) < 1e-5
            assert off(f.v, found[name].v[:, i : i + 1]) < 1e-5
    of = lambda chunk: around(learned, found, some, dataclasses.replace(OPT, chunk=chunk))
    one, *others = [of(chunk)[0] for chunk in (4, 2, 1)]
    for other in others:
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * float(jnp.abs(a).max()))
    with pytest.raises(ValueError, match="chunk=3 does not divide the step's 4 lessons"):
        gradient(learned, some, dataclasses.replace(OPT, chunk=3))


def test_the_least_squares_are_right_where_they_are_hard():
    """More tokens than dimensions, keys of which most are alike: a condition of 1e6."""
    key = lambda i: jax.random.fold_in(KEY, i)
    spread = jnp.logspace(1, -2, 96)
    u = jax.random.normal(key(0), (200, 96)) * spread + 5 * jax.random.normal(key(1), (96,))
    d = jax.random.normal(key(2), (200, 24))
    pair = lambda x: tuple(y[None] for y in x)
    gram, right = pair(solve.product(u.T, u)), pair(solve.product(u.T, d))
    by = malmen.systems({"": (gram, right)}, {"": jnp.array([-2.0])})[""]
    found = malmen.solved(by, right)
    wide = lambda x: np.asarray(x, np.float64)
    exact = wide(u).T @ wide(u) + np.exp(-2.0) * np.eye(96)
    assert np.linalg.cond(exact) > 1e6
    assert off(found.x_FN[0], np.linalg.solve(exact, wide(u).T @ wide(d))) < 1e-5
    keys = solve.Solved(*(x[0] for x in found))
    moved = wide(u) @ np.linalg.solve(exact, wide(u).T @ wide(d))
    assert off(solve.times(u, keys), moved) < 1e-5


def test_memory_does_not_grow_with_the_lessons_but_for_their_factors(learned):
    def held(count):
        some = jax.tree.map(lambda x: jnp.concatenate([jnp.asarray(x)] * (count // 8)), lessons(8))
        how = {"learner": malmen.LEARNER, "opt": OPT, "cfg": world().cfg}
        made = learner.gradient.lower(learned, world().params, some, **how).compile()
        factors = jax.eval_shape(
            lambda: malmen.factors(world().params, parts(some)[0], OPT, world().cfg)
        )
        return made.memory_analysis().temp_size_in_bytes, sum(
            x.size * 4 for x in jax.tree.leaves(factors)
        )

    (few, few_factors), (many, many_factors) = held(8), held(32)
    assert many - few < 3 * (many_factors - few_factors)


def test_all_tokens_of_a_step_are_counted_before_anything_is_normed(learned):
    some = lessons()
    _, _, running = gradient(learned, some)
    found = malmen.factors(world().params, parts(some)[0], OPT, world().cfg)
    before = malmen.factors(world().params, parts(lessons(8, 1))[0], OPT, world().cfg)
    for name, (u, v) in found.items():
        used = lambda f: np.asarray((f.u != 0).any(-1) & (f.v != 0).any(-1))
        for side, x, old in (("u", u, before[name].u), ("v", v, before[name].v)):
            every = np.concatenate(
                [np.asarray(old)[used(before[name])], np.asarray(x)[used(found[name])]]
            )
            assert int(running[name]["count"]) == len(every)
            np.testing.assert_allclose(running[name][f"{side}_mean"], every.mean(0), atol=1e-5)
            deviation = np.sqrt(running[name][f"{side}_sum"] / (len(every) - 1))
            assert off(deviation, every.std(0, ddof=1)) < 1e-4


def test_facts_are_edited_and_training_lowers_the_loss():
    m = world()
    opt = MalmenConfig((1, 2, 3), rank=32, step=4e-3, chunk=4)
    now, found = trained(malmen.LEARNER, opt, 6, 1e-4)
    assert found[-1]["loss"] < found[0]["loss"]
    asked, _ = requests("world:small:0:16")
    editor = malmen.malmen(opt)
    state = editor.init(KEY, m, now)
    batches = tuple(batch for _, batch in aligned(m.tokenizer, asked, about=None, token="last"))
    result, _ = editor.edit(state, m.params, batches)
    assert all(d.w.shape == (3, 512, 128) for d in result.deltas.values())
    assert float(result.info["loss"].mean()) < 0.5
    each = editor.each(state, m.params, batches)
    assert each.deltas["mlp/down"].a.shape[1] == 16
    assert float(each.info["loss"].mean()) < 1.0


def test_an_editor_that_was_not_trained_is_refused():
    asked, _ = requests("world:small:0:1")
    with pytest.raises(ValueError, match="malmen is trained before it edits"):
        edit.run(world(), asked, "malmen", trained="")
    with pytest.raises(ValueError, match="trained before it edits"):
        malmen.malmen(OPT).init(KEY, world())


def test_settings_that_cannot_be():
    for how in ({"depth": 0}, {"rank": 0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="positive"):
            MalmenConfig((1,), **how)
