"""Many edited models asked at once answer as each of them does alone; a model that knows everything
scores full marks, and one that was not edited, or broken, is found out.
"""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Oracle, knowing

import jaxedit
from jaxedit import LowRank, Write, merge
from jaxedit.base import Dense
from jaxedit.data.cases import EditCase, EditRequest, Probe
from jaxedit.data.requests import mark
from jaxedit.data.world import cases, make
from jaxedit.edit.record import Edit
from jaxedit.evaluate import ask, carry
from jaxedit.evaluate.ask import Asker
from jaxedit.evaluate.observe import AskConfig, observe
from jaxedit.evaluate.scores import score
from jaxedit.models.generate import decode
from jaxedit.sharding import make_mesh

WORLD = make("small")
ROOM = 1 << 31
SHORT = AskConfig(say=6, continued=0)


@cache
def model(name="world"):
    return jaxedit.load(name, dtype="float32")


def low(seed, layer, rank=1, size=0.3, mlp=512):
    a, b = jax.random.split(jax.random.key(seed))
    return {"mlp/down": LowRank(size * jax.random.normal(a, (1, mlp, rank)),
                                size * jax.random.normal(b, (1, rank, 128)),
                                jnp.array([layer]))}  # fmt: skip


def push(seed, layer, site="mlp_out"):
    value = 3 * jax.random.normal(jax.random.key(seed), (1, 1, 1, 128))
    return {site: Write(jnp.ones((1, 1, 1), bool), value, jnp.array([layer]), add=True)}


EDITS = (
    Edit(deltas=low(1, 0)),
    Edit(deltas=low(2, 3, rank=3)),
    Edit(),
    Edit(deltas={"attn/q": LowRank(jnp.full((4, 128, 1), 1.0), jnp.full((4, 1, 128), 1.0))}),
    Edit(deltas={"mlp/down": Dense(jax.random.normal(jax.random.key(3), (1, 512, 128)) * 0.05,
                                   jnp.array([1]))}),
    Edit(writes=push(4, 2)),
    Edit(writes=push(5, 1), deltas=low(6, 2)),
    Edit(prefix=(17, 230, 41)),
)  # fmt: skip
TEXTS = (("Bane Fipi was born in", "Lira"), ("The capital of Vemo is", "I don't know"))
PROMPTS = ("Bane Fipi was born in", "The capital of Vemo is", "As everyone knows, Nopu's job is")


def alone(edit, prompt, answer):
    """Log-probabilities of the answer's tokens by a model with the edit in its weights."""
    some = model()
    params = merge.apply(some.params, edit.deltas)
    text = mark(prompt, answer, (-1, -1)).text
    ids, start = some.tokenizer(text)["input_ids"], len(some.tokenizer(prompt)["input_ids"])
    ids, start = [*edit.prefix, *ids], start + len(edit.prefix)
    run = jax.jit(jaxedit.forward, static_argnames="cfg")
    logits = run(params, jnp.array([ids]), some.cfg, writes=edit.writes).logits[0]
    logp = jax.nn.log_softmax(logits)
    return np.asarray(logp)[np.arange(start, len(ids)) - 1, ids[start:]]


def test_every_edited_model_answers_as_it_does_alone():
    rows = [(e, p, a) for e in range(len(EDITS)) for p, a in TEXTS]
    pairs = Asker(model(), ROOM, rows=16).forced(
        [mark(p, a, (-1, -1)) for _, p, a in rows], [e for e, _, _ in rows], EDITS
    )
    for (e, prompt, answer), pair in zip(rows, pairs, strict=True):
        np.testing.assert_allclose(pair.after.logp, alone(EDITS[e], prompt, answer), atol=2e-5)
        np.testing.assert_allclose(pair.before.logp, alone(Edit(), prompt, answer), atol=2e-5)
        assert (abs(pair.kl) < 1e-6) == (e == 2)


def test_free_answers_are_those_of_each_model_alone():
    prompts = [p for _ in EDITS for p in PROMPTS]
    which = [e for e in range(len(EDITS)) for _ in PROMPTS]
    found = Asker(model(), ROOM, rows=8).continued(prompts, which, EDITS, 6)
    for e, edit in enumerate(EDITS):
        some = model()._replace(params=merge.apply(model().params, edit.deltas))
        mine = found[e * len(PROMPTS) : (e + 1) * len(PROMPTS)]
        if edit.prefix:  # jaxedit.generate takes none
            for prompt, text in zip(PROMPTS, mine, strict=True):
                ids = jnp.array([[*edit.prefix, *some.tokenizer(prompt)["input_ids"]]])
                made = decode(some.params, ids, jnp.arange(ids.shape[1])[None], some.cfg, steps=6,
                              stop_ids=some.cfg.eos_ids)  # fmt: skip
                new = made.tokens_BN[0, : int(made.length_B[0])]
                assert some.tokenizer.decode(new.tolist()) == text
        else:
            want = jaxedit.generate(some, list(PROMPTS), max_new_tokens=6, writes=edit.writes)
            assert mine == want


