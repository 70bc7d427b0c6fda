"""What analysis.json holds, on the page and as pictures; and what of it may be missing."""

from typing import get_args
from xml.etree import ElementTree

import pytest
from run_folders import interval, probe, record
from test_page import NASTY, four, read

from jaxedit.evaluate import errors, hits
from jaxedit.report import findings, html, png, run
from jaxedit.report import folder as folders
from jaxedit.report.__main__ import main

SVG = "{http://www.w3.org/2000/svg}"
HEADINGS = ("Types of error", "With every edit", "Do related edits", "What changed values say")


def hit(*means, rank=40.0):
    some = {f"hit@{k}": interval(m, m / 2, m, 8) for k, m in zip((1, 10, 100), means, strict=True)}
    return some | {"share@1": interval(0.125, 0, 1), "rank": interval(rank, 20, 1234.4, 8)}


def whole():
    """What independent edits and a sequence have, together."""
    return {
        "errors": {"edit": dict.fromkeys(errors.TYPES, 0) | {"right": 9, "unchanged": 3},
                   "portability/reasoning": {"partial": 1, "irrelevant": 4}},
        "weights": {"mlp/down": {
            "layers": [5], "norm": [interval(2.5, 2, 3)], "relative": [interval(0.125, 0.1, 0.2)],
            "rank": [interval(1, 1, 1)], "carry/inputs": [interval(0.0625, 0, 1)],
            "map": [[[0.0, 1.0]]],
        }},
        "growth": {"mlp/down": {"layers": [4, 5], "norm": [[1, 2], [1, 3]],
                                "relative": [[0.25, 0.5], [0.25, 0.75]], "weight": [[1.25, 2.0]]}},
        "hits": {"path": "mlp/down", "rows": 5, "through": "none", "edits": 8,
                 "target": {"before": hit(0, 0, 0.5), "after": hit(0.25, 0.5, 1.0, rank=7.0),
                            "direction": hit(0.5, 1.0, 1.0)},
                 "former": {"before": hit(0.75, 1.0, 1.0), "after": hit(0, 0.25, 0.5)}},
        "overlap": {"path": "mlp/down", "layers": [5], "k": 12, "edits": 8, "subject": None,
                    "relation": {"rsim": 0.5, "related": 0.6, "others": 0.2, "groups": 3}},
    }  # fmt: skip


@pytest.fixture
def shown(folder, finished):
    """The page of a run with this analysis."""

    def show(analysis):
        return read(run.write(folder("a")(four(), finished(), analysis=analysis)))

    return show


def drawn(folder, analysis):
    at = folder("drawn")(four(), analysis=analysis)
    return findings.figures(folders.read(at))


