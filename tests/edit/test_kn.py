"""Knowledge neurons: scores against EleutherAI's code, and the rule by which rows are rewritten."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import model, off, recorded, requests

import jaxedit
from jaxedit import delta, merge
from jaxedit.data.aligned import aligned
from jaxedit.data.cases import EditRequest
from jaxedit.edit.methods import configure
from jaxedit.edit.runner import run
from jaxedit.edit.weights.kn import KnConfig, kn
from jaxedit.locate import neurons
from jaxedit.locate.knowledge_neurons import attribute

CFG = KnConfig(steps=4)
ONE_TOKEN = 1  # requests from here on have targets of one token


def row(ids, length=16):
    """Padded on the left: one shape."""
    tokens, pos = np.zeros((1, length), np.int32), np.full((1, length), -1, np.int32)
    tokens[0, -len(ids) :], pos[0, -len(ids) :] = ids, np.arange(len(ids))
    return jnp.asarray(tokens), jnp.asarray(pos)


def scores(ids, answer=None, points="right", **how):
    how |= {"points": points}
    answer = None if answer is None else jnp.asarray([answer], jnp.int32)
    found, said = attribute(model().params, *row(ids), answer, model().cfg, **how)
    return np.asarray(found[0]), int(said[0])


def batches(some=None, **how):
    """The requests in one batch, in their order."""
    found = requests() if some is None else some
    ((index, batch),) = aligned(model().tokenizer, found, about=None, token="last", **how)
    order = np.argsort(index).tolist() + list(range(len(found), len(batch.valid_N)))
    fixed = {"weight_C": batch.weight_C, "prefix": batch.prefix}
    names = [f.name for f in dataclasses.fields(batch) if f.name not in fixed]
    every = {name: getattr(batch, name) for name in names}
    return [batch.replace(**jax.tree.map(lambda x: x[order], every))]


def make(cfg=CFG, kind="each", given=None, params=None):
    editor = kn(cfg)
    state = editor.init(jax.random.key(0), model(), None)
    params = model().params if params is None else params
    out = getattr(editor, kind)(state, params, batches() if given is None else given)
    return out if kind == "each" else out[0]


def change(result, i=None):
    """The change of all layers, [L, F, D], of one of several requests or of all."""
    deltas = result.deltas if i is None else delta.row(result.deltas, i)
    (d,) = delta.scatter(deltas, model().cfg.layers).values()
    return np.asarray(d.dense())


@pytest.mark.parametrize("i", range(4))
def test_scores_are_those_of_the_authors_code(i):
    arrays, _ = recorded("knowledge_neurons/gpt2-tiny")
    (answer,) = arrays[f"gpt2/r{i}/target_ids"]
    found, said = scores(arrays[f"gpt2/r{i}/prompt_ids"], answer, site="mlp_pre", points="linspace")
    assert off(found, arrays[f"gpt2/r{i}/attr_steps20"]) < 1e-5
    assert said == answer


@pytest.mark.parametrize("i", range(4))
def test_sets_and_what_switching_them_does_are_those_of_eleutherais_code(i):
    """Which takes neurons before the nonlinearity; of the refined, those in more than a half."""
    arrays, about = recorded("knowledge_neurons/gpt2-tiny")
    golden, params, cfg = about["rows"][i], model().params, model().cfg
    (answer,) = arrays[f"gpt2/r{i}/target_ids"]
    ids = [model().tokenizer(p)["input_ids"] for p in (golden["prompt"], *golden["paraphrases"])]
    found = np.stack([scores(x, answer, site="mlp_pre", points="linspace")[0] for x in ids])
    coarse = neurons.above(jnp.asarray(found), 0.3)
    assert np.argwhere(coarse[0]).tolist() == golden["coarse"]
    refined = neurons.among(coarse, 0.51)
    assert np.argwhere(refined).tolist() == golden["refined"]
    tokens, pos = row(ids[0])
    last = (jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1)[None]
    for factor, name in ((1.0, "before"), (0.0, "suppress"), (2.0, "enhance")):
        writes = {"mlp_pre": neurons.times(coarse[:1], factor, last)["mlp_key"]}
        logits = jaxedit.forward(params, tokens, cfg, pos_BT=pos, writes=writes).logits[0, -1]
        want = golden["suppress"]["before"] if name == "before" else golden[name]["after"]
        assert float(jax.nn.softmax(logits)[answer]) == pytest.approx(want["gt_prob"], abs=1e-5)


def test_the_score_of_an_answer_of_several_tokens_is_the_mean_over_them():
    """Each after the model's own tokens before it."""
    arrays, _ = recorded("knowledge_neurons/gpt2-tiny")
    ids, found = arrays["gpt/r0/prompt_ids"].tolist(), []
    for answer in arrays["gpt/r0/target_ids"]:
        found.append(scores(ids, answer, site="mlp_pre", points="linspace")[0])
        ids.append(scores(ids, steps=1)[1])
    assert off(np.mean(found, 0), arrays["gpt/r0/attr_steps20"]) < 1e-5


