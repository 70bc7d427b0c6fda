"""Knowledge neurons (Dai et al., 2022): the rows of down projections that hold a fact, rewritten.

How much neuron f of a layer, with activation a_f at the prompt's last token, contributes to an
answer's probability p is the integral of p's slope while the layer's activations grow from zero to
what they are (eq. 2, a sum of m steps):

    score_f = a_f / m · Σ_j  ∂p(α_j a) / ∂a_f

Neurons that score above a share of the largest score, over all layers, are the fact's. Their rows w
of mlp/down lose the old answer and gain the new one, in embeddings e:

    w - λ1 |w| / |e(old)| e(old) + λ2 |w| / |e(new)| e(new)

The old answer is what the model says: its most likely next token, also where the request has a
ground truth. (The authors edit what the model knows, so it is the same; EasyEdit attributes the
ground truth, token by token.) Of a target of several tokens, e(new) is the sum. EasyEdit's rule has
no |w| / |e|: `scaled` False.

All rows of a layer move in the same direction, so that a layer's change has rank one; erased rows
(set to zero) have each their own.

Shapes as in data.aligned; B rows, S columns, L layers, F mlp, D embed, V vocab, K neurons of a
request, R rank.
"""

import dataclasses
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, LowRank, Params
from jaxedit.data.aligned import Aligned
from jaxedit.edit.editor import Bare, Batches, Editor, EditResult, Protocol, RowsConfig
from jaxedit.locate.knowledge_neurons import Points, Site, attribute
from jaxedit.models.config import Model, ModelConfig
from jaxedit.sharding import on_mesh_of

Mode = Literal["edit", "erase"]
ROWS = RowsConfig(about=None, token="last")  # the bare prompt


@dataclasses.dataclass(frozen=True)
class KnConfig:
    """The defaults are the paper's; EasyEdit's are in `presets`."""

    threshold: float = 0.2  # the share of the largest score that a neuron has to exceed
    most: int = 20  # neurons of a request: those with the largest scores
    steps: int = 20  # of the integral
    # j = 1 … m of m steps ("right": the paper), 0 … m - 1 ("left": the authors' code), or m points
    # from 0 to 1 ("linspace": EleutherAI's and EasyEdit's code)
    points: Points = "right"
    site: Site = "mlp_key"  # what a neuron's activation is; EasyEdit: before the nonlinearity
    mode: Mode = "edit"  # "erase": the rows are set to zero
    old: float = 1.0  # λ1
    new: float = 8.0  # λ2
    scaled: bool = True  # by |w| / |e|
    protocol: Protocol = "paper"  # whose settings these are; it is told in provenance

    def __post_init__(self) -> None:
        if min(self.steps, self.most) < 1 or not 0 <= self.threshold < 1:
            raise ValueError(f"{self}: steps and most are positive, threshold is in [0, 1)")
        for name, kinds in (("points", Points), ("site", Site), ("mode", Mode)):
            if (given := getattr(self, name)) not in get_args(kinds):
                raise ValueError(f"{name} {given!r}: one of {', '.join(get_args(kinds))}")


@struct.dataclass
class Found:
    """The neurons of each request, and what is to be added to their rows: size_NK times b_NRD."""

    at_NK: Array  # layer · F + neuron, -1 where there are fewer
    size_NK: Array  # 0 there
    b_NRD: Array  # R = 1, or K where every neuron has its own
    info: dict[str, Array]


def kn(cfg: KnConfig) -> Editor:
    """All requests together (erasing: one at a time), or each by itself."""

    def init(key: Array, model: Model, stats: None = None) -> Bare:
        return Bare(model.cfg)

    def find(state: Bare, params: Params, batches: Batches) -> Found:
        with on_mesh_of(params):
            parts = [locate(params, batch, state.cfg, cfg) for batch in batches]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts) if len(parts) > 1 else parts[0]

    def each(state: Bare, params: Params, batches: Batches) -> EditResult:
        found = find(state, params, batches)
        return EditResult({"mlp/down": lay_out(found, state.cfg, apart=True)}, found.info)

    def edit(state: Bare, params: Params, batches: Batches) -> tuple[EditResult, Bare]:
        found = find(state, params, batches)
        # what two requests want erased would be subtracted twice
        some = jax.tree.map(lambda x: x[:1], found) if cfg.mode == "erase" else found
        return EditResult({"mlp/down": lay_out(some, state.cfg, apart=False)}, found.info), state

    return Editor(init, edit, each, ROWS, together=int(cfg.mode == "erase"))


def locate(params: Params, batch: Aligned, cfg: ModelConfig, opt: KnConfig) -> Found:
    """The neurons of a batch of requests."""
    prompt = lambda x_NRS: x_NRS[:, 0, : batch.prefix + 1]
    scores_NLF, said_N = attribute(
        params, prompt(batch.tokens_NRS), prompt(batch.pos_NRS), None, cfg, site=opt.site,
        points=opt.points, steps=opt.steps,
    )  # fmt: skip
    return select(params, batch, scores_NLF, said_N, cfg, opt)


