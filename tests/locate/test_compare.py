"""Finders beside each other, and one prompt's neurons."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import jaxedit
from jaxedit.data.cases import Fact
from jaxedit.locate import compare, explain, facts, neurons, questions
from jaxedit.locate.compare import GROUPS, CompareTask
from jaxedit.locating import main
from jaxedit.report import neurons as report

CFG = CompareTask("world", "world:small:0:12", ks=(20,), unrelated=6, steps=6, exact=100,
                  dtype="float32")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cfg = dataclasses.replace(CFG, workdir=str(tmp_path_factory.mktemp("neurons")))
    return cfg, compare.run(cfg)


def test_what_finds_neurons_beats_random_ones_fivefold(made):
    found = made[1]["finders"]
    assert list(found) == list(compare.FINDERS)
    of = {name: one["20"]["suppress"] for name, one in found.items()}
    chance = of["random"]["pcr"]["mean"]
    for name in ("kn", "increase", "qrnca"):
        assert of[name]["pcr"]["mean"] > 5 * chance
        assert of[name]["same wording"]["mean"] < -0.5 < 5 * of["random"]["same wording"]["mean"]
        assert of[name]["other wordings"]["mean"] < -0.5  # found in some, they serve others
        assert of[name]["other relations"]["mean"] > -0.1
        pcr = of[name]["pcr"]
        assert pcr["low"] <= pcr["mean"] <= pcr["high"]
        assert pcr["mean"] == pytest.approx(of[name]["related"] / of[name]["unrelated"])
    assert sum(found["kn"]["by_layer"]) == pytest.approx(20)
    np.testing.assert_allclose(found["kn"]["by_layer"], found["random"]["by_layer"])


def test_they_do_in_a_gated_model_too(tmp_path):
    some = ("kn", "increase", "qrnca", "random")
    cfg = dataclasses.replace(
        CFG, model="world-llama", facts="world:small:0:8", finders=some, wordings=2, unrelated=4,
        steps=4, workdir=str(tmp_path),
    )  # fmt: skip
    of = {name: one["20"]["suppress"] for name, one in compare.run(cfg)["finders"].items()}
    for name in some[:-1]:
        assert of[name]["pcr"]["mean"] > 5 * of["random"]["pcr"]["mean"]
        assert of[name]["other wordings"]["mean"] < -0.5


def planted_scores():
    """Ten facts of two relations, in two wordings each: neuron 0 of layer 0 is everyone's, neuron
    1 half of them have, neuron 10 + i of layer 1 is fact i's own.
    """
    kn = np.zeros((10, 2, 2, 30), np.float32)
    kn[:, :, 0, 0] = 10
    kn[:5, :, 0, 1] = 6
    for i in range(10):
        kn[i, :, 1, 10 + i] = 5
    asked = [facts.Asked("ab"[i % 2], str(i), (), (), ()) for i in range(10)]
    active = np.zeros((2, 30), np.int32)
    active[1, :5] = 1
    return asked, [
        {"kn": one, "increase": one, "activation": one, "active": active * (i % 2),
         "tokens": np.array([10])}
        for i, one in enumerate(kn)
    ]  # fmt: skip


def test_a_fact_has_no_neurons_that_score_nothing():
    cfg = dataclasses.replace(CFG, ks=(2, 20))
    found = compare.finders(cfg, *planted_scores())
    places = lambda name, k, i: [tuple(map(int, at)) for at in np.argwhere(found[name][k][i])]
    assert places("kn", 2, 0) == [(0, 0), (0, 1)]
    assert places("kn", 20, 0) == [(0, 0), (0, 1), (1, 10)]
    assert places("kn", 20, 7) == [(0, 0), (1, 17)]
    # weighed, a neuron of all facts is nothing; one of half is taken out of the highest
    for k in cfg.ks:
        assert [places("qrnca", k, i) for i in range(10)] == [[(1, 10 + i)] for i in range(10)]
    assert places("lape", 20, 0) == []
    assert places("lape", 20, 1) == [(1, f) for f in range(5)]


def test_random_neurons_are_as_many_in_the_same_layers_for_every_k():
    cfg = dataclasses.replace(CFG, ks=(1, 2, 20))
    found = compare.finders(cfg, *planted_scores())
    for k in cfg.ks:
        np.testing.assert_array_equal(found["random"][k].sum(-1), found["kn"][k].sum(-1))
        assert not (found["random"][k] & found["kn"][k]).any()


def test_a_run_goes_on_where_it_was(made):
    cfg, summary = made
    file = Path(cfg.workdir, compare.CASES)
    text = file.read_text()
    *kept, last = text.splitlines()
    file.write_text("\n".join(kept) + "\n" + last[:40])
    one = next(Path(cfg.workdir, compare.SCORES).iterdir())
    one.unlink()
    assert compare.run(cfg) == summary
    assert file.read_text() == text
    assert json.loads(Path(cfg.workdir, compare.SUMMARY).read_text()) == summary


def test_it_is_told_and_drawn(made, tmp_path):
    told, *files = report.write(made[1], tmp_path)
    assert told.startswith("12 of 12 facts are known to world")
    assert "the 20 highest neurons silenced" in told
    assert "QRNCA" in told
    assert f"wrote {tmp_path / 'neurons.html'}" in files
    assert (tmp_path / "neurons.html").read_text().count("<svg") == 2


def test_facts_that_are_not_known_are_left_out(tmp_path):
    cfg = dataclasses.replace(CFG, facts="world:small:1:8", workdir=str(tmp_path))
    with pytest.raises(ValueError, match=r"of 8 facts have answers of p >= 0\.1"):
        compare.run(cfg)  # of another world than the model's


def test_scores_and_probabilities_are_the_same_on_a_mesh():
    model = jaxedit.load("world", dtype="float32")
    spread = jaxedit.load("world", jaxedit.make_mesh(data=2, tensor=2), "float32")
    asked = [q for fact in facts.facts(CFG.facts, limit=4)[0] for q in fact.found_in[:1]]
    for name, method in explain.methods(steps=3, exact=20).items():
        one, two = (questions.scores(m, asked, method, size=4) for m in (model, spread))
        np.testing.assert_allclose(two, one, atol=2e-5 * np.abs(one).max(), err_msg=name)
    sets = neurons.highest(one, 20)
    one, two = (questions.probabilities(m, asked, sets, size=4) for m in (model, spread))
    np.testing.assert_allclose(two, one, atol=1e-5)


def test_unrelated_facts_have_other_answers_and_wordings_are_kept_apart():
    asked, _ = facts.facts(CFG.facts)
    assert len(asked) == 12
    for i, fact in enumerate(asked):
        assert not set(fact.found_in) & set(fact.others)
        some = compare.groups(asked, i, CFG)
        assert {answer for _, answer in [*fact.found_in, *fact.others]} == {fact.answer}
        others = [q for group in GROUPS[3:] for q in some[group]]
        assert others
        assert fact.answer not in {answer for _, answer in others}
    back = [fact for fact in asked if fact.inverse]
    assert back
    assert all(fact.answer in fact.inverse[0][0] for fact in back)


def test_facts_of_a_dataset_need_two_wordings():
    rich = Fact("0", "{} is in", "A", ("B",), "r", ("{} lies in", "One finds {} in"))
    made, skipped = facts.of_facts([rich, Fact("1", "{} is in", "A", ("B",))], 3)
    assert made[0].found_in == (("A is in", "B"),)
    assert made[0].others == (("A lies in", "B"), ("One finds A in", "B"))
    assert skipped[0].reason == "one wording only: none is left to be asked"


def test_some_facts_of_a_dataset_are_of_any_relation(tmp_path):
    """ParaRel's first relations are long, and some have one wording only."""
    relation = lambda words: {"graphs": [{"pattern": f"[X] {w} [Y]."} for w in words]}
    vocab = lambda name: [
        {"sub_label": f"{name}{i}", "obj_label": f"b{i}", "uuid": f"{name}{i}"} for i in range(40)
    ]
    file = tmp_path / "pararel.json"
    file.write_text(json.dumps({
        "P1": relation(["is"]) | {"vocab": vocab("S")},
        "P2": relation(["lies in", "is in"]) | {"vocab": vocab("T")},
        "P3": relation(["speaks", "talks in"]) | {"vocab": vocab("U")},
    }))  # fmt: skip
    some, skipped = facts.facts(f"pararel:{file}", limit=10)
    assert len(some) == 10
    assert {fact.relation for fact in some} == {"P2", "P3"}
    assert len(skipped) == 40
    assert some == facts.facts(f"pararel:{file}", limit=20)[0][:10]


