"""The numbers of many cases as one table: means over cases, each with its interval.

    summary = summarise(scores)                  {"edit_success/token": Interval(0.98, …), …}
    print(table(summary))
    survey_csv([("knowedit/zsre", "rome", summary)])

A mean is over the cases that have the metric, each case alike.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxedit.evaluate.metrics import (
    Interval,
    column_means,
    harmonic_mean,
    interval,
    resampled_means,
)

Summary = Mapping[str, Interval]
ORDER = (
    "edit_success", "generalization", "portability", "locality", "counterfact", "mquake", "ripple",
    "convsent", "sanitation", "fluency", "consistency",
)  # fmt: skip
SCORE = "counterfact/score"
SCORED = (
    "edit_success/probability",
    "generalization/probability",
    "locality/neighborhood/probability",
)
# The columns of KnowEdit's tables, each from the first of the metrics that there is.
HEADLINE = {
    "Edit Succ.": ("convsent/expression", "sanitation/forget", "edit_success/token"),
    "Portability": ("portability/token",),
    "Locality": ("convsent/drift", "locality/agreement"),
    "Fluency": ("fluency",),
}
# Their rows: the names of readers, and those of the survey in its order.
DATASETS = {
    "knowedit/wiki_recent": "WikiData_recent",
    "knowedit/zsre": "ZsRE",
    "knowedit/wikibio": "WikiBio",
    "knowedit/wiki_counterfact": "WikiData_counterfact",
    "knowedit/convsent": "ConvSent",
    "knowedit/sanitation": "Sanitation",
}
NOT_SHARES = ("fluency", "perplexity", "drift", "kl")  # by the first or the last part of a name


def summarise(
    scores: Sequence[Mapping[str, float]], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """The mean of every metric with a 95% bootstrap interval over cases, in the order of reports.

    With CounterFact's three successes there is also its score, the harmonic mean of their means;
    its interval resamples whole cases, as the three go together.
    """
    names = sorted({name for case in scores for name in case}, key=place)
    if not names:
        return {}
    values_NM = np.array([[case.get(name, math.nan) for name in names] for case in scores])
    for i, case in enumerate(scores):
        for name, value in case.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} of case {i} is {value}; leave out what is not known")
    means_M = column_means(values_NM)[0]
    drawn_RM = resampled_means(values_NM, resamples, seed)
    counts_M = (~np.isnan(values_NM)).sum(0)
    found = {
        name: interval(float(means_M[m]), drawn_RM[:, m], int(counts_M[m]))
        for m, name in enumerate(names)
    }
    if all(name in found for name in SCORED):
        three = [names.index(name) for name in SCORED]
        drawn_RM = drawn_RM[:, three]
        drawn_RM = drawn_RM[~np.isnan(drawn_RM).any(1)]
        drawn_R = np.array([harmonic_mean(row) for row in drawn_RM])
        mean, n = harmonic_mean(means_M[three]), int(counts_M[three].min())
        found[SCORE] = interval(mean, drawn_R, n)
    return dict(sorted(found.items(), key=lambda item: place(item[0])))


def place(name: str) -> tuple[int, int, str]:
    """Where a metric stands in a report: by kind, the mean over keys before the keys, by name."""
    kind = next((i for i, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))
    return kind, name.count("/"), name


def is_share(name: str) -> bool:
    """Is it printed in percent."""
    parts = name.split("/")
    return not (parts[0].split("_")[0] in NOT_SHARES or parts[-1] in NOT_SHARES)


def headline(summary: Summary) -> dict[str, Interval]:
    """KnowEdit's columns, of those that there are: of ConvSent and Sanitation their own metrics."""
    found: dict[str, Interval] = {}
    for title, names in HEADLINE.items():
        for name in names:
            if name in summary:
                found.setdefault(title, summary[name])
    return found


