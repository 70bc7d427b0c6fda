"""What is to be edited, by a short name: a world, a published dataset, or a file of requests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxedit.data import files
from jaxedit.data.cases import EditCase, EditRequest, Found, Skipped
from jaxedit.data.fields import names
from jaxedit.data.read import READERS, read
from jaxedit.data.world.cases import cases
from jaxedit.data.world.facts import make

WORLD = "world:"


def requests(source: str, limit: int = 0) -> tuple[list[EditRequest], list[Skipped]]:
    """The first `limit` requests (0: all), and what was left out; `source` as in `edit_cases`."""
    found, skipped = edit_cases(source, limit)
    return [r for case in found for r in case.requests][: limit or None], skipped


def edit_cases(source: str, limit: int = 0) -> tuple[list[EditCase], list[Skipped]]:
    """The first `limit` cases (0: all), and what was left out of the rows up to theirs.

    source: world:SIZE:SEED:COUNT[:KIND+KIND[:DRAW[:RELATION+RELATION]]], where another number DRAW
    draws other facts and targets of the same world; NAME:PATH of a dataset (counterfact:folder); or
    a file of JSON lines, or of a JSON list, with prompt (with {} for the subject, or naming it),
    subject, target and, if known, ground_truth.
    """
    if source.startswith(WORLD):
        return of_world(source, limit), []
    name, _, path = source.partition(":")
    if name in READERS:
        if not path:
            raise ValueError(f"{source!r}: write {name}:PATH, a file, a folder or a hub dataset")
        found = read(name, path)
        if not all(isinstance(item, EditCase) for item in found.items):
            raise ValueError(f"requests {source!r}: {name} holds no edit requests")
        return list(found.items)[: limit or None], left_out(found, path, limit)
    if not Path(source).expanduser().is_file():
        raise FileNotFoundError(
            f"requests {source!r}: no such file; or world:SIZE:SEED:COUNT, or NAME:PATH with a "
            f"dataset of {', '.join(k for k in READERS)}"
        )
    made, skipped = from_file(Path(source).expanduser(), limit)
    return [EditCase(str(i), (request,)) for i, request in enumerate(made)], skipped


def left_out(found: Found[Any], path: str, limit: int) -> list[Skipped]:
    """Of the rows up to that of the case number `limit`; of all, where a case is of many rows."""
    if not found.skipped or not 0 < limit < len(found):
        return list(found.skipped)
    place = {name: i for i, (name, _) in enumerate(files.rows(path))}
    gone = {skip.row for skip in found.skipped if skip.whole}
    good = [i for name, i in place.items() if name not in gone]
    if not good or len(found) % len(good) or not all(skip.row in place for skip in found.skipped):
        return list(found.skipped)
    each = len(found) // len(good)  # ConvSent has two cases of a row
    last = good[(limit - 1) // each]
    return [skip for skip in found.skipped if place[skip.row] <= last]


def of_world(source: str, limit: int) -> list[EditCase]:
    fields = source.removeprefix(WORLD).split(":")
    size, seed, count, kinds, draw, relations = [*fields, *[""] * 6][:6]
    numbers = (seed, count, draw or "0")
    if not all(n.isdigit() for n in numbers) or len(fields) > 6:
        form = "world:SIZE:SEED:COUNT[:KIND+KIND[:DRAW[:RELATION+RELATION]]]"
        raise ValueError(f"requests {source!r}: write {form}")
    world, most = make(size, int(seed)), min(int(count), limit or int(count))
    some = tuple((kinds or "counterfactual").split("+"))
    named = tuple(relations.split("+")) if relations else ()
    return list(cases(world, most, seed=int(draw or 0), kinds=some, relations=named))


def from_file(file: Path, limit: int) -> tuple[list[EditRequest], list[Skipped]]:
    made: list[EditRequest] = []
    skipped: list[Skipped] = []
    for name, row in rows(file):
        if limit and len(made) == limit:
            break
        try:
            made.append(request(row))
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            skipped.append(Skipped(name, reason))
    if not made:
        why = f": {skipped[0].row}: {skipped[0].reason}" if skipped else " (it is empty)"
        raise ValueError(f"{file}: no request could be read{why}")
    return made, skipped


def rows(file: Path) -> Iterator[tuple[str, Any]]:
    text = file.read_text()
    if file.suffix == ".json":
        yield from ((f"{file}[{i}]", row) for i, row in enumerate(json.loads(text)))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line)
            except ValueError as error:
                yield f"{file}:{number}", ValueError(f"not JSON ({error})")


def request(row: Any) -> EditRequest:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {type(row).__name__}")
    true = row.get("ground_truth")
    known = () if true is None else names(true)
    return EditRequest.of(row["prompt"], row["subject"], row["target"], known)