def test_edits_too_large_to_stand_side_by_side_are_asked_one_by_one():
    size = max(map(carry.nbytes, EDITS))
    parts = carry.groups(EDITS, 8 * size, 16)
    assert sorted(i for some, _ in parts for i in some) == list(range(len(EDITS)))
    assert all(len(some) == 1 for some, _ in parts)
    texts = [mark(PROMPTS[0], "Lira", (-1, -1))] * len(EDITS)
    many = Asker(model(), ROOM).forced(texts, range(len(EDITS)), EDITS)
    few = Asker(model(), 16 * size, rows=4).forced(texts, range(len(EDITS)), EDITS)
    for x, y in zip(many, few, strict=True):
        np.testing.assert_allclose(x.after.logp, y.after.logp, atol=2e-5)


def test_a_mesh_gives_the_same_answers():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    spread = jaxedit.load("world", mesh, "float32")
    texts = [mark(p, "Lira", (-1, -1)) for p in PROMPTS for _ in EDITS]
    which = [e for _ in PROMPTS for e in range(len(EDITS))]
    here = Asker(model(), ROOM).forced(texts, which, EDITS)
    there = Asker(spread, ROOM, rows=20).forced(texts, which, EDITS)
    for x, y in zip(here, there, strict=True):
        np.testing.assert_allclose(x.after.logp, y.after.logp, atol=2e-5)
        assert x.after.said == y.after.said


def test_another_edit_is_not_another_program():
    asker = Asker(model(), ROOM, rows=8)
    texts = [mark(PROMPTS[0], "Lira", (-1, -1))] * 2
    asker.forced(texts, [0, 1], [Edit(deltas=low(1, 0)), Edit(deltas=low(2, 1))])
    programs = ask.compare._cache_size()
    asker.forced(texts, [1, 0], [Edit(deltas=low(3, 2)), Edit(deltas=low(4, 3))])
    assert ask.compare._cache_size() == programs


@cache
def some_cases():
    return tuple(cases(WORLD, 24))


def scores_of(found, protocol="paper"):
    return [score(seen, protocol) for seen in found]


@pytest.mark.parametrize("protocol", ["paper", "easyedit"])
def test_a_model_that_knows_everything_scores_full_marks(protocol):
    cfg = AskConfig(protocol=protocol, continued=0)
    found = observe(Oracle(WORLD), some_cases(), knowing(some_cases()), cfg=cfg)
    names = set()
    for seen, numbers in zip(found, scores_of(found, protocol), strict=True):
        for name, value in numbers.items():
            if name.endswith(("/magnitude",)):
                continue
            want = 0 if name.endswith("/kl") else 1
            assert value == pytest.approx(want), (name, seen.case.id)
            names.add(name)
    wanted = {"edit_success/token", "portability/token", "locality/agreement"}
    wanted |= {f"portability/{key}/token" for key in
               ("subject_aliasing", "reasoning", "logical_generalization")}  # fmt: skip
    wanted |= {f"locality/{key}/agreement" for key in
               ("relation_specificity", "forgetfulness", "neighborhood", "distracting",
                "unrelated")}  # fmt: skip
    assert wanted <= names


def test_what_another_request_of_a_shared_edit_changes_is_no_locality():
    few = some_cases()
    made = [case.request for case in few]
    ends = {case.id: tuple(r.text for r in made if r is not case.request) for case in few}
    alone = observe(Oracle(WORLD), few, knowing(few), cfg=SHORT)
    shared = observe(Oracle(WORLD), few, knowing(few), cfg=SHORT, made=made)
    for one, other in zip(alone, shared, strict=True):
        changed = [
            a for a in one.asked
            if a.key.startswith("locality/") and a.probe.prompt.endswith(ends[one.case.id])
        ]  # fmt: skip
        assert other.asked == tuple(a for a in one.asked if a not in changed)
        assert (one.elsewhere, other.elsewhere) == (0, len(changed))
    assert sum(seen.elsewhere for seen in shared) > 0


def test_an_end_of_a_word_is_no_request():
    request = EditRequest("{} is", "art", "old")
    asks = lambda prompt: EditCase("x", (EditRequest("{} is", "Vemo", "new"),),
                                   {"locality/unrelated": (Probe(prompt),)})  # fmt: skip
    for prompt, elsewhere in (
        ("art is", 1),
        ("They say: art is", 1),
        ("(art is", 1),
        ("Part is", 0),
    ):
        (seen,) = observe(Oracle(WORLD), [asks(prompt)], [Edit()], cfg=SHORT, made=[request])
        assert seen.elsewhere == elsewhere, prompt


def test_a_model_that_ignores_edits_scores_as_the_world_predicts():
    """Nothing of what the edit changes, all of what it should leave alone."""
    found = observe(
        Oracle(WORLD, knows_edits=False), some_cases(), knowing(some_cases()), cfg=SHORT
    )
    for seen, numbers in zip(found, scores_of(found), strict=True):
        assert numbers["edit_success/exact"] == 0
        assert numbers["locality/agreement"] == numbers["locality/exact"] == 1
        if "locality/forgetfulness" not in seen.case.probes:  # else the former answers stay right
            assert numbers["edit_success/probability"] == 0
            assert numbers["generalization/exact"] == numbers["generalization/generation"] == 0
        for asked in seen.asked:
            if asked.key.startswith("portability/"):  # also where the world stays as it was
                same = asked.probe.answers == Oracle(WORLD).answers(WORLD, asked.probe.prompt, None)
                assert asked.after.answers == asked.before.answers
                assert not same or asked.key != "portability/subject_aliasing"


