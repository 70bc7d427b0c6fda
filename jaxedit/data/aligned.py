"""Edit requests as rows aligned on the token that an edit changes, in batches of few shapes.

A request is asked in several contexts ("I think that. {}"), each a row that ends with the target
without its last token; one more row asks what the subject is, for the term that keeps that answer.
Column P of every row holds the edited token (the subject's last one, usually): what stands before
it is padded on the left, what follows on the right. So ragged prefixes are slices, and whatever the
edit cannot reach is computed once.

A method may want further texts of a request in the same contexts (its subject alone, its target):
they go beside it.

Shapes: N requests, C contexts, R = C rows of a request, or C + 1 with the row about the subject, P
prefix columns, T tail columns, S = P + T, U target tokens, Q = C U (+ 1) columns that logits are
wanted of, X texts beside.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from flax import struct

from jaxedit.base import Array
from jaxedit.data.cases import SLOT, EditRequest, Skipped
from jaxedit.data.requests import Marked, Row, mark, tokenise

Token = Literal["subject_last", "subject_first", "subject_first_after_last", "last"]
Groups = tuple[tuple[str, ...], ...]  # contexts; keys are averaged in a group, then over groups
PLAIN: Groups = (("{}",),)
ABOUT = "{} is a"  # the row about the subject
# A request's texts that go beside it, "" where there is none; as many for every request.
Others = Callable[[EditRequest], Sequence[str]]


@struct.dataclass
class Beside:
    """Texts that stand alone in the contexts: the last column is the last token of each."""

    tokens_NXCS: Array  # int32, 0 at padding
    pos_NXCS: Array  # int32, -1 at padding
    size_NXC: Array  # int32, how many tokens the text has without its context; 0: there is none


@struct.dataclass
class Aligned:
    """N requests in the same contexts; NumPy arrays as `Requests` makes them."""

    tokens_NRS: Array  # int32, 0 at padding
    pos_NRS: Array  # int32, the position in the unpadded row, -1 at padding
    target_NU: Array  # int32
    mask_NU: Array  # float32, 0 beyond a request's target
    at_NQ: Array  # int32: columns of the flat tails [R T]: C x U that predict targets, then about's
    weight_C: Array  # float32, of a context's key in the mean
    valid_N: Array  # bool: False for requests that only fill the batch
    prefix: int = struct.field(pytree_node=False)  # P
    beside: Beside | None = None

    @property
    def contexts(self) -> int:
        return self.weight_C.shape[0]

    def one(self, n: int) -> "Aligned":
        """Request n alone."""
        every = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mine = {k: x for k, x in every.items() if k not in ("weight_C", "prefix")}
        return dataclasses.replace(self, **jax.tree.map(lambda x: x[n : n + 1], mine))

    @property
    def has_about(self) -> bool:
        return self.tokens_NRS.shape[1] > self.contexts


class Tokens(NamedTuple):
    """One request, tokenised and not yet padded."""

    place: int  # among what the caller gave
    rows: tuple[tuple[int, ...], ...]
    at: tuple[int, ...]  # of each row, the edited token
    target: tuple[int, ...]
    # texts beside, in all contexts: the row up to the text's last token, and the text's size
    beside: tuple[tuple[tuple[int, ...], int], ...] = ()

    @property
    def longest(self) -> int:
        return max(map(len, (*self.rows, *(row for row, _ in self.beside))))

    @property
    def tail(self) -> int:
        return max(len(row) - at for row, at in zip(self.rows, self.at, strict=True))


@dataclasses.dataclass(frozen=True)
class Requests:
    """Iterates over (index_N, Aligned): requests of like length, the real ones first.

    index_N says which of the caller's requests they are: `out[index_N] = result[:len(index_N)]`.
    """

    found: tuple[Tokens, ...]
    groups: Groups
    skipped: tuple[Skipped, ...] = ()
    size: int = 16  # requests of a batch
    multiple: int = 1  # requests are a multiple of this: the devices that share a batch

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.size < 1 or self.size % self.multiple:
            raise ValueError(
                f"batches of {self.size} requests: needs a positive multiple of {self.multiple}"
            )

    def __len__(self) -> int:
        return -(-len(self.found) // self.size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Aligned]]:
        # Padding of a tail or of a target is paid at every step of a search, that of a prefix once.
        order = sorted(self.found, key=lambda t: (short(t.tail), few(len(t.target)), t.place))
        for at in range(0, len(order), self.size):
            some = order[at : at + self.size]
            shares = -(-len(some) // self.multiple)
            count = min(self.multiple << (shares - 1).bit_length(), self.size)
            yield np.array([t.place for t in some]), align(some, count, self.groups)


def aligned(
    tokenizer: Any,
    requests: Sequence[EditRequest],
    *,
    groups: Groups = PLAIN,
    about: str | None = ABOUT,
    token: Token = "subject_last",
    beside: Others | None = None,
    longest: int | None = None,
    skip: bool = False,
    **how: Any,
) -> Requests:
    """Tokenises requests in their contexts. One that cannot be used, or has a row of more than
    `longest` tokens, is an error, or left out with its reason in `skipped` if `skip`. `how`: size
    and multiple of `Requests`.
    """
    check(groups, about, token)
    contexts = [context for group in groups for context in group]
    others = [tuple(beside(request)) if beside else () for request in requests]
    pairs = zip(requests, others, strict=True)
    texts = [text for pair in pairs for text in ask(*pair, contexts, about)]
    rows = (row for _, row in tokenise(tokenizer, list(enumerate(texts))))
    R = len(contexts) + (about is not None)
    found: list[Tokens] = []
    skipped: list[Skipped] = []
    for i, other in enumerate(others):
        mine = list(itertools.islice(rows, R + len(other) * len(contexts)))
        one = settle(i, mine[:R], len(contexts), token)
        if isinstance(one, Tokens):
            one = join_beside(one, mine[R:], other)
        if isinstance(one, Tokens) and longest is not None and one.longest > longest:
            one = f"{one.longest} tokens in a context; at most {longest}"
        if isinstance(one, Tokens):
            found.append(one)
        else:
            skipped.append(Skipped(str(i), one))
    if skipped and not skip:
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        first = skipped[0]
        raise ValueError(f"request {first.row}: {first.reason}{more}; skip=True leaves them out")
    return Requests(tuple(found), groups, tuple(skipped), **how)


def check(groups: Groups, about: str | None, token: str) -> None:
    contexts = [context for group in groups for context in group]
    if not contexts or not all(groups):
        raise ValueError(f"contexts {groups!r}: at least one, and no empty group")
    for text in [*contexts, *([] if about is None else [about])]:
        if text.count(SLOT) != 1:
            raise ValueError(f"the context {text!r} needs exactly one {SLOT}")
    if token not in get_args(Token):
        raise ValueError(f"token {token!r}: one of {', '.join(get_args(Token))}")


def ask(
    request: EditRequest, others: Sequence[str], contexts: Sequence[str], about: str | None
) -> Iterator[Marked]:
    """A request's texts: in every context with its target, the one about its subject, and those
    beside it in every context; the subject stands in for one that is not there.
    """
    for context in contexts:
        before = context.index(SLOT)
        start = before + request.prompt.index(SLOT)
        prompt = context.replace(SLOT, request.text)
        yield mark(prompt, request.target, (start, start + len(request.subject)))
    if about is not None:
        start = about.index(SLOT)
        text = about.replace(SLOT, request.subject)
        yield mark(text, "", (start, start + len(request.subject)))

    for other in others:
        text = other or request.subject
        for context in contexts:
            start = context.index(SLOT)
            yield mark(context.replace(SLOT, text), "", (start, start + len(text)))


def settle(place: int, rows: Sequence[Row | str], contexts: int, token: Token) -> Tokens | str:
    """A request's rows with the edited token of each, or why they cannot be used."""
    good = [row for row in rows if isinstance(row, Row)]
    if len(good) < len(rows):
        return next(row for row in rows if isinstance(row, str))
    targets = {row.tokens[row.prompt :] for row in good[:contexts]}
    if len(targets) > 1:
        return f"its target becomes other tokens in other contexts: {sorted(targets)}"
    at = [column(row, token) for row in good]
    # the row about the subject is read at that token: what follows does not matter
    kept = [row.tokens[:-1] for row in good[:contexts]]
    kept += [row.tokens[: i + 1] for row, i in zip(good[contexts:], at[contexts:], strict=True)]
    return Tokens(place, tuple(kept), tuple(at), targets.pop())


