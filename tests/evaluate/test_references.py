"""Texts that generated ones should be like."""

import json

import numpy as np
import pytest

from jaxedit.data.cases import EditCase, EditRequest
from jaxedit.data.world import cases, make
from jaxedit.evaluate.references import of_sources

WORLD = make("tiny")


def test_a_world_tells_of_others_that_have_the_new_object():
    find = of_sources(("world:tiny:0:20", "counterfact:a.json"))
    found = [(case, find(case)) for case in cases(WORLD, 20)]
    assert any(refs for _, refs in found)
    for case, refs in found:
        relation, request = case.info["relation"], case.request
        have = [s for (s, r), told in WORLD.facts.items()
                if r == relation and request.target in told]  # fmt: skip
        others = [s for s in have if s != request.subject]
        assert len(refs.texts if refs else ()) == len(others)
        for text, other in zip(refs.texts if refs else (), others, strict=True):
            assert other in text
            assert request.target in text


def test_the_published_snippets_by_relation_and_object(tmp_path):
    rows = [
        {"relation_id": "P103", "target_id": "Q1860", "samples": [{"text": "She speaks English."}]},
        {"relation_id": "P103", "target_id": "Q150", "samples": [{"text": "He speaks French."}]},
    ]
    (tmp_path / "attribute_snippets.json").write_text(json.dumps(rows))
    request = EditRequest("{} speaks", "Ada", "English")
    case = EditCase("1", (request,), info={"relation": "P103", "target_id": "Q1860"})
    refs = of_sources(("counterfact:a.json",), str(tmp_path))(case)
    assert refs.texts == ("She speaks English.",)
    own = refs.tfidf.idf
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps({"speaks": 0, "english": 1}))
    np.save(tmp_path / "idf.npy", np.array([1.0, 2.0]))
    refs = of_sources((), str(tmp_path))(case)
    assert refs.tfidf.idf == {"speaks": 1.0, "english": 2.0} != own
    assert of_sources((), str(tmp_path))(EditCase("2", (request,))) is None
    with pytest.raises(FileNotFoundError, match=r"no attribute_snippets.json there"):
        of_sources((), str(tmp_path / "elsewhere"))


def test_without_any_there_is_no_consistency():
    assert of_sources(("counterfact:a.json",))(next(cases(WORLD, 1))) is None
