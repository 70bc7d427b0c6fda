"""Editors that are trained: what they have in common.

A learner proposes a change of a model's matrices from the rows that are to be learned. What it has
learned is two trees: `trained`, which descends on the objective, and `running`, which only counts
(means and variances). The objective of a step (MEND eq. 4):

    edit · -log p'(target | another wording) + local · KL(p ‖ p') at what is to be kept

with p' the model under the proposed change. N lessons are N edits side by side, or `together` one.

Shapes as in edit.inner.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.data.answers import Answers, of_requests
from jaxedit.data.lessons import PARTS
from jaxedit.edit import descent, inner
from jaxedit.edit.abreast import joined, repeated
from jaxedit.edit.editor import Batches, Editor, EditResult, RowsConfig
from jaxedit.edit.inner import Places
from jaxedit.models.config import Model, ModelConfig
from jaxedit.sharding import on_mesh_of

Tree = Any
Part = tuple[Array, Answers]  # rows, with their residual stream below the first changed layer
Deltas = dict[str, Any]
Metrics = dict[str, Array]
Where = Literal["text", "answer"]


class Learner(NamedTuple):
    """Functions of module level, so that a program is compiled once for all editors of a kind."""

    # (key, config, model's config) -> trained, running
    first: Callable[[Array, Any, ModelConfig], tuple[Tree, Tree]]
    # (learned, params, parts, config, model's config, apart=, train=) -> deltas, running;
    # deltas one for each row, or shared
    change: Callable[..., tuple[Deltas, Tree]]
    # (learned, params, lessons, config, model's config) -> gradient, metrics, running; None: the
    # objective's, of lessons [N, 3, …]
    gradient: Callable[..., tuple[Tree, Metrics, Tree]] | None = None
    # what is left of it for the edits that follow one in a sequence; None: all
    after: Callable[[Any], Any] | None = None
    # as `gradient` -> metrics with "score"; None: those of the objective
    measure: Callable[..., Metrics] | None = None
    # (config, model) -> what `gradient` and `measure` get as params; None: the model's
    given: Callable[[Any, Model], Any] | None = None


@struct.dataclass
class Learned:
    """What an editor has learned."""

    trained: Tree
    running: Tree


@struct.dataclass
class State:
    learned: Learned
    cfg: ModelConfig = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """In brackets the names of the authors' hyper-parameters."""

    edit: float = 0.1  # [cedit]
    local: float = 1.0  # [cloc]
    # What the edited model is to say the target after: another wording (the paper), or the request
    # itself, as EasyEdit's trainer has it.
    outer: Literal["said", "edit"] = "said"
    # Where what is kept is compared: after every token of the text, or only where its answer is.
    where: Where = "text"
    together: bool = False  # the edits of a step are one, not one for each lesson


PAPER = ObjectiveConfig()


class Trainable(Protocol):
    """The config of a method that is trained."""

    @property
    def places(self) -> Places: ...
    @property
    def objective(self) -> ObjectiveConfig: ...
    @property
    def trained(self) -> str: ...
    @property
    def rows(self) -> RowsConfig: ...


def editor(cfg: Trainable, learner: Learner) -> Editor:
    """An editor of what was learned."""

    def init(key: Array, model: Model, given: Learned | None = None) -> State:
        cfg.places.check(model.cfg)
        if given is None:
            raise ValueError(
                f"{type(cfg).__name__}: this method is trained before it edits; set trained to the "
                "folder that python -m jaxedit.train has made"
            )
        return State(given, model.cfg)

    def change(state: State, params: Params, batches: Batches, apart: bool) -> EditResult:
        with on_mesh_of(params):
            deltas, info = _edit(state, params, tuple(batches), learner, cfg, apart)
        return EditResult(deltas, descent.sized(deltas, info))

    def edit(state: State, params: Params, batches: Batches) -> tuple[EditResult, State]:
        later = learner.after(state.learned) if learner.after else state.learned
        return change(state, params, batches, False), State(later, state.cfg)

    def each(state: State, params: Params, batches: Batches) -> EditResult:
        parts = [change(state, params, (batch,), True) for batch in batches]
        infos = [part.info for part in parts]
        return EditResult(
            joined([part.deltas for part in parts]),
            jax.tree.map(lambda *x: jnp.concatenate(x), *infos),
        )

    return Editor(init, edit, each, cfg.rows, learner=learner)


@partial(jax.jit, static_argnames=("learner", "opt", "apart"))
def _edit(
    state: State, params: Params, batches: tuple, learner: Learner, opt: Trainable, apart: bool
) -> tuple[Deltas, descent.Info]:
    cfg, start = state.cfg, opt.places.start
    rows = [of_requests(batch) for batch in batches]
    parts = [(inner.stem(params, some, cfg, start), some) for some in rows]
    deltas, _ = learner.change(state.learned, params, parts, opt, cfg, apart=apart, train=False)
    deltas = jax.lax.stop_gradient(deltas)
    losses = []
    for x_BTD, some in parts:
        x_BTD, _ = inner.above(params, x_BTD, some, cfg, start, deltas=deltas)
        logp_BUV = inner.told(params, x_BTD, some, cfg)
        losses.append(inner.mean(inner.nll(logp_BUV, some), some))
    loss_N = jnp.concatenate(losses)
    # of a shared change that is not finite, no request is the one that failed
    failed_N = jnp.where(jnp.isfinite(loss_N), -1, 0).astype(jnp.int32)
    return deltas, {"loss": loss_N, "failed": failed_N}


