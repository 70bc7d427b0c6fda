"""The page of several evaluation runs side by side."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.evaluate.metrics import Interval, bootstrap
from jaxedit.report import cases, charts, folder, html, names, pictures
from jaxedit.report.folder import Record, Run, mapping, scores

SHOWN = 200  # cases that came out differently, for each pair of runs
FEWEST = 6  # cases: five that all go one way do so by chance in one of 16 pairs of runs

Key = tuple[Any, ...]


def write(folders: Sequence[str | Path], out: str | Path = "comparison.html") -> Path:
    """Writes the page that compares the runs of these folders, the later ones with the first."""
    return html.write(Path(out), page(read(folders)))


def read(folders: Sequence[str | Path]) -> list[Run]:
    if len(folders) < 2:
        raise ValueError(f"a comparison takes two runs or more, not {len(folders)}")
    seen: dict[Path, None] = {}
    for path in (Path(f).resolve() for f in folders):
        if path in seen:
            raise ValueError(f"{path} is given twice: a comparison takes different runs")
        seen[path] = None
    return [folder.read(f) for f in folders]


def page(runs: Sequence[Run]) -> str:
    labels = label(runs)
    drawn = figures(runs)
    of = lambda begin: [svg for name, svg in drawn.items() if name.startswith(begin)]
    sections = [
        ("runs", "Runs", [setup(runs, labels)]),
        ("metrics", "Metrics", metrics(runs, labels)),
        ("bars", "Main metrics", [html.figures(of("metrics"))]),
        ("sequence", "As edits accumulate", [html.figures(of("curves"))]),
        ("differences", "Cases that came out differently", differences(runs, labels)),
    ]
    sections = [(id, title, parts) for id, title, parts in sections if any(parts)]
    title = " and ".join(labels) if len(runs) == 2 else f"{len(runs)} runs: {', '.join(labels)}"
    head = html.header("Comparison of runs", title, {t: id for id, t, _ in sections})
    return html.page(
        f"{title} · jaxedit",
        [*warnings(runs, labels), *(html.section(*s) for s in sections)],
        head=head,
    )


def label(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart in the fewest words."""
    choices: list[Callable[[Run], str]] = [
        lambda run: run.fact("method"),
        lambda run: run.name.rpartition(":")[2],
        lambda run: run.name,
        lambda run: run.folder.resolve().name,
    ]
    for choose in choices:
        found = [choose(run) for run in runs]
        if all(found) and len(set(found)) == len(found):
            return found
    return [str(run.folder) for run in runs]


