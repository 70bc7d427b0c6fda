"""Fixtures that write folders of evaluation runs."""

import pytest
from run_folders import Folder, interval


@pytest.fixture
def folder(tmp_path):
    """folder("name") is a writer of the run tmp_path/name."""
    return lambda name: Folder(tmp_path / name)


@pytest.fixture
def finished():
    """The summary of a run of this method with these means."""

    def make(method="rome", cases=4, curves=None, forgetting=None, **means):
        named = {name.replace("__", "/"): mean for name, mean in means.items()}
        summary = {
            "run": "abc", "name": "", "method": method, "model": "tiny", "data": "world",
            "protocol": "paper", "how": "independent", "cases": cases, "failed": 0,
            "skipped": {"rows": 0, "probes": 0, "reasons": []},
            "metrics": {n: interval(m, m - 0.125, m + 0.0625, cases) for n, m in named.items()},
        }  # fmt: skip
        more = {"curves": curves, "forgetting": forgetting}
        return summary | {k: v for k, v in more.items() if v is not None}

    return make
