"""Training of editors: what is saved, that it goes on exactly, and that what was trained edits."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxedit
from jaxedit import checkpoint, edit
from jaxedit.data.asked import requests
from jaxedit.data.lessons import LessonConfig
from jaxedit.edit.methods import find
from jaxedit.edit.weights.mend import MendConfig
from jaxedit.sharding import MeshConfig, make_mesh
from jaxedit.train.editor import ADAM, EditorConfig, for_model, of_model
from jaxedit.train.loop import LoopConfig, read, run

MEND = MendConfig(layers=(2, 3), targets=("mlp/down",), rank=16, step=-1e-3)
LESSONS = LessonConfig(("world:small:0:776",), without=("world:small:0:200",), validation=16)
CFG = EditorConfig("world", LESSONS, MEND, dataclasses.replace(ADAM, lr=1e-5), batch=8, measured=16)
LOOP = LoopConfig(steps=4, log_every=1, eval_every=2, save_every=1, best="score")


@pytest.fixture(scope="module")
def world():
    return jaxedit.load("world", dtype="float32")


@pytest.fixture(scope="module")
def asked():
    return requests("world:small:0:6")[0]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mend")
    task = of_model(CFG, world, LOOP.steps)
    state, step = run(task, LOOP, folder)
    assert step == LOOP.steps
    return task.finish(state, folder), folder


def leaves(folder):
    return jax.tree.leaves(checkpoint.restore(folder))


def test_a_stopped_run_goes_on_with_the_same_bits(world, trained, tmp_path):
    task = of_model(CFG, world, LOOP.steps)
    seen = []

    def stop_at(step):
        if step == 3 and not seen:
            seen.append(step)
            raise KeyboardInterrupt
        return task.batch(step)

    with pytest.raises(KeyboardInterrupt):
        run(task._replace(batch=stop_at), LOOP, tmp_path)
    run(task, LOOP, tmp_path)
    ours, whole = tmp_path / "checkpoints/4", trained[1] / "checkpoints/4"
    for x, y in zip(leaves(ours), leaves(whole), strict=True):
        np.testing.assert_array_equal(x, y)


def test_metrics_of_every_step_and_every_evaluation(trained):
    lines = read(trained[1] / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {"edit_loss", "local_kl", "success", "locality", "grad_norm", "lr"} <= steps[0].keys()
    found = [line for line in lines if "eval/score" in line]
    assert [line["step"] for line in found] == [2, 4]
    for line in found:
        parts = [line[f"eval/{k}"] for k in ("reliability", "generalization", "locality")]
        assert line["eval/score"] == pytest.approx(min(parts))


def test_the_best_state_is_what_is_kept(world, tmp_path):
    scores = iter([0.5, 0.9, 0.1, 0.2])
    task = of_model(CFG, world, 4)
    task = task._replace(evaluate=lambda state: {"score": next(scores)})
    loop = dataclasses.replace(LOOP, eval_every=1)
    state, step = run(task, loop, tmp_path)
    assert step == 4
    assert int(state["step"]) == 2
    _, there = checkpoint.restore(tmp_path / "checkpoints/2")["step"], state["step"]
    assert int(there) == 2


def test_patience_ends_a_run_and_it_stays_ended(world, tmp_path):
    scores = iter([0.9, 0.1, 0.2, 1.0])
    task = of_model(CFG, world, 50)
    task = task._replace(evaluate=lambda state: {"score": next(scores)})
    loop = dataclasses.replace(LOOP, steps=50, eval_every=1, patience=2)
    for _ in range(2):  # the second call finds nothing left to do
        state, step = run(task, loop, tmp_path)
        assert (int(state["step"]), step) == (1, 50)
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 3


def test_what_was_trained_edits(world, asked, trained):
    folder = str(trained[0])
    alone = edit.run(world, asked, "mend", trained=folder)
    assert len(alone) == len(asked)
    about = alone[0].provenance
    assert about["config"]["layers"] == (2, 3)  # as trained, not as the preset has it
    assert about["config"]["targets"] == ("mlp/down",)
    assert len(about["trained"]) == 64
    assert alone[0].deltas["mlp/down"].a.shape[0] == 2
    for one, request in zip(alone[:2], asked, strict=False):
        (single,) = edit.run(world, [request], "mend", trained=folder)
        ours, theirs = (np.asarray(e.merge(world).params["blocks"]["mlp"]["down"]["w"])
                        for e in (one, single))  # fmt: skip
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    (both,) = edit.run(world, asked[:2], "mend", independent=False, trained=folder)
    assert both.provenance["result"]["loss"][0] < 20


def test_a_sequence_of_edits_sees_the_edits_before(world, asked, trained):
    folder = str(trained[0])
    first, second = edit.run(world, asked[:2], "mend", independent=False, batch=1, trained=folder)
    (then,) = edit.run(first.merge(world), [asked[1]], "mend", trained=folder)
    ours, theirs = (np.asarray(e.deltas["mlp/down"].a) @ np.asarray(e.deltas["mlp/down"].b)
                    for e in (second, then))  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_editor_refuses_what_it_was_not_trained_for(world, asked, trained, tmp_path):
    folder = str(trained[0])
    llama = jaxedit.load("world-llama", dtype="float32")
    with pytest.raises(ValueError, match=r"for a gpt2 with mlp/down \[512, 128\]; this model's is"):
        edit.run(llama, asked, "mend", trained=folder)
    with pytest.raises(ValueError, match="mend is trained before it edits: python -m jaxedit"):
        edit.run(world, asked, "mend", trained="")
    with pytest.raises(FileNotFoundError, match="trained=nowhere: no such folder"):
        edit.run(world, asked, "mend", trained="nowhere")


HUB = {"gpt2-xl-zsre": "openai-community/gpt2-xl", "llama-2-7b-zsre": "meta-llama/Llama-2-7b-hf"}


@pytest.mark.parametrize("method", ["mend", "malmen", "ke", "slag", "enn", "serac"])
@pytest.mark.parametrize("preset", ["world", "world-llama", "gpt2-xl-zsre", "llama-2-7b-zsre"])
def test_presets(method, preset):
    cfg = for_model(method, preset)
    assert cfg.task.model == HUB.get(preset, preset)
    assert find(method).make(cfg.task.editor).learner is not None
    assert json.dumps(dataclasses.asdict(cfg))


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="rome is not trained"):
        EditorConfig("world", LESSONS, find("rome").config(layer=0))
    with pytest.raises(ValueError, match=r"batch=10 accumulate=3: accumulate divides batch"):
        EditorConfig("world", LESSONS, MEND, batch=10, accumulate=3)


def test_accumulated_parts_are_one_step(world):
    whole, parts = (
        of_model(CFG, world, 1),
        of_model(dataclasses.replace(CFG, accumulate=2), world, 1),
    )
    assert [len(x) for x in parts.batch(0)] == [4, 4]
    a, _ = whole.update(whole.init(), whole.batch(0))
    b, _ = parts.update(parts.init(), parts.batch(0))
    mean = lambda state: np.asarray(state["learned"].running["512x128"]["u_mean"])
    np.testing.assert_allclose(mean(a), mean(b), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def eight():
    """The model cut over eight devices, and a task there."""
    mesh = make_mesh(1, 8, 1)
    model = jaxedit.load("world", mesh=mesh, dtype="float32")
    cfg = dataclasses.replace(CFG, mesh=MeshConfig(1, 8, 1))
    return model, of_model(cfg, model, 4)


def held(tree):
    """Bytes in all, and on the device that holds most."""
    arrays = jax.tree.leaves(tree)
    each = {}
    for x in arrays:
        for shard in x.addressable_shards:
            each[shard.device] = each.get(shard.device, 0) + shard.data.nbytes
    return sum(x.nbytes for x in arrays), max(each.values())


def test_eight_devices_hold_an_eighth_each(eight):
    """Of the model, of what is trained, and of Adam's moments, before and after a step."""
    model, task = eight
    state = task.init()
    before = held((model.params, state))
    state, _ = task.update(state, task.batch(0))
    after = held((model.params, state))
    for total, most in (before, after):
        # scales and shifts of single matrices, norms and biases are what is not cut
        assert most <= total / 8 * 1.05


def test_a_step_on_eight_devices_is_a_step_on_one(world, eight):
    _, there = eight
    here = of_model(CFG, world, 4)
    a, one = here.update(here.init(), here.batch(0))
    b, two = there.update(there.init(), there.batch(0))
    for name in ("loss", "edit_loss", "local_kl", "grad_norm"):
        np.testing.assert_allclose(one[name], two[name], rtol=2e-4)
    moved = lambda s: np.asarray(s["learned"].trained["networks"]["512x128"]["0"]["U"])
    np.testing.assert_allclose(moved(a), moved(b), atol=2e-5)
    found, wanted = there.evaluate(b), here.evaluate(a)
    assert found == pytest.approx(wanted, abs=1e-3)
