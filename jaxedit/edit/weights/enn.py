"""Editable neural networks (Sinitsin et al., 2020): weights that have learned to be edited by a few
steps of gradient descent.

Training moves the matrices to where k steps on an edit's loss make it and nothing else (section 3;
W₀ is the initial change, the same for all edits, and zero at first):

    θ₀ = θ + W₀,    θⱼ = θⱼ₋₁ - α ∇ -log p(target; θⱼ₋₁)        α is a matrix's, learned as well
    L = base · KL(p(θ) ‖ p(θ₀)) + edit · -log p(target | another wording; θₖ)
        + local · KL(p(θ) ‖ p(θₖ))

The gradient goes back through the k steps (first_order=True: only through their end). A step's
change is a product of factors, so that an edit has k ranks for every token beside W₀.

What differs: the base loss is the KL of the unedited model to the one that was given, in the place
of that of the task it was trained for, and locality is measured against that one, too; the steps
are plain and always k (the paper's stop when the edit is made, ten at most; RMSProp in some
experiments). In a sequence of edits W₀ comes with the first alone.

Shapes as in edit.inner.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Dense, LowRank, Params, chain
from jaxedit.data.answers import Answers
from jaxedit.edit import descent, inner
from jaxedit.edit.editor import Editor, RowsConfig
from jaxedit.edit.inner import Factors, Places
from jaxedit.edit.learner import (
    PAPER,
    Deltas,
    Learned,
    Learner,
    Metrics,
    ObjectiveConfig,
    Part,
    Tree,
    editor,
    outcome,
    parts_of,
)
from jaxedit.edit.weights.mend import shares, to_delta
from jaxedit.models.config import ModelConfig
from jaxedit.models.sites import matrices


@dataclasses.dataclass(frozen=True)
class EnnConfig:
    """In brackets the names that MEND's authors have for them."""

    layers: tuple[int, ...]  # [inner_params, with targets]
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")
    steps: int = 1  # k [n_edit_steps]
    step: float = 1e-2  # α at the start [edit_lr]
    first_order: bool = False  # [first_order]
    base: float = 1.0
    objective: ObjectiveConfig = PAPER
    rows: RowsConfig = descent.ROWS
    trained: str = ""  # the folder that training has made

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step <= 0:
            raise ValueError(f"steps={self.steps} step={self.step}: positive")

    @property
    def places(self) -> Places:
        return Places(self.layers, self.targets)


def enn(cfg: EnnConfig) -> Editor:
    """The initial change, and a low-rank one for all requests or for each."""
    return editor(cfg, LEARNER)


def first(key: Array, opt: EnnConfig, cfg: ModelConfig) -> tuple[Tree, Tree]:
    """No initial change, and step sizes."""
    n = len(opt.layers)
    start = {path: jnp.zeros((n, *matrices(cfg)[path])) for path in opt.targets}
    return {
        "start": start,
        "steps": {path: jnp.full(n, opt.step, jnp.float32) for path in opt.targets},
    }, {}


def begun(learned: Learned) -> Learned:
    """What is left to do in a model that has been edited: its weights have the initial change."""
    return Learned({"steps": learned.trained["steps"]}, learned.running)


def change(
    learned: Learned,
    params: Params,
    parts: Sequence[Part],
    opt: EnnConfig,
    cfg: ModelConfig,
    *,
    apart: bool,
    train: bool,
    deltas: Mapping[str, Any] | None = None,
) -> tuple[Deltas, Tree]:
    """The initial change and the steps from there, of every matrix."""
    start = {path: (Dense(w, opt.places.numbers),) for path, w in initial(learned).items()}
    steps: dict[str, tuple[LowRank, ...]] = dict.fromkeys(opt.targets, ())
    through = train and not opt.first_order
    for _ in range(opt.steps):
        now = {path: start.get(path, ()) + steps[path] for path in opt.targets}
        if deltas:
            now = {path: now[path] + chain(deltas.get(path, ())) for path in now}
        fs = list(shares(params, parts, opt, cfg, apart, now, through))
        for path, size_n in learned.trained["steps"].items():
            down = [Factors(f[path].u, -size_n[:, None, None, None] * f[path].v) for f in fs]
            steps[path] += (to_delta(down, opt, apart),)
    new: Deltas = {path: (*start.get(path, ()), ranks(steps[path])) for path in opt.targets}
    return new, learned.running


def initial(learned: Learned) -> dict[str, Array]:
    return learned.trained.get("start", {})


def ranks(steps: Sequence[LowRank]) -> LowRank:
    """All steps as one change."""
    a, b = (jnp.concatenate(x, axis) for x, axis in (([d.a for d in steps], -1),
                                                     ([d.b for d in steps], -2)))  # fmt: skip
    return LowRank(a, b, steps[0].layers)


def gradient(
    learned: Learned, params: Params, lessons: Answers, opt: EnnConfig, cfg: ModelConfig
) -> tuple[Tree, Metrics, Tree]:
    """Of the learners' objective and the base loss."""
    goal, start = opt.objective, opt.places.start
    edit, said, kept = parts_of(params, lessons, cfg, start)
    new = said if goal.outer == "said" else edit

    def loss(trained: Tree) -> tuple[Array, Metrics]:
        now = Learned(trained, learned.running)
        deltas, _ = change(now, params, [edit], opt, cfg, apart=not goal.together, train=True)
        found = outcome(params, deltas, new, kept, cfg, start, goal.where)
        found |= {"base_kl": drift(now, params, kept, opt, cfg)}
        total = goal.edit * found["edit_loss"] + goal.local * found["local_kl"]
        total += opt.base * found["base_kl"]
        return total, found | {"loss": total}

    grad, found = jax.grad(loss, has_aux=True)(learned.trained)
    return grad, found, learned.running


def drift(learned: Learned, params: Params, kept: Part, opt: EnnConfig, cfg: ModelConfig) -> Array:
    """KL(given ‖ unedited) at what is to be kept."""
    x_BTD, rows = kept
    start = {path: Dense(w, opt.places.numbers) for path, w in initial(learned).items()}
    seen = inner.whole(rows) if opt.objective.where == "text" else rows
    told = []
    for deltas in (None, start):
        y_BTD, _ = inner.above(params, x_BTD, rows, cfg, opt.places.start, deltas=deltas)
        told.append(inner.told(params, y_BTD, seen, cfg))
    return inner.mean_of_all(inner.divergence(*told), seen)


LEARNER = Learner(first, change, gradient, begun)