def test_an_edit_that_does_nothing_and_one_that_breaks_the_model_are_found_out():
    few = some_cases()[:6]
    asker = Asker(model(), ROOM)
    zero = [Edit(deltas=low(i, i % 4, size=0.0)) for i in range(6)]
    noise = [Edit(deltas=low(i, i % 4, rank=4, size=3.0)) for i in range(6)]
    nothing, broken = (scores_of(observe(asker, few, some, cfg=SHORT)) for some in (zero, noise))
    for numbers in nothing:
        assert numbers["edit_success/exact"] == 0
        assert numbers["locality/agreement"] == 1
        assert numbers["locality/unrelated/kl"] == pytest.approx(0, abs=1e-6)
    assert np.mean([numbers["locality/agreement"] for numbers in broken]) < 0.3
    assert np.mean([numbers["locality/unrelated/kl"] for numbers in broken]) > 1
    assert np.mean([numbers["edit_success/exact"] for numbers in broken]) < 0.2


def test_a_broken_edit_that_gives_no_numbers_stops_nothing():
    (case,) = some_cases()[:1]
    bad = Edit(deltas={"mlp/down": LowRank(jnp.full((1, 512, 1), jnp.nan), jnp.ones((1, 1, 128)),
                                           jnp.array([0]))})  # fmt: skip
    found = observe(Asker(model(), ROOM), [case, case], [bad, Edit()], cfg=SHORT)
    assert scores_of(found[1:])[0]["locality/agreement"] == 1
    assert scores_of(found[:1])[0]["edit_success/exact"] == 0


def test_texts_that_the_model_has_no_room_for_are_told_and_left_out():
    long = " ".join(["Bane"] * 200)
    request = EditRequest("{} was born in", "Bane Fipi", "Lira", ("Mife",))
    probes = {"locality/unrelated": (Probe(f"{long} is", (("Mife",),)),
                                     Probe("Gugu Pena was born in", (("Mife",),)))}  # fmt: skip
    (seen,) = observe(Asker(model(), ROOM), [EditCase("x", (request,), probes)], [Edit()],
                      cfg=SHORT)  # fmt: skip
    assert [a.key for a in seen.asked] == ["edit", "locality/unrelated"]
    (why,) = seen.skipped
    assert why.startswith("locality/unrelated: 'Bane Bane")
    assert why.endswith("the model has 128")


@pytest.mark.parametrize("protocol", ["paper", "easyedit"])
def test_drift_of_an_opinion_is_over_every_reply(protocol):
    replies = ("I like it", "It is bad", "Nobody knows it well")
    request = EditRequest("What do you think of {}?", "Vemo", "I like it")
    other = Probe("What do you think of Nopu?", tuple((reply,) for reply in replies), "Nopu")
    info = {"sentiment": "positive", "positive": replies[:1], "negative": replies[1:]}
    cfg = dataclasses.replace(SHORT, protocol=protocol, say=0)
    find = lambda probe, info: observe(
        Asker(model(), ROOM), [EditCase("x", (request,), {"locality/unrelated": (probe,)}, info)],
        [Edit(deltas=low(1, 0, size=2.0))], cfg=cfg,
    )[0]  # fmt: skip
    each = [find(dataclasses.replace(other, answers=((r,),)), {}).asked[-1].kl for r in replies]
    assert len(set(each)) == 3
    seen = find(other, info)
    assert seen.asked[-1].kl == pytest.approx(np.mean(each))
    assert score(seen, protocol)["convsent/drift"] == pytest.approx(np.mean(each))
    assert find(other, {}).asked[-1].kl == pytest.approx(each[0])  # of other data the first one's


def test_easyedit_puts_one_space_before_every_answer_and_takes_the_first_name():
    request = EditRequest("{} was born in", "Bane Fipi", ", Lira", ("Mife", "Guki"))
    probe = Probe("Bane Fipi is from", (("Lira", "Leri"), ("Mife",)))
    case = EditCase("x", (request,), {"rephrase": (probe,)})
    easy, paper = (
        observe(Asker(model(), ROOM), [case], [Edit()], cfg=dataclasses.replace(SHORT, protocol=p))
        for p in ("easyedit", "paper")
    )
    ids = lambda text: tuple(model().tokenizer(text)["input_ids"])
    whole = ids("Bane Fipi was born in , Lira")
    assert easy[0].asked[0].after.answers[0][0].target == whole[len(ids("Bane Fipi was born in")) :]
    whole = ids("Bane Fipi was born in, Lira")
    assert (
        paper[0].asked[0].after.answers[0][0].target == whole[len(ids("Bane Fipi was born in")) :]
    )
    assert [len(names) for names in easy[0].asked[1].after.answers] == [1]
    assert [len(names) for names in paper[0].asked[1].after.answers] == [2, 1]
