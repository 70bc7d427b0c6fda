"""Questions put to a model and to its edits, hundreds of edited models in one forward.

Every answer of every probe is a row: the prompt, then the answer. A row carries the edit of its
case; the unedited model reads the same rows in the same program. Free answers are decoded in
batches in the same way. No weights are copied.

Shapes: B rows, U answer tokens, E edits.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.data.answers import Answers, answers, columns
from jaxedit.data.requests import Batches, Marked, Row, bucket, pad, tokenise
from jaxedit.edit.record import Edit
from jaxedit.edit.stats import on_host
from jaxedit.evaluate.carry import Carried, carry, distinct, groups, with_prefix
from jaxedit.evaluate.route import settle
from jaxedit.evaluate.seen import Forced
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.generate import Sampling, decode
from jaxedit.models.transformer import forward
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import mesh_of, on_mesh_of

ROWS = 256  # of a batch: beyond, nothing is gained


@struct.dataclass
class Compared:
    """What two models say in the place of an answer's tokens."""

    said_BU: Array  # int32: the first choice before the edit, and after it
    said_after_BU: Array
    logp_BU: Array  # float32: log-probability of the answer's token
    logp_after_BU: Array
    kl_BU: Array  # float32: KL(before ‖ after)


@partial(jax.jit, static_argnames="cfg")
def compare(
    params: Params,
    before: Answers,
    after: Answers,
    edit_B: Array,
    carried: Carried,
    cfg: ModelConfig,
    share_B: Array | None = None,
) -> Compared:
    """The unedited model and every row's edited one, over the same answers; or in its place the two
    mixed, so much of the edited one.
    """
    deltas, writes = carried.rows(edit_B)
    old_BUV = choices(params, before, cfg)
    new_BUV = choices(params, after, cfg, deltas=deltas, writes=writes)
    if share_B is not None:
        s_B11 = jnp.asarray(share_B)[:, None, None]
        new_BUV = jnp.logaddexp(jnp.log1p(-s_B11) + old_BUV, jnp.log(s_B11) + new_BUV)
    at = lambda logp_BUV: jnp.take_along_axis(logp_BUV, before.target_BU[..., None], -1)[..., 0]
    first = lambda logp_BUV: logp_BUV.argmax(-1).astype(jnp.int32)
    kl_BU = (jnp.exp(old_BUV) * (old_BUV - new_BUV)).sum(-1)
    return Compared(first(old_BUV), first(new_BUV), at(old_BUV), at(new_BUV), kl_BU)


