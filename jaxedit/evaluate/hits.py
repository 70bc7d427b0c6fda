"""What edited values say: the rows of a matrix that an edit changes most, read as words.

A row of mlp/down is a value that its neuron adds to the residual stream; the unembedding turns it
into a score for every token (Geva et al., 2022; Dar et al., 2023). As in "A Comprehensive Study of
Knowledge Editing" (section 5.1, figure 7) the rows of the edited matrix that change most are looked
at before and after the edit: is the target's first token among the k highest? Beside them the
direction that the edit adds, whatever was there before: of a LowRank its largest rows of b (ROME's
value), of a Dense the changes of those rows.

What a row passes on its way into words (`through`) is as in `locate.lens`; the survey's is "none".
Where a model norms the MLP's output before it is added (Gemma 2), that norm is not applied.

By chance a rank is about V / 2, and the best of K rows is among the k highest in about K k / V.

Shapes: B edits, K rows of each, C tokens that are looked for, D embed, V vocab.
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxedit.base import Array, Dense, LowRank
from jaxedit.data.cases import EditRequest
from jaxedit.data.requests import probe_batches
from jaxedit.edit.record import Edit
from jaxedit.edit.stats import on_host
from jaxedit.evaluate.analysis import Part, averaged, input_norms, parts
from jaxedit.locate.lens import KS, Through, ranks
from jaxedit.merge import leaf
from jaxedit.models.config import Model
from jaxedit.sharding import on_mesh_of

WHEN = ("before", "after", "direction")
TOKENS = ("target", "former")
PATHS = ("mlp/down", "attn/o")  # whose rows are added to the residual stream
SIZE = 16  # edits in one program


def hits(
    model: Model,
    edits: Sequence[Edit],
    requests: Sequence[EditRequest],
    *,
    path: str = "mlp/down",
    rows: int = 5,
    through: Through = "none",
    ks: Sequence[int] = KS,
) -> dict[str, Any]:
    """Hit@k of each request's target, and of its former answer, in its edit, as JSON has it:

    {"target": {"before": {"hit@10": {"mean", "low", "high", "n"}, "share@10": …, "rank": …},
    "after": …, "direction": …}, "former": …, "edits": n}. hit@k: is it among the k highest of any
    of the rows (the survey's); share@k: of what share of them; rank: the best of them.
    Request i is looked for in edit i; edits that do not change the matrix are left out.
    """
    if len(edits) != len(requests):
        raise ValueError(f"{len(edits)} edits and {len(requests)} requests: one for each")
    found = rank_rows(model, edits, requests, path=path, rows=rows, through=through)
    out: dict[str, Any] = {"path": path, "rows": rows, "through": through, "edits": len(found)}
    for c, token in enumerate(TOKENS):
        out[token] = {}
        for w, when in enumerate(WHEN):
            rank_NK = found[:, w, :, c].astype(np.float64)
            rank_NK = rank_NK[(rank_NK > 0).all(1)]
            share = {k: (rank_NK <= k).mean(1) for k in ks}
            numbers = {f"hit@{k}": averaged(np.ceil(share[k])) for k in ks}
            numbers |= {f"share@{k}": averaged(share[k]) for k in ks}
            out[token][when] = numbers | {"rank": averaged(rank_NK.min(1))}
    return out


def rank_rows(
    model: Model,
    edits: Sequence[Edit],
    requests: Sequence[EditRequest],
    *,
    path: str = "mlp/down",
    rows: int = 5,
    through: Through = "none",
) -> np.ndarray:
    """Ranks [N, 3, K, 2] of the edits that change the matrix: before, after and of the direction,
    in each of the rows, of the target and of the former answer (0: there is none).
    """
    if path not in PATHS:
        raise ValueError(f"matrix {path!r}: its rows are no residual stream; {' or '.join(PATHS)}")
    if through not in get_args(Through) or rows < 1:
        raise ValueError(f"through={through!r}, rows={rows}: none, scale or final; at least 1 row")
    w = traverse_util.flatten_dict(model.params, sep="/")[leaf(path)]
    rows = min(rows, w.shape[1])
    new = first_tokens(model.tokenizer, [(r.text, r.target) for r in requests])
    old = first_tokens(
        model.tokenizer, [(r.text, next(iter(r.ground_truth), "")) for r in requests]
    )
    chosen = [(i, x) for i, edit in enumerate(edits) if (x := choose(edit, path, rows)) is not None]
    out = np.zeros((len(chosen), len(WHEN), rows, len(TOKENS)), np.int32)
    token_NC = np.stack([new, old], -1)[[i for i, _ in chosen]]
    for at, (layer_BK, row_BK, change_BKD, add_BKD) in batches([x for _, x in chosen]):
        n = min(len(layer_BK), len(chosen) - at)
        token_BC = np.full((len(layer_BK), len(TOKENS)), -1, np.int32)
        token_BC[:n] = token_NC[at : at + n]
        with on_mesh_of(model.params):
            x_B3KD = vectors(w, layer_BK, row_BK, change_BKD, add_BKD)
        B, _, K, D = x_B3KD.shape
        rank = ranks(model.params, x_B3KD.reshape(B, 3 * K, D), token_BC, model.cfg, through)
        out[at : at + n] = on_host(rank).reshape(B, 3, K, -1)[:n]
    return out


@jax.jit
def vectors(w: Array, layer_BK: Array, row_BK: Array, change_BKD: Array, add_BKD: Array) -> Array:
    """Rows of w [L, I, D] before and after their change, and the directions, [B, 3, K, D]."""
    before_BKD = w[layer_BK, row_BK].astype(jnp.float32)
    return jnp.stack([before_BKD, before_BKD + change_BKD, add_BKD], 1)


Chosen = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def choose(edit: Edit, path: str, rows: int) -> Chosen | None:
    """Layers and numbers of the rows that an edit changes most (over again, where it changes
    fewer), their changes [K, D], and the directions [K, D]; None where it changes none.
    """
    mine = [(place[1], part) for place, part in parts(edit.deltas) if place[0] == path]
    if not mine:
        return None
    size_nI = np.stack([np.asarray(input_norms(part)) for _, part in mine])
    best = largest(size_nI.ravel(), rows)
    if best is None:
        return None
    which, row = np.unravel_index(best, size_nI.shape)
    change = np.stack([take(mine[n][1], i) for n, i in zip(which, row, strict=True)])
    layer = np.array([mine[n][0] for n in which], np.int32)
    return layer, row.astype(np.int32), change, directions([part for _, part in mine], change)


def largest(size_X: np.ndarray, count: int) -> np.ndarray | None:
    """The places of the largest, those of zeros left out and the others taken over again."""
    best = np.argsort(-size_X, kind="stable")[:count]
    best = best[size_X[best] > 0]
    return np.resize(best, count) if len(best) else None


def take(part: Part, row: int) -> np.ndarray:
    if isinstance(part, Dense):
        return np.asarray(part.w[row], np.float32)
    return np.asarray(part.a[row], np.float32) @ np.asarray(part.b, np.float32)


def directions(some: Sequence[Part], change_KD: np.ndarray) -> np.ndarray:
    """The largest rows of b, as many as there are rows."""
    low = [part for part in some if isinstance(part, LowRank)]
    if len(low) < len(some):
        return change_KD
    a_size = np.concatenate([np.linalg.norm(np.asarray(p.a, np.float32), axis=0) for p in low])
    b_RD = np.concatenate([np.asarray(p.b, np.float32) for p in low])
    best = largest(a_size * np.linalg.norm(b_RD, axis=1), len(change_KD))
    return change_KD if best is None else b_RD[best]


def batches(chosen: Sequence[Chosen]) -> Iterator[tuple[int, Chosen]]:
    """SIZE edits at a time, the last ones filled up with the last edit."""
    for at in range(0, len(chosen), SIZE):
        some = list(chosen[at : at + SIZE])
        some += some[-1:] * (min(SIZE, len(chosen)) - len(some))
        layer, row, change, add = (np.stack(x) for x in zip(*some, strict=True))
        yield at, (layer, row, change, add)


def first_tokens(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The first token of each answer after its prompt, [N]; -1 where there is no answer."""
    out = np.full(len(pairs), -1, np.int32)
    for row in probe_batches(tokenizer, pairs, skip=True).rows:
        if row.prompt < len(row.tokens):
            out[row.place] = row.tokens[row.prompt]
    return out
