"""Edit requests and probes as arrays, in batches of few shapes.

A prompt and its target are tokenised as one text, as the model would meet them, and cut by
character offsets. Lengths of tokens are never added up: a token may hold its word's space, several
tokens may share one character, and a BOS may stand before all of them.
"""

import bisect
import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import struct

from jaxedit.base import Array
from jaxedit.data.cases import SLOT, EditRequest, Skipped

CHUNK = 1024  # texts that the tokenizer is given at once
SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level BPE write a space
CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")
# What goes with the word before it: white space, punctuation that ends there ("." but not ".NET",
# also closing brackets and quotation marks), "'s".
ENDS = re.compile(
    r"\s|[.,;:!?%)\]}\"'\u00bb\u2019\u201d\u2026]+(\s|\Z)|['\u2019](s|t|re|ve|m|ll|d)\b"
)
# What the word after it goes with: white space, brackets and quotation marks that open.
OPENS = re.compile(r"(\s|[(\[{\u00ab\u2018\u201c]|(^|\s)[\"'])\Z")


@struct.dataclass
class EditBatch:
    """Rows of prompts and targets; columns count padding, so a column is right on either side.

    NumPy arrays as `Batches` makes them, so that a jitted function puts them where its mesh wants
    them. Rows that only fill the batch repeat a real one and have no targets.
    """

    tokens_BT: Array  # int32, 0 at padding
    pos_BT: Array  # int32, -1 at padding
    target_BT: Array  # bool: the *next* token is one of the target's
    prompt_B: Array  # int32: column of the prompt's last token, whose logits begin the target
    subject_B: Array  # int32: column of the subject's last token, -1 where there is no subject
    subject_first_B: Array  # int32: column of the token with the subject's first letter, or -1
    valid_B: Array  # bool: False for rows that only fill the batch


class Pair(NamedTuple):
    """A probe's prompt with one of its answers ("" to have the prompt alone)."""

    prompt: str
    answer: str = ""
    subject: str = ""  # where its position is wanted: the last place in the prompt that names it


class Row(NamedTuple):
    """One tokenised text, unpadded."""

    place: int  # among what the caller gave
    tokens: tuple[int, ...]
    prompt: int  # how many tokens the prompt has
    subject: tuple[int, int]  # the subject's first and last token, or (-1, -1)


class Marked(NamedTuple):
    """A text to be tokenised, and where in it the subject and the target are."""

    text: str
    cut: int  # characters of the prompt
    subject: tuple[int, int]  # its first character and the one after its last, or (-1, -1)

    @property
    def has_target(self) -> bool:
        return len(self.text) > self.cut


@dataclasses.dataclass(frozen=True)
class Batches:
    """Iterates over (index_N, EditBatch): rows of like length, N <= B of them real and first.

    index_N says which of the caller's rows they are: `out[index_N] = result_B[:len(index_N)]`.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = ()
    size: int = 64  # rows of a batch
    side: Literal["left", "right"] = "right"  # where the padding goes
    multiple: int = 1  # rows are a multiple of this: the devices that share a batch

    def __post_init__(self) -> None:
        if self.side not in ("left", "right"):
            raise ValueError(f"padding side {self.side!r}: left or right")
        if self.multiple < 1 or self.size < 1 or self.size % self.multiple:
            raise ValueError(
                f"batches of {self.size} rows: needs a positive multiple of {self.multiple}"
            )

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def parts(self) -> Iterator[tuple[list[Row], int]]:
        """The rows of each batch, and how many it is filled up to."""
        # Sorted by bucket, all batches but the last are full: one shape a bucket, and one more.
        rows = sorted(self.rows, key=lambda row: bucket(len(row.tokens)))
        for at in range(0, len(rows), self.size):
            some = rows[at : at + self.size]
            shares = -(-len(some) // self.multiple)  # doubled until they hold the rows
            yield some, min(self.multiple << (shares - 1).bit_length(), self.size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, EditBatch]]:
        for some, B in self.parts():
            yield np.array([row.place for row in some]), pad(some, B, self.side)


def edit_batches(
    tokenizer: Any,
    requests: Sequence[EditRequest],
    *,
    longest: int | None = None,
    skip: bool = False,
    **how: Any,
) -> Batches:
    """Batches of requests: the prompt with its subject, and the target after it.

    A row that has more than `longest` tokens, or none of its subject or target, is an error, or
    left out with its reason in `skipped` if `skip`. `how`: the other fields of `Batches`.
    """
    texts = []
    for request in requests:
        start = request.prompt.index(SLOT)
        subject = (start, start + len(request.subject))
        texts.append(mark(request.text, request.target, subject))
    return batches(tokenizer, texts, longest, skip, how)


def probe_batches(
    tokenizer: Any,
    pairs: Iterable[str | tuple[str, ...]],
    *,
    longest: int | None = None,
    skip: bool = False,
    **how: Any,
) -> Batches:
    """Batches of `Pair`s, or of what makes one: prompts, (prompt, answer), (prompt, answer,
    subject); otherwise as `edit_batches`.
    """
    texts: list[Marked | str] = []
    for given in pairs:
        pair = Pair(given) if isinstance(given, str) else Pair(*given)
        at = pair.prompt.rfind(pair.subject) if pair.subject else -1
        if pair.subject and at < 0:
            texts.append(f"subject {pair.subject!r} does not occur in the prompt {pair.prompt!r}")
            continue
        subject = (at, at + len(pair.subject)) if pair.subject else (-1, -1)
        texts.append(mark(pair.prompt, pair.answer, subject))
    return batches(tokenizer, texts, longest, skip, how)


def join(prompt: str, target: str) -> str:
    """`target` as it continues `prompt`: after one space, unless there is one or none belongs."""
    target = target.strip(" ")
    cjk = CJK.match(prompt[-1:]) and CJK.match(target)  # these scripts have no spaces
    alone = not target or cjk or ENDS.match(target) or OPENS.search(prompt)
    return target if alone else f" {target}"


def mark(prompt: str, target: str, subject: tuple[int, int]) -> Marked:
    start, end = subject
    named = prompt[start:end] if start >= 0 else ""
    if named.strip():  # a subject's own outer spaces are not the subject
        start += len(named) - len(named.lstrip())
        end -= len(named) - len(named.rstrip())
    return Marked(prompt + join(prompt, target), len(prompt), (start, end))


def batches(
    tokenizer: Any, texts: Sequence[Marked | str], longest: int | None, skip: bool, how: dict
) -> Batches:
    """Tokenises; what cannot be used (a string is its reason already) is skipped or an error."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    good = [(i, text) for i, text in enumerate(texts) if isinstance(text, Marked)]
    found: dict[int, Row | str] = {i: text for i, text in enumerate(texts) if isinstance(text, str)}
    found |= dict(tokenise(tokenizer, good))
    for i in range(len(texts)):
        row = found[i]
        if isinstance(row, Row) and longest is not None and len(row.tokens) > longest:
            row = f"{len(row.tokens)} tokens; at most {longest}"
        if isinstance(row, Row):
            rows.append(row)
        else:
            skipped.append(Skipped(str(i), row))
    if skipped and not skip:
        more = f" (and {len(skipped) - 1} more rows)" if len(skipped) > 1 else ""
        raise ValueError(
            f"row {skipped[0].row}: {skipped[0].reason}{more}; skip=True leaves them out"
        )
    return Batches(tuple(rows), tuple(skipped), **how)


