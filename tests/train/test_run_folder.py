"""The folder of a run: its checkpoints as models, what it says of itself, what it refuses."""

import json
import os
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import checkpoint, cli, settings
from jaxedit.checksum import checksum
from jaxedit.data.documents import Source
from jaxedit.data.text import TextConfig
from jaxedit.hf.__main__ import main as hf
from jaxedit.models.shapes import SHAPES
from jaxedit.sharding import make_mesh
from jaxedit.train import __main__ as command
from jaxedit.train.language import LanguageConfig, LoraConfig, language_task
from jaxedit.train.loop import LoopConfig, Task, TrainConfig, run

SHAPE = SHAPES["tiny-gpt2"].replace(vocab=1024, layers=2)
TEXT = TextConfig(Source(paths=("world:tiny:0:300",)), length=32, mode="documents", batch=8)
CONFIG = """
from test_run_folder import *
def config():
    return TrainConfig(LanguageConfig(TEXT, SHAPE, tokenizer="world"), LoopConfig(steps=4))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def train(tmp_path, monkeypatch):
    """python -m jaxedit.train with a small config, in this process."""
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(os.path.dirname(__file__))

    def call(*changes):
        argv = ["train", "--config", str(tmp_path / "config.py"), "--set", *changes]
        monkeypatch.setattr("sys.argv", argv)
        return cli.run(command.main)

    return call


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after two steps, with the config that the command writes."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    cfg = TrainConfig(LanguageConfig(TEXT, SHAPE, tokenizer="world"), LoopConfig(steps=4))
    task = cfg.task.task(4)

    def batch(step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return task.batch(step)

    begun = partial(settings.dump, cfg, folder)
    state, step = run(task._replace(batch=batch), cfg.loop, folder, begun=begun)
    assert step == 2
    return folder, state["trained"]


def refused(capfd, function, *argv):
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        function(*argv)
    assert stop.value.code == 2
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    return line


def test_a_checkpoint_of_a_run_is_a_model(stopped):
    folder, trained = stopped
    model = jaxedit.load(folder / "checkpoints/2")
    assert checksum(model.params) == checksum(trained)
    assert model.cfg == SHAPE
    assert jaxedit.generate(model, ["Kovu"], max_new_tokens=2)
    half = jaxedit.load(folder / "checkpoints/2", make_mesh(fsdp=2, tensor=2), "bfloat16")
    assert half.cfg.dtype == "bfloat16"
    for x, y in zip(*map(jax.tree.leaves, (half.params, trained)), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y.astype("bfloat16")))
    assert half.mesh.size == 4


def test_a_checkpoint_of_a_run_in_every_command(stopped, capfd, tmp_path):
    folder, trained = stopped
    last = str(folder / "checkpoints/2")
    assert cli.main(["info", last, "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["stored"] == "float32"
    assert facts["parameters"] == sum(x.size for x in jax.tree.leaves(trained))
    hf(["export", last, str(tmp_path / "out")])
    assert checksum(jaxedit.load(tmp_path / "out").params) == checksum(trained)
    task = language_task(LanguageConfig(TEXT, start=last), 4)
    assert checksum(task.init()["trained"]) == checksum(trained)


def test_a_run_says_where_its_model_is(stopped, capfd, train, tmp_path):
    folder, _ = stopped
    line = refused(capfd, cli.main, ["info", str(folder)])
    assert f"{folder} is the work directory of a run, which has not written a model" in line
    assert line.endswith(f"its last checkpoint is {folder}/checkpoints/2\n")
    line = refused(capfd, cli.main, ["info", str(folder / "checkpoints")])
    assert f"give one, {folder}/checkpoints/2" in line
    assert train(f"workdir={tmp_path / 'done'}") == 0
    line = refused(capfd, cli.main, ["info", str(tmp_path / "done")])
    assert line.endswith(f"whose model is {tmp_path / 'done/model'}\n")
    (tmp_path / "config.json").write_text('{"command": "x", "config": {}}')
    assert "a run, which has no model" in refused(capfd, cli.main, ["info", str(tmp_path)])


def test_a_checkpoint_of_deltas_is_no_model(tmp_path):
    jaxedit.save(jaxedit.Model(jaxedit.init(jax.random.key(3), SHAPE), SHAPE), tmp_path / "base")
    cfg = LanguageConfig(
        TEXT, start=str(tmp_path / "base"), tokenizer="world", lora=LoraConfig(rank=2)
    )
    run(language_task(cfg, 1), LoopConfig(steps=1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"deltas \(LoraConfig\(rank=2.*edit.safetensors"):
        jaxedit.load(tmp_path / "run/checkpoints/1")


def test_a_refused_run_leaves_the_one_that_is_there(capfd, train, tmp_path):
    where = f"workdir={tmp_path / 'run'}"
    assert train(where) == 0
    before = (tmp_path / "run/config.json").read_bytes()
    line = refused(capfd, train, where, "task.model.layers=3", "task.model.mlp=32")
    assert f"{tmp_path / 'run'} holds another run: model.layers is 2 there and 3 here" in line
    assert "(and 1 more); use another workdir" in line
    assert "beyond steps=3" in refused(capfd, train, where, "loop.steps=3")
    line = refused(capfd, train, where, "task.optimizer.clip=0")
    assert "holds another run: use another workdir" in line
    assert (tmp_path / "run/config.json").read_bytes() == before
    assert train(where, "task.dtype=bfloat16", "loop.steps=5") == 0  # how it computes may change
    assert (tmp_path / "run/config.json").read_bytes() != before
    assert "gs://x" in refused(capfd, train, "workdir=gs://x/run")


def test_what_cannot_be_saved_is_not_trained():
    for changes in ({"family": "gpt3"}, {"attn_scale": 0.5}):
        cfg = LanguageConfig(TEXT, SHAPE.replace(**changes), tokenizer="world")
        with pytest.raises(ValueError, match=next(iter(changes))):
            language_task(cfg, 4)


@pytest.mark.parametrize("stop_at", [-1, 3])
def test_the_best_is_the_result_whatever_comes_in_the_last_step(tmp_path, stop_at):
    def batch(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step

    task = Task(
        init=lambda: {"x": jnp.float32(0)},
        batch=batch,
        update=lambda state, step: ({"x": state["x"] + 1}, {"loss": 1.0}),
        evaluate=lambda state: {"score": -abs(float(state["x"]) - 2)},
    )
    cfg = LoopConfig(steps=4, eval_every=1, best="score")
    state, step = run(task, cfg, tmp_path)
    assert (float(state["x"]), step) == (2, 4)
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 4


def test_the_command_sets_what_a_preset_leaves_out(capfd, train, tmp_path):
    base, where = tmp_path / "base", f"workdir={tmp_path / 'lora'}"
    jaxedit.save(jaxedit.Model(jaxedit.init(jax.random.key(3), SHAPE), SHAPE), base)
    start = ("task.model=none", f"task.start={base}")
    assert train(where, *start, "task.lora.rank=4") == 0
    edit = jaxedit.Edit.load(tmp_path / "lora/edit.safetensors")
    assert edit.deltas["attn/q"].a.shape[-1] == 4
    line = refused(capfd, train, where, "task.save_dtype=float64")
    assert "'float64': one of 'float32', 'bfloat16', 'float16'" in line
    line = refused(capfd, train, where, "task.optimizer.schedule=cosin")
    assert "'cosin': one of 'constant', 'linear', 'cosine'; did you mean 'cosine'?" in line
