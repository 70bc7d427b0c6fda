"""How well a model predicts given text, before and after an edit."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxedit.data.cases import Skipped
from jaxedit.data.documents import Document, Source, read
from jaxedit.edit.record import Edit
from jaxedit.evaluate.likelihood import ROWS, Line, likelihoods, readable
from jaxedit.evaluate.metrics import Interval, bootstrap
from jaxedit.models.config import Model
from jaxedit.progress import Progress, quiet

LENGTH = 1024  # tokens of a window, where the model reads as many
TEXTS = 256  # tokenised at once


def perplexity(
    model: Model,
    text: Source | Sequence[str] | np.ndarray,
    edit: Edit | None = None,
    *,
    length: int = 0,
    limit: int = 0,
    size: int = ROWS,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Mean negative log-likelihood of a token, in nats, and its exponential, as JSON with 95%
    intervals; with an edit also after it, and the difference.

    text: files (JSONL, plain), strings, or the tokens [N] of one text. Every text by itself is cut
    into windows that see `length` tokens and predict each but the first of the text once. length 0:
    as many as the model reads, at most 1024. limit: of windows. The edit must be of this model.
    """
    if edit is not None:
        edit.check(model)
    most = readable(model, edit)
    length = length or min(most, LENGTH)
    if not 1 <= length <= most:
        raise ValueError(f"windows of {length} tokens; this model reads 1 to {most}")
    left_out: list[Skipped] = []
    whole = windows(texts(model.tokenizer, text, left_out), length)
    found = list(itertools.islice(whole, limit or None))
    if not found:
        raise ValueError("the text has no two tokens, of which one could predict the other")
    places, lines = [place for place, _ in found], [line for _, line in found]
    models = [None] if edit is None else [None, edit]
    columns = [np.array([len(line.tokens) - line.start for line in lines], np.float64)]
    for i, one in enumerate(models):
        share = lambda n, of, i=i: progress(n + i * of, len(models) * of)
        told = likelihoods(model, lines, one, size=size, progress=share)
        columns.append(np.array([-t.total for t in told]))
    # What is drawn anew for the intervals: texts, or the windows of the one text.
    units = np.unique(places, return_inverse=True)[1]
    units = units if units.max() else np.arange(len(lines))
    sums_NM = np.stack([np.bincount(units, column) for column in columns], 1)
    out: dict[str, Any] = {
        "tokens": int(columns[0].sum()),
        "windows": len(lines),
        "texts": len(set(places)),
        "left_out": len(left_out),
        "length": length,
    }
    nll = lambda means_RM, i: means_RM[:, i] / means_RM[:, 0]
    for i, name in enumerate(("before", "after")[: len(models)], 1):
        out[name] = {
            "nll": interval(sums_NM, lambda m, i=i: nll(m, i)),
            "perplexity": interval(sums_NM, lambda m, i=i: np.exp(nll(m, i))),
        }
    if edit is not None:
        more = lambda f: interval(sums_NM, lambda m: f(nll(m, 2)) - f(nll(m, 1)))
        out["change"] = {"nll": more(lambda x: x), "perplexity": more(np.exp)}
    return out


def interval(sums_NM: np.ndarray, combine: Any) -> dict[str, float]:
    found: Interval = bootstrap(sums_NM, combine)
    return found._asdict()


def windows(texts: Iterable[Sequence[int]], length: int) -> Iterator[tuple[int, Line]]:
    """Every window and the number of its text; the first token of a window is the last of the one
    before.
    """
    for number, tokens in enumerate(texts):
        for at in range(0, len(tokens) - 1, length):
            yield number, Line(tuple(tokens[at : at + length + 1]), 1)


def texts(
    tokenizer: Any, text: Source | Sequence[str] | np.ndarray, left_out: list[Skipped]
) -> Iterator[list[int]]:
    """The tokens of each text; rows of files that are none go to `left_out`."""
    if isinstance(text, np.ndarray):
        if text.ndim != 1 or not np.issubdtype(text.dtype, np.integer):
            raise ValueError(
                f"tokens are {text.dtype}{list(text.shape)}; they must be integers [N]"
            )
        yield text.tolist()
        return
    strings: Iterator[str] = iter(())
    if isinstance(text, Source):
        strings = real(read(text), left_out)
    elif isinstance(text, str):
        strings = iter([text])
    else:
        strings = iter(text)
    while some := list(itertools.islice(strings, TEXTS)):
        yield from tokenizer(some, verbose=False)["input_ids"]


def real(rows: Iterable[Document | Skipped], left_out: list[Skipped]) -> Iterator[str]:
    for row in rows:
        if isinstance(row, Skipped):
            left_out.append(row)
        else:
            yield row.text