def told(svg):
    return [title.text for title in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def test_error_types_are_counted_and_explained(shown):
    page = shown(whole())
    assert "Edit 12 9 3" in page.text  # the table leaves empty what is not there
    assert "Portability · reasoning 5 1 4" in page.text
    assert "Edit, unchanged: 3 of 12 (25.0 %)" in page.text
    for kind in findings.ERRORS.values():
        assert f"{kind.name} {kind.meaning}" in page.text
    assert "Edit, missing" not in page.text  # nothing is drawn of nothing


def test_error_types_of_a_run_as_they_are_judged(shown):
    said = lambda text: probe("edit", None, before={"said": "Paris", "text": "Paris"},
                              after={"said": text, "text": text})  # fmt: skip
    texts = ("Rome", "Rome. It is", "Paris", "", "a town")
    some = [record(i, f"c{i}", {}, probes=[said(text)]) for i, text in enumerate(texts)]
    page = shown({"errors": errors.count(errors.judge(some))})
    for kind, n in (("right", 2), ("unchanged", 1), ("meaningless", 1), ("irrelevant", 1)):
        assert f"Edit, {kind}: {n} of 5" in page.text


def test_what_can_be_in_an_analysis_has_words():
    assert set(findings.ERRORS) == set(errors.TYPES)
    assert set(findings.WHEN) == set(hits.WHEN)
    assert set(findings.TOKENS) == set(hits.TOKENS)
    assert set(findings.THROUGH) == set(get_args(hits.Through))


def test_growth_is_drawn_from_before_the_first_edit(folder):
    pictures = drawn(folder, {"growth": whole()["growth"]})
    assert list(pictures) == ["growth-relative-mlp/down", "growth-weight-mlp/down"]
    assert told(pictures["growth-relative-mlp/down"]) == [
        "layer 4, 0: 0.000", "layer 4, 1: 0.250", "layer 4, 2: 0.500",
        "layer 5, 0: 0.000", "layer 5, 1: 0.250", "layer 5, 2: 0.750",
    ]  # fmt: skip
    assert told(pictures["growth-weight-mlp/down"])[0] == "layer 4, 0: 1.000"


def test_few_layers_of_several_matrices_are_one_picture(folder):
    one = {"layers": [None], "relative": [[0.5]]}
    pictures = drawn(folder, {"growth": {"mlp/down": {"layers": [1], "relative": [[0.25]]},
                                         "head": one}})  # fmt: skip
    assert list(pictures) == ["growth-relative"]
    assert told(pictures["growth-relative"])[1::2] == ["mlp/down, layer 1, 1: 0.250",
                                                       "head, all of it, 1: 0.500"]  # fmt: skip


def test_of_many_layers_those_that_move_most_are_drawn(folder):
    steps = [[i * n / 1000 for n in range(1, 1001)] for i in range(10)]
    many = {"layers": list(range(10)), "relative": steps}
    (svg,) = drawn(folder, {"growth": {"attn/q": many}}).values()
    assert "attn/q, 6 of 10 layers" in svg
    points = told(svg)
    assert {p.split(",")[0] for p in points} == {f"layer {i}" for i in range(4, 10)}
    assert len(points) == 6 * findings.POINTS  # not a thousand each
    assert points[-1] == "layer 9, 1,000: 9.000"


def test_hits_before_and_after(shown, folder):
    page = shown(whole())
    assert "new answer, before the edit 0.0 [0.0, 0.0] 0.0 [0.0, 0.0] 50.0 [25.0, 50.0]" in (
        page.text
    )
    assert "new answer, after the edit 25.0 [12.5, 25.0] 50.0 [25.0, 50.0] 100.0" in page.text
    assert "100.0 [50.0, 100.0] 7 [20, 1,234]" in page.text  # the best rank, at the end
    assert "former answer, before the edit 75.0" in page.text
    assert "former answer, what it adds" not in page.text
    assert "Of the 5 rows that an edit changes most" in page.text
    assert "through the unembedding alone" in page.text
    pictures = drawn(folder, {"hits": whole()["hits"]})
    assert list(pictures) == ["hits-target", "hits-former"]
    assert "after the edit, 10: 50.0 [25.0, 50.0]" in told(pictures["hits-target"])


def test_overlap_says_what_it_is_and_where_there_is_none(shown):
    page = shown(whole())
    assert "one subject (no two share one)" in page.text
    assert "one relation 0.500 0.600 0.200 3" in page.text
    assert "the Jaccard index of the 12 inputs of mlp/down that each changes most" in page.text
    assert "8 edits are compared" in page.text


def test_the_numbers_of_a_change(shown, folder):
    page = shown(whole())
    assert "matrix ‖ΔW‖ ‖ΔW‖ / ‖W‖ rank inputs for 90 % mlp/down, layer 5 2.5 0.125 1 6.2 %" in (
        page.text
    )
    assert "the same of the rows of the matrix" in page.text
    assert "effective rank" not in page.text  # it was not measured
    # one number is no picture, two are
    assert list(drawn(folder, {"weights": whole()["weights"]})) == ["weights-map-mlp/down-5"]


def test_many_layers_do_not_fill_the_page_with_numbers(shown):
    n = run.FEW + 1
    page = shown({"weights": {"attn/q": {"layers": list(range(n)), "norm": [1.0] * n}}})
    assert "The numbers matrix ‖ΔW‖ attn/q, layer 0 1" in page.text


@pytest.mark.parametrize("key", ["errors", "weights", "growth", "hits", "overlap"])
@pytest.mark.parametrize("value", [None, {}, [], 3, {"edit": None}, {"mlp/down": {"layers": 5}}])
def test_what_is_missing_or_of_another_form_is_left_out(shown, key, value):
    page = shown({key: value})
    assert len(page.data["cases"]) == 6
    for heading in HEADINGS:
        # an unknown kind of overlap is one that nothing is known about
        assert heading not in page.text or (key == "overlap" and value)


def test_parts_of_the_parts_may_be_missing(shown):
    page = shown({
        "errors": {"edit": {"right": 2}, "rephrase": {}},
        "weights": {"a": {"layers": [0, 1], "norm": [0.5]}},
        "growth": {"a": {"layers": [0, 1], "relative": [[None, 0.5], None]}},
        "hits": {"target": {"after": {"hit@5": interval(1, 1, 1)}, "before": None}},
        "overlap": {"relation": {"rsim": 0.25}},
    })  # fmt: skip
    for words in (
        "Edit 2 2",
        "a, layer 0 0.5 a, layer 1",
        "layer 0, 2: 0.500",
        "new answer, after the edit 100.0 [100.0, 100.0]",
        "one relation 0.250",
    ):
        assert words in page.text


def test_names_in_an_analysis_are_text(shown):
    analysis = whole()
    for key in ("errors", "weights", "growth"):
        analysis[key] = {NASTY: next(iter(analysis[key].values()))}
    analysis["hits"]["path"] = analysis["overlap"]["path"] = NASTY
    analysis["overlap"][NASTY] = None
    page = shown(analysis)
    assert page.scripts == [html.resource("cases.js")]
    assert "xss" not in page.tags
    assert all(heading in page.text for heading in HEADINGS)


def test_all_of_it_as_png(folder, finished, monkeypatch, capsys):
    at = folder("a")(four(), finished(edit_success__token=0.5), analysis=whole())
    monkeypatch.setattr(png, "renderer", lambda: str.encode)
    main([str(at), "--png"])
    names = {file.name for file in at.glob("*.png")}
    assert names == {f"report-{name}.png" for name in (
        "metrics", "errors", "weights-map-mlp-down-5", "growth-relative-mlp-down",
        "growth-weight-mlp-down", "hits-target", "hits-former",
    )}  # fmt: skip
    assert 'class="on"' in (at / "report-errors.png").read_text()
