"""SERAC (Mitchell et al., 2022b): a memory of edits, a classifier of what each is about, and a
counterfactual model that answers in the place of the unedited one.

    p'(y | x) = p(y | x)                where no memory is likely to be about x    (eq. 1)
              = p_c(y | m; x)           for the likeliest memory m otherwise

The counterfactual model reads the memory, "{prompt} {target}", before the prompt; here it is the
model itself with low-rank changes. The classifier (edit.router) compares the prompt with the
memory's prompt: what is to be said is no part of the key. Both are trained (serac_learner); an edit
only embeds a prompt.

Shapes as in data.aligned and edit.router.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.data.aligned import Aligned
from jaxedit.data.answers import of_requests
from jaxedit.edit import descent, inner
from jaxedit.edit.editor import Batches, Editor, EditResult
from jaxedit.edit.learner import Learned
from jaxedit.edit.prompts.memory import answered, behind, memories
from jaxedit.edit.prompts.serac_learner import (
    LEARNER,
    Given,
    SeracConfig,
    counter_of,
    given_of,
    scope_of,
)
from jaxedit.edit.router import Router, Scope
from jaxedit.edit.stats import on_host
from jaxedit.models.config import Model, ModelConfig
from jaxedit.sharding import on_mesh_of


@struct.dataclass
class State:
    """The two models as they were trained, in host arrays that all edits share."""

    scope: Scope
    deltas: dict[str, Any]
    given: Given
    cfg: ModelConfig = struct.field(pytree_node=False)


def serac(cfg: SeracConfig) -> Editor:
    """One memory of all requests, or one for each."""

    def init(key: Array, model: Model, given: Learned | None = None) -> State:
        cfg.places.check(model.cfg)
        if given is None:
            raise ValueError(
                "SeracConfig: this method is trained before it edits; set trained to the folder "
                "that python -m jaxedit.train has made"
            )
        made = (scope_of(given.trained, cfg), counter_of(given.trained, cfg))
        scope, deltas = jax.tree.map(on_host, made)
        return State(scope, deltas, given_of(cfg, model), model.cfg)

    def each(state: State, params: Params, batches: Batches) -> EditResult:
        given = dataclasses.replace(state.given, params=params)
        state = dataclasses.replace(state, given=given)
        with on_mesh_of(params):
            parts = [_remember(state, batch) for batch in batches]
        keys, tokens, losses = ([part[i] for part in parts] for i in range(3))
        loss_N = jnp.concatenate(losses)
        failed_N = jnp.where(jnp.isfinite(loss_N), -1, 0).astype(jnp.int32)
        info = descent.sized(state.deltas, {"loss": loss_N, "failed": failed_N})
        P = max(x.shape[1] for x in tokens)
        wide = [jnp.pad(x, ((0, 0), (0, P - x.shape[1])), constant_values=-1) for x in tokens]
        router = Router(
            state.scope, jnp.concatenate(keys), jnp.concatenate(wide), cfg.threshold, cfg.soft
        )
        return EditResult(state.deltas, info, router=router)

    def edit(state: State, params: Params, batches: Batches) -> tuple[EditResult, State]:
        return each(state, params, batches), state

    alone = lambda request: (request.text,)  # the prompt as it is when it is asked
    return Editor(init, edit, each, cfg.rows, learner=LEARNER, beside=alone)


@jax.jit
def _remember(state: State, batch: Aligned) -> tuple[Array, Array, Array]:
    """The keys of requests, their memories, and the loss of their targets behind these."""
    given, beside = state.given, batch.beside
    assert beside is not None
    keys_NH = given.embed(state.scope, beside.tokens_NXCS[:, 0, 0], beside.pos_NXCS[:, 0, 0])
    tokens_NS, pos_NS = (jnp.asarray(x)[:, 0] for x in (batch.tokens_NRS, batch.pos_NRS))
    size_N = jnp.asarray(batch.mask_NU).sum(1).astype(jnp.int32)
    last_N1 = jnp.take_along_axis(jnp.asarray(batch.target_NU), size_N[:, None] - 1, 1)
    end_N1 = pos_NS.max(1, keepdims=True) + 1
    tokens_NS, pos_NS = (jnp.concatenate(x, 1) for x in ((tokens_NS, last_N1), (pos_NS, end_N1)))
    tokens_NP = memories(tokens_NS, pos_NS, given.separator_S, given.bos)
    rows = behind(tokens_NP, of_requests(batch), given.bos)
    logp_BUV = answered(given.params, rows, state.cfg, state.deltas)
    return keys_NH, tokens_NP, inner.mean(inner.nll(logp_BUV, rows), rows)
