"""Bars and curves: where things are drawn, and that they are there to be read."""

from xml.etree import ElementTree

import pytest

from jaxedit.evaluate.metrics import Interval
from jaxedit.report import charts, plots
from jaxedit.report.charts import Line

SVG = "{http://www.w3.org/2000/svg}"


def at(mean, low, high):
    return Interval(mean, low, high, 9)


def words(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def test_a_bar_is_as_long_as_its_mean():
    values = [[at(1.0, 0.9, 1.0), at(0.5, 0.25, 0.75)], [at(0.25, 0, 0.5), None]]
    text = charts.bars(["<one>", "two"], ["A", "B"], values, title="a & b")
    root = ElementTree.fromstring(text)
    long = {
        title.text: float(rect.get("width"))
        for rect in root.iter(f"{SVG}rect")
        for title in rect.iter(f"{SVG}title")
    }
    whole = long["<one>, A: 100.0 [90.0, 100.0] %"]
    assert long["two, A: 50.0 [25.0, 75.0] %"] == pytest.approx(whole / 2, abs=0.1)
    assert long["<one>, B: 25.0 [0.0, 50.0] %"] == pytest.approx(whole / 4, abs=0.1)
    assert {"a & b", "not measured", "100.0", "<one>", "A", "B"} <= set(words(root))


def test_bars_below_zero_go_to_the_left():
    root = ElementTree.fromstring(
        charts.bars(["x", "y"], [""], [[at(-0.5, -0.6, -0.4), at(0.5, 0.4, 0.6)]], title="")
    )
    minus, plus = [r for r in root.iter(f"{SVG}rect") if r.get("x")]
    (x, width), (to_x, to_width) = [
        (float(r.get("x")), float(r.get("width"))) for r in (minus, plus)
    ]
    assert (x + width, width) == pytest.approx((to_x, to_width), abs=0.2)


def test_curves_are_within_their_picture_and_named():
    lines = [Line("rome", [1, 10, 100], [at(1, 1, 1), at(0.5, 0.4, 0.6), at(0, 0, 0.1)]),
             Line("memit", [1, 100], [at(0.75, 0.5, 1), at(0.75, 0.5, 1)])]  # fmt: skip
    root = ElementTree.fromstring(charts.curves(lines, title="t", shares=True))
    dots = [
        (float(c.get("cx")), float(c.get("cy")), c.find(f"{SVG}title").text)
        for c in root.iter(f"{SVG}circle")
    ]
    assert [told for *_, told in dots][:2] == ["rome, 1: 100.0 [100.0, 100.0]",
                                               "rome, 10: 50.0 [40.0, 60.0]"]  # fmt: skip
    (x1, y1, _), (x10, y10, _), (x100, y100, _) = dots[:3]
    assert x10 - x1 == pytest.approx(x100 - x10, abs=0.2)  # a factor of ten is a step
    assert y10 - y1 == pytest.approx(y100 - y10, abs=0.2)
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(0 <= x <= width and 0 <= y <= height for x, y, _ in dots)
    assert {"rome", "memit", "1", "10", "100", "50", "edits"} <= set(words(root))


@pytest.mark.parametrize("x", [[5], [0, 1], [3, 3]])
def test_curves_of_few_points_are_drawn(x):
    ElementTree.fromstring(charts.curves([Line("a", x, [at(2, 2, 2)] * len(x))], title=""))


def test_how_many_cases_there_are_does_not_set_the_scale():
    line = Line("fluency", [1, 10], [Interval(4.0, 3.9, 4.1, 900), Interval(4.5, 4.4, 4.6, 900)])
    root = ElementTree.fromstring(charts.curves([line], title=""))
    first, last = [float(c.get("cy")) for c in root.iter(f"{SVG}circle")]
    assert first - last > 80  # of 170 pixels


def test_one_case_has_no_interval():
    text = charts.curves([Line("a", [1], [Interval(0.5, 0.5, 0.5, 1)])], title="", shares=True)
    assert "<title>a, 1: 50.0</title>" in text


def test_parts_are_as_wide_as_their_counts():
    kinds = [charts.Kind("good", "as it should be", 2), charts.Kind("bad", "<not>", 1)]
    text = charts.stacks(["a", "b", "none"], kinds, [[30, 10], [0, 1000], [0, 0]], title="t")
    root = ElementTree.fromstring(text)
    parts = {
        title.text: (float(rect.get("x")), float(rect.get("width")), rect.get("fill"))
        for rect in root.iter(f"{SVG}rect")
        for title in rect.iter(f"{SVG}title")
    }
    assert parts == {
        "a, good: 30 of 40 (75.0 %)": (0, charts.WIDTH * 0.75 - 1, plots.LIGHT[2]),
        "a, bad: 10 of 40 (25.0 %)": (charts.WIDTH * 0.75, charts.WIDTH * 0.25 - 1, plots.LIGHT[1]),
        "b, bad: 1,000 of 1,000 (100.0 %)": (0, charts.WIDTH - 1, plots.LIGHT[1]),
    }
    # every number, in its part and as the sum of its bar; and what the colours mean
    assert words(root) == ["t", "a", "40", "30", "10", "b", "1,000", "1,000", "none", "0",
                           "good", "as it should be", "bad", "<not>"]  # fmt: skip


def test_a_number_stands_only_where_it_fits():
    kinds = [charts.Kind("x", "", 0), charts.Kind("y", "", 1)]
    root = ElementTree.fromstring(charts.stacks(["a"], kinds, [[990, 10]], title=""))
    assert "990" in words(root)
    assert "10" not in words(root)


def test_ticks_are_round():
    assert charts.ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.ticks(3.1, 5.05) == [3.5, 4, 4.5, 5]
    assert charts.ticks(2, 2) == [2]


def test_every_x_is_named_where_there_is_room():
    line = Line("a", [100, 101, 500, 501, 1000], [at(0.5, 0.5, 0.5)] * 5)
    root = ElementTree.fromstring(charts.curves([line], title="", shares=True))
    assert {"101", "501", "1,000"} <= set(words(root))
    assert "500" not in words(root)


def test_of_many_places_the_round_ones_are_named():
    line = Line("a", range(1001), [at(0.5, 0.5, 0.5)] * 1001)
    root = ElementTree.fromstring(charts.curves([line], title="", factors=False))
    named = {t.text: float(t.get("x")) for t in root.iter(f"{SVG}text")}
    assert {"0", "250", "500", "750", "1,000"} <= set(named)
    assert named["500"] == pytest.approx((named["250"] + named["750"]) / 2, abs=1)
    # the last one does not reach over the edge
    assert named["1,000"] + 7 * len("1,000") / 2 <= charts.WIDTH


def test_pictures_have_colours_for_light_and_dark():
    text = charts.bars(["x"], [""], [[at(0.5, 0.4, 0.6)]], title="")
    assert f'fill="{plots.LIGHT[0]}"' in text  # also where no style is known
    dark = text[text.index("prefers-color-scheme: dark") :]
    assert f".f0 {{ fill: {plots.DARK[0]} }}" in dark
