"""Runs side by side: who is ahead, by how much on the same cases, and what differs."""

import numpy as np
import pytest
from run_folders import record
from test_page import Page

from jaxedit.evaluate.metrics import Interval
from jaxedit.report import comparison
from jaxedit.report import folder as folders
from jaxedit.report.__main__ import main

EXACT, KL = "edit_success/exact", "locality/unrelated/kl"


def pair(folder, finished, ones, others, *, metric=EXACT, ids=None):
    """Two runs whose cases score these values of a metric."""
    made = []
    for method, values, names in (("rome", ones, None), ("memit", others, ids)):
        some = [
            record(i, names[i] if names else f"c{i}", {"edit": v > 0.5}, {metric: v})
            for i, v in enumerate(values)
        ]
        summary = finished(method=method, cases=len(some), **{metric: float(np.mean(values))})
        made.append(folder(method)(some, summary, {"config": {"editor": {"lr": len(method)}}}))
    return made


def text_of(runs, tmp_path):
    path = comparison.write(runs, tmp_path / "out.html")
    return Page(path.read_text(encoding="utf-8")).text, path.read_text(encoding="utf-8")


def test_the_difference_is_paired(folder, finished):
    # the runs differ by exactly 0.25 in every case, much as the cases differ among themselves
    values = np.linspace(0, 0.75, 12)
    ones, others = values.tolist(), (values + 0.25).tolist()
    runs = [folders.read(f) for f in pair(folder, finished, ones, others)]
    one, other = map(comparison.keyed, runs)
    found = comparison.difference(one, other, EXACT)
    assert found == pytest.approx((0.25, 0.25, 0.25, 12))
    assert comparison.differs(found)
    back = comparison.difference(other, one, EXACT)
    assert back.mean == pytest.approx(-0.25)
    assert comparison.difference(one, other, "fluency") is None
    # +1 in one case of four and -1 in another: no difference, and an interval around it
    runs = [folders.read(f) for f in pair(lambda n: folder("b" + n), finished,
                                          [0, 1, 0, 1], [1, 0, 0, 1])]  # fmt: skip
    none = comparison.difference(*map(comparison.keyed, runs), EXACT)
    assert none.mean == 0
    assert none.low < 0 < none.high
    assert not comparison.differs(none)


def test_only_cases_with_the_same_id_and_request_are_paired(folder, finished):
    runs = pair(folder, finished, [0, 0, 0], [1, 1, 1], ids=["c0", "c1", "other"])
    one, other = (comparison.keyed(folders.read(f)) for f in runs)
    assert comparison.difference(one, other, EXACT).n == 2
    # the same id may be another case of other data
    (key,) = [k for k in other if k[0] == "c1"]
    moved = {**other[key], "requests": [{"prompt": "{} is", "subject": "Bo", "target": "here"}]}
    found = comparison.keyed(folders.read(runs[0])._replace(cases=(moved,)))
    assert comparison.difference(one, found, EXACT) is None


def test_the_better_run_is_marked(folder, finished, tmp_path):
    text, page = text_of(pair(folder, finished, [0] * 6 + [1] * 6, [1] * 12), tmp_path)
    line = text[text.index("Edit success exact") :]
    assert line.startswith("Edit success exact 50.0 [37.5, 56.2] 100.0 [87.5, 106.2] best Δ +50.0")
    assert page.count('class="tag best"') == 1
    assert "delta clear" in page


def test_lower_is_better_where_it_is(folder, finished, tmp_path):
    _, page = text_of(pair(folder, finished, [0.1] * 8, [0.3] * 8, metric=KL), tmp_path)
    first, second = page[page.index("lower is better") :].split("<td>")[1:3]
    assert "tag best" in first
    assert "tag" not in second
    assert comparison.best(KL, [Interval(0.1, 0, 1, 1), Interval(0.3, 0, 1, 1)]) == 0
    assert comparison.best(EXACT, [Interval(0.1, 0, 1, 1), Interval(0.3, 0, 1, 1)]) == 1


def test_a_lead_that_may_be_chance_is_only_ahead(folder, finished, tmp_path):
    _, page = text_of(pair(folder, finished, [0, 1, 0, 1, 0], [1, 0, 0, 1, 1]), tmp_path)
    assert page.count("tag ahead") == 1
    assert "tag best" not in page
    assert "delta clear" not in page


def test_a_few_cases_are_no_evidence(folder, finished, tmp_path):
    _, page = text_of(pair(folder, finished, [0.0] * 5, [1.0] * 5), tmp_path)
    assert "tag best" not in page
    assert not comparison.differs(Interval(1.0, 1.0, 1.0, 5))
    assert comparison.differs(Interval(1.0, 1.0, 1.0, 6))


