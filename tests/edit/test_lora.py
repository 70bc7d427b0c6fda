"""LoRA and AdaLoRA as editors."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_edits import model, off, requests

import jaxedit
from jaxedit import delta
from jaxedit.data.aligned import aligned
from jaxedit.data.world.cases import cases
from jaxedit.data.world.facts import make
from jaxedit.edit import descent
from jaxedit.edit.weights import adalora as ada_module
from jaxedit.edit.weights import lora as lora_module
from jaxedit.edit.weights.adalora import AdaLoraConfig, adalora, allocate, budgets, skewness
from jaxedit.edit.weights.lora import LoraEditConfig, lora
from jaxedit.hf import peft

# the model is small: fewer steps do
LORA, ADA = LoraEditConfig(steps=20), AdaLoraConfig(steps=40, lr=1e-2)
EDITORS = {"lora": lora(LORA), "adalora": adalora(ADA)}
SMALL = LoraEditConfig(rank=4, alpha=6.0, targets=("mlp/up",), layers=(0, 2), steps=3)
BRIEF = {"lora": LoraEditConfig(steps=4), "adalora": AdaLoraConfig(steps=4)}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def world():
    return jaxedit.load("world", dtype="float32")


@pytest.fixture(scope="module")
def batch(world):
    """Eight facts; one is longer than the others."""
    found = [case.request for case in cases(make("small"), 9)]
    return one_batch(world, [*found[:7], found[8]])


@pytest.fixture(scope="module")
def learned(world, batch):
    """What each editor makes of them."""
    kinds = [("lora", "each"), ("lora", "edit"), ("adalora", "each")]
    return {(name, kind): run(world, EDITORS[name], [batch], kind) for name, kind in kinds}


def one_batch(model, some):
    (batch,) = (b for _, b in aligned(model.tokenizer, some, about=None, token="last"))
    return batch


def run(model, editor, batches, kind="each", params=None, key=KEY):
    state = editor.init(key, model, None)
    out = getattr(editor, kind)(state, model.params if params is None else params, batches)
    return out if kind == "each" else out[0]


def says(model, batch, deltas):
    """Is every token of a request's target the first choice, [N]."""
    tokens, pos = descent.flat(batch)
    at = descent.columns(batch, "target")
    out = jaxedit.forward(model.params, tokens, model.cfg, pos_BT=pos, logits_at=at, deltas=deltas)
    right = (out.logits.argmax(-1) == batch.target_NU) | (batch.mask_NU == 0)
    return np.asarray(right.all(-1))


def matrices_of(result):
    """Every change as a matrix, [L, (N,) I, O]."""
    return {path: np.asarray(delta.product(d)) for path, d in result.deltas.items()}


def test_facts_are_learned_apart_and_together(world, batch, learned):
    assert not says(world, batch, None).any()
    for result in learned.values():
        assert says(world, batch, result.deltas).all()
        assert result.info["failed"].tolist() == [-1] * 8
        assert result.info["loss"].max() < 0.2
        square = sum((m**2).sum((0, -2, -1)) for m in matrices_of(result).values())
        norms = np.broadcast_to(np.sqrt(square), 8)
        np.testing.assert_allclose(result.info["norm"], norms, rtol=1e-4)


@pytest.mark.parametrize("name", EDITORS)
def test_edited_together_each_request_is_as_if_edited_alone(name):
    editor = {"lora": lora, "adalora": adalora}[name](BRIEF[name])
    batch = one_batch(model(), requests())
    only = lambda n: jax.tree.map(lambda x: x[n : n + 1] if len(x) == 4 else x, batch)
    before = jax.tree.map(np.array, model().params)
    together = matrices_of(run(model(), editor, [batch]))
    alone = matrices_of(run(model(), editor, [only(n) for n in range(4)]))
    for path, m in together.items():
        for n in range(4):
            assert off(m[:, n], alone[path][:, n]) < 1e-5
    jax.tree.map(np.testing.assert_array_equal, before, model().params)


@pytest.mark.parametrize("name", EDITORS)
def test_other_requests_of_the_same_shape_do_not_compile_again(name):
    module, make = {"lora": (lora_module, lora), "adalora": (ada_module, adalora)}[name]
    one = one_batch(model(), requests())
    two = jax.tree.map(lambda x: np.roll(x, 1, axis=0), one)
    run(model(), make(BRIEF[name]), [one])
    count = module._tune._cache_size()
    run(model(), make(BRIEF[name]), [two], key=jax.random.key(1))
    assert module._tune._cache_size() == count


