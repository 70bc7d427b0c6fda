"""ROME against the authors' own code, and its own equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import batches, model, off, recorded, rows_config, stats, value_config

from jaxedit import delta
from jaxedit.edit import values
from jaxedit.edit.weights.rome import RomeConfig, rome
from jaxedit.models.transformer import forward

NAMES = ("base", "no_mom2", "layer1", "layer1_early_stop", "layer1_clamp0p75")


def editor_of(settings):
    h = settings["hparams"]
    return rome(
        RomeConfig(
            layer=h["layers"][0],
            values=value_config(h),
            rows=rows_config(settings),
            covariance=h["mom2_adjustment"],
        )
    )


def edited(name):
    arrays, settings = recorded(f"rome/{name}")
    editor = editor_of(settings)
    state = editor.init(jax.random.key(0), model(), stats())
    return editor.each(state, model().params, batches(settings)), arrays


@pytest.mark.parametrize("name", NAMES)
def test_the_update_is_the_authors(name):
    result, arrays = edited(name)
    d = result.deltas["mlp/down"]
    for i in range(4):
        u, right = arrays[f"r{i}/u"], arrays[f"r{i}/right_vector"]
        assert off(d.a[0, i, :, 0], u) < 1e-4
        assert off(d.a[0, i] @ d.b[0, i], np.outer(u, right)) < 1e-4
        if "r0/step_loss" in arrays:
            assert result.info["steps"][i] == len(arrays[f"r{i}/step_loss"])


@pytest.mark.parametrize("name", ["base", "layer1", "layer1_early_stop", "layer1_clamp0p75"])
def test_every_step_of_the_search_is_the_authors(name):
    arrays, settings = recorded(f"rome/{name}")
    h = settings["hparams"]
    found = values.search(
        model().params, batches(settings), model().cfg, h["layers"][0], ("mlp_down",),
        value_config(h), trace=True,
    )  # fmt: skip
    for i in range(4):
        steps = len(arrays[f"r{i}/step_loss"])
        assert off(found.trace["loss"][i, :steps], arrays[f"r{i}/step_loss"]) < 1e-5
        assert np.isnan(found.trace["loss"][i, steps:]).all()
        assert off(found.trace["mlp_down"][i, 1:steps], arrays[f"r{i}/step_delta"][1:]) < 1e-4


@pytest.mark.parametrize("name", ["base", "no_mom2"])
def test_the_edited_models_say_what_the_authors_do(name):
    """All four edits in one forward, each row its own."""
    result, arrays = edited(name)
    prompts = [arrays[f"r{i}/prompt_ids"] for i in range(4)]
    T = max(map(len, prompts))
    tokens, pos = np.zeros((4, T), np.int32), np.full((4, T), -1, np.int32)
    for i, p in enumerate(prompts):
        tokens[i, : len(p)], pos[i, : len(p)] = p, np.arange(len(p))
    out = forward(
        model().params, jnp.asarray(tokens), model().cfg, pos_BT=jnp.asarray(pos),
        deltas=result.deltas,
    )  # fmt: skip
    for i, p in enumerate(prompts):
        assert off(out.logits[i, : len(p)], arrays[f"r{i}/logits_after"]) < 1e-4


@pytest.mark.parametrize("key", ["prompt", "mean"])
def test_the_key_finds_the_value(key):
    """k (W + a b) = v*, for the key that the method divides by."""
    _, settings = recorded("rome/base")
    cfg = RomeConfig(layer=1, rows=rows_config(settings), key=key)
    batch = batches(settings)
    editor = rome(cfg)
    state = editor.init(jax.random.key(0), model(), stats())
    d = editor.each(state, model().params, batch).deltas["mlp/down"]
    found = values.search(model().params, batch, model().cfg, 1, ("mlp_down",), cfg.values)
    keys = {"prompt": found.keys_NCF[:, 0], "mean": found.keys_NCF.mean(1)}[key]
    p = model().params["blocks"]["mlp"]["down"]
    for i in range(4):
        value = keys[i] @ (p["w"][1] + d.a[0, i] @ d.b[0, i]) + p["b"][1]
        assert off(value, found.found["mlp_down"][i]) < 1e-4


def test_one_edit_is_the_first_of_each():
    _, settings = recorded("rome/base")
    editor = editor_of(settings)
    state = editor.init(jax.random.key(0), model(), stats())
    batch = batches(settings)
    each = editor.each(state, model().params, batch)
    for i in range(2):
        result, _ = editor.edit(state, model().params, (batch[0].one(i),))
        alone = delta.row(each.deltas, i)["mlp/down"].dense()
        assert off(result.deltas["mlp/down"].dense(), alone) < 1e-5
