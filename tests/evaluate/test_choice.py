"""Multiple choice: the prompts, the likelihoods, what is counted, and what an edit changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.data.documents import Source
from jaxedit.data.exams import Question
from jaxedit.data.world import make, questions
from jaxedit.evaluate import likelihood
from jaxedit.evaluate.ability import AbilityConfig, ability, exams, measure, spread
from jaxedit.evaluate.choice import FORMS, MEASURES, Answered, Exam, choose, prompt
from jaxedit.evaluate.likelihood import Line, likelihoods, shorten
from jaxedit.evaluate.perplexity import perplexity
from jaxedit.models.transformer import forward

WORLD = make("small")
SKY = Question("sky", "What is blue?", ("grass", "the sky", "coal"), 1, "plain_colors")
SEA = Question("sea", "What is deep?", ("the sea", "a cup", "a nail"), 0, "plain_colors")
SUN = Question("sun", "What is hot?", ("the sun", "ice", "snow"), 0, "heat")


@pytest.fixture(scope="module", params=["world", "world-llama"])
def model(request):
    return jaxedit.load(request.param, dtype="float32")


@pytest.fixture(scope="module")
def gpt():
    return jaxedit.load("world", dtype="float32")


def asked(every, seed=0):
    """Facts of the world, each with three wrong answers of the kind of the right one."""
    rng = np.random.default_rng(seed)
    out = []
    for probe in questions(WORLD, "facts")[::every]:
        right = probe.answers[0][0]
        names = {name for answer in probe.answers for name in answer}
        others = [n for n in WORLD.kinds[WORLD.kind[right]] if n not in names]
        choices = [others[i] for i in rng.permutation(len(others))[:3]]
        place = int(rng.integers(4))
        choices.insert(place, right)
        out.append(Question(f"{len(out)}", probe.prompt, tuple(choices), place))
    return out


def accuracy(sheet, measure="acc"):
    return np.mean([a.is_right(measure) for a in sheet.answered])


def read(model, ids, **how):
    """A forward of one text, alone. What is behind it (so that all are one shape) it cannot see."""
    tokens = jnp.asarray([[*ids, *[0] * (model.cfg.max_len - len(ids))]])
    return forward(model.params, tokens, model.cfg, **how)


def by_hand(model, ids, start):
    """log p of the tokens from `start` on."""
    logp_TV = np.asarray(jax.nn.log_softmax(read(model, ids[:-1]).logits[0]))
    return sum(float(logp_TV[t - 1, ids[t]]) for t in range(start, len(ids)))


def cut(model, text, end):
    """Tokens of a text, and how many of them are of its beginning, which has `end` characters."""
    out = model.tokenizer(text, return_offsets_mapping=True)
    return out["input_ids"], sum(stop <= end for _, stop in out["offset_mapping"])


# What is put to the model


def test_prompts_are_those_of_the_harness():
    listed = "What is blue?\nA. grass\nB. the sky\nC. coal\nAnswer:"
    about = "The following are multiple choice questions (with answers) about plain colors.\n\n"
    assert prompt(Exam([SKY], "mmlu"), SKY) == about + listed
    assert FORMS["mmlu"].choices(SKY) == ("A", "B", "C")
    shown = "What is deep?\nA. the sea\nB. a cup\nC. a nail\nAnswer: A\n\n"
    assert prompt(Exam([SKY], "mmlu", 1, [SUN, SKY, SEA]), SKY) == about + shown + listed
    about = "The following are questions (with answers) about plain colors.\n\n"
    assert prompt(Exam([SKY], "mmlu/text"), SKY) == f"{about}Question: What is blue?\nAnswer:"
    assert FORMS["mmlu/text"].choices(SKY) == SKY.choices
    assert prompt(Exam([SKY], "commonsense_qa"), SKY) == f"Question: {listed}"
    shown = "Question: What is hot?\nAnswer: the sun\n\n"
    exam = Exam([SKY], "piqa", 1, [SKY, SUN])  # a question is not its own example
    assert prompt(exam, SKY) == f"{shown}Question: What is blue?\nAnswer:"
    nothing = dataclasses.replace(SKY, subject="")
    assert prompt(Exam([nothing], "mmlu"), nothing).startswith(
        "The following are multiple choice questions (with answers).\n\nWhat"
    )


def test_what_the_measures_prefer():
    question = Question("", "?", ("ab", "ééé", "abcdefgh"), 1)
    answered = Answered(question, (-2.0, -2.4, -8.0), question.choices, False)
    # by character -1, -0.8, -1; by byte -1, -0.4, -1
    assert [answered.pick(m) for m in MEASURES] == [0, 1, 1]
    answered = Answered(question, (-2.0, -4.0, -7.0), question.choices, False)
    # by character -1, -1.33, -0.875; by byte -1, -0.67, -0.875
    assert [answered.pick(m) for m in MEASURES] == [0, 2, 1]
    assert [answered.is_right(m) for m in MEASURES] == [False, False, True]


def test_likelihoods_are_those_of_a_forward(model):
    some = asked(1200)
    for form in ("plain", "mmlu"):
        exam = Exam(some, form)
        for answered in choose(model, exam).answered:
            start = prompt(exam, answered.question)
            for choice, logp in zip(answered.choices, answered.logp, strict=True):
                ids = cut(model, f"{start} {choice}", len(start))
                assert abs(by_hand(model, *ids) - logp) < 1e-4


# What it says


def test_a_model_chooses_what_it_knows(model):
    some = asked(60)
    sheet = choose(model, Exam(some))
    assert [a.question for a in sheet.answered] == some
    assert all(accuracy(sheet, m) >= 0.95 for m in MEASURES)


def test_without_knowledge_it_is_chance(gpt):
    rng = np.random.default_rng(1)
    some = [dataclasses.replace(q, answer=int(rng.integers(4))) for q in asked(30)]
    assert abs(accuracy(choose(gpt, Exam(some))) - 0.25) < 3 * (0.25 * 0.75 / len(some)) ** 0.5
    found = ability(gpt, {"facts": Exam(some)})["facts"]
    assert found["chance"] == 0.25
    assert found["before"]["acc"]["low"] < 0.25 < found["before"]["acc"]["high"]


def test_neighbours_and_padding_change_nothing(model):
    some = asked(1000)
    together = choose(model, Exam(some)).answered
    fewer = choose(model, Exam(some[::-1]), size=3).answered[::-1]
    alone = [choose(model, Exam([q]), size=1).answered[0] for q in some]
    for others in (fewer, alone):
        for a, b in zip(together, others, strict=True):
            np.testing.assert_allclose(a.logp, b.logp, rtol=0, atol=1e-5 * len(a.logp))


def test_logits_in_parts_are_the_same(gpt, monkeypatch):
    ids = gpt.tokenizer(questions(WORLD, "facts")[0].prompt)["input_ids"]
    lines = [Line(tuple(ids), 1)] * 2
    whole = likelihoods(gpt, lines)
    likelihood.follow.clear_cache()
    monkeypatch.setattr(likelihood, "LOGITS", gpt.cfg.vocab * 2)
    parts = likelihoods(gpt, lines)
    likelihood.follow.clear_cache()
    np.testing.assert_allclose(whole[0].logp_U, parts[1].logp_U, atol=1e-5)
    assert np.array_equal(whole[0].first_U, parts[1].first_U)


def test_the_same_on_a_mesh(gpt):
    some = asked(800)
    there = jaxedit.load("world", jaxedit.make_mesh(data=2, fsdp=2, tensor=2), "float32")
    here, far = choose(gpt, Exam(some)).answered, choose(there, Exam(some), size=20).answered
    for a, b in zip(here, far, strict=True):
        np.testing.assert_allclose(a.logp, b.logp, rtol=0, atol=1e-4)


# Edits


def one_answer(model, some, place):
    """A rank-one change of the last MLP after which question `place` gets another answer: its key
    is turned into the new name's direction, the keys of the other questions into nothing.
    """
    L = model.cfg.layers - 1
    keys = []
    for q in some:
        ids = model.tokenizer(q.question)["input_ids"]
        at = jnp.asarray([[len(ids) - 1]])
        out = read(model, ids, reads={"mlp_key": at}, logits_at=at)
        keys.append(np.asarray(out.reads["mlp_key"][L, 0, 0], np.float64))
    a_I = np.linalg.pinv(np.stack(keys))[:, place]  # keys @ a = 1 for this one, 0 for the others
    question = some[place]
    new = (question.answer + 1) % 4
    first = [model.tokenizer(f" {c}")["input_ids"][0] for c in question.choices]
    table = np.asarray(model.params["embed"]["w"], np.float64)
    b_O = 20 * (table[first[new]] - table[first[question.answer]])
    low = jaxedit.LowRank(
        jnp.asarray(a_I[None, :, None], jnp.float32), jnp.asarray(b_O[None, None], jnp.float32),
        jnp.asarray([L]),
    )  # fmt: skip
    return jaxedit.Edit(deltas={"mlp/down": low}), new


def test_an_edit_changes_the_question_that_it_is_about_and_no_other(gpt):
    some = asked(250)
    place = 3
    edit, new = one_answer(gpt, some, place)
    before, after = choose(gpt, Exam(some)).answered, choose(gpt, Exam(some), edit).answered
    changed = [
        i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a.pick() != b.pick()
    ]
    assert changed == [place]
    assert after[place].pick() == new
    told = []
    exam = {"facts": Exam(some)}
    found = ability(gpt, exam, edit, size=8, progress=lambda *at: told.append(at))["facts"]
    assert told == sorted(told)
    assert told[-1] == (2 * len(some),) * 2
    assert (found["lost"], found["gained"], found["questions"]) == (1, 0, len(some))
    assert found["changed"]["mean"] == pytest.approx(1 / len(some))
    assert found["change"]["acc"]["mean"] == pytest.approx(-1 / len(some))
    json.dumps(found)


def test_another_edit_is_not_another_program(gpt):
    some = asked(500)
    edits = [one_answer(gpt, some, place)[0] for place in (0, 1)]
    choose(gpt, Exam(some), edits[0])
    count = likelihood.follow._cache_size()
    choose(gpt, Exam(some), edits[1])
    assert likelihood.follow._cache_size() == count


def test_the_tokens_of_an_edit_stand_before_the_prompt(model):
    (question,) = asked(20_000)
    said = "Nothing is known."
    ids = model.tokenizer(said, add_special_tokens=False)["input_ids"]
    (answered,) = choose(model, Exam([question]), jaxedit.Edit(prefix=tuple(ids))).answered
    start = said + question.question  # tokenised apart and together alike: a word begins
    for choice, logp in zip(answered.choices, answered.logp, strict=True):
        ids = cut(model, f"{start} {choice}", len(start))
        assert abs(by_hand(model, *ids) - logp) < 1e-4


def test_an_edit_of_another_model_is_refused(gpt):
    edit = jaxedit.Edit(provenance={"base": {"checksum": "0" * 64, "family": "gpt2"}})
    with pytest.raises(ValueError, match="the edit was made on"):
        ability(gpt, {"facts": Exam(asked(20_000))}, edit)


# What cannot be asked


def test_long_prompts_lose_their_beginning(gpt):
    (question,) = asked(20_000)
    ids = gpt.tokenizer(question.question)["input_ids"]
    many = " ".join([question.question] * (160 // len(ids)))
    long = dataclasses.replace(question, question=many)
    sheet = choose(gpt, Exam([question, long]))
    assert [a.is_cut for a in sheet.answered] == [False, True]
    assert sheet.cut == 1
    ids, start = cut(gpt, f"{many} {question.choices[0]}", len(many))
    over = len(ids) - (gpt.cfg.max_len + 1)  # the last token is not read
    assert over > 0
    assert abs(by_hand(gpt, ids[over:], start - over) - sheet.answered[1].logp[0]) < 1e-4


def test_how_much_of_a_line_stays():
    assert shorten(Line((1, 2, 3, 4), 2), 3) == Line((1, 2, 3, 4), 2)  # the last is not read
    assert shorten(Line((1, 2, 3, 4), 2), 2) == Line((2, 3, 4), 1)
    assert shorten(Line((1, 2, 3, 4), 2), 1) == "2 tokens to be said; the model has room for 1"


def test_questions_that_are_left_out_are_counted(gpt):
    nobody = dataclasses.replace(SKY, id="nobody", answer=None)
    long = dataclasses.replace(SUN, id="long", choices=("sun " * 200, "ice"))
    sheet = choose(gpt, Exam([nobody, SKY, long]))
    assert ([a.question.id for a in sheet.answered], sheet.unknown) == (["sky"], 1)
    (skipped,) = sheet.skipped
    assert skipped.row == "long"
    assert "the model has room for 128" in skipped.reason
    sheet = choose(gpt, Exam([SKY, SUN], "mmlu", 1, [SEA]))
    assert [a.question.id for a in sheet.answered] == ["sky"]
    assert sheet.skipped[0].reason == "0 examples of 'heat', 1 are asked for"
    found = ability(gpt, {"none": Exam([nobody])})["none"]
    assert (found["questions"], found["unknown"]) == (0, 1)
    assert "before" not in found


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="did you mean mmlu"):
        Exam([SKY], "mmul")
    with pytest.raises(ValueError, match="give examples"):
        Exam([SKY], shots=2)
    with pytest.raises(ValueError, match="write FORM:PATH"):
        AbilityConfig(sets=("mmlu",))
    with pytest.raises(ValueError, match="did you mean piqa"):
        AbilityConfig(sets=("piqqa:x",))


# Files


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"subject": s, "question": f"{s} {i}", "choices": ["a", "b", "c", "d"], "answer": i % 4}
        for s in ("art", "law")
        for i in range(10)
    ]
    text = lambda some: "".join(json.dumps(row) + "\n" for row in some)
    (tmp_path / "test.jsonl").write_text(text(rows))
    (tmp_path / "dev.jsonl").write_text(text({**r, "question": "dev"} for r in rows[::4]))
    (tmp_path / "valid.jsonl").write_text(
        text({"goal": f"g{i}", "sol1": "x", "sol2": "y"} for i in range(3))
    )
    (tmp_path / "news.jsonl").write_text(text([{"text": "Bane Fipi was born in Mife."}, {"no": 1}]))
    return tmp_path


def test_sets_by_name(folder, gpt):
    cfg = AbilityConfig(
        sets=(f"mmlu:{folder}@test", f"mmlu/text:{folder}@test", f"piqa:{folder}@valid"),
        examples=(f"mmlu:{folder}@dev",), limit=4, text=Source((f"{folder}/news.jsonl",)),
    )  # fmt: skip
    found = exams(cfg)
    assert list(found) == ["mmlu", "mmlu/text", "piqa"]
    names = [q.question for q in found["mmlu"].questions]
    assert names == ["art 0", "art 5", "law 0", "law 5"]  # evenly spread
    result = measure(gpt, cfg)
    assert result["exams"]["mmlu"]["questions"] == 4
    assert set(result["exams"]["mmlu"]["subjects"]) == {"art", "law"}
    assert result["exams"]["piqa"]["unknown"] == 3
    assert (result["text"]["texts"], result["text"]["left_out"]) == (1, 1)
    shot = exams(dataclasses.replace(cfg, shots=2))["mmlu/text"]
    assert [q.question for q in shot.examples] == ["dev"] * 5
    own = exams(dataclasses.replace(cfg, shots=2, examples=()))["mmlu"]
    assert len(own.examples) == 20


def test_spread():
    assert spread([*range(10)], 3) == [0, 3, 6]
    assert spread([*range(3)], 0) == [0, 1, 2]
    assert spread([*range(3)], 5) == [0, 1, 2]


# Text


def test_perplexity_by_hand(gpt):
    texts = ["Bane Fipi was born in Mife.", "Mife."]
    rows = [gpt.tokenizer(text)["input_ids"] for text in texts]
    total, n = -sum(by_hand(gpt, ids, 1) for ids in rows), sum(len(ids) - 1 for ids in rows)
    found = perplexity(gpt, texts)
    assert (found["tokens"], found["windows"], found["texts"]) == (n, 2, 2)
    assert found["before"]["nll"]["mean"] == pytest.approx(total / n, rel=1e-5)
    assert found["before"]["perplexity"]["mean"] == pytest.approx(np.exp(total / n), rel=1e-5)
    assert "after" not in found


def test_windows_predict_every_token_once(gpt):
    ids = np.array(gpt.tokenizer("Bane Fipi was born in Mife. " * 12)["input_ids"])
    found = perplexity(gpt, ids, length=16)
    assert found["tokens"] == len(ids) - 1
    assert found["windows"] == -(-(len(ids) - 1) // 16)
    parts = [ids[at : at + 17].tolist() for at in range(0, len(ids) - 1, 16)]
    total = -sum(by_hand(gpt, part, 1) for part in parts)
    assert found["before"]["nll"]["mean"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    with pytest.raises(ValueError, match="this model reads 1 to 128"):
        perplexity(gpt, ids, length=129)
    with pytest.raises(ValueError, match="no two tokens"):
        perplexity(gpt, ids[:1])


def test_drift_of_the_perplexity(gpt):
    texts = [f"{p.prompt} {p.names[0]}." for p in questions(WORLD, "facts")[:400:40]]
    same = perplexity(gpt, texts, jaxedit.Edit())
    assert same["change"]["nll"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 10}
    shape = (gpt.cfg.layers, gpt.cfg.mlp, gpt.cfg.embed)
    noise = jaxedit.Dense(jax.random.normal(jax.random.key(0), shape))
    worse = perplexity(gpt, texts, jaxedit.Edit(deltas={"mlp/down": noise}))
    assert worse["before"] == same["before"]
    assert worse["change"]["nll"]["low"] > 0
    assert worse["change"]["perplexity"]["mean"] == pytest.approx(
        worse["after"]["perplexity"]["mean"] - worse["before"]["perplexity"]["mean"]
    )
