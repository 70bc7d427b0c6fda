"""The page of one evaluation run: what was run, the metrics, the pictures, and every case."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from jaxedit.evaluate.metrics import Interval
from jaxedit.progress import clock
from jaxedit.report import cases, findings, folder, html, names, pictures
from jaxedit.report.folder import Run, mapping, number
from jaxedit.settings import to_json

REASONS = 100  # of what was left out, on the page
LEFT_OUT = (
    ("rows", "rows", "row"),
    ("parts", "parts of rows", "part of a row"),
    ("probes", "probes", "probe"),
)
FEW = 12  # rows of a table that stands open


def write(workdir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a run's folder, `report.html` in it unless told otherwise."""
    run = folder.read(workdir)
    return html.write(Path(out) if out else run.folder / "report.html", page(run))


def page(run: Run) -> str:
    drawn = pictures.figures(run)
    of = lambda *begin: [svg for name, svg in drawn.items() if name.startswith(begin)]
    sections = [
        ("metrics", "Metrics", metrics(run)),
        ("sequence", "As edits accumulate", sequence(drawn)),
        ("errors", "Types of error", errors(run, of("errors"))),
        ("weights", "Change of the weights", weights(run, drawn)),
        ("values", "What changed values say", values(run, of("hits"))),
        ("browser", "Cases", cases.browser(run.cases) if run.cases else []),
        ("left-out", "What was left out", leavings(run)),
        ("setup", "How it was run", setup(run)),
    ]
    sections = [(id, title, parts) for id, title, parts in sections if any(parts)]
    links = {title: id for id, title, _ in sections}
    head = html.header("Evaluation of edits", run.name, links)
    parts = [html.facts(about(run)), *warnings(run), *(html.section(*s) for s in sections)]
    script = html.resource("cases.js") if run.cases else ""
    return html.page(f"{run.name} · jaxedit", parts, head=head, script=script)


def about(run: Run) -> dict[str, str]:
    known = {key: run.fact(key) for key in ("method", "model", "data", "protocol", "how")}
    skipped = mapping(run.summary.get("skipped"))
    left_out = [
        f"{int(n):,} {what if n != 1 else one}"
        for key, what, one in LEFT_OUT
        if (n := number(skipped.get(key)))
    ]
    return known | {
        "edits": known.pop("how") + (f", asked after {run.edits:,}" if run.edits else ""),
        "cases": f"{run.summary.get('cases', len(run.cases)):,}",
        "without an edit": f"{run.summary.get('failed') or 0:,}",
        "left out": ", ".join(left_out),
        "changed by other edits": f"{int(n):,} locality probes, not asked"
        if (n := number(skipped.get("elsewhere")))
        else "",
        "time": clock(sum(times)) if (times := seconds(run).values()) else "",
    }


def warnings(run: Run) -> list[str]:
    """What to know before any number is believed."""
    found = []
    if not run.finished:
        found.append(
            "This run has not ended: it has no summary.json yet. The numbers are those of "
            f"{names.count(len(run.cases))} so far."
        )
    if failed := run.summary.get("failed"):
        found.append(
            f"Cases without an edit: {failed:,} of {run.summary.get('cases', len(run.cases)):,}. "
            "They count as the unedited model does."
        )
    return [html.paragraph(words, "warning") for words in found]


def metrics(run: Run) -> list[str]:
    found = pictures.measured(run)
    if not found:
        return [html.paragraph("No metric was computed.")]
    shown = names.headlines(found)
    note = (
        "Means over cases with 95% bootstrap intervals, shares in percent; n is the number of "
        "cases that have the metric. Higher is better, except where ↓ stands."
    )
    return [
        f'<ul class="tiles">{"".join(tile(name, found[name]) for name in shown)}</ul>',
        html.paragraph(note, "note"),
        html.scroll("Metrics", table(run, found)),
        html.details(
            "What the names mean", [html.meanings(names.meanings(found))], "plain"
        ),
        *by_source(run),
    ]  # fmt: skip


