"""MEND (Mitchell et al., 2022): a small network turns the gradient of a fact into an edit.

The gradient of a matrix is a sum over tokens of u vᵀ. A network that all matrices of a shape share
maps each pair of factors to another pair (eqs. 3 and 5), so that an edit has as many ranks as its
texts have tokens:

    z = [norm(u); norm(v)]
    z ← z + relu(s ⊙ (z Vᵀ Uᵀ + b) + t)        for every layer of the network; s, t are a matrix's
    ΔW = α Σ ũ ṽᵀ                              α is a matrix's, learned as well

`norm` subtracts a running mean and divides by a running deviation, of all tokens whose gradient is
not zero. U is zero and V random at the start: the first edit is the normed gradient. The sign is
the authors': α ΔW is added.

Shapes as in edit.inner; G matrices that share a shape, M tokens of all rows, W = I + O, R rank.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, LowRank, Params
from jaxedit.edit import descent, inner
from jaxedit.edit.editor import Editor, RowsConfig
from jaxedit.edit.inner import Factors, Places
from jaxedit.edit.learner import (
    PAPER,
    Deltas,
    Learned,
    Learner,
    ObjectiveConfig,
    Part,
    Tree,
    editor,
)
from jaxedit.models.config import ModelConfig
from jaxedit.models.sites import matrices

TINY = 1e-7  # added to deviations


@dataclasses.dataclass(frozen=True)
class MendConfig:
    """In brackets the names of the authors' hyper-parameters."""

    layers: tuple[int, ...]  # [inner_params, with targets]
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")
    depth: int = 2  # layers of the network [n_hidden + 1]
    rank: int = 1920  # of its layers; at most their width [rank]
    norm: bool = True  # [norm]
    step: float = 1e-4  # α at the start [edit_lr]
    objective: ObjectiveConfig = PAPER
    rows: RowsConfig = descent.ROWS
    trained: str = ""  # the folder that training has made

    def __post_init__(self) -> None:
        if self.depth < 1 or self.rank < 1:
            raise ValueError(f"{self}: depth and rank are positive")

    @property
    def places(self) -> Places:
        return Places(self.layers, self.targets)


def mend(cfg: MendConfig) -> Editor:
    """One change for all requests, or one for each: low-rank in every target."""
    return editor(cfg, LEARNER)


def shapes(opt: Any, cfg: ModelConfig) -> dict[str, list[tuple[int, str]]]:
    """The matrices of every shape, "IxO", layer by layer: the order in which they are met."""
    out: dict[str, list[tuple[int, str]]] = {}
    for n, path in itertools.product(range(len(opt.layers)), opt.targets):
        I, O = matrices(cfg)[path]
        out.setdefault(f"{I}x{O}", []).append((n, path))
    return out


def by_shape(x: Mapping[str, Tree], opt: Any, cfg: ModelConfig) -> dict[str, Any]:
    """What is [n, …] of every target as [G, …] of every shape."""
    one = lambda n, path: jax.tree.map(lambda a: a[n], x[path])
    stack = lambda mats: jax.tree.map(lambda *a: jnp.stack(a), *(one(*mat) for mat in mats))
    return {name: stack(mats) for name, mats in shapes(opt, cfg).items()}


def by_path(x: Mapping[str, Array], opt: Any, cfg: ModelConfig) -> dict[str, Array]:
    """And back."""
    out: dict[str, list[Array]] = {path: [] for path in opt.targets}
    for name, mats in shapes(opt, cfg).items():
        for g, (_, path) in enumerate(mats):
            out[path].append(x[name][g])
    return {path: jnp.stack(some) for path, some in out.items()}


def first(key: Array, opt: Any, cfg: ModelConfig) -> tuple[Tree, Tree]:
    """Networks by shape and step sizes; means and deviations by shape."""
    nets: Tree = {}
    running: Tree = {}
    for i, (name, mats) in enumerate(shapes(opt, cfg).items()):
        I, O = map(int, name.split("x"))
        nets[name] = network(jax.random.fold_in(key, i), I + O, len(mats), opt.depth, opt.rank)
        running[name] = no_statistics(I, O)
    steps = {path: jnp.full(len(opt.layers), opt.step, jnp.float32) for path in opt.targets}
    return {"networks": nets, "steps": steps}, running


