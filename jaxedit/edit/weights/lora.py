"""LoRA as an editor (Hu et al., 2022): low-rank factors in many matrices, until the target is
likely.

    W + alpha / rank · A B,  A random and B zero at the start

There is no dropout: a request is a row or two, seen at every step, and an edit is to be what was
trained (EasyEdit leaves dropout on while it evaluates).

Shapes as in data.aligned; I, O the matrix [I, O], r rank, n and G as in edit.descent.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Delta, LowRank, Params
from jaxedit.data.aligned import Aligned
from jaxedit.edit import descent
from jaxedit.edit.descent import Info, Tree
from jaxedit.edit.editor import Batches, Editor, EditResult, RowsConfig
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.sites import check_names, matrices
from jaxedit.sharding import on_mesh_of


@dataclasses.dataclass(frozen=True)
class LoraEditConfig:
    rank: int = 8
    alpha: float = 32.0  # the delta is alpha / rank times the product of its factors [lora_alpha]
    targets: tuple[str, ...] = ("attn/q", "attn/v")  # names of matrices, as in deltas
    layers: tuple[int, ...] = ()  # (): all
    steps: int = 70  # updates at most [num_steps]
    lr: float = 5e-3  # of Adam
    stop_loss: float = 0.0  # a request whose loss is below is done; 0: all steps are run
    rows: RowsConfig = descent.ROWS

    def __post_init__(self) -> None:
        if min(self.rank, self.steps) < 1 or self.lr <= 0:
            raise ValueError(f"{self}: rank, steps and lr are positive")


@struct.dataclass
class LoraState:
    key: Array  # of the next edit's first factors; every request of `each` starts from the same
    cfg: ModelConfig = struct.field(pytree_node=False)


def lora(cfg: LoraEditConfig) -> Editor:
    """One change for all requests, or one for each: low-rank in every target."""
    return editor(cfg, _tune, to_deltas)


class Places(Protocol):
    """What configs of low-rank factors have in common."""

    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def rows(self) -> RowsConfig: ...


def editor(cfg: Places, tune: Callable[..., tuple[Tree, Info]], to_deltas: Callable) -> Editor:
    """The editor that trains factors: tune(params, batches, key, model's config, cfg, apart), and
    to_deltas(factors, cfg, apart).
    """

    def init(key: Array, model: Model, stats: None = None) -> LoraState:
        check_places(cfg, model.cfg)
        return LoraState(key, model.cfg)

    def result(x: Tree, info: Info, apart: bool) -> EditResult:
        deltas = to_deltas(x, cfg, apart)
        return EditResult(deltas, descent.sized(deltas, info))

    def edit(state: LoraState, params: Params, batches: Batches) -> tuple[EditResult, LoraState]:
        with on_mesh_of(params):
            found = tune(params, tuple(batches), state.key, state.cfg, cfg, apart=False)
        # the next edit of a sequence starts from other factors
        later = LoraState(jax.random.fold_in(state.key, 1), state.cfg)
        return result(*found, apart=False), later

    def each(state: LoraState, params: Params, batches: Batches) -> EditResult:
        with on_mesh_of(params):
            parts = [
                tune(params, (batch,), state.key, state.cfg, cfg, apart=True) for batch in batches
            ]
        return result(*descent.join(parts), apart=True)

    return Editor(init, edit, each, cfg.rows)


def check_places(opt: Places, cfg: ModelConfig) -> None:
    """Raises where the model has no such matrices in its blocks, or no such layers."""
    inner = {path: size for path, size in matrices(cfg).items() if "/" in path}
    check_names("target", dict.fromkeys(opt.targets), inner, cfg)
    if not opt.targets:
        raise ValueError(f"no targets: at least one of {', '.join(inner)}")
    if bad := [i for i in opt.layers if not 0 <= i < cfg.layers]:
        raise ValueError(f"layer {bad[0]}: the model has layers 0 to {cfg.layers - 1}")
    if len(set(opt.layers)) < len(opt.layers):
        raise ValueError(f"layers {opt.layers}: each once")


def numbers(layers: tuple[int, ...]) -> Array | None:
    return jnp.array(layers, jnp.int32) if layers else None


def to_deltas(x: Tree, opt: LoraEditConfig, apart: bool) -> dict[str, Delta]:
    """What is trained as deltas: one per request, or shared."""
    x, scale = descent.share(x, apart), opt.alpha / opt.rank
    return {path: LowRank(f["a"], f["b"] * scale, numbers(opt.layers)) for path, f in x.items()}


def first_factors(key: Array, cfg: ModelConfig, opt: LoraEditConfig, G: int) -> Tree:
    """PEFT's: A uniform within 1 / √I, B zero. The same for every request."""
    n, x = len(opt.layers) or cfg.layers, {}
    for i, path in enumerate(opt.targets):
        I, O = matrices(cfg)[path]
        limit = 1 / math.sqrt(I)
        shape = (n, 1, I, opt.rank)
        a = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-limit, maxval=limit)
        b = jnp.zeros((n, G, opt.rank, O))
        x[path] = {"a": jnp.broadcast_to(a, (n, G, I, opt.rank)), "b": b}
    return x


@partial(jax.jit, static_argnames=("cfg", "opt", "apart"))
def _tune(
    params: Params,
    batches: tuple[Aligned, ...],
    key: Array,
    cfg: ModelConfig,
    opt: LoraEditConfig,
    apart: bool,
) -> tuple[Tree, Info]:
    def loss(x: Tree, alive_N: Array, i: int) -> Array:
        return descent.loss_with(to_deltas(x, opt, apart), params, batches[i], cfg, alive_N)

    return descent.descend(
        loss,
        batches,
        first_factors(key, cfg, opt, len(batches[0].valid_N) if apart else 1),
        steps=opt.steps,
        lr=opt.lr,
        stop_loss=opt.stop_loss,
        apart=apart,
    )