def by_source(run: Run) -> list[str]:
    """Of several data, the metrics that tell most about each."""
    found = {
        str(source): mapping(one) for source, one in mapping(run.summary.get("sources")).items()
    }
    each = {source: pictures.intervals(one) for source, one in found.items()}
    shown = names.headlines(name for one in each.values() for name in one)
    rows = [
        [source, f"{one.get('cases', 0):,}",
         *(names.show(n, each[source][n].mean) if n in each[source] else "" for n in shown)]
        for source, one in found.items()
    ]  # fmt: skip
    head = ["data", "cases", *map(names.full, shown)]
    return ["<h3>By data</h3>", html.scroll("By data", html.numbers(head, rows))] if rows else []


def tile(name: str, value: Interval) -> str:
    return (
        f'<li><span class="name">{escape(names.full(name))}</span>'
        f'<span class="value">{names.show(name, value.mean)}</span>{bar(name, value, None)}'
        f'<span class="range">{names.spread(name, value.low, value.high)}</span></li>'
    )


def table(run: Run, found: Mapping[str, Interval]) -> str:
    rows, group = [], ""
    before = any(name + names.BEFORE in found for name in found)
    width = 5 + before
    for name in names.ordered(found):
        if (now := names.group(name)) != group:
            group = now
            rows.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{width}">'
                f"{escape(names.title(group))}</th></tr>"
            )
        value, earlier = found[name], found.get(name + names.BEFORE)
        mark = '<span class="lower" title="lower is better"> ↓</span>'
        n = number(mapping(run.summary["metrics"][name]).get("n"))
        cells = [
            f'<th scope="row">{escape(names.label(name))}'
            f"{mark if names.lower_is_better(name) else ''}</th>",
            f'<td class="wide">{bar(name, value, earlier)}</td>',
            f'<td class="num">{names.show(name, value.mean)}</td>',
            f'<td class="range">{names.spread(name, value.low, value.high)}</td>',
            f'<td class="num">{names.show(name, earlier.mean) if earlier else ""}</td>'
            if before
            else "",
            f'<td class="num">{"" if n is None else f"{int(n):,}"}</td>',
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["metric", "", "mean", "95% interval", *(["before"] if before else []), "n"]
    kinds = ["", "", "num", "", *(["num"] if before else []), "num"]
    head = "".join(
        f'<th scope="col"{html.of_class(kind)}>{h}</th>'
        for h, kind in zip(heads, kinds, strict=True)
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table>"


def bar(name: str, value: Interval, before: Interval | None) -> str:
    """A bar from zero, a line over the interval, and dots where the unedited model is."""
    spread = (value.mean, value.low, value.high)
    if not names.is_share(name) or min(spread) < -1 or max(spread) > 1:
        return ""
    signed = names.last(name) == "magnitude" or min(spread) < 0
    x = lambda v: 50 * (v + 1) if signed else 100 * v
    left, right = sorted((x(0), x(value.mean)))
    low, high = x(value.low), x(value.high)
    dots = f'<u style="left:{x(before.mean):.2f}%"></u>' if before else ""
    return (
        f'<span class="bar" aria-hidden="true"><i style="left:{left:.2f}%;'
        f'width:{right - left:.2f}%"></i><b style="left:{low:.2f}%;width:{high - low:.2f}%"></b>'
        f"{dots}</span>"
    )


def sequence(drawn: Mapping[str, str]) -> list[str]:
    """What tells most, and the rest of the curves behind a click."""
    main = [drawn[name] for name in ("curves", "forgetting") if name in drawn]
    main += [svg for name, svg in drawn.items() if name.startswith("drift")]
    rest = [svg for name, svg in drawn.items() if name.startswith("curves-")]
    if not main or not rest:
        main, rest = main + rest, []
    note = (
        "The cases so far, or as many of them as were to be asked, after more and more edits: "
        "means, and as bands their 95% bootstrap intervals; one case has none."
    )
    every = html.details("Curves of every metric", [html.figures(rest)], "plain") if rest else ""
    return [html.paragraph(note, "note"), html.figures(main), every] if main else []


def errors(run: Run, drawn: Sequence[str]) -> list[str]:
    table = findings.errors_table(run.analysis)
    if not table:
        return []
    note = (
        "Of every answer that the edit should change, what is wrong with it by rules about its "
        "words: the free continuation, or where none was asked for what is said in the place of "
        "the answer."
    )
    # the picture has no numbers where they do not fit
    return [html.paragraph(note, "note"), html.figures(drawn, html.scroll("Types", table))]


def weights(run: Run, drawn: Mapping[str, str]) -> list[str]:
    of = lambda begin: [svg for name, svg in drawn.items() if name.startswith(begin)]
    maps, grown = of("weights-map"), of("growth")
    large = [drawn[name] for name in ("weights-relative", "weights-norm") if name in drawn]
    rows, sizes, meaning = findings.sizes(run.analysis)
    words = html.details("What the numbers mean", [html.meanings(meaning)], "plain")
    table = html.scroll("Sizes", sizes)
    beside = table if 0 < rows <= FEW else ""
    below = [html.details("The numbers", [table], "plain")] if rows > FEW else []
    below += [words] if rows else []
    note = f"Means over {edits_seen(run)}."
    note += " In the maps the inputs of a matrix go down, its outputs across." if maps else ""
    parts = [html.paragraph(note, "note")] if rows else []
    if large or not maps:
        parts += [html.figures(large, beside), *below, html.figures(maps)]
    else:
        parts += [html.figures(maps, beside), *below]
    if grown:
        note = (
            "ΔW is the sum of all edits so far: how far a matrix has moved, and how large it has "
            "become."
        )
        parts += [
            "<h3>With every edit</h3>" if any(parts) else "",
            html.paragraph(note, "note"),
            html.figures(grown),
        ]
    if table := findings.overlap_table(run.analysis):
        note = findings.overlap_note(run.analysis)
        parts += ["<h3>Do related edits change the same neurons</h3>",
                  html.paragraph(note, "note"), html.scroll("RSim", table)]  # fmt: skip
    return [part for part in parts if part]


def edits_seen(run: Run) -> str:
    n = number(run.analysis.get("edits"))
    return f"the first {int(n):,} edits" if n else "edits"


def values(run: Run, drawn: Sequence[str]) -> list[str]:
    table = findings.hits_table(run.analysis)
    if not table:
        return []
    note = html.paragraph(findings.hits_note(run.analysis), "note")
    numbers = html.details("The numbers", [html.scroll("Hit@k", table)], "plain")
    return [note, html.figures(drawn), numbers]


def leavings(run: Run) -> list[str]:
    parts = []
    failed = Counter(str(why) for case in run.cases for why in case.get("failed") or ())
    if failed:
        rows = [(f"{n:,}", why) for why, n in failed.most_common(REASONS)]
        parts.append("<h3>Cases without an edit</h3>")
        parts.append(html.scroll("Why", html.table(("cases", "why"), rows)))
    skipped = mapping(run.summary.get("skipped"))
    reasons = [str(why) for why in skipped.get("reasons") or ()]
    if reasons:
        total = max(len(reasons), sum(int(number(skipped.get(k)) or 0) for k, *_ in LEFT_OUT))
        left = total - min(len(reasons), REASONS)
        rest = [f"and {left:,} more"] if left else []
        parts.append("<h3>Rows and probes that could not be read or asked</h3>")
        what = f"{total:,} reason{'' if total == 1 else 's'}"
        parts.append(html.details(what, [html.listing(reasons[:REASONS] + rest)], "plain"))
    return parts


def setup(run: Run) -> list[str]:
    parts = []
    if run.command:
        parts += ["<h3>Command</h3>", html.code(run.command)]
    if spent := seconds(run):
        parts += ["<h3>Time</h3>", html.facts({k: f"{v:,.1f} s" for k, v in spent.items()})]
    if run.config:
        parts.append(html.details("Configuration", [html.code(to_json(run.config))], "plain"))
    return parts or [html.paragraph("The folder holds no config.json.")]


def seconds(run: Run) -> dict[str, float]:
    return {k: v for k, x in run.timing.items() if (v := number(x)) is not None}
