"""Gradient descent on what is added to a model, until it says the targets.

Whatever is trained (a matrix, low-rank factors) is a tree of float32 arrays [n, G, …]: n layers,
and G = N where every request has its own ("apart"), G = 1 where all requests share it. Requests
that are trained apart have each their own Adam, stop and failure. A shared change takes, at every
step, the gradient of the mean loss of all requests in all batches.

Shapes as in data.aligned; B = N C rows (there is no row about the subject).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit import delta
from jaxedit.base import Array, Delta, Params, Write
from jaxedit.data.aligned import Aligned
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.values import adam, target_loss
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.models.vocabulary import unembed
from jaxedit.sharding import constrain

# What each target token is predicted from: the tokens before it, or the prompt alone (a bag of
# tokens after the prompt: FT-L).
Objective = Literal["target", "prompt_last"]
# Rows end alike: the fewest shapes, and so the fewest batches that share a step.
ROWS = RowsConfig(about=None, token="last")
Tree = Any  # of arrays [n, G, …]
Info = dict[str, Array]
# (trained, alive_N, number of a batch) -> the loss of its requests, [N]. What is not alive must not
# reach a shared gradient, not even as NaN.
Loss = Callable[[Tree, Array, int], Array]
# (trained, gradient, memory, number of the update from 1) -> trained and memory as they go on
After = Callable[[Tree, Tree, Tree, Array], tuple[Tree, Tree]]


@struct.dataclass
class State:
    """Between two steps."""

    i: Array  # passes so far
    x: Tree
    moments: tuple[Tree, Tree]
    memory: Tree
    done_G: Array
    steps_G: Array  # updates so far
    loss_N: Array  # of x
    failed_N: Array


def descend(
    loss: Loss,
    batches: Sequence[Aligned],
    start: Tree,
    *,
    steps: int,
    lr: float,
    stop_loss: float,
    apart: bool,
    after: After | None = None,
    memory: Tree = (),
    penalty: Callable[[Tree], Array] | None = None,
) -> tuple[Tree, Info]:
    """What is trained, after up to `steps` updates of Adam from `start`, and how it went.

    after: what follows an update (a projection), with a memory of its own, [n, G, …] too. penalty:
    is added to the loss, [G].
    """
    sizes = tuple(len(batch.valid_N) for batch in batches)
    valid_N = jnp.concatenate([jnp.asarray(batch.valid_N) for batch in batches])

    def step(s: State) -> State:
        grad, loss_N = pull(loss, penalty, s.x, valid_N & (s.failed_N < 0), sizes, apart)
        done_G, failed_N, move_G = judge(s, grad, loss_N, valid_N, stop_loss, apart)
        done_G |= s.steps_G >= steps  # the last pass is for the loss of what was found
        move_G &= ~done_G
        t = s.steps_G.max() + 1
        new, moments = adam(grad, s.x, s.moments, t, lr)
        new, memory = (new, s.memory) if after is None else after(new, grad, s.memory, t)
        keep, old = partial(choose, move_G), (s.x, s.moments, s.memory)
        x, moments, memory = jax.tree.map(keep, (new, moments, memory), old)
        steps_G = s.steps_G + move_G.astype(jnp.int32)
        return State(s.i + 1, x, moments, memory, done_G, steps_G, loss_N, failed_N)

    zero = jax.tree.map(jnp.zeros_like, start)
    N, idle_G = len(valid_N), ~any_of(valid_N, apart)
    s = State(
        jnp.int32(0),
        start,
        (zero, zero),
        memory,
        done_G=idle_G,
        steps_G=jnp.zeros(len(idle_G), jnp.int32),
        loss_N=jnp.zeros(N),
        failed_N=jnp.full(N, -1, jnp.int32),
    )
    s = jax.lax.while_loop(lambda s: ~s.done_G.all(), step, s)
    info = {"loss": jnp.where(s.failed_N < 0, s.loss_N, jnp.nan), "failed": s.failed_N}
    return s.x, info | {"steps": jnp.broadcast_to(s.steps_G, N)}


def pull(
    loss: Loss,
    penalty: Callable[[Tree], Array] | None,
    x: Tree,
    alive_N: Array,
    sizes: tuple[int, ...],
    apart: bool,
) -> tuple[Tree, Array]:
    """The gradient of the loss of those who share a change, and every request's loss, [N]."""

    def measure(x: Tree, alive_n: Array, i: int) -> tuple[Array, Array]:
        loss_n = loss(x, alive_n, i)
        return jnp.where(alive_n, loss_n, 0).sum(), loss_n

    grad, losses = jax.tree.map(jnp.zeros_like, x), []
    # batch by batch: the activations of one are gone before those of the next come
    for i, alive_n in enumerate(split(alive_N, sizes)):
        more, loss_n = jax.grad(measure, has_aux=True)(x, alive_n, i)
        grad = jax.tree.map(jnp.add, grad, more)
        losses.append(loss_n)
    if not apart:
        count = jnp.maximum(alive_N.sum(), 1).astype(jnp.float32)
        grad = jax.tree.map(lambda g: g / count, grad)
    if penalty is not None:
        more = jax.grad(lambda x: penalty(x).sum())(x)
        grad = jax.tree.map(jnp.add, grad, more)
    return grad, jnp.concatenate(losses)


