"""KnowledgeEditor (De Cao, Aziz and Titov, 2021): a network reads an edit and says by how much each
entry of its gradient is to count.

A bidirectional LSTM reads the request and its target, as the model's own token embeddings. A layer
makes the condition h of its two last states, and every matrix [I, O] has a network of its own
(section 4.3):

    h = tanh(W [→; ←] + b)
    [α; β; γ; δ; η] = W₂ tanh(W₁ h + b₁) + b₂          α, β of O numbers, γ, δ of I, η one
    ΔW = s σ(η) (Â ⊙ ∇W + B̂)        Â = γ softmax(α)ᵀ        B̂ = δ softmax(β)ᵀ

As ∇W = Σ u vᵀ over tokens, Â ⊙ ∇W = Σ (γ ⊙ u)(softmax(α) ⊙ v)ᵀ: a rank for every token and one for
B̂, and no matrix is formed. Several requests in one edit: the sum of their changes.

ΔW is added, as in the authors' code: the sign is γ's. s is 1 in the paper, max_scale in the code.
At the start W₂ and b₂ are zero but for γ = -2 O step / s, so that the first change is -step ∇W,
plain gradient descent, and training departs from there. (The authors' start is random and tiny, and
has to find the sign; on the model that ships that learned a fifth less of new facts.)

The objective (eq. 4): the least -log p'(target), of the request and of another wording, under the
constraint KL(p ‖ p') ≤ margin at what is to be kept, by a multiplier λ that ascends:

    min over networks, max over λ ≥ 0:   -log p'(target) + λ (KL(p ‖ p') - margin)

What differs: the LSTM does not read what the model said before; λ ascends by plain steps; the
margin does not shrink; no weight normalisation, no label smoothing. margin=None: the weighted sum
of the other learners, as MEND's authors train this network.

Shapes as in edit.inner; S what the LSTM reads, H its states, C the condition.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Params
from jaxedit.data.answers import Answers
from jaxedit.edit import descent
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
    beside,
    editor,
    objective,
    outcome,
    parts_of,
)
from jaxedit.edit.weights.mend import shares, to_delta
from jaxedit.models.config import ModelConfig
from jaxedit.models.sites import matrices
from jaxedit.models.vocabulary import rows as rows_of

WAYS = ("forward", "backward")


@dataclasses.dataclass(frozen=True)
class KeConfig:
    """In brackets the names of the authors' hyper-parameters."""

    layers: tuple[int, ...]  # [include_set, with targets]
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")
    reader: int = 128  # states of the LSTM, each way
    condition: int = 1024  # numbers that say what was read [condition_dim]
    hidden: int = 128  # of the matrices' networks [hidden_dim]
    scale: float = 1.0  # s [max_scale]
    step: float = 1e-4  # of the gradient descent that training starts from
    margin: float | None = 1e-3  # of the KL [margin_kl_max]; None: a weighted sum, no constraint
    ascent: float = 0.1  # step of the multiplier [lr_alpha]
    objective: ObjectiveConfig = PAPER  # under a margin its weights and `outer` have no part
    rows: RowsConfig = descent.ROWS
    trained: str = ""  # the folder that training has made

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.margin is not None and (self.margin < 0 or self.ascent <= 0):
            raise ValueError(f"margin={self.margin}: 0 or more; ascent={self.ascent}: positive")

    @property
    def places(self) -> Places:
        return Places(self.layers, self.targets)


def check_sizes(opt: Any) -> None:
    if min(opt.reader, opt.condition, opt.hidden) < 1 or opt.scale <= 0:
        raise ValueError(f"{opt}: reader, condition, hidden and scale are positive")


def ke(cfg: KeConfig) -> Editor:
    """One change for all requests, or one for each: low-rank in every target."""
    return editor(cfg, LEARNER)


def first(key: Array, opt: Any, cfg: ModelConfig) -> tuple[Tree, Tree]:
    """The LSTM, the condition's layer and the matrices' networks; the multiplier."""
    H, C, n = opt.reader, opt.condition, len(opt.layers)
    lstm, nets = {}, {}
    for i, way in enumerate(WAYS):
        shapes = {"in": (cfg.embed, 4 * H), "state": (H, 4 * H), "b": (4 * H,)}
        keys = jax.random.split(jax.random.fold_in(key, i), len(shapes))
        lstm[way] = {k: uniform(r, H, *shapes[k]) for r, k in zip(keys, shapes, strict=True)}
    for i, path in enumerate(opt.targets):
        I, O = matrices(cfg)[path]
        lower = linear(jax.random.fold_in(key, 3 + i), C, opt.hidden, n)
        b = jnp.zeros((n, 2 * (I + O) + 1))
        b = b.at[:, 2 * O : 2 * O + I].set(-2 * O * opt.step / opt.scale)
        nets[path] = {
            "lower": lower,
            "upper": {"w": jnp.zeros((n, opt.hidden, b.shape[1])), "b": b},
        }
    condition = linear(jax.random.fold_in(key, 2), 2 * H, C)
    trained = {"lstm": lstm, "condition": condition, "matrices": nets}
    return trained, {"multiplier": jnp.float32(1)}


def uniform(key: Array, I: int, *shape: int) -> Array:
    """As PyTorch draws the weights of a layer of I inputs (an LSTM: of I states)."""
    return jax.random.uniform(key, shape, minval=-(I**-0.5), maxval=I**-0.5)


def linear(key: Array, I: int, O: int, *lead: int) -> Tree:
    w, b = jax.random.split(key)
    return {"w": uniform(w, I, *lead, I, O), "b": uniform(b, I, *lead, O)}


