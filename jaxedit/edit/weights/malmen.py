"""MALMEN (Tan et al., 2024): a network trained to make thousands of edits one change of weights.

A network of MEND's kind says of each token how its value is to change, from its key u (the input of
a matrix) and the gradient v of its value (the output); the change of the matrix is that which comes
nearest to what all tokens of all edits want, a ridge regression (eqs. 3 and 4):

    [k; g] = net([norm(u); norm(v)])        z ← z + s ⊙ relu(z Vᵀ Uᵀ + b) + t, see MEND
    D = -η (u · k) g                        for every token; η and λ are a matrix's
    S = (UᵀU + e^λ I)⁻¹ UᵀD

Its gradient goes round the solve and needs no two parts of the work at once (section 3.3), so a
step runs over its lessons in chunks and holds nothing of all of them but u and v:

    M = (UᵀU + e^λ I)⁻¹ ∂L/∂S        ∂L/∂D = U M        ∂L/∂λ = -e^λ Σ M ⊙ S

The loss whose gradient is v is a sum over answers' tokens, not a mean: a fact has the same factors
whatever is edited beside it. (The authors take means of batches of one size; the norm makes it the
same.)

Where tokens are fewer than dimensions, or keys alike, UᵀU is singular but for the ridge, and U M is
the little that is left when most of M cancels. So sums over tokens and what is multiplied with M
are kept in two parts (edit.solve).

Shapes as in edit.inner; G matrices that share a shape, C tokens of a row, M tokens of all rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Dense, LowRank, Params
from jaxedit.data.answers import Answers
from jaxedit.edit import descent, inner, learner, solve
from jaxedit.edit.editor import Editor, RowsConfig
from jaxedit.edit.inner import Factors, Places
from jaxedit.edit.learner import Deltas, Learned, Learner, Metrics, ObjectiveConfig, Part, Tree
from jaxedit.edit.solve import Factored, Pair, Solved, dot, product, sum_of
from jaxedit.edit.weights import mend
from jaxedit.edit.weights.mend import by_path, by_shape
from jaxedit.models.config import ModelConfig

Sums = dict[str, tuple[Pair, Pair]]  # by shape: UᵀU [G, I, I] and UᵀD [G, I, O]
Found = dict[str, Factors]  # by shape: [G, B, C, I] and [G, B, C, O], zero where not used
EDIT, SAID, KEPT = range(3)  # rows of a lesson
TOGETHER = ObjectiveConfig(edit=1.0, local=1.0, where="answer", together=True)


@dataclasses.dataclass(frozen=True)
class MalmenConfig:
    """In brackets the names of the authors' hyper-parameters."""

    layers: tuple[int, ...]  # [edit_modules, with targets]
    targets: tuple[str, ...] = ("mlp/down",)
    depth: int = 2  # layers of the network [n_blocks]
    rank: int = 1920  # of its layers; at most their width [rank]
    step: float = 1e-6  # η at the start [lr]
    tokens: learner.Where = "answer"  # whose keys are moved: all, or the answer's [token]
    chunk: int = 32  # lessons that a training step has in work at once [batch_size]
    objective: ObjectiveConfig = TOGETHER
    rows: RowsConfig = descent.ROWS
    trained: str = ""  # the folder that training has made

    def __post_init__(self) -> None:
        if self.depth < 1 or self.rank < 1 or self.chunk < 1:
            raise ValueError(f"{self}: depth, rank and chunk are positive")

    @property
    def places(self) -> Places:
        return Places(self.layers, self.targets)


def malmen(cfg: MalmenConfig) -> Editor:
    """One change for all requests, of full rank, or one for each, of as many ranks as tokens."""
    return learner.editor(cfg, LEARNER)


def first(key: Array, opt: MalmenConfig, cfg: ModelConfig) -> tuple[Tree, Tree]:
    """As MEND's, and the ridges' logarithms."""
    trained, running = mend.first(key, opt, cfg)
    return trained | {"ridges": {path: jnp.zeros(len(opt.layers)) for path in opt.targets}}, running


def factors(
    params: Params, part: Part, opt: MalmenConfig, cfg: ModelConfig,
    deltas: Mapping[str, Any] | None = None,
) -> Found:  # fmt: skip
    """Keys and gradients of the tokens that are moved."""
    x_BTD, rows = part
    found, _ = inner.factors(params, x_BTD, rows, cfg, opt.places, apart=False, deltas=deltas)
    count = inner.tokens(rows).sum()  # a sum, where inner.factors has a mean

    def one(f: Factors) -> Factors:
        u, v, used = f.u, f.v * count, inner.used(f)
        if opt.tokens == "answer":
            at_BU = jnp.asarray(rows.at_BU)
            u, v = (jnp.take_along_axis(x, at_BU[None, :, :, None], 2) for x in (u, v))
            used = jnp.take_along_axis(used, at_BU[None], 2) & rows.mask_BU
        return Factors(*(jnp.where(used[..., None], x, 0) for x in (u, v)))

    pieces = {path: one(f) for path, f in found.items()}
    return jax.lax.stop_gradient(by_shape(pieces, opt, cfg))


