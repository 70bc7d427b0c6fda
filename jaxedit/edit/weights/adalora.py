"""AdaLoRA as an editor (Zhang et al., 2023): low rank, and more of it where it matters.

    W + alpha / r · A diag(E) B,  A and B random, E zero at the start, r = init_rank

A triplet is a column of A, an entry of E and a row of B. Its importance is sensitivity times
uncertainty (eq. 8 to 12): of every number p with gradient g, averages over steps

    I = |p g|,  S <- β1 S + (1 - β1) I,  U <- β2 U + (1 - β2) |I - S|,  s = S U

and of a triplet s(E) + mean s(A) + mean s(B). While the budget falls, the E of all triplets but the
most important ones, in all matrices together, is set to zero after every update; they may come
back until the budget is at its target. A and B are kept near orthogonal by a penalty.

Shapes as in edit.weights.lora; M all triplets of all matrices.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Delta, LowRank, Params
from jaxedit.data.aligned import Aligned
from jaxedit.edit import descent
from jaxedit.edit.descent import Info, Tree
from jaxedit.edit.editor import Editor, RowsConfig
from jaxedit.edit.values import length
from jaxedit.edit.weights.lora import editor, numbers
from jaxedit.models.config import ModelConfig
from jaxedit.models.sites import matrices

STD = 0.02  # of A and B at the start
TINY = 1e-5  # PEFT divides by init_rank + this


@dataclasses.dataclass(frozen=True)
class AdaLoraConfig:
    """In brackets PEFT's names, whose defaults these are where they exist."""

    init_rank: int = 12  # of every matrix [init_r]
    target_rank: int = 8  # at the end, on average over the matrices; init_rank: none is dropped
    alpha: float = 32.0  # [lora_alpha]
    targets: tuple[str, ...] = ("attn/q", "attn/v")  # names of matrices, as in deltas
    layers: tuple[int, ...] = ()  # (): all
    # All are run: a search that stopped early would be above its budget [total_step].
    steps: int = 70
    lr: float = 5e-3  # of Adam
    warm: int = 0  # steps before the budget falls [tinit]
    settle: int = 0  # steps after it has [tfinal]
    every: int = 1  # steps between two choices of triplets [deltaT]
    beta1: float = 0.85  # of the average importance
    beta2: float = 0.85  # of its uncertainty
    orthogonal: float = 0.5  # weight of the penalty [orth_reg_weight]
    rows: RowsConfig = descent.ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.target_rank <= self.init_rank:
            raise ValueError(f"target_rank {self.target_rank}: 1 to init_rank ({self.init_rank})")
        if min(self.steps, self.every) < 1 or self.lr <= 0:
            raise ValueError(f"{self}: steps, every and lr are positive")
        if min(self.warm, self.settle) < 0 or self.warm + self.settle >= self.steps:
            raise ValueError(
                f"warm {self.warm} and settle {self.settle}: together fewer than the "
                f"{self.steps} steps"
            )


def adalora(cfg: AdaLoraConfig) -> Editor:
    """One change for all requests, or one for each with a budget of its own."""

    return editor(cfg, _tune, to_deltas)


def to_deltas(x: Tree, opt: AdaLoraConfig, apart: bool) -> dict[str, Delta]:
    """What is trained as deltas: one per request, or shared. A dropped triplet is zero."""
    x, scale = descent.share(x, apart), opt.alpha / (opt.init_rank + TINY)
    return {
        path: LowRank(f["a"] * f["e"][..., None, :], f["b"] * scale, numbers(opt.layers))
        for path, f in x.items()
    }


def first_factors(key: Array, cfg: ModelConfig, opt: AdaLoraConfig, G: int) -> Tree:
    """The same for every request."""
    n, r, x = len(opt.layers) or cfg.layers, opt.init_rank, {}
    for i, path in enumerate(opt.targets):
        I, O = matrices(cfg)[path]
        one, other = jax.random.split(jax.random.fold_in(key, i))
        a = STD * jax.random.normal(one, (n, 1, I, r))
        b = STD * jax.random.normal(other, (n, 1, r, O))
        wide = lambda z: jnp.broadcast_to(z, (z.shape[0], G, *z.shape[2:]))
        x[path] = {"a": wide(a), "e": jnp.zeros((n, G, r)), "b": wide(b)}
    return x