def choices(params: Params, rows: Answers, cfg: ModelConfig, **edit: Any) -> Array:
    """Log-probabilities of every token in the place of the answers', [B, U, V]."""
    logits = forward(
        params, rows.tokens_BT, cfg, pos_BT=rows.pos_BT, logits_at=rows.at_BU, **edit
    ).logits
    return jax.nn.log_softmax(logits)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An answer as the unedited model is led through it, and as the edited one is."""

    before: Forced
    after: Forced
    kl: float


@dataclasses.dataclass(frozen=True)
class Asker:
    """A model that is asked, and the memory that a program may take."""

    model: Model
    room: int  # bytes
    rows: int = ROWS
    progress: Progress = quiet

    @property
    def multiple(self) -> int:
        mesh = mesh_of(self.model.params)
        return mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1

    @property
    def longest(self) -> int | None:
        return self.model.cfg.max_len if self.model.cfg.learned_pos else None

    def forced(
        self, texts: Sequence[Marked], edit_of: Sequence[int], edits: Sequence[Edit]
    ) -> list[Pair | str]:
        """For every text, whose number of an edit is in `edit_of`, both models led through its
        answer; or why it cannot be.
        """
        found = dict(tokenise(self.model.tokenizer, list(enumerate(texts))))
        prompt = lambda row: row.tokens[: row.prompt] if isinstance(row, Row) else ()
        prompts = [prompt(found[i]) for i in range(len(texts))]
        edit_of, edits, share = settle(self.model, prompts, edit_of, edits)
        prefix = [edits[e].prefix for e in edit_of]
        out: list[Pair | str] = [self.trouble(found[i], prefix[i]) for i in range(len(texts))]
        kinds, which = distinct(edits)
        for some, width in self.side_by_side(kinds):
            number = {kind: n for n, kind in enumerate(some)}
            mine = [
                row for i, row in found.items()
                if isinstance(row, Row) and not out[i] and which[edit_of[i]] in number
            ]  # fmt: skip
            carried = carry([kinds[i] for i in some], self.filled(len(some)))
            width = self.fitting(width, mine)
            for rows, B in Batches(tuple(mine), size=width, multiple=self.multiple).parts():
                places = [row.place for row in rows]
                pairs = self.batch(rows, B, [number[which[edit_of[i]]] for i in places],
                                   [prefix[i] for i in places], [share[i] for i in places],
                                   carried)  # fmt: skip
                for i, pair in zip(places, pairs, strict=True):
                    out[i] = pair
        return out

    def trouble(self, row: Row | str, prefix: tuple[int, ...]) -> str:
        """Why a row cannot be asked; empty where it can."""
        if isinstance(row, str):
            return row
        n = len(row.tokens) + len(prefix)
        fits = self.longest is None or n <= self.longest
        return "" if fits else f"{n} tokens; the model has {self.longest}"

    def side_by_side(self, edits: Sequence[Edit]) -> list[tuple[list[int], int]]:
        size = -(-self.rows // self.multiple) * self.multiple
        found = groups(edits, self.room // 2, size)
        return [(some, -(-width // self.multiple) * self.multiple) for some, width in found]

    def filled(self, count: int) -> int:
        return 1 << (count - 1).bit_length()

    def fitting(self, width: int, rows: Sequence[Row]) -> int:
        """Rows of a batch whose logits and activations fit."""
        cfg = self.model.cfg
        most = max((bucket(len(r.tokens)) for r in rows), default=1)
        answer = max((len(r.tokens) - r.prompt for r in rows), default=1)
        activations = most * (8 * cfg.embed + 3 * cfg.mlp) * 4 + most * most * cfg.heads * 4
        each = 2 * activations + 4 * columns(answer) * cfg.vocab * 4
        return self.within(width, each)

    def batch(
        self,
        rows: Sequence[Row],
        B: int,
        number: Sequence[int],
        prefix: Sequence[tuple[int, ...]],
        share: Sequence[float],
        carried: Carried,
    ) -> list[Pair]:
        """One program: B rows, the real ones first."""
        model = self.model
        filled = lambda x, kind: np.array([*x, *[x[-1]] * (B - len(x))], kind)
        before, after = answers(rows, B), None
        if any(prefix):
            bos = getattr(model.tokenizer, "bos_token_id", None)
            after = answers([behind(row, p, bos) for row, p in zip(rows, prefix, strict=True)], B)
        mixed = filled(share, np.float32) if min(share) < 1 else None
        with on_mesh_of(model.params):
            out = compare(model.params, before, after or before, filled(number, np.int32),
                          carried, model.cfg, mixed)  # fmt: skip
        out = jax.tree.map(on_host, out)
        sizes = np.asarray(before.mask_BU).sum(1).tolist()
        ints = lambda x, n: tuple(x[:n].tolist())
        pairs = []
        for b, n in enumerate(sizes[: len(rows)]):
            target = ints(before.target_BU[b], n)
            old = Forced(target, ints(out.said_BU[b], n), ints(out.logp_BU[b], n))
            new = Forced(target, ints(out.said_after_BU[b], n), ints(out.logp_after_BU[b], n))
            pairs.append(Pair(old, new, float(out.kl_BU[b, :n].mean())))
        return pairs

    def continued(
        self,
        prompts: Sequence[str],
        edit_of: Sequence[int],
        edits: Sequence[Edit],
        steps: int,
        *,
        total: bool = False,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> list[str | None]:
        """What each edited model writes after its prompt, up to `steps` tokens (`total`: with the
        prompt); None where the model has no room for it.
        """
        tokenizer, cfg = self.model.tokenizer, self.model.cfg
        bos = getattr(tokenizer, "bos_token_id", None)
        out: list[str | None] = [None] * len(prompts)
        ids = tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else []
        ids = [until_end(row, cfg.eos_ids) for row in ids]
        edit_of, edits, _ = settle(self.model, ids, edit_of, edits, free=True)
        tokens = [with_prefix(edits[e].prefix, t, bos) for t, e in zip(ids, edit_of, strict=True)]
        limit = self.longest or 1 << 30
        wanted = [min(steps - len(t) if total else steps, limit - len(t)) for t in tokens]
        need = (lambda i: 1) if total else (lambda i: steps)
        kinds, which = distinct(edits)
        for some, width in self.side_by_side(kinds):
            number = {kind: n for n, kind in enumerate(some)}
            mine = [
                Row(i, t, len(t), (-1, -1))
                for i, t in enumerate(tokens)
                if which[edit_of[i]] in number and t and wanted[i] >= need(i)
            ]
            carried = carry([kinds[i] for i in some], self.filled(len(some)))
            width = self.decoding(width, mine, steps)
            for rows, B in Batches(tuple(mine), size=width, multiple=self.multiple).parts():
                longest = max(wanted[r.place] for r in rows)
                count = min(-(-longest // 16) * 16, steps, limit) if total else steps
                batch = pad(rows, B, "left")
                where = [number[which[edit_of[r.place]]] for r in rows]
                where += where[-1:] * (B - len(where))
                deltas, writes = carried.rows(jnp.asarray(where, jnp.int32))
                made = decode(
                    self.model.params, jnp.asarray(batch.tokens_BT), jnp.asarray(batch.pos_BT),
                    cfg, steps=count, stop_ids=cfg.eos_ids, writes=writes, deltas=deltas,
                    sampling=sampling, key=None if sampling is None else jax.random.key(seed),
                )  # fmt: skip
                made_BN, length_B = on_host(made.tokens_BN), on_host(made.length_B)
                for row, new, n in zip(rows, made_BN, length_B, strict=False):
                    out[row.place] = tokenizer.decode(new[: min(int(n), wanted[row.place])])
        return out

    def decoding(self, width: int, rows: Sequence[Row], steps: int) -> int:
        """Rows of a batch whose cache fits."""
        cfg = self.model.cfg
        most = max((bucket(len(r.tokens)) for r in rows), default=1) + steps
        wide = jnp.dtype(cfg.dtype).itemsize
        cache = 2 * most * cfg.layers * cfg.kv_heads * cfg.head_dim * wide
        each = cache + most * most * cfg.heads * 4 + 3 * cfg.vocab * 4
        return self.within(width, each)

    def within(self, width: int, each: int) -> int:
        """Halved until rows of `each` bytes fit."""
        fits = max(self.room // 2 * self.multiple // each, 1)
        while width > self.multiple and width > fits:
            width = -(-width // 2 // self.multiple) * self.multiple
        return width


def until_end(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """A prompt without the end-of-text tokens that a tokenizer may put behind it."""
    n = len(tokens)
    while n > 1 and tokens[n - 1] in ends:
        n -= 1
    return tuple(tokens[:n])


def behind(row: Row, prefix: tuple[int, ...], bos: int | None) -> Row:
    tokens = with_prefix(prefix, row.tokens, bos)
    return row._replace(tokens=tokens, prompt=row.prompt + len(prefix))
