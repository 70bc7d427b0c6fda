"""Numbers of weight changes agree with dense NumPy, whatever form the change has."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import delta
from jaxedit.base import Dense, LowRank
from jaxedit.data.world import cases, make
from jaxedit.edit.record import Edit
from jaxedit.edit.runner import run
from jaxedit.evaluate.analysis import BELOW, measure, part_of, weights
from jaxedit.evaluate.growth import growth
from jaxedit.evaluate.hits import hits
from jaxedit.evaluate.overlap import shared
from jaxedit.models import specs

I, O, R = 45, 28, 3
RANDOM = np.random.RandomState(0)
A, B = RANDOM.randn(I, R).astype(np.float32), RANDOM.randn(R, O).astype(np.float32)
PARTS = {
    "low": part_of(A, B),  # padded to rank 4
    "one": part_of(A[:, :1], B[:1]),
    "dense": Dense(jnp.asarray(RANDOM.randn(I, O).astype(np.float32) ** 3)),
    "wide": part_of(A.T, RANDOM.randn(I, I).astype(np.float32)),  # of more ranks than inputs
}


def expected(w, pixels):
    """What the numbers should be, from the whole matrix in float64."""
    w = np.asarray(w, np.float64)
    s = np.linalg.svd(w, compute_uv=False)
    p = s[s > s.max() * 1e-6] / s.sum()
    least = lambda mass: np.searchsorted(np.cumsum(np.sort(mass)[::-1]), 0.9 * mass.sum()) + 1
    square, size = w**2, np.abs(w)
    rows, columns = (
        [np.arange(n)[i : i + -(-n // pixels)] for i in range(0, n, -(-n // pixels))]
        for n in w.shape
    )
    out = {
        "norm": np.linalg.norm(w),
        "spectral": s[0],
        "rank": np.linalg.matrix_rank(w, tol=1e-4),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "stable_rank": np.linalg.norm(w) ** 2 / s[0] ** 2,
        "carry/entries": least(square.ravel()) / w.size,
        "carry/inputs": least(square.sum(1)) / len(w),
        "carry/outputs": least(square.sum(0)) / w.shape[1],
        "top/inputs": np.sort(square.sum(1))[-5:].sum() / square.sum(),
        "top/outputs": np.sort(square.sum(0))[-5:].sum() / square.sum(),
        "map": [[size[np.ix_(r, c)].mean() for c in columns] for r in rows],
    }
    return out | {f"below/{f:g}": (size < f * size.max()).mean() for f in BELOW}


def product(part):
    return np.asarray(delta.product(part))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("pixels", [1, 8, 64])
def test_numbers_are_those_of_the_whole_matrix(name, pixels):
    found, want = measure(PARTS[name], pixels), expected(product(PARTS[name]), pixels)
    assert found.keys() == want.keys()
    for key in want:
        np.testing.assert_allclose(found[key], want[key], rtol=2e-5, err_msg=key)


def test_a_map_of_maxima():
    found = np.asarray(measure(PARTS["low"], 8, "max")["map"])
    size = np.abs(product(PARTS["low"]))
    want = [[size[i : i + 6, j : j + 4].max() for j in range(0, O, 4)] for i in range(0, I, 6)]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_numbers_of_a_change_that_is_known():
    """One neuron gets a value of four equal entries."""
    w = np.zeros((10, 8), np.float32)
    w[3, :4] = 2.0
    found = measure(Dense(jnp.asarray(w)), 10)
    assert float(found["norm"]) == float(found["spectral"]) == pytest.approx(4)
    assert int(found["rank"]) == 1
    assert float(found["effective_rank"]) == pytest.approx(1)
    assert float(found["carry/entries"]) == pytest.approx(4 / 80)  # 0.9 of four takes all four
    assert float(found["carry/inputs"]) == pytest.approx(1 / 10)
    assert float(found["carry/outputs"]) == pytest.approx(4 / 8)
    assert float(found["top/inputs"]) == pytest.approx(1)
    assert float(found["below/0.1"]) == pytest.approx(76 / 80)


def test_the_product_of_a_low_rank_change_is_never_held():
    wide = LowRank(
        jax.ShapeDtypeStruct((4096, 1), "float32"), jax.ShapeDtypeStruct((1, 4096), "float32")
    )
    used = measure.lower(wide, 32).compile().memory_analysis().temp_size_in_bytes
    assert used < 4096 * 4096 * 4 / 4


def tiny(seed=0):
    cfg = jaxedit.load("world").cfg.replace(
        layers=3, embed=16, mlp=24, vocab=50, heads=2, kv_heads=2
    )
    cfg = cfg.replace(head_dim=8)
    return jaxedit.Model(specs.init(jax.random.key(seed), cfg), cfg)


def edit_of(seed, layers=(1,), rank=1):
    r = np.random.RandomState(seed)
    a = jnp.asarray(r.randn(len(layers), 24, rank).astype(np.float32))
    b = jnp.asarray(r.randn(len(layers), rank, 16).astype(np.float32))
    return Edit(deltas={"mlp/down": LowRank(a, b, jnp.asarray(layers, jnp.int32))})


def whole(edit, layer):
    d = edit.deltas["mlp/down"]
    return np.asarray(d.dense())[np.asarray(d.layers).tolist().index(layer)]


def test_weights_are_means_over_the_edits_of_each_layer():
    model = tiny()
    edits = [edit_of(0, (1,)), edit_of(1, (2, 1), rank=3), Edit(), edit_of(2, (1, -1))]
    found = weights(edits, model.params, pixels=4)["mlp/down"]
    assert found["layers"] == [1, 2]
    assert found["shape"] == [24, 16]
    assert [x["n"] for x in found["norm"]] == [3, 1]
    sizes = [np.linalg.norm(whole(edits[i], 1)) for i in (0, 1, 3)]
    w = np.asarray(model.params["blocks"]["mlp"]["down"]["w"])
    assert found["norm"][0]["mean"] == pytest.approx(np.mean(sizes), rel=1e-5)
    assert found["norm"][0]["low"] < found["norm"][0]["mean"] < found["norm"][0]["high"]
    assert found["relative"][0]["mean"] == pytest.approx(
        np.mean(sizes) / np.linalg.norm(w[1]), rel=1e-5
    )
    assert found["rank"][1]["mean"] == 3
    assert np.shape(found["map"]) == (2, 4, 4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert weights([Edit()], model.params) == weights([], model.params) == {}


def test_matrices_outside_the_blocks_have_no_layer():
    model = tiny()
    d = LowRank(jnp.ones((50, 1)), jnp.ones((1, 16)))
    found = weights([Edit(deltas={"embed": d})], model.params)["embed"]
    assert found["layers"] == [None]
    assert found["norm"][0]["mean"] == pytest.approx(np.sqrt(50 * 16))
    grown = growth([Edit(deltas={"embed": d})] * 2, model.params)["embed"]
    assert grown["norm"] == [pytest.approx([np.sqrt(50 * 16), 2 * np.sqrt(50 * 16)])]


def test_what_does_not_fit_is_refused():
    model = tiny()
    per_row = LowRank(jnp.ones((1, 2, 24, 1)), jnp.ones((1, 2, 1, 16)), jnp.array([1]))
    with pytest.raises(ValueError, match=r"one change per row \(2 rows\)"):
        weights([Edit(deltas={"mlp/down": per_row})], model.params)
    with pytest.raises(ValueError, match="mlp/sideways"):
        weights([Edit(deltas={"mlp/sideways": per_row.at(jnp.int32(1))})], model.params)
    with pytest.raises(ValueError, match="pool='median'"):
        weights([], model.params, pool="median")


def test_growth_is_that_of_the_sums():
    model = tiny()
    edits = [edit_of(0), edit_of(1, (2,)), Edit(), edit_of(2, (1,), rank=2)]
    found = growth(edits, model.params)["mlp/down"]
    w = np.asarray(model.params["blocks"]["mlp"]["down"]["w"])
    first, both = whole(edits[0], 1), whole(edits[0], 1) + whole(edits[3], 1)
    sums = [first, first, first, both]
    norm = np.linalg.norm
    assert found["layers"] == [1, 2]
    np.testing.assert_allclose(found["norm"][0], [norm(s) for s in sums], rtol=1e-5)
    np.testing.assert_allclose(
        found["relative"][0], [norm(s) / norm(w[1]) for s in sums], rtol=1e-5
    )
    np.testing.assert_allclose(
        found["weight"][0], [norm(w[1] + s) / norm(w[1]) for s in sums], rtol=1e-5
    )
    second = whole(edits[1], 2)
    assert found["norm"][1][0] == 0.0
    assert found["weight"][1][0] == 1.0
    assert found["norm"][1][1:] == pytest.approx([norm(second)] * 3, rel=1e-5)
    # an edit and its opposite leave nothing
    back = Edit(deltas=delta.negate(edits[0].deltas))
    assert growth([edits[0], back], model.params)["mlp/down"]["norm"][0][1] < 1e-5
    assert growth([], model.params) == {}


@pytest.fixture(scope="module")
def romes():
    """Edits of two facts about each of three subjects."""
    model = jaxedit.load("world", dtype="float32")
    by_subject = {}
    for case in cases(make("small"), 200):
        by_subject.setdefault(case.request.subject, []).append(case.request)
    requests = [r for mine in by_subject.values() if len(mine) > 1 for r in mine[:2]][:6]
    quick = {"rows.contexts.lengths": ((10, 5),), "covariance": False, "values.steps": 20}
    return model, requests, run(model, requests, "rome", **quick)


def test_rome_changes_one_layer_by_one_rank(romes):
    model, _, edits = romes
    found = weights(edits, model.params)
    assert list(found) == ["mlp/down"]
    found = found["mlp/down"]
    assert found["layers"] == [0]
    assert found["rank"][0] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 6}
    assert found["effective_rank"][0]["mean"] == pytest.approx(1)
    assert found["norm"][0]["mean"] == pytest.approx(found["spectral"][0]["mean"])
    reported = np.mean([edit.provenance["result"]["norm"] for edit in edits])
    assert found["norm"][0]["mean"] == pytest.approx(reported, rel=1e-5)


def test_rome_finds_its_neurons_by_the_subject(romes):
    """So edits of one subject change the same ones, whatever the fact."""
    model, requests, edits = romes
    found = shared(edits, {"subject": [r.subject for r in requests]}, k=20)
    assert found["subject"]["groups"] == 3
    assert found["subject"]["related"] > 3 * found["subject"]["others"]
    assert found["subject"]["rsim"] > 0.4
    seen = hits(model, edits, requests)
    assert seen["edits"] == 6
    assert seen["target"]["after"]["rank"]["n"] == 6


def test_the_same_on_a_mesh(romes):
    model, _, edits = romes
    there = jaxedit.load("world", jaxedit.make_mesh(data=2, fsdp=2, tensor=2), "float32")
    for analyse in (weights, growth):
        here, far = (analyse(edits, m.params)["mlp/down"] for m in (model, there))
        flat = lambda found: np.array(jax.tree.leaves(found), np.float64)
        np.testing.assert_allclose(flat(here), flat(far), rtol=1e-5)
