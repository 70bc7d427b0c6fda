"""BIRD: its term against plain forwards, and what it does to ROME's search."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import model, off, stats

import jaxedit
from jaxedit import delta
from jaxedit.data.aligned import aligned
from jaxedit.data.cases import EditRequest
from jaxedit.data.contexts import ContextConfig
from jaxedit.edit import values
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.methods import configure
from jaxedit.edit.runner import run
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.bird import BirdConfig, Distances, bird
from jaxedit.edit.weights.rome import RomeConfig, rome
from jaxedit.models.layers import norm

CONTEXTS = ("{}", "The profession of Elka Hobart is a doctor. {}")
# the first with all that there can be, then without an inverse, a known relation, a ground truth
REQUESTS = (
    EditRequest("{} was born in the city of", "Elka Castro", "Sundhaven", ("Pellam", "another")),
    EditRequest("The profession of {} is a", "Elka Hobart", "pilot", ("doctor",)),
    EditRequest("{} plays the", "Celia Hobart", "violin", ("piano",)),
    EditRequest("{} comes from the city of", "Nils Castro", "Tavira"),
)
PHRASES = (
    (REQUESTS[0].prompt, "was born in the city of", "is the birthplace of"),
    (REQUESTS[1].prompt, "works as a", ""),
    (REQUESTS[3].prompt, "comes from", "is where they grew up,"),
)
LAYER = 1
CFG = BirdConfig(
    layer=LAYER,
    phrases=PHRASES,
    alpha=0.02,
    values=ValueConfig(steps=8, stop_loss=0.0),
    rows=RowsConfig(contexts=ContextConfig(given=(CONTEXTS,))),
)


@cache
def batch():
    """The requests in one batch, in their order, with the texts beside them."""
    ((index, found),) = aligned(
        model().tokenizer, REQUESTS, groups=(CONTEXTS,), beside=bird(CFG).beside
    )
    order = np.argsort(index)
    fixed = {"weight_C": found.weight_C, "prefix": found.prefix}
    names = [f.name for f in dataclasses.fields(found) if f.name not in fixed]
    every = {name: getattr(found, name) for name in names}
    return found.replace(**jax.tree.map(lambda x: x[order], every))


def make(editor, kind="each", given=None):
    state = editor.init(jax.random.key(0), model(), stats())
    out = getattr(editor, kind)(state, model().params, (batch() if given is None else given,))
    return out if kind == "each" else out[0]


def search(extra=None, opt=CFG.values):
    return values.search(
        model().params, (batch(),), model().cfg, LAYER, ("mlp_down",), opt, extra=extra
    )


def term(change, alpha=1.0, beta=CFG.beta):
    return Distances(alpha, beta)(model().params, batch(), model().cfg, LAYER)({"mlp_down": change})


def state_of(context, text, moved=None, length=32):
    """The mean last hidden state of a text's tokens, by an ordinary forward of it in a context; the
    MLP's output at its last token moved.
    """
    before = context.index("{}")
    out = model().tokenizer(context.replace("{}", text), return_offsets_mapping=True)
    own = np.array([i for i, (_, end) in enumerate(out["offset_mapping"]) if end > before])
    tokens = np.zeros((1, length), np.int32)  # what follows is not seen
    tokens[0, : len(out["input_ids"])] = out["input_ids"]
    mask = (jnp.arange(length) == own[-1]) & (moved is not None)
    value = jnp.zeros(model().cfg.embed) if moved is None else moved
    write = jaxedit.Write(mask[None, None], value[None, None, None], jnp.array([LAYER]), add=True)
    last = jaxedit.forward(
        model().params, tokens, model().cfg, writes={"mlp_down": write}, reads={"resid_post": None}
    ).reads["resid_post"][-1]
    return norm(model().params["norm"], last, model().cfg)[0, own].mean(0)


def test_the_term_is_the_papers():
    key = jax.random.key(1)
    moved = jax.random.normal(key, (len(REQUESTS), model().cfg.embed))
    for change in (jnp.zeros_like(moved), moved):
        found = term(change, beta=0.7)
        for i, request in enumerate(REQUESTS):
            known = {prompt: (there, back) for prompt, there, back in PHRASES}
            there, back = known.get(request.prompt, (request.prompt[3:], ""))
            total = 0.0
            for context in CONTEXTS:
                s = state_of(context, request.subject, change[i])
                for sign, objects in ((1, (request.target,)), (-0.7, request.ground_truth[:1])):
                    for o in (state_of(context, text) for text in objects):
                        total += sign * np.linalg.norm(s + state_of(context, there) - o)
                        if back:
                            total += sign * np.linalg.norm(o + state_of(context, back) - s)
            assert found[i] == pytest.approx(total, rel=1e-4)


def test_without_alpha_it_is_rome():
    plain = RomeConfig(layer=LAYER, values=CFG.values, rows=CFG.rows)
    ours = make(bird(dataclasses.replace(CFG, alpha=0.0)))
    theirs = make(rome(plain))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_term_has_no_say_in_when_to_stop():
    found = search(Distances(0.1, 0.0), ValueConfig(steps=20, stop_loss=2.0))
    stopped = found.steps_N < 20
    assert stopped.any()
    assert (found.loss_N[stopped] < 2).all()
    assert (0.1 * term(found.delta["mlp_down"], beta=0.0) > 2).all()


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_the_search_lowers_the_term(beta):
    plain, ours = search(), search(Distances(CFG.alpha, beta))
    assert ours.steps_N.tolist() == plain.steps_N.tolist()
    there = term(ours.delta["mlp_down"], beta=beta)
    assert (there < term(plain.delta["mlp_down"], beta=beta)).all()


def test_each_is_one_at_a_time():
    each = make(bird(CFG))
    for i in range(len(REQUESTS)):
        alone = make(bird(CFG), "edit", batch().one(i)).deltas["mlp/down"]
        assert off(delta.row(each.deltas, i)["mlp/down"].dense(), alone.dense()) < 1e-5


def test_the_runner_hands_the_texts_over():
    found = run(model(), REQUESTS, dataclasses.replace(CFG, covariance=False), size=4)
    wanted = make(bird(dataclasses.replace(CFG, covariance=False)))
    for i, edit in enumerate(found):
        mine = delta.row(wanted.deltas, i)["mlp/down"].dense()
        assert off(edit.deltas["mlp/down"].dense(), mine) < 1e-5
    assert found[0].provenance["method"] == "bird"


def test_settings_are_the_published_ones():
    cfg = configure("bird", None, preset="gpt2-xl")
    assert (cfg.layer, cfg.alpha, cfg.beta, cfg.covariance) == (17, 5e-4, 0.8, True)
    assert configure("bird", None, preset="gpt-j-6b").rows.contexts.lengths == ((5, 5), (10, 5))
    assert configure("bird", model().cfg).layer == configure("rome", model().cfg).layer


def test_what_cannot_be_done_says_so():
    with pytest.raises(ValueError, match=r"beside=editor\.beside"):
        make(bird(CFG), given=dataclasses.replace(batch(), beside=None))
    with pytest.raises(ValueError, match="listed once"):
        BirdConfig(layer=1, phrases=(("no slot", "is", ""),))
    with pytest.raises(ValueError, match="listed once"):
        BirdConfig(layer=1, phrases=(PHRASES[0], PHRASES[0]))
    with pytest.raises(ValueError, match="subject_last"):
        BirdConfig(layer=1, rows=RowsConfig(token="last"))