@partial(jax.jit, static_argnames=("cfg", "opt", "apart"))
def _tune(
    params: Params,
    batches: tuple[Aligned, ...],
    key: Array,
    cfg: ModelConfig,
    opt: AdaLoraConfig,
    apart: bool,
) -> tuple[Tree, Info]:
    def loss(x: Tree, alive_N: Array, i: int) -> Array:
        return descent.loss_with(to_deltas(x, opt, apart), params, batches[i], cfg, alive_N)

    start = first_factors(key, cfg, opt, len(batches[0].valid_N) if apart else 1)
    zero = jax.tree.map(jnp.zeros_like, start)
    kept = {path: jnp.ones(f["e"].shape, bool) for path, f in start.items()}
    return descent.descend(
        loss,
        batches,
        start,
        steps=opt.steps,
        lr=opt.lr,
        stop_loss=0.0,
        apart=apart,
        after=partial(allocate, opt=opt),
        memory={"mean": zero, "doubt": zero, "kept": kept},
        penalty=lambda x: opt.orthogonal * skewness(x),
    )


def skewness(x: Tree) -> Array:
    """How far the factors are from orthogonal: the mean of |AᵀA - 1| and |B Bᵀ - 1|, [G]."""

    def one(gram_nGrr: Array) -> Array:
        off = gram_nGrr - jnp.eye(gram_nGrr.shape[-1])
        return length(off.reshape(*off.shape[:2], -1))

    factors = [f["a"].swapaxes(-1, -2) for f in x.values()] + [f["b"] for f in x.values()]
    return jnp.concatenate([one(m @ m.swapaxes(-1, -2)) for m in factors]).mean(0)


def budgets(opt: AdaLoraConfig, places: int) -> list[int]:
    """How many triplets of `places` matrices may stay after each step."""
    init, target = opt.init_rank * places, opt.target_rank * places
    left = lambda t: 1 - (t - opt.warm) / (opt.steps - opt.settle - opt.warm)
    cubic = lambda t: int(target + (init - target) * left(t) ** 3)
    last = opt.steps - opt.settle
    ts = range(1, opt.steps + 1)
    return [init if t <= opt.warm else target if t >= last else cubic(t) for t in ts]


def allocate(x: Tree, grad: Tree, memory: Tree, t: Array, opt: AdaLoraConfig) -> tuple[Tree, Tree]:
    """Sets E of what is not important enough to zero, after update number t.

    As PEFT: the new numbers with the gradients that led to them.
    """
    last = opt.steps - opt.settle
    now = jax.tree.map(lambda p, g: jnp.abs(p * g), x, grad)
    slide = lambda beta: lambda old, new: jnp.where(t < last, beta * old + (1 - beta) * new, old)
    mean = jax.tree.map(slide(opt.beta1), memory["mean"], now)
    gap = jax.tree.map(lambda new, m: jnp.abs(new - m), now, mean)
    doubt = jax.tree.map(slide(opt.beta2), memory["doubt"], gap)
    s = jax.tree.map(jnp.multiply, mean, doubt)
    score = {path: f["e"] + f["a"].mean(-2) + f["b"].mean(-1) for path, f in s.items()}

    all_GM = jnp.concatenate([z.swapaxes(0, 1).reshape(z.shape[1], -1) for z in score.values()], 1)
    M = all_GM.shape[1]
    drop = M - jnp.array(budgets(opt, M // opt.init_rank))[t - 1]
    limit_G = jnp.sort(all_GM, axis=1)[:, jnp.maximum(drop - 1, 0)]
    limit_G = jnp.where(drop > 0, limit_G, -1)
    due = ((t > opt.warm) & (t < last) & (t % opt.every == 0)) | (t == last)
    pick = lambda old, z: jnp.where(due, z > limit_G[:, None], old)  # ties go, as in PEFT
    kept = {path: pick(memory["kept"][path], z) for path, z in score.items()}
    cut = lambda path, e: jnp.where((due | (t > last)) & ~kept[path], 0, e)
    x = {path: f | {"e": cut(path, f["e"])} for path, f in x.items()}
    return x, {"mean": mean, "doubt": doubt, "kept": kept}
