"""SERAC: what its memories are keyed by and hold, what it learns, and that it then edits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_lessons import drawn, lessons, trained, world

import jaxedit
from jaxedit import edit
from jaxedit.data.answers import Answers
from jaxedit.data.asked import requests
from jaxedit.data.cases import EditRequest
from jaxedit.data.lessons import LessonConfig
from jaxedit.edit import learned as saved
from jaxedit.edit import learner, task
from jaxedit.edit.learner import ObjectiveConfig
from jaxedit.edit.prompts.memory import answered, behind, memories
from jaxedit.edit.prompts.serac_learner import LEARNER, ScopeConfig, SeracConfig, scopes
from jaxedit.edit.record import Edit
from jaxedit.edit.router import join
from jaxedit.evaluate.route import route
from jaxedit.train.editor import ADAM, EditorConfig, of_model
from jaxedit.train.loop import LoopConfig, run

SCOPE = ScopeConfig(blocks=2, width=16, rank=2)
OPT = SeracConfig(layers=(2, 3), rank=2, scope=SCOPE)
STRICT = {"threshold": 0.999}  # only the same prompt, whatever was learned


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a few steps have learned."""
    cfg = EditorConfig(
        "world", LessonConfig(("world:small:0:60",), validation=8), OPT,
        dataclasses.replace(ADAM, lr=1e-3), batch=4, measured=8,
    )  # fmt: skip
    done = of_model(cfg, world(), 2)
    where = tmp_path_factory.mktemp("serac")
    state, _ = run(done, LoopConfig(steps=2, log_every=1, best="score"), where)
    return str(done.finish(state, where))


@pytest.fixture(scope="module")
def asked():
    return requests("world:small:0:6")[0]


@pytest.mark.parametrize("name", ["world", "world-llama"])
def test_rows_behind_a_memory_are_as_if_they_were_one_text(name):
    """With and without a token that begins every text, wherever the padding is."""
    model = jaxedit.load(name, dtype="float32")
    bos = model.tokenizer.bos_token_id
    tell = lambda text: model.tokenizer(text)["input_ids"]
    texts = [tell("Bane Fipi was born in Lira"), tell("The color of Nazi Toza is grey")]
    query = tell("As everyone knows, Bane Fipi's city of birth is Lira")
    ends = tell("\n")[-1:]
    padded = lambda x, left, n: [0] * left + x + [0] * (n - left - len(x))
    order = lambda x, left, n: [-1] * left + list(range(len(x))) + [-1] * (n - left - len(x))
    some = [(t, left) for t, left in zip(texts, (0, 2), strict=True)]
    tokens, pos = (jnp.array([f(t, left, 16) for t, left in some]) for f in (padded, order))
    held = memories(tokens, pos, jnp.array(ends), bos)
    first = int(texts[0][0] == bos)
    for row, text in zip(held.tolist(), texts, strict=True):
        assert [t for t in row if t >= 0] == text[first:] + ends
    n = len(query)
    rows = Answers(
        jnp.array([padded(query, 3, 24)] * 2), jnp.array([order(query, 3, 24)] * 2),
        jnp.full((2, 1), 3 + n - 2), jnp.full((2, 1), query[-1]), jnp.ones((2, 1), bool),
    )  # fmt: skip
    found = answered(model.params, behind(held, rows, bos), model.cfg)
    for i, text in enumerate(texts):
        whole = jnp.array([[*query[:first], *text[first:], *ends, *query[first:]]])
        logits = jaxedit.forward(model.params, whole, model.cfg).logits[:, -2]
        np.testing.assert_allclose(found[i], jax.nn.log_softmax(logits), atol=1e-4)


def test_keys_are_of_prompts_and_memories_of_their_targets_too(folder):
    """A target of several words does not leak into the key."""
    targets = ("Lira", "Gugu Pena", "Gugu Pena of all the people")
    same = [EditRequest("{} was born in", "Bane Fipi", target) for target in targets]
    made = edit.run(world(), same, "serac", trained=folder)
    keys = [np.asarray(e.router.keys_MH) for e in made]
    for key in keys[1:]:
        np.testing.assert_allclose(key, keys[0], atol=1e-5)
    for e, target in zip(made, targets, strict=True):
        assert world().tokenizer.decode(e.router.prefix(0)) == f"Bane Fipi was born in {target}\n"
        assert "failed" not in e.provenance
    assert made[0].provenance["trained"]


