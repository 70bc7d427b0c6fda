"""MEND against its authors' code, and what holds of any gradient transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import model, off, recorded

from jaxedit import delta
from jaxedit.data.answers import Answers
from jaxedit.edit import inner, learner
from jaxedit.edit.learner import Learned, ObjectiveConfig
from jaxedit.edit.weights import mend
from jaxedit.edit.weights.mend import MendConfig

OPT = MendConfig(layers=(2, 3), targets=("mlp/down", "mlp/up"), rank=8)
TORCH = {"mlp/down": "mlp.c_proj.weight", "mlp/up": "mlp.c_fc.weight"}
PARTS = {"U": "u", "V": "v", "b": "bias", "scale": "mode_scale.weight"}
PARTS["shift"] = "mode_shift.weight"
PAIRS = {"u_mean": "u_mean", "v_mean": "v_mean", "u_sum": "u_s", "v_sum": "v_s"}


def network(arrays, prefix):
    """The authors' network as ours."""
    out, i = {}, 0
    while f"{prefix}.layers.{i}.u" in arrays:
        get = lambda name, i=i: jnp.asarray(arrays[f"{prefix}.layers.{i}.{name}"])
        modes = f"{prefix}.layers.{i}.mode_scale.weight" in arrays
        one = jnp.ones((1, len(get("bias"))))
        out[str(i)] = {
            "U": get("u"), "V": get("v"), "b": get("bias"),
            "scale": get("mode_scale.weight") if modes else one,
            "shift": get("mode_shift.weight") if modes else 0 * one,
        }  # fmt: skip
        i += 1
    return out


@pytest.mark.parametrize("name", ["combine_shared", "combine_noshare", "lowrank_nohid2", "nonorm"])
def test_the_network_maps_factors_as_the_authors_does(name):
    arrays, _ = recorded("mend/networks")
    net, running = network(arrays, f"a/{name}/params/mlp"), mend.no_statistics(64, 32)
    mode = 1 if name == "combine_shared" else 0
    net = {i: {k: v[mode : mode + 1] if k in ("scale", "shift") else v for k, v in p.items()}
           for i, p in net.items()}  # fmt: skip
    opt = MendConfig(layers=(0,), norm=name != "nonorm")

    def run(running, step, train):
        u, v = (arrays[f"a/{side}{step + 1}"] for side in "uv")
        u, v = (jnp.asarray(x.reshape(1, -1, x.shape[-1])) for x in (u, v))
        used = (u != 0).any(-1) & (v != 0).any(-1)
        a, b, running = mend.transform(net, running, u, v, used, opt, train)
        return a[used], b[used], running

    for step in range(2):
        a, b, running = run(running, step, train=True)
        assert off(a, arrays[f"a/{name}/train{step}_out_u"]) < 1e-5
        assert off(b, arrays[f"a/{name}/train{step}_out_v"]) < 1e-5
        if opt.norm:
            for ours, theirs in PAIRS.items():
                assert off(running[ours], arrays[f"a/{name}/stats_after{step}/{theirs}"]) < 1e-5
    a, b, _ = run(running, 1, train=False)
    assert off(a, arrays[f"a/{name}/eval_out_u"]) < 1e-5
    assert off(b, arrays[f"a/{name}/eval_out_v"]) < 1e-5


def golden_learned(arrays):
    nets = {f"{I}x{O}": network(arrays, f"mend_init/({I}, {O}).mlp") for I, O in SIZES}
    lrs = np.asarray(arrays["edit_lrs"]).reshape(2, 2)  # layer by layer, down before up
    steps = {"mlp/down": jnp.asarray(lrs[:, 0]), "mlp/up": jnp.asarray(lrs[:, 1])}
    running = {f"{I}x{O}": mend.no_statistics(I, O) for I, O in SIZES}
    return Learned({"networks": nets, "steps": steps}, running)


SIZES = ((256, 64), (64, 256))


