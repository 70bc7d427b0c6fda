"""What every editor that is trained computes of a model: answers under a change of its upper
layers, and the factors of a gradient.

Layers below the first that is changed never move, so they run once for all rows and are not gone
back through (`stem`); everything else begins at that layer. The gradient of a matrix [I, O] is a
product of two factors, its inputs u and the gradients v of its outputs: u is a read, v the gradient
of a zero that is written to the output. No weight's gradient is ever formed (MEND, section 3.1).

Shapes as in data.answers; n layers, I and O a matrix [I, O], V vocab.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Params, Write
from jaxedit.data.answers import Answers
from jaxedit.models.config import ModelConfig
from jaxedit.models.layers import columns
from jaxedit.models.sites import check_names, matrices, sites
from jaxedit.models.transformer import run_blocks
from jaxedit.models.vocabulary import embed, unembed
from jaxedit.sharding import constrain


@dataclasses.dataclass(frozen=True)
class Places:
    """The matrices that are changed: each of `targets` in each of `layers`."""

    layers: tuple[int, ...]
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")

    def __post_init__(self) -> None:
        if not self.layers or not self.targets:
            raise ValueError(f"{self}: at least one layer and one target")
        if sorted(set(self.layers)) != list(self.layers):
            raise ValueError(f"layers {self.layers}: each once, in order")

    @property
    def start(self) -> int:
        return self.layers[0]

    def check(self, cfg: ModelConfig) -> None:
        """Raises where the model has no such matrices in its blocks, or no such layers."""
        inner = {path: size for path, size in matrices(cfg).items() if "/" in path}
        check_names("target", dict.fromkeys(self.targets), inner, cfg)
        if bad := [i for i in self.layers if not 0 <= i < cfg.layers]:
            raise ValueError(f"layer {bad[0]}: the model has layers 0 to {cfg.layers - 1}")

    @property
    def numbers(self) -> Array:
        return jnp.array(self.layers, jnp.int32)


class Factors(NamedTuple):
    """The gradient of a loss by one matrix in n layers is the sum over B and T of u vᵀ."""

    u: Array  # [n, B, T, I] float32
    v: Array  # [n, B, T, O]


def ends(path: str, cfg: ModelConfig) -> tuple[str, str]:
    """The sites of a matrix's input and output."""
    if path == "mlp/up":
        return "mlp_in", "mlp_up" if cfg.gated else "mlp_pre"
    return {
        "attn/q": ("attn_in", "attn_q"),
        "attn/k": ("attn_in", "attn_k"),
        "attn/v": ("attn_in", "attn_v"),
        "attn/o": ("attn_z", "attn_o"),
        "mlp/gate": ("mlp_in", "mlp_pre"),
        "mlp/down": ("mlp_key", "mlp_down"),
    }[path]


def stem(params: Params, rows: Answers, cfg: ModelConfig, start: int) -> Array:
    """The residual stream before layer `start`, [B, T, D]; no gradient goes through it."""
    tokens_BT, pos_BT = (constrain(jnp.asarray(x), "batch", None)
                         for x in (rows.tokens_BT, rows.pos_BT))  # fmt: skip
    x_BTD = embed(params, tokens_BT, cfg, pos_BT=pos_BT)
    if start:
        x_BTD, _, _ = run_blocks(params, x_BTD, cfg, pos_BT=pos_BT, stop=start)
    return jax.lax.stop_gradient(x_BTD)


def above(
    params: Params, x_BTD: Array, rows: Answers, cfg: ModelConfig, start: int, **more: Any
) -> tuple[Array, dict[str, Array]]:
    """The last residual stream from that before layer `start`, and what `more` (reads, writes,
    deltas) reads.
    """
    x_BTD, seen, _ = run_blocks(
        params, x_BTD, cfg, pos_BT=jnp.asarray(rows.pos_BT), start=start, remat=True, **more
    )
    return x_BTD, seen


def told(params: Params, x_BTD: Array, rows: Answers, cfg: ModelConfig) -> Array:
    """Log-probabilities in the place of the answers' tokens, [B, U, V]."""
    x_BUD = columns(x_BTD, jnp.asarray(rows.at_BU))
    return jax.nn.log_softmax(unembed(params, x_BUD, cfg))


