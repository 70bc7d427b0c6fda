"""How likely a model finds the ends of texts: log-probabilities of their tokens, in batches.

Only the columns that say these tokens get logits, in parts where the vocabulary is large. Lines
that end in different tokens after the same beginning, as the letters of a multiple choice do, are
one row.

Shapes: B rows, T columns, P places of a row that are looked at.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Params, chains
from jaxedit.data.requests import Batches, Row, bucket, pad
from jaxedit.edit.record import Edit
from jaxedit.edit.stats import on_host
from jaxedit.evaluate.carry import with_prefix
from jaxedit.evaluate.route import settle
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.specs import pin
from jaxedit.models.transformer import through
from jaxedit.models.vocabulary import unembed
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import constrain, mesh_of, on_mesh_of

ROWS = 64  # of a batch
TOKENS = 1 << 15  # of a batch: of long rows there are fewer
LOGITS = 1 << 27  # in memory at once: more are computed part by part


class Line(NamedTuple):
    """A text as tokens, of which those from `start` on are asked for."""

    tokens: tuple[int, ...]
    start: int


class Likelihood(NamedTuple):
    """What a model finds of a line's last U tokens."""

    logp_U: np.ndarray  # float32, nats: of each, given all those before
    first_U: np.ndarray  # bool: is it the model's first choice

    @property
    def total(self) -> float:
        """Of all of them together."""
        return float(self.logp_U.sum(dtype=np.float64))

    @property
    def is_greedy(self) -> bool:
        """Would greedy decoding say them."""
        return bool(self.first_U.all())


def shorten(line: Line, room: int) -> Line | str:
    """The line without what is too much of its beginning, or why that does not help.

    room: tokens that the model can read; the last token of a line is not among them.
    """
    over = max(len(line.tokens) - 1 - room, 0)
    if line.start - over < 1:
        return f"{len(line.tokens) - line.start} tokens to be said; the model has room for {room}"
    return Line(line.tokens[over:], line.start - over)


def readable(model: Model, edit: Edit | None = None) -> int:
    """How many tokens of a text the model can read, behind the edit's own."""
    if edit is None:
        return model.cfg.max_len
    held = () if edit.router is None else map(edit.router.prefix, range(len(edit.router)))
    return model.cfg.max_len - len(edit.prefix) - max(map(len, held), default=0)


def likelihoods(
    model: Model,
    lines: Sequence[Line],
    edit: Edit | None = None,
    *,
    size: int = ROWS,
    progress: Progress = quiet,
) -> list[Likelihood]:
    """For every line, under the edited model where there is an edit. size: rows of a batch."""
    edit = edit or Edit()
    edit.check(model, force=True)
    if edit.router is not None:
        return routed(model, lines, edit, size=size, progress=progress)
    bos = getattr(model.tokenizer, "bos_token_id", None)
    asked: dict[tuple[int, ...], list[int]] = {}  # lines that begin with the same tokens
    for i, line in enumerate(lines):
        if not 0 < line.start < len(line.tokens):
            raise ValueError(
                f"line {i} asks for the tokens from {line.start} on, and has {len(line.tokens)}: "
                "it needs one before them, and one of them"
            )
        asked.setdefault(with_prefix(edit.prefix, line.tokens[:-1], bos), []).append(i)
    groups = list(asked.values())
    out: list[Any] = [None] * len(lines)
    done = 0
    for rows, B in batches(model, [Row(n, t, 1, (-1, -1)) for n, t in enumerate(asked)], size):
        mine = [[lines[i] for i in groups[row.place]] for row in rows]
        logp_BP, first_BP = run(model, rows, mine, B, edit)
        for b, row in enumerate(rows):
            at = 0
            for i in groups[row.place]:
                end = at + len(lines[i].tokens) - lines[i].start
                out[i] = Likelihood(logp_BP[b, at:end], first_BP[b, at:end])
                at = end
        done += len(rows)
        progress(done, len(groups))
    return out


def routed(
    model: Model, lines: Sequence[Line], edit: Edit, *, size: int, progress: Progress
) -> list[Likelihood]:
    """The same, where what stands before the end of a line decides what the line carries."""
    before = [line.tokens[: line.start] for line in lines]
    found = settle(model, before, [0] * len(lines), [edit])
    if min(found.share, default=1) < 1:
        raise ValueError("a soft router mixes answers, not texts; set soft=false")
    out: list[Any] = [None] * len(lines)
    for e in dict.fromkeys(found.edit_of):
        mine = [i for i, n in enumerate(found.edit_of) if n == e]
        some = likelihoods(model, [lines[i] for i in mine], found.edits[e], size=size)
        for i, one in zip(mine, some, strict=True):
            out[i] = one
        progress(sum(x is not None for x in out), len(lines))
    return out


