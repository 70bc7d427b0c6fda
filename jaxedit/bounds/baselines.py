"""Trivial hypotheses, coded, evaluated and bounded as any other: uniform, unigram, bigram.

A table holds how likely a token is, after each other token or after all. It is counted on the
sample, rounded to halves of a bit, and coded as symbols are; a pair that is rare is not in it, and
as likely as the second token by itself, times 2**-BACK.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxedit.bounds import code
from jaxedit.bounds.risk import Read
from jaxedit.bounds.sample import Sample

LEVELS = 64  # halves of a bit below the most likely
BACK = 7  # bits that a pair outside the table loses
LARGEST = 512  # tokens of which there is a table of pairs
RARE = 1 << 18  # a pair is in the table if it is not rarer than one of so many


class Table(NamedTuple):
    name: str
    logp: np.ndarray  # [contexts, V], natural: one context, or a token each
    bits: int  # of the file


def counts(sample: Sample) -> np.ndarray:
    """How often tokens follow each other in the sample, [V, V]; the first follows the end of text.
    Of a larger vocabulary how often each occurs, [1, V].
    """
    times = np.bincount(sample.documents_m, minlength=len(sample.tokens.starts) - 1)
    vocab = sample.vocab
    pairs = vocab <= LARGEST
    out = np.zeros((vocab if pairs else 1, vocab))
    for document in np.flatnonzero(times).tolist():
        after = sample[document]
        before = np.concatenate([[sample.end], after[:-1]]) if pairs else np.zeros_like(after)
        np.add.at(out, (before, after), times[document])
    return out


def tables(counted: np.ndarray) -> list[Table]:
    vocab = counted.shape[1]
    once = counted.sum(0)
    out = code.Encoder()
    single = distribution(put(out, halves(once)))
    found = [
        Table("uniform", np.full((1, vocab), -math.log(vocab)), 0),
        Table("unigram", np.log(single)[None], 8 * len(out.finish())),
    ]
    if len(counted) == 1:
        return found
    out = code.Encoder()
    put(out, halves(once))
    known = counted >= counted.sum() / RARE
    steps = np.where(known, 1 + np.minimum(halves(counted, axis=1), LEVELS - 1), 0)
    put(out, steps.ravel())
    weights = np.where(known, 2.0 ** (-(steps - 1) / 2), single * 2.0**-BACK)
    logp = np.log(weights / weights.sum(1, keepdims=True))
    return [*found, Table("bigram", logp, 8 * len(out.finish()))]


def halves(counted: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Halves of a bit below the most frequent."""
    most = counted.max(axis=axis, keepdims=axis is not None)
    share = np.maximum(counted, 1e-9) / np.maximum(most, 1)
    return np.clip(np.round(-2 * np.log2(share)), 0, LEVELS - 1).astype(np.int64)


def distribution(steps: np.ndarray) -> np.ndarray:
    weights = 2.0 ** (-steps / 2)
    return weights / weights.sum()


def put(out: code.Encoder, symbols: np.ndarray) -> np.ndarray:
    """Symbols below 2 · LEVELS: which occur, how often each, and in which order."""
    times = np.bincount(symbols, minlength=2 * LEVELS)
    for present in (times > 0).tolist():
        out.put(int(present), 1, 2)
    kept = np.flatnonzero(times)
    code.put_counts(out, times[kept].tolist())
    code.put_symbols(out, np.searchsorted(kept, symbols), times[kept].tolist())
    return symbols


def read(table: Table, sample: Sample, documents: np.ndarray) -> Read:
    """Its log-probability and rank of every token of documents; ties count against it."""
    texts = [sample[d] for d in documents.tolist()]
    starts = np.concatenate([[0], np.cumsum([len(t) for t in texts])])
    after = np.concatenate(texts)
    before = np.concatenate([[sample.end], after[:-1]])
    before[starts[:-1]] = sample.end
    if len(table.logp) == 1:
        before[:] = 0
    ranks = np.empty(table.logp.shape, np.int32)
    for row, logp in enumerate(table.logp):
        ranks[row] = len(logp) - np.searchsorted(np.sort(logp), logp, "left")
    logp = table.logp[before, after]
    return Read(logp.astype(np.float32), ranks[before, after], starts)