def test_scores_of_a_layer_add_up_to_what_it_does():
    """The integral of the slope is the difference that the layer's activations make."""
    arrays, _ = recorded("knowledge_neurons/gpt2-tiny")
    ids = arrays["gpt2/r1/prompt_ids"]
    left, said = scores(ids, points="left", steps=50)
    right, _ = scores(ids, points="right", steps=50)
    tokens, pos = row(ids)
    likely = lambda **how: jax.nn.softmax(
        jaxedit.forward(model().params, tokens, model().cfg, pos_BT=pos, **how).logits[0, -1]
    )[said]
    for layer in range(model().cfg.layers):
        last = jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1
        nothing = jaxedit.Write(
            last[None, None], jnp.zeros((1, 1, 1, model().cfg.mlp)), jnp.array([layer])
        )
        gone = float(likely() - likely(writes={"mlp_key": nothing}))
        assert (left + right)[layer].sum() / 2 == pytest.approx(gone, abs=1e-3)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_rows_of_the_best_neurons_lose_the_old_answer_and_gain_the_new(scaled):
    cfg = dataclasses.replace(CFG, scaled=scaled, old=2.0, new=3.0, most=5)
    result, (batch,) = make(cfg), batches()
    w = np.asarray(model().params["blocks"]["mlp"]["down"]["w"])
    table = np.asarray(model().params["embed"]["w"])
    tokenizer = model().tokenizer
    for i, request in enumerate(requests()):
        found, said = scores(tokenizer(request.text)["input_ids"], steps=cfg.steps)
        best = np.sort(found, axis=None)[::-1]
        chosen = (found > cfg.threshold * best[0]) & (found >= best[cfg.most - 1])
        e_old = table[said]
        e_new = table[tokenizer(f" {request.target}")["input_ids"]].sum(0)
        size = np.linalg.norm(w, axis=-1, keepdims=True)
        share = lambda e, size=size: size / np.linalg.norm(e) if scaled else 1.0
        wanted = np.where(chosen[..., None], 3 * share(e_new) * e_new - 2 * share(e_old) * e_old, 0)
        assert off(change(result, i), wanted) < 1e-5
        assert result.info["neurons"][i] == chosen.sum() <= cfg.most
        assert result.info["above"][i] == (found > cfg.threshold * best[0]).sum()
        assert result.info["answer"][i] == said
        assert result.info["norm"][i] == pytest.approx(np.linalg.norm(wanted), rel=1e-4)
    assert batch.mask_NU.sum(1).max() > 1  # a target of several tokens is among them


def test_the_change_is_small():
    """A rank for each layer that has neurons, and no more layers than neurons."""
    d = make(dataclasses.replace(CFG, most=2)).deltas["mlp/down"]
    assert d.a.shape == (2, 4, model().cfg.mlp, 1)
    assert ((d.layers >= 0) == np.asarray(d.a).any((2, 3))).all()


