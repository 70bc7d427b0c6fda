"""Tracing of many facts: what is kept, averaged, drawn and told."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxedit
from jaxedit.locate import compare, task
from jaxedit.locate.task import TraceTask, effects, recommend, roles, run
from jaxedit.locating import main as locate
from jaxedit.report import plots, png, traces
from jaxedit.report.__main__ import main as report

CFG = TraceTask(
    "world", "world:small:0:4", kinds=("hidden", "mlp"), samples=3, dtype="float32", together=8,
    groups=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cfg = dataclasses.replace(CFG, workdir=str(tmp_path_factory.mktemp("trace")))
    return cfg, run(cfg)


def test_every_token_after_the_subject_has_a_role():
    assert roles(9, (1, 3)) == [[1], [2], [3], [4], [5, 6, 7], [8]]
    assert roles(5, (0, 0)) == [[0], [], [0], [1], [2, 3], [4]]  # one token is first and last
    assert roles(4, (1, 2)) == [[1], [], [2], [], [], [3]]
    assert roles(3, (1, 2)) == [[1], [], [2], [], [], []]


def test_effects_are_means_over_facts_of_what_restoring_adds():
    one = {"span": [0, 1], "low": 0.1, "mlp": [[0.1, 0.2], [0.3, 0.1], [0.1, 0.9]]}
    two = {"span": [0, 1], "low": 0.2, "mlp": [[0.2, 0.2], [0.6, 0.2], [0.2, 1.0]]}
    found = effects([one, two], "mlp")
    np.testing.assert_allclose(found["last"]["mean"], [0.3, 0.0], atol=1e-12)
    np.testing.assert_allclose(found["final"]["mean"], [0.0, 0.8], atol=1e-12)
    np.testing.assert_allclose(
        found["last"]["error"][0], 1.96 * np.std([0.2, 0.4], ddof=1) / 2**0.5
    )
    assert found["last"]["n"] == 2
    assert "middle" not in found
    best = recommend({"mlp": found})
    assert (best["layer"], best["n"]) == (0, 2)


def found(mean, error, n):
    return {"last": {"mean": mean, "error": error, "n": n}}


def test_the_layer_to_edit_is_named_with_what_is_known_of_it():
    strong = found([0.1, 0.3, 0.2, 0.0], [0.05, 0.1, 0.05, 0.1], 20)
    best = recommend({"mlp": strong, "hidden": found([9.0] * 4, [0.0] * 4, 20)})
    assert (best["layer"], best["kind"], best["differs"]) == (1, "mlp", True)
    assert [one["layer"] for one in best["next"]] == [2, 0]
    told, few = traces.advice(best, 4, 1)
    assert told == (
        "to edit: layer 1, where restoring MLPs at the subject's last token adds most "
        "(0.300 ± 0.100, of 20 facts); next layer 2 (0.200 ± 0.050), layer 0 (0.100 ± 0.050)"
    )
    assert few == "(4 layers are few: an order, not a place)"
    assert traces.advice(best, 4, 3)[1].startswith("(windows of 3 layers cover most of 4:")
    assert len(traces.advice(best, 24, 5)) == 1
    weak = recommend({"mlp": found([0.01, -0.01], [0.045, 0.02], 20)})
    assert traces.advice(weak, 24, 5) == [
        "to edit: none is named; restoring MLPs at the subject's last token adds most at layer 0, "
        "no more than zero (0.010 ± 0.045, of 20 facts); next layer 1 (-0.010 ± 0.020)"
    ]
    (one,) = traces.advice(recommend({"mlp": found([0.1, 0.2], [0, 0], 1)}), 24, 5)
    assert one.endswith("adds most (0.200, of this one fact); next layer 0 (0.100)")
    none = recommend({"mlp": found([0.0, -0.1], [0, 0], 1)})
    assert none["differs"] is False
    assert recommend({"hidden": strong}, "mlp") is None


def test_what_is_severed_is_not_traced_and_names_no_layer(tmp_path):
    cfg = dataclasses.replace(CFG, sever="mlp", limit=1, samples=2, workdir=str(tmp_path))
    summary = run(cfg)
    assert list(summary["effects"]) == ["hidden"]
    assert summary["recommended"] is None
    told = traces.words(summary)
    assert "severed: MLPs, held to the values of the noisy run and so not traced; no layer" in told
    assert "to edit: " not in told
    with pytest.raises(ValueError, match="kinds mlp, sever 'mlp': nothing is left to trace"):
        dataclasses.replace(CFG, kinds=("mlp",), sever="mlp")
    with pytest.raises(ValueError, match="sever 'state': '', mlp, attn"):
        dataclasses.replace(CFG, sever="state")


def test_the_colours_of_one_fact_begin_at_what_noise_leaves():
    record = {"tokens": ["a", "b"], "span": [0, 0], "said": "x", "window": 1, "low": 0.4,
              "hidden": [[0.4, 0.2], [0.7, 1.0]]}  # fmt: skip
    drawn = traces.of_fact(record, ["hidden"])["hidden"]
    colour = lambda share: plots.colour(share, *plots.PURPLE[0])
    for value, share in ((0.4, 0), (0.2, 0), (0.7, 0.5), (1.0, 1)):
        assert f'fill="{colour(share)}"' in drawn.split(f": {value:.3f}<")[0].split("<rect")[-1]
    assert ">≤ 0.400<" in drawn


@pytest.mark.parametrize("name", ["world", "world-llama"])
def test_the_subject_is_read_before_the_answer_is_said(name, made, tmp_path):
    """States at the subject's last token matter in lower layers than those at the last token."""
    summary = made[1]
    if name != "world":
        summary = run(
            dataclasses.replace(CFG, model=name, kinds=("hidden",), workdir=str(tmp_path))
        )
    found = summary["effects"]["hidden"]
    early, late = (int(np.argmax(found[role]["mean"])) for role in ("last", "final"))
    assert early < late
    assert summary["known"] == summary["facts"] == 4
    assert summary["high"] > 0.8 > summary["low"]
    assert found["final"]["mean"][-1] == pytest.approx(summary["high"] - summary["low"], abs=1e-4)


