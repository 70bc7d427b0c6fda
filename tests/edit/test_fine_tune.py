"""Fine-tuning against the authors' code, and what it promises besides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import GOLDEN, model, off, recorded, requests

import jaxedit
from jaxedit.data.aligned import aligned
from jaxedit.data.world.cases import cases
from jaxedit.data.world.facts import make
from jaxedit.edit import descent
from jaxedit.edit.methods import configure
from jaxedit.edit.weights import fine_tune as module
from jaxedit.edit.weights.fine_tune import FineTuneConfig, fine_tune
from jaxedit.models.config import Model
from jaxedit.models.shapes import SHAPES
from jaxedit.models.specs import init

# the model is small, and the authors' learning rate is for large ones
FAST = FineTuneConfig(layer=1, lr=5e-3)
# Where gradients are near zero Adam turns their rounding into steps: what should be equal is
# compared on the model of the recorded runs, whose gradients are not.
SHORT = dataclasses.replace(FAST, steps=3, bound=1.0, norm="l2")


@pytest.fixture(scope="module")
def world():
    return jaxedit.load("world", dtype="float32")


@pytest.fixture(scope="module")
def facts():
    """Two lists of eight requests that make batches of one shape."""
    found = [case.request for case in cases(make("small"), 14)]
    return [[found[i] for i in some] for some in ((*range(7), 8), (*range(6), 10, 13))]


def one_batch(tokenizer, some, about=None, **how):
    (batch,) = (b for _, b in aligned(tokenizer, some, about=about, token="last", **how))
    return batch


def only(batch, n):
    """The request n of a batch, by itself."""
    N = len(batch.valid_N)
    return jax.tree.map(lambda x: x[n : n + 1] if len(x) == N else x, batch)


def run(model, cfg, batches, kind="each", params=None):
    editor = fine_tune(cfg)
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
    return np.asarray(right.all(-1))


def matrix(result, i=slice(None)):
    return np.asarray(result.deltas["mlp/down"].w)[0][i]


@pytest.fixture
def optimised():
    """Compiled as for users: XLA's plainest sums are less exact."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("variant", ["default", "lr5e-3_free"])
@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
def test_weights_and_bias_are_those_of_the_authors_code(objective, variant):
    arrays, settings = recorded("ft/gpt2-tiny")
    hparams = settings["runs"][f"{objective}/{variant}/r0"]["hparams"]
    cfg = FineTuneConfig(
        layer=1,
        objective=objective.removesuffix("_new"),
        lr=hparams["lr"],
        bound=hparams["norm_constraint"] or None,
        bias=True,
    )
    name = {"prompt_last": "ft-l", "target_new": "ft-m"}[objective]
    free = {"layer": 1, "lr": cfg.lr, "bound": cfg.bound}
    easy = configure(name, model().cfg, protocol="easyedit", **free)  # the runs are EasyEdit's
    assert dataclasses.replace(easy, rows=cfg.rows) == cfg
    ((index, batch),) = aligned(model().tokenizer, requests(0, 2), about=None, token="last")
    result = run(model(), cfg, [batch])
    for n, i in enumerate(index):
        name = f"{objective}/{variant}/r{i}"
        losses, delta = arrays[f"{name}/losses"], f"{name}/delta/transformer.h.1.mlp.c_proj"
        assert off(matrix(result, n), arrays[f"{delta}.weight"]) < 1e-4
        assert off(result.writes["mlp_down"].value[0, n, 0], arrays[f"{delta}.bias"]) < 1e-4
        if cfg.bound:
            assert abs(matrix(result, n)).max() == np.float32(cfg.bound)
        # their last entry is the loss that stopped the search, or the one before the last update
        stopped = losses[-1] < 1e-2
        assert result.info["steps"][n] == len(losses) - stopped
        if stopped:
            assert result.info["loss"][n] == pytest.approx(losses[-1], rel=1e-4)


def test_every_fact_is_learned_by_its_own_change(world, facts):
    batch = one_batch(world.tokenizer, facts[0])
    before = jax.tree.map(np.array, world.params)
    result = run(world, FAST, [batch])
    assert not says(world, batch).any()
    assert says(world, batch, result.deltas).all()
    assert result.info["failed"].tolist() == [-1] * 8
    assert result.info["loss"].max() < 0.02
    sizes = np.linalg.norm(matrix(result), axis=(1, 2))
    np.testing.assert_allclose(result.info["norm"], sizes, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, world.params)


def test_one_change_holds_all_facts(world, facts):
    batch = one_batch(world.tokenizer, facts[0])
    result = run(world, FAST, [batch], "edit")
    assert matrix(result).shape == (world.cfg.mlp, world.cfg.embed)
    assert says(world, batch, result.deltas).all()
    size = np.linalg.norm(matrix(result))
    np.testing.assert_allclose(result.info["norm"], [size] * 8, rtol=1e-5)


def test_edited_together_each_request_is_as_if_edited_alone():
    batch = one_batch(model().tokenizer, requests())
    together = run(model(), SHORT, [batch])
    alone = run(model(), SHORT, [only(batch, n) for n in range(4)])
    for n in range(4):
        assert off(matrix(together, n), matrix(alone, n)) < 1e-5
    np.testing.assert_allclose(together.info["loss"], alone.info["loss"], rtol=1e-5, atol=1e-6)
    assert together.info["steps"].tolist() == alone.info["steps"].tolist()
    sizes = np.linalg.norm(matrix(together), axis=(1, 2))  # each in a ball of its own
    np.testing.assert_allclose(sizes, 1, rtol=1e-6)