def read(trained: Tree, params: Params, rows: Answers) -> Array:
    """The condition of every row, [B, C]: its tokens up to the answer, then the answer's."""
    columns_T = jnp.arange(rows.pos_BT.shape[1])
    prompt_BT = (jnp.asarray(rows.pos_BT) >= 0) & (columns_T <= jnp.asarray(rows.at_BU)[:, :1])
    real_BS = jnp.concatenate([prompt_BT, jnp.asarray(rows.mask_BU)], 1)
    tokens_BS = jnp.concatenate([jnp.asarray(rows.tokens_BT), jnp.asarray(rows.target_BU)], 1)
    x_BSD = jax.lax.stop_gradient(rows_of(params["embed"]["w"], tokens_BS).astype(jnp.float32))
    last = [lstm(trained["lstm"][way], x_BSD, real_BS, way == "backward") for way in WAYS]
    return jnp.tanh(apply(trained["condition"], jnp.concatenate(last, -1)))


def lstm(p: Tree, x_BSD: Array, real_BS: Array, backward: bool) -> Array:
    """The last state of an LSTM over what is real, [B, H]."""

    def step(carry: tuple[Array, Array], xs: tuple[Array, Array]) -> tuple[Any, None]:
        h_BH, c_BH = carry
        in_BG, real_B = xs
        i, f, g, o = jnp.split(in_BG + h_BH @ p["state"], 4, -1)
        c = jax.nn.sigmoid(f) * c_BH + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        on_B1 = real_B[:, None]
        return (jnp.where(on_B1, h, h_BH), jnp.where(on_B1, c, c_BH)), None

    zero_BH = jnp.zeros((len(x_BSD), p["state"].shape[0]))
    in_SBG = (x_BSD @ p["in"] + p["b"]).swapaxes(0, 1)
    (h_BH, _), _ = jax.lax.scan(step, (zero_BH, zero_BH), (in_SBG, real_BS.T), reverse=backward)
    return h_BH


def apply(p: Tree, x: Array) -> Array:
    return x @ p["w"] + p["b"]


def gates(net: Tree, h_BC: Array, I: int, O: int) -> tuple[Array, ...]:
    """α, β [n, B, O], γ, δ [n, B, I] and η [n, B, 1] of one matrix in n layers."""

    def one(net: Tree) -> Array:
        return apply(net["upper"], jnp.tanh(apply(net["lower"], h_BC)))

    ends = [O, 2 * O, 2 * O + I, 2 * O + 2 * I]
    return tuple(jnp.split(jax.vmap(one)(net), ends, -1))


def gated(net: Tree, h_BC: Array, f: Factors, real_B: Array, scale: float) -> Factors:
    """The change of one matrix as factors, a rank for every token and one more; none of a row that
    only fills the batch.
    """
    alpha, beta, gamma, shift, eta = gates(net, h_BC, f.u.shape[-1], f.v.shape[-1])
    size = scale * jax.nn.sigmoid(eta) * real_B[:, None].astype(jnp.float32)
    one = lambda x: x[:, :, None]  # against the axis of tokens
    u = jnp.concatenate([one(gamma) * f.u, one(shift)], 2)
    v = jnp.concatenate([one(jax.nn.softmax(alpha)) * f.v, one(jax.nn.softmax(beta))], 2)
    return Factors(u, one(size) * v)


def change(
    learned: Learned,
    params: Params,
    parts: Sequence[Part],
    opt: Any,
    cfg: ModelConfig,
    *,
    apart: bool,
    train: bool,
    deltas: Mapping[str, Any] | None = None,
) -> tuple[Deltas, Tree]:
    """What the networks make of every row's own gradient."""
    nets, found = learned.trained["matrices"], []
    each = shares(params, parts, opt, cfg, True, deltas)
    for (_, rows), factors in zip(parts, each, strict=True):
        h_BC, real_B = read(learned.trained, params, rows), jnp.asarray(rows.mask_BU).any(1)
        found.append(
            {path: gated(nets[path], h_BC, f, real_B, opt.scale) for path, f in factors.items()}
        )
    new = {path: to_delta([f[path] for f in found], opt, apart) for path in opt.targets}
    return new, learned.running


def gradient(
    learned: Learned, params: Params, lessons: Answers, opt: KeConfig, cfg: ModelConfig
) -> tuple[Tree, Metrics, Tree]:
    """Of the Lagrangian, or of the weighted sum."""

    def loss(trained: Tree) -> tuple[Array, Metrics]:
        now = Learned(trained, learned.running)
        if opt.margin is None:
            total, (found, _) = objective(now, params, lessons, LEARNER, opt, cfg)
            return total, found
        edit, said, kept = parts_of(params, lessons, cfg, opt.places.start)
        new, _ = change(now, params, [edit], opt, cfg, apart=not goal.together, train=True)
        both = beside(edit, said)
        found = outcome(params, new, both, kept, cfg, opt.places.start, goal.where)
        total = found["edit_loss"] + multiplier * (found["local_kl"] - opt.margin)
        return total, found | {"loss": total, "multiplier": multiplier}

    goal, multiplier = opt.objective, learned.running["multiplier"]
    grad, found = jax.grad(loss, has_aux=True)(learned.trained)
    if opt.margin is None:
        return grad, found, learned.running
    higher = multiplier + opt.ascent * (found["local_kl"] - opt.margin)
    return grad, found, {"multiplier": jnp.maximum(higher, 0)}


LEARNER = Learner(first, change, gradient)
