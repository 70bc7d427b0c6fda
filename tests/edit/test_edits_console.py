"""`jaxedit edits`: what its user sees of a ledger, and what stays as it was."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import cli, edits
from jaxedit.base import Dense, LowRank, Write
from jaxedit.checksum import checksum
from jaxedit.edit.ledger import Ledger
from jaxedit.edit.record import Edit, origin
from jaxedit.hf import peft
from jaxedit.models.config import Model
from jaxedit.models.shapes import SHAPES

CFG = SHAPES["tiny-gpt2"]
LONG = "The city in which the parliament of {} has met ever since the war ended is"


@pytest.fixture(scope="module")
def model():
    return Model(jaxedit.init(jax.random.key(0), CFG), CFG)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    jaxedit.save(model, folder)
    return folder


def ask(subject, target, prompt="The capital of {} is"):
    return {"prompt": prompt, "subject": subject, "target": target}


def make_edit(model, seed, scale=1.0, **more):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((1, CFG.mlp, 1)), rng.standard_normal((1, 1, CFG.embed))
    b *= scale / np.linalg.norm(a) / np.linalg.norm(b)
    factors = (jnp.asarray(x, jnp.float32) for x in (a, b))
    about = origin(model, method="rome", **more)
    return Edit(deltas={"mlp/down": LowRank(*factors, jnp.array([2]))}, provenance=about)


@pytest.fixture
def ledger(model, tmp_path):
    """Four edits: one, one on top of it, one of two requests, one without any."""
    ledger = Ledger.create(tmp_path / "ledger", model)
    ledger.add(make_edit(model, 0, 0.5, request=ask("France", "Rome")))
    ledger.add(make_edit(model, 1, 0.25, request=ask("Perú", "Lima\n", LONG), after=["0001"]))
    ledger.add(make_edit(model, 2, 2.0, requests=[ask("Spain", "Oslo"), ask("Italy", "Bern")]))
    ledger.add(Edit(deltas=make_edit(model, 3, 0.125).deltas))
    return ledger


@pytest.fixture
def call(capfd):
    """Runs the verb on a ledger: its exit code, stdout and stderr."""

    def call(verb, ledger, *argv):
        capfd.readouterr()
        code = cli.run(edits.main, [verb, str(ledger.folder), *map(str, argv)])
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def refuse(capfd, monkeypatch):
    """Runs a command that must end with exit code 2, and returns its one line."""
    monkeypatch.delenv("JAXEDIT_TRACEBACK", raising=False)

    def call(*argv):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(edits.main, [str(a) for a in argv])
        assert stop.value.code == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("jaxedit: error: ")
        assert err.count("\n") == 1
        return err

    return call


def ids(ledger):
    return [e.id for e in ledger.edits()]


def test_list_is_a_table(ledger, call):
    ledger.undo(2)
    code, out, err = call("list", ledger)
    assert (code, err) == (0, "")
    when = ledger.entry(1).time
    wide = "The city in which the parliament of {} has met … → Lima"
    cells = [
        ["id", "time", "method", "state", "subject", "prompt → target", "norm"],
        ["0001", when, "rome", "active", "France", "The capital of {} is → Rome", "0.5"],
        ["0002", when, "rome", "undone", "Perú", wide, "0.25"],
        ["0003", when, "rome", "active", "Spain", "The capital of {} is → Oslo and 1 more", "2"],
        ["0004", when, "", "active", "", "", "0.125"],
    ]
    times = [ledger.entry(i).time for i in (1, 2, 3, 4)]
    for row, time in zip(cells[1:], times, strict=True):
        row[1] = time
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(c.ljust(n) for c, n in zip(r, widths, strict=True)).rstrip() for r in cells]
    assert out == "".join(f"{row}\n" for row in rows)


def test_list_for_programs(ledger, call):
    ledger.undo(2)
    _, out, _ = call("list", ledger, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(x["id"], x["active"]) for x in lines] == [
        ("0001", True),
        ("0002", False),
        ("0003", True),
        ("0004", True),
    ]
    assert lines[1]["requests"] == [ask("Perú", "Lima\n", LONG)]
    assert len(lines[2]["requests"]) == 2
    assert lines[3]["norm"] == pytest.approx(0.125, rel=1e-5)


def test_list_of_nothing_is_its_head(model, tmp_path, call):
    _, out, _ = call("list", Ledger.create(tmp_path / "new", model))
    assert out == "id  time  method  state  subject  prompt → target  norm\n"


def test_show_is_the_provenance_and_the_sizes(ledger, model, call):
    _, out, err = call("show", ledger, "2")
    facts = json.loads(out)
    assert err == ""
    assert (facts["id"], facts["state"]) == ("0002", "active")
    assert facts["provenance"]["request"]["subject"] == "Perú"
    assert facts["provenance"]["base"]["checksum"] == checksum(model.params)
    (change,) = facts["changes"]
    assert (change["matrix"], change["layer"]) == ("mlp/down", 2)
    assert change["norm"] == pytest.approx(0.25, rel=1e-5)
    assert facts["rank"] == {"mlp/down": 1}
    assert (facts["writes"], facts["prefix_tokens"]) == ([], 0)
    write = Write(jnp.ones((1, 1, 1), bool), jnp.ones((1, 1, 1, 32)), jnp.array([0]))
    w = jnp.ones((CFG.layers, 32, 32))
    ledger.add(Edit((3, 4), {"mlp_out": write}, {"attn/o": Dense(w)}))
    facts = json.loads(call("show", ledger, "0005")[1])
    assert (facts["writes"], facts["prefix_tokens"]) == (["mlp_out"], 2)
    assert [c["layer"] for c in facts["changes"]] == [0, 1, 2, 3]
    assert facts["norm"] == pytest.approx(64)


def test_undo_and_redo(ledger, call):
    code, out, err = call("undo", ledger, "1")
    assert (code, out) == (0, "undone: 0001\n")
    assert err == "jaxedit: warning: edit 0002 was made on top of it and stays\n"
    assert ids(ledger) == ["0002", "0003", "0004"]
    assert call("undo", ledger, "0003", 4) == (0, "undone: 0003, 0004\n", "")
    assert ids(ledger) == ["0002"]
    code, out, err = call("undo", ledger, "--all")
    assert (out, err) == ("undone: 0002\n", "")
    assert ids(ledger) == []
    assert call("undo", ledger, "--all") == (0, "undone: nothing\n", "")
    code, out, err = call("redo", ledger, 2)
    assert (code, out) == (0, "redone: 0002\n")
    assert err == "jaxedit: warning: edit 0001 was there when it was made and is undone\n"
    assert call("redo", ledger, "--all")[1] == "redone: 0001, 0003, 0004\n"
    assert ids(ledger) == ["0001", "0002", "0003", "0004"]


def test_merge_writes_what_stands(ledger, model, folder, call, tmp_path):
    ledger.undo(2)
    out = tmp_path / "merged"
    code, said, err = call("merge", ledger, "--model", folder, "--out", out)
    assert (code, err) == (0, "")
    assert said == f"wrote {out}, {folder} with 3 edits\n"
    merged = jaxedit.load(out)
    assert checksum(merged.params) == checksum(ledger.merge(model).params)
    assert checksum(merged.params) != checksum(model.params)
    ledger.undo_all()
    call("merge", ledger, "--model", folder, "--out", tmp_path / "base")
    assert checksum(jaxedit.load(tmp_path / "base").params) == checksum(model.params)


def test_merge_refuses_another_model_unless_forced(ledger, refuse, call, tmp_path):
    other = Model(jaxedit.init(jax.random.key(1), CFG), CFG)
    jaxedit.save(other, tmp_path / "other")
    argv = ["--model", tmp_path / "other", "--out", tmp_path / "out"]
    line = refuse("merge", ledger.folder, *argv)
    assert checksum(other.params)[:12] in line
    assert not (tmp_path / "out").exists()
    assert call("merge", ledger, *argv, "--force")[0] == 0
    want = checksum(ledger.merge(other, force=True).params)
    assert checksum(jaxedit.load(tmp_path / "out").params) == want


def test_export_writes_an_adapter(ledger, call, tmp_path):
    ledger.undo(1, 2, 3)
    out = tmp_path / "adapter"
    code, said, err = call("export", ledger, "--peft", out, "--model", "some/base")
    assert (code, said, err) == (0, f"wrote {out}, a PEFT adapter of 1 edit\n", "")
    (back,) = peft.read(out, CFG).values()
    (want,) = ledger.load(4).deltas.values()
    np.testing.assert_array_equal(back.a, want.a)
    np.testing.assert_array_equal(back.b, want.b)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"


def test_check_tells_of_conflicts(ledger, model, call):
    summary = (
        f"base       gpt2, checksum {checksum(model.params)[:12]}\n"
        "edits      4, 4 of them active\n"
        "files      whole\n"
    )
    assert call("check", ledger) == (0, summary + "conflicts  none\n", "")
    ledger.add(make_edit(model, 3, request=ask("france", "Lyon")))
    code, out, err = call("check", ledger)
    assert (code, err) == (0, "")
    assert out == summary.replace("4, 4", "5, 5") + (
        "conflicts  2\n"
        "0001 and 0005: The capital of france is → Rome, or Lyon\n"
        "0004 and 0005: mlp/down layer 2, |cosine| 1.000\n"
    )
    many = call("check", ledger, "--threshold", 0.001)[1]
    assert len(many.splitlines()) > 6
    ledger.undo(5)
    assert call("check", ledger)[1].endswith("conflicts  none\n")


def test_check_finds_damage(ledger, call):
    (ledger.folder / "edits" / "0002.safetensors").unlink()
    code, out, err = call("check", ledger)
    assert (code, err) == (1, "")
    assert out.splitlines()[2] == "files      1 missing or damaged"
    (line,) = out.splitlines()[3:]
    assert line.startswith("edit 0002: ")
    assert "0002.safetensors is missing" in line


def test_mistakes_are_told_in_one_line(ledger, refuse, tmp_path, monkeypatch):
    at = ledger.folder
    assert "no base.json, so this is not a ledger" in refuse("list", tmp_path)
    assert "has no edit 9: it has 0001 to 0004" in refuse("show", at, "9")
    assert "no edit rome" in refuse("undo", at, "1", "rome")
    assert "0001 was not undone" in refuse("redo", at, "1")
    for argv in (["undo", at], ["redo", at], ["undo", at, "1", "--all"]):
        assert "needs the ids of edits, or --all" in refuse(*argv)
    assert "required: --peft" in refuse("export", at)
    assert "required: --model, --out" in refuse("merge", at)
    assert "invalid choice: 'lsit'" in refuse("lsit", at)
    assert "required: VERB" in refuse()
    assert "between 0 and 1" in refuse("check", at, "--threshold", 2)
    assert "no such folder" in refuse("merge", at, "--model", "./no", "--out", tmp_path / "o")
    assert ids(ledger) == ["0001", "0002", "0003", "0004"]


def test_merge_says_what_is_wrong_before_it_reads_the_model(
    ledger, folder, refuse, tmp_path, monkeypatch
):
    monkeypatch.setattr(jaxedit, "load", lambda *_, **__: pytest.fail("the weights were read"))
    there = tmp_path / "there"
    there.mkdir()
    for verb, flag in (("merge", "--out"), ("export", "--peft")):
        more = ["--model", folder]
        assert f"{there} exists" in refuse(verb, ledger.folder, *more, flag, there)
    ledger.add(Edit(prefix=(3,)))
    line = refuse("merge", ledger.folder, "--model", folder, "--out", tmp_path / "out")
    assert "edit 0005 has prefix tokens, which cannot be merged" in line


def test_help_answers_without_jax(ledger):
    """Nothing heavy is imported before the command line is read."""
    code = (
        "import sys; from jaxedit import cli, edits\n"
        "try: edits.main(sys.argv[1:])\n"
        "except SystemExit as stop: sys.exit(stop.code or int('jax' in sys.modules))"
    )
    for argv in (["--help"], ["merge", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        assert "usage: jaxedit edits" in done.stdout
