"""Pages: one HTML file each, that needs no other."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from jaxedit.files import whole


@cache
def resource(name: str) -> str:
    """A style or a script that lies beside this file."""
    return files("jaxedit.report").joinpath(name).read_text(encoding="utf-8")


def page(title: str, parts: Sequence[str], *, head: str = "", script: str = "") -> str:
    """A page of parts that are HTML already. head: what stands in the place of the plain title.

    A page with a script says that this one may run and no other, and that nothing may be loaded:
    what a model or a dataset says stays text, whatever it contains.
    """
    body = "\n".join(parts)
    guard = run = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        rules = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        guard = f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
        run = f"<script>{script}</script>\n"
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">{guard}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{resource('page.css')}</style></head>\n"
        f"<body>\n{head or f'<h1>{escape(title)}</h1>'}\n{body}\n{run}</body>\n</html>\n"
    )


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return whole(file, text)


def paragraph(words: str, kind: str = "") -> str:
    return f"<p{of_class(kind)}>{escape(words)}</p>"


def heading(words: str) -> str:
    return f"<h2>{escape(words)}</h2>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[bool] = ()) -> str:
    """Cells are plain text. marks: the rows' last cells are good or bad."""
    line = lambda cells, tag: "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells)
    out = [f"<tr>{line(head, 'th')}</tr>"]
    for i, row in enumerate(rows):
        last = ""
        if marks:
            *row, final = row
            last = f'<td class="{"good" if marks[i] else "bad"}">{escape(final)}</td>'
        out.append(f"<tr>{line(row, 'td')}{last}</tr>")
    return "<table>\n" + "\n".join(out) + "\n</table>"


def numbers(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text: the first column says what the others are, which are on the right."""
    first, *others = head
    top = "".join(f'<th scope="col" class="num">{escape(name)}</th>' for name in others)
    body = []
    for name, *cells in rows:
        line = "".join(f'<td class="num">{escape(cell)}</td>' for cell in cells)
        body.append(f'<tr><th scope="row">{escape(name)}</th>{line}</tr>')
    return (
        f'<table class="numbers"><thead><tr><th scope="col">{escape(first)}</th>{top}</tr>'
        f"</thead>\n<tbody>{chr(10).join(body)}</tbody></table>"
    )


def header(kicker: str, title: str, places: Mapping[str, str]) -> str:
    """The top of a long page, with links to its sections: name to id."""
    links = "".join(f'<a href="#{escape(id)}">{escape(n)}</a>' for n, id in places.items())
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>'
        f'<nav aria-label="Sections">{links}</nav></header>'
    )


def section(id: str, title: str, parts: Sequence[str]) -> str:
    inner = "\n".join(part for part in parts if part)
    return f'<section id="{escape(id)}">\n<h2>{escape(title)}</h2>\n{inner}\n</section>'


def scroll(label: str, inner: str) -> str:
    """A box that scrolls by itself where what it holds is wider than the page."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inner}</div>'
    )


def figures(pictures: Sequence[str], beside: str = "") -> str:
    """Pictures, and what stands beside them where there is room."""
    inner = [f'<figure tabindex="0">{picture}</figure>' for picture in pictures]
    parts = "\n".join([*inner, *([beside] if beside else [])])
    return f'<div class="figures">{parts}</div>' if parts else ""


def meanings(pairs: Mapping[str, str]) -> str:
    """Words and what they mean."""
    inner = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs.items())
    return f'<dl class="meanings">{inner}</dl>'


def details(summary: str, parts: Sequence[str], kind: str = "") -> str:
    inner = "\n".join(parts)
    return f"<details{of_class(kind)}><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def facts(pairs: Mapping[str, str]) -> str:
    """What is known, name by name; what is empty is left out."""
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in pairs.items()
        if value
    )
    return f'<dl class="facts">{inner}</dl>'


def listing(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def code(words: str) -> str:
    return f'<pre tabindex="0"><code>{escape(words)}</code></pre>'


def of_class(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""
