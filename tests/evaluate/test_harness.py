"""lm-evaluation-harness asks our models, and its numbers are ours."""

import importlib
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_choice import WORLD, asked, by_hand, one_answer

import jaxedit
from jaxedit.data.world import questions
from jaxedit.evaluate.choice import MEASURES, Exam, choose

NAME = "jaxedit.evaluate.harness"
TASK = """
task: world_facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """The module, where lm_eval is installed; what it caches goes elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        pytest.importorskip("lm_eval")
        yield importlib.import_module(NAME)


@pytest.fixture(scope="module")
def model():
    return jaxedit.load("world", dtype="float32")


@pytest.fixture
def lm(harness, model):
    return harness.HarnessLM(model)


def requests(*args):
    return [SimpleNamespace(args=a) for a in args]


@pytest.fixture
def task(tmp_path):
    """A folder with a task of facts as lm_eval reads it, and its questions."""
    some = asked(300)
    rows = [{"question": q.question, "choices": list(q.choices), "answer": q.answer} for q in some]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "facts.yaml").write_text(TASK.format(file=file))
    return tmp_path, some


def evaluate(lm, folder, **how):
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        lm, tasks=["world_facts"], task_manager=tasks, bootstrap_iters=0, **how
    )


def test_without_it_the_error_says_how_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(ImportError, match=r"pip install 'jaxedit\[harness\]'"):
        importlib.import_module(NAME)


@pytest.mark.parametrize("edited", [False, True])
def test_its_accuracy_is_ours(harness, model, task, edited):
    folder, some = task
    edit, new = one_answer(model, some, 5) if edited else (None, some[5].answer)
    theirs = evaluate(harness.HarnessLM(model, edit), folder)
    ours = choose(model, Exam(some), edit).answered
    for measure in MEASURES:
        found = theirs["results"]["world_facts"][f"{measure},none"]
        assert found == np.mean([a.is_right(measure) for a in ours])
    samples = sorted(theirs["samples"]["world_facts"], key=lambda s: s["doc_id"])
    for sample, answered in zip(samples, ours, strict=True):
        told = [float(r[0]) for r in sample["filtered_resps"]]
        np.testing.assert_allclose(told, answered.logp, rtol=0, atol=1e-5)
    assert ours[5].pick() == new


def test_by_name_as_the_command_line_makes_it(harness, model, task, tmp_path):
    folder, some = task
    edit, _ = one_answer(model, some, 2)
    edit.save(tmp_path / "edit.safetensors")
    args = {"model": "world", "dtype": "float32", "edit": str(tmp_path / "edit.safetensors")}
    found = evaluate("jaxedit", folder, model_args=args, limit=4)
    assert found["results"]["world_facts"]["acc,none"] == 0.75
    assert found["config"]["model_family"] == "gpt2"
    from lm_eval.api.registry import get_model

    assert get_model("jaxedit") is harness.HarnessLM
    get_model("dummy")  # its own are still there


