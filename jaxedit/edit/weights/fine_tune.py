"""Fine-tuning of one matrix, the baseline of every comparison: Adam on the down projection of a
layer until the target is likely.

FT-L predicts all target tokens from the prompt's last one ("prompt_last"), so it learns a bag of
tokens; FT-M predicts each from those before it ("target"). Constrained fine-tuning (Zhu et al.,
2020) keeps the change within a bound: every weight's ("inf") or the matrix's Frobenius norm ("l2").

Layers below the edited one never change and run once; so does all of the edited one but the product
with its change. A search holds four times the change (itself, its gradient, Adam's two moments),
and each of N requests edited apart a whole matrix: choose the size of batches by that.

Shapes as in data.aligned; B = N C rows, X = C S columns of a request, D embed, F mlp, G as in
edit.descent.
"""

import dataclasses
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Delta, Dense, Params, Write
from jaxedit.data.aligned import Aligned
from jaxedit.edit import descent
from jaxedit.edit.descent import Info, Objective, Tree
from jaxedit.edit.editor import Bare, Batches, Editor, EditResult, RowsConfig
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.layers import norm
from jaxedit.models.transformer import run_blocks
from jaxedit.models.vocabulary import embed
from jaxedit.sharding import constrain, on_mesh_of

Norm = Literal["inf", "l2"]


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """In brackets the names of the authors' hyper-parameters."""

    layer: int  # whose mlp/down is trained [layers]
    objective: Objective = "target"  # "prompt_last": FT-L [objective_optimization]
    steps: int = 25  # updates at most [num_steps]
    lr: float = 5e-4  # of Adam
    bound: float | None = None  # of the change; None: no bound [norm_constraint]
    norm: Norm = "inf"  # of which the bound is: of each weight, or of the matrix
    # Also the projection's bias, as the authors' code does where there is one. Its change is a
    # write: such an edit is neither merged into weights nor exported.
    bias: bool = False
    stop_loss: float = 1e-2  # a request whose loss is below is done
    rows: RowsConfig = descent.ROWS

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or (self.bound is not None and self.bound <= 0):
            raise ValueError(f"{self}: steps, lr and bound are positive (bound=None: no bound)")
        for name, kinds in (("objective", Objective), ("norm", Norm)):
            if (given := getattr(self, name)) not in get_args(kinds):
                raise ValueError(f"{name} {given!r}: one of {', '.join(get_args(kinds))}")


def fine_tune(cfg: FineTuneConfig) -> Editor:
    """One change for all requests, or one for each: a dense matrix of mlp/down."""

    def init(key: Array, model: Model, stats: None = None) -> Bare:
        if not 0 <= cfg.layer < model.cfg.layers:
            raise ValueError(f"layer {cfg.layer}: the model has layers 0 to {model.cfg.layers - 1}")
        return Bare(model.cfg)

    def edit(state: Bare, params: Params, batches: Batches) -> tuple[EditResult, Bare]:
        with on_mesh_of(params):
            found = _tune(params, tuple(batches), state.cfg, cfg, apart=False)
        return result(cfg, False, *found), state

    def each(state: Bare, params: Params, batches: Batches) -> EditResult:
        with on_mesh_of(params):
            parts = [_tune(params, (batch,), state.cfg, cfg, apart=True) for batch in batches]
        return result(cfg, True, *descent.join(parts))

    return Editor(init, edit, each, cfg.rows)


def result(cfg: FineTuneConfig, apart: bool, x: Tree, info: Info) -> EditResult:
    layers = jnp.array([cfg.layer], jnp.int32)
    deltas: dict[str, Delta] = {"mlp/down": Dense(descent.share(x["w"], apart), layers)}
    writes = {}
    if cfg.bias:
        everywhere = jnp.ones((1, 1, 1), bool)
        # one for all rows of a batch keeps the axis of rows
        writes["mlp_down"] = Write(everywhere, x["b"][:, :, None], layers, add=True)
    return EditResult(deltas, descent.sized(deltas, info), writes)


@struct.dataclass
class Below:
    """What the change cannot reach."""

    key_NXF: Array  # input of the matrix
    seen: dict[str, Array]  # site of the layer -> [B, S, D]
    pos_BS: Array


