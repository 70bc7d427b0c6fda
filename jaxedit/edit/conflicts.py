"""Where edits may undo one another: they want different things after the same words, or they change
one matrix along one direction.

I: input of a matrix, R rank, N ranks of several edits.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from jaxedit.base import Delta, Deltas, LowRank, chain
from jaxedit.data.cases import SLOT

ALIKE = 0.9  # |cosine| above which two directions count as one
BLOCK = 512  # rows of cosines at a time

Request = Mapping[str, str]  # subject, prompt, target
Layer = int | None  # None outside the blocks
Place = tuple[str, Layer]  # a matrix and its layer
Directions = Mapping[Place, np.ndarray]  # [R, I] float32, rows of length one


class Claim(NamedTuple):
    """What a request asks for."""

    id: str | None  # the edit that was made for it; None: nothing in the ledger
    text: str
    target: str
    key: str  # equal for texts that differ in white space and case alone


class Contradiction(NamedTuple):
    """Two edits that want different targets after the same words."""

    one: str | None
    other: str | None  # None: what was asked about
    text: str
    targets: tuple[str, str]


class Overlap(NamedTuple):
    """Two edits that change a matrix along nearly one input: what fires one fires the other."""

    one: str
    other: str | None
    path: str
    layer: Layer
    cosine: float  # the largest between columns of their `LowRank.a`, without its sign


def requests_of(provenance: Mapping[str, Any]) -> tuple[Request, ...]:
    """The requests that an edit was made for: its "request", its "requests", or none."""
    found = [provenance.get("request"), *(provenance.get("requests") or ())]
    return tuple(
        {name: str(r.get(name) or "") for name in ("subject", "prompt", "target")}
        for r in found
        if isinstance(r, Mapping)
    )


def claims_of(id: str | None, requests: Iterable[Request]) -> Iterator[Claim]:
    """The requests that have words: an edit may say only its subject, or nothing."""
    for r in requests:
        if r["prompt"].strip():
            text = r["prompt"].replace(SLOT, r["subject"].strip())
            yield Claim(id, text, r["target"], fold(text))


def fold(text: str) -> str:
    return " ".join(text.split()).casefold()


def contradictions(
    have: Iterable[Claim], asked: Iterable[Claim] | None = None
) -> Iterator[Contradiction]:
    """Claims of `have` against those of `asked`; None: against one another."""
    held: dict[str, list[Claim]] = defaultdict(list)
    for claim in have:
        held[claim.key].append(claim)
    pairs: Iterable[tuple[Claim, Claim]]
    if asked is None:
        pairs = (pair for same in held.values() for pair in combinations(same, 2))
    else:
        pairs = ((x, y) for y in asked for x in held.get(y.key, ()))
    for x, y in pairs:
        if fold(x.target) != fold(y.target):
            yield Contradiction(x.id, y.id, y.text, (x.target, y.target))


def pieces(path: str, d: Delta) -> Iterator[tuple[Place, tuple[np.ndarray, ...]]]:
    """A shared delta layer by layer, on the host: (a, b) of a LowRank, (w,) of a Dense."""
    arrays = tuple(map(np.asarray, (d.a, d.b) if isinstance(d, LowRank) else (d.w,)))
    if "/" not in path:
        yield (path, None), arrays
        return
    layers = range(len(arrays[0])) if d.layers is None else np.asarray(d.layers).tolist()
    for j, layer in enumerate(layers):
        if layer >= 0:
            yield (path, layer), tuple(x[j] for x in arrays)


def directions(deltas: Deltas) -> Directions:
    """The columns of every LowRank's a, scaled to length one; a Dense has none."""
    found: dict[Place, list[np.ndarray]] = defaultdict(list)
    for path, v in deltas.items():
        for d in chain(v):
            for place, arrays in pieces(path, d) if isinstance(d, LowRank) else ():
                a_RI = arrays[0].T.astype(np.float32)
                size_R1 = np.linalg.norm(a_RI, axis=1, keepdims=True)
                used = size_R1[:, 0] > 0  # zeros are padding
                found[place].append(a_RI[used] / size_R1[used])
    joined = {place: np.concatenate(rows) for place, rows in found.items()}
    return {place: rows for place, rows in joined.items() if len(rows)}


def overlaps(
    have: Mapping[str, Directions], asked: Directions | None = None, threshold: float = ALIKE
) -> Iterator[Overlap]:
    """Edits whose directions are alike: of `have` and the one asked about; None: among `have`."""
    if not 0 < threshold < 1:
        raise ValueError(f"threshold {threshold}: a cosine between 0 and 1")
    places = {place for each in have.values() for place in each}
    for place in sorted(places if asked is None else places & asked.keys(), key=str):
        y = {id: each[place] for id, each in have.items() if place in each}
        x = list(y.values()) if asked is None else [asked[place]]
        ids = list(y)
        for (i, j), cosine in find_alike(x, list(y.values()), threshold):
            if asked is not None:
                yield Overlap(ids[j], None, *place, cosine)
            elif j < i:
                yield Overlap(ids[j], ids[i], *place, cosine)


def find_alike(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], threshold: float
) -> list[tuple[tuple[int, int], float]]:
    """Pairs (i, j) of x[i] [R, I] and y[j] with rows of |cosine| above the threshold."""
    x_NI, y_NI = np.concatenate(x), np.concatenate(y)
    owner_N = np.repeat(np.arange(len(x)), [len(rows) for rows in x])
    starts = np.cumsum([0, *map(len, y)])[:-1]
    best: dict[tuple[int, int], float] = defaultdict(float)
    for at in range(0, len(x_NI), BLOCK):
        cosine = np.abs(x_NI[at : at + BLOCK] @ y_NI.T)
        cosine = np.maximum.reduceat(cosine, starts, axis=1)  # a column per edit of y
        for r, j in np.argwhere(cosine > threshold).tolist():
            pair = int(owner_N[at + r]), j
            best[pair] = max(best[pair], min(float(cosine[r, j]), 1.0))
    return sorted(best.items())
