"""Few levels for many numbers."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.bounds.code import published_bits
from jaxedit.bounds.quantize import half, kmeans, nearest, snap, uniform, used

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/bounds/bounds.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["uniform_bin_codebook"]["cases"])
def test_uniform_bins_are_the_published_ones(case):
    i = np.arange(case["n"])
    w = np.float32(np.sin(1.7 * i + 0.3) * (1 + (i % 7) / 5))  # as the file says
    symbols, levels = uniform(w, case["levels"])
    np.testing.assert_array_equal(np.bincount(symbols), case["counts"])
    assert published_bits(symbols, case["levels"]) == case["message_len_bits"]
    np.testing.assert_array_equal(levels.astype(np.float16), np.float16(case["codebook_fp16"]))
    decoded = levels.astype(np.float16)[symbols].astype(np.float32)
    assert abs(np.mean((decoded - w) ** 2) - case["mse"]) < 1e-6


def test_an_empty_bin_has_its_left_edge_as_published():
    case = GOLDEN["uniform_bin_codebook"]["empty_bins_use_left_edge"]
    symbols, levels = uniform(np.array(case["w"]), case["levels"])
    np.testing.assert_array_equal(symbols, case["symbols"])
    np.testing.assert_array_equal(levels.astype(np.float16), np.float16(case["codebook_fp16"]))
    again, kept = used(symbols, levels)
    assert len(kept) == len(set(case["symbols"]))
    np.testing.assert_array_equal(kept[again], levels.astype(np.float16)[symbols])


@pytest.mark.parametrize("case", GOLDEN["kmeans_codebook"], ids=lambda c: c["name"])
def test_kmeans_is_exact(case):
    x = np.array(case["x"])
    symbols, levels = kmeans(x, case["levels"])
    error = np.sum((levels[symbols] - x) ** 2)
    assert abs(error - case["exact_dp_sse"]) < 1e-9 * max(1, error)
    np.testing.assert_allclose(np.sort(levels), np.sort(case["exact_dp_centroids"]), atol=1e-6)
    assert error <= case["reference_best_sse"] + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_kmeans_beats_every_other_partition(seed):
    random = np.random.RandomState(seed)
    x = np.round(random.standard_normal(9), 1 if seed % 2 else 6)  # also with ties
    for levels in (2, 3, 4):
        symbols, means = kmeans(x, levels)
        error = np.sum((means[symbols] - x) ** 2)
        ordered = np.sort(x)
        best = min(
            sum(np.sum((part - part.mean()) ** 2) for part in np.split(ordered, cuts))
            for cuts in itertools.combinations(range(1, 9), min(levels, len(set(x))) - 1)
        )
        assert abs(error - best) < 1e-12


def test_fifty_thousand_numbers():
    x = np.random.RandomState(0).standard_normal(50_000)
    symbols, levels = kmeans(x, 11)
    np.testing.assert_array_equal(symbols, nearest(x, levels))  # a fixed point of Lloyd's
    for k, level in enumerate(levels):
        assert abs(x[symbols == k].mean() - level) < 1e-9
    # the best 11 levels of a Gaussian have an error of 0.0192 (Max, 1960)
    assert abs(np.mean((levels[symbols] - x) ** 2) - 0.0192) < 0.0003


def test_rounding_passes_gradients():
    case = GOLDEN["ste_quantizer"]
    w, levels = jnp.array(case["params"]), jnp.array(case["centroids"])
    out, pull = jax.vjp(snap, w, levels)
    np.testing.assert_allclose(out, case["out"], atol=1e-7)
    by_w, by_levels = pull(jnp.array(case["grad_out"]))
    np.testing.assert_allclose(by_w, case["grad_params"], atol=1e-7)
    np.testing.assert_allclose(by_levels, case["grad_centroids"], atol=1e-6)


def test_levels_are_float16_and_still_learn():
    levels = jnp.array([0.1, 1 / 3, 1000.1])
    value, slope = half(levels), jax.grad(lambda x: (half(x) ** 2).sum())(levels)
    np.testing.assert_array_equal(value, np.float32(np.float16(levels)))
    np.testing.assert_allclose(slope, 2 * value)


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="1 levels: at least 2"):
        kmeans(np.ones(3), 1)
    with pytest.raises(ValueError, match="float16 cannot hold"):
        uniform(np.array([1.0, np.nan]), 3)
    with pytest.raises(ValueError, match="float16 cannot hold"):
        kmeans(np.array([1.0, 1e6]), 3)