def test_a_step_of_a_shared_change_follows_all_batches():
    batch = one_batch(model().tokenizer, requests())
    half = lambda at: jax.tree.map(lambda x: x[at : at + 2] if len(x) == 4 else x, batch)
    one, two = (run(model(), SHORT, b, "edit") for b in ([batch], [half(0), half(2)]))
    assert off(matrix(two), matrix(one)) < 1e-5
    np.testing.assert_allclose(two.info["loss"], one.info["loss"], rtol=1e-5, atol=1e-6)


def test_a_mesh_gives_the_same():
    batch = one_batch(model().tokenizer, requests())
    there = jaxedit.load(GOLDEN / "gpt2-tiny", jaxedit.make_mesh(2, 2, 2), dtype="float32")
    one, two = (run(m, SHORT, [batch], "edit") for m in (model(), there))
    assert off(matrix(two), matrix(one)) < 1e-5


def test_what_fills_a_batch_changes_nothing(world, facts):
    batch = one_batch(world.tokenizer, facts[0])
    batch = batch.replace(valid_N=np.arange(8) < 6)
    other = batch.tokens_NRS.copy()
    other[6:] = (other[6:] + 5) % 500
    shared = [run(world, FAST, [b], "edit") for b in (batch, batch.replace(tokens_NRS=other))]
    np.testing.assert_array_equal(matrix(shared[0]), matrix(shared[1]))
    assert matrix(run(world, FAST, [batch]), slice(6, 8)).max() == 0
    idle = run(world, FAST, [batch.replace(valid_N=np.zeros(8, bool))], "edit")
    assert not matrix(idle).any()


def test_a_request_without_a_finite_loss_fails_alone(world, facts):
    batch = one_batch(world.tokenizer, facts[0])
    last = batch.pos_NRS.max((1, 2))
    n = int(last.argmax())
    others = np.arange(8) != n
    assert (last[others] < last[n]).all()  # it alone reaches this position
    table = world.params["pos"]["w"].at[last[n]].set(jnp.nan)
    params = {**world.params, "pos": {"w": table}}
    good, bad = run(world, FAST, [batch]), run(world, FAST, [batch], params=params)
    assert bad.info["failed"].tolist() == np.where(others, -1, 0).tolist()
    assert np.isnan(bad.info["loss"]).tolist() == (~others).tolist()
    assert not matrix(bad, n).any()
    np.testing.assert_array_equal(matrix(bad, others), matrix(good, others))
    # of one change for all: as if the request had not been there
    bad = run(world, FAST, [batch], "edit", params)
    good = run(world, FAST, [batch.replace(valid_N=others)], "edit")
    assert bad.info["failed"].tolist() == np.where(others, -1, 0).tolist()
    np.testing.assert_array_equal(matrix(bad), matrix(good))


def test_other_requests_of_the_same_shape_do_not_compile_again(world, facts):
    one, two = (one_batch(world.tokenizer, some) for some in facts)
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, two)
    for kind in ("each", "edit"):
        run(world, FAST, [one], kind)
        count = module._tune._cache_size()
        run(world, FAST, [two], kind)
        assert module._tune._cache_size() == count


def test_all_contexts_are_learned_and_the_row_about_the_subject_is_not():
    groups, tokenizer = (("{}", "It is said that {}"),), model().tokenizer
    batch = one_batch(tokenizer, requests(0, 2), "{} is a", groups=groups)
    assert batch.tokens_NRS.shape[:2] == (2, 3)
    result = run(model(), FAST, [batch])
    assert result.info["loss"].max() < 1e-2
    for context in groups[0]:  # each by itself
        one = one_batch(tokenizer, requests(0, 2), groups=((context,),))
        assert says(model(), one, result.deltas).all()


def test_a_search_in_bfloat16_trains_a_float32_change(facts):
    world = jaxedit.load("world", dtype="bfloat16")
    batch = one_batch(world.tokenizer, facts[0])
    result = run(world, dataclasses.replace(FAST, bias=True), [batch])
    assert matrix(result).dtype == np.float32
    assert says(world, batch, result.deltas, result.writes).all()


def test_what_cannot_be_is_refused(world):
    with pytest.raises(ValueError, match="layer 4: the model has layers 0 to 3"):
        fine_tune(FineTuneConfig(layer=4)).init(jax.random.key(0), world, None)
    with pytest.raises(ValueError, match="objective 'last': one of target, prompt_last"):
        FineTuneConfig(layer=0, objective="last")
    with pytest.raises(ValueError, match="norm 'l1': one of inf, l2"):
        FineTuneConfig(layer=0, norm="l1")
    with pytest.raises(ValueError, match="bound are positive"):
        FineTuneConfig(layer=0, bound=0.0)


def test_an_output_norm_after_the_matrix_is_part_of_the_search():
    """The loss of a search that starts inside the model is that of the whole one."""
    cfg = SHAPES["tiny-llama"].replace(post_norm=True, vocab=model().cfg.vocab)
    normed = Model(init(jax.random.key(0), cfg), cfg)
    batch = one_batch(model().tokenizer, requests())
    result = run(normed, dataclasses.replace(FAST, steps=2, bias=True), [batch])
    tokens, pos = descent.flat(batch)
    out = jaxedit.forward(
        normed.params,
        tokens,
        cfg,
        pos_BT=pos,
        logits_at=descent.columns(batch, "target"),
        deltas=result.deltas,
        writes=result.writes,
    )
    loss = descent.likelihood(out.logits, batch)
    np.testing.assert_allclose(loss, result.info["loss"], rtol=1e-5)
    assert (loss < descent.likelihood(jnp.zeros_like(out.logits), batch)).all()