def test_lora_is_adam_on_the_factors_from_pefts_start():
    """Step by step with optax, on all rows at once."""
    batch = one_batch(model(), requests())
    x = lora_module.first_factors(KEY, model().cfg, SMALL, 1)["mlp/up"]
    a, b = x["a"][:, 0], x["b"][:, 0]
    limit = 1 / np.sqrt(model().cfg.embed)
    assert 0.95 * limit < abs(a).max() < limit
    assert abs(a.mean()) < 0.1 * limit
    assert not b.any()

    tokens, pos = descent.flat(batch)

    def loss(x):
        change = {"mlp/up": jaxedit.LowRank(x[0], x[1] * 1.5, jnp.array([0, 2]))}
        out = jaxedit.forward(model().params, tokens, model().cfg, pos_BT=pos, deltas=change)
        logp = jax.nn.log_softmax(out.logits)
        at = descent.columns(batch, "target")
        logp = jnp.take_along_axis(logp, at[..., None], 1)
        said = jnp.take_along_axis(logp, batch.target_NU[..., None], 2)[..., 0]
        return -((said * batch.mask_NU).sum(1) / batch.mask_NU.sum(1)).mean()

    adam, x = optax.adam(5e-3), (a, b)
    state = adam.init(x)
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats and ints
            change, state = adam.update(jax.jit(jax.grad(loss))(x), state)
        x = optax.apply_updates(x, change)
    d = run(model(), lora(SMALL), [batch], "edit").deltas["mlp/up"]
    assert d.layers.tolist() == [0, 2]
    assert off(d.a, x[0]) < 1e-4
    assert off(d.b, x[1] * 1.5) < 1e-4


def test_the_adapter_of_an_edit_changes_the_same(world, learned, tmp_path):
    change = delta.row(learned["lora", "each"].deltas, 1)
    jaxedit.Edit(deltas=change).to_peft(tmp_path / "adapter", world)
    back = peft.read(tmp_path / "adapter", world.cfg)
    assert back.keys() == change.keys()
    for path, d in change.items():
        np.testing.assert_allclose(delta.product(back[path]), delta.product(d), atol=1e-6)


def test_a_later_edit_of_a_sequence_starts_elsewhere():
    editor, batch = lora(SMALL), one_batch(model(), requests())
    state = editor.init(KEY, model(), None)
    one, later = editor.edit(state, model().params, [batch])
    again, _ = editor.edit(state, model().params, [batch])
    jax.tree.map(np.testing.assert_array_equal, one.deltas, again.deltas)
    two, _ = editor.edit(later, model().params, [batch])
    assert off(two.deltas["mlp/up"].a, one.deltas["mlp/up"].a) > 0.5


def test_a_request_without_a_finite_loss_fails_alone(world, batch, learned):
    last = batch.pos_NRS.max((1, 2))
    n = int(last.argmax())
    others = np.arange(8) != n
    assert (last[others] < last[n]).all()  # it alone reaches this position
    table = world.params["pos"]["w"].at[last[n]].set(jnp.nan)
    params = {**world.params, "pos": {"w": table}}
    result = run(world, EDITORS["lora"], [batch], params=params)
    assert result.info["failed"].tolist() == np.where(others, -1, 0).tolist()
    good, bad = matrices_of(learned["lora", "each"]), matrices_of(result)
    for path in good:
        assert not bad[path][:, n].any()
        np.testing.assert_array_equal(bad[path][:, others], good[path][:, others])
    # of one change for all: as if the request had not been there
    bad = run(world, EDITORS["lora"], [batch], "edit", params)
    good = run(world, EDITORS["lora"], [batch.replace(valid_N=others)], "edit")
    assert bad.info["failed"].tolist() == np.where(others, -1, 0).tolist()
    jax.tree.map(np.testing.assert_array_equal, bad.deltas, good.deltas)


def test_a_request_that_is_said_stops_and_the_others_go_on(batch):
    world = jaxedit.load("world", dtype="bfloat16")
    result = run(world, lora(dataclasses.replace(LORA, stop_loss=0.02)), [batch])
    assert result.deltas["attn/q"].a.dtype == np.float32
    assert says(world, batch, result.deltas).all()
    assert result.info["loss"].max() < 0.02
    assert len(set(result.info["steps"].tolist())) > 1
    assert result.info["steps"].max() < LORA.steps


def kept(result):
    """How many triplets of each request are left."""
    used = [np.asarray(d.a).any(-2) & np.asarray(d.b).any(-1) for d in result.deltas.values()]
    return sum(u.sum((0, -1)) for u in used)


def test_adalora_ends_at_its_budget_and_spends_it_unevenly(world, learned):
    result = learned["adalora", "each"]
    assert kept(result).tolist() == [8 * 2 * world.cfg.layers] * 8
    ranks = np.asarray(result.deltas["attn/q"].a).any(-2).sum(-1)  # [L, N]
    assert len(np.unique(ranks)) > 1


