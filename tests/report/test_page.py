"""The page of a run: whole, escaped, worst cases first, and about what is in the folder."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from run_folders import interval, probe, record

from jaxedit import cli
from jaxedit.evaluate.metrics import Interval
from jaxedit.report import cases, html, plots, run
from jaxedit.report.__main__ import main

VOID = {"meta", "input", "br"}
NASTY = "</script><script>alert(1)</script></td><xss a='1'>&amp; \u2028 \ud800 \u0000 “é” \u202e"


class Page(HTMLParser):
    """Tags in pairs, the text outside of scripts and styles, what a script may read."""

    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.open, self.words, self.scripts, self.data, self.ids = [], [], [], "", []
        self.feed(text)
        assert self.open == [], "every tag is closed"
        assert len(self.ids) == len(set(self.ids)), "an id stands once"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.kind = found.get("type") if tag == "script" else None
        for name, value in attrs:
            assert not name.startswith("on"), "no attribute is a script"
            if name in ("src", "href"):
                assert value.startswith("#"), "nothing is loaded from elsewhere"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            assert not data.strip(), "words stand within a tag"
        elif self.open[-1] == "script":
            if self.kind == "application/json":
                self.data = json.loads(data)
            else:
                self.scripts.append(data)
        elif self.open[-1] != "style":
            self.words.append(data)


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def four():
    return [
        record(0, "good", {"edit": True, "rephrase": True, "locality/neighborhood": True}),
        record(1, "two-wrong", {"edit": True, "rephrase": False, "locality/neighborhood": False}),
        record(2, "not-taken", {"edit": False, "rephrase": None}),
        record(3, "no-edit", {"edit": True}, failed=["the subject is not in the prompt"]),
        record(4, "one-wrong", {"edit": True, "rephrase": False}),
        record(5, "unjudged", {"edit": None}),
    ]


def test_every_case_is_there_and_failures_stand_first(folder, finished):
    path = run.write(folder("a")(four(), finished(cases=6, edit_success__exact=0.75)))
    assert path.name == "report.html"
    page = read(path)
    order = [(case[1], page.data["verdicts"][case[2]]) for case in page.data["cases"]]
    assert order == [
        ("no-edit", "no edit"),
        ("not-taken", "not taken"),
        ("two-wrong", "partly right"),
        ("one-wrong", "partly right"),
        ("good", "all right"),
        ("unjudged", "not judged"),
    ]
    # without a script the table says the same in the same order
    static = page.text[page.text.index("need JavaScript") :]
    places = [static.index(id) for id, _ in order]
    assert places == sorted(places)
    assert "the subject is not in the prompt" in page.text


def test_what_a_probe_holds_comes_back_from_the_page(folder, finished):
    one = record(0, "x", {}, {"edit_success/exact": 1.0, "locality/agreement": 0.123456},
        probes=[probe("edit", True), probe("locality/unrelated", False, said="Paris", kl=0.0123456,
                                           agreement=0.5, answers=[])],
        continued=[{"beginning": "Ann", "before": " is", "after": " was"}],
    )  # fmt: skip
    data = read(run.write(folder("a")([one], finished()))).data
    edit, other = data["cases"][0][8]
    assert data["keys"] == ["edit", "locality/unrelated"]
    assert edit[1:] == [
        "Ann was born in", [["Rome", "Roma"]], "", ["Paris", None, -3.25], ["Rome", None, -0.5],
        None, None, 1,
    ]  # fmt: skip
    assert other[5:] == [["Paris", None, -0.5], 0.5, 0.01235, 0]
    assert data["cases"][0][9] == [["Ann", " is", " was"]]
    assert dict(zip(data["metrics"], data["cases"][0][10], strict=True)) == {
        "edit_success/exact": 1,
        "locality/agreement": 0.1235,
    }


def test_an_answer_that_did_not_change_is_there_once():
    same = probe("locality/unrelated", True)
    same["after"] = same["before"]
    assert cases.pack([record(0, "a", {}, probes=[same])])["cases"][0][8][0][5] == 0


def test_metrics_with_their_intervals_and_counts(folder, finished):
    summary = finished(cases=1234, edit_success__token=0.5, fluency=5.5, fluency_before=5.75)
    summary["metrics"]["locality/unrelated/kl"] = interval(0.0625, 0.03, 0.09, 7)
    page = read(run.write(folder("a")(four(), summary)))
    for line in (
        "Edit success token 50.0 [37.5, 56.2] 1,234",
        "Fluency fluency 5.500 [5.375, 5.562] 5.750 1,234",  # the unedited model's beside it
        "unrelated · kl ↓ 0.062 [0.030, 0.090] 7",
    ):
        assert line in page.text
    # the bar from zero to the mean, and the line over the interval
    text = run.bar("edit_success/token", Interval(0.5, 0.375, 0.5625, 1), None)
    assert 'left:0.00%;width:50.00%"></i>' in text
    assert '<b style="left:37.50%;width:18.75%">' in text
    signed = run.bar("edit_success/magnitude", Interval(-0.5, -0.75, 0.0, 1), None)
    assert 'left:25.00%;width:25.00%"></i>' in signed  # leftwards from the middle


def test_nothing_that_is_said_becomes_markup_or_a_script(folder, finished):
    bad = record(0, NASTY, {}, {NASTY: 1.0}, failed=[NASTY], skipped=[NASTY], info={NASTY: NASTY},
        probes=[probe("edit", False, prompt=NASTY, said=NASTY, answers=[[NASTY]])],
        requests=[{"prompt": "{} " + NASTY, "subject": NASTY, "target": NASTY, "ground_truth": []}],
        continued=[{"beginning": NASTY, "before": NASTY, "after": None}],
    )  # fmt: skip
    summary = finished(method=NASTY) | {"name": NASTY, "skipped": {"reasons": [NASTY]}}
    summary["metrics"] = {NASTY: interval(0.5, 0.25, 0.75)}
    weights = {NASTY: {"layers": [0], "norm": [1.0], "map": [[[1.0]]]}}
    at = folder("a")([bad], summary, {"command": NASTY, "config": {NASTY: NASTY}},
                     analysis={"weights": weights})  # fmt: skip
    page = read(run.write(at))
    assert page.scripts == [html.resource("cases.js")]
    assert page.data["cases"][0][8][0][1] == NASTY.replace("\ud800", "?")
    rules = re.search('http-equiv="Content-Security-Policy" content="([^"]+)"', (at / "report.html")
                      .read_text()).group(1)  # fmt: skip
    assert "default-src 'none'" in rules  # nothing is fetched
    assert "script-src 'sha256-" in rules  # and no other script runs
    assert "xss" not in page.tags
    assert page.text.count("<xss a='1'>&amp;") > 5  # it is there to be read


@pytest.mark.parametrize("missing", ["config", "scores", "probes", "requests", "metrics"])
def test_a_run_that_lacks_something_has_a_page(folder, finished, missing):
    summary = finished(edit_success__exact=0.5)
    config = None if missing == "config" else {"command": "python x", "config": {"a": 1}}
    some = four()
    for case in some:
        case.pop(missing, None)
    summary.pop(missing, None)
    page = read(run.write(folder("a")(some, summary, config)))
    assert len(page.data["cases"]) == 6
    assert ("python x" in page.text) == (missing != "config")


def test_a_number_that_json_lacks_is_left_out(folder, finished):
    summary = finished(edit_success__exact=0.5)
    summary["metrics"]["locality/agreement"] = interval(float("nan"), 0, 1)
    some = [record(0, "a", {"edit": True}, {"edit_success/exact": float("inf")})]
    page = read(run.write(folder("a")(some, summary)))  # Python's NaN is no JSON in a browser
    assert page.data["cases"][0][10] == [None]
    assert "Locality" not in page.text


def test_a_run_that_has_not_ended_says_so_and_counts_what_there_is(folder):
    scores = [{"edit_success/exact": x} for x in (1.0, 1.0, 0.0, 1.0)]
    done = [record(i, f"c{i}", {"edit": bool(s["edit_success/exact"])}, s)
            for i, s in enumerate(scores)]  # fmt: skip
    at = folder("half")(done)
    with open(at / "cases.jsonl", "a") as file:
        file.write('{"place": 4, "id": "torn", "scor')
    page = read(run.write(at))
    assert "This run has not ended" in page.text
    assert "those of 4 cases so far" in page.text
    assert re.search(r"Edit success exact 75\.0 \[\d+\.\d, 100\.0\] 4", page.text)
    assert [case[1] for case in page.data["cases"]] == ["c2", "c0", "c1", "c3"]


def test_what_was_left_out_and_why(folder, finished):
    some = [record(i, f"c{i}", {"edit": False}, failed=["no subject"]) for i in range(3)]
    skipped = {"rows": 2, "probes": 5, "reasons": ["row 7: no target", "c1: too long"]}
    page = read(run.write(folder("a")(some, finished(cases=3) | {"failed": 3, "skipped": skipped})))
    for told in ("left out 2 rows, 5 probes", "Cases without an edit: 3 of 3", "3 no subject",
                 "7 reasons row 7: no target c1: too long and 5 more"):  # fmt: skip
        assert told in page.text


def test_text_with_a_line_separator_is_one_record(folder, finished):
    some = [record(0, "a\u2028b\u0085c", {"edit": True})]
    at = folder("a")(some, finished())
    raw = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in ({"run": "abc"}, *some))
    (at / "cases.jsonl").write_text(raw, encoding="utf-8")
    assert read(run.write(at)).data["cases"][0][1] == "a\u2028b\u0085c"


def test_a_sequence_shows_its_curves_its_matrix_and_the_last_state(folder, finished):
    point = lambda edits, mean: {"edits": edits, **interval(mean, mean - 0.125, mean, edits)}
    curves = {
        "edit_success/token": [point(1, 1.0), point(10, 0.5)],
        "locality/agreement": [point(1, 1.0), point(10, 0.75)],
        "fluency": [point(1, 5.0), point(10, 4.0)],
    }
    matrix = {"metric": "edit_success/exact", "edits": [1, 10], "cases": [0, 9],
              "edit_success": [[1.0, None], [0.5, 1.0]]}  # fmt: skip
    summary = finished(curves=curves, forgetting=matrix, edit_success__token=0.5)
    summary["how"] = "sequence"
    asked = [record(0, "first", {"edit": True}, at=1), record(0, "first", {"edit": False}, at=10),
             record(9, "last", {"edit": True}, at=10)]  # fmt: skip
    page = read(run.write(folder("a")(asked, summary)))
    assert [(case[1], case[2]) for case in page.data["cases"]] == [("first", 1), ("last", 3)]
    for told in ("Edit success · token, 10: 50.0 [37.5, 50.0]", "fluency, 10: 4.000 [3.875, 4.000]",
                 "1, after 1: 100.000%", "1, after 10: 50.000%", "10, after 10: 100.000%",
                 "sequence, asked after 10"):  # fmt: skip
        assert told in page.text
    assert "10, after 1:" not in page.text  # not made yet


def test_what_a_sequence_does_to_other_abilities(folder, finished):
    acc = lambda mean: {"acc": interval(mean, mean - 0.125, mean + 0.125, 40)}
    at = lambda edits, now, more: {
        "edits": edits,
        "exams": {"mmlu": {"before": acc(0.5), "after": acc(now)}, "piqa": {"questions": 0}},
        "text": {"change": {"nll": interval(more, more - 0.25, more + 0.25)}},
    }
    found = finished(edit_success__token=0.5) | {"drift": [at(1, 0.5, 0.0), at(10, 0.25, 1.5), {}]}
    page = read(run.write(folder("a")(four(), found)))
    for told in ("mmlu · acc", "edited, 10: 25.0 [12.5, 37.5]", "unedited, 10: 50.0 [37.5, 62.5]",
                 "edited, 10: 1.500 [1.250, 1.750]", "unedited, 1: 0.000"):  # fmt: skip
        assert told in page.text
    assert "piqa" not in page.text


def test_the_change_of_the_weights(folder, finished):
    there = {"layers": [2, 5], "norm": [interval(0.5, 0.4, 0.6), 2.0], "relative": [0.125, None],
             "map": [[[0.0, 1.0]], [[2.0, 3.0]]]}  # fmt: skip
    analysis = {"weights": {"mlp/down": there, "lm_head": {"layers": [None], "norm": [1.0]}}}
    page = read(run.write(folder("a")(four(), finished(), analysis=analysis)))
    for told in ("2, mlp/down: 0.125", "5, mlp/down: 2.000", "|ΔW| of mlp/down, layer 5"):
        assert told in page.text
    assert "5, mlp/down: 0" not in page.text


def test_a_folder_that_is_no_run_is_told_in_one_line(tmp_path, folder, finished, capsys):
    (tmp_path / "empty").mkdir()
    at = folder("broken")(four(), finished())
    (at / "summary.json").write_text("{")
    torn = folder("torn")(four())
    text = (torn / "cases.jsonl").read_text()
    (torn / "cases.jsonl").write_text(text.replace('"place": 2', '"place": ', 1))
    for where, why in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "neither summary.json nor cases.jsonl"),
        (at, "summary.json cannot be read as JSON"),
        (torn, "cases.jsonl, line 4, is no record of a case"),
    ):
        with pytest.raises(SystemExit):
            cli.run(main, [str(where)])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert why in error


def test_the_command_writes_where_it_is_told(folder, finished, tmp_path, capsys):
    at = folder("a")(four(), finished())
    main([str(at), "--out", str(tmp_path / "new" / "page.html")])
    assert capsys.readouterr().out == f"wrote {tmp_path}/new/page.html\n"
    read(tmp_path / "new" / "page.html")
    assert not (at / "report.html").exists()
    with pytest.raises(ValueError, match="is a folder"):
        main([str(at), "--out", str(tmp_path)])


def test_pictures_as_png(folder, finished, tmp_path, monkeypatch, capsys):
    at = folder("a")(four(), finished(edit_success__token=0.5))
    import jaxedit.report.png as png

    drawn = []

    def draw(svg):
        drawn.append(svg)
        return svg.encode()

    monkeypatch.setattr(png, "renderer", lambda: draw)
    main([str(at), "--png"])
    assert capsys.readouterr().out.splitlines()[1] == f"wrote {at}/report-metrics.png"
    assert 'viewBox="-12 -12 380' in (at / "report-metrics.png").read_text()
    monkeypatch.setattr(png, "renderer", lambda: lambda svg: b"blank")
    with pytest.raises(ValueError, match="no font"):
        main([str(at), "--png"])


def test_png_without_its_package_says_how_to_get_it(folder, finished, monkeypatch, capsys):
    at = folder("a")(four(), finished(edit_success__token=0.5))
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxedit\[plots\]'"):
        main([str(at), "--png"])
    assert "report.html" in capsys.readouterr().out  # the page is there nevertheless


def test_png_is_drawn(folder, finished):
    pytest.importorskip("resvg_py")
    from jaxedit.report import png

    at = folder("a")(four(), finished())
    (file,) = png.write({"x": plots.svg(100, 50, [plots.text(5, 20, "words")])}, at, "report")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(file.read_bytes()[16:20], "big") == 3 * (100 + 24)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_script_is_javascript(tmp_path):
    file = tmp_path / "cases.js"
    file.write_text(html.resource("cases.js"))
    found = subprocess.run(["node", "--check", file], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