def test_facts_that_cannot_be_asked_are_left_out_with_the_reason():
    """One bad row does not end a run of a thousand."""
    model = jaxedit.load("world", dtype="float32")
    good = facts.facts(CFG.facts, limit=2)[0]
    bad = dataclasses.replace(good[0], others=(("Bane Fipi is", ""),))
    kept, skipped = compare.usable(model, [good[0], bad, good[1]])
    assert kept == good
    assert [(s.row, s.reason) for s in skipped] == [(bad.found_in[0][0], "no answer")]


def test_the_neurons_of_one_answer():
    model = jaxedit.load("world", dtype="float32")
    answer, p, rows = explain.neurons_of(model, "Bane Fipi works as a", top=20, steps=6)
    assert answer == "teacher"
    assert p["plain"] > 0.9
    assert p["without"] < 0.3
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len({(row["layer"], row["neuron"]) for row in rows}) == 20
    assert all(len(row["says"]) == 5 and 0 <= row["without"] <= 1 for row in rows)
    assert any("teacher" in row["says"] for row in rows)


def test_an_answer_that_goes_on_with_a_word_is_the_token_itself():
    """After "Bane Fi" the model says "pi", which after a space is another token."""
    model = jaxedit.load("world", dtype="float32")
    prompt = "Bane Fi"
    token = explain.next_token(model, prompt)
    assert model.tokenizer.decode([token]) == "pi"
    answer, p, _ = explain.neurons_of(model, prompt, top=3, steps=2)
    assert answer == "pi"
    assert p["plain"] > 0.2
    answer, rows = explain.lens_of(model, prompt)
    assert (answer, rows[-1]["rank"], rows[-1]["says"][0]) == ("pi", 1, "pi")
    assert rows[-1]["p"] == pytest.approx(p["plain"], rel=1e-4)
    # a token that begins a word is what its text is
    prompt = "Bane Fipi works as a"
    asked = [(prompt, "teacher"), (prompt, explain.next_token(model, prompt))]
    one, two = questions.probabilities(model, asked)
    assert one == pytest.approx(two)


