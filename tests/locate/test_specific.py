"""Neurons of few clusters, and of few languages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.locate import passes, specific
from jaxedit.models.shapes import SHAPES


def test_what_many_clusters_have_counts_for_less_and_is_taken_out():
    """Neuron 0 scores most everywhere, neuron 1 in half of ten clusters, 10 + c in cluster c."""
    scores = np.zeros((10, 2, 1, 30), np.float32)
    scores[:, :, 0, 0] = 10
    scores[:5, :, 0, 1] = 6
    for c in range(10):
        scores[c, :, 0, 10 + c] = 5
        scores[c, :, 0, 20 + c % 10] = 1  # below a fifth of the largest
    weighed, sets = specific.qrnca(list(scores), top=3)
    assert not weighed[:, 0, 0].any()  # log(10 / 11) < 0
    np.testing.assert_allclose(weighed[0, 0, 1], 0.6 * np.log(10 / 6), rtol=1e-5)
    np.testing.assert_allclose(weighed[7, 0, 17], 0.5 * np.log(10 / 2), rtol=1e-5)
    assert not sets[:, 0, 1].any()  # in more than three of ten
    assert [np.flatnonzero(one[0]).tolist() for one in sets] == [[10 + c] for c in range(10)]
    kept = specific.qrnca(list(scores), top=3, common=0.6)[1]
    assert kept[:5, 0, 1].all()
    assert not kept[5:, 0, 1].any()
    with pytest.raises(ValueError, match="1 cluster: what is particular takes two"):
        specific.qrnca(scores[:1])


def test_the_neurons_of_a_language_have_the_least_entropy():
    active = np.full((3, 1, 100), 50)  # of 1000 tokens, in all three
    active[1, 0, 3] = 900
    active[:, 0, 3] = [0, 900, 0]
    active[:, 0, 4] = [800, 800, 0]
    active[:, 0, 5] = [0, 0, 20]  # in one language, and hardly ever
    found = specific.lape(active, np.array([1000, 1000, 1000]), share=0.02)
    assert np.argwhere(found.sets_KLF).tolist() == [[0, 0, 4], [1, 0, 3], [1, 0, 4]]
    assert found.entropy_LF[0, 3] == 0
    assert found.entropy_LF[0, 4] == pytest.approx(np.log(2))
    assert np.isinf(found.entropy_LF[0, 5])
    assert found.bar == pytest.approx(0.05)
    more = specific.lape(active * [[[1]], [[2]], [[1]]], np.array([1000, 2000, 1000]), share=0.02)
    np.testing.assert_array_equal(more.sets_KLF, found.sets_KLF)  # shares of tokens, not counts
    with pytest.raises(ValueError, match="two at least, and a token of each"):
        specific.lape(active, np.array([10, 0, 10]))


CFG = SHAPES["tiny-llama"].replace(layers=2, eos_ids=())


def languages():
    """Two that share no token: what fires for one never does for the other, by construction."""
    params = jax.tree.map(lambda x: 0 * x, jaxedit.init(jax.random.key(0), CFG))
    random = np.random.RandomState(0)
    half, mine = CFG.vocab // 2, CFG.mlp // 2
    table = 0.02 * random.standard_normal((CFG.vocab, CFG.embed)).astype(np.float32)
    table[:half, 0], table[half:, 0] = 1, -1  # which language a token is of, and again the
    table[:, 1] = 0  # place from which the answer's language is read
    params["embed"]["w"], mlp = jnp.asarray(table), params["blocks"]["mlp"]
    sign = jnp.where(jnp.arange(CFG.mlp) < mine, 1.0, -1.0)
    mlp["gate"]["w"] = mlp["gate"]["w"].at[:, 0].set(sign)
    mlp["up"]["w"] = mlp["up"]["w"].at[:, 0].set(sign)
    mlp["down"]["w"] = mlp["down"]["w"].at[1, :, 1].set(sign)
    params["head"]["w"] = params["head"]["w"].at[1, :half].set(1).at[1, half:].set(-1)
    ones = jnp.ones_like
    blocks = params["blocks"]
    params["blocks"] = blocks | {k: {"w": ones(blocks[k]["w"])} for k in ("norm1", "norm2")}
    params["norm"] = {"w": ones(params["norm"]["w"])}
    texts = []
    for k in range(2):
        tokens = random.randint(k * half, (k + 1) * half, (6, 10)).astype(np.int32)
        pos = np.broadcast_to(np.arange(10, dtype=np.int32), tokens.shape).copy()
        pos[-1, 4:] = -1
        texts.append([(tokens[:4], pos[:4]), (tokens[4:], pos[4:])])
    return params, texts


def test_languages_are_told_apart_by_what_fires_and_hurt_by_silencing_it():
    params, texts = languages()
    counted = [specific.count(params, CFG, some) for some in texts]
    assert [seen for _, seen in counted] == [54, 54]  # padding does not count
    active = np.stack([a for a, _ in counted])
    half = CFG.mlp // 2
    assert (active[0, :, :half] == 54).all()
    assert not active[0, :, half:].any()
    found = specific.lape(active, np.array([54, 54]), quantile=0.4, share=1.0)
    assert found.sets_KLF[0, :, :half].all()
    assert found.sets_KLF[1, :, half:].all()
    assert found.sets_KLF.sum() == 2 * CFG.mlp
    loss = specific.matrix(params, CFG, found.sets_KLF, texts)
    gain = loss[1:] - loss[0]
    assert gain[0, 0] > 10 * abs(gain[0, 1])
    assert gain[1, 1] > 10 * abs(gain[1, 0])
    out = jaxedit.forward(params, jnp.asarray(texts[0][0][0]), CFG).logits
    logp = jax.nn.log_softmax(out[:, :-1])
    each = -np.take_along_axis(np.asarray(logp), texts[0][0][0][:, 1:, None], -1)
    alone = specific.matrix(params, CFG, found.sets_KLF[:0], [texts[0][:1]])
    assert alone[0, 0] == pytest.approx(each.mean(), rel=1e-5)


def test_counts_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "EVERY", 1)
    params, (first, second) = languages()
    file = tmp_path / "counts.safetensors"

    def stops():
        yield first[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        specific.count(params, CFG, stops(), file=file)
    told = []
    active, seen = specific.count(params, CFG, first, lambda n, _: told.append(n), file=file)
    assert told == [2]
    assert active.dtype == np.int64
    want = specific.count(params, CFG, first)
    np.testing.assert_array_equal(active, want[0])
    assert seen == want[1]
    with pytest.raises(ValueError, match="counts of other batches"):
        specific.count(params, CFG, second, file=file)
