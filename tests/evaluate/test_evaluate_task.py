"""A run of an evaluation: killed at any moment it ends with the same bytes; every protocol counts
what it says.
"""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import jaxedit
from jaxedit import settings
from jaxedit.data.contexts import ContextConfig
from jaxedit.data.world import cases, make
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.rome import RomeConfig
from jaxedit.evaluate import outcome, task
from jaxedit.evaluate.observe import AskConfig
from jaxedit.evaluate.protocol import Key, keys_at, stops
from jaxedit.evaluate.records import Records, lines
from jaxedit.evaluate.task import EvaluateTask, go

ROOT = Path(__file__).parents[2]
FAST = RomeConfig(layer=0, covariance=False, rows=RowsConfig(contexts=ContextConfig()),
                  values=ValueConfig(steps=12, lr=0.5, weight_decay=1e-3, clamp=4.0))  # fmt: skip
BASE = EvaluateTask(
    "world", ("world:tiny:0:6",), FAST, dtype="float32", chunk=2, analyse=2,
    ask=AskConfig(say=4, continued=0),
)  # fmt: skip


@cache
def model():
    return jaxedit.load("world", dtype="float32")


def evaluate(folder, **changes):
    cfg = dataclasses.replace(BASE, workdir=str(folder), **changes)
    return go(cfg, model(), name="a test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder)
    return folder


def same(folder, whole):
    for name in ("cases.jsonl", "summary.json", "summary.csv", "analysis.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_leaves_a_record_for_every_case_and_a_summary(whole):
    header, *records = lines(whole / "cases.jsonl")
    found = json.loads((whole / "summary.json").read_text())
    assert [r["place"] for r in records] == list(range(6))
    assert header["run"] == found["run"]
    assert found["cases"] == 6
    mean = np.mean([r["scores"]["edit_success/exact"] for r in records])
    assert found["metrics"]["edit_success/exact"]["mean"] == pytest.approx(mean)
    assert found["metrics"]["edit_success/exact"]["n"] == 6
    first = records[0]["probes"][0]
    assert first["key"] == "edit"
    assert first["after"]["text"].strip().startswith(records[0]["requests"][0]["target"])
    assert json.loads((whole / "analysis.json").read_text())["edits"] == 2


def test_a_file_cut_anywhere_goes_on_to_the_same_bytes(whole, tmp_path):
    """What a kill leaves is a beginning of the file. Twenty of them."""
    text = (whole / "cases.jsonl").read_bytes()
    cuts = random.Random(0).sample(range(len(text)), 20)
    for cut in [0, *cuts[:3], len(text) - 1]:
        (tmp_path / "cases.jsonl").write_bytes(text[:cut])
        for name in ("summary.json", "analysis.json"):
            (tmp_path / name).unlink(missing_ok=True)
        evaluate(tmp_path)
        same(tmp_path, whole)


def test_a_finished_run_computes_nothing(whole, monkeypatch):
    monkeypatch.setattr(task, "plan_of", lambda *a, **k: pytest.fail("it computes"))
    evaluate(whole)


def test_other_settings_start_afresh_and_the_old_records_come_back_with_theirs(whole, tmp_path):
    evaluate(tmp_path)
    evaluate(tmp_path, limit=2)
    assert len(lines(tmp_path / "cases.jsonl")) == 3
    assert json.loads((tmp_path / "summary.json").read_text())["cases"] == 2
    evaluate(tmp_path)
    same(tmp_path, whole)


def test_nothing_of_another_run_is_taken_for_that_of_this_one(tmp_path):
    made = {"summary.json": '{"run": "x", "cases": 6}', "summary.csv": "a", "timing.json": "{}",
            "analysis.json": '{"run": "x"}', "report.html": "<p>"}  # fmt: skip
    Records(tmp_path, "x").add([{"place": 0}, {"place": 1}])
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    Records(tmp_path, "x")
    assert all((tmp_path / name).exists() for name in made)
    Records(tmp_path, "y").add([{"place": 0}])
    assert not any((tmp_path / name).exists() for name in made)
    (tmp_path / "summary.json").write_text("of y")
    assert set(Records(tmp_path, "x").found) == {Key(0, 0), Key(0, 1)}
    assert {name: (tmp_path / name).read_text() for name in made} == made
    assert (tmp_path / "summary-y.json").read_text() == "of y"


def test_a_line_end_inside_a_text_is_no_end_of_a_record(tmp_path):
    records = Records(tmp_path, "x")
    records.add([{"place": 0, "text": "one\u2028two\u0085three"}, {"place": 1}])
    assert Records(tmp_path, "x").found == records.found
    assert set(records.found) == {Key(0, 0), Key(0, 1)}


def test_a_sequence_is_asked_again_and_again(tmp_path):
    found = evaluate(tmp_path, how="sequence", at=(1, 3), most=2, batch=1)
    records = lines(tmp_path / "cases.jsonl")[1:]
    assert [(r["at"], r["place"]) for r in records] == [(1, 0), (3, 0), (3, 2), (6, 0), (6, 5)]
    matrix = found["forgetting"]
    assert matrix["edits"] == [1, 3, 6]
    assert matrix["cases"] == [0, 2, 5]
    assert [[x is None for x in row] for row in matrix["edit_success"]] == [
        [False, True, True], [False, False, True], [False, True, False]
    ]  # fmt: skip
    assert matrix["edit_success"][0][0] == 1.0  # right after its edit
    curve = found["curves"]["edit_success/exact"]
    assert [point["edits"] for point in curve] == [1, 3, 6]
    assert found["cases"] == 2
    growth = json.loads((tmp_path / "analysis.json").read_text())["growth"]["mlp/down"]
    assert len(growth["norm"][0]) == 6
    # and goes on
    text = (tmp_path / "cases.jsonl").read_bytes()
    (tmp_path / "cases.jsonl").write_bytes(text[: len(text) // 2])
    evaluate(tmp_path, how="sequence", at=(1, 3), most=2, batch=1)
    assert (tmp_path / "cases.jsonl").read_bytes() == text


def test_locality_of_a_sequence_is_what_none_of_its_edits_changes(tmp_path, whole):
    how = {"how": "sequence", "at": (3,), "most": 0, "batch": 1, "analyse": 0}
    found = evaluate(tmp_path, **how)
    alone = {r["place"]: r for r in lines(whole / "cases.jsonl")[1:]}
    records = lines(tmp_path / "cases.jsonl")[1:]
    texts = [r["requests"][0]["prompt"].replace("{}", r["requests"][0]["subject"])
             for r in alone.values()]  # fmt: skip
    for r in records:
        others = tuple(t for i, t in enumerate(texts[: r["at"]]) if i != r["place"])
        local = lambda p, ends: p["key"].startswith("locality/") and p["prompt"].endswith(ends)
        kept = [p["prompt"] for p in alone[r["place"]]["probes"] if not local(p, others)]
        assert [p["prompt"] for p in r["probes"]] == kept
        assert r.get("elsewhere", 0) == len(alone[r["place"]]["probes"]) - len(kept)
    last = [r.get("elsewhere", 0) for r in records if r["at"] == 6]
    assert found["skipped"]["elsewhere"] == sum(last) > 0
    assert f"not asked: {sum(last)} locality probes that other edits change" in outcome.told(found)
    assert evaluate(tmp_path, **how) == found  # from the records alone


def test_cases_that_share_an_edit_are_asked_of_it(tmp_path):
    memit = settings.rebuild(task.configure("memit", model().cfg), {}, "")
    quick = settings.rebuild(memit, {"rows.contexts.lengths": ()}, "")
    stats = dataclasses.replace(task.WORLD_TEXT, documents=200)
    found = evaluate(tmp_path, how="batch", batch=3, editor=quick, stats=stats)
    assert found["cases"] == 6
    assert found["how"] == "batch"


def test_there_and_back(tmp_path):
    slow = settings.rebuild(FAST, {"values.steps": 40}, "")  # it starts where another is certain
    found = evaluate(tmp_path, how="round", limit=2, editor=slow)
    assert found["metrics"]["restored"]["mean"] == 1.0
    assert found["metrics"]["repeated"]["mean"] == 1.0
    records = lines(tmp_path / "cases.jsonl")[1:]
    truth = [r["requests"][0]["target"] for r in records]
    first = [case.request.ground_truth[0] for case in task.read(BASE)[0][:2]]
    assert truth == first  # the edit back is asked for what was true
    assert found["metrics"]["edit_success/exact"]["mean"] == 1.0


def test_sources_are_mixed_in_turn():
    cases, _ = task.read(dataclasses.replace(BASE, data=("world:tiny:0:3", "world:tiny:1:2")))
    subjects = [case.request.subject for case in cases]
    (one, _), (other, _) = (
        task.read(dataclasses.replace(BASE, data=(d,)))
        for d in ("world:tiny:0:3", "world:tiny:1:2")
    )
    assert subjects == [c.request.subject for pair in zip(one, other, strict=False)
                        for c in pair] + [one[2].request.subject]  # fmt: skip


def test_only_what_belongs_to_the_rows_that_were_read_is_left_out(tmp_path):
    row = {"prompt": "Ada was born in", "subject": "Ada", "target_new": "Rome"}
    part = row | {"portability": {"Reasoning": [{"prompt": "Ada is from"}]}}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{}, row, part, {}, row, part, {}]))
    of = lambda limit: task.read(
        dataclasses.replace(BASE, data=(f"knowedit/zsre:{file}",), limit=limit)
    )
    left = lambda limit: [(skip.row, skip.whole) for skip in of(limit)[1]]
    rows = {i: (f"rows[{i}]", i in (0, 3, 6)) for i in (0, 2, 3, 5, 6)}
    assert left(1) == [rows[0]]
    assert left(2) == [rows[0], rows[2]]
    assert left(3) == [rows[0], rows[2], rows[3]]
    assert left(0) == left(4) == list(rows.values())
    cfg = dataclasses.replace(BASE, workdir=str(tmp_path), limit=2)
    records = Records(tmp_path, "x")
    records.add([{"place": 0, "id": "a", "failed": [], "skipped": ["why"], "scores": {}}])
    found = outcome.summarise(cfg, records, [Key(0, 0)], of(2)[1], "")
    counts = {what: found["skipped"][what] for what in ("rows", "parts", "probes")}
    assert counts == {"rows": 1, "parts": 1, "probes": 1}
    assert len(found["skipped"]["reasons"]) == 3
    assert "left out: 1 rows, 1 parts of rows, 1 probes" in outcome.told(found)


def test_two_cases_of_a_row_leave_out_what_is_of_their_rows(tmp_path):
    row = {"ent": "Ada", "pos": ["good"], "neg": ["bad"]}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row, row | {"pos": ["good", " "]}, {}, row | {"pos": ["", "x"]}]))
    cfg = dataclasses.replace(BASE, data=(f"knowedit/convsent:{file}",))
    left = lambda n: [s.row for s in task.read(dataclasses.replace(cfg, limit=n))[1]]
    assert [left(n) for n in (1, 2, 3, 4, 5)] == [
        [], [], ["rows[1]"], ["rows[1]"], ["rows[1]", "rows[2]", "rows[3]"]
    ]  # fmt: skip