@partial(jax.jit, static_argnames=("cfg", "opt", "apart"))
def _tune(
    params: Params, batches: tuple[Aligned, ...], cfg: ModelConfig, opt: FineTuneConfig, apart: bool
) -> tuple[Tree, Info]:
    below = [freeze(params, batch, cfg, opt.layer) for batch in batches]
    G = len(batches[0].valid_N) if apart else 1
    start = {"w": jnp.zeros((1, G, cfg.mlp, cfg.embed))}
    if opt.bias:
        start["b"] = jnp.zeros((1, G, cfg.embed))

    def loss(x: Tree, alive_N: Array, i: int) -> Array:
        x_BSD = enter(params, below[i], x, alive_N, cfg, opt.layer, apart)
        if opt.layer + 1 < cfg.layers:
            x_BSD, _, _ = run_blocks(
                params, x_BSD, cfg, pos_BT=below[i].pos_BS, start=opt.layer + 1, remat=True
            )
        return descent.read_out(params, x_BSD, batches[i], cfg, opt.objective)

    def after(x: Tree, grad: Tree, memory: Tree, t: Array) -> tuple[Tree, Tree]:
        return jax.tree.map(partial(project, opt=opt), x), memory

    return descent.descend(
        loss,
        batches,
        start,
        steps=opt.steps,
        lr=opt.lr,
        stop_loss=opt.stop_loss,
        apart=apart,
        after=after,
    )


def project(x: Array, opt: FineTuneConfig) -> Array:
    """The nearest change [n, G, …] within the bound."""
    if opt.bound is None:
        return x
    if opt.norm == "inf":
        return jnp.clip(x, -opt.bound, opt.bound)
    size_nG = jnp.sqrt(jnp.square(x).sum(range(2, x.ndim), keepdims=True))
    return x * jnp.where(size_nG > opt.bound, opt.bound / size_nG, 1)


def freeze(params: Params, batch: Aligned, cfg: ModelConfig, layer: int) -> Below:
    """Runs the model up to and with the edited layer, once."""
    tokens_BS, pos_BS = descent.flat(batch)
    x_BSD = embed(params, tokens_BS, cfg, pos_BT=pos_BS)
    if layer:
        x_BSD, _, _ = run_blocks(params, x_BSD, cfg, pos_BT=pos_BS, stop=layer)
    wanted = dict.fromkeys(("mlp_key", "mlp_down", "mlp_out"))
    x_BSD, seen, _ = run_blocks(
        params, x_BSD, cfg, pos_BT=pos_BS, start=layer, stop=layer + 1, reads=wanted
    )
    seen = {site: z[0] for site, z in seen.items()} | {"resid_post": x_BSD}
    key_NXF = seen.pop("mlp_key").reshape(len(batch.valid_N), -1, cfg.mlp)
    return Below(key_NXF, seen, pos_BS)


def enter(
    params: Params, below: Below, x: Tree, alive_N: Array, cfg: ModelConfig, layer: int, apart: bool
) -> Array:
    """The residual stream after the edited layer with the change in it, [B, S, D]."""
    (B, S, D), N = below.seen["resid_post"].shape, len(alive_N)
    w, key_NXF, seen = x["w"][0], below.key_NXF, below.seen
    if apart:
        w = constrain(w, "batch", None, None)
    else:  # zero in the place of what is not a number: zero times that would still be none
        w, row_B = w[0], jnp.repeat(alive_N, B // N)
        key_NXF = jnp.where(alive_N[:, None, None], key_NXF, 0)
        seen = {site: jnp.where(row_B[:, None, None], z, 0) for site, z in seen.items()}
    moved_BSD = Dense(w)(key_NXF).reshape(B, S, D)
    if "b" in x:
        rows_BD = jnp.repeat(x["b"][0], B // x["b"].shape[1], axis=0)
        moved_BSD = moved_BSD + rows_BD[:, None].astype(moved_BSD.dtype)
    p = jax.tree.map(lambda z: z[layer], params["blocks"])
    if "post_norm2" not in p:
        return seen["resid_post"] + moved_BSD
    out_BSD = norm(p["post_norm2"], seen["mlp_down"] + moved_BSD, cfg)
    return seen["resid_post"] - seen["mlp_out"] + out_BSD
