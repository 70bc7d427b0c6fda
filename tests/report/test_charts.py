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


def test_ticks_are_round():
    assert charts.ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.ticks(3.1, 5.05) == [3.5, 4, 4.5, 5]
    assert charts.ticks(2, 2) == [2]


def test_every_x_is_named_where_there_is_room():
    line = Line("a", [100, 101, 500, 501, 1000], [at(0.5, 0.5, 0.5)] * 5)
    root = ElementTree.fromstring(charts.curves([line], title="", shares=True))
    assert {"101", "501", "1,000"} <= set(words(root))
    assert "500" not in words(root)


def test_pictures_have_colours_for_light_and_dark():
    text = charts.bars(["x"], [""], [[at(0.5, 0.4, 0.6)]], title="")
    assert f'fill="{plots.LIGHT[0]}"' in text  # also where no style is known
    dark = text[text.index("prefers-color-scheme: dark") :]
    assert f".f0 {{ fill: {plots.DARK[0]} }}" in dark
