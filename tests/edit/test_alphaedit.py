"""AlphaEdit against the authors' own code: two batches in sequence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import batches, model, off, recorded, requests, rows_config, stats, value_config

from jaxedit import delta, merge
from jaxedit.edit.runner import prepare, run
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.alphaedit import AlphaEditConfig, alphaedit


def editor_of(settings, **more):
    h = settings["hparams"]
    return alphaedit(
        AlphaEditConfig(
            layers=tuple(h["layers"]), threshold=h["nullspace_threshold"], l2=h["L2"],
            values=value_config(h), rows=rows_config(settings), **more,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", ["base", "L2_10"])
def test_two_batches_are_the_authors(name):
    arrays, settings = recorded(f"alphaedit/{name}")
    editor = editor_of(settings)
    state = editor.init(jax.random.key(0), model(), stats())
    if name == "base":
        assert off(state.free_nFF[0], arrays["layer0/P"]) < 1e-3
    params = model().params
    for b in (0, 1):
        batch = batches(settings, requests(4 * b, 4 * b + 4))
        result, state = editor.edit(state, params, batch)
        d = result.deltas["mlp/down"]
        for n, layer in enumerate(settings["hparams"]["layers"]):
            assert off(d.a[n] @ d.b[n], arrays[f"b{b}/layer{layer}/upd_matrix"]) < 1e-3
        params = merge.apply(params, result.deltas)
    remembered = arrays.get("b1/cache_c_after/layer0")
    assert remembered is None or off(state.memory_nFF[0], remembered) < 1e-4


def test_preserved_keys_do_not_see_the_edit():
    """Keys that the null space leaves out are read as before: k P = 0 for them."""
    _, settings = recorded("alphaedit/base")
    editor = editor_of(settings)
    state = editor.init(jax.random.key(0), model(), stats())
    result, _ = editor.edit(state, model().params, batches(settings))
    a_FN = result.deltas["mlp/down"].a[0]
    kept_FF = jnp.eye(256) - state.free_nFF[0]
    assert jnp.linalg.norm(kept_FF @ a_FN) < 1e-4 * jnp.linalg.norm(a_FN)


def test_what_easyedit_remembers_is_in_the_order_of_requests_whatever_a_program_holds():
    """A long request comes last in a batch and first here."""
    some = sorted(requests(0, 4), key=lambda r: -len(r.text))
    cfg = AlphaEditConfig(layers=(0,), values=ValueConfig(steps=3), protocol="easyedit")
    one, two, four = (run(model(), some, cfg, stats=stats(), size=size) for size in (1, 2, 4))
    ready = prepare(model(), cfg, stats=stats())
    state = ready.state
    for n, request in enumerate(some):
        ((_, batch),) = ready.work([request]).found
        result, state = ready.editor.edit(state, model().params, (batch,))
        wanted = result.deltas["mlp/down"].dense()
        for edits in (one, two, four):
            assert edits[n].provenance["request"]["subject"] == request.subject
            assert off(edits[n].deltas["mlp/down"].dense(), wanted) < 1e-5
    paper = run(model(), some, dataclasses.replace(cfg, protocol="paper"), stats=stats())
    assert off(paper[3].deltas["mlp/down"].dense(), wanted) > 1e-3


def test_each_is_one_at_a_time_and_easyedit_remembers():
    _, settings = recorded("alphaedit/base")
    batch = batches(settings)
    results = {}
    for protocol in ("paper", "easyedit"):
        editor = editor_of(settings, protocol=protocol)
        state = editor.init(jax.random.key(0), model(), stats())
        results[protocol] = editor.each(state, model().params, batch)
        alone = [
            editor.edit(state, model().params, (batch[0].one(i),))[0].deltas["mlp/down"].dense()
            for i in range(4)
        ]
        mine = [delta.row(results[protocol].deltas, i)["mlp/down"].dense() for i in range(4)]
        distances = np.array([off(m, a) for m, a in zip(mine, alone, strict=True)])
        assert distances[0] < 1e-5
        assert (distances[1:] < 1e-5).all() == (protocol == "paper")
