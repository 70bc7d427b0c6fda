"""What comes of a run over several data: a mean for all of it, and one for each."""

import csv
import dataclasses

import pytest
from test_evaluate_task import BASE, evaluate

from jaxedit.evaluate import outcome
from jaxedit.evaluate.protocol import Key
from jaxedit.evaluate.records import Records, lines

HIT = "edit_success/token"


def summary(folder, data, shares):
    """Of cases with these shares, of the data in turn."""
    records = Records(folder, "x")
    records.add(
        {"place": i, "id": str(i), "source": data[i % len(data)], "failed": [], "skipped": [],
         "scores": {HIT: share}} for i, share in enumerate(shares)
    )  # fmt: skip
    cfg = dataclasses.replace(BASE, data=data, workdir=str(folder))
    found = outcome.summarise(cfg, records, [Key(0, i) for i in range(len(shares))], [], "")
    outcome.write(folder, found, cfg, {})
    return found


def test_each_of_several_data_has_its_own_mean(tmp_path):
    data = ("knowedit/zsre:a", "mquake:b")
    found = summary(tmp_path, data, [1.0, 0.0, 1.0, 0.5, 1.0])
    assert found["metrics"][HIT]["mean"] == pytest.approx(0.7)
    assert {k: (v["cases"], v["metrics"][HIT]["mean"]) for k, v in found["sources"].items()} == {
        data[0]: (3, 1.0), data[1]: (2, 0.25)
    }  # fmt: skip
    assert "mquake:b: 2 cases: Edit Succ. 0.250" in outcome.told(found).splitlines()
    with open(tmp_path / "summary.csv") as file:
        assert list(csv.reader(file))[1:] == [
            ["ZsRE", "Edit Succ.", "100.00"],
            ["knowedit/zsre + mquake", "Edit Succ.", "70.00"],
            ["mquake", "Edit Succ.", "25.00"],
        ]


def test_two_of_one_kind_keep_their_whole_names_and_one_has_no_parts(tmp_path):
    summary(tmp_path, ("mquake:a", "mquake:b"), [1.0, 0.0])
    with open(tmp_path / "summary.csv") as file:
        assert [row[0] for row in csv.reader(file)][1:] == [
            "mquake + mquake", "mquake:a", "mquake:b"
        ]  # fmt: skip
    (tmp_path / "one").mkdir()
    assert "sources" not in summary(tmp_path / "one", ("mquake:a",), [1.0, 0.0])


def test_records_name_their_source(tmp_path):
    data = ("world:tiny:0:2", "world:tiny:1:1")
    found = evaluate(tmp_path, data=data, analyse=0)
    records = lines(tmp_path / "cases.jsonl")[1:]
    assert [r["source"] for r in records] == [data[0], data[1], data[0]]
    assert [one["cases"] for one in found["sources"].values()] == [2, 1]