def batches(model: Model, rows: Sequence[Row], size: int) -> Iterator[tuple[list[Row], int]]:
    """Rows of like length, as many as `size` and TOKENS allow, and to what they are filled up."""
    mesh = mesh_of(model.params)
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    buckets: dict[int, list[Row]] = {}
    for row in rows:
        buckets.setdefault(bucket(len(row.tokens)), []).append(row)
    for T, some in sorted(buckets.items()):
        full = -(-min(size, max(TOKENS // T, 1)) // multiple) * multiple
        for part, B in Batches(tuple(some), size=full, multiple=multiple).parts():
            yield part, full if len(some) > full else B  # not another program for the last ones


def run(
    model: Model, rows: Sequence[Row], lines: Sequence[Sequence[Line]], B: int, edit: Edit
) -> tuple[np.ndarray, np.ndarray]:
    """One program: [B, P] log-probabilities and first choices of the lines' tokens, row by row."""
    batch = pad(rows, B, "right")
    at: list[list[int]] = []
    tokens: list[list[int]] = []
    for row, some in zip(rows, lines, strict=True):
        # The token in column c is said in the column before: the last one in the row's last column.
        sizes = [len(line.tokens) - line.start for line in some]
        at.append([len(row.tokens) - n + j for n in sizes for j in range(n)])
        tokens.append([t for line in some for t in line.tokens[line.start :]])
    P = columns(max(map(len, at)), batch.tokens_BT.shape[1])
    at_BP, next_BP = np.zeros((B, P), np.int32), np.zeros((B, P), np.int32)
    for b, (where, ids) in enumerate(zip(at, tokens, strict=True)):
        at_BP[b, : len(ids)], next_BP[b, : len(ids)] = where, ids
    with on_mesh_of(model.params):
        found = follow(
            model.params, batch.tokens_BT, batch.pos_BT, at_BP, next_BP, model.cfg,
            chains(edit.deltas), chains(edit.writes),
        )  # fmt: skip
    logp_BP, first_BP = map(on_host, found)
    return logp_BP, first_BP


def columns(count: int, T: int) -> int:
    """A power of 4 that holds so many places, or T where that is enough: few shapes occur."""
    P = next(4**k for k in range(count) if 4**k >= count) if count > 1 else 1
    return min(P, T) if count <= T else P


@partial(jax.jit, static_argnames="cfg")
def follow(
    params: Params,
    tokens_BT: Array,
    pos_BT: Array,
    at_BP: Array,
    next_BP: Array,
    cfg: ModelConfig,
    deltas: Any,
    writes: Any,
) -> tuple[Array, Array]:
    """log p of the tokens next_BP in the columns at_BP, and are they first choices; [B, P]."""
    params = pin(params, cfg)
    x_BTD = through(params, tokens_BT, cfg, pos_BT, None, {}, writes, deltas, False)[0]
    x_BPD = jnp.take_along_axis(x_BTD, at_BP[..., None], axis=1)

    def part(args: tuple[Array, Array]) -> tuple[Array, Array]:
        x_BpD, next_Bp = args
        logits_BpV = unembed(params, x_BpD, cfg, deltas=deltas)
        picked_Bp = jnp.take_along_axis(logits_BpV, next_Bp[..., None], -1)[..., 0]
        return picked_Bp - jax.nn.logsumexp(logits_BpV, -1), logits_BpV.argmax(-1) == next_Bp

    B, P = next_BP.shape
    fits = lambda n: B * (P // n) * cfg.vocab <= LOGITS
    n = next((n for n in range(1, P) if P % n == 0 and fits(n)), P)
    cut = lambda z: z.reshape(B, n, P // n, *z.shape[2:]).swapaxes(0, 1)
    found = jax.lax.map(part, (cut(x_BPD), cut(next_BP)))
    whole = lambda z_nBp: constrain(z_nBp.swapaxes(0, 1).reshape(B, P), None, None)
    return whole(found[0]), whole(found[1])
