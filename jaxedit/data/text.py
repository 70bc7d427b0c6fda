"""Text in windows for training: batch `step` is a pure function of the text, the seed and `step`.

A loader such as Grain was not needed: windows are read by their number from a mapped array, and the
order is computed, not kept. So the state of the data is the number of the step, resuming is exact
by construction, and a host reads its own rows without knowing of the others.
"""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxedit.data import tokens as cache
from jaxedit.data.documents import Source
from jaxedit.data.tokens import Tokens
from jaxedit.progress import Progress, quiet

Mode = Literal["stream", "documents"]
Part = Literal["train", "validation"]
ROUNDS = 8  # of the Feistel network


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Which text, cut into which windows, in which order."""

    source: Source = dataclasses.field(default_factory=Source)
    length: int = 1024  # tokens that are predicted; a window has one more
    # stream: windows follow each other without gaps. documents: a window begins with a document
    # and holds those that fit; only a document longer than a window goes on in the next.
    mode: Mode = "stream"
    batch: int = 8  # windows of a step, on all hosts together
    seed: int = 0
    held_out: float = 0.0  # the fraction of documents that are for validation
    cache: str = ""  # folder of tokenised text; "": jaxedit/tokens in $XDG_CACHE_HOME or ~/.cache

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r}: one of {', '.join(get_args(Mode))}")
        if self.length < 1 or self.batch < 1:
            raise ValueError(f"length {self.length}, batch {self.batch}: both at least 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out {self.held_out}: from 0 to below 1")


def load(
    cfg: TextConfig,
    tokenizer: Any,
    texts: Iterable[str] | None = None,
    *,
    part: Part = "train",
    progress: Progress = quiet,
) -> "Text":
    """The windows of the source or, in its place, of strings in memory.

    Files and hub datasets are tokenised once and cached. Rows that are no documents are counted and
    warned of. A document is held out by the hash of its group or text: copies stay together, and
    text that is added later does not move what was there.
    """
    if (texts is None) == (not cfg.source.paths):
        raise ValueError("give texts, or source.paths in the config: one of them")
    if texts is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cfg.cache).expanduser() if cfg.cache else Path(home, "jaxedit", "tokens")
        tokens = cache.from_source(cfg.source, tokenizer, folder, progress)
    else:
        tokens = cache.from_strings(texts, tokenizer)
    if tokens.left_out:
        row, reason = tokens.skipped[0].row, tokens.skipped[0].reason
        warnings.warn(f"{tokens.left_out} rows skipped; {row}: {reason}", stacklevel=2)
    return Text(cfg, tokens, part)


class Text:
    """Windows by number, shuffled anew in every epoch, in batches by step."""

    def __init__(self, cfg: TextConfig, tokens: Tokens, part: Part):
        if part not in get_args(Part):
            raise ValueError(f"part {part!r}: one of {', '.join(get_args(Part))}")
        self.cfg, self.tokens = cfg, tokens
        held = tokens.hashes < np.uint64(cfg.held_out * 2.0**64)
        self.documents = np.flatnonzero(held if part == "validation" else ~held)
        if not len(self.documents):
            raise ValueError(
                f"no document of {len(held)} is for {part} at held_out={cfg.held_out}: change it, "
                "or give more documents"
            )
        lengths = np.diff(tokens.starts)[self.documents]
        self.ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self.size = int(self.ends[-1])  # tokens of this part
        window = cfg.length + 1
        if cfg.mode == "stream":
            if self.size < window:
                raise ValueError(
                    f"the {part} text has {self.size} tokens, a window takes {window}: "
                    "lower the length, or give more text"
                )
            self.begins = np.arange(self.size // window, dtype=np.int64) * window
            self.stops = self.begins + window
        else:
            self.begins, self.stops = pack(lengths, window)

    def __len__(self) -> int:
        """The windows of an epoch."""
        return len(self.begins)

    def batch(
        self, step: int, process_index: int = 0, process_count: int = 1
    ) -> dict[str, np.ndarray]:
        """This host's rows of a step's batch: the hosts' rows one after the other are the whole.

        An epoch takes every window once; a batch may end one epoch and begin the next.
        """
        B = self.cfg.batch
        if B % process_count or not 0 <= process_index < process_count:
            raise ValueError(
                f"process {process_index} of {process_count} and a batch of {B}: the batch must be "
                "a multiple of the processes"
            )
        if step < 0:
            raise ValueError(f"step {step}; they count from 0")
        share = B // process_count
        first = step * B + process_index * share
        rows = np.arange(first, first + share, dtype=np.int64)
        epochs, places = np.divmod(rows, len(self))
        windows = np.empty_like(rows)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            windows[mine] = shuffle(places[mine], len(self), self.cfg.seed, epoch)
        return self.read(windows)

    def read(self, windows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Windows by number, unshuffled: "tokens_BT" [B, length + 1].

        Documents mode also has "pos_BT", -1 at padding, and "target_BT": the next token is real.
        Positions go on from one document of a window to the next, as attention goes by them.
        """
        windows = np.asarray(windows, np.int64)
        shape = (len(windows), self.cfg.length + 1)
        tokens, pos = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        for row, w in enumerate(windows):
            begin, stop = int(self.begins[w]), int(self.stops[w])
            self._copy(begin, tokens[row, : stop - begin])
            pos[row, : stop - begin] = np.arange(stop - begin)
        if self.cfg.mode == "stream":
            return {"tokens_BT": tokens}
        target = np.zeros(shape, bool)
        target[:, :-1] = pos[:, 1:] >= 0
        return {"tokens_BT": tokens, "pos_BT": pos, "target_BT": target}

    def _copy(self, begin: int, out: np.ndarray) -> None:
        """Tokens of this part from `begin` on: pieces of its documents, which need not be
        neighbours.
        """
        d = int(np.searchsorted(self.ends, begin, "right")) - 1
        done = 0
        while done < len(out):
            inside = begin + done - int(self.ends[d])
            start = int(self.tokens.starts[self.documents[d]]) + inside
            n = min(int(self.ends[d + 1]) - begin - done, len(out) - done)
            out[done : done + n] = self.tokens.flat[start : start + n]
            done, d = done + n, d + 1


def pack(lengths: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Where windows begin and stop, in the tokens of documents laid end to end: each takes what
    documents still fit.
    """
    begins, stops = [], []
    begin = end = 0  # of the window that is being filled
    for n in lengths.tolist():
        if end > begin and end + n - begin > window:
            begins.append(begin)
            stops.append(end)
            begin = end
        end += n
        while end - begin > window:
            begins.append(begin)
            stops.append(begin + window)
            begin += window
    begins.append(begin)
    stops.append(end)
    return np.array(begins, np.int64), np.array(stops, np.int64)


def shuffle(places: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """A random permutation of 0 … n-1 at some places, in any size at the cost of these places.

    A Feistel network (a bijection of the numbers of 2·half bits, whatever the rounds do), applied
    until the number is below n. NumPy's own permutation may change from one version to another.
    """
    half = np.uint64(max(((n - 1).bit_length() + 1) // 2, 1))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.frombuffer(
        hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest(), "<u8"
    )

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (mix(right + key) & mask)
        return (left << half) | right

    x = network(places.astype(np.uint64))
    while (outside := x >= n).any():
        x[outside] = network(x[outside])
    return x.astype(np.int64)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every bit of x moves every bit of the result."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
