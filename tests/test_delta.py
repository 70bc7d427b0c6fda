"""jaxedit.delta: the algebra holds in the forward pass, undo is exact, checksums name values."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit import delta, fit, merge
from jaxedit.base import Dense, LowRank
from jaxedit.checksum import checksum
from jaxedit.models import specs
from jaxedit.models.shapes import SHAPES
from jaxedit.models.sites import matrices
from jaxedit.models.transformer import _forward, forward
from jaxedit.sharding import make_mesh

GPT2 = SHAPES["tiny-gpt2"].replace(layers=3, embed=16, head_dim=4, mlp=24, vocab=29, max_len=16)
LLAMA = SHAPES["tiny-llama"].replace(
    embed=16, head_dim=4, mlp=24, vocab=32, max_len=32, rotary_dim=4
)
CFGS = {"gpt2": GPT2, "llama": LLAMA}
TOKENS = jax.random.randint(jax.random.key(9), (3, 7), 0, 29)


def model(cfg, dtype="float32", mesh=None):
    return specs.init(jax.random.key(0), cfg, dtype, mesh)


def low_rank(seed, cfg, path, layers=None, rank=2, size=0.3):
    """A random shared delta; layers: None or numbers."""
    I, O = matrices(cfg)[path]
    n = () if "/" not in path else (cfg.layers if layers is None else len(layers),)
    ka, kb = jax.random.split(jax.random.key(seed))
    a = size * jax.random.normal(ka, (*n, I, rank))
    b = size * jax.random.normal(kb, (*n, rank, O))
    return LowRank(a, b, None if layers is None else jnp.array(layers))


def full(seed, cfg, path, layers=None):
    d = low_rank(seed, cfg, path, layers)
    return Dense(delta.product(d), d.layers)


def logits(params, cfg, deltas=None, tokens=TOKENS):
    return np.asarray(forward(params, tokens, cfg, deltas=deltas).logits)


def close(x, y, tolerance=1e-5):
    x, y = np.asarray(x), np.asarray(y)
    assert np.abs(x - y).max() <= tolerance * np.abs(y).max()


def same_bits(x, y):
    for p, q in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        assert p.dtype == q.dtype
        assert np.asarray(p).tobytes() == np.asarray(q).tobytes()


@pytest.mark.parametrize("form", [low_rank, full])
@pytest.mark.parametrize("layers", [None, [2, 0]], ids=["all", "some"])
@pytest.mark.parametrize("cfg", CFGS.values(), ids=CFGS)
def test_merged_equals_live_for_every_matrix(cfg, layers, form):
    params, cfg = merge.untie(model(cfg), cfg)
    base = logits(params, cfg)
    paths = matrices(cfg)
    at = lambda path: layers if "/" in path else None
    none = {path: delta.scale({path: form(1, cfg, path, at(path))}, 0)[path] for path in paths}
    for seed, path in enumerate(paths):  # the others are zero: one program for all
        ds = none | {path: form(seed, cfg, path, at(path))}
        live = logits(params, cfg, ds)
        close(logits(merge.apply(params, ds), cfg), live)
        assert np.abs(live - base).max() > 1e-3, path


def test_merge_touches_only_what_it_changes():
    params = model(LLAMA, "bfloat16")
    new = merge.apply(params, {"mlp/down": low_rank(1, LLAMA, "mlp/down", [1])})
    before, after = specs.flatten(params), specs.flatten(new)
    for path, x in before.items():
        assert path == "blocks/mlp/down/w" or after[path] is x
    changed = after["blocks/mlp/down/w"] != before["blocks/mlp/down/w"]
    np.testing.assert_array_equal(changed.any((1, 2)), [False, True, False, False])
    assert after["blocks/mlp/down/w"].dtype == jnp.bfloat16


def test_merge_rounds_once():
    params = model(LLAMA, "bfloat16")
    d = compose_many([low_rank(s, LLAMA, "mlp/up", [1], size=0.01) for s in range(5)])
    w = params["blocks"]["mlp"]["up"]["w"][1].astype(jnp.float32)
    want = (w + delta.product(d)[0]).astype(jnp.bfloat16)
    new = merge.apply(params, {"mlp/up": d})["blocks"]["mlp"]["up"]["w"][1]
    assert (new != want).mean() < 0.01  # a tie of the float32 sum may fall either way


def compose_many(ds):
    return reduce(lambda x, y: delta.compose({"d/d": x}, {"d/d": y})["d/d"], ds)


def test_merge_under_jit_and_on_a_mesh():
    params = model(LLAMA)
    ds = {"mlp/down": low_rank(1, LLAMA, "mlp/down", [3, 1]), "head": low_rank(2, LLAMA, "head")}
    want = merge.apply(params, ds)
    traced = jax.jit(merge.apply)(params, ds)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = model(LLAMA, mesh=mesh)
    split = merge.apply(sharded, ds)
    for x, y, z, w in zip(*map(jax.tree.leaves, (want, traced, split, sharded)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(x, z, rtol=1e-5, atol=1e-6)
        assert z.sharding == w.sharding
    kept = merge.original(sharded, ds)
    same_bits(merge.restore(split, kept), params)


# One per row


def assorted(cfg):
    """Shared deltas on different layers, matrices, with different ranks and forms."""
    path = "mlp/gate" if cfg.gated else "mlp/up"
    return [
        {"mlp/down": low_rank(1, cfg, "mlp/down", [1], rank=1)},
        {"mlp/down": low_rank(2, cfg, "mlp/down", [2, 0], rank=3), path: full(3, cfg, path, [2])},
        {"embed": low_rank(4, cfg, "embed"), "attn/q": low_rank(5, cfg, "attn/q")},
        {path: low_rank(6, cfg, path, [0], rank=2), "attn/q": low_rank(7, cfg, "attn/q", [1])},
        {},
    ]


@pytest.mark.parametrize("cfg", CFGS.values(), ids=CFGS)
def test_stacked_rows_equal_separately_merged_models(cfg):
    params, edits = model(cfg), assorted(cfg)
    tokens = jax.random.randint(jax.random.key(3), (len(edits), 7), 0, 29)
    rows = delta.stack(edits)
    fit.check(rows, matrices(cfg), cfg.layers)
    together = logits(params, cfg, rows, tokens)
    spread = logits(params, cfg, delta.scatter(rows, cfg.layers), tokens)
    for i, edit in enumerate(edits):
        alone = logits(merge.apply(params, edit), cfg, tokens=tokens[i : i + 1])[0]
        close(together[i], alone)
        close(spread[i], alone)
        close(logits(params, cfg, delta.row(rows, i), tokens[i : i + 1])[0], alone)
        again = merge.apply(params, delta.row(rows, jnp.int32(i)))
        close(logits(again, cfg, tokens=tokens[i : i + 1])[0], alone)


def test_rows_are_refused_where_one_change_is_needed():
    rows = delta.stack(assorted(LLAMA))
    with pytest.raises(ValueError, match=r"delta\.row"):
        merge.apply(model(LLAMA), rows)
    with pytest.raises(ValueError, match=r"delta\.row"):
        merge.original(model(LLAMA), rows)
    with pytest.raises(ValueError, match="stack shared deltas"):
        delta.stack([rows, rows])
    with pytest.raises(ValueError, match="row 5"):
        delta.row(rows, 5)


def test_scatter_equals_picked():
    params = model(LLAMA)
    ds = {
        "mlp/down": low_rank(1, LLAMA, "mlp/down", [3, 1]),
        "attn/o": full(2, LLAMA, "attn/o", [2]),
    }
    wide = delta.scatter(ds, LLAMA.layers)
    assert all(d.layers is None for d in wide.values())
    close(logits(params, LLAMA, wide), logits(params, LLAMA, ds))


def test_other_layers_and_values_do_not_retrace():
    params = model(LLAMA)
    edits = [{"mlp/down": low_rank(s, LLAMA, "mlp/down", [s % 4])} for s in range(6)]
    run = lambda es: forward(params, TOKENS, LLAMA, deltas=es)
    run(edits[0])
    run(delta.stack(edits[:3]))
    count = _forward._cache_size()
    for e in edits[1:]:
        run(e)
    run(delta.stack(edits[3:]))
    assert _forward._cache_size() == count


# Algebra


@pytest.mark.parametrize("cfg", CFGS.values(), ids=CFGS)
def test_compose_equals_one_after_the_other(cfg):
    params = model(cfg)
    x = {
        "mlp/down": low_rank(1, cfg, "mlp/down", [1, 2], rank=1),
        "mlp/up": low_rank(2, cfg, "mlp/up"),
        "embed": low_rank(3, cfg, "embed"),
        "attn/k": low_rank(8, cfg, "attn/k", [0]),
    }
    y = {
        "mlp/down": low_rank(4, cfg, "mlp/down", [0, 2], rank=3),
        "mlp/up": low_rank(5, cfg, "mlp/up", [2]),
        "embed": low_rank(6, cfg, "embed"),
        "attn/k": full(7, cfg, "attn/k", [2, 0]),
    }
    want = logits(merge.apply(merge.apply(params, x), y), cfg)
    both = delta.compose(x, y)
    np.testing.assert_array_equal(both["mlp/down"].layers, [0, 1, 2])
    assert both["mlp/down"].a.shape[-1] == 4
    assert both["mlp/up"].layers is None
    assert isinstance(both["attn/k"], Dense)
    fit.check(both, matrices(cfg), cfg.layers)
    close(logits(params, cfg, both), want)
    close(logits(merge.apply(params, both), cfg), want)
    tuples = {path: (x[path], y[path]) for path in x}
    close(logits(merge.apply(params, tuples), cfg), want)
    close(logits(params, cfg, delta.compose(both, delta.negate(y))), logits(params, cfg, x))


def test_compose_of_rows():
    params = model(LLAMA)
    rows, others = (delta.stack(e) for e in (assorted(LLAMA), assorted(LLAMA)[::-1]))
    shared = {"mlp/down": low_rank(11, LLAMA, "mlp/down", [1, 3])}
    shared["attn/q"] = low_rank(12, LLAMA, "attn/q")
    both = delta.compose(delta.compose(rows, others), shared)
    fit.check(both, matrices(LLAMA), LLAMA.layers)
    for i in (1, 3):
        parts = [assorted(LLAMA)[i], assorted(LLAMA)[4 - i], shared]
        want = logits(reduce(merge.apply, parts, params), LLAMA)
        close(logits(params, LLAMA, delta.row(both, i)), want)
    tokens = jnp.tile(TOKENS[:1], (5, 1))
    parts = [assorted(LLAMA)[1], assorted(LLAMA)[3], shared]
    want = logits(reduce(merge.apply, parts, params), LLAMA, tokens=tokens)
    close(logits(params, LLAMA, both, tokens)[1], want[1])


def test_compose_of_rows_on_all_layers():
    wide = delta.stack([{"attn/q": low_rank(s, LLAMA, "attn/q")} for s in (1, 2)])
    picked = delta.stack([{"attn/q": low_rank(s, LLAMA, "attn/q", [s])} for s in (1, 2)])
    shared = {"attn/q": low_rank(3, LLAMA, "attn/q", [0])}
    assert wide["attn/q"].layers is None
    for other in (picked, shared):
        both = delta.compose(wide, other)
        assert both["attn/q"].layers is None
        for i in range(2):
            parts = [delta.scatter(delta.row(x, i), 4)["attn/q"] for x in (wide, other)]
            want = sum(map(delta.product, parts))
            close(delta.product(delta.row(both, i)["attn/q"]), want)


def test_compose_wants_concrete_layers():
    d = {"mlp/down": low_rank(1, LLAMA, "mlp/down", [1])}
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(delta.compose)(d, d)


def test_scale_and_negate():
    d = {"mlp/down": low_rank(1, LLAMA, "mlp/down", [1]), "attn/o": full(2, LLAMA, "attn/o", [0])}
    half = delta.scale(d, jnp.float32(0.5))
    for path in d:
        close(delta.product(half[path]), 0.5 * delta.product(d[path]))
        close(delta.product(delta.negate(d)[path]), -delta.product(d[path]))
    low = LowRank(jnp.ones((1, 16, 1), jnp.bfloat16), jnp.ones((1, 1, 16), jnp.bfloat16))
    assert delta.scale({"attn/o": low}, 2.0)["attn/o"].b.dtype == jnp.bfloat16


def test_truncate_is_exact_at_full_rank_and_optimal_below():
    for d in (low_rank(1, LLAMA, "mlp/down", [1, 3], rank=6), full(2, LLAMA, "attn/v", [2])):
        w = np.asarray(delta.product(d))
        exact = delta.truncate({"mlp/down": d}, 6)["mlp/down"]
        close(delta.product(exact), w)
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        best = (u[..., :1] * s[:, None, :1]) @ vt[:, :1]
        close(delta.product(delta.truncate({"x/y": d}, 1)["x/y"]), best, 2e-5)
    rows = delta.stack(assorted(LLAMA))
    assert delta.rank(delta.truncate(rows, 1))["mlp/down"] == 1
    assert delta.rank({"embed": low_rank(1, LLAMA, "embed", rank=40)})["embed"] == 16
    with pytest.raises(ValueError, match="at least 1"):
        delta.truncate(rows, 0)


@pytest.mark.parametrize(("ord", "numpy_ord"), [("fro", "fro"), ("spectral", 2)])
def test_norm_equals_that_of_the_matrix(ord, numpy_ord):
    d = low_rank(1, LLAMA, "mlp/down", [1, 3], rank=5)
    want = np.linalg.norm(np.asarray(delta.product(d)), numpy_ord, axis=(1, 2))
    for form in (d, Dense(delta.product(d), d.layers)):
        np.testing.assert_allclose(delta.norm({"x/y": form}, ord)["x/y"], want, rtol=1e-5)
    gone = delta.compose({"x/y": d}, delta.negate({"x/y": d}))
    assert (np.asarray(delta.norm(gone, ord)["x/y"]) < 1e-5 * want).all()
    rows = delta.stack([{"mlp/down": d}, {}, {"mlp/down": low_rank(2, LLAMA, "mlp/down", [0])}])
    got = delta.norm(rows, ord)["mlp/down"]
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-5)
    assert not got[:, 1].any()
    assert not got[1, 2]


# Undo


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_undo_is_exact_after_fifty_merges(dtype):
    params = start = model(LLAMA, dtype)
    name = checksum(start)
    rng = np.random.default_rng(0)
    forms = [("mlp/down", low_rank), ("attn/k", full), ("embed", low_rank)]
    history = []
    for seed in range(50):
        path, form = forms[rng.integers(3)]
        layers = rng.choice(4, 2, replace=False) if "/" in path else None
        history.append({path: form(seed, LLAMA, path, layers)})
    everything = reduce(delta.compose, history)
    kept, undo = merge.original(params, everything), []
    for d in history:
        undo.append(merge.original(params, d))
        params = merge.apply(params, d)
    assert checksum(params) != name
    same_bits(merge.restore(params, kept), start)
    for back in undo[::-1]:
        params = merge.restore(params, back)
    same_bits(params, start)
    assert checksum(params) == name


def test_original_keeps_only_the_touched_layers():
    (kept,) = merge.original(model(LLAMA), {"mlp/down": low_rank(1, LLAMA, "mlp/down", [2])})[
        "mlp/down"
    ]
    assert kept.w.shape == (1, 24, 16)


# Checksum


def swap(x, i, j):
    return x.at[jnp.array([i, j])].set(x[jnp.array([j, i])])


def test_checksum_sees_every_change():
    params = model(LLAMA)
    flat = specs.flatten(params)
    w = flat["blocks/mlp/down/w"]
    ulp = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(w, jnp.int32).at[2, 3, 4].add(1), jnp.float32
    )
    line = w.at[1, 0, jnp.array([0, 1])].set(w[1, 0, jnp.array([1, 0])])
    k, v = flat["blocks/attn/k/w"], flat["blocks/attn/v/w"]
    changes = [
        {"blocks/mlp/down/w": ulp},
        {"blocks/mlp/down/w": line},
        {"blocks/mlp/down/w": swap(w, 1, 2)},
        {"blocks/mlp/down/w": w.swapaxes(0, 1).reshape(w.shape)},
        {"embed/w": swap(flat["embed/w"], 5, 6)},
        {"blocks/attn/k/w": v, "blocks/attn/v/w": k},
        {"blocks/mlp/down/w": w.reshape(4, 16, 24)},
    ]
    names = {checksum(specs.nest(flat | c)) for c in [{}, *changes]}
    assert len(names) == len(changes) + 1
    assert checksum(model(LLAMA)) == checksum(params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_checksum_is_of_values_not_of_what_holds_them(dtype):
    params = model(GPT2, dtype)
    held = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert checksum(params) == checksum(held)
    assert checksum(params) != checksum(model(GPT2))
    assert checksum(jax.tree.map(np.asarray, params)) == checksum(params)


def test_checksum_is_the_same_on_every_mesh():
    params = model(LLAMA)
    want = checksum(params)
    for sizes in [(4, 1, 1), (2, 2, 2), (1, 8, 1)]:
        where = specs.nest(specs.shardings(LLAMA, make_mesh(*sizes)))
        assert checksum(jax.device_put(params, where)) == want, sizes


def test_checksum_refuses_other_dtypes():
    with pytest.raises(ValueError, match="int32"):
        checksum({"x": jnp.arange(3)})


def test_small_floats_count_in_the_checksum():
    tiny = lambda bits: {
        "x": jax.lax.bitcast_convert_type(jnp.array(bits, jnp.uint32), jnp.float32)
    }
    assert checksum(tiny([1, 2])) != checksum(tiny([1, 3]))  # subnormals


# What does not fit


def test_a_merge_binds_nothing_to_a_device():
    params = merge.apply(model(LLAMA), {"mlp/down": low_rank(1, LLAMA, "mlp/down", [1])})
    assert not any(x.committed for x in jax.tree.leaves(params))


def test_misfits_are_named():
    a, b = jnp.zeros((1, 24, 2)), jnp.zeros((1, 2, 16))
    bad = [
        ({"mlp/dwon": LowRank(a, b)}, "mlp/dwon"),
        ({"mlp/down": LowRank(a, b)}, "names no layers"),
        ({"mlp/down": LowRank(a, b, jnp.array([4]))}, "layer 4"),
        ({"mlp/down": LowRank(a, b, jnp.array([1, 2]))}, r"layers have shape \[2\]"),
        ({"mlp/down": LowRank(a, b, jnp.array([[1, 2]]))}, r"layers have shape \[1, 2\]"),
        ({"mlp/down": LowRank(a, b[:, :1], jnp.array([1]))}, "ranks differ"),
        ({"mlp/up": LowRank(a, b, jnp.array([1]))}, r"the matrix is \[16, 24\]"),
        ({"mlp/down": LowRank(a[0], b[0], jnp.array([1]))}, "expected"),
        (
            {"mlp/down": LowRank(*(jnp.tile(x, (2, 1, 1)) for x in (a, b)), jnp.ones(2, int))},
            "twice",
        ),
        ({"mlp/down": Dense(jnp.zeros((1, 16, 16)), jnp.array([1]))}, "matrix is"),
        ({"head": LowRank(jnp.zeros((16, 1)), jnp.zeros((1, 32)), jnp.array([1]))}, "layers"),
        ({"mlp/down": a}, "not LowRank"),
    ]
    params = model(LLAMA)
    for deltas, told in bad:
        with pytest.raises(ValueError, match=told):
            fit.check(deltas, matrices(LLAMA), LLAMA.layers)
        with pytest.raises(ValueError, match=told if "dwon" not in told else "mlp"):
            merge.apply(params, deltas)
    fit.check({"mlp/down": LowRank(a, b, jnp.array([-1]))}, matrices(LLAMA), LLAMA.layers)


def test_the_head_of_a_tied_model_is_changed_alone_and_merged_into_one_of_its_own():
    cfg = SHAPES["tiny-gpt2"]
    assert cfg.tied
    params = model(cfg)
    change = {"head": low_rank(3, cfg, "head")}
    tokens = jnp.array([[3, 9, 27, 5]])
    plain, changed = (forward(params, tokens, cfg, deltas=d, reads={"embed": None})
                      for d in ({}, change))  # fmt: skip
    np.testing.assert_array_equal(plain.reads["embed"], changed.reads["embed"])
    assert float(jnp.abs(plain.logits - changed.logits).max()) > 1e-3
    with pytest.raises(ValueError, match=r"merge\.untie gives it one of its own"):
        merge.apply(params, change)
    own, untied = merge.untie(params, cfg)
    np.testing.assert_allclose(forward(own, tokens, untied).logits, plain.logits, atol=1e-6)
    merged = forward(merge.apply(own, change), tokens, untied)
    np.testing.assert_allclose(merged.logits, changed.logits, atol=1e-5)
    assert merge.untie(own, untied) == (own, untied)
