"""Pictures as SVG text: no plotting package, and the page that holds one needs no other file.

A picture follows the reader's preference for light or dark. What it is to be read without is in its
attributes, so that a program that knows no CSS draws the light one.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

CELL, LINE, FONT = 30, 16, 12  # pixels
# the colours of the least and the most, on white and on black
BLUE = ((247, 251, 255), (8, 81, 156)), ((28, 37, 48), (143, 199, 255))
PURPLE = ((252, 251, 253), (84, 39, 143)), ((34, 29, 45), (200, 170, 255))
GREEN = ((247, 252, 245), (0, 109, 44)), ((24, 38, 31), (116, 217, 150))
RED = ((255, 245, 240), (165, 15, 21)), ((44, 28, 27), (255, 148, 128))
Colours = tuple[tuple[tuple[int, int, int], ...], ...]
FAMILY = "system-ui, 'DejaVu Sans', 'Noto Sans', 'Liberation Sans', Helvetica, Arial, sans-serif"
# of several things in one picture; each is also named beside it or drawn with dashes of its own
LIGHT = ("#0b5cad", "#b8450b", "#0a7a4b", "#7038c9", "#8a6100", "#b0175f")
DARK = ("#6cb2ff", "#ff9d5c", "#4fd39a", "#b79bff", "#e3b341", "#ff8ab8")
INK, FAINT = "#1b1f24", "#e3e8ed"
STYLE = (
    "@media (prefers-color-scheme: dark) {"
    ".plot text { fill: #e4e7eb } .plot text.on { fill: #12151a } .plot .paper { fill: #12151a } "
    ".plot .axis { stroke: #2a323b } "
    ".plot .whisker { stroke: #e4e7eb } .plot .gap { stroke: #232a33 } "
    ".plot .cell { fill: var(--night) } "
    + " ".join(f".plot .f{i} {{ fill: {c} }} .plot .l{i} {{ stroke: {c} }}"
               for i, c in enumerate(DARK))
    + " }"
)  # fmt: skip


def heatmap(
    values: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    title: str,
    unit: str = "",
    top: float | None = None,
    bottom: float = 0.0,
    cell: int = CELL,
    colours: Colours = BLUE,
    axis: str = "",
) -> str:
    """values [rows, columns], the first row at the bottom, from `bottom`, whose
    colour what is less has too, to `top` or the largest.

    What is not a number is left empty; a column with an empty name has none below it. axis: what
    the columns are.
    """
    height, width = values.shape
    known = values[np.isfinite(values)]
    top = max(float(known.max(initial=bottom)) if top is None else top, bottom + 1e-9)
    share = lambda value: (value - bottom) / (top - bottom)
    left = 12 + 8 * max(map(len, rows))
    turned = 8 * max(map(len, columns)) > cell
    foot = 20 + round(6.5 * max(map(len, columns)))
    W = left + max(width * cell + 90, 9 * len(title))  # a bold letter is about nine pixels wide
    H = 40 + height * cell + foot + (LINE if axis else 0)
    out = [text(left, 22, title, size=FONT + 2, weight="bold")]
    for i, row in enumerate(rows):
        y = 40 + (height - 1 - i) * cell
        out.append(text(left - 6, y + cell / 2 + 4, row, anchor="end"))
        for j in range(width):
            value, x = float(values[i, j]), left + j * cell
            place = f'x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}"'
            if not np.isfinite(value):
                out.append(f'<rect class="gap" {place} fill="none" stroke="{FAINT}"/>')
                continue
            told = escape(f"{columns[j].strip()}, {row}: {value:.3f}{unit}")
            out.append(f"<rect {place} {shade(share(value), colours)}><title>{told}</title></rect>")
    y = 40 + height * cell + 12
    for j, column in enumerate(columns):
        if column:
            middle = left + j * cell + cell / 2
            if turned:
                out.append(text(middle + 3, y, column, anchor="end", turn=-55))
            else:
                out.append(text(middle, y + 4, column, anchor="middle"))
    if axis:
        out.append(text(left + width * cell / 2, H - 6, axis, anchor="middle"))
    x, steps = left + width * cell + 16, 40
    for i in range(steps):
        y = 40 + i * height * cell / steps
        size = f'width="14" height="{height * cell / steps + 0.5:.1f}"'
        out.append(f'<rect x="{x}" y="{y:.1f}" {size} {shade(1 - (i + 0.5) / steps, colours)}/>')
    out.append(text(x + 18, 50, f"{top:.3g}{unit}"))
    least = f"{'≤ ' if (known < bottom).any() else ''}{f'{bottom:.3f}' if bottom else 0}{unit}"
    out.append(text(x + 18, max(40 + height * cell, 64), least))
    return svg(W, H, out, title)


def bitmap(values: np.ndarray, *, title: str, cell: int = 7, shades: int = 24) -> str:
    """values [rows, columns] as small cells without names, the first row on top, from zero to the
    largest: a path for each shade.
    """
    top = max(float(np.nanmax(values)), 1e-30)
    levels = np.nan_to_num(values / top * (shades - 1)).round().astype(int)
    out = [text(0, 18, title, size=FONT + 2, weight="bold")]
    for level in np.unique(levels):
        places = np.argwhere(levels == level)
        path = "".join(f"M{x * cell} {30 + y * cell}h{cell}v{cell}h-{cell}z" for y, x in places)
        out.append(f'<path {shade(level / (shades - 1))} d="{path}"/>')
    height, width = (n * cell for n in values.shape)
    out.append(text(0, 30 + height + 16, f"largest {top:.3g}"))
    return svg(max(width, 9 * len(title)), height + 54, out, title)


def shade(share: float, colours: Colours = BLUE) -> str:
    """The attributes of a cell: its colour on white, and on black."""
    day, night = colours
    return f'class="cell" fill="{colour(share, *day)}" style="--night:{colour(share, *night)}"'


def colour(share: float, low: Sequence[int] = BLUE[0][0], high: Sequence[int] = BLUE[0][1]) -> str:
    share = min(max(share, 0.0), 1.0)
    mixed = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def text(
    x: float, y: float, words: str, *, anchor: str = "start", size: int = FONT,
    weight: str = "normal", turn: int = 0, on: bool = False,
) -> str:  # fmt: skip
    """on: it stands on one of the colours, not on the paper."""
    turned = f' transform="rotate({turn} {x:.0f} {y:.0f})"' if turn else ""
    kind, ink = (' class="on"', "white") if on else ("", INK)
    return (
        f'<text{kind} x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{ink}"{turned}>{escape(words)}</text>'
    )


def svg(width: float, height: float, parts: Sequence[str], title: str = "") -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" '
        f'aria-label="{escape(title)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="{FAMILY}">\n'
        f'<style>{STYLE}</style>\n<rect class="paper" width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
