"""Pictures as PNG files, by an optional package."""

import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxedit.report import plots

ZOOM = 3  # pixels of the file for each of the picture
MARGIN = 12


def write(pictures: Mapping[str, str], folder: Path, begin: str) -> list[Path]:
    """A file for every picture: `begin-NAME.png`, light, whatever the reader prefers."""
    draw = renderer()
    if not has_font(draw):
        raise ValueError(
            f"--png: no font to draw with, one of {plots.FAMILY.partition(', ')[2]}; "
            "install one, such as Debian's fonts-dejavu-core"
        )
    files = []
    for name, picture in pictures.items():
        plain = re.sub(r"[^\w-]+", "-", name)  # metrics that are not ours may have any name
        files.append(folder / f"{begin}-{plain}.png")
        files[-1].write_bytes(draw(with_margin(picture)))
    return files


def lacking() -> list[str]:
    """What to do for pictures as PNG, where they cannot be drawn."""
    if importlib.util.find_spec("resvg_py") is None:
        return ["pictures as PNG too: pip install 'jaxedit[plots]'"]
    if not has_font(renderer()):
        return ["pictures as PNG too: install a font, such as Debian's fonts-dejavu-core"]
    return []


def has_font(draw: Any) -> bool:
    """Are letters drawn at all."""
    return draw(plots.svg(40, 20, [plots.text(2, 14, "a")])) != draw(plots.svg(40, 20, []))


def renderer() -> Any:
    try:
        resvg = importlib.import_module("resvg_py")
    except ImportError as error:
        raise ValueError("--png needs resvg-py: pip install 'jaxedit[plots]'") from error
    return lambda svg: resvg.svg_to_bytes(svg_string=svg, zoom=ZOOM, background="#ffffff")


def with_margin(svg: str) -> str:
    """What reaches the edge in a page, which has room around it, has some here."""
    size = re.compile(r'viewBox="0 0 (\d+) (\d+)" width="\d+" height="\d+"')

    def widen(found: re.Match[str]) -> str:
        width, height = (int(n) + 2 * MARGIN for n in found.groups())
        box = f"{-MARGIN} {-MARGIN} {width} {height}"
        return f'viewBox="{box}" width="{width}" height="{height}"'

    return size.sub(widen, svg, count=1)