def test_a_run_goes_on_where_it_was(made):
    cfg, summary = made
    file = task.Path(cfg.workdir, task.CASES)
    *kept, last = file.read_text().splitlines()
    file.write_text("\n".join(kept) + "\n" + last[:50])  # killed while it wrote the last record
    assert run(cfg) == summary
    assert file.read_text().splitlines() == [*kept, last]
    other = run(dataclasses.replace(cfg, seed=2, limit=1))  # another config starts afresh
    assert other["low"] != summary["low"]
    assert len(file.read_text().splitlines()) == 1
    run(cfg)


@pytest.fixture
def changed(tmp_path):
    """A folder with a model, and what puts other weights into it."""
    model = jaxedit.load("world", dtype="float32")
    folder = tmp_path / "model"
    jaxedit.save(model, folder)

    def change():
        down = lambda path, x: 0.9 * x if "down" in jax.tree_util.keystr(path) else x
        params = jax.tree_util.tree_map_with_path(down, model.params)
        jaxedit.save(model._replace(params=params), folder, overwrite=True)

    return folder, change


def test_other_weights_of_the_same_name_are_traced_anew(changed, tmp_path):
    folder, change = changed
    cfg = dataclasses.replace(
        CFG, model=str(folder), kinds=("mlp",), limit=1, workdir=str(tmp_path / "run")
    )
    first = run(cfg)
    assert run(cfg) == first
    change()
    assert run(cfg)["high"] != first["high"]


def test_other_weights_of_the_same_name_are_compared_anew(changed, tmp_path):
    folder, change = changed
    cfg = compare.CompareTask(
        str(folder), finders=("activation",), ks=(2,), wordings=1, unrelated=1, limit=4,
        dtype="float32", workdir=str(tmp_path / "run"),
    )  # fmt: skip
    first = compare.run(cfg)
    change()
    assert compare.run(cfg)["p"] != first["p"]
    records = (tmp_path / "run" / compare.CASES).read_text().splitlines()
    assert len(records) == first["known"]  # none of before is left
    assert len(list((tmp_path / "run" / compare.SCORES).iterdir())) == 2 * len(records)


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="limit -2: at least 0"):
        dataclasses.replace(CFG, limit=-2)


