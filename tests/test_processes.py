"""Two processes of this machine as one job, as on the hosts of a pod: each has its part of it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from families import scaled_error, write_model
from two_processes import POS, STEPS, TOKENS, loss

import jaxedit
from jaxedit.hf.save import save
from jaxedit.models.generate import decode
from jaxedit.models.specs import flatten
from jaxedit.train.loop import read

HERE = Path(__file__).parent
SECONDS = 120  # a process that waits for the other one would wait for ever


def run_both(folder: Path, *command: str, **env: str) -> list[str]:
    """Runs a command as a job of two processes with two devices each; what each of them printed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    env = (
        os.environ
        | env
        | {
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "JAXEDIT_COORDINATOR": f"127.0.0.1:{port}",
            "JAXEDIT_NUM_PROCESSES": "2",
        }
    )
    logs = [folder / f"log{i}" for i in range(2)]
    both = [
        subprocess.Popen(
            [sys.executable, *command],
            env=env | {"JAXEDIT_PROCESS_ID": str(i)},
            cwd=HERE.parent,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for i, log in enumerate(logs)
    ]
    end = time.monotonic() + SECONDS
    while any(p.poll() is None for p in both) and time.monotonic() < end:
        if any(p.returncode for p in both):  # the other one would only wait for it
            end = min(end, time.monotonic() + 5)
        time.sleep(0.1)
    codes = [p.poll() for p in both]
    for p in both:
        p.kill()
        p.wait()
    # Gloo, which joins CPUs, tells about every connection
    said = [
        [t for t in log.read_text().splitlines() if "Gloo" not in t and "peer ranks" not in t]
        for log in logs
    ]
    text = ["\n".join(lines) for lines in said]
    assert codes == [0, 0], f"exit codes {codes}, None is still running\n" + "\n-----\n".join(text)
    return text


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model in several files, and the model."""
    folder = tmp_path_factory.mktemp("source")
    model = jaxedit.load(write_model("llama", folder / "one"))
    save(model, folder / "many", max_shard=20_000)
    assert len(list((folder / "many").glob("*.safetensors"))) > 3
    return folder / "many", model


def equal(got, want) -> None:
    assert got.cfg == want.cfg
    assert got.params["embed"]["w"].dtype == want.params["embed"]["w"].dtype
    jax.tree.map(np.testing.assert_array_equal, got.params, want.params)


def test_two_processes_load_run_and_save_one_model(source, tmp_path):
    folder, model = source
    run_both(tmp_path, str(HERE / "two_processes.py"), str(folder), str(tmp_path))
    facts = [json.loads((tmp_path / f"facts{i}.json").read_text()) for i in range(2)]
    flat = flatten(model.params)

    # each reads its half of every matrix, and holds nothing of the other's
    whole = sum(x.nbytes for x in flat.values())
    vectors = sum(x.nbytes for k, x in flat.items() if "norm" in k)
    for fact in facts:
        assert fact["devices"] == [2, 4]
        assert fact["read"] == (whole - vectors) / 2 + vectors
    for path in flat:
        mine, other = (set(fact["blocks"][path]) for fact in facts)
        assert ("norm" in path and mine == other) or not mine & other, path
    assert facts[0]["rows"] == ["slice(0, 2, None)"]
    assert facts[1]["rows"] == ["slice(2, 4, None)"]

    # one process computes the same
    grad, logits = jax.grad(loss, has_aux=True)(model.params, TOKENS, model.cfg)
    generated = decode(model.params, TOKENS, POS, model.cfg, steps=STEPS)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["decoded"], generated.tokens_BN)
        for name, want in (flatten(grad) | {"logits": logits}).items():
            assert scaled_error(found[name], want) <= 1e-5, name

    # and reads what the two have saved
    for fact in facts:
        assert fact["restored"]
        assert "not empty" in fact["refused"]
        assert not fact["left"]
    for name in ("orbax", "hf", "alone"):
        equal(jaxedit.load(tmp_path / name), model)


def test_the_command_line_as_a_job_of_two_processes(source, tmp_path):
    folder, model = source
    command = ("-m", "jaxedit.hf", "import", str(folder), str(tmp_path / "orbax"), "--fsdp", "-1")
    first, second = run_both(tmp_path, *command, JAXEDIT_DISTRIBUTED="1")
    assert "read" in first
    assert "wrote" in first
    assert not second
    equal(jaxedit.load(tmp_path / "orbax"), model)

    command = ("-m", "jaxedit.hf", "export", str(tmp_path / "orbax"), str(tmp_path / "hf"))
    first, second = run_both(
        tmp_path, *command, "--tensor", "2", "--fsdp", "2", JAXEDIT_DISTRIBUTED="1"
    )
    assert "wrote" in first
    assert not second
    equal(jaxedit.load(tmp_path / "hf"), model)


TRAINING = """
from jaxedit.data.documents import Source
from jaxedit.data.text import TextConfig
from jaxedit.models.shapes import SHAPES
from jaxedit.sharding import MeshConfig
from jaxedit.train.language import LanguageConfig
from jaxedit.train.loop import LoopConfig, TrainConfig

def config():
    text = TextConfig(Source(paths=("world:tiny:0:200",)), length=24, mode="documents", batch=8)
    model = SHAPES["tiny-llama"].replace(vocab=1024, layers=2)
    task = LanguageConfig(text, model, tokenizer="world", mesh=MeshConfig(data=2, fsdp=2))
    return TrainConfig(task, LoopConfig(steps=6, log_every=1, save_every=3))
"""


def test_a_job_of_two_trains_as_one_process_does(tmp_path):
    """The same command on two hosts and on one: the same losses and weights."""
    (tmp_path / "config.py").write_text(TRAINING)
    train = ["-m", "jaxedit.train", "--config", str(tmp_path / "config.py"), "--set"]
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    run_both(tmp_path, *train, f"workdir={tmp_path / 'two'}", JAXEDIT_DISTRIBUTED="1", **cache)
    env = os.environ | cache | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    alone = [sys.executable, *train, f"workdir={tmp_path / 'one'}"]
    subprocess.run(alone, env=env | {"JAX_PLATFORMS": "cpu"}, check=True, cwd=HERE.parent)
    lines = [read(tmp_path / name / "metrics.jsonl") for name in ("two", "one")]
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 4, 5, 6]
    for two, one in zip(*lines, strict=True):
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    models = [jaxedit.load(tmp_path / name / "model") for name in ("two", "one")]
    flat = [flatten(model.params) for model in models]
    for path in flat[0]:
        np.testing.assert_allclose(flat[0][path], flat[1][path], atol=1e-3)
