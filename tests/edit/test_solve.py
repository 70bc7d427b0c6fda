"""Systems solved in float32 alone, against NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxedit.edit import solve as module
from jaxedit.edit.solve import Solved, factor, null_space, product, solve, spread
from jaxedit.edit.stats import Stats, factored
from jaxedit.sharding import make_mesh

F = 64
f64 = lambda x: np.asarray(x, np.float64)


def positive(condition, seed=0, scales=0.0):
    """A float32 matrix of this condition; `scales`: powers of ten by which its rows differ."""
    r = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(r.standard_normal((F, F)))
    m = (turn * np.geomspace(1, 1 / condition, F)) @ turn.T
    s = 10 ** r.uniform(-scales, scales, F)
    return ((m + m.T) / 2 * s * s[:, None]).astype(np.float32)


def right_sides(columns, seed=1):
    return np.random.default_rng(seed).standard_normal((F, columns)).astype(np.float32)


def off(found, wanted):
    """The forward error of every column."""
    gap = np.abs(f64(found) - wanted).max(0)
    return gap / np.maximum(np.abs(wanted).max(0), 1e-300)


@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e5, 1e6, 3e6, 1e7])
def test_solved_as_float64_would(condition):
    m, b = positive(condition), right_sides(3)
    found = solve(factor(m), b)
    wanted = np.linalg.solve(f64(m), f64(b))
    assert off(found.x_FN, wanted).max() < 1e-6
    assert np.max(found.error_N) < 2e-7
    # what x has lost in rounding is known too
    assert off(f64(found.x_FN) + f64(found.low_FN), wanted).max() < 1e-7
    assert found.x_FN.dtype == found.low_FN.dtype == jnp.float32


def test_units_that_differ_do_not_matter():
    """Numbers of one matrix are of sizes from 1e-4 to 1e4: it is scaled before it is factored."""
    m, b = positive(1e4, scales=2), right_sides(3)
    x = solve(factor(m), b).x_FN
    wanted = np.linalg.solve(f64(m), f64(b))
    assert off(x, wanted).max() < 1e-6
    assert np.abs(f64(x) / wanted - 1).max() < 1e-4  # number by number: the small ones too


def test_beyond_a_condition_of_1e7_the_error_says_so():
    """What is off by more than float32's last bits is told, to its order, or is no number."""
    wrong = 0
    for seed in range(12):
        m, b = positive(1e8, seed), right_sides(3)
        found = solve(factor(m), b)
        gap = off(found.x_FN, np.linalg.solve(f64(m), f64(b)))
        told = np.asarray(found.error_N)
        assert (~np.isfinite(told) == np.isnan(gap)).all()
        far = gap > 1e-5
        assert (told[far] > 0.05 * gap[far]).all()
        wrong += int(far.sum() + np.isnan(gap).sum())
    assert wrong > 6


def test_a_column_of_zeros_and_a_ridge():
    m = positive(1e3)
    b = right_sides(3)
    b[:, 1] = 0
    found = solve(factor(m, 0.5), b)
    wanted = np.linalg.solve(f64(m) + 0.5 * f64(m).diagonal().mean() * np.eye(F), f64(b))
    assert off(found.x_FN[:, ::2], wanted[:, ::2]).max() < 1e-6
    assert not np.any(found.x_FN[:, 1])
    assert found.error_N[1] == 0


def test_a_matrix_that_cannot_be_inverted_is_not_a_number():
    keys = right_sides(40)
    m = (f64(keys) @ f64(keys).T).astype(np.float32)
    for matrix in (m, -positive(10), np.zeros((F, F), np.float32)):
        found = solve(factor(matrix), keys[:, :3])
        assert np.isnan(found.x_FN).all()
        assert not np.isfinite(found.error_N).any()
    assert np.isfinite(solve(factor(m, 1e-4), keys[:, :3]).x_FN).all()