def network(key: Array, W: int, G: int, depth: int, rank: int) -> Tree:
    """The identity: U is zero."""
    R = min(rank, W)
    return {
        str(i): {
            "U": jnp.zeros((W, R)), "V": jax.random.normal(jax.random.fold_in(key, i), (R, W)),
            "b": jnp.zeros(W), "scale": jnp.ones((G, W)), "shift": jnp.zeros((G, W)),
        }
        for i in range(depth)
    }  # fmt: skip


def no_statistics(I: int, O: int) -> Tree:
    zero = {"u_mean": jnp.zeros(I), "u_sum": jnp.zeros(I)}
    zero |= {"v_mean": jnp.zeros(O), "v_sum": jnp.zeros(O)}
    return zero | {"count": jnp.int32(0)}


def count_in(running: Tree, u_MI: Array, v_MO: Array, used_M: Array) -> Tree:
    """The statistics with more tokens in them: Welford's, many at once."""
    out = {"count": running["count"] + used_M.sum(dtype=jnp.int32)}
    k, m = running["count"].astype(jnp.float32), used_M.sum(dtype=jnp.float32)
    share = m / jnp.maximum(k + m, 1)
    for name, x in (("u", u_MI), ("v", v_MO)):
        w_M1 = used_M[:, None].astype(jnp.float32)
        here = (x * w_M1).sum(0) / jnp.maximum(m, 1)
        off = here - running[f"{name}_mean"]
        square = (jnp.square(x - here) * w_M1).sum(0)
        out[f"{name}_mean"] = running[f"{name}_mean"] + off * share
        out[f"{name}_sum"] = running[f"{name}_sum"] + square + jnp.square(off) * k * share
    return out


def normed(running: Tree, name: str, x: Array) -> Array:
    count = jnp.maximum(running["count"] - 1, 1).astype(jnp.float32)
    return (x - running[f"{name}_mean"]) / (jnp.sqrt(running[f"{name}_sum"] / count) + TINY)


def through(
    net: Tree, z_MW: Array, scale: Sequence[Array], shift: Sequence[Array], after: bool = False
) -> Array:
    """The network, with one matrix's scales and shifts, one for each layer; `after`: they are taken
    after the relu, as in MALMEN.
    """
    for i, (s_W, t_W) in enumerate(zip(scale, shift, strict=True)):
        p = net[str(i)]
        h_MW = (z_MW @ p["V"].T) @ p["U"].T + p["b"]
        z_MW = z_MW + (s_W * positive(h_MW) + t_W if after else positive(s_W * h_MW + t_W))
    return z_MW


def positive(x: Array) -> Array:
    """relu, but with slope 1 at zero, as PyTorch's clamp: all of a new network is exactly there."""
    return jnp.where(x >= 0, x, 0)


def transform(
    net: Tree, running: Tree, u_GMI: Array, v_GMO: Array, used_GM: Array, opt: Any, train: bool
) -> tuple[Array, Array, Tree]:
    """The factors of matrices that share a shape, as the network makes them of theirs.

    In training the statistics of every matrix's tokens are counted in before it is normed, matrix
    after matrix, as the authors' code does.
    """
    depth = len(net)
    layers = lambda name: tuple(net[str(i)][name] for i in range(depth))

    def one(running: Tree, xs: tuple) -> tuple[Tree, tuple[Array, Array]]:
        u_MI, v_MO, used_M, scale, shift = xs
        if train:
            running = count_in(running, u_MI, v_MO, used_M)
        a_MI, b_MO = u_MI, v_MO
        if opt.norm:
            a_MI, b_MO = normed(running, "u", u_MI), normed(running, "v", v_MO)
        z_MW = through(net, jnp.concatenate([a_MI, b_MO], -1), scale, shift)
        z_MW = jnp.where(used_M[:, None], z_MW, 0)
        return running, (z_MW[:, : u_MI.shape[-1]], z_MW[:, u_MI.shape[-1] :])

    xs = (u_GMI, v_GMO, used_GM, layers("scale"), layers("shift"))
    running, (u_GMI, v_GMO) = jax.lax.scan(one, running, xs)
    return u_GMI, v_GMO, running