@partial(jax.jit, static_argnames=("cfg", "opt"))
def select(
    params: Params,
    batch: Aligned,
    scores_NLF: Array,
    said_N: Array,
    cfg: ModelConfig,
    opt: KnConfig,
) -> Found:
    """Whose rows are rewritten, and how."""
    at_NK, above_N = choose(scores_NLF, opt)
    size_NK, b_NRD = rewrite(params, batch, at_NK, said_N, cfg, opt)
    sound_N = jnp.isfinite(scores_NLF).all((1, 2)) & jnp.isfinite(b_NRD).all((1, 2))
    at_NK = jnp.where((batch.valid_N & sound_N)[:, None], at_NK, -1)
    size_NK = jnp.where(at_NK >= 0, size_NK, 0)
    b_NRD = jnp.where(sound_N[:, None, None], b_NRD, 0)
    info = {"failed": jnp.where(sound_N, -1, 0), "neurons": (at_NK >= 0).sum(-1)}
    info |= {"above": above_N, "answer": said_N}  # how many exceed the threshold; the old token
    info["norm"] = jnp.linalg.norm(size_NK[..., None] * b_NRD, axis=(1, 2))
    return Found(at_NK, size_NK, b_NRD, info)


def choose(scores_NLF: Array, opt: KnConfig) -> tuple[Array, Array]:
    """The best neurons that exceed the threshold [N, K], and how many exceed it."""
    flat_NM = scores_NLF.reshape(len(scores_NLF), -1)
    best_NK, at_NK = jax.lax.top_k(flat_NM, min(opt.most, flat_NM.shape[1]))
    limit_N1 = opt.threshold * best_NK[:, :1]
    return jnp.where(best_NK > limit_N1, at_NK, -1), (flat_NM > limit_N1).sum(-1)


def rewrite(
    params: Params, batch: Aligned, at_NK: Array, said_N: Array, cfg: ModelConfig, opt: KnConfig
) -> tuple[Array, Array]:
    """What is added to the neurons' rows: sizes [N, K] times directions [N, R, D]."""
    f32, chosen_NK = jnp.float32, at_NK >= 0
    w_LFD = params["blocks"]["mlp"]["down"]["w"]
    w_NKD = w_LFD[at_NK // cfg.mlp, at_NK % cfg.mlp].astype(f32)
    w_NKD = jnp.where(chosen_NK[..., None], w_NKD, 0)
    if opt.mode == "erase":
        return chosen_NK.astype(f32), -w_NKD
    table_VD = params["embed"]["w"]
    old_ND = table_VD[said_N].astype(f32)
    new_ND = (table_VD[batch.target_NU].astype(f32) * batch.mask_NU[..., None]).sum(1)
    size_NK = chosen_NK.astype(f32)
    if opt.scaled:
        unit = lambda x_ND: x_ND / jnp.linalg.norm(x_ND, axis=-1, keepdims=True)
        old_ND, new_ND, size_NK = unit(old_ND), unit(new_ND), jnp.linalg.norm(w_NKD, axis=-1)
    return size_NK, (opt.new * new_ND - opt.old * old_ND)[:, None]


@partial(jax.jit, static_argnames=("cfg", "apart"))
def lay_out(found: Found, cfg: ModelConfig, apart: bool) -> LowRank:
    """One change of all layers; or one for each request, of the layers where it has neurons."""
    (N, K), (_, R, D), L, F = found.at_NK.shape, found.b_NRD.shape, cfg.layers, cfg.mlp
    chosen_NK, layer_NK, n1 = found.at_NK >= 0, found.at_NK // F, jnp.arange(N)[:, None]
    rank_NK = jnp.broadcast_to(jnp.arange(K) % R, (N, K))  # R is 1 or K
    if not apart:
        row_NK = jnp.where(chosen_NK, layer_NK, L), found.at_NK % F, rank_NK + n1 * R
        a_LFR = jnp.zeros((L, F, N * R)).at[row_NK].set(found.size_NK, mode="drop")
        return LowRank(a_LFR, jnp.broadcast_to(found.b_NRD.reshape(N * R, D), (L, N * R, D)))
    n = min(K, L)
    count_NL = jnp.zeros((N, L), jnp.int32).at[n1, layer_NK].add(chosen_NK.astype(jnp.int32))
    count_Nn, layers_Nn = jax.lax.top_k(count_NL, n)
    slot_NK = (layers_Nn[:, None] == layer_NK[..., None]).argmax(-1)
    place_NK = jnp.where(chosen_NK, slot_NK, n), n1, found.at_NK % F, rank_NK
    a_nNFR = jnp.zeros((n, N, F, R)).at[place_NK].set(found.size_NK, mode="drop")
    b_nNRD = jnp.broadcast_to(found.b_NRD, (n, N, R, D))
    return LowRank(a_nNFR, b_nNRD, jnp.where(count_Nn > 0, layers_Nn, -1).T)
