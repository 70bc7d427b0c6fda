"""MEMIT (Meng et al., 2023): many facts at once, in the down projections of several layers.

Values z are searched at the last of the layers. Then, layer by layer on the model as it is edited
so far, the keys K of all requests take their share of what is still missing, R (eq. 14):

    W + (weight · C + K Kᵀ)⁻¹ K · R / (layers left)

(weight · C + K Kᵀ)⁻¹ K [F, N] and R [N, D] are the low-rank change of a layer; edited apart, N
changes of rank one. PMET, EMMET and AlphaEdit are variations on it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, LowRank, Params
from jaxedit.data.aligned import Aligned
from jaxedit.data.contexts import MEMIT
from jaxedit.edit import values
from jaxedit.edit.editor import Batches, Editor, EditResult, RowsConfig
from jaxedit.edit.solve import Factored, Solved, spread
from jaxedit.edit.stats import Stats, factored
from jaxedit.edit.values import ValueConfig, Values
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.transformer import run_blocks
from jaxedit.models.vocabulary import embed
from jaxedit.sharding import constrain, on_mesh_of

dot = partial(jnp.einsum, precision="highest")
VALUES, ROWS = ValueConfig(clamp=0.75), RowsConfig(contexts=MEMIT)
Directions = Callable[[int, Array], Solved]  # place among the layers, keys [F, N] -> a [F, N]


@dataclasses.dataclass(frozen=True)
class MemitConfig:
    layers: tuple[int, ...]  # whose mlp/down are edited, in order
    weight: float = 15000.0  # of C against the new keys [mom2_update_weight]
    values: ValueConfig = VALUES
    rows: RowsConfig = ROWS
    ridge: float = 0.0  # times the mean of C's diagonal, is added to it

    def __post_init__(self) -> None:
        check_layers(self.layers)


@struct.dataclass
class MemitState:
    covs: tuple[Factored, ...]
    cfg: ModelConfig = struct.field(pytree_node=False)


def check_layers(layers: Sequence[int]) -> None:
    if not layers or sorted(set(layers)) != list(layers):
        raise ValueError(f"layers {layers}: at least one, each once, in rising order")


def memit(cfg: MemitConfig) -> Editor:
    """All requests together, or each by itself."""
    return family(
        cfg.layers, cfg.values, cfg.rows, cfg.ridge, sites=("resid_post",), power=1.0,
        weight=lambda _: jnp.float32(cfg.weight),
    )  # fmt: skip


def family(
    layers: tuple[int, ...],
    values_cfg: ValueConfig,
    rows: RowsConfig,
    ridge: float,
    *,
    sites: tuple[str, ...],
    power: float,
    weight: Callable[[Array], Array],
) -> Editor:
    """Editors that differ in what is searched (the first of `sites` is what the layers reach), in
    how it is shared among layers (by layers left to this power) and in the weight of C, given the
    number of requests that are edited together.
    """

    def init(key: Array, model: Model, stats: Stats | None) -> MemitState:
        return MemitState(tuple(factored(stats, i, ridge) for i in layers), model.cfg)

    def run(state: MemitState, params: Params, batches: Batches, apart: bool) -> EditResult:
        found = values.search(params, batches, state.cfg, layers[-1], sites, values_cfg)
        count = jnp.int32(1) if apart else usable(found.failed_N, batches).sum()
        directions = lambda i, keys_FN: spread(state.covs[i], keys_FN, weight(count), apart=apart)
        return distribute(
            params, batches, state.cfg, layers, found, directions, site=sites[0], power=power,
            apart=apart,
        )  # fmt: skip

    def edit(state: MemitState, params: Params, batches: Batches) -> tuple[EditResult, MemitState]:
        return run(state, params, batches, apart=False), state

    return Editor(init, edit, partial(run, apart=True), rows, layers)


def distribute(
    params: Params,
    batches: Batches,
    cfg: ModelConfig,
    layers: tuple[int, ...],
    found: Values,
    directions: Directions,
    *,
    site: str,
    power: float,
    apart: bool,
) -> EditResult:
    """The changes of all layers, each made on the model that the ones before it left."""
    good_N = usable(found.failed_N, batches)
    goal_ND = found.found[site]
    N, F, D = len(good_N), cfg.mlp, cfg.embed
    a_nFN, b_nND = jnp.zeros((len(layers), F, N)), jnp.zeros((len(layers), N, D))
    numbers, error_N = jnp.array(layers), jnp.zeros(N)
    for i, layer in enumerate(layers):
        keys_NF, now_ND = at_token(
            params, batches, cfg, lay_out(a_nFN, b_nND, numbers, apart), layer, layers[-1], site
        )
        keys_FN = jnp.where(good_N, keys_NF.T, 0)
        share_ND = (goal_ND - now_ND) / (len(layers) - i) ** power
        x_FN, wrong_N, _ = directions(i, keys_FN)
        error_N = jnp.maximum(error_N, wrong_N)
        a_nFN = a_nFN.at[i].set(x_FN)
        b_nND = b_nND.at[i].set(jnp.where(good_N[:, None], share_ND, 0))
    sizes_nN = jnp.linalg.norm(a_nFN, axis=1) * jnp.linalg.norm(b_nND, axis=-1)
    info = {"loss": found.loss_N, "steps": found.steps_N, "failed": found.failed_N}
    info |= {"error": error_N, "norm": jnp.linalg.norm(sizes_nN, axis=0)}
    return EditResult({"mlp/down": lay_out(a_nFN, b_nND, numbers, apart)}, info)


def usable(failed_N: Array, batches: Batches) -> Array:
    """Requests that are real, and whose search went well, [N]."""
    return jnp.concatenate([jnp.asarray(b.valid_N) for b in batches]) & (failed_N < 0)


def lay_out(a_nFN: Array, b_nND: Array, layers: Array, apart: bool) -> LowRank:
    """One change of rank N, or N of rank one."""
    if not apart:
        return LowRank(a_nFN, b_nND, layers)
    return LowRank(a_nFN.swapaxes(1, 2)[..., None], b_nND[:, :, None], layers)


def at_token(
    params: Params,
    batches: Batches,
    cfg: ModelConfig,
    change: LowRank,
    layer: int,
    last: int,
    site: str,
) -> tuple[Array, Array]:
    """On the changed model, every request's mean key at `layer` [N, F], and what `site` of layer
    `last` holds for the bare prompt [N, D].
    """
    keys, now, start = [], [], 0
    with on_mesh_of(params):
        for batch in batches:
            stop = start + len(batch.valid_N)
            mine = change
            if change.a.ndim == 4:  # a change for each request
                mine = LowRank(change.a[:, start:stop], change.b[:, start:stop], change.layers)
            key_NF, now_ND = _at_token(params, batch, cfg, mine, jnp.int32(layer), last, site)
            keys.append(key_NF)
            now.append(now_ND)
            start = stop
    return jnp.concatenate(keys), jnp.concatenate(now)


@partial(jax.jit, static_argnames=("cfg", "last", "site"))
def _at_token(
    params: Params,
    batch: Aligned,
    cfg: ModelConfig,
    change: LowRank,
    layer: Array,
    last: int,
    site: str,
) -> tuple[Array, Array]:
    N, C, P = len(batch.valid_N), batch.contexts, batch.prefix
    B = N * C
    flat = lambda x: constrain(x[:, :C, : P + 1].reshape(B, P + 1), "batch", None)
    tokens_BS, pos_BS = flat(batch.tokens_NRS), flat(batch.pos_NRS)
    if change.a.ndim == 4:
        rows = lambda x: jnp.repeat(x, C, axis=1)
        change = LowRank(rows(change.a), rows(change.b), change.layers)
    x_BSD = embed(params, tokens_BS, cfg, pos_BT=pos_BS)
    token_B1 = jnp.full((B, 1), P)
    _, seen, _ = run_blocks(
        params, x_BSD, cfg, pos_BT=pos_BS, stop=last + 1, deltas={"mlp/down": change},
        reads={"mlp_key": token_B1, site: token_B1},
    )  # fmt: skip
    keys_NCF = seen["mlp_key"][layer, :, 0].astype(jnp.float32).reshape(N, C, -1)
    now_ND = seen[site][last].astype(jnp.float32).reshape(N, C, -1)[:, 0]
    return dot("ncf,c->nf", keys_NCF, batch.weight_C), now_ND
