"""Pages: one HTML file each, that needs no other."""

from collections.abc import Sequence
from html import escape

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left; }
.good { color: #0a6b2d; } .bad { color: #b00020; }
svg { max-width: 100%; height: auto; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A page of parts that are HTML already."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>"


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
