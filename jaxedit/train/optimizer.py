"""AdamW with warm-up, a schedule and clipping, from a config."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxedit.base import Array


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-4
    warmup: int = 100  # steps
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final: float = 0.1  # the last learning rate over the highest
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # of matrices and tables; biases and norms are left alone
    clip: float = 1.0  # the gradient's norm; 0: not clipped


def learning_rate(cfg: OptimizerConfig, steps: int) -> Callable[[Array], Array]:
    """The learning rate of the update after `step` others."""
    rest = max(steps - cfg.warmup, 1)

    def rate(step: Array) -> Array:
        step = step.astype(jnp.float32)
        done = jnp.clip((step - cfg.warmup) / rest, 0, 1)
        if cfg.schedule == "constant":
            share = jnp.ones_like(done)
        elif cfg.schedule == "linear":
            share = 1 - done * (1 - cfg.final)
        else:
            share = cfg.final + (1 - cfg.final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return cfg.lr * share * jnp.minimum(1, (step + 1) / max(cfg.warmup, 1))

    return rate


def adamw(cfg: OptimizerConfig, steps: int, decays: Any) -> optax.GradientTransformation:
    """The optimizer. `decays`: a tree of booleans like the trained one, true where it decays."""
    parts = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    parts += [
        optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay, decays),
        optax.scale_by_learning_rate(learning_rate(cfg, steps)),
    ]
    chain = optax.chain(*parts)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            return chain.update(grads, state, params)

    return optax.GradientTransformation(chain.init, update)
