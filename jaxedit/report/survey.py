"""Several evaluation runs as the table of the survey (table 4)."""

from collections.abc import Sequence

from jaxedit.evaluate import summary
from jaxedit.report import comparison
from jaxedit.report.folder import Run


def table(runs: Sequence[Run]) -> str:
    """The runs as a table of the survey: a column for each method, or for each run where two of a
    method are on the same data.
    """
    found = [
        (name, run.fact("method"), called, one)
        for run, called in zip(runs, comparison.label(runs), strict=True)
        for name, one in summary.datasets(run.summary, data_of(run))
    ]
    own = all(m for _, m, *_ in found) and len({row[:2] for row in found}) == len(found)
    return summary.survey_csv((name, m if own else c, one) for name, m, c, one in found)


def data_of(run: Run) -> list[str]:
    """The datasets of a run, as it was given them."""
    given = run.config.get("data") or run.fact("data") or run.name
    return [given] if isinstance(given, str) else [str(one) for one in given]