def test_nobody_is_ahead_in_a_tie_or_alone():
    tie = Interval(0.5, 0, 1, 1)
    assert comparison.best(EXACT, [tie, tie]) is None
    assert comparison.best(EXACT, [tie, None]) is None


def test_what_differs_between_the_runs(folder, finished, tmp_path):
    text, _ = text_of(pair(folder, finished, [1, 1, 0, 0], [1, 0, 0, 1]), tmp_path)
    assert "editor.lr 4 5" in text
    assert "method rome memit" in text
    assert "taken with both rome and memit: 1; with neither: 1; only with rome: 1; only" in text
    assert "Only with memit: 1" in text
    assert "c3 Ann c3 was born in Rome" in text


def test_runs_over_other_cases_say_so(folder, finished, tmp_path):
    runs = pair(folder, finished, [0, 1, 1], [1, 1, 1], ids=["c0", "c1", "x"])
    text, _ = text_of(runs, tmp_path)
    assert "not over the same cases: 2 are shared, of 3, 3" in text
    (runs[1] / "summary.json").unlink()
    text, _ = text_of(runs, tmp_path)
    assert "memit has not ended: its numbers are those of 3 cases so far" in text


def test_runs_side_by_side_are_a_table_of_the_survey(folder, finished, tmp_path, capsys):
    token = "edit_success/token"
    runs = pair(folder, finished, [0, 1, 0, 1], [1, 1, 1, 0], metric=token)
    main([*map(str, runs), "--out", str(tmp_path / "both.html")])
    assert f"wrote {tmp_path / 'both.csv'}" in capsys.readouterr().out
    lines = (tmp_path / "both.csv").read_text().splitlines()
    assert lines == ["DataSet,Metric,rome,memit", "world,Edit Succ.,50.00,75.00"]
    with pytest.raises(ValueError, match="give the page's name; the table lies beside it"):
        main([*map(str, runs), "--out", str(tmp_path / "both.csv")])
    again = folder("rome again")([record(0, "c0", {"edit": True}, {token: 1.0})],
                                 finished(**{token: 1.0}))  # fmt: skip
    main([*map(str, (*runs, again)), "--out", str(tmp_path / "three.html")])
    head, only = (tmp_path / "three.csv").read_text().splitlines()
    assert head == "DataSet,Metric,rome,memit,rome again"  # a column for each run
    assert only == "world,Edit Succ.,50.00,75.00,100.00"


def test_curves_lie_over_one_another(folder, finished, tmp_path):
    curve = lambda mean: {EXACT: [{"edits": n, "mean": mean, "low": mean, "high": mean, "n": n}
                                  for n in (1, 10)]}  # fmt: skip
    made = []
    for method, mean in (("rome", 0.5), ("memit", 0.75)):
        some = [record(0, "a", {"edit": True}, at=10)]
        made.append(folder(method)(some, finished(method=method, curves=curve(mean))))
    text, page = text_of(made, tmp_path)
    assert "rome, 10: 50.0" in text
    assert "memit, 10: 75.0" in text
    drawn = comparison.figures([folders.read(f) for f in made])
    assert list(drawn) == ["curves-edit_success-exact"]
    assert page.count("stroke-dasharray") > 0  # told apart by more than colour


def test_labels_are_the_shortest_that_differ(folder, finished):
    def labels(*whats):
        runs = [
            folders.read(folder(f"{where}{len(whats)}")([], finished(method) | {"name": name}))
            for where, method, name in whats
        ]
        return comparison.label(runs)

    assert labels(("a", "rome", ""), ("b", "memit", "")) == ["rome", "memit"]
    same = ("c", "rome", "f.py:zsre-a"), ("d", "rome", "f.py:zsre-b"), ("e", "rome", "g.py:x")
    assert labels(*same) == ["zsre-a", "zsre-b", "x"]
    assert labels(*[(x, "rome", "") for x in "wxyz"]) == ["w4", "x4", "y4", "z4"]


def test_the_command_compares(folder, finished, tmp_path, monkeypatch, capsys):
    runs = pair(folder, finished, [0, 1], [1, 1])
    monkeypatch.chdir(tmp_path)
    main([str(r) for r in runs])
    assert capsys.readouterr().out == "wrote comparison.html\nwrote comparison.csv\n"
    Page((tmp_path / "comparison.html").read_text())
    with pytest.raises(ValueError, match="given twice"):
        main([str(runs[0]), str(runs[0])])