def flat(x: Array) -> Array:
    """[G, B, C, I] as [G, M, I]."""
    return x.reshape(len(x), -1, x.shape[-1])


def counted(running: Tree, found: Found) -> Tree:
    """The statistics with all tokens of all matrices in them."""
    line = lambda x: x.reshape(-1, x.shape[-1])
    return {
        name: mend.count_in(running[name], line(f.u), line(f.v), inner.used(f).reshape(-1))
        for name, f in found.items()
    }


def differences(learned: Learned, found: Found, opt: MalmenConfig, cfg: ModelConfig) -> Tree:
    """How values are to change, D [G, B, C, O] by shape; zero where a token is not used."""
    steps = by_shape(learned.trained["steps"], opt, cfg)

    def one(name: str, f: Factors) -> Array:
        net = learned.trained["networks"][name]
        layers = [net[str(i)] for i in range(len(net))]
        scale, shift = ([p[side] for p in layers] for side in ("scale", "shift"))
        of = partial(difference, net, learned.running[name])
        return jax.vmap(of)(f.u, f.v, scale, shift, steps[name])

    return {name: one(name, f) for name, f in found.items()}


def difference(
    net: Tree, running: Tree, u: Array, v: Array, scale: Any, shift: Any, step: Array
) -> Array:
    """-η (u · k) g of one matrix's tokens."""
    z = jnp.concatenate([mend.normed(running, "u", u), mend.normed(running, "v", v)], -1)
    z = mend.through(net, z, scale, shift, after=True)
    k, g = z[..., : u.shape[-1]], z[..., u.shape[-1] :]
    return -step * (u * k).sum(-1, keepdims=True) * g


def sums(learned: Learned, found: Found, opt: MalmenConfig, cfg: ModelConfig) -> Sums:
    """UᵀU and UᵀD."""

    def one(x: tuple[Array, Array]) -> tuple[Pair, Pair]:
        u_MI, d_MO = x
        return product(u_MI.T, u_MI), product(u_MI.T, d_MO)

    wanted = differences(learned, found, opt, cfg)
    return {name: jax.lax.map(one, (flat(f.u), flat(wanted[name]))) for name, f in found.items()}


def added(some: Sums, more: Sums) -> Sums:
    of = lambda x, y: (sum_of(x[0], y[0]), sum_of(x[1], y[1]))
    return {name: of(x, more[name]) for name, x in some.items()}


def systems(total: Sums, ridges: Mapping[str, Array]) -> dict[str, Factored]:
    """UᵀU + e^λ I."""
    scaled = lambda gram, ridge: (jnp.exp(ridge) * jnp.eye(len(gram[0])), jnp.float32(0))
    one = lambda x: solve.factored(sum_of(x[0], scaled(*x)))
    return {name: jax.lax.map(one, (gram, ridges[name])) for name, (gram, _) in total.items()}


def solved(by_G: Factored, right: Pair) -> Solved:
    return jax.lax.map(lambda x: solve.solve(x[0], *x[1]), (by_G, right))


def change(
    learned: Learned, params: Params, parts: Sequence[Part], opt: MalmenConfig, cfg: ModelConfig,
    *, apart: bool, train: bool, deltas: Mapping[str, Any] | None = None,
) -> tuple[Deltas, Tree]:  # fmt: skip
    """The change that all tokens of all parts want, or those of every row."""
    every = [factors(params, part, opt, cfg, deltas) for part in parts]
    if train:
        for found in every:
            learned = Learned(learned.trained, counted(learned.running, found))
    if apart:
        return lone(learned, every[0], opt, cfg), learned.running
    total = reduce(added, [sums(learned, found, opt, cfg) for found in every])
    by = systems(total, by_shape(learned.trained["ridges"], opt, cfg))
    shift = {name: solved(by[name], right).x_FN for name, (_, right) in total.items()}
    return dense(shift, opt, cfg), learned.running


def dense(shift: Mapping[str, Array], opt: MalmenConfig, cfg: ModelConfig) -> Deltas:
    return {p: Dense(w, opt.places.numbers) for p, w in by_path(shift, opt, cfg).items()}


def lone(learned: Learned, found: Found, opt: MalmenConfig, cfg: ModelConfig) -> Deltas:
    """One change for every row: Uᵀ (UUᵀ + e^λ I)⁻¹ D, which is the same and a system of C."""
    ridges = by_shape(learned.trained["ridges"], opt, cfg)
    a, b = {}, {}

    def one(u_CI: Array, d_CO: Array, ridge: Array) -> Array:
        gram_CC = dot(u_CI, u_CI.T) + jnp.exp(ridge) * jnp.eye(len(u_CI))
        return solve.solve(solve.factor(gram_CC), d_CO).x_FN

    rows = jax.vmap(jax.vmap(one, (0, 0, None)))
    for name, d in differences(learned, found, opt, cfg).items():
        a[name], b[name] = found[name].u.swapaxes(-1, -2), rows(found[name].u, d, ridges[name])
    a, b = by_path(a, opt, cfg), by_path(b, opt, cfg)
    return {path: LowRank(a[path], b[path], opt.places.numbers) for path in opt.targets}


