"""Bars and curves with their intervals, and bars of parts, as SVG text."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from jaxedit.evaluate.metrics import Interval
from jaxedit.report.names import minus
from jaxedit.report.plots import FAINT, FONT, INK, LIGHT, svg, text

WIDTH = 356  # pixels: what a telephone shows without shrinking the letters
BAR, ROW = 11, 19  # a bar's height, and from one to the next
STACK = 20  # the height of a bar of parts
LETTERS = 24  # of a name on the left
FEW = 12  # places of a curve, each with its name below and a dot
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")


Scale = Callable[[float], float]  # a number's place in the picture


class Line(NamedTuple):
    """A curve: a mean and its interval at every x."""

    name: str
    x: Sequence[float]
    y: Sequence[Interval]


class Kind(NamedTuple):
    """Of the parts of a stack."""

    name: str
    meaning: str  # a few words
    colour: int


def bars(
    groups: Sequence[str],
    series: Sequence[str],
    values: Sequence[Sequence[Interval | None]],
    *,
    title: str,
) -> str:
    """values [series][groups] are shares, told in percent, or differences of them, in [-1, 1].

    With one series the bars carry the groups' names, with several their own, under the groups'.
    """
    known = [v for line in values for v in line if v is not None]
    low = -1.0 if any(min(v.mean, v.low) < 0 for v in known) else 0.0
    side = 8 + 6.3 * max(min(len(n), LETTERS) for n in (series if len(series) > 1 else groups))
    x = lambda value: side + (WIDTH - side - 46) * (min(max(value, low), 1.0) - low) / (1 - low)
    several, y, out = len(series) > 1, 44, [text(0, 18, title, size=FONT + 2, weight="bold")]
    for i, group in enumerate(groups):
        if several:
            out.append(text(0, y + 10, group, weight="bold"))
            y += ROW + 1
        for k, name in enumerate(series):
            value = values[k][i]
            out.append(text(0, y + 10, shorten(name if several else group)))
            y += ROW
            if value is None:
                out.append(text(x(0) + 4, y - 9, "not measured"))
                continue
            out += bar(x, y - ROW, value, k, f"{group}, {name}")
        y += 12 if several else 3
    grid = [axis(x(tick), 34, x(tick), y - 6) for tick in ticks(low, 1.0, 4)]
    feet = [text(x(tick), y + 8, percent(tick), anchor="middle") for tick in ticks(low, 1.0, 4)]
    return svg(WIDTH, y + 16, [out[0], *grid, *out[1:], *feet], title)


def bar(x: Scale, y: float, value: Interval, k: int, name: str) -> list[str]:
    """One bar from zero to the mean, with a line over the interval and the number at its right."""
    left, right = sorted((x(0.0), x(value.mean)))
    told = "{}: {:.1f} [{:.1f}, {:.1f}] %".format(name, *(100 * v for v in value[:3]))
    a, b, middle = x(value.low), x(value.high), y + BAR / 2
    return [
        f'<rect {fill(k)} x="{left:.1f}" y="{y:.1f}" width="{max(right - left, 1):.1f}" '
        f'height="{BAR}" opacity=".8"><title>{escape(told)}</title></rect>',
        f'<path class="whisker" stroke="{INK}" fill="none" d="M{a:.1f} {middle:.1f}H{b:.1f}'
        f'M{a:.1f} {middle - 4:.1f}v8M{b:.1f} {middle - 4:.1f}v8"/>',
        text(WIDTH, y + 10, minus(f"{100 * value.mean:.1f}"), anchor="end"),
    ]


def stacks(
    groups: Sequence[str],
    kinds: Sequence[Kind],
    counts: Sequence[Sequence[int]],
    *,
    title: str,
) -> str:
    """counts [groups][kinds]: what each group is made of, all bars of one length; below them what
    the kinds mean.
    """
    y, out = 30, [text(0, 18, title, size=FONT + 2, weight="bold")]
    for group, some in zip(groups, counts, strict=True):
        total, before = max(sum(some), 1), 0
        out.append(text(0, y + 14, shorten(group, 40), weight="bold"))
        out.append(text(WIDTH, y + 14, f"{sum(some):,}", anchor="end"))
        for kind, n in zip(kinds, some, strict=True):
            left, wide = WIDTH * before / total, WIDTH * n / total
            before += n
            if not n:
                continue
            told = escape(f"{group}, {kind.name}: {n:,} of {total:,} ({100 * n / total:.1f} %)")
            out.append(
                f'<rect {fill(kind.colour)} x="{left:.1f}" y="{y + 20}" '
                f'width="{max(wide - 1, 0.5):.1f}" height="{STACK}"><title>{told}</title></rect>'
            )
            if wide >= 8 * len(f"{n:,}") + 4:
                middle = left + (wide - 1) / 2
                out.append(text(middle, y + 34, f"{n:,}", anchor="middle", on=True))
        y += STACK + 26
    y += 10
    side = 22 + round(7.5 * max(len(kind.name) for kind in kinds))
    for kind in kinds:
        y += 18
        out.append(f'<rect {fill(kind.colour)} x="0" y="{y - 10}" width="11" height="11"/>')
        out += [text(18, y, kind.name), text(side, y, kind.meaning)]
    return svg(WIDTH, y + 12, out, title)


def fill(k: int) -> str:
    return f'class="f{k % 6}" fill="{LIGHT[k % 6]}"'


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    across: str = "edits",
    shares: bool = False,
    factors: bool | None = None,
) -> str:
    """The lines over one another, their intervals as bands. factors: x grows by them; None: if it
    spans many.

    shares: y is told in percent, from 0 to 100, or from -100 if the lines go there.
    """
    xs = [x for line in lines for x in line.x]
    ys = [v for line in lines for y in line.y for v in y[:3]]
    first, last = min(xs), max(xs)
    bottom, top = (-1.0 if min(ys) < 0 else 0.0, 1.0) if shares else widen(min(ys), max(ys))
    name = percent if shares else lambda tick: minus(f"{tick:g}")
    factors = first > 0 and last / first >= 30 if factors is None else factors
    scale = math.log if factors else float
    left, right, upper, lower = 44, WIDTH - 12, 34, 204
    reach = (scale(last) - scale(first)) or 1.0
    middle = (left + right) / 2
    at_x = lambda v: (
        left + (right - left) * (scale(v) - scale(first)) / reach if last > first else middle
    )
    at_y = lambda v: lower - (lower - upper) * (min(max(v, bottom), top) - bottom) / (top - bottom)
    out = [text(0, 18, title, size=FONT + 2, weight="bold")]
    for tick in ticks(bottom, top, 4 if shares else 5):
        out.append(axis(left, at_y(tick), right, at_y(tick)))
        out.append(text(left - 6, at_y(tick) + 4, name(tick), anchor="end"))
    free = math.inf  # what is left of the axis for names, from the last x to the first
    for tick in sorted(named(xs), reverse=True):
        wide = 7 * len(f"{tick:,g}") + 6
        if at_x(tick) + wide / 2 <= free:
            inside = min(at_x(tick), WIDTH - wide / 2 + 3)
            out.append(text(inside, lower + 16, f"{tick:,g}", anchor="middle"))
            free = at_x(tick) - wide / 2
    out.append(text(right, lower + 32, across, anchor="end"))
    for k, line in enumerate(lines):
        out += draw(line, k, at_x, at_y, 100 if shares else 1)
    y = lower + 32
    for k, line in enumerate(lines):
        y += 0 if k == 0 else 17
        out.append(f'<path d="M{left} {y - 4}h28" {stroke(k)}/>')
        out.append(text(left + 36, y, line.name))
    return svg(WIDTH, y + 12, out, title)


def draw(line: Line, k: int, at_x: Scale, at_y: Scale, unit: int) -> list[str]:
    points = [(at_x(x), y) for x, y in zip(line.x, line.y, strict=True)]
    join = lambda pairs: "L".join(f"{x:.1f} {y:.1f}" for x, y in pairs)
    upper = [(x, at_y(y.high)) for x, y in points]
    lower = [(x, at_y(y.low)) for x, y in reversed(points)]
    out = [
        f'<path {fill(k)} opacity=".1" d="M{join(upper + lower)}Z"/>',
        f'<path d="M{join([(x, at_y(y.mean)) for x, y in points])}" {stroke(k)}/>',
    ]
    faint = "" if len(points) <= FEW else ' opacity="0"'  # to be pointed at, without hiding dashes
    for (x, y), edits in zip(points, line.x, strict=True):
        mean, low, high = (f"{unit * v:.{1 if unit > 1 else 3}f}" for v in y[:3])
        told = f"{line.name}, {edits:,g}: {mean}" + (f" [{low}, {high}]" if y.n > 1 else "")
        out.append(
            f'<circle {fill(k)} cx="{x:.1f}" cy="{at_y(y.mean):.1f}" '
            f'r="3"{faint}><title>{escape(told)}</title></circle>'
        )
    return out


def stroke(k: int) -> str:
    dash = f' stroke-dasharray="{DASHES[k % 6]}"' if DASHES[k % 6] else ""
    return f'class="l{k % 6}" fill="none" stroke="{LIGHT[k % 6]}" stroke-width="2"{dash}'


def named(xs: Sequence[float]) -> set[float]:
    """What is written below the axis: every x, or of many some round ones, the first, the last."""
    if len(some := set(xs)) <= FEW:
        return some
    return {min(some), max(some), *(t for t in ticks(min(some), max(some), 4) if t == int(t))}


def axis(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path class="axis" stroke="{FAINT}" d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"/>'


def percent(share: float) -> str:
    return minus(f"{100 * share:.4g}")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` steps."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(i * step, 10) for i in range(first, last + 1)]


def widen(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.08 or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def shorten(name: str, letters: int = LETTERS) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"
