"""Training of a few numbers, through the loop that trains everything.

theta = theta0 + P w is computed once per step and its gradient pulled back once, however many parts
a batch has. With `levels`, w is rounded to them on the way (quantization-aware): both are trained.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit import tensorfile
from jaxedit.base import Array
from jaxedit.bounds import family as families
from jaxedit.bounds.family import Family, FamilyConfig
from jaxedit.bounds.quantize import half, snap
from jaxedit.bounds.sample import Sample, SampleConfig, load
from jaxedit.progress import Progress, quiet
from jaxedit.train.loop import LoopConfig, Task
from jaxedit.train.loss import next_token, over_parts
from jaxedit.train.optimizer import OptimizerConfig, adamw, learning_rate

FILE = "w.safetensors"
# Lotfi et al. (2024): AdamW with decay of w, 2,000 steps of warm-up, cosine to 6e-5
PUBLISHED = OptimizerConfig(
    lr=5e-3, warmup=2000, final=0.012, beta2=0.999, eps=1e-6, weight_decay=0.01
)


@dataclasses.dataclass(frozen=True)
class FitConfig:
    steps: int = 1000
    batch: int = 64  # documents of a step
    accumulate: int = 1  # parts of a batch, one after the other
    length: int = 64  # tokens of a window
    optimizer: OptimizerConfig = PUBLISHED
    remat: bool = False
    unroll: bool = False  # as in train.language
    seed: int = 0
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate}: a divisor of batch={self.batch}")

    @property
    def loop(self) -> LoopConfig:
        return LoopConfig(steps=self.steps, log_every=self.log_every, save_every=self.save_every)


@dataclasses.dataclass(frozen=True)
class SubspaceTask:
    """What `python -m jaxedit.train` takes."""

    sample: SampleConfig
    family: FamilyConfig
    fit: FitConfig = FitConfig()

    def task(self, steps: int, progress: Progress = quiet) -> Task:
        found = families.family(self.family)
        text = load(self.sample, found.base.tokenizer, progress)
        return task(found, text, dataclasses.replace(self.fit, steps=steps))


def task(
    found: Family, text: Sample, cfg: FitConfig, start: Mapping[str, np.ndarray] | None = None
) -> Task:
    """start: w, or w and the levels that it is rounded to; by default w = 0."""
    model = found.base.cfg
    if model.learned_pos and cfg.length > model.max_len:
        raise ValueError(f"windows of {cfg.length} tokens; the model has {model.max_len} positions")
    start = start or {"w": np.zeros(found.space.dim, np.float32)}
    optimizer = adamw(cfg.optimizer, cfg.steps, {name: name == "w" for name in start})
    rate = learning_rate(cfg.optimizer, cfg.steps)

    def init() -> Any:
        trained = {name: jnp.array(x, jnp.float32) for name, x in start.items()}
        return {"trained": trained, "optimizer": optimizer.init(trained), "step": jnp.int32(0)}

    def loss(theta: Any, params: Any, rows: Mapping[str, Array]) -> tuple[Array, Array]:
        params, deltas = families.model_of(found.cfg, params, theta)
        return next_token(
            params, rows["tokens_BT"], model, pos_BT=rows["pos_BT"], deltas=deltas,
            remat=cfg.remat, unroll=cfg.unroll, plain=True,
        )  # fmt: skip

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, fixed: Any, batch: Mapping[str, Array]) -> tuple[Any, dict]:
        params, theta0, space = fixed
        expand = lambda trained: families.moved(space, theta0, rounded(trained))
        theta, pull = jax.vjp(expand, state["trained"])

        value, grads = over_parts(lambda t, rows: loss(t, params, rows), theta, batch)
        (grads,) = pull(grads)
        changes, memory = optimizer.update(grads, state["optimizer"], state["trained"])
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "lr": rate(state["step"]),
        }
        new = optax.apply_updates(state["trained"], changes)
        return {"trained": new, "optimizer": memory, "step": state["step"] + 1}, metrics

    def batch(step: int) -> dict[str, Array]:
        rows = text.windows(cfg.batch, cfg.length, step, cfg.seed)
        cut = lambda x: jnp.asarray(x.reshape(cfg.accumulate, -1, x.shape[-1]))
        return {"tokens_BT": cut(rows.tokens_BT), "pos_BT": cut(rows.pos_BT)}

    return Task(
        init,
        batch,
        lambda state, batch: update(state, found.fixed, batch),
        tokens=cfg.batch * cfg.length,
        finish=write,
    )


def rounded(trained: Mapping[str, Array]) -> Array:
    """w as the model gets it."""
    if "levels" not in trained:
        return trained["w"]
    return snap(trained["w"], half(trained["levels"]))


def write(state: Any, folder: Path) -> Path:
    arrays = {name: np.asarray(x) for name, x in state["trained"].items()}
    tensorfile.write(folder / FILE, tensorfile.entries(arrays))
    return folder / FILE
