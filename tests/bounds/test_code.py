"""Numbers to bytes and back."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxedit.bounds import code
from jaxedit.bounds.code import Decoder, Encoder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/bounds/bounds.json").read_text())


def symbols_of(case):
    if "symbols" in case:
        return np.array(case["symbols"])
    i = np.arange(case["n"])
    mixed = (13 * i * i + 7 * i) % 97
    return np.minimum(6, mixed // 14) if case["levels"] == 7 else np.minimum(10, mixed // 9)


@pytest.mark.parametrize("case", GOLDEN["arithmetic_coding"], ids=lambda c: c["name"])
def test_the_published_length(case):
    symbols = symbols_of(case)
    assert code.static_bits(symbols) == case["coded_bits"]


def write(symbols, levels):
    out, counts = Encoder(), np.bincount(symbols, minlength=levels).tolist()
    code.put_counts(out, counts)
    code.put_symbols(out, symbols, counts)
    return out.finish()


@pytest.mark.parametrize("n", [1, 2, 50, 3000])
@pytest.mark.parametrize("levels", [1, 2, 7])
def test_symbols_come_back_and_take_what_information_asks(n, levels):
    random = np.random.RandomState(n + levels)
    for skew in (0.2, 1.0, 5.0):
        p = random.dirichlet([skew] * levels)
        symbols = random.choice(levels, size=n, p=p)
        kept, symbols = np.unique(symbols, return_inverse=True)
        data = write(symbols, len(kept))
        file = Decoder(data)
        counts = code.get_counts(file, n, len(kept))
        np.testing.assert_array_equal(code.get_symbols(file, counts), symbols)
        ideal = code.ideal_bits(symbols, len(kept)) - 16 * len(kept)
        assert ideal - 1e-6 <= 8 * len(data) <= ideal + 16  # whole bytes, and one to end


def test_no_file_is_the_beginning_of_another():
    """All messages of one family: 2**-bits are a prior."""
    files = [write(np.array(s), 2) for n in (6,) for s in itertools.product((0, 1), repeat=n)
             if 0 < sum(s) < n]  # fmt: skip
    assert len(set(files)) == len(files)
    for a, b in itertools.permutations(files, 2):
        assert not b.startswith(a)
    assert sum(2.0 ** (-8 * len(f)) for f in files) <= 1


def test_what_follows_changes_nothing():
    random = np.random.RandomState(0)
    for seed in range(50):
        symbols = np.random.RandomState(seed).randint(0, 3, 20)
        counts = np.bincount(symbols, minlength=3).tolist()
        if min(counts) == 0:
            continue
        for more in (b"", b"\0" * 9, b"\xff" * 9, random.bytes(9)):
            file = Decoder(write(symbols, 3) + more)
            assert code.get_counts(file, 20, 3) == counts
            np.testing.assert_array_equal(code.get_symbols(file, counts), symbols)


@pytest.mark.parametrize("count", [1, 5, 40, 300])
@pytest.mark.parametrize("above", [False, True])
def test_carries_reach_back_over_full_bytes(count, above):
    """Intervals around one half write 127, 255, 255, ... until it is known which side it is."""
    out, puts, total, half = Encoder(), [], 1 << 16, code.TOP // 2

    def put(start, many):
        nonlocal half
        low, written = out.low + out.size // total * start, len(out.out)
        puts.append((start, many, total))
        out.put(*puts[-1])
        half -= low  # as an offset, it grows with every byte that is written
        half = (half << 8 * (len(out.out) - written)) + out.low

    for _ in range(count):
        at = (half - out.low) // (out.size // total)
        put(max(at - 1, 0), 3)
    before = bytes(out.out)
    assert count < 5 or b"\xff" * count in before
    at = (half - out.low) // (out.size // total)
    put(at + 1, total - at - 1) if above else put(0, at)
    for _ in range(12):
        put(0, 1)
    data = out.finish()
    assert data.startswith(before[:1]) != above or count < 5
    file = Decoder(data)
    for start, many, of in puts:
        assert start <= file.peek(of) < start + many
        file.take(start, many, of)


@pytest.mark.parametrize("total", [1, 2, 2**32, 2**32 + 1, 3**200])
def test_numbers_of_any_size(total):
    random = np.random.RandomState(0)
    numbers = {0, total - 1, *(int(random.randint(0, 2**31)) * 7**60 % total for _ in range(20))}
    for number in numbers:
        out = Encoder()
        code.put_number(out, number, total)
        data = out.finish()
        assert code.get_number(Decoder(data), total) == number
        assert 8 * len(data) <= math.log2(total) + 17


def test_counts_are_numbered_without_gaps():
    """Every composition of 7 into 3 parts has its own number."""
    every = [c for c in itertools.product(range(1, 6), repeat=3) if sum(c) == 7]
    assert len(every) == code.compositions(7, 3)
    found = set()
    for counts in every:
        out = Encoder()
        code.put_counts(out, counts)
        data = out.finish()
        assert code.get_counts(Decoder(data), 7, 3) == list(counts)
        found.add(data)
    assert len(found) == len(every)
    big = [40_000, 9_000, 700, 250, 50]
    out = Encoder()
    code.put_counts(out, big)
    assert code.get_counts(Decoder(out.finish()), sum(big), 5) == big


def test_levels_come_back_bit_by_bit():
    levels = np.array([-65504, -1e-7, -0.0, 0.1, 3.5], np.float16)
    out = Encoder()
    code.put_levels(out, levels)
    data = out.finish()
    assert len(data) <= 2 * len(levels) + 1
    np.testing.assert_array_equal(
        code.get_levels(Decoder(data), 5).view(np.uint16), levels.view(np.uint16)
    )
