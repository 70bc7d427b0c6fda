"""Causal tracing: the authors' scores, and what must hold exactly."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.base import Write
from jaxedit.locate import trace as tracing
from jaxedit.locate.trace import SITES, default_window, gaussian, reach
from jaxedit.models import specs
from jaxedit.models.shapes import SHAPES

FOLDER = Path(__file__).parents[1] / "golden"
trace = partial(tracing.trace, together=5, groups=2)  # few programs to compile
ARRAYS = np.load(FOLDER / "locate/trace-gpt2-tiny.npz")


@pytest.fixture(scope="module")
def golden():
    return jaxedit.load(FOLDER / "editing/gpt2-tiny", dtype="float32")


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize(
    ("name", "kind", "window"),
    [("state", "hidden", 0), ("mlp_w2", "mlp", 2), ("attn_w2", "attn", 2), ("mlp_w3", "mlp", 3),
     ("attn_w3", "attn", 3)],
)  # fmt: skip
def test_the_authors_scores(golden, row, name, kind, window):
    get = lambda key: ARRAYS[f"r{row}/{key}"]
    tokens, (begin, end) = get("input_ids"), get("subject_range")
    noise = np.zeros((10, len(tokens), golden.cfg.embed))
    noise[:, begin:end] = ARRAYS["noise_level"] * get("noise_unit")
    found = trace(golden.params, tokens, noise, golden.cfg, kind=kind, window=window)
    assert found.answer == get("answer_token")
    assert tracing.says(golden.params, tokens, golden.cfg) == found.answer
    assert abs(found.low - get("low_score")) < 1e-5
    assert abs(found.high - get("high_score")) < 1e-5
    np.testing.assert_allclose(found.scores_TL, get(f"{name}/scores"), atol=1e-5)


CFG = SHAPES["tiny-llama"].replace(layers=5)
TOKENS = np.array([1, 17, 42, 8, 61, 30, 5, 77, 12, 9])
SUBJECT = np.zeros(10, bool)
SUBJECT[2:5] = True


def weights(cfg):
    return jax.tree.map(lambda x: 3 * x, jaxedit.init(jax.random.key(0), cfg))


def noise(cfg=CFG, n=3, level=0.5, subject=SUBJECT):
    return gaussian(1, n, subject, cfg, level)


@partial(jax.jit, static_argnames=("cfg",))
def run(params, tokens, noise, writes, cfg):
    add = Write(jnp.ones(noise.shape[:2], bool), noise, add=True)
    rows = jnp.broadcast_to(tokens, (len(noise), len(tokens)))
    reads = dict.fromkeys(SITES.values())
    out = jaxedit.forward(params, rows, cfg, writes={"embed": add, **writes}, reads=reads)
    return jax.nn.softmax(out.logits[:, -1]), out.reads


def one_by_one(params, cfg, kind, window, sever=""):
    """Every state by itself, all columns and layers run anew."""
    tokens, some = jnp.asarray(TOKENS), jnp.asarray(noise(cfg), jnp.float32)
    p, clean = run(params, tokens, some * 0, {}, cfg)
    answer = int(p[0].argmax())
    p_low, dirty = run(params, tokens, some, {}, cfg)
    out = np.zeros((len(TOKENS), cfg.layers))
    for token in range(len(TOKENS)):
        for layer in range(cfg.layers):
            first, last = reach(layer, window, cfg.layers)
            mask = np.zeros((cfg.layers, len(some), len(TOKENS)), bool)
            mask[first:last, :, token] = True
            writes = {SITES[kind]: (Write(jnp.asarray(mask), clean[SITES[kind]]),)}
            if sever:
                held = np.zeros_like(mask)
                held[:, :, token] = True
                hold = Write(jnp.asarray(held), dirty[SITES[sever]])
                writes[SITES[sever]] = (*writes.get(SITES[sever], ()), hold)
            out[token, layer] = run(params, tokens, some, writes, cfg)[0][:, answer].mean()
    return out, float(p_low[:, answer].mean()), float(p[0, answer]), answer


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gpt2"])
@pytest.mark.parametrize(
    ("kind", "window", "sever"),
    [
        ("hidden", 1, ""),
        ("mlp", 3, ""),
        ("attn", 2, ""),
        ("hidden", 1, "mlp"),
        ("hidden", 1, "attn"),
    ],
)
def test_all_states_at_once_are_one_by_one(shape, kind, window, sever):
    cfg = SHAPES[shape].replace(layers=5)
    params = weights(cfg)
    want, low, high, answer = one_by_one(params, cfg, kind, window, sever)
    found = trace(params, TOKENS, noise(cfg), cfg, kind=kind, window=window, sever=sever)
    assert found.answer == answer
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-6)
    np.testing.assert_allclose(found.scores_TL, want, atol=2e-6)
    assert np.ptp(want) > 1e-3  # there is something to find


def test_however_states_are_put_together():
    params = weights(CFG)
    some, other = (
        tracing.trace(params, TOKENS, noise(), CFG, kind="mlp", window=2, together=n, groups=g)
        for n, g in ((3, 5), (10, 1))
    )
    np.testing.assert_allclose(some.scores_TL, other.scores_TL, atol=1e-6)


def test_parts_of_the_noise_are_the_noise():
    params = weights(CFG)
    whole, parts = (trace(params, TOKENS, noise(), CFG, rows=rows) for rows in (4096, 21))
    np.testing.assert_allclose(parts.scores_TL, whole.scores_TL, atol=1e-6)
    assert abs(parts.low - whole.low) < 1e-6


def test_what_no_noise_reaches_changes_nothing():
    found = trace(weights(CFG), TOKENS, noise(), CFG)
    np.testing.assert_allclose(found.scores_TL[:2], found.low, atol=1e-7)
    for sever in ("mlp", "attn"):  # nothing else is restored: the noisy run, held to itself
        held = trace(weights(CFG), TOKENS, noise(), CFG, sever=sever)
        np.testing.assert_allclose(held.scores_TL[:2], found.low, atol=1e-7)
    still = trace(weights(CFG), TOKENS, noise(level=0.0), CFG)
    np.testing.assert_allclose(still.scores_TL, still.high, atol=1e-6)
    assert abs(still.low - still.high) < 1e-6


def test_the_last_state_is_the_clean_run():
    """The last token's state after the last layer is all that the answer depends on."""
    found = trace(weights(CFG), TOKENS, noise(), CFG)
    assert abs(found.scores_TL[-1, -1] - found.high) < 1e-6
    alone = np.arange(10) == 9  # all that is noisy is restored, at any layer
    found = trace(weights(CFG), TOKENS, noise(subject=alone), CFG, kind="hidden")
    np.testing.assert_allclose(found.scores_TL[9], found.high, atol=1e-6)
    assert abs(found.low - found.high) > 1e-3


