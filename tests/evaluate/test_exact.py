"""Exact answers agree with greedy generation."""

import jax
import numpy as np
import pytest

import jaxedit
from jaxedit.data.cases import Probe
from jaxedit.data.world import make, questions
from jaxedit.evaluate.exact import exact

WORLD = make("small")


@pytest.fixture(scope="module", params=["world", "world-llama"])
def model(request):
    return jaxedit.load(request.param, dtype="float32")


def test_exact_is_what_greedy_decoding_says(model):
    probes = questions(WORLD, "facts")[::400] + questions(WORLD, "two_hops_new")[::20]
    right = exact(model, probes, ending=".")
    said = jaxedit.generate(model, [p.prompt for p in probes], max_new_tokens=12)
    named = [words.split(".")[0].strip() in p.names for words, p in zip(said, probes, strict=True)]
    assert right.tolist() == named
    assert 0 < right.sum() < len(right)  # both are seen


def test_any_name_of_any_answer_counts(model):
    probe = next(p for p in questions(WORLD, "facts") if exact(model, [p], ending=".")[0])
    (name, *_), wrong = probe.answers[0], ("Nowhere",)
    several = [
        Probe(probe.prompt, (wrong, (name,))),
        Probe(probe.prompt, (("Nobody", name),)),
        Probe(probe.prompt, (wrong,)),
    ]
    assert exact(model, several).tolist() == [True, True, False]


def test_the_ending_tells_a_name_from_a_longer_one(model):
    probe = next(p for p in questions(WORLD, "facts") if exact(model, [p], ending=".")[0])
    first = probe.answers[0][0]
    cut = model.tokenizer.tokenize(f" {first}")[0].removeprefix("Ġ")
    part = Probe(probe.prompt, ((cut,),))
    if cut != first:
        assert exact(model, [part]).tolist() == [True]
        assert exact(model, [part], ending=".").tolist() == [False]


def test_the_same_on_a_mesh(model):
    probes = questions(WORLD, "aliases_new")[::10]
    mesh = jaxedit.make_mesh(data=2, fsdp=2, tensor=2)
    there = jaxedit.load("world" if model.cfg.family == "gpt2" else "world-llama", mesh, "float32")
    assert exact(there, probes).tolist() == exact(model, probes).tolist()


def test_deltas_change_the_answers(model):
    shape = (model.cfg.layers, model.cfg.mlp, model.cfg.embed)
    noise = jaxedit.Dense(jax.random.normal(jax.random.key(0), shape))
    probes = questions(WORLD, "facts")[:64]
    assert exact(model, probes).mean() > 0.9
    assert exact(model, probes, deltas={"mlp/down": noise}).mean() < 0.1


def test_probes_without_answers_are_refused(model):
    with pytest.raises(ValueError, match="no probe has an answer"):
        exact(model, [Probe("x")])
    assert np.array_equal(exact(model, [Probe("x"), questions(WORLD, "facts")[0]])[:1], [False])