def gradient(
    learned: Learned, params: Params, lessons: Answers, opt: MalmenConfig, cfg: ModelConfig
) -> tuple[Tree, Metrics, Tree]:
    """A step's gradient by what is trained, its metrics, and the statistics, of lessons [N, 3, …]
    that are one edit.
    """

    def edit(some: Answers) -> Found:
        rows = jax.tree.map(lambda x: x[:, EDIT], some)
        return factors(params, (inner.stem(params, rows, cfg, opt.places.start), rows), opt, cfg)

    found = jax.lax.map(edit, inner.cut(lessons, opt.chunk))
    running, _ = jax.lax.scan(lambda now, f: (counted(now, f), None), learned.running, found)
    grad, metrics = around(Learned(learned.trained, running), params, found, lessons, opt, cfg)
    return grad, metrics, running


def around(
    now: Learned, params: Params, found: Found, lessons: Answers, opt: MalmenConfig,
    cfg: ModelConfig,
) -> tuple[Tree, Metrics]:  # fmt: skip
    """The same, of the factors [chunks, …] by shape."""
    shapes = jax.eval_shape(lambda: sums(now, jax.tree.map(lambda x: x[0], found), opt, cfg))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda x, f: (added(x, sums(now, f, opt, cfg)), None), zero, found)
    ridges = by_shape(now.trained["ridges"], opt, cfg)
    by = systems(total, ridges)
    shift = {name: solved(by[name], right) for name, (_, right) in total.items()}
    at = dense({name: x.x_FN for name, x in shift.items()}, opt, cfg)
    grad, metrics = outer(params, at, lessons, opt, cfg)
    pull = by_shape(grad, opt, cfg)
    back = {name: solved(by[name], (g, jnp.zeros_like(g))) for name, g in pull.items()}
    grads = inner.summed(lambda f: pulled(now, f, back, opt, cfg), found)
    slopes = {name: slope(by[name], x, pull[name], ridges[name]) for name, x in shift.items()}
    return grads | {"ridges": by_path(slopes, opt, cfg)}, metrics


def slope(by_G: Factored, shift: Solved, pull_GIO: Array, ridge_G: Array) -> Array:
    """-e^λ Σ M ⊙ S as that of ∂L/∂S and (UᵀU + e^λ I)⁻¹ S, where nothing cancels."""
    x_GIO = solved(by_G, (shift.x_FN, shift.low_FN)).x_FN
    return -jnp.exp(ridge_G) * (pull_GIO * x_GIO).sum((1, 2))


def pulled(
    learned: Learned, found: Found, back: Mapping[str, Solved], opt: MalmenConfig, cfg: ModelConfig
) -> Tree:
    """What ∂L/∂D = U M is as a gradient by what D was made with."""
    each = lambda u_GMI, m: jax.lax.map(lambda x: solve.times(*x), (u_GMI, m))
    wanted = {name: each(flat(f.u), back[name]) for name, f in found.items()}

    def pairing(trained: Tree) -> Array:
        d = differences(Learned(trained, learned.running), found, opt, cfg)
        return jnp.stack([(wanted[name] * flat(x)).sum() for name, x in d.items()]).sum()

    return jax.grad(pairing)(learned.trained)


def outer(
    params: Params, deltas: Deltas, lessons: Answers, opt: MalmenConfig, cfg: ModelConfig
) -> tuple[dict[str, Array], Metrics]:
    """The gradient of the objective by the change [n, I, O], and its parts."""
    goal, start = opt.objective, opt.places.start
    new_total, kept_total = looked_at(lessons, goal)

    def loss(w: dict[str, Array], some: Answers) -> tuple[Array, Metrics]:
        now: Deltas = {path: Dense(w[path], d.layers) for path, d in deltas.items()}
        parts = learner.parts_of(params, some, cfg, start)
        said = parts[SAID if goal.outer == "said" else EDIT]
        found = learner.outcome(params, now, said, parts[KEPT], cfg, start, goal.where)
        new, kept = looked_at(some, goal)
        share = {"edit_loss": new / new_total, "success": jnp.float32(len(some) / len(lessons))}
        share |= dict.fromkeys(("local_kl", "locality"), kept / kept_total)
        found = {name: x * share[name] for name, x in found.items()}
        one = goal.edit * found["edit_loss"] + goal.local * found["local_kl"]
        return one, found | {"loss": one}

    at, chunks = {path: d.w for path, d in deltas.items()}, inner.cut(lessons, opt.chunk)
    return inner.summed(lambda some: jax.grad(loss, has_aux=True)(at, some), chunks)


def looked_at(lessons: Answers, goal: ObjectiveConfig) -> tuple[Array, Array]:
    """How many tokens the means of the objective are over."""
    new = lessons.mask_BU[:, SAID if goal.outer == "said" else EDIT]
    kept = lessons.pos_BT[:, KEPT] >= 0 if goal.where == "text" else lessons.mask_BU[:, KEPT]
    count = lambda x: jnp.maximum(x.sum(dtype=jnp.float32), 1)
    return count(new), count(kept)


LEARNER = Learner(first, change, gradient)