def first(key: Array, learner: Learner, opt: Trainable, cfg: ModelConfig) -> Learned:
    """What an editor knows before it has learned."""
    opt.places.check(cfg)
    return Learned(*learner.first(key, opt, cfg))


@partial(jax.jit, static_argnames=("learner", "opt", "cfg"))
def gradient(
    learned: Learned,
    params: Params,
    lessons: Answers,
    learner: Learner,
    opt: Trainable,
    cfg: ModelConfig,
) -> tuple[Tree, Metrics, Tree]:
    """One step's gradient by what is trained, its metrics, and what runs along."""
    if learner.gradient is not None:
        return learner.gradient(learned, params, lessons, opt, cfg)

    def loss(trained: Tree) -> tuple[Array, tuple[Metrics, Tree]]:
        now = Learned(trained, learned.running)
        return objective(now, params, lessons, learner, opt, cfg)

    grad, (metrics, running) = jax.grad(loss, has_aux=True)(learned.trained)
    return grad, metrics, jax.lax.stop_gradient(running)


def objective(
    learned: Learned,
    params: Params,
    lessons: Answers,
    learner: Learner,
    opt: Trainable,
    cfg: ModelConfig,
) -> tuple[Array, tuple[Metrics, Tree]]:
    """The loss of lessons [N, 3, …]."""
    goal = opt.objective
    edit, said, kept = parts_of(params, lessons, cfg, opt.places.start)
    deltas, running = learner.change(
        learned, params, [edit], opt, cfg, apart=not goal.together, train=True
    )
    new = said if goal.outer == "said" else edit
    found = outcome(params, deltas, new, kept, cfg, opt.places.start, goal.where)
    loss = goal.edit * found["edit_loss"] + goal.local * found["local_kl"]
    return loss, (found | {"loss": loss}, running)


def outcome(
    params: Params,
    deltas: Deltas,
    new: Part,
    kept: Part,
    cfg: ModelConfig,
    start: int,
    where: Where,
    before: Deltas | None = None,
) -> Metrics:
    """The losses of a change, one for each row or shared, and how often what it makes is right.

    new: as many rows as are kept, or several times as many. before: the change of the model that
    is to be kept.
    """
    N, times = len(new[1]), len(new[1]) // len(kept[1])
    old_BTD, _ = inner.above(params, *kept, cfg, start, deltas=before)
    both = beside(new, kept)
    x_BTD, _ = inner.above(params, *both, cfg, start, deltas=repeated(deltas, times + 1))
    seen = inner.whole(kept[1]) if where == "text" else kept[1]
    new_BUV = inner.told(params, x_BTD[:N], new[1], cfg)
    before_BUV, after_BUV = (inner.told(params, x, seen, cfg) for x in (old_BTD, x_BTD[N:]))
    kl_BU = inner.divergence(jax.lax.stop_gradient(before_BUV), after_BUV)
    same_BU = (before_BUV.argmax(-1) == after_BUV.argmax(-1)).astype(jnp.float32)
    return {
        "edit_loss": inner.mean_of_all(inner.nll(new_BUV, new[1]), new[1]),
        "local_kl": inner.mean_of_all(kl_BU, seen),
        "success": inner.right(new_BUV, new[1]).mean(dtype=jnp.float32),
        "locality": inner.mean_of_all(same_BU, seen),
    }


def parts_of(params: Params, lessons: Answers, cfg: ModelConfig, start: int) -> list[Part]:
    """The three rows of every lesson [N, 3, …], each kind with its residual stream."""
    flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, x.shape[-1]), lessons)
    x_BTD = inner.stem(params, flat, cfg, start)
    N = x_BTD.shape[0] // PARTS
    x_NQTD = x_BTD.reshape(N, PARTS, *x_BTD.shape[1:])
    row = lambda i: jax.tree.map(lambda x: jnp.asarray(x)[:, i], lessons)
    return [(x_NQTD[:, i], row(i)) for i in range(PARTS)]


def beside(*parts: Part) -> Part:
    """Parts as one batch."""
    xs, rows = zip(*parts, strict=True)
    return jnp.concatenate(xs), jax.tree.map(lambda *x: jnp.concatenate(x), *rows)


@partial(jax.jit, static_argnames=("learner", "opt", "cfg"))
def measure(
    learned: Learned,
    params: Params,
    lessons: Answers,
    learner: Learner,
    opt: Trainable,
    cfg: ModelConfig,
) -> Metrics:
    """How an editor does on lessons [N, 3, …]: the request and another wording, and what is kept.

    "score": the least of its success on either and its locality.
    """
    if learner.measure is not None:
        return learner.measure(learned, params, lessons, opt, cfg)
    edit, said, kept = parts_of(params, lessons, cfg, opt.places.start)
    deltas, _ = learner.change(
        learned, params, [edit], opt, cfg, apart=not opt.objective.together, train=False
    )
    reliable, found = (
        outcome(params, deltas, new, kept, cfg, opt.places.start, "answer") for new in (edit, said)
    )
    found = found | {"reliability": reliable["success"], "generalization": found.pop("success")}
    score = jnp.minimum(found["reliability"], found["generalization"])
    return found | {"score": jnp.minimum(score, found["locality"])}
