"""SLAG (Hase et al., 2021): KnowledgeEditor's network, trained so that its edits stay local, reach
other wordings, and can follow each other.

The network is that of edit.weights.ke. A step of training makes K updates in sequence, each of the
gradient of the model as the earlier ones left it (θ₀ is the base, sg stops gradients):

    θᵢ = sg(θᵢ₋₁) + g_φ(xᵢ, y*ᵢ, ∇ L(xᵢ, y*ᵢ; sg(θᵢ₋₁)))
    L(φ) = 1/K Σᵢ  edit · -log p(y* | x; θᵢ) + local · KL(p(θᵢ₋₁) ‖ p(θᵢ))

with x the request i and another wording of it, and the KL at what is to be kept. No gradient goes
from one update into another, so each is taken by itself, and memory does not grow with K. Lessons
of a batch are groups of K that run side by side.

As in the authors' code, the loss after an update is that of its own fact, and what is kept is the
model that the update found. so_far=True: the losses of all facts that the sequence has edited so
far; then also later updates learn to leave earlier ones alone. What differs: one step of the
network for every fact (the code takes up to five, until the model says it); the KL is on prompts
that the edit does not concern, not also on other facts' requests; see edit.weights.ke, too.

Shapes as in edit.inner; K facts in sequence, G sequences, N = K G lessons.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, LowRank, Params
from jaxedit.data.answers import Answers
from jaxedit.edit import descent, inner
from jaxedit.edit.abreast import repeated
from jaxedit.edit.editor import Editor, RowsConfig
from jaxedit.edit.inner import Places
from jaxedit.edit.learner import (
    Deltas,
    Learned,
    Learner,
    Metrics,
    ObjectiveConfig,
    Part,
    Tree,
    beside,
    editor,
    outcome,
    parts_of,
)
from jaxedit.edit.weights import ke
from jaxedit.models.config import ModelConfig
from jaxedit.models.sites import matrices

EQUAL = ObjectiveConfig(edit=2.0, local=1.0)  # the request, another wording, and what is kept


@dataclasses.dataclass(frozen=True)
class SlagConfig:
    """In brackets the names of the authors' hyper-parameters."""

    layers: tuple[int, ...]
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")
    sequence: int = 10  # K [num_successive_updates]
    so_far: bool = False  # learn from all facts that were edited so far, not from the last alone
    reader: int = 128  # states of the LSTM, each way
    condition: int = 1024  # numbers that say what was read [condition_dim]
    hidden: int = 128  # of the matrices' networks [hidden_dim]
    scale: float = 1.0  # [max_scale]
    step: float = 1e-4  # of the gradient descent that training starts from
    objective: ObjectiveConfig = EQUAL  # [lambda_main and lambda_paraphrase, lambda_kl]
    rows: RowsConfig = descent.ROWS
    trained: str = ""  # the folder that training has made

    def __post_init__(self) -> None:
        ke.check_sizes(self)
        if self.sequence < 1:
            raise ValueError(f"sequence={self.sequence}: at least 1")
        if self.objective.together or self.objective.outer != "said":
            raise ValueError(
                f"{self.objective}: edits come one after the other (together=False), and both of "
                "their wordings are learned from (outer='said')"
            )

    @property
    def places(self) -> Places:
        return Places(self.layers, self.targets)


def slag(cfg: SlagConfig) -> Editor:
    """As KnowledgeEditor: one change for all requests (the sum of theirs), or one for each."""
    return editor(cfg, LEARNER)


def first(key: Array, opt: SlagConfig, cfg: ModelConfig) -> tuple[Tree, Tree]:
    """KnowledgeEditor's network."""
    return ke.first(key, opt, cfg)[0], {}


