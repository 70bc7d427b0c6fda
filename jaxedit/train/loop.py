"""The loop that trains anything: update, log, evaluate, save; go on exactly after any stop.

What is trained is a `Task`: pure functions of a state and of the step's number. A run that was
killed at any moment and started again computes the same bits as one that was not, because the
state is saved whole and a batch depends on nothing but its number.
"""

import contextlib
import dataclasses
import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from jax.experimental import multihost_utils

from jaxedit import checkpoint
from jaxedit.checkpoint import Checkpointer
from jaxedit.files import whole
from jaxedit.progress import Progress, is_first, quiet

Metrics = Mapping[str, Any]
HOW = ("dtype", "attention")  # how a model computes may change while it is trained
AHEAD = 2  # updates that may be under way before the loss of an earlier one is looked at


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    steps: int = 1000
    log_every: int = 10
    eval_every: int = 0  # 0: only after the last step
    save_every: int = 500
    keep: int = 2  # checkpoints
    best: str = ""  # a measure of the evaluations: the state where it was highest is the result
    patience: int = 0  # evaluations without a better one after which training ends; 0: all steps
    tensorboard: bool = False  # the metrics also as TensorBoard events; needs tensorboardX


class Task(NamedTuple):
    """Something to train."""

    init: Callable[[], Any]  # -> state, a tree of arrays
    batch: Callable[[int], Any]  # step -> what `update` is given
    update: Callable[[Any, Any], tuple[Any, Metrics]]  # state, batch -> state, metrics with "loss"
    evaluate: Callable[[Any], Metrics] | None = None
    metadata: Mapping[str, Any] = {}  # goes into every checkpoint
    tokens: int = 0  # in a batch, for the rate
    begin: Callable[[Path], None] | None = None  # writes what the checkpoints need beside them
    finish: Callable[[Any, Path], Path] | None = None  # writes what was trained, says where