def judge(
    s: State, grad: Tree, loss_N: Array, valid_N: Array, stop_loss: float, apart: bool
) -> tuple[Array, Array, Array]:
    """Who is done [G], who has failed and when [N], and what is updated [G]."""
    alive_N = valid_N & (s.failed_N < 0)
    bad_N = alive_N & ~jnp.isfinite(loss_N)
    # nobody can be named for a shared gradient that is not finite though every loss is
    bad_N |= alive_N & ~finite(grad) & ~any_of(bad_N, apart)
    bad_N &= ~s.done_G
    failed_N = jnp.where(bad_N, s.i, s.failed_N)
    alive_N &= ~bad_N
    loss_G = loss_N
    if not apart:
        count = jnp.maximum(alive_N.sum(), 1).astype(jnp.float32)
        loss_G = jnp.where(alive_N, loss_N, 0).sum(keepdims=True) / count
    done_G = s.done_G | ~any_of(alive_N, apart) | (loss_G < stop_loss)
    # where one of many has failed, the others go on at the next step, without it
    return done_G, failed_N, ~done_G & ~any_of(bad_N, apart)


def any_of(z_N: Array, apart: bool) -> Array:
    """Is it so for any of those who share a change, [G]."""
    return z_N if apart else z_N.any(keepdims=True)


def split(z_N: Array, sizes: tuple[int, ...]) -> list[Array]:
    """By batch."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(z_N, ends)


def finite(grad: Tree) -> Array:
    """Is every number of a gradient finite, [G]."""
    whole = [
        jnp.isfinite(g).all([i for i in range(g.ndim) if i != 1]) for g in jax.tree.leaves(grad)
    ]
    return jnp.stack(whole).all(0)


def choose(move_G: Array, new: Array, old: Array) -> Array:
    return jnp.where(move_G.reshape(1, -1, *[1] * (new.ndim - 2)), new, old)


def share(x: Tree, apart: bool) -> Tree:
    """What is trained as the arrays of a delta: one per request, or without that axis."""
    return x if apart else jax.tree.map(lambda z: z[:, 0], x)


def join(parts: Sequence[tuple[Tree, Info]]) -> tuple[Tree, Info]:
    """What was trained apart in several batches, in their order."""
    xs, infos = zip(*parts, strict=True)
    together = lambda axis, trees: jax.tree.map(lambda *z: jnp.concatenate(z, axis), *trees)
    return parts[0] if len(parts) == 1 else (together(1, xs), together(0, infos))


def sized(deltas: dict[str, Any], info: Info) -> Info:
    """With the Frobenius norm of each request's change, over all its matrices."""
    squares = lambda d: [jnp.square(size).sum(0) for size in delta.norm(d).values()]
    total = lambda d: jnp.stack(squares(d)).sum(0)
    N = len(info["loss"])
    if any(isinstance(d, tuple) for d in deltas.values()):  # their sums are whole matrices
        square = jnp.stack([total(delta.row(deltas, i)) for i in range(N)])
    else:
        square = total(deltas)
    return info | {"norm": jnp.broadcast_to(jnp.sqrt(square), N)}


def flat(batch: Aligned) -> tuple[Array, Array]:
    """Tokens and positions of the rows, [B, S] each."""
    S, C = batch.tokens_NRS.shape[-1], batch.contexts
    lay = lambda x_NRS: constrain(jnp.asarray(x_NRS)[:, :C].reshape(-1, S), "batch", None)
    return lay(batch.tokens_NRS), lay(batch.pos_NRS)


def columns(batch: Aligned, objective: Objective) -> Array:
    """The columns of the rows that predict the target's tokens, [B, U], or [B, 1]."""
    (N, U), C, P = batch.target_NU.shape, batch.contexts, batch.prefix
    T = batch.tokens_NRS.shape[-1] - P
    at_NCU = jnp.asarray(batch.at_NQ)[:, : C * U].reshape(N, C, U)
    at_BU = (at_NCU - jnp.arange(C, dtype=jnp.int32)[:, None] * T + P).reshape(N * C, U)
    return at_BU if objective == "target" else at_BU[:, :1]


def likelihood(logits_BPV: Array, batch: Aligned) -> Array:
    """The loss of logits at `columns`: minus the mean log probability of target tokens, [N]."""
    (N, U), C, V = batch.target_NU.shape, batch.contexts, logits_BPV.shape[-1]
    logp_NCPV = jax.nn.log_softmax(logits_BPV).reshape(N, C, -1, V)
    logp_NCUV = jnp.broadcast_to(logp_NCPV, (N, C, U, V))
    return target_loss(logp_NCUV.reshape(N, C * U, V), batch)


def read_out(
    params: Params, x_BSD: Array, batch: Aligned, cfg: ModelConfig, objective: Objective
) -> Array:
    """The loss of a residual stream, [N]."""
    x_BPD = jnp.take_along_axis(x_BSD, columns(batch, objective)[..., None], 1)
    return likelihood(unembed(params, x_BPD, cfg), batch)


def loss_with(
    deltas: dict[str, Delta], params: Params, batch: Aligned, cfg: ModelConfig, alive_N: Array
) -> Array:
    """The loss of the model with these deltas, shared or one per request, [N]."""
    C = batch.contexts
    tokens_BS, pos_BS = flat(batch)
    dead_B1 = jnp.repeat(~alive_N, C)[:, None]
    out = forward(
        params,
        tokens_BS,
        cfg,
        pos_BT=pos_BS,
        logits_at=columns(batch, "target"),
        deltas=deltas,
        # in the place of what is not a number: zero times that would still be none
        writes={"embed": Write(dead_B1, jnp.zeros((1, 1, cfg.embed)))},
        remat=True,
    )
    return likelihood(out.logits, batch)
