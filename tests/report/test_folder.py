"""A run's folder read back: only what is of the run whose records stand there."""

import re

import pytest
from run_folders import record

from jaxedit.evaluate.summary import by_source
from jaxedit.report import folder as reader
from jaxedit.report import run


@pytest.mark.parametrize("mine", [True, False])
def test_a_summary_of_another_run_is_not_this_ones(folder, finished, mine):
    cases = [record(i, f"c{i}", {"edit": True}, {"edit_success/exact": 1.0}) for i in range(2)]
    name = "abc" if mine else "old"
    summary = finished(edit_success__exact=0.25) | {"run": name}
    at = folder("half")(cases, summary, analysis={"run": name, "edits": 3})
    found = reader.read(at)
    assert found.finished == mine
    assert found.summary["metrics"]["edit_success/exact"]["mean"] == (0.25 if mine else 1.0)
    assert found.summary["cases"] == (4 if mine else 2)
    assert found.analysis.get("edits") == (3 if mine else None)


@pytest.mark.parametrize("ended", [True, False])
def test_several_data_have_their_own_row(folder, finished, ended):
    cases = [
        record(i, f"c{i}", {"edit": True}, {"edit_success/exact": share}, source=source)
        for i, (share, source) in enumerate([(1.0, "zsre:a"), (0.0, "mquake:b"), (0.5, "zsre:a")])
    ]
    summary = finished(edit_success__exact=0.5) | by_source(cases)
    page = run.write(folder("mixed")(cases, summary if ended else None)).read_text()
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "By data data cases Edit success · exact zsre:a 2 75.0 mquake:b 1 0.0" in words