class Trainable(Protocol):
    """A config of something to train."""

    def task(self, steps: int, progress: Progress) -> Task: ...


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What `python -m jaxedit.train` takes: a config with a task, and how to go through it."""

    task: Any  # a Trainable
    loop: LoopConfig = LoopConfig()
    workdir: str = "runs/train"


def run(
    task: Task,
    cfg: LoopConfig,
    workdir: str | Path,
    *,
    begun: Callable[[], Any] = lambda: None,
    progress: Progress = quiet,
) -> tuple[Any, int]:
    """Trains until cfg.steps, from the last checkpoint in workdir if there is one.

    Returns the state (with cfg.best: the best one) and the step: fewer than cfg.steps where SIGTERM
    asked to stop; then it is saved, and the same call goes on from there. Where patience ends it,
    cfg.steps. Metrics go to workdir/metrics.jsonl. begun: called once there is a state to train.
    """
    check(cfg, task)
    workdir = Path(workdir)
    state = task.init()
    keep_best = int(bool(cfg.best))
    opened = Checkpointer(workdir / "checkpoints", keep=cfg.keep, keep_best=keep_best)
    with opened as saved, terminated() as stop:
        step = 0
        if saved.latest is not None:
            step, state = resume(saved, state, workdir, task.metadata)
        if step > cfg.steps:
            raise ValueError(f"{workdir} is at step {step}, beyond steps={cfg.steps}: raise it")
        begun()
        if task.begin:
            task.begin(workdir)
        with Log(workdir, step, cfg.tensorboard) as log:
            watch = Watch(saved)
            clock, at = time.perf_counter(), step
            stopped = False
            scores = measured(workdir, cfg.best)
            while step < cfg.steps and not stopped and not tired(scores, cfg.patience):
                state, metrics = task.update(state, task.batch(step))
                step += 1
                watch(step, metrics)
                stopped = stop(step)
                last = step == cfg.steps
                if step % cfg.log_every == 0 or last:
                    values = watch.finish()
                    now = time.perf_counter()
                    rate = {"steps_per_s": (step - at) / (now - clock)}
                    if task.tokens:
                        rate["tokens_per_s"] = task.tokens * rate["steps_per_s"]
                    clock, at = now, step
                    log(step, values | rate)
                    progress(step, cfg.steps)
                due = cfg.eval_every and step % cfg.eval_every == 0
                score = None
                if task.evaluate and (due or last):
                    found = task.evaluate(state)
                    log(step, {f"eval/{k}": float(v) for k, v in found.items()})
                    clock, at = time.perf_counter(), step
                    if cfg.best:
                        score = float(found[cfg.best])
                        scores.append(score)
                # last, so that whatever belongs to a saved step is on disk before it
                if step % cfg.save_every == 0 or last or stopped or score is not None:
                    watch.finish()  # nothing is saved after a loss that is not finite
                    saved.save(step, state, metadata=dict(task.metadata), score=score)
            if not stopped or step == cfg.steps:  # a stop in the last step finds nothing to stop
                step = cfg.steps
                if saved.best is not None:
                    _, state = saved.restore(state, step=saved.best)
    return state, step


def check(cfg: LoopConfig, task: Task) -> None:
    if cfg.steps < 1 or min(cfg.log_every, cfg.save_every, cfg.keep) < 1:
        raise ValueError(f"{cfg}: steps, log_every, save_every and keep are at least 1")
    if cfg.best and not task.evaluate:
        raise ValueError(f"best={cfg.best}: this task measures nothing; leave it out")
    if cfg.patience and not (cfg.best and cfg.eval_every):
        raise ValueError(f"patience={cfg.patience}: set best and eval_every as well")


def resume(saved: Checkpointer, state: Any, workdir: Path, want: Metrics) -> tuple[int, Any]:
    """The last step and its state; raises where it is not one of what is trained now."""
    have = checkpoint.metadata(saved.folder / str(saved.latest))
    old, new = dict(flat(have)), dict(flat(json.loads(json.dumps(dict(want)))))
    other = [
        f"{name} is {old[name]!r} there and {value!r} here"
        for name, value in new.items()
        if name in old and old[name] != value and name.rpartition(".")[2] not in HOW
    ]
    if other:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise ValueError(f"{workdir} holds another run: {other[0]}{more}; use another workdir")
    try:
        return saved.restore(state)
    except ValueError as error:
        if "does not fit" not in str(error):
            raise
        raise ValueError(f"{workdir} holds another run: use another workdir ({error})") from error


def flat(about: Metrics, at: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in about.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{at}{name}.")
        else:
            yield at + name, value


def measured(workdir: Path, name: str) -> list[float]:
    """What the evaluations so far found."""
    lines = read(workdir / "metrics.jsonl") if name else []
    return [line[key] for line in lines if (key := f"eval/{name}") in line]


def tired(scores: list[float], patience: int) -> bool:
    """Has none of the last evaluations found better than those before."""
    return (
        bool(patience) and len(scores) - scores.index(max(scores)) > patience if scores else False
    )


class Watch:
    """Looks at each loss a little later, so that the device never waits for the host."""

    def __init__(self, saved: Checkpointer):
        self.saved = saved
        self.waiting: deque[tuple[int, Metrics]] = deque()
        self.values: dict[str, float] = {}

    def __call__(self, step: int, metrics: Metrics) -> None:
        self.waiting.append((step, metrics))
        if len(self.waiting) > AHEAD:
            self.check()

    def finish(self) -> dict[str, float]:
        """The metrics of the last step, when all losses up to it are known to be finite."""
        while self.waiting:
            self.check()
        return self.values

    def check(self) -> None:
        step, metrics = self.waiting.popleft()
        self.values = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(self.values["loss"]):
            self.saved.wait()
            kept = self.saved.latest
            where = f"the last good checkpoint is step {kept}" if kept else "no checkpoint is kept"
            raise ValueError(
                f"the loss is {self.values['loss']} at step {step}; {where} in "
                f"{self.saved.folder}: lower the learning rate, or clip the gradient"
            )


class Log:
    """metrics.jsonl, a line per report; a run that goes on drops what came after its checkpoint."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        self.path = workdir / "metrics.jsonl"
        self.board: Any = None
        if not is_first():
            self.file = None
            return
        workdir.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read(self.path) if line["step"] <= step] if step else []
        whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a")
        if tensorboard:
            self.board = board(workdir / "tensorboard", step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        for out in (self.file, self.board):
            if out is not None:
                out.close()

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)


def board(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard=true needs tensorboardX: pip install tensorboardX") from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that a kill cut short is left out."""
    lines = []
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[int], bool]]:
    """Asks whether SIGTERM has come; on several hosts all get the same answer at the same step."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread: whoever owns the process handles its signals
        yield lambda step: False
        return
    try:
        yield lambda step: came
    finally:
        signal.signal(signal.SIGTERM, before)
