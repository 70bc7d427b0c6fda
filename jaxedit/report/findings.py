"""What a run's edits are like beside their scores: what analysis.json holds, as pictures and
tables.

Whatever is missing or of another form is left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxedit.evaluate.metrics import Interval
from jaxedit.report import charts, html, names, plots
from jaxedit.report.charts import Kind, Line
from jaxedit.report.folder import Record, Run, interval, items, mapping, number

MAPS = 6  # layers of a matrix whose change is drawn in detail
POINTS = 48  # of a curve over the edits
# What an answer is, from the best to the worst, and each type's colour.
ERRORS = {
    "right": Kind("right", "the new answer is said", 2),
    "partial": Kind("partial", "some words of it, or of the former one", 0),
    "missing": Kind("missing", "a part of the new answer and no more", 4),
    "unchanged": Kind("unchanged", "the former answer, or as before the edit", 3),
    "irrelevant": Kind("irrelevant", "anything else", 1),
    "meaningless": Kind("meaningless", "no words, or the same over and over", 5),
}
GROWTH = {"relative": ("‖ΔW‖ / ‖W‖", 0.0), "weight": ("‖W + ΔW‖ / ‖W‖", 1.0)}  # before any edit
WHEN = {"before": "before the edit", "after": "after the edit", "direction": "what it adds"}
TOKENS = {"target": "the new answer", "former": "the former answer"}
THROUGH = {
    "none": "the unembedding alone",
    "scale": "the final norm's scale and the unembedding",
    "final": "the final norm and the unembedding",
}
SIZES = {  # of a changed matrix: what it is called, and what it means
    "norm": ("‖ΔW‖", "Frobenius norm of the change"),
    "relative": ("‖ΔW‖ / ‖W‖", "the same, as a share of the norm of the matrix"),
    "rank": ("rank", "singular values above what rounding leaves of a zero"),
    "effective_rank": ("effective rank", "exp of the entropy of the singular values' shares"),
    "carry/entries": ("entries for 90 %", "the least share of them that holds 90 % of the squared "
                      "change; 44 % where they are random and normal"),
    "carry/inputs": ("inputs for 90 %", "the same of the rows of the matrix"),
    "carry/outputs": ("outputs for 90 %", "the same of its columns"),
}  # fmt: skip


def figures(run: Run) -> dict[str, str]:
    """Every picture of these, by the name of its file."""
    found = run.analysis
    return errors(found) | weights(found) | growth(found) | hits(found)


# What answers are wrong in


def counts(found: Record) -> dict[str, list[int]]:
    """By kind of probe, how many answers are of each of ERRORS."""
    out = {}
    for key, some in mapping(found.get("errors")).items():
        row = [max(int(number(mapping(some).get(kind)) or 0), 0) for kind in ERRORS]
        if sum(row):
            out[str(key)] = row
    return out


def errors(found: Record) -> dict[str, str]:
    some = counts(found)
    if not some:
        return {}
    labels = [names.full(key) for key in some]
    kinds = list(ERRORS.values())
    return {"errors": charts.stacks(labels, kinds, list(some.values()), title="Answers by type")}


def errors_table(found: Record) -> str:
    head = ("kind of probe", "answers", *ERRORS)
    rows = [
        (names.full(key), f"{sum(row):,}", *(f"{n:,}" if n else "" for n in row))
        for key, row in counts(found).items()
    ]
    return html.numbers(head, rows) if rows else ""


# What changes


def weights(found: Record) -> dict[str, str]:
    """How much each matrix of each layer changed, and where in it."""
    some = changed(found)
    drawn = {}
    layers = sorted({i for m in some.values() for i in m["layers"]}, key=lambda i: (i is None, i))
    for key, title in (("relative", "‖ΔW‖ / ‖W‖"), ("norm", "‖ΔW‖")):
        grid = np.full((len(some), len(layers)), np.nan)
        for row, m in enumerate(some.values()):
            for layer, value in zip(m["layers"], items(m.get(key)), strict=False):
                if (v := amount(value)) is not None:
                    grid[row, layers.index(layer)] = v
        if grid.size > 1 and np.isfinite(grid).any():  # one number needs no picture
            heads = ["" if i is None else f"{i}" for i in layers]
            title += ", mean over edits, by layer"
            drawn[f"weights-{key}"] = plots.heatmap(grid, heads, list(some), title=title)
    for path, m in some.items():
        for layer, pixels in most_changed(m):
            title = f"|ΔW| of {place(path, layer)}"
            drawn[f"weights-map-{path}-{layer}"] = plots.bitmap(pixels, title=title)
    return drawn


def changed(found: Record) -> dict[str, Record]:
    return {str(path): mapping(m) for path, m in mapping(found.get("weights")).items()
            if items(mapping(m).get("layers"))}  # fmt: skip


def place(path: str, layer: Any) -> str:
    return path if layer is None else f"{path}, layer {layer}"


def amount(value: Any) -> float | None:
    """A number, or the mean of an interval."""
    return number(mapping(value).get("mean")) if isinstance(value, Mapping) else number(value)


def most_changed(matrix: Record) -> list[tuple[Any, np.ndarray]]:
    """The maps of the layers that change most, inputs from the top down, in order of layers."""
    found: list[tuple[float, int, Any, np.ndarray]] = []
    norms = items(matrix.get("norm")) or [0] * len(matrix["layers"])
    for layer, pixels, norm in zip(matrix["layers"], items(matrix.get("map")), norms, strict=False):
        grid = np.array(pixels, np.float64) if pixels else np.zeros((0, 0))
        if grid.ndim == 2 and grid.size:
            found.append((-(amount(norm) or 0.0), len(found), layer, grid))
    top = sorted(found, key=lambda x: x[:2])[:MAPS]
    return [(layer, grid) for _, _, layer, grid in sorted(top, key=lambda x: x[1])]


def sizes(found: Record) -> tuple[int, str, dict[str, str]]:
    """A table of so many rows: of every matrix of every layer the numbers of its change, means over
    edits; and what they mean.
    """
    some = changed(found)
    have = [key for key in SIZES if any(items(m.get(key)) for m in some.values())]
    rows = []
    for path, m in some.items():
        for i, layer in enumerate(m["layers"]):
            there = [items(m.get(key))[i : i + 1] for key in have]
            values = [amount(value[0]) if value else None for value in there]
            rows.append((place(path, layer), *map(size, have, values)))
    if not have:
        return 0, "", {}
    head = ("matrix", *(SIZES[key][0] for key in have))
    return len(rows), html.numbers(head, rows), {SIZES[key][0]: SIZES[key][1] for key in have}


def size(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if key.startswith("carry/") else f"{value:.3g}"


# How the change grows along a sequence


def growth(found: Record) -> dict[str, str]:
    some = {str(path): mapping(m) for path, m in mapping(found.get("growth")).items()}
    drawn = {}
    for key, (title, start) in GROWTH.items():
        lines = {path: each for path, m in some.items() if (each := grown(m, key))}
        if sum(map(len, lines.values())) <= len(charts.DASHES) and len(lines) > 1:
            lines = {"": [line._replace(name=f"{path}, {line.name}")
                          for path, each in lines.items() for line in each]}  # fmt: skip
        for path, each in lines.items():
            moved = sorted(each, key=lambda line: -abs(line.y[-1].mean - start))
            kept = [line for line in each if line in moved[: len(charts.DASHES)]]
            most = f", {len(kept)} of {len(each)} layers" if len(kept) < len(each) else ""
            where = f", {path}" if path else ""
            drawn[f"growth-{key}" + (f"-{path}" if path else "")] = charts.curves(
                kept, title=title + where + most, factors=False
            )
    return drawn


def grown(matrix: Record, key: str) -> list[Line]:
    """A curve for every layer, from before the edits on, thinned to what a picture can show."""
    out = []
    for layer, values in zip(items(matrix.get("layers")), items(matrix.get(key)), strict=False):
        there = [(i, v) for i, x in enumerate(items(values), 1) if (v := number(x)) is not None]
        if not there:
            continue
        points = [(0, GROWTH[key][1]), *there]
        keep = np.unique(np.linspace(0, len(there), min(POINTS, len(points))).round().astype(int))
        some = [points[i] for i in keep]
        name = "all of it" if layer is None else f"layer {layer}"
        out.append(Line(name, [i for i, _ in some], [Interval(v, v, v, 1) for _, v in some]))
    return out


# What changed values say


def hits(found: Record) -> dict[str, str]:
    """Hit@k over k, of the new answer and of the former one."""
    drawn = {}
    for token, word in TOKENS.items():
        lines = [
            Line(name, list(values), list(values.values()))
            for when, name in WHEN.items()
            if (values := at_k(found, token, when))
        ]
        if lines:
            title = f"Hit@k of {word}"
            drawn[f"hits-{token}"] = charts.curves(lines, title=title, across="k", shares=True)
    return drawn


def at_k(found: Record, token: str, when: str) -> dict[int, Interval]:
    some = mapping(mapping(mapping(found.get("hits")).get(token)).get(when))
    values = {
        int(k): v
        for name, x in some.items()
        if (k := str(name).removeprefix("hit@")).isdigit() and (v := interval(x)) is not None
    }
    return dict(sorted(values.items()))


def hits_table(found: Record) -> str:
    """Means with their intervals: of each k, and the best rank."""
    some = mapping(found.get("hits"))
    lines = {(t, w): values for t in TOKENS for w in WHEN if (values := at_k(found, t, w))}
    ks = sorted({k for values in lines.values() for k in values})
    rows = []
    for (token, when), values in lines.items():
        cells = [told(v, 100, 1) if (v := values.get(k)) else "" for k in ks]
        rank = interval(mapping(mapping(some[token])[when]).get("rank"))
        cells.append(told(rank, 1, 0) if rank else "")
        rows.append((f"{TOKENS[token].removeprefix('the ')}, {WHEN[when]}", *cells))
    return html.numbers(("", *(f"Hit@{k}" for k in ks), "best rank"), rows) if rows else ""


def told(value: Interval, unit: int, digits: int) -> str:
    mean, low, high = (names.minus(f"{unit * v:,.{digits}f}") for v in value[:3])
    return f"{mean} [{low}, {high}]"


def hits_note(found: Record) -> str:
    some = mapping(found.get("hits"))
    rows, through = number(some.get("rows")), THROUGH.get(str(some.get("through")))
    many = f"the {int(rows)} rows" if rows else "the rows"
    chance = f"about {int(rows)} k of all tokens" if rows else "about k of all tokens"
    read = f" Rows are read through {through}." if through else ""
    return (
        f"Rows of {some.get('path') or 'the matrix'} are added to the residual stream. Of {many} "
        "that an edit changes most: is the answer's first token among the k that any of them "
        f"raises most? By chance {chance} are.{read} Shares of edits in percent, with 95% "
        "intervals."
    )


# Do related edits change the same


def overlap_table(found: Record) -> str:
    some = mapping(found.get("overlap"))
    rows: list[tuple[str, ...]] = []
    for name, value in some.items():
        if name in ("path", "layers", "k", "edits"):
            continue
        keys = ("rsim", "related", "others", "groups")
        values = [number(mapping(value).get(key)) for key in keys]
        if values[0] is None:
            rows.append((f"one {name} (no two share one)", "", "", "", ""))
            continue
        cells = ["" if v is None else f"{v:.3f}" for v in values[:3]]
        rows.append((f"one {name}", *cells, "" if values[3] is None else f"{int(values[3]):,}"))
    head = ("edits of", "RSim", "within a group", "to others", "groups")
    return html.numbers(head, rows) if rows else ""


def overlap_note(found: Record) -> str:
    some = mapping(found.get("overlap"))
    k, edits = number(some.get("k")), number(some.get("edits"))
    inputs = f"the {int(k):,} inputs" if k else "the inputs"
    where = f" of {some['path']}" if some.get("path") else ""
    of = f" {int(edits):,} edits are compared." if edits else ""
    return (
        "RSim says how much more alike edits of one group are than edits of different groups: 1 "
        "where they change the same neurons and no others do, 0 where they are no more alike than "
        f"any two. Alike: the Jaccard index of {inputs}{where} that each changes most.{of}"
    )
