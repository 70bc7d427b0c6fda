"""The value search: the vector that, added at one token of one layer, makes a target likely.

Only a corner of the model moves (edit.corner). All requests are searched at once, each with its own
stop. The loss of a request (ROME eq. 4, as the authors' code computes it):

    mean over contexts of  - mean over target tokens of log p(target)
    + kl · KL(p now || p before) of what the row about the subject says at the subject
    + weight_decay · |delta| / |h0|² (+ `extra`, a method's own term, which has no say in the stop)

Shapes as in data.aligned; D embed, F mlp, V vocab.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.data.aligned import Aligned
from jaxedit.edit.corner import Deltas, corner, freeze
from jaxedit.models.config import ModelConfig
from jaxedit.models.vocabulary import unembed
from jaxedit.sharding import on_mesh_of

SITES = ("mlp_down", "resid_post", "attn_o")
# (params, batch, model's config, layer) -> (delta -> [N]); static, so it compares by value
Extra = Callable[[Params, Aligned, ModelConfig, int], Callable[[Deltas], Array]]


@dataclasses.dataclass(frozen=True)
class ValueConfig:
    """The search; in brackets the names of the authors' hyper-parameters."""

    steps: int = 20  # forward passes, so at most steps - 1 updates [v_num_grad_steps]
    lr: float = 0.5  # of Adam [v_lr]
    weight_decay: float = 0.5  # [v_weight_decay]
    clamp: float = 4.0  # |delta| <= clamp · |h0| [clamp_norm_factor]
    kl: float = 0.0625  # [kl_factor]
    stop_loss: float = 0.05  # a request whose loss is below is done
    # PMET: once every target token is the first choice, the target's loss counts a tenth, and a
    # request is done when its KL term is at most this. None: no such rule.
    stop_kl: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or self.clamp <= 0:
            raise ValueError(f"{self}: steps, lr and clamp are positive")


@struct.dataclass
class Values:
    """What the search found, and what an update needs: h0 + delta is ROME's v*, MEMIT's z."""

    h0: Deltas  # at the bare prompt, by site
    delta: Deltas
    keys_NCF: Array  # input of mlp/down at the token, in every context
    out_NCD: Array  # its output
    loss_N: Array  # at delta
    steps_N: Array  # forward passes used
    failed_N: Array  # the step at which a loss or gradient was not finite, or -1
    trace: dict[str, Array]  # "loss" [N, steps], NaN where not run; "delta" [N, steps, D] if asked

    @property
    def found(self) -> Deltas:
        """h0 + delta, by site."""
        return {site: self.h0[site] + self.delta[site] for site in self.h0}


def search(
    params: Params,
    batches: Sequence[Aligned],
    cfg: ModelConfig,
    layer: int,
    sites: tuple[str, ...],
    opt: ValueConfig,
    *,
    extra: Extra | None = None,
    trace: bool = False,
) -> Values:
    """The values of all requests of all batches, in their order. `sites`: what is added to,
    ("mlp_down",) for ROME, ("resid_post",) for MEMIT, ("attn_o", "mlp_down") for PMET.
    """
    if not 0 <= layer < cfg.layers:
        raise ValueError(f"layer {layer}: the model has layers 0 to {cfg.layers - 1}")
    if unknown := set(sites) - set(SITES):
        raise ValueError(f"sites {unknown.pop()!r}: of {', '.join(SITES)}")
    with on_mesh_of(params):
        parts = [_search(params, b, cfg, layer, sites, opt, extra, trace) for b in batches]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts) if len(parts) > 1 else parts[0]


