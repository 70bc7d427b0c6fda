"""Editing from a config and from the shell: what is written, going on after a stop, mistakes."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from golden_edits import GOLDEN, model, requests, stats

from jaxedit import cli
from jaxedit.data.asked import requests as read_requests
from jaxedit.data.contexts import ContextConfig
from jaxedit.edit import __main__ as console
from jaxedit.edit import runner, task
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.ledger import Ledger
from jaxedit.edit.record import Edit
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.emmet import EmmetConfig
from jaxedit.edit.weights.rome import RomeConfig

BARE = RowsConfig(contexts=ContextConfig(given=(("{}",),)))
ROME = RomeConfig(layer=1, covariance=False, rows=BARE, values=ValueConfig(steps=6, lr=2.0))


@pytest.fixture
def asked(tmp_path):
    """Three requests, and two rows that are none."""
    rows = [dataclasses.asdict(r) for r in requests(0, 3)]
    rows.insert(1, {"prompt": "The mother of {} is", "subject": "Elka", "target": ""})
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "not json"]))
    return file


def config(tmp_path, asked, **more):
    return task.EditTask(
        str(GOLDEN / "gpt2-tiny"), str(asked), ROME, workdir=str(tmp_path / "run"), **more
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_request_has_its_edit_its_line_and_bad_rows_are_told(tmp_path, asked):
    found, skipped = task.go(config(tmp_path, asked), model(), None)
    assert (found["requests"], found["failed"], found["method"]) == (3, 0, "rome")
    assert next(s.reason for s in skipped) == "empty target"
    assert "not JSON" in skipped[1].reason
    _, *rest = lines(tmp_path / "run")
    assert sorted(line["place"] for line in rest) == [0, 1, 2]
    for line in rest:
        edit = Edit.load(tmp_path / "run" / "edits" / f"{line['place']:06}.safetensors")
        edit.check(model())
        assert edit.provenance["request"]["subject"] == line["request"]["subject"]
        assert edit.provenance["config"]["layer"] == 1


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(tmp_path, asked, monkeypatch):
    cfg = config(tmp_path, asked, size=1)
    task.go(cfg, model(), None)
    whole = lines(tmp_path / "run")
    file = tmp_path / "run" / "results.jsonl"
    kept = file.read_text().splitlines(keepends=True)
    file.write_text("".join(kept[:2]) + kept[2][:20])  # killed while it wrote the second line
    made = []
    stream = task.stream

    def counted(model, some, *rest, **how):
        made.extend(some)
        return stream(model, some, *rest, **how)

    monkeypatch.setattr(task, "stream", counted)
    task.go(cfg, model(), None)
    assert len(made) == 2
    place = lambda line: line.get("place", -1)
    assert sorted(lines(tmp_path / "run"), key=place) == sorted(whole, key=place)


def test_a_run_with_other_settings_is_not_mixed_in(tmp_path, asked):
    task.go(config(tmp_path, asked), model(), None)
    with pytest.raises(ValueError, match="other settings: choose another workdir"):
        task.go(config(tmp_path, asked, seed=1), model(), None)


def test_a_sequence_is_a_ledger(tmp_path, asked):
    cfg = config(tmp_path, asked, independent=False)
    task.go(cfg, model(), None)
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    assert len(ledger.edits()) == 3
    assert [ledger.load(e.id).provenance["after"] for e in ledger.edits()] == [0, 1, 2]
    with pytest.raises(ValueError, match="cannot be resumed"):
        task.go(cfg, model(), None)


def test_a_request_that_is_left_out_of_a_batch_does_not_shift_the_others(tmp_path, asked):
    rows = [json.loads(line) for line in asked.read_text().splitlines()[:-1]]
    rows[1] = rows[0] | {"prompt": "word " * 200 + "{} is"}  # more than the model's positions
    asked.write_text("\n".join(map(json.dumps, rows)))
    emmet = EmmetConfig(layer=1, rows=BARE, values=ValueConfig(steps=3))
    cfg = dataclasses.replace(config(tmp_path, asked, independent=False), editor=emmet)
    task.go(cfg, model(), stats())
    (entry,) = Ledger.open(tmp_path / "run" / "ledger").edits()
    told = Ledger.open(tmp_path / "run" / "ledger").load(entry.id).provenance
    found = {line["place"]: line["result"] for line in lines(tmp_path / "run")}
    assert found[1] == {}
    assert [found[i]["loss"] for i in (0, 2, 3)] == told["result"]["loss"]


FAR = "word " * 200 + "{} is"  # more than the model's positions


def test_an_edit_that_failed_is_not_in_the_ledger(tmp_path, asked, capsys):
    rows = [json.loads(line) for line in asked.read_text().splitlines()[:-1]]
    rows[1] = rows[0] | {"prompt": FAR}
    asked.write_text("\n".join(map(json.dumps, rows)))
    found, _ = task.go(config(tmp_path, asked, independent=False), model(), None)
    assert (found["requests"], found["failed"]) == (4, 1)
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    assert [ledger.load(e.id).provenance["after"] for e in ledger.edits()] == [0, 1, 2]
    count, why = capsys.readouterr().err.splitlines()
    assert count == "1 of 4 edits failed and is not kept"
    assert why.startswith("failed: 'word word ")
    assert why.endswith("tokens in a context; at most 128")
    assert len(why) < 170


def test_the_shell_keeps_no_edit_that_failed(tmp_path, asked, capsys):
    rows = [json.loads(line) for line in asked.read_text().splitlines()[:1]]
    rows = [rows[0], rows[0] | {"prompt": FAR}]
    asked.write_text("\n".join(map(json.dumps, rows)))
    ledger = tmp_path / "ledger"
    more = ("--protocol", "easyedit", *QUICK, "--ledger", str(ledger))
    assert edit("--requests", str(asked), *more) == 0
    assert len(Ledger.open(ledger).edits()) == 1
    failed, kept = capsys.readouterr().err.splitlines()[-2:]
    assert failed.startswith("failed: 'word word ")
    assert kept == f"not kept in {ledger}: 1 of 2 edits"


@pytest.mark.parametrize(("more", "said"), [
    ({"requests": "nowhere.jsonl"}, "no such file"),
    ({"seed": 1}, "other settings: choose another workdir"),
    ({"independent": False}, "cannot be resumed"),
])  # fmt: skip
def test_a_mistake_is_told_before_the_model_is_read(tmp_path, asked, monkeypatch, more, said):
    cfg = config(tmp_path, asked)
    folder = tmp_path / "run"
    (folder / task.LEDGER).mkdir(parents=True)
    (folder / task.RESULTS).write_text(json.dumps({"run": task.digest(cfg)}) + "\n")
    monkeypatch.setattr(cli, "parse", lambda *_: dataclasses.replace(cfg, **more))
    monkeypatch.setattr(task, "read", lambda *_, **__: pytest.fail("the weights were read"))
    with pytest.raises((ValueError, OSError), match=said):
        console.main([])
    assert not (folder / "config.json").exists()


def test_a_ledger_of_another_base_is_refused_before_the_edit(tmp_path, monkeypatch, capsys):
    other = model()._replace(params=jax.tree.map(lambda x: x + 1, model().params))
    Ledger.create(tmp_path / "ledger", other)
    monkeypatch.setattr(runner, "prepare", lambda *_, **__: pytest.fail("an edit was made"))
    monkeypatch.setattr(runner, "resolve", lambda *_, **__: pytest.fail("moments were taken"))
    with pytest.raises(SystemExit):
        edit(*ONE, "--ledger", str(tmp_path / "ledger"))
    assert "a ledger holds edits of one base" in capsys.readouterr().err


def test_a_layer_that_is_not_there_is_told_first(tmp_path, asked):
    cfg = dataclasses.replace(config(tmp_path, asked), editor=EmmetConfig(layer=9))
    with pytest.raises(ValueError, match="layer 9: the model has layers 0 to 3"):
        task.go(cfg, model(), None)


@pytest.mark.parametrize(("source", "said"), [
    ("nowhere.jsonl", "no such file"),
    ("world:small", "write world:SIZE:SEED:COUNT"),
])  # fmt: skip
def test_requests_that_are_nowhere(source, said):
    with pytest.raises((ValueError, OSError), match=said):
        read_requests(source)


def edit(*flags):
    return cli.main(["edit", "--model", str(GOLDEN / "gpt2-tiny"), *flags])


ONE = ("--prompt", "{} was born in the city of", "--subject", "Elka Castro", "--target", "Pellam")
QUICK = ("--set", "covariance=false", "values.steps=3", "rows.contexts.lengths=()")


def test_one_fact_from_the_shell(tmp_path, capsys):
    file, ledger = tmp_path / "edit.safetensors", tmp_path / "ledger"
    code = edit(*ONE, "--protocol", "easyedit", *QUICK, "--out", str(file), "--ledger", str(ledger))
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith("before  Elka Castro was born in the city of")
    assert "after   Elka Castro was born in the city of" in out
    again = Edit.load(file)
    (entry,) = Ledger.open(ledger).edits()
    kept = Ledger.open(ledger).load(entry.id)
    np.testing.assert_array_equal(again.deltas["mlp/down"].a, kept.deltas["mlp/down"].a)
    assert kept.provenance["protocol"] == "easyedit"


FT = ("--method", "ft-m", "--set", "layer=1", "lr=5e-3")


def test_the_shell_says_which_method_was_recorded(tmp_path, capsys):
    ledger = tmp_path / "ledger"
    assert edit(*ONE, *FT, "bound=0.05", "--ledger", str(ledger)) == 0
    (entry,) = Ledger.open(ledger).edits()
    assert entry.method == "ft-c"
    assert "\n        ft-c, " in capsys.readouterr().out


@pytest.mark.parametrize(("target", "why"), [
    ("Pellam", "the model says 'Pellam' without it"), ("Sundhaven", "its norm is 0"),
])  # fmt: skip
def test_an_edit_that_changes_nothing_says_so(target, why, capsys):
    assert edit(*ONE[:-1], target, *FT, "stop_loss=100") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"        the edit changes nothing: {why}"


@pytest.mark.parametrize("how", [(), ("--sequential",)])
def test_several_facts_from_the_shell(asked, how, capsys):
    assert edit("--requests", str(asked), *FT, *how) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    count = "3 requests, 1 edit," if how else "3 requests"
    assert re.fullmatch(rf"ft-m: {count} in [\d.]+ s; 3 say their target; mean norm [\d.]+", told)


@pytest.mark.parametrize(("flags", "said"), [
    ((*ONE, "--method", "romme"), "method 'romme'.*did you mean 'rome'"),
    ((*ONE, "--set", "layer=7", *QUICK[1:]), "layer 7: the model has layers 0 to 3"),
    ((*ONE, "--set", "layr=1"), "no field 'layr'"),
    ((*ONE[:2], "--subject", "Nobody", "--target", ""), "empty target"),
    (("--prompt", "The king of France is", *ONE[2:]), "'Elka Castro' does not occur"),
    (ONE[:4], "give --target"),
    ((*ONE, "--requests", "x.jsonl"), "--prompt and --requests"),
])  # fmt: skip
def test_mistakes_are_one_line(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        edit(*flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(said, error), error
