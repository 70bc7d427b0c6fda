"""Fine-tuning against the authors' code, and what every gradient editor promises."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.data.aligned import aligned
from jaxedit.data.cases import EditRequest
from jaxedit.data.world.cases import cases
from jaxedit.data.world.facts import make
from jaxedit.edit import descent
from jaxedit.edit.weights import fine_tune as module
from jaxedit.edit.weights.fine_tune import FineTuneConfig, fine_tune

GOLDEN = Path(__file__).parents[1] / "golden" / "editing"
# the model is small: authors' learning rates are for large ones
FAST = FineTuneConfig(layer=1, lr=5e-3)


@pytest.fixture(scope="module")
def world():
    return jaxedit.load("world", dtype="float32")


@pytest.fixture(scope="module")
def requests():
    return [case.request for case in cases(make("small"), 12)]


def batches_of(model, some, **how):
    how = {"about": None, "token": "last"} | how
    return [batch for _, batch in aligned(model.tokenizer, some, **how)]


def run(model, editor, batches, kind="each", params=None):
    state = editor.init(jax.random.key(0), model, None)
    out = getattr(editor, kind)(state, model.params if params is None else params, batches)
    return out if kind == "each" else out[0]


def says(model, batch, deltas=None, writes=None):
    """Is every token of a request's target the first choice, [N]."""
    tokens, pos = descent.flat(batch)
    at = descent.columns(batch, "target")
    out = jaxedit.forward(
        model.params, tokens, model.cfg, pos_BT=pos, logits_at=at, deltas=deltas, writes=writes
    )
    right = (out.logits.argmax(-1) == batch.target_NU) | (batch.mask_NU == 0)
    return np.asarray(right.all(-1))[batch.valid_N]


def matrix(result, i=None):
    w = np.asarray(result.deltas["mlp/down"].w)[0]
    return w if i is None else w[i]


def off(x, y):
    return np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(np.asarray(y))


@pytest.fixture(scope="module")
def golden():
    model = jaxedit.load(GOLDEN / "gpt2-tiny", dtype="float32")
    runs = json.loads((GOLDEN / "ft" / "gpt2-tiny.json").read_text())["runs"]
    return model, runs, np.load(GOLDEN / "ft" / "gpt2-tiny.npz")


@pytest.mark.parametrize("variant", ["default", "lr5e-3_free"])
@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
def test_weights_and_bias_are_those_of_the_authors_code(golden, objective, variant):
    model, runs, arrays = golden
    names = [f"{objective}/{variant}/r{i}" for i in range(2)]
    asked = [runs[name]["requests"][0] for name in names]
    subjects = ("Elka Castro", "Elka Hobart")
    some = [
        EditRequest.of(r["prompt"], s, r["target_new"])
        for r, s in zip(asked, subjects, strict=True)
    ]
    hparams = runs[names[0]]["hparams"]
    cfg = FineTuneConfig(
        layer=1,
        objective=objective.removesuffix("_new"),
        lr=hparams["lr"],
        bound=hparams["norm_constraint"] or None,
        bias=True,
    )
    found = list(aligned(model.tokenizer, some, about=None, token="last"))
    (index, batch) = found[0]
    result = run(model, fine_tune(cfg), [batch])
    for n, i in enumerate(index):
        losses = arrays[f"{names[i]}/losses"]
        delta = f"{names[i]}/delta/transformer.h.1.mlp.c_proj"
        assert off(matrix(result, n), arrays[f"{delta}.weight"]) < 1e-4
        assert off(result.writes["mlp_down"].value[0, n, 0], arrays[f"{delta}.bias"]) < 1e-4
        # their last entry is the loss that stopped the search, or the one before the last update
        stopped = losses[-1] < 1e-2
        assert result.info["steps"][n] == len(losses) - stopped
        if stopped:
            assert result.info["loss"][n] == pytest.approx(losses[-1], rel=1e-4)