def change(
    learned: Learned,
    params: Params,
    parts: Sequence[Part],
    opt: MendConfig,
    cfg: ModelConfig,
    *,
    apart: bool,
    train: bool,
    deltas: Mapping[str, Any] | None = None,
) -> tuple[Deltas, Tree]:
    """What the networks make of the gradient of the parts' answers."""
    found, running = [], learned.running
    for f in shares(params, parts, opt, cfg, apart, deltas):
        f, running = edited(learned.trained, running, f, opt, cfg, train)
        found.append(f)
    return {path: to_delta([f[path] for f in found], opt, apart) for path in opt.targets}, running


def shares(
    params: Params,
    parts: Sequence[Part],
    opt: Any,
    cfg: ModelConfig,
    apart: bool,
    deltas: Mapping[str, Any] | None = None,
    through: bool = False,
) -> Iterator[dict[str, Factors]]:
    """Every part's factors of the gradient of one loss: the mean over all tokens of all parts, or
    each row's own. through: gradients go through them.
    """
    stop = (lambda f: f) if through else jax.lax.stop_gradient
    count = sum(inner.tokens(rows).sum() for _, rows in parts)
    for x_BTD, rows in parts:
        f, _ = inner.factors(params, x_BTD, rows, cfg, opt.places, apart=apart, deltas=deltas)
        share = 1.0 if apart else inner.tokens(rows).sum() / jnp.maximum(count, 1)
        yield stop({path: Factors(u, v * share) for path, (u, v) in f.items()})


def edited(
    trained: Tree, running: Tree, f: dict[str, Factors], opt: Any, cfg: ModelConfig, train: bool
) -> tuple[dict[str, Factors], Tree]:
    """All matrices' factors through the network of their shape, times their step size."""
    out: dict[str, list[Any]] = {path: [None] * len(opt.layers) for path in opt.targets}
    now = dict(running)
    for name, mats in shapes(opt, cfg).items():
        pile = lambda xs: jnp.stack(xs).reshape(len(xs), -1, xs[0].shape[-1])
        u_GMI, v_GMO = (pile([f[path][side][n] for n, path in mats]) for side in (0, 1))
        used_GM = jnp.stack([inner.used(f[path])[n].reshape(-1) for n, path in mats])
        u_GMI, v_GMO, now[name] = transform(
            trained["networks"][name], now[name], u_GMI, v_GMO, used_GM, opt, train
        )
        for g, (n, path) in enumerate(mats):
            u, v = f[path].u[n], f[path].v[n]
            step = trained["steps"][path][n]
            out[path][n] = (u_GMI[g].reshape(u.shape), step * v_GMO[g].reshape(v.shape))
    stacked = {p: [jnp.stack(z) for z in zip(*pairs, strict=True)] for p, pairs in out.items()}
    return {path: Factors(*pair) for path, pair in stacked.items()}, now


def to_delta(parts: Sequence[Factors], opt: Any, apart: bool) -> LowRank:
    """A rank for every token: one change for each row, or of all rows of all parts."""
    if apart:
        (f,) = parts
        return LowRank(f.u.swapaxes(-1, -2), f.v, opt.places.numbers)
    flat = lambda x: x.reshape(len(x), -1, x.shape[-1])
    u_nMI, v_nMO = (jnp.concatenate([flat(f[side]) for f in parts], 1) for side in (0, 1))
    return LowRank(u_nMI.swapaxes(-1, -2), v_nMO, opt.places.numbers)


LEARNER = Learner(first, change)