def test_only_what_the_finders_need_is_computed(tmp_path, monkeypatch):
    """Random neurons are then like those of the first finder."""
    some = ("increase", "random")
    cfg = dataclasses.replace(CFG, facts="world:small:0:3", finders=some, workdir=str(tmp_path))
    fails = {"increase": explain.methods(exact=20)["increase"]}
    monkeypatch.setattr(compare, "methods", lambda steps, exact: fails)
    monkeypatch.setattr(compare, "active", None)
    summary = compare.run(cfg)
    assert list(summary["finders"]) == list(some)
    by_layer = [one["by_layer"] for one in summary["finders"].values()]
    np.testing.assert_allclose(*by_layer)
    told = report.words(summary)
    assert "random: as many as those of log-probability increase, in the same layers" in told
    assert compare.needed(dataclasses.replace(CFG, finders=("random",))) == ["kn"]
    assert compare.needed(dataclasses.replace(CFG, finders=("qrnca", "activation"))) == [
        "kn", "activation"
    ]  # fmt: skip


def test_what_cannot_be_compared_is_said_before_anything_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "load_model", None)
    many = dataclasses.replace(CFG, ks=(5, 99999), workdir=str(tmp_path))
    with pytest.raises(ValueError, match=r"k 99999: world has [\d,]+ neurons; give fewer"):
        compare.run(many)
    alike = [facts.Asked("born", str(i), (), (), ()) for i in range(3)]
    monkeypatch.setattr(compare, "facts", lambda *_, **__: (alike, []))
    some = dataclasses.replace(CFG, finders=("lape",), workdir=str(tmp_path))
    with pytest.raises(ValueError, match=r"finder lape: all 3 facts are of relation 'born'"):
        compare.run(some)
    compare.of_several(CFG, alike)  # all finders: it is left out
    assert not list(tmp_path.iterdir())


def test_the_commands(tmp_path, capsys):
    ask = ["neurons", "--model", "world", "--prompt", "Bane Fipi was born in"]
    main([*ask, "--answer", "Mife", "--top", "3", "--steps", "6"])
    told = capsys.readouterr().out
    assert told.startswith("Bane Fipi was born in -> Mife   p = 0.99")
    assert len(told.splitlines()) == 5
    main(["compare", "--model", "world", "--facts", "world:small:0:4", "--finders", "increase",
          "random", "--k", "5", "--out", str(tmp_path)])  # fmt: skip
    assert "4 of 4 facts are known to world" in capsys.readouterr().out
    main(["lens", "--model", "world", "--prompt", "Bane Fipi works as a", "--top", "2"])
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "Bane Fipi works as a -> teacher"
    assert [row.split()[0] for row in rows] == ["3", "2", "1", "0"]  # the last layer on top
    assert rows[0].split()[1] == "1"
    assert rows[0].split()[3] == "teacher"
    with pytest.raises(ValueError, match="'finds': one of trace, neurons, lens, compare"):
        main(["finds"])
    for flag in ("--top", "--steps"):
        with pytest.raises(ValueError, match=f"{flag} 0: at least 1"):
            main([*ask, flag, "0"])
    for action in ("neurons", "lens"):
        with pytest.raises(ValueError, match="--prompt ' ': empty; give a text"):
            main([action, "--model", "world", "--prompt", " "])
    with pytest.raises(ValueError, match="top 9999: from 1 to the model's 1,024 tokens"):
        main(["lens", "--model", "world", "--prompt", "Bane Fipi works as a", "--top", "9999"])
    with pytest.raises(ValueError, match="limit -3: at least 0"):
        main(["compare", "--model", "world", "--limit", "-3", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--k 0: at least 1"):
        main(["compare", "--model", "world", "--k", "5", "0"])
    with pytest.raises(ValueError, match=r"facts 'world:small': write world:SIZE:SEED:COUNT"):
        main(["compare", "--model", "world", "--facts", "world:small", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="finder 'ig': of kn, increase"):
        main(["compare", "--model", "world", "--finders", "ig"])
