"""The loop: exact resumption, what it writes, how it stops."""

import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from jaxedit import checkpoint
from jaxedit.train.loop import LoopConfig, Task, read, run


def toy(*, bad_step: int = -1, at=None) -> Task:
    """A state that depends on every batch and on the order."""

    @jax.jit
    def update(state, batch):
        x = jnp.sin(state["x"] * 1.7) + batch
        loss = jnp.where(batch == bad_step, jnp.nan, x)
        return {"x": x}, {"loss": loss}

    def batch(step):
        if at:
            at(step)
        return jnp.float32(step)

    return Task(
        init=lambda: {"x": jnp.float32(1)},
        batch=batch,
        update=update,
        evaluate=lambda state: {"x": state["x"]},
        metadata={"kind": "toy"},
        tokens=10,
    )


def losses(folder) -> list[tuple[int, float]]:
    return [
        (line["step"], line["loss"]) for line in read(folder / "metrics.jsonl") if "loss" in line
    ]


def test_a_run_writes_metrics_and_checkpoints(tmp_path):
    state, step = run(toy(), LoopConfig(steps=25, log_every=10, save_every=10, keep=2), tmp_path)
    assert step == 25
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 25, 25]
    assert lines[0]["tokens_per_s"] == pytest.approx(10 * lines[0]["steps_per_s"])
    assert lines[-1]["eval/x"] == float(state["x"])
    assert checkpoint.steps(tmp_path / "checkpoints") == [20, 25]
    assert checkpoint.metadata(tmp_path / "checkpoints/25")["kind"] == "toy"


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 9, 10, 11, 23])
def test_a_run_that_went_down_goes_on_exactly(tmp_path, stop_at):
    cfg = LoopConfig(steps=30, log_every=1, save_every=10)
    whole, _ = run(toy(), cfg, tmp_path / "whole")

    def down(step):
        if step == stop_at:
            raise Killed

    with pytest.raises(Killed):
        run(toy(at=down), cfg, tmp_path / "cut")
    seen = []
    state, step = run(toy(at=seen.append), cfg, tmp_path / "cut")
    assert step == 30
    assert seen[0] == stop_at // 10 * 10
    assert float(state["x"]) == float(whole["x"])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_finished_run_does_nothing_more(tmp_path):
    cfg = LoopConfig(steps=5, log_every=1, save_every=5)
    first, _ = run(toy(), cfg, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    again, step = run(toy(at=pytest.fail), cfg, tmp_path)
    assert step == 5
    assert float(again["x"]) == float(first["x"])
    assert (tmp_path / "metrics.jsonl").read_text() == before
    with pytest.raises(ValueError, match="at step 5, beyond steps=3"):
        run(toy(), LoopConfig(steps=3), tmp_path)


def test_sigterm_saves_and_stops(tmp_path):
    cfg = LoopConfig(steps=1000, log_every=1, save_every=1000)

    def term(step):
        if step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    _, step = run(toy(at=term), cfg, tmp_path)
    assert step == 18
    assert checkpoint.steps(tmp_path / "checkpoints") == [18]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_leaves_no_trace_in_the_metrics(tmp_path):
    cfg = LoopConfig(steps=40, log_every=10, save_every=20)
    run(toy(), cfg, tmp_path / "whole")
    term = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 16 else None
    assert run(toy(at=term), cfg, tmp_path / "cut")[1] == 17
    run(toy(), cfg, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_kill_in_the_last_evaluation_does_not_lose_it(tmp_path):
    cfg = LoopConfig(steps=10, log_every=5, save_every=5)

    def down(_):
        raise Killed

    with pytest.raises(Killed):
        run(toy()._replace(evaluate=down), cfg, tmp_path)
    run(toy(), cfg, tmp_path)
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval/x" in line] == [10]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(tmp_path):
    cfg = LoopConfig(steps=100, log_every=5, save_every=4, keep=3)
    with pytest.raises(
        ValueError, match=r"loss is nan at step 12; the last good checkpoint is step 8"
    ):
        run(toy(bad_step=11), cfg, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 8


def test_a_metrics_line_that_was_cut_short_is_dropped(tmp_path):
    cfg = LoopConfig(steps=10, log_every=1, save_every=5)
    run(toy(), LoopConfig(steps=5, log_every=1, save_every=5), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run(toy(), cfg, tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines() if "loss" in line] == list(
        range(1, 11)
    )


def test_the_loop_does_not_take_signals_outside_the_main_thread(tmp_path):
    out = []
    cfg = LoopConfig(steps=3, log_every=1, save_every=3)
    thread = threading.Thread(target=lambda: out.append(run(toy(), cfg, tmp_path)))
    thread.start()
    thread.join()
    assert out[0][1] == 3


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        run(toy(), LoopConfig(steps=1, tensorboard=True), tmp_path)


def test_bad_counts_are_told(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        run(toy(), LoopConfig(steps=0), tmp_path)
