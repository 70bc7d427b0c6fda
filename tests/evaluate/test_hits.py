"""Values read as words: what is planted is found, what is random is not."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.base import Dense, LowRank
from jaxedit.data.cases import EditRequest
from jaxedit.data.requests import join
from jaxedit.edit.record import Edit
from jaxedit.evaluate.hits import first_tokens, hits, rank_rows, vectors
from jaxedit.locate.lens import _ranks, ranks, say

PROMPT = "{} was born in"


@pytest.fixture(scope="module", params=["world", "world-llama"])
def model(request):
    return jaxedit.load(request.param, dtype="float32")


def table(model):
    """The unembedding, [V, D]."""
    p = model.params
    return np.asarray(p["embed"]["w"] if model.cfg.tied else p["head"]["w"].T, np.float64)


def saying(model, token):
    """A vector whose score is highest for this token, however the tokens' vectors are."""
    return np.linalg.lstsq(table(model), np.eye(model.cfg.vocab)[token], rcond=None)[0]


def adding(vectors_ND, rows, layer=1, mlp=512):
    """An edit that adds a vector to each of some rows of a layer."""
    a = np.zeros((1, mlp, len(rows)), np.float32)
    a[0, rows, np.arange(len(rows))] = 1
    b = np.asarray(vectors_ND, np.float32)[None]
    return Edit(deltas={"mlp/down": LowRank(jnp.asarray(a), jnp.asarray(b), jnp.array([layer]))})


def test_ranks_count_the_tokens_with_a_higher_score(model):
    x = np.random.RandomState(0).randn(2, 3, model.cfg.embed).astype(np.float32)
    scores = x @ table(model).T.astype(np.float32)
    found = np.asarray(ranks(model.params, x, np.array([[5, -1], [9, 0]], np.int32), model.cfg))
    assert found.shape == (2, 3, 2)
    for b, tokens in enumerate([(5,), (9, 0)]):
        for c, token in enumerate(tokens):
            want = 1 + (scores[b] > scores[b, :, [token]].reshape(3, 1)).sum(1)
            assert abs(found[b, :, c] - want).max() <= 1  # two scores may be all but equal
    assert (found[0, :, 1] == 0).all()


def test_what_vectors_pass_on_their_way_into_words(model):
    """Of the three, only the whole norm has a bias, and only that of the residual's place."""
    x = np.random.RandomState(1).randn(1, 2, model.cfg.embed).astype(np.float32)
    bare, scale, final = (
        np.asarray(say(model.params, x, model.cfg, how), np.float64)
        for how in ("none", "scale", "final")
    )
    length = np.sqrt(np.square(x).mean(-1, keepdims=True))
    np.testing.assert_allclose(bare * length, x @ table(model).T, rtol=1e-3, atol=1e-4)
    p, cfg = model.params, model.cfg
    y = x - x.mean(-1, keepdims=True) if cfg.norm == "layer" else x
    y = y / np.sqrt(np.square(y).mean(-1, keepdims=True)) * np.asarray(p["norm"]["w"])
    np.testing.assert_allclose(scale, y @ table(model).T, rtol=1e-3, atol=1e-4)
    y = y + np.asarray(p["norm"].get("b", 0))
    np.testing.assert_allclose(final, y @ table(model).T, rtol=1e-3, atol=1e-4)


def test_a_planted_value_is_found_and_a_random_one_is_not(model):
    V, D, mlp = model.cfg.vocab, model.cfg.embed, model.cfg.mlp
    target = next(iter(first_tokens(model.tokenizer, [("Ilse Okafor was born in", "Kovu")])))
    request = EditRequest(PROMPT, "Ilse Okafor", "Kovu")
    planted = 1e3 * saying(model, int(target))
    found = rank_rows(model, [adding([planted], [7], mlp=mlp)], [request], rows=1)
    assert found.shape == (1, 3, 1, 2)
    before, after, direction = found[0, :, 0, 0].tolist()
    assert before > 1
    assert (after, direction) == (1, 1)
    assert (found[..., 1] == 0).all()  # no former answer is known
    random = np.random.RandomState(0).randn(64, D)
    edits = [adding([r], [7], mlp=mlp) for r in random]
    found = rank_rows(model, edits, [request] * 64, rows=1)[:, 2, 0, 0]
    assert abs(found.mean() - V / 2) < 4 * V / np.sqrt(12 * 64)