def join_beside(one: Tokens, rows: Sequence[Row | str], others: Sequence[str]) -> Tokens | str:
    """A request's tokens with those of the texts beside it, or why they cannot be used."""
    C = len(rows) // max(len(others), 1)
    found = []
    for i, row in enumerate(rows):
        if isinstance(row, str):
            return row
        first, last = row.subject
        found.append((row.tokens[: last + 1], last + 1 - first if others[i // C] else 0))
    return one._replace(beside=tuple(found))


def column(row: Row, token: Token) -> int:
    first, last = row.subject
    if token == "last":
        return row.prompt - 1
    if token == "subject_first_after_last":
        return min(last + 1, row.prompt - 1)
    return first if token == "subject_first" else last


def align(some: Sequence[Tokens], count: int, groups: Groups) -> Aligned:
    """Requests as arrays, padded to `count` of them with copies of the last."""
    C, R = sum(map(len, groups)), len(some[0].rows)
    P = wide(max(max(t.at) for t in some))
    T = short(max(t.tail for t in some))
    U = few(max(len(t.target) for t in some))
    tokens = np.zeros((count, R, P + T), np.int32)
    pos = np.full((count, R, P + T), -1, np.int32)
    target, mask = np.zeros((count, U), np.int32), np.zeros((count, U), np.float32)
    at = np.broadcast_to(np.arange(R, dtype=np.int32)[:, None] * T, (count, R, U)).copy()
    for n in range(count):
        one = some[min(n, len(some) - 1)]
        u = len(one.target)
        target[n, :u], mask[n, :u] = one.target, 1
        for r, (row, i) in enumerate(zip(one.rows, one.at, strict=True)):
            place = slice(P - i, P - i + len(row))
            tokens[n, r, place], pos[n, r, place] = row, np.arange(len(row))
            if r < C:  # the first target is predicted from u - 1 columns before the row's last
                first = len(row) - u - i
                at[n, r] += np.clip(first + np.arange(U, dtype=np.int32), 0, T - 1)
    flat = at[:, :C].reshape(count, C * U)
    if R > C:
        flat = np.concatenate([flat, at[:, C, :1]], 1)
    weight = [1 / (len(group) * len(groups)) for group in groups for _ in group]
    valid = np.arange(count) < len(some)
    arrays: Any = (tokens, pos, target, mask, flat.astype(np.int32))
    arrays += (np.array(weight, np.float32), valid, P)
    arrays += (stack(some, count, C) if some[0].beside else None,)
    return Aligned(*arrays)


def stack(some: Sequence[Tokens], count: int, C: int) -> Beside:
    """The texts beside requests, padded on the left."""
    S = wide(max(len(row) for t in some for row, _ in t.beside))
    shape = (count, len(some[0].beside) // C, C)
    tokens, pos = np.zeros((*shape, S), np.int32), np.full((*shape, S), -1, np.int32)
    size = np.zeros(shape, np.int32)
    for at in np.ndindex(shape):
        row, size[at] = some[min(at[0], len(some) - 1)].beside[at[1] * C + at[2]]
        tokens[at][S - len(row) :], pos[at][S - len(row) :] = row, np.arange(len(row))
    arrays: Any = (tokens, pos, size)
    return Beside(*arrays)


def wide(columns: int) -> int:
    """Prefixes are padded to eights: they are run once."""
    return -(-columns // 8) * 8


def short(columns: int) -> int:
    """Tails are padded to twos, long ones to eights: they are run at every step."""
    return -(-columns // 2) * 2 if columns <= 16 else wide(columns)


def few(tokens: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16 … that holds a target."""
    power = 1 << (tokens - 1).bit_length()
    return power * 3 // 4 if power > 2 and tokens <= power * 3 // 4 else power
