"""Readers of facts, on rows of ours in the published forms."""

import json

import pytest
from sample_rows import changed, write

from jaxedit.data.cases import Fact
from jaxedit.data.read import read


def test_known_facts_take_the_prompt_and_not_the_template(tmp_path):
    row = {
        "known_id": 0,
        "subject": "Mount Ilm",
        "attribute": "Tarn",
        "template": "{} lies in",
        "prompt": "Mount Ilm lies in the land of",
        "relation_id": "P30",
    }
    found = read("known_1000", write(tmp_path, [row, changed(row, known_id=1, attribute="")]))
    assert found.items == (Fact("0", "{} lies in the land of", "Mount Ilm", ("Tarn",), "P30"),)
    assert [s.reason for s in found.skipped] == [
        "the fact 'Mount Ilm lies in the land of' has an empty answer"
    ]


GRAPHS = [
    {"pattern": "[Y] is the home of [X]."},
    {"pattern": "[X] is a [Y] native."},
    {"pattern": "[X] was born in [Y] ."},
    {"pattern": "The home of [X] is [Y]."},
    {"pattern": "[X] is a [Y] citizen."},
]
VOCABULARY = [
    {"sub_label": "Ula Brenn", "obj_label": "Tarn", "uuid": "u1"},
    {"sub_label": "Odo Falk", "obj_label": "Uld", "uuid": "u2"},
    {"sub_label": " ", "obj_label": "Uld", "uuid": "u3"},
]


def test_pararel(tmp_path):
    data = {
        "P19": {"graphs": GRAPHS, "vocab": VOCABULARY},
        "P20": {"graphs": GRAPHS[:1], "vocab": VOCABULARY[:1]},
    }
    found = read("pararel", write(tmp_path, data))
    assert [fact.id for fact in found] == ["u1", "u2"]
    fact = found[0]
    assert (fact.prompt, fact.text) == ("{} was born in", "Ula Brenn was born in")
    assert (fact.answers, fact.relation) == (("Tarn",), "P19")
    assert fact.paraphrases == ("The home of {} is", "{} is a")  # alike up to [Y]: one of them
    assert fact.patterns == tuple(graph["pattern"] for graph in GRAPHS)
    assert [(s.row, s.reason) for s in found.skipped] == [
        ("P19[2]", "empty sub_label"),
        ("P20[0]", "P20 has no pattern with [X] before [Y]"),
    ]


def test_pararel_as_published_in_two_folders(tmp_path):
    for folder, rows in (("graphs_json", GRAPHS), ("trex_lms_vocab", VOCABULARY)):
        (tmp_path / folder).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / folder / "P19.jsonl").write_text(text)
    found = read("pararel", tmp_path)
    assert [fact.subject for fact in found] == ["Ula Brenn", "Odo Falk"]
    assert found[0].relation == "P19"


def test_pararel_that_is_something_else(tmp_path):
    with pytest.raises(ValueError, match="K_F is not a relation with its graphs and vocab"):
        read("pararel", write(tmp_path, {"K_F": []}))
