"""What is to be edited or evaluated, by a short name."""

import json

import pytest

from jaxedit.data.asked import edit_cases, requests


def test_a_world_by_size_seed_count_and_kinds():
    cases, skipped = edit_cases("world:tiny:0:6:counterfactual+insertion+erasure")
    assert not skipped
    assert [case.info["kind"] for case in cases] == 2 * ["counterfactual", "insertion", "erasure"]
    assert len({case.request.text for case in cases}) == 6
    plain, _ = edit_cases("world:tiny:0:6", limit=2)
    assert [case.info["kind"] for case in plain] == ["counterfactual"] * 2
    people, _ = edit_cases("world:tiny:0:30:counterfactual:0:birthplace+employer")
    assert {case.info["relation"] for case in people} == {"birthplace", "employer"}
    other, _ = edit_cases("world:tiny:0:80:counterfactual:1")
    first, _ = edit_cases("world:tiny:0:80")
    targets = {case.request.text: case.request.target for case in first}
    again = [targets.get(case.request.text) == case.request.target for case in other]
    assert 0 < sum(again) < len(again) / 2
    assert requests("world:tiny:0:6", 2)[0] == [case.request for case in plain]


def test_a_file_of_requests_gives_cases_of_one_request(tmp_path):
    row = {"prompt": "{} was born in", "subject": "Ada", "target": "Rome", "ground_truth": "Oslo"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, {}, row)))
    cases, skipped = edit_cases(str(tmp_path / "a.jsonl"))
    assert [case.request.ground_truth for case in cases] == [("Oslo",)] * 2
    assert len({case.id for case in cases}) == 2
    (skip,) = skipped
    assert skip.row.endswith("a.jsonl:2")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("world:tiny:0", "write world:SIZE:SEED:COUNT"),
        ("world:tiny:0:5:insertion:x", "write world:SIZE:SEED:COUNT"),
        ("world:tiny:0:5::0:color:x", "write world:SIZE:SEED:COUNT"),
        ("world:tiny:0:5::0:colour", "a relation 'colour': one of "),
        ("world:tiny:0:500::0:color", "500 edits of a world with 16 facts of color"),
        ("world:tiny:0:5:inserted", "a kind of edit 'inserted': one of counterfactual"),
        ("world:huge:0:5", "a world of size 'huge'"),
        ("known_1000:nowhere", "nowhere"),
        ("counterfacts:a.json", "no such file; or world:SIZE"),
    ],
)
def test_a_name_that_names_nothing(source, why):
    with pytest.raises((ValueError, OSError), match=why):
        edit_cases(source)
