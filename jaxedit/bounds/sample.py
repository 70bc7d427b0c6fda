"""The documents X_1 … X_m that a bound speaks about, and which of them are drawn when.

A bound holds for documents that are independent and come from one distribution. `draws` makes that
so: m of them are drawn, each uniformly among all documents (or passages), which then *are* the true
distribution, and new draws show the true risk. Without draws the documents themselves are taken for
such a sample; whoever does so says it (`independent`), and what cannot be is refused.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.data import tokens as cache
from jaxedit.data.documents import Source
from jaxedit.data.tokens import Tokens
from jaxedit.progress import Progress, quiet


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    text: Source = dataclasses.field(default_factory=Source)
    draws: int = 0  # m; 0: the documents as they are
    independent: bool = False  # without draws: the documents are independent of each other
    shuffled: int = 0  # tokens are permuted within stretches of so many; 0 and 1: as they are
    seed: int = 0  # of draws and permutations
    cache: str = ""  # folder of tokenised text; "": jaxedit/tokens in $XDG_CACHE_HOME or ~/.cache

    def __post_init__(self) -> None:
        if min(self.draws, self.shuffled) < 0:
            raise ValueError(f"draws={self.draws}, shuffled={self.shuffled}: neither is negative")
        if self.draws or not self.text.paths:
            return
        if self.text.cut:
            raise ValueError(
                f"cut={self.text.cut}: passages of one document are not independent of each other; "
                "set draws, so that they are drawn independently, or take whole documents"
            )
        if not self.independent:
            raise ValueError(
                "a bound needs independent documents: set independent=true if these are, or draws"
            )


class Rows(NamedTuple):
    """Documents as arrays: an end-of-text token, then the document's."""

    tokens_BT: np.ndarray
    pos_BT: np.ndarray  # -1 at padding


@dataclasses.dataclass(frozen=True)
class Sample:
    """m documents of those in `tokens`, which all have at least one token."""

    tokens: Tokens
    documents_m: np.ndarray  # which document each of them is
    population: np.ndarray  # what was drawn from; empty without draws
    end: int  # the end-of-text token
    vocab: int  # tokens that there are; a model may have more, of which no document has any
    cfg: SampleConfig

    def __len__(self) -> int:
        return len(self.documents_m)

    def __getitem__(self, document: int) -> np.ndarray:
        """A document's tokens, permuted if the config says so, without the end-of-text token."""
        begin, stop = self.tokens.starts[document : document + 2]
        out = np.array(self.tokens.flat[begin : stop - 1], np.int32)
        if self.cfg.shuffled > 1:
            random = np.random.RandomState([self.cfg.seed, 1, document])
            for at in range(0, len(out), self.cfg.shuffled):
                random.shuffle(out[at : at + self.cfg.shuffled])
        return out

    def length(self, document: int) -> int:
        return int(self.tokens.starts[document + 1] - self.tokens.starts[document]) - 1

    def subsample(self, n: int, seed: int) -> np.ndarray:
        """n documents drawn from the m with replacement; seed: independent of all training."""
        return self.documents_m[np.random.RandomState([self.cfg.seed, 2, seed]).randint(
            len(self.documents_m), size=n)]  # fmt: skip

    def fresh(self, n: int, seed: int) -> np.ndarray:
        """n documents that are drawn anew from the true distribution."""
        if not len(self.population):
            raise ValueError("without draws the true distribution is not known: no fresh documents")
        random = np.random.RandomState([self.cfg.seed, 3, seed])
        return self.population[random.randint(len(self.population), size=n)]

    def windows(self, count: int, length: int, step: int, seed: int) -> Rows:
        """A training batch: of so many random documents a window each, at a random place if it is
        the longer.
        """
        random = np.random.RandomState([self.cfg.seed, 4, seed, step])
        tokens = np.zeros((count, length + 1), np.int32)
        pos = np.full((count, length + 1), -1, np.int32)
        chosen = self.documents_m[random.randint(len(self.documents_m), size=count)]
        places = random.random_sample(count)
        for row, (document, place) in enumerate(zip(chosen.tolist(), places, strict=True)):
            whole = np.concatenate([[self.end], self[document]])
            begin = int(place * max(len(whole) - length, 1))
            part = whole[begin : begin + length + 1]
            tokens[row, : len(part)], pos[row, : len(part)] = part, np.arange(len(part))
        return Rows(tokens, pos)

    def digest(self) -> str:
        """A name for the sample: the documents, in their order."""
        out = hashlib.sha256(repr((self.cfg.shuffled, self.cfg.seed, self.end)).encode())
        for x in (self.tokens.flat, self.tokens.starts, self.documents_m, self.population):
            out.update(np.ascontiguousarray(x).tobytes())
        return out.hexdigest()


def load(cfg: SampleConfig, tokenizer: Any, progress: Progress = quiet) -> Sample:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cfg.cache).expanduser() if cfg.cache else Path(home, "jaxedit", "tokens")
    return sample(cfg, cache.from_source(cfg.text, tokenizer, folder, progress), tokenizer)


def sample(cfg: SampleConfig, tokens: Tokens, tokenizer: Any) -> Sample:
    """The sample of tokenised documents; those without a token are no documents."""
    documents = np.flatnonzero(np.diff(tokens.starts) > 1)
    if not len(documents):
        raise ValueError("no documents with a token")
    known = (tokenizer.eos_token_id, len(tokenizer))
    if not cfg.draws:
        if cfg.text.group and len(np.unique(tokens.hashes)) < len(tokens.hashes):
            raise ValueError(
                f"documents share their {cfg.text.group!r}, so they are not independent of each "
                "other; set draws, so that they are drawn independently"
            )
        return Sample(tokens, documents, documents[:0], *known, cfg)
    random = np.random.RandomState([cfg.seed, 0])
    drawn = documents[random.randint(len(documents), size=cfg.draws)]
    return Sample(tokens, drawn, documents, *known, cfg)