def test_every_fact_is_learned_by_its_own_change(world, requests):
    (batch,) = batches_of(world, requests[:8])
    before = jax.tree.map(np.array, world.params)
    result = run(world, fine_tune(FAST), [batch])
    assert not says(world, batch).any()
    assert says(world, batch, result.deltas).all()
    assert (result.info["failed"] == -1).all()
    assert (result.info["loss"] < 0.02).all()
    jax.tree.map(np.testing.assert_array_equal, before, world.params)


def test_edited_together_each_request_is_as_if_edited_alone(world, requests):
    some = requests[:8]
    found = list(aligned(world.tokenizer, some, about=None, token="last"))
    (index, batch) = found[0]
    editor = fine_tune(dataclasses.replace(FAST, steps=4))
    result = run(world, editor, [batch])
    for n in range(3):
        one = jax.tree.map(
            lambda x, n=n: x[n : n + 1] if len(x) == len(batch.valid_N) else x, batch
        )
        alone = run(world, editor, [one])
        assert off(matrix(result, n), matrix(alone, 0)) < 1e-5
        shared = run(world, editor, [one], "edit")
        assert off(matrix(result, n), matrix(shared)) < 1e-5
        assert shared.info["norm"][0] == pytest.approx(np.linalg.norm(matrix(shared)), rel=1e-5)


def test_one_change_holds_all_facts_whatever_the_batches(world, requests):
    """The gradient of a step is that of all requests, however they lie in batches."""
    one = batches_of(world, requests[:6], size=8)
    three = batches_of(world, requests[:6], size=2)
    assert (len(one), len(three)) == (1, 3)
    result = run(world, fine_tune(FAST), one, "edit")
    assert says(world, one[0], result.deltas).all()
    short = fine_tune(dataclasses.replace(FAST, steps=3))
    assert off(matrix(run(world, short, three, "edit")), matrix(run(world, short, one, "edit"))) < (
        1e-4
    )


def test_what_fills_a_batch_changes_nothing(world, requests):
    (batch,) = batches_of(world, requests[:6], size=8)
    assert batch.valid_N.tolist() == [True] * 6 + [False] * 2
    other = batch.tokens_NRS.copy()
    other[6:] = (other[6:] + 5) % 500
    editor = fine_tune(FAST)
    one = run(world, editor, [batch], "edit")
    two = run(world, editor, [batch.replace(tokens_NRS=other)], "edit")
    np.testing.assert_array_equal(matrix(one), matrix(two))
    idle = batch.replace(valid_N=np.zeros(8, bool))
    assert not matrix(run(world, editor, [idle], "edit")).any()
    assert not matrix(run(world, editor, [batch]), slice(6, None)).any()


@pytest.mark.parametrize("norm", ["inf", "l2"])
def test_the_change_stays_within_its_bound(world, requests, norm):
    bound = 1e-2 if norm == "inf" else 1.0
    (batch,) = batches_of(world, requests[:8])
    free = matrix(run(world, fine_tune(FAST), [batch]))
    cfg = dataclasses.replace(FAST, bound=bound, norm=norm)
    w = matrix(run(world, fine_tune(cfg), [batch]))
    if norm == "inf":
        assert (abs(free) > bound).any()
        assert abs(w).max() == np.float32(bound)
    else:
        sizes = np.linalg.norm(w.astype(np.float64), axis=(1, 2))
        assert np.linalg.norm(free, axis=(1, 2)).min() > bound
        np.testing.assert_allclose(sizes, bound, rtol=1e-6)


def broken(model, batch):
    """Params with a position that is not a number, and which request alone reaches it."""
    last = batch.pos_NRS.max((1, 2))
    n = int(last.argmax())
    assert (last == last[n]).sum() == 1
    table = model.params["pos"]["w"].at[last[n]].set(jnp.nan)
    return n, {**model.params, "pos": {"w": table}}


