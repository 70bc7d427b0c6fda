"""The pictures of an evaluation run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxedit.evaluate.metrics import Interval
from jaxedit.report import charts, findings, names, plots
from jaxedit.report.charts import Line
from jaxedit.report.folder import Run, interval, mapping, number

BINS = 40  # columns of the forgetting matrix that a page has room for


def measured(run: Run) -> dict[str, Interval]:
    found = mapping(run.summary.get("metrics"))
    return {str(name): v for name, m in found.items() if (v := interval(m)) is not None}


def figures(run: Run) -> dict[str, str]:
    """Every picture of the page as SVG, by the name of its file."""
    found = measured(run)
    drawn: dict[str, str] = {}
    if shown := [n for n in names.headlines(found) if names.is_share(n)]:
        labels = [names.full(n) for n in shown]
        drawn["metrics"] = charts.bars(labels, [""], [[found[n] for n in shown]], title="Metrics")
    drawn |= curves(run)
    if picture := forgetting(run):
        drawn["forgetting"] = picture
    return drawn | findings.figures(run)


def curves(run: Run) -> dict[str, str]:
    """The few metrics that tell most in one picture, and the rest group by group."""
    lines = {name: line for name, points in mapping(run.summary.get("curves")).items()
             if (line := curve(name, points))}  # fmt: skip
    drawn: dict[str, str] = {}
    top = [n for n in names.headlines(lines) if names.is_share(n)]
    if len(top) > 1:
        chosen = [lines[n]._replace(name=names.full(n)) for n in top]
        drawn["curves"] = charts.curves(chosen, title="Main metrics", shares=True)
    for key, inside in families(names.ordered(lines)).items():
        nested = any(n.count("/") > 1 for n in inside)
        for part in range(0, len(inside), len(charts.DASHES)):
            some = inside[part : part + len(charts.DASHES)]
            chosen = [
                lines[n]._replace(name=names.kind_of(n)) if nested else lines[n] for n in some
            ]
            title = names.full(some[0]) if len(some) == 1 else " · ".join(key)
            file = "-".join(["curves", *key, *([str(part)] if part else [])])
            drawn[file.lower().replace(" ", "-")] = charts.curves(
                chosen, title=title, shares=names.is_share(some[0])
            )
    return drawn


def families(metrics: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """What belongs into one picture: a metric over all kinds of probes, or the metrics of a group
    that has but one kind.
    """
    nested = {names.group(n) for n in metrics if n.count("/") > 1}
    found: dict[tuple[str, ...], list[str]] = {}
    for name in metrics:
        group = names.group(name)
        key = [names.title(group)]
        if group in nested:
            key.append(names.last(name))
        elif "/" in name and (not names.is_share(name) or names.last(name) == "magnitude"):
            key.append(names.last(name))  # on a scale of its own
        found.setdefault(tuple(key), []).append(name)
    return found


def curve(name: str, points: Any) -> Line | None:
    found = sorted(
        (edits, value)
        for point in (points if isinstance(points, Sequence) else ())
        if (edits := number(mapping(point).get("edits"))) is not None
        and (value := interval(point)) is not None
    )
    if not found:
        return None
    return Line(names.label(name), [x for x, _ in found], [y for _, y in found])


def forgetting(run: Run) -> str:
    """Edit success of every case after every checkpoint, many cases put together in order."""
    found = mapping(run.summary.get("forgetting"))
    rows = [
        [np.nan if (v := number(x)) is None else v for x in row]
        for row in found.get("edit_success") or ()
    ]
    edits, places = found.get("edits") or (), found.get("cases") or ()
    at = [int(place) + 1 for place in places]
    if not rows or not places or {len(row) for row in rows} != {len(places)}:
        return ""
    parts = np.array_split(np.arange(len(places)), min(BINS, len(places)))
    grid = np.array(rows)
    known = np.isfinite(grid)
    total = lambda a: np.stack([a[:, p].sum(1) for p in parts], 1)
    count = total(known)
    values = np.where(count, total(np.where(known, grid, 0)) / np.maximum(count, 1), np.nan)
    name = lambda p: f"{at[p[0]]}" if len(p) == 1 else f"{at[p[0]]}\N{EN DASH}{at[p[-1]]}"
    labels = [f"after {int(n):,}" for n in edits] or [f"{j + 1}" for j in range(len(rows))]
    metric = names.full(str(found.get("metric") or "edit_success"))
    title = f"{metric} of every case, as edits accumulate"
    # the first checkpoint on top, as one reads
    return plots.heatmap(100 * values[::-1], [name(p) for p in parts], labels[::-1], title=title,
                         top=100.0, unit="%", cell=30 if len(parts) <= 20 else 20)  # fmt: skip