def by_source(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of each of the data, where records are of several."""
    by: dict[str, list[Mapping[str, Any]]] = {}
    for r in found:
        by.setdefault(r.get("source", ""), []).append(r)
    if len(by) < 2:
        return {}
    return {"sources": {
        source: {"cases": len(some), "failed": sum(bool(r.get("failed")) for r in some),
                 "metrics": as_json(summarise([r.get("scores") or {} for r in some]))}
        for source, some in by.items()
    }}  # fmt: skip


def over_time(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the metrics go with the number of edits, and the matrix of what was forgotten."""
    by: dict[int, dict[int, Mapping[str, Any]]] = {}
    for r in found:
        by.setdefault(r["at"], {})[r["place"]] = r["scores"]
    curves: dict[str, list[dict[str, Any]]] = {}
    for edits, scores in by.items():
        for metric, level in summarise(list(scores.values())).items():
            curves.setdefault(metric, []).append({"edits": edits, **level._asdict()})
    columns = sorted({place for scores in by.values() for place in scores})
    name = next(iter(n for n in ("edit_success/exact", "edit_success/token") if n in curves), "")
    matrix = [[by[j].get(i, {}).get(name) for i in columns] for j in by]
    return {"curves": curves, "forgetting": {
        "metric": name, "edits": list(by), "cases": columns, "edit_success": matrix}}  # fmt: skip


def table(summary: Summary) -> str:
    """For a terminal: name, mean and 95% interval (shares, not differences, in percent), cases."""
    rows = [("metric", "mean", "95% interval", "cases")]
    for name, found in summary.items():
        percent = is_share(name) and not name.endswith("/magnitude")
        scale, unit, digits = (100, " %", 1) if percent else (1, "", 3)
        mean, low, high = (f"{scale * x:.{digits}f}" for x in found[:3])
        rows.append((name, mean + unit, f"{low} to {high}", f"{found.n:,}"))
    wide = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    sides = "<>>>"
    return "\n".join(
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, wide, strict=True)) for row in rows
    )


def survey_csv(runs: Iterable[tuple[str, str, Summary]]) -> str:
    """Of (data, method, summary): the layout of table 4 of A Comprehensive Study of Knowledge
    Editing, a row for each metric of each dataset and a column for each method, times 100.

    KnowEdit's datasets come in the survey's order, others after them; a metric that no method has
    got no row, and an empty cell is one that a method has not.
    """
    cells: dict[tuple[str, str], dict[str, float]] = {}
    datasets: dict[str, None] = {}
    methods: dict[str, None] = {}
    for data, method, summary in runs:
        datasets[data] = methods[method] = None
        for title, found in headline(summary).items():
            row = cells.setdefault((data, title), {})
            if method in row:
                raise ValueError(f"two runs of {method} on {data}; give them different names")
            row[method] = found.mean
    order = [
        *(data for data in DATASETS if data in datasets),
        *(d for d in datasets if d not in DATASETS),
    ]
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(["DataSet", "Metric", *methods])
    for data in order:
        for title in HEADLINE:
            if (data, title) in cells:
                means = cells[data, title]
                values = [f"{100 * means[m]:.2f}" if m in means else "" for m in methods]
                write([DATASETS.get(data, data), title, *values])
    return out.getvalue()


def datasets(found: Mapping[str, Any], data: Sequence[str]) -> list[tuple[str, Summary]]:
    """What a run's summary says of all its data and, where there are several, of each, by name."""
    kind = lambda source: source.partition(":")[0]
    sources = found.get("sources", {})
    often = Counter(map(kind, sources))
    out = {" + ".join(map(kind, data)): found}
    out |= {kind(s) if often[kind(s)] == 1 else s: one for s, one in sources.items()}
    return [(name, from_json(one["metrics"])) for name, one in out.items()]


def as_json(summary: Summary) -> dict[str, dict[str, float]]:
    """Plain numbers, the same for the same scores."""
    return {name: found._asdict() for name, found in summary.items()}


def from_json(record: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    """What `as_json` gave, with the order of reports."""
    return {
        name: Interval(r["mean"], r["low"], r["high"], int(r["n"]))
        for name, r in sorted(record.items(), key=lambda item: place(item[0]))
    }
