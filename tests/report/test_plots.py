"""Pictures and pages: well-formed, and what was given stands in them."""

import importlib.util
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from jaxedit.report import bounds, html, plots, png


def test_a_heatmap_has_a_cell_for_every_value():
    values = np.array([[0.0, 0.25, 0.5], [1.0, 0.75, 0.1]])
    text = plots.heatmap(values, ["a", "<b>", "c"], ["layer 0", "layer 1"], title="x & y")
    root = ElementTree.fromstring(text)  # well-formed, so "<b>" and "&" were escaped
    space = "{http://www.w3.org/2000/svg}"
    told = [t.text for t in root.iter(f"{space}title")]
    assert len(told) == 6
    assert "<b>, layer 1: 0.750" in told
    cells = {
        title.text: rect.get("fill")
        for rect in root.iter(f"{space}rect")
        for title in rect.iter(f"{space}title")
    }
    assert cells["a, layer 1: 1.000"] == plots.colour(1)
    assert cells["a, layer 0: 0.000"] == plots.colour(0)
    words = [t.text for t in root.iter(f"{space}text")]
    assert {"x & y", "layer 0", "c"} <= set(words)
    wide = plots.heatmap(values, ["a", "b", "c"], ["x", "y"], title="a title " * 9)
    assert float(ElementTree.fromstring(wide).get("width")) > 8 * 72  # letters are 8 to 9 wide
    # everything is inside the picture
    width, height = float(root.get("width")), float(root.get("height"))
    for rect in root.iter(f"{space}rect"):
        if rect.get("x"):
            assert float(rect.get("x")) + float(rect.get("width")) <= width
            assert float(rect.get("y")) + float(rect.get("height")) <= height


def test_a_heatmap_of_zeros_is_drawn():
    ElementTree.fromstring(plots.heatmap(np.zeros((2, 2)), "ab", "cd", title=""))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.data = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def test_a_page_is_whole_and_escapes_what_it_is_given():
    rows = [("<i>", "yes"), ("b", "no")]
    text = html.page(
        "a < b", [html.paragraph("1 & 2"), html.table(("x", "y"), rows, [True, False])]
    )
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert {"a < b", "1 & 2", "<i>"} <= set(tags.data)
    assert 'class="good">yes' in text
    assert 'class="bad">no' in text
    assert "http" not in text  # it needs no other file


def test_without_a_font_a_picture_is_an_svg(tmp_path, monkeypatch):
    drawn = plots.heatmap(np.ones((1, 2)), ["a", "b"], ["c"], title="x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(png, "renderer", lambda: lambda svg: b"blank, whatever is written")
    assert bounds.save(drawn, tmp_path, "picture") == [tmp_path / "picture.svg"]
    monkeypatch.setattr(png, "renderer", lambda: lambda svg: svg.encode())
    assert bounds.save(drawn, tmp_path, "picture")[1] == tmp_path / "picture.png"