def test_places_of_a_sequence():
    many = list(cases(make("tiny"), 100))
    assert stops((10, 100, 500), many, 1) == [10, 100]
    assert stops((1, 10, 31), many, 30) == [30, 60, 100]  # when the edit that holds it is made
    assert stops((1, 10), many, 0) == [100]
    assert [k.place for k in keys_at(5, 0)] == [0, 1, 2, 3, 4]
    assert [k.place for k in keys_at(100, 3)] == [0, 50, 99]


@pytest.mark.slow
def test_a_job_of_two_processes_finds_what_one_finds(whole, tmp_path):
    """The command on a mesh that no process has all of: one file of records, the same scores."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_processes import run_both

    folder = tmp_path / "two"
    command = ("-m", "jaxedit.evaluate", "--config", str(config(tmp_path)), "--set",
               f"workdir={folder}", "mesh.data=2", "mesh.tensor=2")  # fmt: skip
    first, second = run_both(tmp_path, *command, JAXEDIT_DISTRIBUTED="1")
    assert "edit_success/exact" in first
    assert "edit_success/exact" not in second  # one process speaks
    _, *one = lines(whole / "cases.jsonl")
    _, *two = lines(folder / "cases.jsonl")
    assert [r["place"] for r in two] == [r["place"] for r in one]
    for a, b in zip(one, two, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-3)
    means = lambda f: json.loads((f / "summary.json").read_text())["metrics"]
    assert {k: v["n"] for k, v in means(folder).items()} == {
        k: v["n"] for k, v in means(whole).items()
    }


def config(folder):
    """A config file that is the tests' own."""
    file = folder / "cfg.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_evaluate_task import BASE\n\ndef config():\n    return BASE\n"
    )
    return file


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(whole, tmp_path):
    """Real kills of the command, at random moments of its work."""
    file = config(tmp_path)

    def command(folder):
        return [sys.executable, "-m", "jaxedit.evaluate", "--config", str(file), "--set",
                f"workdir={folder}", "data=world:tiny:0:24", "chunk=1"]  # fmt: skip

    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = time.monotonic()
    subprocess.run(command(tmp_path / "once"), check=True, **quiet)
    took = time.monotonic() - start
    chance = random.Random(0)
    for _ in range(20):
        running = subprocess.Popen(command(tmp_path / "often"), **quiet)
        try:
            running.wait(chance.uniform(0.3, 1.0) * took / 2)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
    subprocess.run(command(tmp_path / "often"), check=True, **quiet)
    same(tmp_path / "often", tmp_path / "once")
