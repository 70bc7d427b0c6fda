"""Certificates of bounds in words, as tables and as pictures."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxedit.evaluate.metrics import Interval
from jaxedit.report import charts, png
from jaxedit.report.charts import Line

Made = Mapping[str, Any]  # a certificate
NAMES = {"bits": "bits per token"}


def words(made: Made) -> str:
    """A certificate in words."""
    m, n, delta = made["m"], made["n"], made["delta"]
    lines = [
        f"{made['numbers']:,} numbers of {made['levels']} levels choose one of a family of models "
        f"with {made['parameters']:,} parameters that move",
        f"the file has {made['bytes']:,} bytes; m = {m:,} documents, n = {n:,} of them evaluated",
        f"with probability {1 - delta:g} all of this model's bounds hold together "
        f"({made['theorem']}, one of {made['candidates']} compared), the others each by itself",
        "",
    ]
    rows = [["", "bound", *(f"({t})" for t in others(made)), "evaluated", "fresh", "no knowledge"]]
    for key, claim in made["claims"].items():
        rest = [made["theorems"][t][key] for t in others(made)]
        cells = [claim["risk"], claim.get("fresh", math.nan), claim["vacuous"]]
        bounds = [telling(value, claim["vacuous"]) for value in (claim["bound"], *rest)]
        rows.append([name(key), *bounds, *map(number, cells)])
    for kind, found in made["baselines"].items():
        for key in ("bits", "top1"):
            if key in found:
                cells = [found[key]["risk"], found[key].get("fresh", math.nan)]
                blank = [""] * len(others(made))
                label = f"{kind} ({found['bytes']:,} bytes): {name(key)}"
                stated = telling(found[key]["bound"], made["claims"][key]["vacuous"])
                rows.append([label, stated, *blank, *map(number, cells), ""])
    lines.append(columns(rows))
    lines.append("")
    lines.append(f"smoothed by alpha = {made['claims']['bits']['alpha']:g}; *: says nothing")
    if "paper" in others(made):
        lines.append("paper: does not hold for an alpha that the same documents chose")
    kept = made["sample_bits"]
    lines.append(
        f"the {kept['tokens']:,} tokens of the m documents, as the n say: "
        f"{kept['model'] / kept['plain']:.1%} of the bits without knowledge, "
        f"{kept['with_file'] / kept['plain']:.1%} with the file"
    )
    lines += [f"sha256 of the {name}: {made['sha256'][name]}" for name in made["sha256"]]
    return "\n".join(lines)


def others(made: Made) -> list[str]:
    return [t for t in made["theorems"] if t != made["theorem"]]


def telling(value: float, vacuous: float) -> str:
    """A bound, marked where knowing nothing gives as much."""
    return number(value) + ("*" if value >= vacuous else "")


def name(key: str) -> str:
    return NAMES.get(key, f"error of top {key.removeprefix('top')}")


def number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def table(made: Mapping[str, Made]) -> str:
    """Certificates beside each other, and the trivial hypotheses on the first one's text."""
    head = ["", "numbers", "bytes", "bits: bound", "evaluated", "fresh", "alpha", "top 1: bound",
            "text and file"]  # fmt: skip
    first = next(iter(made.values()))
    wide = {key: claim["vacuous"] for key, claim in first["claims"].items()}

    def cells(claims: Mapping[str, Any]) -> list[str]:
        bits, top = claims["bits"], claims.get("top1")
        error = telling(top["bound"], wide["top1"]) if top else ""
        return [telling(bits["bound"], wide["bits"]), number(bits["risk"]),
                number(bits.get("fresh", math.nan)), f"{bits['alpha']:g}", error]  # fmt: skip

    rows = [head]
    for name, one in made.items():
        share = one["sample_bits"]["with_file"] / one["sample_bits"]["plain"]
        start = [name, f"{one['numbers']:,}", f"{one['bytes']:,}"]
        rows.append([*start, *cells(one["claims"]), f"{share:.1%}"])
    for name, one in first["baselines"].items():
        rows.append([name, "", f"{one['bytes']:,}", *cells(one), ""])
    return (
        f"m = {first['m']:,} documents, n = {first['n']:,} evaluated; each row holds with "
        f"probability {1 - first['delta']:g} ({first['theorem']}), whichever of the "
        f"{first['candidates']} is chosen; trivial ones: of the text of {next(iter(made))}; "
        f"*: says nothing\n{columns(rows)}"
    )


