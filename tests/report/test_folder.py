"""A run's folder read back: only what is of the run whose records stand there."""

import pytest
from run_folders import record

from jaxedit.report import folder as reader


@pytest.mark.parametrize("mine", [True, False])
def test_a_summary_of_another_run_is_not_this_ones(folder, finished, mine):
    cases = [record(i, f"c{i}", {"edit": True}, {"edit_success/exact": 1.0}) for i in range(2)]
    run = "abc" if mine else "old"
    summary = finished(edit_success__exact=0.25) | {"run": run}
    at = folder("half")(cases, summary, analysis={"run": run, "edits": 3})
    found = reader.read(at)
    assert found.finished == mine
    assert found.summary["metrics"]["edit_success/exact"]["mean"] == (0.25 if mine else 1.0)
    assert found.summary["cases"] == (4 if mine else 2)
    assert found.analysis.get("edits") == (3 if mine else None)
