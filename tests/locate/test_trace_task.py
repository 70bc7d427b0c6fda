"""Tracing of many facts: what is kept, averaged, drawn and told."""

import dataclasses
import json

import numpy as np
import pytest

from jaxedit.locate import task
from jaxedit.locate.task import TraceTask, effects, recommend, roles, run
from jaxedit.locating import main as locate
from jaxedit.report import traces

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


def test_the_command_draws_one_fact(tmp_path, capsys):
    ask = ["trace", "--model", "world", "--samples", "3", "--out", str(tmp_path)]
    locate([*ask, "--prompt", "Bane Fipi was born in", "--subject", "Bane Fipi"])
    told = capsys.readouterr().out
    assert told.startswith("Bane Fipi was born in -> Mi\n")
    page = (tmp_path / "trace.html").read_text()
    assert page.count("<svg") == 3
    assert "Fi*" in page
    assert "Born" not in page
    locate([*ask, "--prompt", "{} was born in", "--subject", "Bane Fipi", "--answer", "Kola",
            "--noise", "covariance"])  # fmt: skip
    other = capsys.readouterr().out
    assert other.startswith("Bane Fipi was born in -> Ko\n")
    assert "p = 0.00" in other
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
