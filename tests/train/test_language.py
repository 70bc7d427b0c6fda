"""Training of language models: loss, update, meshes, LoRA, and real kills of the command."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.base import LowRank
from jaxedit.checksum import checksum
from jaxedit.data.documents import Source
from jaxedit.data.text import TextConfig
from jaxedit.models.shapes import SHAPES
from jaxedit.sharding import MeshConfig
from jaxedit.train import loss as loss_module
from jaxedit.train.language import EvalConfig, LanguageConfig, LoraConfig, language_task
from jaxedit.train.loop import LoopConfig, read, run
from jaxedit.train.loss import next_token, parts_of
from jaxedit.train.optimizer import OptimizerConfig, learning_rate

SHAPE = SHAPES["tiny-gpt2"].replace(vocab=1024, tied=True)
LLAMA = SHAPES["tiny-llama"].replace(vocab=1024)


def small(**changes) -> LanguageConfig:
    text = TextConfig(Source(paths=("world:tiny:0:300",)), length=32, mode="documents", batch=8)
    cfg = LanguageConfig(
        text=text,
        model=SHAPE,
        tokenizer="world",
        optimizer=OptimizerConfig(lr=3e-3, warmup=2),
    )
    return dataclasses.replace(cfg, **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def steps(cfg: LanguageConfig, count: int):
    task = language_task(cfg, 10)
    state, out = task.init(), []
    for i in range(count):
        state, metrics = task.update(state, task.batch(i))
        out.append(float(metrics["loss"]))
    return state, out


def test_the_loss_is_that_of_the_logits():
    params = jaxedit.init(jax.random.key(0), SHAPE)
    tokens = jax.random.randint(jax.random.key(1), (3, 11), 0, SHAPE.vocab)
    total, count = next_token(params, tokens, SHAPE)
    logits = jaxedit.forward(params, tokens[:, :-1], SHAPE).logits
    logp = jax.nn.log_softmax(logits)
    expected = -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).sum()
    assert count == 30
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_padding_is_neither_seen_nor_predicted():
    params = jaxedit.init(jax.random.key(0), LLAMA)
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, LLAMA.vocab)
    pos = jnp.array([[0, 1, 2, 3, 4, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    total, count = next_token(params, tokens, LLAMA, pos_BT=pos)
    one, _ = next_token(params, tokens[:1, :5], LLAMA)
    two, _ = next_token(params, tokens[1:], LLAMA)
    assert count == 4 + 8
    np.testing.assert_allclose(total, one + two, rtol=1e-5)


@pytest.mark.parametrize("cfg", [SHAPE, LLAMA], ids=["tied", "untied"])
def test_the_loss_in_parts_is_the_loss(monkeypatch, cfg):
    """And so is its gradient, by weights and by low-rank changes of both ends."""
    params = jaxedit.init(jax.random.key(0), cfg)
    tokens = jax.random.randint(jax.random.key(1), (2, 13), 0, cfg.vocab)
    pos = jnp.array([[*range(9), -1, -1, -1, -1], [*range(13)]])
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape) / 9
    queries = LowRank(draw(4, cfg.layers, cfg.embed, 2), draw(5, cfg.layers, 2, cfg.embed))
    deltas = {"head": LowRank(draw(2, cfg.embed, 3), draw(3, 3, cfg.vocab)), "attn/q": queries}
    loss = lambda p, d: 0.1 * next_token(p, tokens, cfg, pos_BT=pos, deltas=d)[0]
    both = jax.value_and_grad(loss, (0, 1))
    whole, grads = both(params, deltas)
    monkeypatch.setattr(loss_module, "LOGITS", 2 * 3 * cfg.vocab)
    assert parts_of(2 * 12 * cfg.vocab, 12) == 4
    cut, cut_grads = both(params, deltas)
    np.testing.assert_allclose(whole, cut, rtol=1e-6)
    np.testing.assert_allclose(loss(params, deltas), cut, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, cut_grads)


def test_the_loss_in_parts_on_a_mesh(monkeypatch):
    monkeypatch.setattr(loss_module, "LOGITS", 4 * 4 * SHAPE.vocab)  # 4 parts
    tokens = jax.random.randint(jax.random.key(1), (4, 17), 0, SHAPE.vocab)
    run = jax.jit(jax.value_and_grad(lambda p: next_token(p, tokens, SHAPE)[0]))
    want, grads = run(jaxedit.init(jax.random.key(0), SHAPE))
    spread = jaxedit.init(jax.random.key(0), SHAPE, mesh=MeshConfig(2, 2, 2).make())
    got, spread_grads = run(spread)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), spread_grads, grads)
    held = lambda tree: jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), tree)
    assert held(spread_grads) == held(spread)


def test_parts_compute_no_product_twice_and_none_in_vain(monkeypatch):
    """With the vocabulary: forward, and back by what is trained."""
    cfg = SHAPE.replace(layers=1, embed=16, heads=1, kv_heads=1, head_dim=16, mlp=16, vocab=4096)
    params = jaxedit.init(jax.random.key(0), cfg)
    tokens = jnp.zeros((4, 65), jnp.int32)
    monkeypatch.setattr(loss_module, "LOGITS", 4 * 16 * cfg.vocab)  # 4 parts
    product = 2 * 4 * 16 * cfg.embed * cfg.vocab  # XLA counts a loop's body once

    def products(*trained: str) -> float:
        loss = lambda some: next_token(params | some, tokens, cfg)[0]
        run = jax.jit(jax.grad(loss)).lower({name: params[name] for name in trained}).compile()
        return run.cost_analysis()["flops"] / product

    assert 2 < products("norm") < 3
    assert 3 < products("norm", "embed") < 4


def test_a_model_learns_its_text(tmp_path):
    cfg = small(
        optimizer=OptimizerConfig(lr=1e-2, warmup=5),
        eval=EvalConfig(world="tiny:0", groups=("facts",), questions=50),
    )
    task = language_task(cfg, 60)
    state, _ = run(task, LoopConfig(steps=60, log_every=20), tmp_path)
    lines = [x for x in read(tmp_path / "metrics.jsonl") if "loss" in x]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert 0 <= read(tmp_path / "metrics.jsonl")[-1]["eval/facts"] <= 1
    folder = task.finish(state, tmp_path)
    model = jaxedit.load(folder)
    assert checksum(model.params) == checksum(state["trained"])
    assert model.tokenizer("Kovu")["input_ids"]


@pytest.mark.parametrize("changes", [
    {"accumulate": 4},
    {"mesh": MeshConfig(2, 2, 2)},
    {"mesh": MeshConfig(data=4, fsdp=2), "accumulate": 1},
    {"mesh": MeshConfig(fsdp=2, tensor=4), "accumulate": 2, "remat": True},
])  # fmt: skip
def test_the_same_training_however_it_is_split(changes):
    expected, _ = steps(small(), 3)
    state, _ = steps(small(**changes), 3)
    for a, b in zip(*(jax.tree.leaves(s["trained"]) for s in (expected, state)), strict=True):
        # Adam divides by the gradient's size: where that is rounding, so is the step's direction
        np.testing.assert_allclose(a, b, atol=3e-4)
    if "mesh" in changes and changes["mesh"].fsdp > 1:
        state, _ = steps(small(**changes), 1)
        w = state["trained"]["blocks"]["mlp"]["up"]["w"]
        moment = next(
            x for x in jax.tree.leaves(state["optimizer"]) if getattr(x, "shape", ()) == w.shape
        )
        assert (
            moment.sharding.shard_shape(moment.shape) == w.sharding.shard_shape(w.shape) != w.shape
        )


def test_bfloat16_computes_in_it_and_keeps_float32_weights():
    state, losses = steps(small(dtype="bfloat16", model=LLAMA), 5)
    assert {x.dtype for x in jax.tree.leaves(state["trained"])} == {jnp.dtype("float32")}
    _, exact = steps(small(model=LLAMA), 5)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, exact, rtol=2e-2)


def test_weight_decay_leaves_biases_and_norms_alone():
    still = OptimizerConfig(lr=1e-2, warmup=0, weight_decay=10.0, clip=0)
    task = language_task(small(optimizer=still), 10)
    state = task.init()
    batch = task.batch(0) | {"pos_BT": jnp.full((1, 8, 33), -1)}  # nothing to predict: no gradient
    new, _ = task.update(jax.tree.map(jnp.copy, state), batch)
    old, now = state["trained"], new["trained"]
    np.testing.assert_array_equal(now["norm"]["w"], old["norm"]["w"])
    np.testing.assert_allclose(now["embed"]["w"], old["embed"]["w"] * 0.9, rtol=1e-5)


def test_the_schedule_warms_up_and_ends_where_it_says():
    for schedule in ("linear", "cosine"):
        rate = learning_rate(OptimizerConfig(1.0, 10, schedule, 0.1), 110)
        at = [float(rate(jnp.int32(i))) for i in range(111)]
        np.testing.assert_allclose(at[:10], np.arange(1, 11) / 10, rtol=1e-6)
        np.testing.assert_allclose([max(at), at[-1]], [1, 0.1], rtol=1e-6)
        assert at[10:] == sorted(at[10:], reverse=True)


def test_lora_trains_the_deltas_alone(tmp_path):
    base = jaxedit.Model(jaxedit.init(jax.random.key(3), SHAPE), SHAPE)
    jaxedit.save(base, tmp_path / "base")
    lora = LoraConfig(rank=2, targets=("attn/q", "mlp/down"))
    cfg = small(model=None, start=str(tmp_path / "base"), lora=lora)
    task = language_task(cfg, 10)
    state = task.init()
    assert sorted(state["trained"]) == ["attn/q", "mlp/down"]
    losses = []
    for _ in range(8):
        state, metrics = task.update(state, task.batch(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    edit = jaxedit.Edit.load(task.finish(state, tmp_path))
    edit.check(base)  # made for these weights
    tokens = task.batch(0)["tokens_BT"][0]
    pos = task.batch(0)["pos_BT"][0]
    total, count = next_token(base.params, tokens, SHAPE, pos_BT=pos, deltas=edit.deltas)
    assert float(total / count) < losses[0]
    edit.to_peft(tmp_path / "peft", base)


@pytest.mark.parametrize(("changes", "message"), [
    ({"start": "x"}, "one of them"),
    ({"model": None}, "one of them"),
    ({"accumulate": 3}, "a divisor of the batch of 8"),
    ({"tokenizer": ""}, "no tokenizer"),
    ({"model": SHAPE.replace(vocab=500)}, "tokens, the model 500"),
    ({"lora": LoraConfig(targets=("mlp/gate",))}, "mlp/gate"),
    ({"model": SHAPE.replace(max_len=16)}, "windows of 32 tokens; gpt2 has 16 positions"),
    ({"mesh": MeshConfig(data=8), "accumulate": 2}, "4 windows at once .* multiples of 8"),
    ({"eval": EvalConfig(world="huge:0", groups=("facts",))}, "'huge': one of tiny, small"),
    ({"eval": EvalConfig(world="tiny:x", groups=("facts",))}, "write SIZE:SEED"),
])  # fmt: skip
def test_what_cannot_be_trained_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        language_task(small(**changes), 10)


def test_questions_are_checked_before_training():
    with pytest.raises(ValueError, match="'fact': one of facts"):
        EvalConfig(world="tiny:0", groups=("fact",))
    with pytest.raises(ValueError, match="groups need world"):
        EvalConfig(groups=("facts",))


CONFIG = """
import time
from jaxedit.data.documents import Source
from jaxedit.data.text import TextConfig
from jaxedit.models.shapes import SHAPES
from jaxedit.train.language import LanguageConfig
from jaxedit.train.loop import LoopConfig, TrainConfig