def test_the_command_line(harness, model, task, monkeypatch, capsys):
    folder, _ = task
    monkeypatch.setattr(sys, "argv", [])
    harness.main(
        ["--model_args", "model=world,dtype=float32", "--tasks", "world_facts", "--limit", "4",
         "--include_path", str(folder), "--batch_size", "3"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "jaxedit ({'model': 'world', 'dtype': 'float32'})" in said
    assert "batch_size: 3" in said
    assert "world_facts" in said


def test_likelihoods_by_hand(lm, model):
    probe = questions(WORLD, "facts")[0]
    start, whole = (model.tokenizer(t)["input_ids"] for t in (probe.prompt, f"{probe.prompt} Mife"))
    end = model.tokenizer.eos_token_id
    asked = [(probe.prompt, " Mife"), (f"{probe.prompt} ", "Mife"), ("", probe.prompt)]
    found = lm.loglikelihood(requests(*asked), disable_tqdm=True)
    wanted = by_hand(model, whole, len(start))
    # a space at the end of the context is the continuation's
    np.testing.assert_allclose([f[0] for f in found[:2]], wanted, atol=1e-4)
    np.testing.assert_allclose(found[2][0], by_hand(model, [end, *start], 1), atol=1e-4)
    (said,) = jaxedit.generate(model, probe.prompt, max_new_tokens=2)
    greedy = [(probe.prompt, said), (probe.prompt, " nobody")]
    assert [f[1] for f in lm.loglikelihood(requests(*greedy), disable_tqdm=True)] == [True, False]


def test_rolling_likelihoods_predict_every_token_once(lm, model):
    short, long = "Bane Fipi was born in Mife.", "Bane Fipi was born in Mife. " * 20
    found = lm.loglikelihood_rolling(requests((short,), (long,)))
    ids, end = model.tokenizer(long)["input_ids"], model.tokenizer.eos_token_id
    assert 128 < len(ids) <= 256
    first = by_hand(model, [end, *ids[:128]], 1)
    rest = len(ids) - 128  # the last window reads as much as the model can
    second = by_hand(model, ids[-129:], 129 - rest)
    alone = by_hand(model, [end, *model.tokenizer(short)["input_ids"]], 1)
    np.testing.assert_allclose(found, [alone, first + second], atol=1e-3)


def test_continuations(lm, model):
    prompts = [p.prompt for p in questions(WORLD, "facts")[:600:120]]
    greedy = {"until": [".", "\n"], "max_gen_toks": 12}
    few = {"until": "a", "max_gen_toks": 4, "do_sample": False, "temperature": 0.7}
    found = lm.generate_until(requests(*((p, greedy) for p in prompts), (prompts[0], few)))
    whole = jaxedit.generate(model, prompts, max_new_tokens=12)
    assert found[:-1] == [text.split(".")[0].split("\n")[0] for text in whole]
    first = jaxedit.generate(model, prompts[0], max_new_tokens=4)[0]
    assert found[-1] == first.split("a")[0]


def test_sampled_continuations(harness, model):
    prompt = questions(WORLD, "facts")[0].prompt
    hot = {"until": [], "max_gen_toks": 8, "temperature": 5.0}
    ask = lambda: requests(*[(prompt, hot)] * 4)
    lm, again = harness.HarnessLM(model, seed=1), harness.HarnessLM(model, seed=1)
    found = lm.generate_until(ask())
    assert len(set(found)) > 1
    assert found == again.generate_until(ask())
    assert found != lm.generate_until(ask())
    with pytest.warns(UserWarning, match="num_beams"):
        lm.generate_until(requests((prompt, {**hot, "num_beams": 4})))


def test_a_text_that_ends_a_continuation_stops_the_loop_where_a_token_begins_with_it(harness, lm):
    end = lm.tokenizer.eos_token_id
    found = set(np.asarray(harness.stops(lm.tokenizer, (".",), (end,))).tolist())
    texts = {t: lm.tokenizer.decode([t]) for t in range(lm.model.cfg.vocab)}
    assert found == {end, *(t for t, text in texts.items() if text.startswith("."))}
    assert harness.cut("one. two; three.", (";", ".")) == "one"


def test_an_edit_of_every_kind(harness, model):
    probe = questions(WORLD, "facts")[0]
    ask = [(probe.prompt, " Mife")]
    plain = harness.HarnessLM(model).loglikelihood(requests(*ask))[0][0]
    ids = tuple(model.tokenizer("Well.")["input_ids"])
    prefix = harness.HarnessLM(model, jaxedit.Edit(prefix=ids))
    together = [(f"Well.{probe.prompt}", " Mife")]
    wanted = harness.HarnessLM(model).loglikelihood(requests(*together))[0][0]
    assert abs(prefix.loglikelihood(requests(*ask))[0][0] - wanted) < 1e-4
    assert prefix.generate_until(requests((probe.prompt, {"max_gen_toks": 4}))) == [
        jaxedit.generate(model, f"Well.{probe.prompt}", max_new_tokens=4)[0]
    ]
    shape = (model.cfg.layers, 1, 1, model.cfg.embed)
    write = jaxedit.Write(
        jnp.ones(shape[:-1], bool), jax.random.normal(jax.random.key(0), shape), add=True
    )
    written = harness.HarnessLM(model, jaxedit.Edit(writes={"mlp_out": write}))
    assert abs(written.loglikelihood(requests(*ask))[0][0] - plain) > 0.1
    (text,) = jaxedit.generate(model, [probe.prompt], max_new_tokens=4, writes={"mlp_out": write})
    assert written.generate_until(requests((probe.prompt, {"max_gen_toks": 4}))) == [text]


def test_errors_say_what_to_do(harness, lm, model):
    with pytest.raises(ValueError, match="leaves no room for a prompt in 128 tokens"):
        lm.generate_until(requests(("x", {"max_gen_toks": 128})))
    with pytest.raises(ValueError, match="has no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "x"}])
    with pytest.raises(ValueError, match="2 to 128"):
        harness.HarnessLM(model, max_length=200)


def test_a_chat_template(harness):
    """As the tokenizer has it; a BOS that it writes is not put there twice."""
    lm = harness.HarnessLM(jaxedit.load("world-llama", dtype="float32"))
    lm.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    text = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert text == "<|begin|>user: Hello\nassistant:"
    assert lm.tok_encode(text).count(lm.tokenizer.bos_token_id) == 1
    assert lm.tok_encode("Hello")[0] == lm.tokenizer.bos_token_id
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    assert "/" not in lm.tokenizer_name
