"""Edits with a router as plain ones: what each row carries.

Shapes: B prompts, T columns, H of what an encoder makes of a prompt.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Params
from jaxedit.data.requests import Batches, Row, pad
from jaxedit.edit.prompts.encoder import encoder_of
from jaxedit.edit.record import Edit
from jaxedit.edit.router import Router, Scope
from jaxedit.edit.stats import on_host
from jaxedit.models.config import Model, ModelConfig
from jaxedit.sharding import mesh_of, on_mesh_of

ROWS = 256  # of a batch
Prompt = tuple[int, ...]  # tokens, as the model reads them


class Routed(NamedTuple):
    """Plain edits, which of them each row carries, and what share of the answer is theirs."""

    edit_of: list[int]
    edits: list[Edit]
    share: list[float]  # 1, but for soft routers


def settle(
    model: Model,
    prompts: Sequence[Prompt],
    edit_of: Sequence[int],
    edits: Sequence[Edit],
    *,
    free: bool = False,
) -> Routed:
    """What every row carries. free: its answer is written, not looked at; it is of one model."""
    out = Routed(list(edit_of), list(edits), [1.0] * len(prompts))
    of: dict[int, list[int]] = {}
    for row, e in enumerate(edit_of):
        if edits[e].router is not None and prompts[row]:
            of.setdefault(e, []).append(row)
    routers = {e: router for e in of if (router := edits[e].router) is not None}
    seen: dict[int, dict[Prompt, Any]] = {}  # by scope, which edits share
    for e, router in routers.items():
        seen.setdefault(id(router.scope.w_DH), {}).update((prompts[row], None) for row in of[e])
    scopes = {id(router.scope.w_DH): router.scope for router in routers.values()}
    for key, some in seen.items():
        some |= zip(some, embed(model, scopes[key], list(some)), strict=True)
    for e, rows in of.items():
        router = routers[e]
        soft = router.soft and not free
        found = seen[id(router.scope.w_DH)]
        index, likely = decide(router, np.stack([found[prompts[row]] for row in rows]), soft)
        number: dict[int, int] = {}
        for row, i, p in zip(rows, index.tolist(), likely.tolist(), strict=True):
            if i not in number:
                number[i] = len(out.edits)
                out.edits.append(edits[e].remembered(i))
            out.edit_of[row], out.share[row] = number[i], p if soft else 1.0
    return out


def route(model: Model, edit: Edit, prompts: Sequence[str]) -> np.ndarray:
    """Which memory of an edit each prompt is about, -1: none. int [n]."""
    if edit.router is None:
        raise ValueError("an edit without a router: every row carries it")
    ids = [tuple(row) for row in model.tokenizer(list(prompts), verbose=False)["input_ids"]]
    return decide(edit.router, embed(model, edit.router.scope, ids), False)[0]


def embed(model: Model, scope: Scope, prompts: Sequence[Prompt]) -> np.ndarray:
    """What a scope's encoder makes of prompts, [n, H]."""
    encoder = encoder_of(scope.encoder, model)
    mesh = mesh_of(encoder.params)
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    rows = [Row(i, tokens, len(tokens), (-1, -1)) for i, tokens in enumerate(prompts)]
    out = np.zeros((len(rows), scope.w_DH.shape[1]), np.float32)
    size = -(-ROWS // multiple) * multiple
    for some, B in Batches(tuple(rows), size=size, multiple=multiple).parts():
        batch = pad(some, B, "right")
        with on_mesh_of(encoder.params):
            e_BH = _embed(encoder.params, scope, batch.tokens_BT, batch.pos_BT, encoder.cfg)
        out[[row.place for row in some]] = on_host(e_BH)[: len(some)]
    return out


@partial(jax.jit, static_argnames="cfg")
def _embed(
    params: Params, scope: Scope, tokens_BT: Array, pos_BT: Array, cfg: ModelConfig
) -> Array:
    return scope(params, tokens_BT, pos_BT, cfg)


def decide(router: Router, e_BH: np.ndarray, soft: bool) -> tuple[np.ndarray, np.ndarray]:
    """The memory that each prompt is about, -1: none (soft: the likeliest), and how likely."""
    B = len(e_BH)
    e_BH = np.pad(e_BH, ((0, (1 << (B - 1).bit_length()) - B if B else 1), (0, 0)))
    best_B, p_B = (np.asarray(x)[:B] for x in _likeliest(router, e_BH))
    return np.where(soft | (p_B >= router.threshold), best_B, -1), p_B


_likeliest = jax.jit(lambda router, e_BH: router.likeliest(jnp.asarray(e_BH)))
