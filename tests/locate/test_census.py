"""Counts of a planted model are what was planted, and add up whatever the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.locate import census, passes
from jaxedit.locate.census import Census
from jaxedit.models import specs
from jaxedit.models.shapes import SHAPES

T, BOS = 16, 1
RANDOM = np.random.RandomState(0)
TOKENS = RANDOM.randint(3, 40, (30, T)).astype(np.int32)
TOKENS[:, 0] = BOS
POS = np.broadcast_to(np.arange(T, dtype=np.int32), TOKENS.shape).copy()
POS[7, 9:] = -1
CFG = SHAPES["tiny-gpt2"].replace(layers=2, eos_ids=(), max_len=32)
ALIVE, DEAD, POSITION = 3, 4, 5  # neurons of layer 1: of token 7, of nothing, of later positions


def corpus(size=10):
    return lambda: ((TOKENS[i : i + size], POS[i : i + size]) for i in range(0, len(TOKENS), size))


@pytest.fixture(scope="module")
def params():
    """Embeddings tell the token (first numbers) and, apart, whether the position is a later one."""
    out = jax.tree.map(lambda x: 0 * x, jaxedit.init(jax.random.key(0), CFG))
    D = CFG.embed
    table = RANDOM.standard_normal((CFG.vocab, D)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[:, -1] = 0
    late = np.where(np.arange(CFG.max_len) >= 8, 1.0, -1.0)
    out["embed"]["w"] = jnp.asarray(table)
    out["pos"]["w"] = out["pos"]["w"].at[:, -1].set(late)
    ones = lambda p: {**p, "w": jnp.ones_like(p["w"])}
    out["norm"], blocks = ones(out["norm"]), out["blocks"]
    blocks |= {k: ones(blocks[k]) for k in ("norm1", "norm2")}
    up = blocks["mlp"]["up"]
    shown = table[7] - table[7].mean()
    up["w"] = up["w"].at[1, :, ALIVE].set(40 * shown).at[1, -1, POSITION].set(5.0)
    # the bias keeps other tokens out; GELU's outputs below zero are not active
    up["b"] = up["b"].at[1, ALIVE].set(-100.0).at[1, DEAD].set(-3.0)
    return out


@pytest.fixture(scope="module")
def found(params):
    return census.census(params, CFG, corpus(), T, threshold=0.01, ignore=(BOS,))


def test_what_is_planted_is_found(found):
    real = POS >= 0
    is_7 = (TOKENS == 7) & real
    assert is_7.sum() > 5
    assert found.active_LFT[1, ALIVE].sum() == is_7.sum()
    np.testing.assert_array_equal(found.active_LFT[1, ALIVE], is_7.sum(0))
    np.testing.assert_array_equal(found.seen_T, real.sum(0))
    assert found.frequency_LF[1, ALIVE] == is_7.sum() / real.sum()
    gone = census.dead(found, (0.01, 1e6))
    assert gone[0.01][1, DEAD]
    assert not gone[0.01][1, ALIVE]
    assert gone[1e6].all()
    assert found.tokens_V[BOS] == 0
    assert found.tokens_V[7] == is_7.sum()
    assert census.Detector(1, ALIVE, (7,)) in census.detectors(found)
    assert all(d.neuron != POSITION for d in census.detectors(found))
    (one,) = census.positional(found)
    assert (one.layer, one.neuron, one.kind, one.strong) == (1, POSITION, "one extreme", True)
    assert one.information == pytest.approx(np.log(2), abs=1e-6)  # half of the positions, always


def test_batches_and_parts_do_not_matter(params, found):
    for size, memory in ((7, 2e9), (30, 1)):  # one byte: a pass for each layer
        other = census.census(params, CFG, corpus(size), T, threshold=0.01, ignore=(BOS,),
                              memory=memory)  # fmt: skip
        np.testing.assert_array_equal(other.active_LFT, found.active_LFT)
        np.testing.assert_array_equal(other.seen_T, found.seen_T)
        np.testing.assert_allclose(other.largest_LF, found.largest_LF, rtol=1e-6)  # of a product
        assert list(other.by_token) == [0, 1]
        for layer in (0, 1):
            np.testing.assert_array_equal(other.by_token[layer], found.by_token[layer])
    none = census.census(params, CFG, corpus(), T, layers=())
    assert none.by_token == {}
    with pytest.raises(ValueError, match="layer 2: the model has 2"):
        census.census(params, CFG, corpus(), T, layers=(2,))
    with pytest.raises(ValueError, match="a window of 16 tokens; columns=8"):
        census.census(params, CFG, corpus(), 8)


def test_a_pass_goes_on_where_it_was_killed(params, found, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "EVERY", 2)

    def dies():
        for i, batch in enumerate(corpus(5)()):
            if i == 5:
                raise KeyboardInterrupt
            yield batch

    how = {"threshold": 0.01, "ignore": (BOS,), "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        census.census(params, CFG, dies, T, **how)
    seen = []
    again = census.census(params, CFG, corpus(5), T, progress=lambda n, _: seen.append(n), **how)
    assert seen == [5, 6]  # four of six batches were kept
    np.testing.assert_array_equal(again.active_LFT, found.active_LFT)
    np.testing.assert_array_equal(again.by_token[1], found.by_token[1])
    with pytest.raises(ValueError, match="a census with other settings"):
        census.census(params, CFG, corpus(5), T, **(how | {"threshold": 0.2}))


def test_a_pass_is_not_that_of_another_model_or_text(params, tmp_path):
    how = {"threshold": 0.01, "ignore": (BOS,), "folder": tmp_path, "layers": ()}
    mine = census.census(params, CFG, corpus(), T, **how)
    again = census.census(params, CFG, corpus(), T, **how)
    np.testing.assert_array_equal(again.active_LFT, mine.active_LFT)
    other = {**params, "embed": {"w": params["embed"]["w"] * 2}}
    with pytest.raises(ValueError, match="a census of another model; remove it, or name another"):
        census.census(other, CFG, corpus(), T, **how)
    for text in (lambda: [(TOKENS[:10] + 1, POS[:10])], lambda: [], corpus(7)):
        with pytest.raises(ValueError, match="a census of other batches"):
            census.census(params, CFG, text, T, **how)
    more = census.census(params, CFG, lambda: [*corpus()(), (TOKENS[:2], POS[:2])], T, **how)
    assert more.seen_T[0] == len(TOKENS) + 2  # text that has grown goes on


def test_a_mesh_counts_the_same(params, found):
    mesh = jaxedit.make_mesh(data=2, tensor=4)
    spread = jax.device_put(params, specs.nest(specs.shardings(CFG, mesh)))
    there = census.census(spread, CFG, corpus(), T, threshold=0.01, ignore=(BOS,))
    np.testing.assert_array_equal(there.active_LFT, found.active_LFT)
    np.testing.assert_array_equal(there.by_token[1], found.by_token[1])


def test_ngrams_end_where_a_neuron_fires(params):
    one, two = (
        census.ngrams(params, CFG, corpus(), [(1, ALIVE)], n, threshold=0.01)[0] for n in (1, 2)
    )
    is_7 = (TOKENS == 7) & (POS >= 0)
    assert one == {(7,): is_7.sum()}
    assert sum(two.values()) == is_7[:, 1:].sum()
    assert all(pair[1] == 7 for pair in two)
    assert census.covered(list(one.values())) == 1


def test_how_many_ngrams_cover_a_neuron():
    assert census.covered([95, 1, 1, 1, 1, 1]) == 1
    assert census.covered([50, 44, 6]) == 3
    assert census.covered([50, 45, 5]) == 2
    assert census.covered([]) == 0


def test_information_is_that_of_the_tables():
    seen = np.full(8, 100)
    flat, step = np.full(8, 30), np.r_[np.full(4, 100), np.zeros(4)]
    lean = np.r_[np.full(4, 75), np.full(4, 25)]
    found = census.information(np.stack([flat, step, lean])[None], seen)[0]
    want = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    np.testing.assert_allclose(found, [0, np.log(2), want], atol=1e-12)


def test_kinds_of_positional_neurons():
    t = np.arange(64)
    rates = {
        "one extreme": np.where(t < 32, 1.0, 0.0),
        "both extremes": np.where((t < 10) | (t > 54), 0.6, 0.0),
        "oscillatory": 0.5 + 0.5 * np.sin(t / 64 * 2 * np.pi * 3),
    }
    counts = np.round(1000 * np.stack(list(rates.values())))[None].astype(int)
    some = Census(counts, np.full(64, 1000), np.ones((1, 3)), {}, np.zeros(5))
    found = census.positional(some)
    assert [p.kind for p in found] == list(rates)
    assert [p.strong for p in found] == [True, False, True]
