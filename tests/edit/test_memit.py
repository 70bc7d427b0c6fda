"""MEMIT against the authors' own code; EMMET and PMET by what they are variations of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import batches, model, off, recorded, rows_config, stats, value_config

from jaxedit import delta
from jaxedit.edit.weights.emmet import EmmetConfig, emmet
from jaxedit.edit.weights.memit import MemitConfig, memit
from jaxedit.edit.weights.pmet import PmetConfig, pmet
from jaxedit.models.transformer import forward


def config_of(settings, **more):
    h = settings["hparams"]
    return {
        "layers": tuple(h["layers"]),
        "weight": h["mom2_update_weight"],
        "values": value_config(h),
        "rows": rows_config(settings),
    } | more


def apply(editor, batch):
    state = editor.init(jax.random.key(0), model(), stats())
    return editor.edit(state, model().params, batch)[0]


@pytest.mark.parametrize("name", ["base", "lambda20000", "layers01_clamp4_lambda0p1"])
def test_the_updates_are_the_authors(name):
    arrays, settings = recorded(f"memit/{name}")
    result = apply(memit(MemitConfig(**config_of(settings))), batches(settings))
    d = result.deltas["mlp/down"]
    for n, layer in enumerate(settings["hparams"]["layers"]):
        wanted = arrays[f"layer{layer}/update_matrix"]
        ours = d.a[n] @ d.b[n]
        assert off(ours if ours.shape == wanted.shape else ours.T, wanted) < 1e-4
        if name == "base":
            assert off(d.a[n], arrays[f"layer{layer}/adj_k"]) < 1e-4
            assert off(d.b[n].T, arrays[f"layer{layer}/resid"]) < 1e-4


def test_the_edited_model_says_what_the_authors_does():
    arrays, settings = recorded("memit/base")
    result = apply(memit(MemitConfig(**config_of(settings))), batches(settings))
    for i in range(4):
        prompt = jnp.asarray(arrays[f"r{i}/prompt_ids"], jnp.int32)[None]
        out = forward(model().params, prompt, model().cfg, deltas=result.deltas)
        assert off(out.logits[0], arrays[f"r{i}/logits_after"]) < 1e-4


@pytest.mark.parametrize("maker", [
    lambda s: memit(MemitConfig(**config_of(s))),
    lambda s: emmet(EmmetConfig(layer=1, values=value_config(s["hparams"]), rows=rows_config(s))),
    lambda s: pmet(PmetConfig(layers=(0, 1), weight=5.0, rows=rows_config(s))),
])  # fmt: skip
def test_each_is_one_at_a_time(maker):
    _, settings = recorded("memit/base")
    editor, batch = maker(settings), batches(settings)
    state = editor.init(jax.random.key(0), model(), stats())
    each = editor.each(state, model().params, batch)
    for i in range(4):
        alone, _ = editor.edit(state, model().params, (batch[0].one(i),))
        mine = delta.row(each.deltas, i)["mlp/down"]
        assert off(mine.dense(), alone.deltas["mlp/down"].dense()) < 1e-5


def test_emmet_of_several_is_memit_of_weight_times_epsilon():
    _, settings = recorded("memit/base")
    h, batch = settings["hparams"], batches(settings)
    how = {"values": value_config(h), "rows": rows_config(settings)}
    one = apply(emmet(EmmetConfig(layer=2, weight=50.0, epsilon=0.1, **how)), batch)
    other = apply(memit(MemitConfig(layers=(2,), weight=5.0, **how)), batch)
    assert off(one.deltas["mlp/down"].dense(), other.deltas["mlp/down"].dense()) < 1e-6


def test_emmet_without_epsilon_maps_every_key_exactly():
    from jaxedit.edit import values

    _, settings = recorded("memit/base")
    batch, how = batches(settings), {"rows": rows_config(settings)}
    result = apply(emmet(EmmetConfig(layer=2, epsilon=0.0, **how)), batch)
    d = result.deltas["mlp/down"]
    found = values.search(
        model().params, batch, model().cfg, 2, ("resid_post",), EmmetConfig(layer=2).values
    )
    keys = jnp.einsum("ncf,c->nf", found.keys_NCF, batch[0].weight_C)
    assert off(keys @ d.a[0] @ d.b[0], found.delta["resid_post"]) < 1e-4


def test_a_failed_request_leaves_the_others_alone():
    """The others get what they would have got without it."""
    _, settings = recorded("memit/base")
    editor = memit(MemitConfig(**config_of(settings)))
    batch = batches(settings)[0]
    state = editor.init(jax.random.key(0), model(), stats())
    broken = batch.replace(mask_NU=np.where(np.arange(4)[:, None] == 1, 0, batch.mask_NU))
    result, _ = editor.edit(state, model().params, (broken,))  # no target: 0 / 0
    assert result.info["failed"].tolist() == [-1, 0, -1, -1]
    without = batch.replace(valid_N=np.array([True, False, True, True]))
    wanted, _ = editor.edit(state, model().params, (without,))
    d, w = result.deltas["mlp/down"], wanted.deltas["mlp/down"]
    assert off(d.dense(), w.dense()) < 1e-6
    assert not d.a[:, :, 1].any()