def test_the_factors_of_adalora_turn_orthogonal():
    batch = one_batch(model(), requests())
    cfg = AdaLoraConfig(init_rank=4, target_rank=3, steps=30)
    start = ada_module.first_factors(KEY, model().cfg, cfg, 1)
    x, _ = ada_module._tune(model().params, (batch,), KEY, model().cfg, cfg, apart=False)
    assert skewness(x)[0] < 0.6 * skewness(start)[0]
    assert kept(run(model(), adalora(cfg), [batch], "edit")) == 3 * 2 * model().cfg.layers
    eye = {"m": {"a": jnp.eye(6, 4)[None, None], "b": jnp.eye(4, 5)[None, None]}}
    assert skewness(eye) == 0


def test_equal_ranks_drop_nothing():
    cfg = AdaLoraConfig(init_rank=4, target_rank=4, steps=1)
    x = {"m": {"a": jnp.ones((3, 2, 5, 4)), "e": jnp.ones((3, 2, 4)), "b": jnp.ones((3, 2, 4, 6))}}
    zero = jax.tree.map(jnp.zeros_like, x)
    memory = {"mean": zero, "doubt": zero, "kept": {"m": jnp.ones((3, 2, 4), bool)}}
    found, _ = allocate(x, zero, memory, jnp.int32(1), cfg)
    jax.tree.map(np.testing.assert_array_equal, found, x)


def test_triplets_are_chosen_as_published():
    """Against a plain loop: importance, budget, ties, revival, and the last choice that stays."""
    cfg = AdaLoraConfig(init_rank=4, target_rank=2, steps=12, warm=2, settle=3, every=2)
    table = budgets(cfg, 3)
    assert (table[:2], table[8:]) == ([12, 12], [6] * 4)
    assert table[2:8] == [int(6 + 6 * (1 - (t - 2) / 7) ** 3) for t in range(3, 9)]
    random = np.random.RandomState(0)
    # one matrix of three layers and one request: a [3, 1, 5, 4], e [3, 1, 4], b [3, 1, 4, 6]
    shapes = {"a": (3, 1, 5, 4), "e": (3, 1, 4), "b": (3, 1, 4, 6)}
    zero = {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    mean, doubt = dict(zero), dict(zero)
    memory = {"mean": {"m": zero}, "doubt": {"m": zero}, "kept": {"m": np.ones((3, 1, 4), bool)}}
    pattern = np.ones((3, 1, 4), bool)
    step = jax.jit(partial(allocate, opt=cfg))
    for t in range(1, 13):
        draw = lambda: {k: random.randn(*s).astype(np.float32) for k, s in shapes.items()}
        x, grad = draw(), draw()
        if t < 9:
            for k in shapes:
                now = abs(x[k] * grad[k])
                mean[k] = 0.85 * mean[k] + 0.15 * now
                doubt[k] = 0.85 * doubt[k] + 0.15 * abs(now - mean[k])
        if (2 < t < 9 and t % 2 == 0) or t == 9:
            s = {k: mean[k] * doubt[k] for k in shapes}
            score = s["e"] + s["a"].mean(2) + s["b"].mean(3)
            drop = 12 - table[t - 1]
            pattern = score > np.sort(score.ravel())[drop - 1] if drop else score > -1
        masked = (2 < t < 9 and t % 2 == 0) or t >= 9
        wanted = np.where(pattern, x["e"], 0) if masked else x["e"]
        found, memory = step({"m": x}, {"m": grad}, memory, jnp.int32(t))
        np.testing.assert_array_equal(found["m"]["e"], wanted)
        np.testing.assert_array_equal(found["m"]["a"], x["a"])
    assert pattern.sum() == 6


def test_what_cannot_be_is_refused(world):
    first = lambda editor: editor.init(KEY, world, None)
    with pytest.raises(ValueError, match=r"target 'attn/w'.* did you mean 'attn/"):
        first(lora(LoraEditConfig(targets=("attn/w",))))
    with pytest.raises(ValueError, match="target 'embed'"):
        first(adalora(AdaLoraConfig(targets=("embed",))))
    with pytest.raises(ValueError, match="no targets"):
        first(lora(LoraEditConfig(targets=())))
    with pytest.raises(ValueError, match="layer 4: the model has layers 0 to 3"):
        first(lora(LoraEditConfig(layers=(0, 4))))
    with pytest.raises(ValueError, match="each once"):
        first(lora(LoraEditConfig(layers=(1, 1))))
    with pytest.raises(ValueError, match="target_rank 13: 1 to init_rank"):
        dataclasses.replace(ADA, target_rank=13)
    with pytest.raises(ValueError, match="together fewer than the 40 steps"):
        dataclasses.replace(ADA, warm=30, settle=40)