def test_what_is_not_known_is_counted_and_not_traced(tmp_path):
    rows = [
        {"prompt": "{} was born in", "subject": "Bane Fipi", "target": "x", "ground_truth": "Kola"},
        {"prompt": "{} was born in", "subject": "Bane Fipi", "target": "x", "ground_truth": "Mife"},
        {"prompt": "{} was born in", "subject": "Bane Fipi", "target": "x"},
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = run(dataclasses.replace(CFG, facts=str(file), workdir=str(tmp_path / "run")))
    assert (found["facts"], found["known"]) == (2, 1)
    assert found["skipped"][0][1].startswith("no ground_truth")
    told = traces.words(found)
    assert told.startswith("1 of 2 facts are known")
    assert f"to edit: layer {found['recommended']['layer']}" in told


def test_a_page_of_tracing_is_no_page_of_edits(made):
    cfg, summary = made
    traces.write(summary, task.Path(cfg.workdir))
    page = task.Path(cfg.workdir, "trace.html")
    with pytest.raises(ValueError, match=f"is a run of jaxedit.locate; its own page is {page}$"):
        report([cfg.workdir])
    page.unlink()
    task.Path(cfg.workdir, task.SUMMARY).unlink()
    with pytest.raises(ValueError, match=r"trace.html, which its command writes when it ends"):
        report([cfg.workdir])


def test_it_is_said_once_how_to_have_pictures_as_png(made, tmp_path, monkeypatch):
    missing = lambda name: None
    monkeypatch.setattr(png.importlib.util, "find_spec", missing)
    told = traces.write(made[1], tmp_path)
    assert told[-1] == "pictures as PNG too: pip install 'jaxedit[plots]'"
    assert sum("PNG" in line for line in told) == 1


def test_the_command_draws_one_fact(tmp_path, capsys):
    ask = ["trace", "--model", "world", "--samples", "3", "--out", str(tmp_path)]
    locate([*ask, "--prompt", "Bane Fipi was born in", "--subject", "Bane Fipi"])
    told = capsys.readouterr().out
    assert told.startswith("Bane Fipi was born in -> Mi\n")
    page = (tmp_path / "trace.html").read_text()
    assert page.count("<svg") == 3
    assert "Fi*" in page
    assert "Born" not in page
    assert "\nto edit: " in told
    assert "this one fact" in told
    locate([*ask, "--prompt", "{} was born in", "--subject", "Bane Fipi", "--answer", "Kola",
            "--noise", "covariance"])  # fmt: skip
    other = capsys.readouterr().out
    assert other.startswith("Bane Fipi was born in -> Ko\n")
    assert "p = 0.00" in other
    locate([*ask, "--prompt", "{} was born in", "--subject", "Bane Fipi", "--sever", "attn"])
    told = capsys.readouterr().out
    assert "severed: attention" in told
    assert "attention: most at" not in told
    with pytest.raises(ValueError, match="--samples 0: at least 1"):
        locate([*ask, "--prompt", "{} was", "--subject", "Bane", "--samples", "0"])
    with pytest.raises(ValueError, match="subject 'Zidu' does not occur in the prompt"):
        locate([*ask, "--prompt", "He was born in", "--subject", "Zidu"])
    with pytest.raises(ValueError, match="a window of 9 layers; the model has 4"):
        locate([*ask, "--prompt", "{} was born in", "--subject", "Bane Fipi", "--window", "9"])


def test_facts_of_a_group_in_the_same_layers():
    """Two relations in two layers each of twenty; subjects are of both."""
    records, relations, subjects = [], [], []
    for i in range(8):
        effect = np.zeros((3, 20))
        effect[1, [0, 1] if i % 2 else [10, 11]] = 0.5
        records.append({"span": [0, 1], "mlp": effect.tolist()})
        relations.append("ab"[i % 2])
        subjects.append("wxyz"[i // 2])
    found = task.overlap(records, {"subject": subjects, "relation": relations})
    assert (found["kind"], found["layers"]) == ("mlp", 2)
    assert found["relation"]["rsim"] == pytest.approx(1)
    assert found["subject"]["rsim"] == 0


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="kind 'state': of hidden, mlp, attn"):
        TraceTask("world", "world:small:0:4", kinds=("state",))
    with pytest.raises(FileNotFoundError, match="no such file"):
        task.facts("nowhere.jsonl")