def test_a_singular_moment_is_told_with_its_rank_its_tokens_and_what_to_do():
    keys = right_sides(40)
    stats = Stats({3: jnp.asarray(keys @ keys.T)}, 12_345)
    with pytest.raises(ValueError, match=r"layer 3 .*rank is 40 of 64, from 12,345 tokens") as e:
        factored(stats, 3, 0.0)
    assert "collect more text, or set ridge=1e-4" in str(e.value)
    assert "\n" not in str(e.value)
    assert np.isfinite(factored(stats, 3, 1e-4).factor_FF).all()
    with pytest.raises(ValueError, match="needs the second moments of layers 3: give stats"):
        factored(None, 3, 0.0)
    with pytest.raises(ValueError, match="no second moment of layer 2; there are those of 3"):
        factored(stats, 2, 0.0)
    lost = Stats({3: stats.moment(3).at[1, 2].set(jnp.nan)}, 12_345)
    with pytest.raises(ValueError, match="layer 3 has numbers that are not finite"):
        factored(lost, 3, 0.0)


# The directions of MEMIT


def directions(m, keys, weight, apart=False):
    """(weight C + K Kᵀ)⁻¹ K in float64, by the identity where the weight is 0."""
    m, keys = f64(m), f64(keys)
    y = np.linalg.solve(m, keys)
    gram = keys.T @ y
    if apart:
        by = weight + gram.diagonal()
        return y / np.where(by > 0, by, 1)
    return y @ np.linalg.inv(weight * np.eye(keys.shape[1]) + gram)


def keys_of(kind):
    keys = right_sides(5)
    if kind == "one is zero":
        keys[:, 1] = 0
    elif kind == "two are nearly equal":
        keys[:, 3] = keys[:, 2] + 1e-3 * right_sides(1, 2)[:, 0]
    return keys


@pytest.mark.parametrize("kind", ["any", "one is zero", "two are nearly equal"])
@pytest.mark.parametrize("weight", [15000.0, 1.0, 1e-3])
def test_directions_are_those_of_float64(kind, weight):
    m, keys = positive(1e4), keys_of(kind)
    real = [0, 2, 3, 4] if kind == "one is zero" else list(range(5))
    f = factor(m)
    together = spread(f, keys, weight)
    assert off(together.x_FN[:, real], directions(m, keys[:, real], weight)).max() < 1e-6
    apart = spread(f, keys, weight, apart=True)
    assert off(apart.x_FN, directions(m, keys, weight, apart=True)).max() < 1e-6
    for found in (together, apart):
        assert np.max(found.error_N) < 2e-7
        if kind == "one is zero":
            assert not np.any(found.x_FN[:, 1])


def test_it_is_the_inverse_that_is_meant():
    """The other side of the identity: an F x F system, which is never formed."""
    m, keys = positive(1e3), right_sides(5)
    whole = 2.5 * f64(m) + f64(keys) @ f64(keys).T
    assert off(spread(factor(m), keys, 2.5).x_FN, np.linalg.solve(whole, f64(keys))).max() < 1e-6


def test_nearly_equal_keys_under_a_bad_condition():
    m, keys = positive(1e6), keys_of("two are nearly equal")
    assert off(spread(factor(m), keys, 1.0).x_FN, directions(m, keys, 1.0)).max() < 1e-5


@pytest.mark.parametrize("apart", [False, True])
def test_without_a_weight_one_key_is_read_in_full(apart):
    """k · a = 1: ROME's and EMMET's equality."""
    m, key = positive(1e5), right_sides(1)
    a = f64(spread(factor(m), key, 0.0, apart=apart).x_FN)
    assert abs((f64(key).T @ a).item() - 1) < 1e-6
    assert off(a, directions(m, key, 0.0, apart=True)).max() < 1e-6


