"""Pictures as SVG text: no plotting package, and the page that holds one needs no other file."""

from collections.abc import Sequence
from html import escape

import numpy as np

CELL, LINE, FONT = 30, 16, 12  # pixels
LOW, HIGH = (247, 251, 255), (8, 81, 156)  # the colours of the least and the most


def heatmap(
    values: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    title: str,
    unit: str = "",
) -> str:
    """values [rows, columns], the first row at the bottom, from zero to the largest."""
    height, width = values.shape
    top = max(float(values.max()), 1e-9)
    left = 12 + 8 * max(map(len, rows))
    foot = 20 + round(6.5 * max(map(len, columns)))
    W = left + max(width * CELL + 90, 9 * len(title))  # a bold letter is about nine pixels wide
    H = 40 + height * CELL + foot
    out = [text(left, 22, title, size=FONT + 2, weight="bold")]
    for i, row in enumerate(rows):
        y = 40 + (height - 1 - i) * CELL
        out.append(text(left - 6, y + 19, row, anchor="end"))
        for j in range(width):
            value = float(values[i, j])
            told = escape(f"{columns[j].strip()}, {row}: {value:.3f}{unit}")
            x = left + j * CELL
            out.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" '
                f'fill="{colour(value / top)}"><title>{told}</title></rect>'
            )
    y = 40 + height * CELL + 12
    for j, column in enumerate(columns):
        x = left + j * CELL + 18
        out.append(text(x, y, column, anchor="end", turn=-55))
    x, steps = left + width * CELL + 16, 40
    for i in range(steps):
        y = 40 + i * height * CELL / steps
        size = f'width="14" height="{height * CELL / steps + 0.5:.1f}"'
        out.append(f'<rect x="{x}" y="{y:.1f}" {size} fill="{colour(1 - (i + 0.5) / steps)}"/>')
    out.append(text(x + 18, 50, f"{top:.2f}{unit}"))
    out.append(text(x + 18, 40 + height * CELL, f"0{unit}"))
    return svg(W, H, out)


def colour(share: float) -> str:
    share = min(max(share, 0.0), 1.0)
    mixed = (round(a + (b - a) * share) for a, b in zip(LOW, HIGH, strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def text(
    x: float, y: float, words: str, *, anchor: str = "start", size: int = FONT,
    weight: str = "normal", turn: int = 0,
) -> str:  # fmt: skip
    turned = f' transform="rotate({turn} {x:.0f} {y:.0f})"' if turn else ""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}"{turned}>{escape(words)}</text>'
    )


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
