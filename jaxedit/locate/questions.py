"""Prompts with their answers, asked of a model: scores of neurons, and what switching neurons does.

A method that scores neurons sees rows that end where one token of an answer is predicted; an answer
of several tokens is a row for each, after the right ones before it, and its score is their mean.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Params
from jaxedit.data.cases import Skipped
from jaxedit.data.requests import Batches, Row, bucket, probe_batches
from jaxedit.locate.neurons import times
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import on_mesh_of

# a prompt, and the answer that follows it: a text, after a space where one belongs, or a token
Question = tuple[str, str | int]
# params, tokens [B, S], positions, the answer's token [B], cfg -> scores [B, L, F]
Method = Callable[[Params, Array, Array, Array, ModelConfig], Array]


class Rows(NamedTuple):
    """Rows that end where a token is predicted, padded on the left; the last ones may be copies."""

    tokens_BS: np.ndarray
    pos_BS: np.ndarray
    answer_B: np.ndarray
    place_B: np.ndarray  # of the question; -1 of a copy


def tokens(
    model: Model, asked: Sequence[Question], skip: bool = False
) -> tuple[list[Row], list[Skipped]]:
    """Each question as tokens; what has no token of an answer is an error, or left out."""
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer: questions are texts")
    texts = [(prompt, "" if isinstance(answer, int) else answer) for prompt, answer in asked]
    found = probe_batches(model.tokenizer, texts, skip=skip)
    given = lambda r: tuple(a for a in asked[r.place][1:] if isinstance(a, int))
    rows = [r._replace(tokens=r.tokens + given(r)) for r in found.rows]
    empty = [r for r in rows if r.prompt >= len(r.tokens)]
    if empty and not skip:
        raise ValueError(f"question {asked[empty[0].place][0]!r} has no answer")
    gone = [*found.skipped, *(Skipped(str(r.place), "no answer") for r in empty)]
    return [r for r in rows if r.prompt < len(r.tokens)], gone


def predicted(some: Sequence[Row], size: int = 8, most: int = 0) -> Iterator[Rows]:
    """A row for every token of every answer (the first `most` of it; 0: all), `size` together."""
    every = [
        (row.tokens[:at], row.tokens[at], row.place)
        for row in some
        for at in range(row.prompt, min(len(row.tokens), row.prompt + most if most else 1 << 30))
    ]
    every.sort(key=lambda one: bucket(len(one[0])))
    for begin in range(0, len(every), size):
        part = every[begin : begin + size]
        part += [(part[0][0], part[0][1], -1)] * (size - len(part))
        S = bucket(max(len(before) for before, _, _ in part))
        tokens_BS, pos_BS = np.zeros((size, S), np.int32), np.full((size, S), -1, np.int32)
        for b, (before, _, _) in enumerate(part):
            tokens_BS[b, S - len(before) :] = before
            pos_BS[b, S - len(before) :] = np.arange(len(before))
        answer_B, place_B = (np.array([one[i] for one in part], np.int32) for i in (1, 2))
        yield Rows(tokens_BS, pos_BS, answer_B, place_B)


def scores(
    model: Model, asked: Sequence[Question], method: Method, *, size: int = 8, most: int = 0,
    progress: Progress = quiet,
) -> np.ndarray:  # fmt: skip
    """A method's scores of every question's neurons, [N, L, F]."""
    rows = tokens(model, asked)[0]
    cfg = model.cfg
    sum_NLF = np.zeros((len(asked), cfg.layers, cfg.mlp), np.float32)
    count_N = np.zeros(len(asked), np.float32)
    batches = list(predicted(rows, min(size, max(len(rows), 1)), most))
    for i, b in enumerate(batches):
        tokens_BS, pos_BS, answer_B = map(jnp.asarray, b[:3])
        found_BLF = np.asarray(method(model.params, tokens_BS, pos_BS, answer_B, cfg))
        real = b.place_B >= 0
        np.add.at(sum_NLF, b.place_B[real], found_BLF[real])
        np.add.at(count_N, b.place_B[real], 1)
        progress(i + 1, len(batches))
    return sum_NLF / np.maximum(count_N, 1)[:, None, None]


def probabilities(
    model: Model,
    asked: Sequence[Question],
    sets_MLF: Array | np.ndarray | None = None,
    which_N: Sequence[int] | np.ndarray | None = None,
    factor: float = 0.0,
    *,
    size: int = 64,
) -> np.ndarray:
    """p(answer) of every question [N]: the product over its tokens, each after the right ones.

    sets_MLF: neurons, whose activations are multiplied by `factor` where a token of the answer is
    predicted. which_N: each question's set (one set for all, or by default a set for each).
    """
    found = Batches(tuple(tokens(model, asked)[0]), size=size)
    out = np.zeros(len(asked))
    if sets_MLF is not None and which_N is None:
        which_N = np.arange(len(asked)) if len(sets_MLF) > 1 else np.zeros(len(asked), int)
    for index_N, batch in found:
        mine = None
        if sets_MLF is not None:
            places = np.resize(np.asarray(which_N)[index_N], len(batch.valid_B))
            mine = jnp.asarray(np.asarray(sets_MLF)[places])
        arrays = (jnp.asarray(x) for x in (batch.tokens_BT, batch.pos_BT, batch.target_BT))
        with on_mesh_of(model.params):
            got = likely(model.params, *arrays, mine, jnp.float32(factor), model.cfg)
        out[index_N] = np.asarray(got)[: len(index_N)]
    return out


@partial(jax.jit, static_argnames="cfg")
def likely(
    params: Params, tokens_BT: Array, pos_BT: Array, target_BT: Array, sets_BLF: Array | None,
    factor: Array, cfg: ModelConfig,
) -> Array:  # fmt: skip
    """p of the tokens that `target_BT` says are next."""
    writes = {} if sets_BLF is None else times(sets_BLF, factor, target_BT)
    logits_BTV = forward(params, tokens_BT, cfg, pos_BT=pos_BT, writes=writes).logits
    logp_BTV = jax.nn.log_softmax(logits_BTV)
    next_BT = jnp.roll(tokens_BT, -1, 1)
    logp_BT = jnp.take_along_axis(logp_BTV, next_BT[..., None], -1)[..., 0]
    return jnp.exp(jnp.where(target_BT, logp_BT, 0).sum(1))