def test_windows_are_those_of_the_authors():
    assert [reach(i, 10, 48) for i in (0, 5, 24, 47)] == [(0, 5), (0, 10), (19, 29), (42, 48)]
    assert [reach(i, 3, 4) for i in range(4)] == [(0, 2), (0, 3), (1, 4), (2, 4)]
    assert default_window(48) == 10
    assert default_window(4) == 1


def test_noise_is_the_subjects():
    made = noise(n=2)
    assert (made[:, ~SUBJECT] == 0).all()
    want = 0.5 * np.random.RandomState(1).randn(2, 3, CFG.embed)
    np.testing.assert_array_equal(made[:, SUBJECT], want)


def test_other_kinds_of_noise():
    flat = tracing.noise("uniform", 1, 2000, SUBJECT, CFG, 0.5)
    assert (np.abs(flat) <= 0.5).all()
    assert flat[:, SUBJECT].std() == pytest.approx(0.5 / 3**0.5, rel=0.01)
    assert not flat[:, ~SUBJECT].any()
    params, subjects = weights(CFG), [[3, 5, 7], [11, 20, 31]]
    root = tracing.root_of(params, CFG, subjects)
    some = np.asarray(params["embed"]["w"])[[3, 5, 7, 11, 20, 31]].astype(np.float64)
    np.testing.assert_allclose(root @ root.T, np.cov(some, rowvar=False), atol=1e-6)
    drawn = tracing.noise("covariance", 1, 4000, SUBJECT, CFG, root)[:, SUBJECT].reshape(
        -1, CFG.embed
    )
    want = np.cov(some, rowvar=False)
    assert np.abs(np.cov(drawn, rowvar=False) - want).max() < 0.1 * np.abs(want).max()
    assert np.linalg.matrix_rank(drawn - 0, tol=1e-6) == 5  # of six tokens: nowhere else
    keyed = tracing.noise("uniform", jax.random.key(0), 2, SUBJECT, CFG, 0.5)
    assert (np.abs(keyed) <= 0.5).all()
    with pytest.raises(ValueError, match="noise 'normal': of gaussian, uniform, covariance"):
        tracing.noise("normal", 1, 2, SUBJECT, CFG, 0.5)


def test_another_prompt_of_the_same_length_is_not_another_program():
    params = weights(CFG)
    trace(params, TOKENS, noise(), CFG)
    before = tracing.cells._cache_size(), tracing.noisy._cache_size()
    trace(params, TOKENS[::-1].copy(), noise(level=0.1), CFG, answer=3)
    assert (tracing.cells._cache_size(), tracing.noisy._cache_size()) == before


def test_noise_is_as_large_as_the_embeddings_that_the_model_sees():
    subjects = [[3, 5, 7], [11]]
    params = weights(CFG)
    plain = tracing.spread(params, CFG, subjects)
    seen = jaxedit.forward(params, jnp.array([[3, 5, 7, 11]]), CFG, reads={"embed": None})
    np.testing.assert_allclose(plain, seen.reads["embed"].std(), rtol=1e-6)
    scaled = CFG.replace(embed_scale=8.0)  # as Gemma's are
    np.testing.assert_allclose(tracing.spread(params, scaled, subjects), 8 * plain, rtol=1e-6)


def test_mistakes_are_one_line():
    params = weights(CFG)
    with pytest.raises(ValueError, match="kind 'mpl'"):
        trace(params, TOKENS, noise(), CFG, kind="mpl")
    with pytest.raises(ValueError, match="a window of 9 layers; the model has 5"):
        trace(params, TOKENS, noise(), CFG, kind="mlp", window=9)
    with pytest.raises(ValueError, match=r"noise \[3, 10, 32\]"):
        trace(params, TOKENS[1:], noise(), CFG)


@pytest.mark.parametrize("how", [{"kind": "mlp", "window": 2}, {"sever": "mlp"}])
def test_a_mesh_traces_the_same(how):
    params, mesh = weights(CFG), jaxedit.make_mesh(data=2, fsdp=2, tensor=2)
    spread = jax.device_put(params, specs.nest(specs.shardings(CFG, mesh)))
    here, there = (trace(p, TOKENS, noise(), CFG, answer=3, **how) for p in (params, spread))
    assert np.ptp(here.scores_TL) > 1e-3
    np.testing.assert_allclose(there.scores_TL, here.scores_TL, atol=1e-5)