def columns(rows: list[list[str]]) -> str:
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = lambda row: "  ".join(
        cell.ljust(w) if i == 0 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(row, wide, strict=True))
    )
    return "\n".join(line(row).rstrip() for row in rows)


def several(made: Mapping[str, Made], folder: Path, across: str = "") -> list[Path]:
    """Their bounds, as shares of what no knowledge gives, or (names are numbers) as a curve."""
    share = lambda claim, key: exact(claim[key] / claim["vacuous"])
    if across == "bytes":
        drawn = fronts(made)
    elif across:
        xs = [float(name) for name in made]
        lines = [
            Line(label, xs, [exact(one["claims"]["bits"][key]) for one in made.values()])
            for label, key in (("bound", "bound"), ("evaluated", "risk"))
        ]
        drawn = charts.curves(lines, title="Bits per token", across=across)
    else:
        claims = [one["claims"] for one in made.values()]
        values = [[share(c["bits"], key) for c in claims] for key in ("bound", "risk")]
        title = "Bits per token, of those without knowledge"
        drawn = charts.bars(list(made), ["bound", "evaluated"], values, title=title)
    return save(drawn, folder, "bounds")


def fronts(made: Mapping[str, Made]) -> str:
    """What is evaluated over the bytes, a line for each kind of file, and the least bounds."""
    kinds: dict[str, list[Made]] = {}
    for name, one in made.items():
        kinds.setdefault(name.partition(":")[0], []).append(one)
    lines = []
    for kind, some in kinds.items():
        some = sorted(some, key=lambda one: one["bytes"])
        risks = [exact(one["claims"]["bits"]["risk"]) for one in some]
        lines.append(Line(kind, [float(one["bytes"]) for one in some], risks))
    return charts.curves(
        lines, title="Bits per token that are evaluated", across="bytes",
        factors=True,
    )  # fmt: skip


def edits(made: Made) -> str:
    """What each method's edits take, and what they do to the bound."""
    before = made["before"]
    rows = [["", "edits", "bytes", "least", "most", "as they are", "risk", "bound"]]
    for method, one in made["methods"].items():
        row = [method, f"{one['described']} of {one['edits']}"]
        if one["described"]:
            row += [f"{one[k]:,.0f}" for k in ("bytes", "least", "most", "raw")]
            row += [f"{one[k]:+.4f}" if k in one else "" for k in ("risk", "bound")]
        rows.append([*row, *[""] * (len(rows[0]) - len(row))])
    return (
        f"bits per token of {made['model']} before any edit: {before['risk']:.4f}, at most "
        f"{before['bound']:.4f} (n = {made['n']:,} of m = {made['m']:,} documents, "
        f"{made['theorem']}; without knowledge {before['vacuous']:.3f}; each bound by itself with "
        f"probability {1 - made['delta']:g})\n"
        "the shortest file of an edit that still says its target, and what the edit adds:\n"
        + columns(rows)
    )


def by_method(made: Made, folder: Path) -> list[Path]:
    """How long the methods' files are, as shares of the longest."""
    some = {m: one for m, one in made["methods"].items() if one["described"]}
    if not some:
        return []
    most = max(one["bytes"] for one in some.values())
    share = [exact(one["bytes"] / most) for one in some.values()]
    names = [f"{m}, {one['bytes']:,.0f} bytes" for m, one in some.items()]
    title = "An edit's file, of the longest method's"
    return save(charts.bars(names, ["file"], [share], title=title), folder, "bits")


def by_alpha(made: Made, folder: Path) -> list[Path]:
    """How the bound and the risk depend on alpha."""
    some = made["claims"]["bits"]["alphas"]
    xs = [one["alpha"] for one in some]
    lines = [
        Line(label, xs, [exact(one[key]) for one in some])
        for label, key in (("bound", "bound"), ("evaluated", "risk"))
    ]
    drawn = charts.curves(lines, title="Bits per token by alpha", across="alpha", factors=True)
    return save(drawn, folder, "bound")


def exact(value: float) -> Interval:
    return Interval(value, value, value, 1)


def save(drawn: str, folder: Path, name: str) -> list[Path]:
    """As SVG, and as PNG where that can be made: with the package for it, and a font."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.svg"
    file.write_text(drawn)
    if importlib.util.find_spec("resvg_py") is None:
        return [file]
    draw, picture = png.renderer(), file.with_suffix(".png")
    if not png.has_font(draw):
        return [file]
    picture.write_bytes(draw(png.with_margin(drawn)))
    return [file, picture]
