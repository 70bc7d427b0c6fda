"""ROME (Meng et al., 2022) and R-ROME (Gupta et al., 2024): one fact, one rank of one matrix.

The down projection W of one MLP is a memory: the key k of the subject's last token finds a value.
The edit puts the value v* under k* and moves the values of other keys, whose second moment is C,
as little as can be (eq. 2):

    W + (C⁻¹ k*) (v* - k* W) / (k*ᵀ C⁻¹ k*)

v* is searched (`edit.values`); k* is the mean of the subject's keys in several contexts. ROME
divides by the key of the bare prompt instead of k*, R-ROME uses k* in both places.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, LowRank, Params
from jaxedit.data.aligned import Others
from jaxedit.data.contexts import ROME
from jaxedit.edit import values
from jaxedit.edit.editor import Batches, Editor, EditResult, RowsConfig
from jaxedit.edit.solve import Factored, solve
from jaxedit.edit.stats import Stats, factored
from jaxedit.edit.values import Extra, ValueConfig, Values
from jaxedit.models.config import Model, ModelConfig

dot = partial(jnp.einsum, precision="highest")
VALUES, ROWS = ValueConfig(), RowsConfig(contexts=ROME)


@dataclasses.dataclass(frozen=True)
class RomeConfig:
    layer: int  # whose mlp/down is edited [layers]
    values: ValueConfig = VALUES
    rows: RowsConfig = ROWS
    # False: C is the identity, and no statistics are needed: EasyEdit's setting [mom2_adjustment]
    covariance: bool = True
    ridge: float = 0.0  # times the mean of C's diagonal, is added to it
    # which key the value is put under: the bare prompt's (ROME), the mean (R-ROME)
    key: Literal["prompt", "mean"] = "prompt"


@struct.dataclass
class RomeState:
    cov: Factored | None
    cfg: ModelConfig = struct.field(pytree_node=False)


def rome(cfg: RomeConfig) -> Editor:
    """One request at a time, or each of many by itself."""
    return family(cfg)


def family(cfg: RomeConfig, extra: Extra | None = None, beside: Others | None = None) -> Editor:
    """Editors that differ in what their value search adds to the loss, and in the texts that it
    takes.
    """

    def init(key: Array, model: Model, stats: Stats | None) -> RomeState:
        return RomeState(
            factored(stats, cfg.layer, cfg.ridge) if cfg.covariance else None, model.cfg
        )

    def run(state: RomeState, params: Params, batches: Batches) -> tuple[Array, Array, dict]:
        found = values.search(
            params, batches, state.cfg, cfg.layer, ("mlp_down",), cfg.values, extra=extra
        )
        weight_C = jnp.asarray(batches[0].weight_C)
        a_NF, b_ND, error_N = rank_one(found, weight_C, state.cov, cfg.key)
        size_N = jnp.linalg.norm(a_NF, axis=-1) * jnp.linalg.norm(b_ND, axis=-1)
        info = {"loss": found.loss_N, "steps": found.steps_N, "failed": found.failed_N}
        return a_NF, b_ND, info | {"error": error_N, "norm": size_N}

    def each(state: RomeState, params: Params, batches: Batches) -> EditResult:
        a_NF, b_ND, info = run(state, params, batches)
        change = LowRank(a_NF[None, :, :, None], b_ND[None, :, None], jnp.array([cfg.layer]))
        return EditResult({"mlp/down": change}, info)

    def edit(state: RomeState, params: Params, batches: Batches) -> tuple[EditResult, RomeState]:
        a_NF, b_ND, info = run(state, params, batches)
        change = LowRank(a_NF[:1, :, None], b_ND[:1, None], jnp.array([cfg.layer]))
        return EditResult({"mlp/down": change}, info), state

    layers = (cfg.layer,) if cfg.covariance else ()
    return Editor(init, edit, each, cfg.rows, layers, together=1, beside=beside)


@partial(jax.jit, static_argnames="key")
def rank_one(
    found: Values, weight_C: Array, cov: Factored | None, key: str
) -> tuple[Array, Array, Array]:
    """Factors a [N, F], b [N, D] of every request's update, |a| = 1, and the error of the solve; of
    failed requests, zeros.
    """
    mean_NF = dot("ncf,c->nf", found.keys_NCF, weight_C)
    error_N = jnp.zeros(len(mean_NF))
    u_NF = mean_NF
    if cov is not None:
        u_FN, error_N, _ = solve(cov, mean_NF.T)
        u_NF = u_FN.T
    u_NF = u_NF / jnp.linalg.norm(u_NF, axis=-1, keepdims=True)
    # what is to be added to the output: to that of the bare prompt, or to the mean
    goal_ND = found.found["mlp_down"]
    if key == "prompt":
        key_NF, change_ND = found.keys_NCF[:, 0], goal_ND - found.out_NCD[:, 0]
    else:
        key_NF, change_ND = mean_NF, goal_ND - dot("ncd,c->nd", found.out_NCD, weight_C)
    b_ND = change_ND / dot("nf,nf->n", key_NF, u_NF)[:, None]
    good_N1 = (found.failed_N < 0)[:, None]
    return jnp.where(good_N1, u_NF, 0), jnp.where(good_N1, b_ND, 0), error_N