def test_a_request_without_a_finite_loss_fails_alone(world, requests):
    (batch,) = batches_of(world, [requests[i] for i in (0, 1, 2, 3, 5, 7, 8, 9)])
    n, params = broken(world, batch)
    others = np.arange(8) != n
    editor = fine_tune(FAST)
    good, bad = run(world, editor, [batch]), run(world, editor, [batch], params=params)
    assert bad.info["failed"].tolist() == np.where(others, -1, 0).tolist()
    assert np.isnan(bad.info["loss"][n])
    assert not matrix(bad, n).any()
    np.testing.assert_array_equal(matrix(bad, others), matrix(good, others))
    # of one change for all: as if the request had not been there
    bad = run(world, editor, [batch], "edit", params)
    good = run(world, editor, [batch.replace(valid_N=others)], "edit")
    assert bad.info["failed"].tolist() == np.where(others, -1, 0).tolist()
    np.testing.assert_array_equal(matrix(bad), matrix(good))


def test_other_requests_of_the_same_shape_do_not_compile_again(world, requests):
    editor = fine_tune(FAST)
    (one,), (two,) = (batches_of(world, some) for some in (requests[:4], requests[1:5]))
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, two)
    run(world, editor, [one])
    run(world, editor, [one], "edit")
    count = module._tune._cache_size()
    run(world, editor, [two])
    run(world, editor, [two], "edit")
    assert module._tune._cache_size() == count


def test_contexts_are_learned_too_and_the_row_about_the_subject_is_not(world, requests):
    groups = (("{}", "It is said that {}"),)
    (batch,) = batches_of(world, requests[:2], groups=groups)
    (more,) = batches_of(world, requests[:2], groups=groups, about="{} is a")
    assert more.tokens_NRS.shape[1] == 3
    result = run(world, fine_tune(FAST), [batch])
    np.testing.assert_allclose(matrix(run(world, fine_tune(FAST), [more])), matrix(result))
    tokens, pos = descent.flat(batch)
    rows = dataclasses.replace(
        result.deltas["mlp/down"], w=jnp.repeat(result.deltas["mlp/down"].w, 2, axis=1)
    )
    at = descent.columns(batch, "target")
    out = jaxedit.forward(
        world.params, tokens, world.cfg, pos_BT=pos, logits_at=at, deltas={"mlp/down": rows}
    )
    right = out.logits.argmax(-1).reshape(2, 2, -1) == batch.target_NU[:, None]
    assert (right | (batch.mask_NU == 0)[:, None]).all()


def test_a_search_in_bfloat16_learns_with_a_float32_change(requests):
    model = jaxedit.load("world", dtype="bfloat16")
    (batch,) = batches_of(model, requests[:8])
    result = run(model, fine_tune(dataclasses.replace(FAST, bias=True)), [batch])
    assert matrix(result).dtype == np.float32
    assert says(model, batch, result.deltas, result.writes).all()


def test_a_mesh_gives_the_same(world, requests):
    mesh = jaxedit.make_mesh(2, 2, 2)
    (batch,) = batches_of(world, requests[:8], size=8, multiple=4)
    editor = fine_tune(dataclasses.replace(FAST, steps=3))
    for kind in ("each", "edit"):
        model = jaxedit.load("world", mesh, dtype="float32")
        there, here = run(model, editor, [batch], kind), run(world, editor, [batch], kind)
        np.testing.assert_allclose(there.info["loss"], here.info["loss"], rtol=1e-4)
        assert off(matrix(there), matrix(here)) < 1e-3


def test_what_cannot_be_is_refused(world):
    with pytest.raises(ValueError, match="layer 4: the model has layers 0 to 3"):
        fine_tune(FineTuneConfig(layer=4)).init(jax.random.key(0), world, None)
    with pytest.raises(ValueError, match="objective 'last': one of target, prompt_last"):
        FineTuneConfig(layer=0, objective="last")
    with pytest.raises(ValueError, match="norm 'l1': one of inf, l2"):
        FineTuneConfig(layer=0, norm="l1")
    with pytest.raises(ValueError, match="bound are positive"):
        FineTuneConfig(layer=0, bound=0.0)