def warnings(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    found = [
        f"{name} has not ended: its numbers are those of {names.count(len(run.cases))} so far."
        for run, name in zip(runs, labels, strict=True)
        if not run.finished
    ]
    edits = [run.edits for run in runs]
    if len(set(edits)) > 1:
        told = [f"{name} {f'{n:,}' if n else 'not in a sequence'}"
                for name, n in zip(labels, edits, strict=True)]  # fmt: skip
        found.append(f"Cases were asked after different numbers of edits: {', '.join(told)}.")
    sets = [set(keyed(run)) for run in runs]
    if any(s != sets[0] for s in sets):
        shared = len(set.intersection(*sets))
        counts = ", ".join(f"{len(s):,}" for s in sets)
        found.append(
            f"The runs are not over the same cases: {shared:,} are shared, of {counts}. Means are "
            "over each run's own cases; differences only over those that two runs share."
        )
    return [html.paragraph(words, "warning") for words in found]


def keyed(run: Run) -> dict[Key, Record]:
    """Cases by what makes them the same in two runs: the id, and what was requested."""
    return {
        (str(c.get("id")), *((r.get("prompt"), r.get("subject"), r.get("target"))
                             for r in c.get("requests") or ())): c
        for c in run.cases
    }  # fmt: skip


def setup(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """What the runs are, and the settings that differ."""
    rows: dict[str, list[str]] = {"folder": [str(run.folder) for run in runs]}
    for key in ("name", "method", "model", "data", "protocol", "how"):
        rows[key] = [run.fact(key) for run in runs]
    rows["cases"] = [f"{run.summary.get('cases', len(run.cases)):,}" for run in runs]
    rows["without an edit"] = [f"{run.summary.get('failed') or 0:,}" for run in runs]
    settings = [flat(run.config) for run in runs]
    for key in dict.fromkeys(k for one in settings for k in one):
        told = [names.in_words(one[key]) if key in one else "" for one in settings]
        if len(set(told)) > 1 and key not in rows:
            rows[key] = told
    body = []
    for key, cells in rows.items():
        if any(cells):
            kind = ' class="same"' if len(set(cells)) == 1 else ""
            inner = "".join(f"<td>{escape(c)}</td>" for c in cells)
            body.append(f'<tr{kind}><th scope="row">{escape(key)}</th>{inner}</tr>')
    return html.scroll("Runs", columns(["", *labels], body))


def flat(config: Mapping[str, Any], begin: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        inside = isinstance(value, Mapping) and value
        found |= flat(value, f"{begin}{key}.") if inside else {f"{begin}{key}": value}
    return found


def columns(heads: Sequence[str], body: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(body)}</tbody></table>"


def metrics(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    found = [pictures.measured(run) for run in runs]
    scored = [keyed(run) for run in runs]
    rows, group = [], ""
    for name in names.ordered(n for one in found for n in one):
        if (now := names.group(name)) != group:
            group = now
            rows.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{len(runs) + 1}">'
                f"{escape(names.title(group))}</th></tr>"
            )
        values = [one.get(name) for one in found]
        top = best(name, values)
        # a lead is clear where no other run might as well be ahead
        rivals = [i for i, v in enumerate(values) if v is not None and i != top]
        clear = top is not None and all(
            (lead := difference(scored[i], scored[top], name)) is not None and differs(lead)
            for i in rivals
        )
        cells = []
        for i, value in enumerate(values):
            tag = "" if i != top else "best" if clear else "ahead"
            gain = difference(scored[0], scored[i], name) if i else None
            cells.append(f"<td>{cell(name, value, tag, gain)}</td>")
        mark = names.lower_is_better(name) and '<span class="lower"> ↓ lower is better</span>'
        words = f'<th scope="row">{escape(names.label(name))}{mark or ""}</th>'
        rows.append(f"<tr>{words}{''.join(cells)}</tr>")
    if not rows:
        return [html.paragraph("No metric was computed.")]
    note = (
        "Means with 95% bootstrap intervals, shares in percent; the best mean of a line is marked. "
        f"Δ: the difference from {labels[0]} over the cases that both runs have, each paired with "
        "itself; bold where its interval leaves out zero. A run is best where its paired "
        "difference from every other one does, and else only ahead."
    )
    table = columns(["metric", *labels], rows)
    return [html.paragraph(note, "note"), html.scroll("Metrics", table)]


def best(name: str, values: Sequence[Interval | None]) -> int | None:
    """Which run is ahead; None where fewer than two have the metric, or two are equally good."""
    sign = -1 if names.lower_is_better(name) else 1
    means = [(sign * v.mean, i) for i, v in enumerate(values) if v is not None]
    if len(means) < 2:
        return None
    top = max(means)
    return top[1] if sum(m == top[0] for m, _ in means) == 1 else None


def cell(name: str, value: Interval | None, tag: str, gain: Interval | None) -> str:
    if value is None:
        return '<span class="note">not measured</span>'
    mean = names.show(name, value.mean)
    mean = f"<strong>{mean}</strong>" if tag else mean
    out = f'{mean} <span class="range">{names.spread(name, value.low, value.high)}</span>'
    if tag:
        out += f' <span class="tag {tag}">{tag}</span>'
    if gain is not None:
        kind = "delta clear" if differs(gain) else "delta"
        sign = "+" if gain.mean >= 0 else ""
        inside = names.spread(name, gain.low, gain.high)
        out += (
            f'<span class="{kind}">Δ {sign}{names.show(name, gain.mean)} {inside}, '
            f"n {gain.n:,}</span>"
        )
    return out


def difference(
    one: Mapping[Key, Record], other: Mapping[Key, Record], name: str
) -> Interval | None:
    """other − one in a metric that cases have of their own, over the cases that both have; None
    where there are none.
    """
    pairs = [(scores(one[key]), scores(other[key])) for key in one if key in other]
    found = [b[name] - a[name] for a, b in pairs if name in a and name in b]
    return bootstrap(np.array(found)) if found else None


def differs(difference: Interval) -> bool:
    """Is zero outside of the interval, of cases enough for it to mean something."""
    return difference.n >= FEWEST and (difference.low > 0 or difference.high < 0)


def figures(runs: Sequence[Run]) -> dict[str, str]:
    """Every picture of the page as SVG, by the name of its file."""
    labels = label(runs)
    found = [pictures.measured(run) for run in runs]
    drawn: dict[str, str] = {}
    shown = [n for n in names.headlines(n for one in found for n in one) if names.is_share(n)]
    if shown:
        values = [[one.get(name) for name in shown] for one in found]
        heads = [names.full(name) for name in shown]
        drawn["metrics"] = charts.bars(heads, labels, values, title="Means with 95% intervals")
    curves = [mapping(run.summary.get("curves")) for run in runs]
    for name in names.headlines(n for one in curves for n in one):
        lines = [
            line._replace(name=words)
            for one, words in zip(curves, labels, strict=True)
            if (line := pictures.curve(name, one.get(name))) is not None
        ]
        if lines:
            key = "-".join(["curves", *name.split("/")])
            drawn[key] = charts.curves(lines, title=names.full(name), shares=names.is_share(name))
    return drawn


def differences(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """For each later run: the cases whose edit is right in one and wrong in the other."""
    parts = []
    first = keyed(runs[0])
    for run, name in zip(runs[1:], labels[1:], strict=True):
        other = keyed(run)
        rows: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
        both = neither = 0
        for key in (key for key in first if key in other):
            a, b = taken(first[key]), taken(other[key])
            if a is None or b is None:
                continue
            both, neither = both + (a and b), neither + (not a and not b)
            if a != b:
                rows[b].append(line(first[key], other[key]))
        if not any((both, neither, *rows.values())):
            continue
        parts.append(html.paragraph(
            f"Edits taken with both {labels[0]} and {name}: {both:,}; with neither: {neither:,}; "
            f"only with {labels[0]}: {len(rows[False]):,}; only with {name}: {len(rows[True]):,}."
        ))  # fmt: skip
        for side, whose in ((False, labels[0]), (True, name)):
            if rows[side]:
                head = ("case", "prompt", "new answer", f"said with {labels[0]}", f"with {name}")
                shown = html.scroll("Cases", html.table(head, rows[side][:SHOWN]))
                more = len(rows[side]) - SHOWN
                rest = [html.paragraph(f"and {more:,} more", "note")] if more > 0 else []
                parts.append(html.details(f"Only with {whose}: {len(rows[side]):,}",
                                          [shown, *rest], "plain"))  # fmt: skip
    return parts


def taken(case: Record) -> bool | None:
    """Is the edit said after it; None where that was not judged."""
    judged = [p["right"] for p in cases.edits(case) if p.get("right") is not None]
    return all(judged) if judged else None


def line(one: Record, other: Record) -> tuple[str, ...]:
    requests = one.get("requests") or ()
    return (
        str(one.get("id", "")),
        "; ".join(cases.filled(r) for r in requests),
        "; ".join(str(r.get("target", "")) for r in requests),
        cases.spoken(one),
        cases.spoken(other),
    )
