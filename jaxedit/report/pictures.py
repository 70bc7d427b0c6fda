"""The pictures of an evaluation run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxedit.evaluate.metrics import Interval
from jaxedit.report import charts, findings, names, plots
from jaxedit.report.charts import Line
from jaxedit.report.folder import Record, Run, interval, items, mapping, number

BINS = 40  # columns of the forgetting matrix that a page has room for


def measured(run: Run) -> dict[str, Interval]:
    return intervals(run.summary)


def intervals(summary: Record) -> dict[str, Interval]:
    found = mapping(summary.get("metrics"))
    return {str(name): v for name, m in found.items() if (v := interval(m)) is not None}


def figures(run: Run) -> dict[str, str]:
    """Every picture of the page as SVG, by the name of its file."""
    found = measured(run)
    drawn: dict[str, str] = {}
    if shown := [n for n in names.headlines(found) if names.is_share(n)]:
        labels = [names.full(n) for n in shown]
        drawn["metrics"] = charts.bars(labels, [""], [[found[n] for n in shown]], title="Metrics")
    drawn |= curves(run) | drift(run)
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


def drift(run: Run) -> dict[str, str]:
    """What the model still can after so many edits, beside what it can unedited."""
    found = [(n, x) for x in map(mapping, items(run.summary.get("drift")))
             if (n := number(x.get("edits"))) is not None]  # fmt: skip
    drawn = {}
    for name in dict.fromkeys(name for _, x in found for name in mapping(x.get("exams"))):
        exam = [(n, mapping(mapping(x.get("exams")).get(name))) for n, x in found]
        lines = [over(exam, "after", "acc", "edited"), over(exam, "before", "acc", "unedited")]
        if lines[0].x:
            some = [line for line in lines if line.x]
            drawn[f"drift-{name}"] = charts.curves(some, title=f"{name} · acc", shares=True)
    # as a difference, in which it does not matter that some texts are harder than others
    more = over([(n, mapping(x.get("text"))) for n, x in found], "change", "nll", "edited")
    if more.x:
        same = more._replace(name="unedited", y=[Interval(0.0, 0.0, 0.0, 1)] * len(more.x))
        title = "Other text, more nats per token"
        drawn["drift-text"] = charts.curves([more, same], title=title)
    return drawn


def over(found: Sequence[tuple[float, Mapping[str, Any]]], what: str, measure: str,
         name: str) -> Line:  # fmt: skip
    values = [(n, interval(mapping(one.get(what)).get(measure))) for n, one in found]
    points = sorted((n, v) for n, v in values if v is not None)
    return Line(name, [n for n, _ in points], [v for _, v in points])


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
