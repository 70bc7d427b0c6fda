"""Numbers to bytes and back: a range coder in integers, whose length is the length of a file.

Whatever is coded is coded by frequencies that the decoder knows already: choices of a list
uniformly, float16 by its bits, how often each symbol occurs by the number of that composition among
all, and then the symbols themselves, each by what is left of it. So the symbols take the
logarithm of their multinomial coefficient, which is less than any fixed frequencies would.

No code is the beginning of another: the last byte is chosen so that whatever may follow changes
nothing. So 2**-bits sum to one at most over all messages, and are a prior.
"""

import math
from collections.abc import Sequence

import numpy as np

WORD = 64  # bits of the interval
TOP, STEP = 1 << WORD, 1 << (WORD - 8)
LIMIT = 1 << 32  # frequencies may add up to this much


class Encoder:
    """Narrows [low, low + size) with everything that is put, and writes bytes as they settle."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.low, self.size = 0, TOP

    def put(self, start: int, count: int, total: int) -> None:
        """What takes [start, start + count) of total."""
        unit = self.size // total
        self.low += unit * start
        self.size = unit * count if start + count < total else self.size - unit * start
        while self.size < STEP:
            self.shift()

    def shift(self) -> None:
        self.carry()
        self.out.append(self.low >> (WORD - 8))
        self.low = (self.low << 8) & (TOP - 1)
        self.size <<= 8

    def carry(self) -> None:
        if self.low >= TOP:
            self.low -= TOP
            at = len(self.out) - 1
            while self.out[at] == 255:
                self.out[at] = 0
                at -= 1
            self.out[at] += 1

    def finish(self) -> bytes:
        """The fewest bytes that stay in the interval whatever follows them."""
        for n in range(WORD // 8 + 1):
            unit = 1 << (WORD - 8 * n)
            value = -(-self.low // unit) * unit
            if value + unit <= self.low + self.size:
                self.low = value
                break
        self.carry()
        return bytes(self.out) + self.low.to_bytes(WORD // 8, "big")[:n]


class Decoder:
    """Reads what an Encoder wrote, given the same totals in the same order."""

    def __init__(self, data: bytes):
        self.data, self.at = data, WORD // 8
        self.value = int.from_bytes(data[: self.at].ljust(self.at, b"\0"), "big")
        self.size = TOP

    def peek(self, total: int) -> int:
        """A number of [0, total) inside what comes next."""
        return min(self.value // (self.size // total), total - 1)

    def take(self, start: int, count: int, total: int) -> None:
        unit = self.size // total
        self.value -= unit * start
        self.size = unit * count if start + count < total else self.size - unit * start
        while self.size < STEP:
            byte = self.data[self.at] if self.at < len(self.data) else 0
            self.value, self.size, self.at = (self.value << 8) | byte, self.size << 8, self.at + 1

    def get(self, total: int) -> int:
        """One of `total` choices."""
        found = self.peek(total)
        self.take(found, 1, total)
        return found


def put_number(out: Encoder, number: int, total: int) -> None:
    """A number of [0, total), however large: by its digits, the first of which is partly used."""
    digits = []
    while total > LIMIT:
        digits.append((number % LIMIT, LIMIT))
        number, total = number // LIMIT, -(-total // LIMIT)
    for digit, base in [(number, total), *reversed(digits)]:
        out.put(digit, 1, base)


def get_number(data: Decoder, total: int) -> int:
    digits = 0
    while total > LIMIT:
        total, digits = -(-total // LIMIT), digits + 1
    number = data.get(total)
    for _ in range(digits):
        number = number * LIMIT + data.get(LIMIT)
    return number


def compositions(n: int, parts: int) -> int:
    """In how many ways n falls into so many parts, each at least one."""
    return math.comb(n - 1, parts - 1)


def put_counts(out: Encoder, counts: Sequence[int]) -> None:
    """How often each symbol occurs, given how many symbols and numbers there are."""
    left, number, total = sum(counts), 0, compositions(sum(counts), len(counts))
    for parts, count in zip(range(len(counts), 1, -1), counts, strict=False):
        # before those with this count come all with a smaller one
        number += compositions(left, parts) - compositions(left - count + 1, parts)
        left -= count
    put_number(out, number, total)


def get_counts(data: Decoder, n: int, parts: int) -> list[int]:
    number, counts = get_number(data, compositions(n, parts)), []
    for rest in range(parts, 1, -1):
        low, high = 1, n - rest + 1  # the largest count that does not pass the number
        before = lambda c, n=n, rest=rest: compositions(n, rest) - compositions(n - c + 1, rest)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if before(middle) <= number else (low, middle - 1)
        number -= before(low)
        counts.append(low)
        n -= low
    return [*counts, n]


def put_symbols(out: Encoder, symbols: np.ndarray, counts: Sequence[int]) -> None:
    """Symbols, each of which is coded by how many of it are left among how many."""
    left, total = list(counts), len(symbols)
    for s in symbols.tolist():
        out.put(sum(left[:s]), left[s], total)
        left[s] -= 1
        total -= 1


def get_symbols(data: Decoder, counts: Sequence[int]) -> np.ndarray:
    left, n = list(counts), sum(counts)
    out = np.empty(n, np.int64)
    for i in range(n):
        found, s, start = data.peek(n - i), 0, 0
        while start + left[s] <= found:
            start += left[s]
            s += 1
        data.take(start, left[s], n - i)
        left[s] -= 1
        out[i] = s
    return out


def put_levels(out: Encoder, levels: np.ndarray) -> None:
    """float16 levels, by their bits."""
    for bits in levels.astype(np.float16).view(np.uint16).tolist():
        out.put(bits, 1, 1 << 16)


def get_levels(data: Decoder, count: int) -> np.ndarray:
    return np.array([data.get(1 << 16) for _ in range(count)], np.uint16).view(np.float16)


def ideal_bits(symbols: np.ndarray, levels: int) -> float:
    """What symbols, counts and float16 levels take by information alone: no code is shorter here.

    For comparison with the published code, whose length for the symbols is `static_bits`.
    """
    counts = np.bincount(symbols)
    n, gamma = len(symbols), math.lgamma
    multinomial = gamma(n + 1) - sum(gamma(c + 1) for c in counts.tolist())
    table = math.log2(compositions(n, int((counts > 0).sum()))) if levels > 1 else 0.0
    return multinomial / math.log(2) + table + 16 * levels


def static_bits(symbols: np.ndarray) -> int:
    """The published length of the symbols: an arithmetic code with their own frequencies."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return math.ceil(-(counts * np.log2(counts / len(symbols))).sum()) + 1


def published_bits(symbols: np.ndarray, levels: int, level_bits: int = 16) -> int:
    """What Lotfi et al. count: symbols, levels, and a table of ceil(log2 d) bits per level."""
    return static_bits(symbols) + levels * (level_bits + math.ceil(math.log2(len(symbols))))