def test_lessons_keys_do_not_depend_on_answers():
    given, some = LEARNER.given(OPT, world()), jax.tree.map(jnp.asarray, lessons(4))
    first = LEARNER.first(jax.random.key(0), OPT, world().cfg)[0]
    other = some.tokens_BT
    answers = jnp.arange(other.shape[-1]) > some.at_BU[..., :1]
    changed = some.replace(tokens_BT=jnp.where(answers, 7, other))
    np.testing.assert_array_equal(*(scopes(first, given, x, OPT) for x in (some, changed)))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scope": dataclasses.replace(SCOPE, distance="cosine", pool="last", tune="nothing")},
        {"scope": dataclasses.replace(SCOPE, blocks=0, tune="all", encoder="world")},
        {"supervised": False, "objective": ObjectiveConfig(edit=1.0)},
    ],
    ids=["euclidean", "cosine", "other encoder", "mixed"],
)
def test_a_few_steps_lower_the_loss(how):
    opt = dataclasses.replace(OPT, **how)
    method = LEARNER._replace(gradient=with_given(opt), measure=None)
    now, found = trained(method, opt, 8, 3e-3, 4)
    assert found[-1]["loss"] < found[0]["loss"] - 0.1
    if opt.supervised:
        assert found[-1]["scope_loss"] < found[0]["scope_loss"]
        assert found[-1]["edit_loss"] < found[0]["edit_loss"]
    seen = LEARNER.measure(now, LEARNER.given(opt, world()), lessons(8), opt, world().cfg)
    assert set(seen) >= {"score", "reliability", "generalization", "locality"}
    assert all(0 <= float(seen[k]) <= 1 for k in ("score", "led", "right"))


def with_given(opt):
    """The gradient, of the model's parameters: `trained` knows no others."""
    given = LEARNER.given(opt, world())

    def gradient(learned, params, some, opt, cfg):
        return LEARNER.gradient(learned, given, some, opt, cfg)

    return gradient


def test_an_edit_leads_its_prompt_to_its_memory_and_others_to_none(folder, asked, tmp_path):
    alone = edit.run(world(), asked[:3], "serac", trained=folder, **STRICT)
    texts = [r.text for r in asked[:4]]
    for i, e in enumerate(alone):
        found = route(world(), e, texts)
        assert found.tolist() == [0 if n == i else -1 for n in range(4)]
        assert e.router.scope.w_DH is alone[0].router.scope.w_DH  # one classifier for all
    (both,) = edit.run(world(), asked[:3], "serac", independent=False, trained=folder, **STRICT)
    assert route(world(), both, texts).tolist() == [0, 1, 2, -1]
    steps = edit.run(
        world(), asked[:3], "serac", independent=False, batch=2, trained=folder, **STRICT
    )
    assert [len(e.router) for e in steps] == [2, 1]
    whole = join([e.router for e in steps])
    np.testing.assert_allclose(whole.keys_MH, both.router.keys_MH, atol=1e-5)
    assert [*map(whole.prefix, range(3))] == [*map(both.router.prefix, range(3))]
    both.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert route(world(), again, texts).tolist() == [0, 1, 2, -1]
    again.check(world())


@pytest.mark.parametrize("independent", [True, False])
def test_a_run_from_a_config_says_who_says_the_target(folder, tmp_path, independent):
    cfg = task.EditTask(
        "world", "world:small:0:4", dataclasses.replace(OPT, trained=folder, **STRICT),
        independent=independent, batch=0 if independent else 2, workdir=str(tmp_path / "run"),
    )  # fmt: skip
    found, _ = task.go(cfg, world(), None)
    assert (found["requests"], found["failed"], found["method"]) == (4, 0, "serac")
    lines = [json.loads(x) for x in (tmp_path / "run" / task.RESULTS).read_text().splitlines()]
    lines = [line for line in lines if "place" in line]
    asked = [EditRequest(**line["request"]) for line in lines]
    made = edit.run(world(), asked, "serac", trained=folder, **STRICT)
    assert [line["said"] for line in lines] == task.said(world(), asked, made).tolist()


def test_what_was_trained_is_refused_where_it_does_not_belong(folder, asked):
    with pytest.raises(ValueError, match="is an editor of serac, not of mend"):
        edit.run(world(), asked[:1], "mend", trained=folder)
    with pytest.raises(ValueError, match="serac is trained before it edits"):
        edit.run(world(), asked[:1], "serac", trained="")
    with pytest.raises(ValueError, match="tune 'everything': one of nothing, low_rank, all"):
        ScopeConfig(tune="everything")
    opt = dataclasses.replace(OPT, scope=ScopeConfig(blocks=9))
    with pytest.raises(ValueError, match=r"scope.blocks=9: the encoder has 4"):
        learner.first(jax.random.key(0), LEARNER, opt, world().cfg)
    opt = saved.config(folder, dataclasses.replace(OPT, threshold=0.7, rank=5), "serac")
    assert (opt.threshold, opt.rank, opt.scope) == (0.7, 2, SCOPE)
    assert len(drawn()) > 4