@pytest.mark.parametrize("mode", ["edit", "erase"])
def test_each_is_one_at_a_time(mode):
    cfg = dataclasses.replace(CFG, mode=mode)
    each, (batch,) = make(cfg), batches()
    for i in range(4):
        alone = make(cfg, "edit", [batch.one(i)])
        assert off(change(each, i), change(alone)) < 1e-5


def test_together_every_request_adds_its_own_also_where_neurons_are_shared():
    (batch,) = batches()
    each, both = make(), make(kind="edit", given=[batch, batch.one(1)])
    assert off(change(both), sum(change(each, i) for i in range(4)) + change(each, 1)) < 1e-5


def test_requests_that_fill_a_batch_change_nothing():
    given = batches(requests(0, 3))
    assert given[0].valid_N.tolist() == [True] * 3 + [False]
    each = make()
    assert (
        off(change(make(kind="edit", given=given)), sum(change(each, i) for i in range(3))) < 1e-5
    )


def test_erased_rows_are_zero_and_stay_so():
    cfg = dataclasses.replace(CFG, mode="erase", most=7)
    each, (batch,) = make(cfg), batches()
    chosen = change(each, 1).any(-1)
    assert chosen.sum() == each.info["neurons"][1]
    params = model().params
    for _ in range(2):
        edit = make(cfg, "edit", [batch.one(1)], params)
        params = merge.apply(params, edit.deltas)
        w, old = (p["blocks"]["mlp"]["down"]["w"] for p in (params, model().params))
        assert not w[chosen].any()
        untouched = ~(chosen | change(edit).any(-1))
        np.testing.assert_array_equal(w[untouched], old[untouched])


def test_the_target_becomes_likelier_and_the_old_answer_less_likely():
    # targets of one token; of a longer one, the embeddings of all tokens are added to every row
    some = requests(ONE_TOKEN, 4)
    result = make(dataclasses.replace(CFG, steps=20), given=batches(some))
    for i, request in enumerate(some):
        ids = model().tokenizer(request.text)["input_ids"]
        new = model().tokenizer(f" {request.target}")["input_ids"][0]
        tokens, pos = row(ids)
        say = lambda deltas, tokens=tokens, pos=pos: jax.nn.softmax(
            jaxedit.forward(
                model().params, tokens, model().cfg, pos_BT=pos, deltas=deltas
            ).logits[0, -1]
        )  # fmt: skip
        before, after = say({}), say(delta.row(result.deltas, i))
        assert after[new] > 2 * before[new]
        assert after[result.info["answer"][i]] < before[result.info["answer"][i]]


def test_a_request_without_finite_scores_fails_alone():
    long = len(model().tokenizer(requests()[0].text)["input_ids"])
    params = model().params | {"pos": {"w": model().params["pos"]["w"].at[long - 1].set(jnp.nan)}}
    found, wanted = make(params=params), make()
    assert found.info["failed"].tolist() == [0, -1, -1, -1]
    assert not change(found, 0).any()
    assert off(change(found, 1), change(wanted, 1)) < 1e-6


def test_by_name_in_a_sequence():
    some = [EditRequest(r.prompt, r.subject, r.target) for r in requests(0, 3)]
    edits = run(model(), some, "kn", False, batch=2, steps=2)
    assert [len(e.provenance.get("requests", "1")) for e in edits] == [2, 1]
    assert all(e.provenance["result"]["neurons"] for e in edits)
    with pytest.raises(ValueError, match="takes 1 request at a time"):
        run(model(), some, "kn", False, batch=2, mode="erase")


def test_settings_are_the_published_ones():
    cfg = model().cfg
    easy = configure("kn", cfg, protocol="easyedit")
    assert (easy.site, easy.points, easy.scaled, easy.old, easy.new) == (
        "mlp_pre", "linspace", False, 2.0, 1.0,
    )  # fmt: skip
    assert configure("kn", cfg) == KnConfig()
    assert configure("kn", cfg, preset="gpt-j-6b").threshold == 0.1
    assert configure("kn", cfg, preset="llama-3-8b", protocol="easyedit").steps == 1


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"threshold": 1.0}, {"site": "mlp"}])
def test_wrong_settings_say_so(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        KnConfig(**wrong)