def tokenise(
    tokenizer: Any, texts: Sequence[tuple[int, Marked]]
) -> Iterator[tuple[int, Row | str]]:
    """Each text's row, or why there is none."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} tells no character offsets; load a fast tokenizer "
            "(tokenizer.json, or transformers.AutoTokenizer)"
        )
    vocab = tokenizer.get_vocab()
    spaces = {vocab[token] for token in SPACES if token in vocab}
    for at in range(0, len(texts), CHUNK):
        some = texts[at : at + CHUNK]
        out = tokenizer(
            [text.text for _, text in some],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # says that a text is longer than the model; `longest` is about that
        )
        rows = zip(
            some, out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True
        )
        for (i, text), ids, offsets, special in rows:
            yield i, cut(i, text, ids, offsets, special, spaces)


def cut(
    place: int,
    text: Marked,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    special: Sequence[int],
    spaces: Collection[int],
) -> Row | str:
    """Finds the target and the subject by their characters. `spaces`: the ids of bare spaces.

    A token that begins in the prompt and ends in the target belongs to the target: the model has
    to say it. What the tokenizer adds at the end (an EOS) is left out.
    """
    n = len(ids)
    while n and special[n - 1]:
        n -= 1
    starts, ends = [o[0] for o in offsets[:n]], [o[1] for o in offsets[:n]]
    prompt = bisect.bisect_right(ends, text.cut)  # the first token that ends after the prompt
    if not prompt:
        return f"no token before the target in {text.text!r}"
    if text.has_target and prompt == n:
        return f"the target of {text.text!r} has no token"
    start, end = text.subject
    if start < 0:
        return Row(place, tuple(ids[:n]), prompt, (-1, -1))
    first, last = bisect.bisect_right(ends, start), bisect.bisect_left(starts, end) - 1
    # A space put before the whole text claims the offsets of the first letter.
    while first < last and ids[first] in spaces:
        first += 1
    if first > last:
        return f"the subject {text.text[start:end]!r} has no token"
    if last >= prompt:
        return f"one token of {text.text!r} holds the subject's end and the target's beginning"
    return Row(place, tuple(ids[:n]), prompt, (first, last))


def bucket(length: int) -> int:
    """The least of 8, 16, 24, 32, 48, 64, 96, 128, 192 … that holds `length` tokens."""
    if length <= 32:
        return max(-(-length // 8) * 8, 8)
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power


def pad(rows: Sequence[Row], B: int, side: str) -> EditBatch:
    """Rows as arrays [B, bucket]."""
    T = bucket(max(len(row.tokens) for row in rows))
    tokens, pos = np.zeros((B, T), np.int32), np.full((B, T), -1, np.int32)
    target = np.zeros((B, T), bool)
    prompt, last, first = (np.full(B, -1, np.int32) for _ in range(3))
    for b in range(B):
        row = rows[min(b, len(rows) - 1)]
        n = len(row.tokens)
        at = T - n if side == "left" else 0
        tokens[b, at : at + n], pos[b, at : at + n] = row.tokens, np.arange(n)
        target[b, at + row.prompt - 1 : at + n - 1] = b < len(rows)
        prompt[b] = at + row.prompt - 1
        if row.subject[0] >= 0:
            first[b], last[b] = at + row.subject[0], at + row.subject[1]
    valid = np.arange(B) < len(rows)
    arrays: Any = (tokens, pos, target, prompt, last, first, valid)
    return EditBatch(*arrays)