@pytest.mark.parametrize("apart", [False, True])
def test_without_a_weight_a_key_of_zeros_does_not_harm_the_others(apart):
    """Which is what requests are that only fill a batch."""
    m, keys = positive(1e4), keys_of("one is zero")
    found = spread(factor(m), keys, 0.0, apart=apart)
    real = [0, 2, 3, 4]
    assert off(found.x_FN[:, real], directions(m, keys[:, real], 0.0, apart=apart)).max() < 1e-6
    assert not np.any(found.x_FN[:, 1])
    assert np.max(found.error_N) < 2e-7


def test_equal_keys_without_a_weight_have_no_answer():
    keys = np.repeat(right_sides(1), 5, 1)
    assert not (spread(factor(positive(10)), keys, 0.0).error_N < 0.1).any()


# Products, and where it runs


@pytest.mark.parametrize("K", [3, 512, 1300])
def test_products_are_right_to_45_bits(K):
    r = np.random.default_rng(3)
    a = (r.standard_normal((7, K)) * 10 ** r.uniform(-6, 6, (7, 1))).astype(np.float32)
    b = (r.standard_normal((K, 6)) * 10 ** r.uniform(-6, 6, (1, 6))).astype(np.float32)
    a[0, :] = np.abs(a[0, :])
    b[:, 2] = 0
    b[1:, 3] *= 1e-7  # far below the largest of its column
    high, low = jax.jit(product)(a, b)
    wanted = a.astype(np.longdouble) @ b.astype(np.longdouble)
    gap = np.abs(np.asarray(high, np.longdouble) + np.asarray(low, np.longdouble) - wanted)
    largest = np.abs(f64(a)).max(1)[:, None] * np.abs(f64(b)).max(0)
    assert (gap <= 2.0**-45 * np.sqrt(K) * largest).all()


def test_inside_jit_and_vmap():
    ms = np.stack([positive(c, seed) for seed, c in enumerate((1e2, 1e5, 1e3))])
    bs = np.stack([right_sides(3, seed) for seed in range(3)])

    @jax.jit
    def every(ms, bs):
        return jax.vmap(lambda m, b: solve(factor(m), b))(ms, bs)

    found = every(ms, bs)
    assert isinstance(found, Solved)
    for i in range(3):
        assert off(found.x_FN[i], np.linalg.solve(f64(ms[i]), f64(bs[i]))).max() < 1e-6


def test_a_matrix_that_lies_on_a_mesh():
    mesh = make_mesh(1, 2, 4)
    m, keys = positive(1e5), right_sides(5)
    at = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    there = jax.device_put(m, at("tensor", None))
    assert there.sharding.shard_shape(m.shape) == (16, F)
    found = spread(factor(there), jax.device_put(keys, at("tensor", None)), 7.0)
    assert off(found.x_FN, directions(m, keys, 7.0)).max() < 1e-6


# Spectra


def test_the_null_space_projects_and_knows_its_size():
    turn, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((F, F)))
    values = np.where(np.arange(F) < 24, 1e-3, 1.0)
    m = ((turn * values) @ turn.T).astype(np.float32)
    free, count = null_space(m, 0.02)
    assert count == 24
    assert isinstance(count, int)
    free = f64(free)
    assert np.abs(free - turn[:, :24] @ turn[:, :24].T).max() < 1e-5
    assert np.abs(free @ free - free).max() < 1e-6  # idempotent
    assert np.abs(free - free.T).max() < 1e-6
    assert null_space(m, 1e-4)[1] == 0
    assert not np.any(null_space(m, 1e-4)[0])
    assert null_space(m, 2.0)[1] == F
    assert np.abs(f64(null_space(m, 2.0)[0]) - np.eye(F)).max() < 1e-6


def test_rank():
    keys = right_sides(40)
    assert module.rank(jnp.asarray(keys @ keys.T)) == 40
    assert module.rank(jnp.asarray(positive(1e4))) == F
    assert module.rank(jnp.zeros((F, F))) == 0