def test_hits_are_shares_of_edits(model):
    mlp = model.cfg.mlp
    requests = [EditRequest(PROMPT, "Ilse Okafor", name, ("Polish",)) for name in ("Kovu", "Rome")]
    token = first_tokens(model.tokenizer, [(r.text, r.target) for r in requests])
    old = first_tokens(model.tokenizer, [(r.text, "Polish") for r in requests])
    good = 1e3 * saying(model, int(token[0]))
    former = 1e3 * saying(model, int(old[0]))
    # the first says its target in one of two rows, the second the former answer in both
    edits = [adding([good, -good], [1, 2], mlp=mlp), adding([former] * 2, [3, 4], mlp=mlp), Edit()]
    found = hits(model, edits, [*requests, requests[0]], rows=2)
    assert found["edits"] == 2
    after = found["target"]["after"]
    assert (after["hit@1"]["mean"], after["share@1"]["mean"]) == (0.5, 0.25)
    assert after["hit@1"]["n"] == 2
    after = found["former"]["after"]
    assert (after["hit@1"]["mean"], after["share@1"]["mean"]) == (0.5, 0.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_rows_that_change_most_are_looked_at(model):
    """Over all layers, and the same for a dense change."""
    mlp, D = model.cfg.mlp, model.cfg.embed
    request = EditRequest(PROMPT, "Ilse Okafor", "Kovu")
    token = int(first_tokens(model.tokenizer, [(request.text, "Kovu")])[0])
    good = 1e3 * saying(model, token)
    w = np.zeros((2, mlp, D), np.float32)
    w[0, :3] = 1e-3
    w[1, 5] = good
    layers = jnp.array([0, 2])
    dense = Edit(deltas={"mlp/down": Dense(jnp.asarray(w), layers)})
    a = np.zeros((2, mlp, 2), np.float32)
    a[0, :3, 0] = a[1, 5, 0] = 1
    b = np.stack([np.full((2, D), 1e-3), [good, 0 * good]]).astype(np.float32)
    low = Edit(deltas={"mlp/down": LowRank(jnp.asarray(a), jnp.asarray(b), layers)})
    for rows in (1, 2):
        found = rank_rows(model, [dense, low], [request] * 2, rows=rows)
        assert (found[:, 1:, 0, 0] == 1).all()
        assert (found[0, :2] == found[1, :2]).all()


def test_many_edits_are_as_each(model):
    r = np.random.RandomState(2)
    edits = [adding(r.randn(2, model.cfg.embed), [1, 2], mlp=model.cfg.mlp) for _ in range(19)]
    requests = [EditRequest(PROMPT, f"Person {i}", ("Kovu", "Rome")[i % 2]) for i in range(19)]
    together = rank_rows(model, edits, requests, rows=3)
    apart = [rank_rows(model, [edits[i]], [requests[i]], rows=3)[0] for i in (0, 15, 16, 18)]
    assert np.abs(together[[0, 15, 16, 18]] - np.stack(apart)).max() <= 1


def test_the_same_on_a_mesh(model):
    name = "world" if model.cfg.family == "gpt2" else "world-llama"
    there = jaxedit.load(name, jaxedit.make_mesh(data=2, fsdp=2, tensor=2), "float32")
    r = np.random.RandomState(3)
    edits = [adding(r.randn(1, model.cfg.embed), [1], mlp=model.cfg.mlp) for _ in range(3)]
    requests = [EditRequest(PROMPT, f"Person {i}", "Kovu", ("Polish",)) for i in range(3)]
    for through in ("none", "scale", "final"):
        here, far = (rank_rows(m, edits, requests, through=through) for m in (model, there))
        assert np.abs(here - far).max() <= 1


def test_first_tokens_are_those_that_follow_the_prompt(model):
    prompt = "Ilse Okafor was born in"
    (token,) = first_tokens(model.tokenizer, [(prompt, "Kovu")])
    whole = model.tokenizer(prompt + join(prompt, "Kovu"))["input_ids"]
    assert token == whole[len(model.tokenizer(prompt)["input_ids"])]
    assert first_tokens(model.tokenizer, [(prompt, ""), (prompt, "Kovu")]).tolist() == [-1, token]


def test_what_does_not_fit_is_refused(model):
    request = EditRequest(PROMPT, "Ilse Okafor", "Kovu")
    with pytest.raises(ValueError, match="matrix 'mlp/up'"):
        rank_rows(model, [Edit()], [request], path="mlp/up")
    with pytest.raises(ValueError, match="through='all'"):
        rank_rows(model, [Edit()], [request], through="all")
    with pytest.raises(ValueError, match="1 edits and 2 requests"):
        hits(model, [Edit()], [request] * 2)
    assert rank_rows(model, [Edit()], [request]).shape == (0, 3, 5, 2)
    assert hits(model, [Edit()], [request])["target"]["after"]["hit@1"] is None


def test_nothing_is_compiled_again_for_another_edit(model):
    request = EditRequest(PROMPT, "Ilse Okafor", "Kovu")
    sizes = []
    for row in (1, 2):
        one = adding(np.ones((1, model.cfg.embed)) * row, [row], layer=row, mlp=model.cfg.mlp)
        rank_rows(model, [one], [request], rows=1)
        sizes.append((_ranks._cache_size(), vectors._cache_size()))
    assert sizes[0] == sizes[1]