def whole(rows: Answers) -> Answers:
    """The same rows, of which every token's successor is looked at (and none is a target)."""
    every_BT = jnp.broadcast_to(jnp.arange(rows.pos_BT.shape[1]), rows.pos_BT.shape)
    real_BT = jnp.asarray(rows.pos_BT) >= 0
    return Answers(rows.tokens_BT, rows.pos_BT, every_BT, jnp.zeros_like(every_BT), real_BT)


def nll(logp_BUV: Array, rows: Answers) -> Array:
    """Minus the log-probability of the answers' tokens, [B, U], zero beyond them."""
    picked_BU = jnp.take_along_axis(logp_BUV, jnp.asarray(rows.target_BU)[..., None], -1)[..., 0]
    return -jnp.where(rows.mask_BU, picked_BU, 0)


def mean(x_BU: Array, rows: Answers) -> Array:
    """Over the tokens of each row's answer, [B]."""
    return jnp.where(rows.mask_BU, x_BU, 0).sum(1) / jnp.maximum(tokens(rows), 1)


def mean_of_all(x_BU: Array, rows: Answers) -> Array:
    """Over all tokens of all answers."""
    return jnp.where(rows.mask_BU, x_BU, 0).sum() / jnp.maximum(tokens(rows).sum(), 1)


def tokens(rows: Answers) -> Array:
    """How many each answer has, [B]."""
    return jnp.asarray(rows.mask_BU).sum(1, dtype=jnp.float32)


def divergence(before_BUV: Array, after_BUV: Array) -> Array:
    """KL(before ‖ after) in the place of every answer's token, [B, U]."""
    return (jnp.exp(before_BUV) * (before_BUV - after_BUV)).sum(-1)


def right(logp_BUV: Array, rows: Answers) -> Array:
    """Is every token of the answer the first choice, [B]."""
    return ((logp_BUV.argmax(-1) == rows.target_BU) | ~jnp.asarray(rows.mask_BU)).all(1)


def factors(
    params: Params,
    x_BTD: Array,
    rows: Answers,
    cfg: ModelConfig,
    places: Places,
    *,
    apart: bool,
    deltas: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Factors], Array]:
    """The factors of the gradient of the answers' loss, by matrix, and that loss per row, [B].

    apart: the loss of each row is the mean over its tokens; otherwise the rows are one batch, whose
    loss is the mean over all of its tokens. deltas: changes that the model has already.
    """
    start, (B, T, _) = places.start, x_BTD.shape
    ins, outs = zip(*(ends(path, cfg) for path in places.targets), strict=True)
    everywhere = jnp.ones((cfg.layers - start, 1, 1), bool)
    zero = {site: jnp.zeros((cfg.layers - start, B, T, sites(cfg)[site])) for site in outs}

    def loss(shift: dict[str, Array]) -> tuple[Array, Any]:
        writes = {site: Write(everywhere, x, add=True) for site, x in shift.items()}
        last_BTD, seen = above(
            params, x_BTD, rows, cfg, start, reads=dict.fromkeys(ins), writes=writes,
            deltas=deltas,
        )  # fmt: skip
        loss_BU = nll(told(params, last_BTD, rows, cfg), rows)
        one = mean(loss_BU, rows).sum() if apart else mean_of_all(loss_BU, rows)
        return one, (seen, mean(loss_BU, rows))

    v, (u, loss_B) = jax.grad(loss, has_aux=True)(zero)
    chosen = jnp.array([i - start for i in places.layers])
    pick = lambda x: constrain(x[chosen].astype(jnp.float32), None, "batch", None, None)
    pairs = zip(places.targets, ins, outs, strict=True)
    return {path: Factors(pick(u[i]), pick(v[o])) for path, i, o in pairs}, loss_B


def used(f: Factors) -> Array:
    """Which tokens have a part in the gradient, [n, B, T]."""
    return (f.u != 0).any(-1) & (f.v != 0).any(-1)


def cut(lessons: Answers, chunk: int) -> Answers:
    """Lessons [N, …] as [N / chunk, chunk, …]."""
    if (N := len(lessons)) % (size := min(chunk, N)):
        raise ValueError(f"chunk={chunk} does not divide the step's {N} lessons")
    return jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, size, *x.shape[1:]), lessons)


def summed(of: Callable[[Any], Any], chunks: Any) -> Any:
    """The sum of what a function makes of every chunk, one after another."""
    shapes = jax.eval_shape(of, jax.tree.map(lambda x: x[0], chunks))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda total, some: (jax.tree.map(jnp.add, total, of(some)), None)
    return jax.lax.scan(add, zero, chunks)[0]