def golden_rows(arrays, step, kind):
    """A recorded batch: what follows is the columns that have labels."""
    tokens, labels = (np.asarray(arrays[f"s{step}/{kind}/{k}"]) for k in ("input_ids", "labels"))
    real = np.asarray(arrays[f"s{step}/{kind}/attention_mask"]) > 0
    pos = np.where(real, real.cumsum(1) - 1, -1).astype(np.int32)
    U = (labels != -100).sum(1).max()
    at, target = np.zeros((2, len(tokens), U), np.int32)
    mask = np.zeros((len(tokens), U), bool)
    for b, row in enumerate(labels):
        columns = np.flatnonzero(row != -100)
        at[b, : len(columns)], target[b, : len(columns)] = columns - 1, row[columns]
        mask[b, : len(columns)] = True
    return Answers(tokens, pos, at, target, mask)


@pytest.mark.parametrize("step", range(3))
def test_edits_gradients_and_statistics_are_the_authors(step):
    arrays, about = recorded("mend/gpt2-tiny")
    m, learned = model(), golden_learned(arrays)
    for s in range(step):  # the statistics run on
        rows = golden_rows(arrays, s, "inner")
        x = inner.stem(m.params, rows, m.cfg, 2)
        how = {"apart": False, "train": True}
        _, running = mend.change(learned, m.params, [(x, rows)], OPT, m.cfg, **how)
        learned = learned.replace(running=running)
    edit, said, kept = (golden_rows(arrays, step, k) for k in ("inner", "outer", "loc"))
    wide = max(x.tokens_BT.shape[1] for x in (edit, said, kept))
    deep = max(x.at_BU.shape[1] for x in (edit, said, kept))
    lessons = jax.tree.map(
        lambda *x: np.stack(x, 1), *(padded(x, wide, deep) for x in (edit, said, kept))
    )
    train = about["edits"][step]["training"]
    opt = MendConfig(**vars(OPT) | {"objective": ObjectiveConfig(together=True)})
    x = inner.stem(m.params, edit, m.cfg, 2)
    deltas, running = mend.change(
        learned, m.params, [(x, edit)], opt, m.cfg, apart=False, train=train
    )
    for path, d in deltas.items():
        found = delta.product(d)
        for n, layer in enumerate(OPT.layers):
            wanted = arrays[f"s{step}/update/transformer.h.{layer}.{TORCH[path]}"]
            assert off(found[n], wanted) < 1e-5
    for I, O in SIZES:
        for ours, theirs in PAIRS.items():
            wanted = arrays[f"s{step}/stats_after/({I}, {O}).{theirs}"]
            assert off(running[f"{I}x{O}"][ours], wanted) < 1e-5
        count = arrays[f"s{step}/stats_after/({I}, {O}).k"][0]
        assert int(running[f"{I}x{O}"]["count"]) == int(count)
    if not train:
        return
    grad, metrics, _ = learner.gradient(learned, m.params, lessons, mend.LEARNER, opt, m.cfg)
    edits = about["edits"][step]
    np.testing.assert_allclose(metrics["edit_loss"], edits["l_edit"], rtol=1e-4)
    np.testing.assert_allclose(metrics["local_kl"], edits["l_loc"], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], edits["l_total"], rtol=1e-4)
    for I, O in SIZES:
        for i in "01":
            for ours, theirs in PARTS.items():
                wanted = arrays[f"s{step}/grad/({I}, {O}).mlp.layers.{i}.{theirs}"]
                found = grad["networks"][f"{I}x{O}"][i][ours]
                if np.abs(wanted).max() > 0:
                    assert off(found, wanted) < 1e-4, (I, O, i, ours)
                else:
                    assert not np.abs(found).max() > 0
    wanted = np.asarray(arrays[f"s{step}/grad/edit_lrs"]).reshape(2, 2)
    found = np.stack([grad["steps"]["mlp/down"], grad["steps"]["mlp/up"]], 1)
    assert off(found, wanted) < 1e-4


def padded(rows, T, U):
    """Rows with more columns."""
    wide = lambda x, n, fill: np.pad(x, [(0, 0), (0, n - x.shape[1])], constant_values=fill)
    return Answers(
        wide(rows.tokens_BT, T, 0), wide(rows.pos_BT, T, -1), wide(rows.at_BU, U, 0),
        wide(rows.target_BU, U, 0), wide(rows.mask_BU, U, False),
    )  # fmt: skip