def gradient(
    learned: Learned, params: Params, lessons: Answers, opt: SlagConfig, cfg: ModelConfig
) -> tuple[Tree, Metrics, Tree]:
    """The mean of the gradients after each update of the sequences."""
    K, N = opt.sequence, len(lessons)
    if N % K:
        raise ValueError(f"{N} lessons at once (batch / accumulate): sequence={K} divides them")
    facts = [in_turn(part, K) for part in parts_of(params, lessons, cfg, opt.places.start)]

    def step(carry: tuple[Deltas, Tree], i: Array) -> tuple[Any, Metrics]:
        old, total = carry
        grad, new, found = after(learned, params, old, facts, i, opt, cfg)
        total = jax.tree.map(lambda t, g: t + g / K, total, grad)
        return (placed(old, new, i), total), found

    zero = jax.tree.map(jnp.zeros_like, learned.trained)
    start = nothing(facts[0], opt, cfg)
    (last, grad), metrics = jax.lax.scan(step, (start, zero), jnp.arange(K))
    found = jax.tree.map(lambda x: x.mean(0), metrics)
    right = said_at_the_end(params, last, facts, opt, cfg)
    return grad, found | {"success": right}, learned.running


def after(
    learned: Learned, params: Params, old: Deltas, facts: list[Part], i: Array,
    opt: SlagConfig, cfg: ModelConfig,
) -> tuple[Tree, Deltas, Metrics]:  # fmt: skip
    """The gradient of the loss after update i of models with the changes `old`, and the update."""
    goal, start = opt.objective, opt.places.start
    edit, said, kept = (jax.tree.map(lambda x: x[i], part) for part in facts)
    new_facts = (
        beside(*(so_far(part, i) for part in facts[:2])) if opt.so_far else beside(edit, said)
    )

    def loss(trained: Tree) -> tuple[Array, tuple[Deltas, Metrics]]:
        now = Learned(trained, learned.running)
        new, _ = ke.change(now, params, [edit], opt, cfg, apart=True, train=True, deltas=old)
        both = {path: (old[path], new[path]) for path in new}
        found = outcome(params, both, new_facts, kept, cfg, start, goal.where, before=old)
        total = goal.edit * found["edit_loss"] + goal.local * found["local_kl"]
        return total, (new, found | {"loss": total})

    grad, (new, found) = jax.grad(loss, has_aux=True)(learned.trained)
    return grad, new, found


def in_turn(part: Part, K: int) -> Part:
    """Rows [N, …] as [K, G, …]: fact by fact, of every sequence."""
    return jax.tree.map(lambda x: jnp.asarray(x).reshape(K, -1, *x.shape[1:]), part)


def so_far(part: Part, i: Array) -> Part:
    """The facts up to i in the rows of all, [K G, …]; the later ones have no answer."""
    x_KGTD, rows = part
    done_K11 = (jnp.arange(len(x_KGTD)) <= i)[:, None, None]
    rows = dataclasses.replace(rows, mask_BU=rows.mask_BU & done_K11)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (x_KGTD, rows))


def nothing(part: Part, opt: SlagConfig, cfg: ModelConfig) -> Deltas:
    """Changes of G models that have room for those of K updates."""
    K, G, T = part[1].tokens_BT.shape
    n, R = len(opt.layers), K * (T + 1)  # see edit.weights.ke
    size = {path: matrices(cfg)[path] for path in opt.targets}
    zero = lambda I, O: (jnp.zeros((n, G, I, R)), jnp.zeros((n, G, R, O)))
    return {path: LowRank(*zero(I, O), opt.places.numbers) for path, (I, O) in size.items()}


def placed(old: Deltas, new: Deltas, i: Array) -> Deltas:
    """With the ranks of update i."""

    def one(old: LowRank, new: LowRank) -> LowRank:
        at = i * new.a.shape[-1]
        a = jax.lax.dynamic_update_slice_in_dim(old.a, new.a, at, -1)
        return LowRank(a, jax.lax.dynamic_update_slice_in_dim(old.b, new.b, at, -2), old.layers)

    return {path: one(old[path], jax.lax.stop_gradient(new[path])) for path in old}


def said_at_the_end(
    params: Params, deltas: Deltas, facts: list[Part], opt: SlagConfig, cfg: ModelConfig
) -> Array:
    """How often the facts of the sequences are right after the last update, in both wordings."""
    rows = beside(*(so_far(part, jnp.int32(opt.sequence)) for part in facts[:2]))
    many = repeated(deltas, 2 * opt.sequence)
    x_BTD, _ = inner.above(params, *rows, cfg, opt.places.start, deltas=many)
    return inner.right(inner.told(params, x_BTD, rows[1], cfg), rows[1]).mean(dtype=jnp.float32)


LEARNER = Learner(first, ke.change, gradient)
