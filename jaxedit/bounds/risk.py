"""What a model loses on documents: for every token its log-probability and its rank, in one pass.

Everything else follows on the host in float64: any smoothing, any top-k error. No logits are kept,
nothing is sorted: a token's rank is how many are at least as likely, so ties count against it.

A document begins after an end-of-text token, and all its tokens count. A longer one than a window
is read in windows that advance by `stride`, each scoring what the last one did not: the predictor
that is bounded sees at least window - stride tokens.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Deltas, Params
from jaxedit.bounds.sample import Sample
from jaxedit.data.requests import bucket
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import hidden
from jaxedit.models.vocabulary import unembed
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import on_mesh_of
from jaxedit.train.loss import parts_of

CACHED = 1 << 22  # logits: they are read three times, on a CPU from its cache


@dataclasses.dataclass(frozen=True)
class ReadConfig:
    window: int = 1024  # tokens that are predicted at once
    stride: int = 512  # of the windows of a longer document
    batch: int = 8192  # tokens of a forward pass

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window or self.batch < 1:
            raise ValueError(f"{self}: 1 <= stride <= window, and batch at least 1")


class Read(NamedTuple):
    """Documents' tokens, one document after the other."""

    logp: np.ndarray  # float32, natural
    rank: np.ndarray  # int32, from 1
    starts: np.ndarray  # [documents + 1]

    def take(self, documents: np.ndarray) -> "Read":
        """Some of them, in another order or again."""
        begins, sizes = self.starts[documents], np.diff(self.starts)[documents]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        at = np.arange(starts[-1]) - np.repeat(starts[:-1] - begins, sizes)
        return Read(self.logp[at], self.rank[at], starts)


def losses(found: Read, alpha: float, vocab: int) -> np.ndarray:
    """Every document's mean of -log2 ((1 - alpha) p + alpha / V), float64."""
    p = np.exp(found.logp.astype(np.float64))
    return means(-np.log2((1 - alpha) * p + alpha / vocab), found.starts)


def errors(found: Read, k: int) -> np.ndarray:
    """Every document's share of tokens that are not among the k most likely."""
    return means((found.rank > k).astype(np.float64), found.starts)


def means(x: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(x, starts[:-1]) / np.diff(starts)


class Window(NamedTuple):
    document: int  # its place in what is read
    begin: int  # of the tokens that are given, in the document with its end-of-text token
    first: int  # which of the window's predictions are new: from here
    size: int  # tokens that are predicted


def windows(lengths: np.ndarray, cfg: ReadConfig) -> list[Window]:
    out = []
    for document, length in enumerate(lengths.tolist()):
        out.append(Window(document, 0, 0, min(length, cfg.window)))
        done = cfg.window
        while done < length:
            stop = min(done + cfg.stride, length)
            begin = stop - cfg.window
            out.append(Window(document, begin, done - begin, cfg.window))
            done = stop
    return out


def read(
    params: Params,
    deltas: Deltas | None,
    model: ModelConfig,
    sample: Sample,
    documents: np.ndarray,
    cfg: ReadConfig = ReadConfig(),
    progress: Progress = quiet,
) -> Read:
    """Scores every document of `documents`; one that is listed again is read once."""
    unique, again = np.unique(documents, return_inverse=True)
    lengths = np.array([sample.length(d) for d in unique.tolist()], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    logp, rank = np.empty(starts[-1], np.float32), np.empty(starts[-1], np.int32)
    by: dict[int, list[Window]] = {}
    for window in windows(lengths, cfg):
        by.setdefault(min(bucket(window.size), cfg.window), []).append(window)
    total, done = sum(map(len, by.values())), 0
    waiting: list[tuple[list[Window], Any]] = []

    def settle() -> None:
        some, found = waiting.pop(0)
        logp_BT, rank_BT = map(np.asarray, found)
        for row, w in enumerate(some):
            begin = int(starts[w.document]) + w.begin
            at = slice(begin + w.first, begin + w.size)
            logp[at], rank[at] = logp_BT[row, w.first : w.size], rank_BT[row, w.first : w.size]

    for size, some in sorted(by.items()):
        rows = max(cfg.batch // size, 1)
        for at in range(0, len(some), rows):
            part = some[at : at + rows]
            arrays = laid_out(sample, unique, part, rows, size)
            waiting.append((part, scores(params, deltas, *map(jnp.asarray, arrays), model)))
            if len(waiting) > 1:  # the device works on the next while the host takes this one down
                settle()
            done += len(part)
            progress(done, total)
    while waiting:
        settle()
    return Read(logp, rank, starts).take(again.reshape(-1))


def laid_out(
    sample: Sample, unique: np.ndarray, some: list[Window], rows: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    tokens, pos = np.zeros((rows, size + 1), np.int32), np.full((rows, size + 1), -1, np.int32)
    for row, w in enumerate(some):
        whole = np.concatenate([[sample.end], sample[int(unique[w.document])]])
        part = whole[w.begin : w.begin + w.size + 1]
        tokens[row, : len(part)], pos[row, : len(part)] = part, np.arange(len(part))
    return tokens, pos


@partial(jax.jit, static_argnames="cfg")
def scores(
    params: Params, deltas: Deltas | None, tokens_BT: Array, pos_BT: Array, cfg: ModelConfig
) -> tuple[Array, Array]:
    """The log-probability and rank of each token but the first, [B, T - 1]."""
    with on_mesh_of(params):
        before_BT, next_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        pos_BT = pos_BT[:, :-1]
        x_BTD = hidden(params, before_BT, cfg, pos_BT=pos_BT, deltas=deltas, plain=True)

        def part(args: tuple[Array, Array]) -> tuple[Array, Array]:
            x_BtD, next_Bt = args
            logits_BtV = unembed(params, x_BtD, cfg, deltas=deltas)
            picked_Bt1 = jnp.take_along_axis(logits_BtV, next_Bt[..., None], -1)
            logp_Bt = picked_Bt1[..., 0] - jax.nn.logsumexp(logits_BtV, -1)
            return logp_Bt, (logits_BtV >= picked_Bt1).sum(-1, dtype=jnp.int32)

        B, T = next_BT.shape
        most = CACHED if jax.default_backend() == "cpu" else 0
        parts = parts_of(B * T * cfg.vocab, T, most)
        cut = lambda z: z.reshape(B, parts, T // parts, *z.shape[2:]).swapaxes(0, 1)
        join = lambda z: z.swapaxes(0, 1).reshape(B, T)
        logp, rank = jax.lax.map(part, (cut(x_BTD), cut(next_BT)))
        return join(logp), join(rank)