class Slow(LanguageConfig):  # so that the signals come while it runs
    def task(self, steps, progress):
        task = super().task(steps, progress)
        return task._replace(batch=lambda step: time.sleep(0.1) or task.batch(step))

def config():
    text = TextConfig(Source(paths=("world:tiny:0:300",)), length=32, mode="documents", batch=8)
    model = SHAPES["tiny-gpt2"].replace(vocab=1024, layers=2)
    task = Slow(text=text, model=model, tokenizer="world", accumulate=2)
    return TrainConfig(task, LoopConfig(steps=40, log_every=1, save_every=8))
"""


def command(folder: Path, workdir: str, *more: str) -> list[str]:
    (folder / "config.py").write_text(CONFIG)
    return [sys.executable, "-m", "jaxedit.train", "--config", str(folder / "config.py"),
            "--set", f"workdir={folder / workdir}", *more]  # fmt: skip


def wait_for(folder: Path, step: int) -> None:
    """Until the run has reported a step."""
    for _ in range(1200):
        if any(line["step"] >= step for line in read(folder / "metrics.jsonl")):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in {folder}")


def final(folder: Path):
    text = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [(x["step"], x["loss"], x["grad_norm"]) for x in map(json.loads, text)]
    return lines, checksum(jaxedit.load(folder / "model").params)


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    subprocess.run(command(tmp_path, "whole"), check=True, capture_output=True)
    expected = final(tmp_path / "whole")
    assert [step for step, *_ in expected[0]] == list(range(1, 41))
    for sign, at in ((signal.SIGKILL, 11), (signal.SIGTERM, 19), (signal.SIGKILL, 27)):
        run_it = subprocess.Popen(command(tmp_path, "cut"), stderr=subprocess.PIPE)
        wait_for(tmp_path / "cut", at)
        run_it.send_signal(sign)
        _, error = run_it.communicate(timeout=120)
        if sign == signal.SIGTERM:
            assert run_it.returncode == 143
            assert b"the same command goes on" in error
        else:
            assert run_it.returncode == -signal.SIGKILL
    subprocess.run(command(tmp_path, "cut"), check=True, capture_output=True)
    assert final(tmp_path / "cut") == expected