@partial(jax.jit, static_argnames=("cfg", "layer", "sites", "opt", "extra", "trace"))
def _search(
    params: Params,
    batch: Aligned,
    cfg: ModelConfig,
    layer: int,
    sites: tuple[str, ...],
    opt: ValueConfig,
    extra: Extra | None,
    trace: bool,
) -> Values:
    N, C = batch.target_NU.shape[0], batch.contexts
    cfg = cfg.replace(attention="einsum")  # tails are short
    frozen = freeze(params, batch, cfg, layer)
    h0 = {site: frozen.seen[site][:, 0].astype(jnp.float32) for site in sites}
    limit = {site: opt.clamp * length(h) for site, h in h0.items()}
    more = None if extra is None else extra(params, batch, cfg, layer)

    def objective(
        delta: Deltas, base_NV: Array, first: Array, easy_N: Array
    ) -> tuple[Array, tuple]:
        logits_NQV = corner(params, batch, cfg, layer, frozen, delta)
        logp_NQV = jax.nn.log_softmax(logits_NQV)
        loss_N, kl_N = target_loss(logp_NQV, batch), jnp.zeros(N)
        if opt.stop_kl is not None:
            loss_N = jnp.where(easy_N, 0.1, 1.0) * loss_N
        if batch.has_about:
            now_NV = logp_NQV[:, -1]
            base_NV = jnp.where(first, jax.lax.stop_gradient(now_NV), base_NV)
            kl_N = opt.kl * (jnp.exp(now_NV) * (now_NV - base_NV)).sum(-1)
        loss_N += kl_N
        for site in sites:
            square_N = jnp.square(h0[site]).sum(-1)
            loss_N += opt.weight_decay * length(delta[site]) / square_N
        easy_N = first_choice(logp_NQV, batch) if opt.stop_kl is not None else easy_N
        total_N = loss_N if more is None else loss_N + more(delta)
        return total_N.sum(), (loss_N, base_NV, easy_N, kl_N)

    def note(seen: dict, i: Array, loss_N: Array, delta: Deltas) -> dict:
        out = {"loss": seen["loss"].at[:, i].set(loss_N)}
        return out | {site: seen[site].at[:, i].set(d) for site, d in delta.items() if trace}

    def step(state: tuple) -> tuple:
        i, delta, moments, base_NV, easy_N, done_N, steps_N, failed_N, seen = state
        grad, (loss_N, base_NV, easy_N, kl_N) = jax.grad(objective, has_aux=True)(
            delta, base_NV, i == 0, easy_N
        )
        seen = note(seen, i, jnp.where(done_N, jnp.nan, loss_N), delta)
        sound_N = jnp.isfinite(loss_N) & finite(grad)
        failed_N = jnp.where(~done_N & ~sound_N, i, failed_N)
        done_N = done_N | ~sound_N | (loss_N < opt.stop_loss)  # before the update, as the authors
        if opt.stop_kl is not None:
            done_N = done_N | (easy_N & (kl_N <= opt.stop_kl))
        new, moments = adam(grad, delta, moments, i + 1, opt.lr)
        # a length that overflows would be clamped to zero
        sound_N = finite({s: length(d)[:, None] for s, d in new.items()})
        failed_N = jnp.where(~done_N & ~sound_N, i, failed_N)
        done_N = done_N | ~sound_N
        steps_N = steps_N + (~done_N).astype(jnp.int32)
        keep = lambda old, new: jnp.where(done_N[:, None], old, new)
        delta = {s: keep(delta[s], clamped(new[s], limit[s])) for s in sites}
        return i + 1, delta, moments, base_NV, easy_N, done_N, steps_N, failed_N, seen

    delta = jax.tree.map(jnp.zeros_like, h0)
    width = jax.eval_shape(partial(unembed, params, cfg=cfg), frozen.said.x_MTD).shape[-1]
    seen = {"loss": jnp.full((N, opt.steps), jnp.nan)}
    seen |= {s: jnp.full((N, opt.steps, h.shape[-1]), jnp.nan) for s, h in h0.items() if trace}
    never, none = jnp.zeros(N, bool), jnp.full(N, -1, jnp.int32)
    base_NV, steps_N = jnp.zeros((N, width)), jnp.ones(N, jnp.int32)
    state = (jnp.int32(0), delta, (delta, delta), base_NV, never, never, steps_N, none, seen)
    go_on = lambda s: (s[0] < opt.steps - 1) & ~s[5].all()
    i, delta, _, base_NV, easy_N, done_N, steps_N, failed_N, seen = jax.lax.while_loop(
        go_on, step, state
    )
    loss_N = objective(delta, base_NV, i == 0, easy_N)[1][0]
    seen = note(seen, i, jnp.where(done_N, jnp.nan, loss_N), delta)
    failed_N = jnp.where((failed_N < 0) & ~jnp.isfinite(loss_N), i, failed_N)
    keys_NCF = frozen.seen["mlp_key"][:, :C].astype(jnp.float32)
    out_NCD = frozen.seen["mlp_down"][:, :C].astype(jnp.float32)
    return Values(h0, delta, keys_NCF, out_NCD, loss_N, steps_N, failed_N, seen)


def target_loss(logp_NQV: Array, batch: Aligned) -> Array:
    """Minus the mean log probability of the target's tokens, over contexts too, [N]."""
    (N, U), C = batch.target_NU.shape, batch.contexts
    logp_NCUV = logp_NQV[:, : C * U].reshape(N, C, U, -1)
    said_NCU = jnp.take_along_axis(logp_NCUV, batch.target_NU[:, None, :, None], -1)[..., 0]
    return -(said_NCU.mean(1) * batch.mask_NU).sum(-1) / batch.mask_NU.sum(-1)


def first_choice(logp_NQV: Array, batch: Aligned) -> Array:
    """Is every target token the most likely one, in every context, [N]."""
    (N, U), C = batch.target_NU.shape, batch.contexts
    best_NCU = logp_NQV[:, : C * U].reshape(N, C, U, -1).argmax(-1)
    right_NCU = (best_NCU == batch.target_NU[:, None]) | (batch.mask_NU == 0)[:, None]
    return right_NCU.all((1, 2))


def length(x_ND: Array) -> Array:
    """Euclidean norm whose gradient at zero is zero, where that of jnp.linalg.norm is NaN."""
    square_N = jnp.square(x_ND).sum(-1)
    return jnp.where(square_N > 0, jnp.sqrt(jnp.where(square_N > 0, square_N, 1)), 0)


def clamped(delta_ND: Array, limit_N: Array) -> Array:
    """Back onto the ball of radius `limit`."""
    size_N = length(delta_ND)
    return delta_ND * jnp.where(size_N > limit_N, limit_N / size_N, 1)[:, None]


def finite(tree: Any) -> Array:
    """Is every number of each request finite, [N]."""
    return jnp.stack([jnp.isfinite(x).all(-1) for x in jax.tree.leaves(tree)]).all(0)


def adam(grad: Any, x: Any, moments: tuple, t: Array, lr: float) -> tuple[Any, tuple]:
    """One update of Adam. 1 - 0.999ᵗ by expm1: as optax writes it, float32 is off by 1e-5."""
    b1, b2, eps = 0.9, 0.999, 1e-8
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments[0], grad)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), moments[1], grad)
    fix = lambda x, b: x / -jnp.expm1(t.astype(jnp.float32) * math.log(b))
    new = lambda x, m, v: x - lr * fix(m, b1) / (jnp.sqrt(fix(v, b2)) + eps)
    return jax.tree.map(new, x, m, v), (m, v)
