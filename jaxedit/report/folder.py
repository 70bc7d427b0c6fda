"""The folder of an evaluation run, read back: whole, or as far as the run came."""

import json
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.evaluate import summary
from jaxedit.evaluate.metrics import Interval
from jaxedit.report import names

Record = Mapping[str, Any]
WRITERS = "the work directory of a run of python -m jaxedit.evaluate"


class Run(NamedTuple):
    folder: Path
    summary: Record  # of the cases so far, where the run has not ended
    cases: tuple[Record, ...]  # in order; of a sequence, as they are after the most edits
    finished: bool
    command: str
    config: Record
    timing: Record
    analysis: Record

    @property
    def name(self) -> str:
        """What it was started as, or the folder's name."""
        return str(self.summary.get("name") or self.folder.resolve().name)

    @property
    def edits(self) -> int:
        """After how many edits the cases of a sequence were asked; 0 of other runs."""
        return self.cases[0].get("at", 0) if self.cases else 0

    def fact(self, key: str) -> str:
        """A word about the run: from its summary, else from its configuration; "" if unknown."""
        for place in (self.summary, self.config, mapping(self.config.get("ask"))):
            if (value := place.get(key)) is not None and not isinstance(value, Mapping):
                return names.in_words(value)
        return ""


def read(folder: str | Path) -> Run:
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder; give {WRITERS}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give {WRITERS}")
    summary_file, cases_file = folder / "summary.json", folder / "cases.jsonl"
    own = whole(summary_file)
    found = records(cases_file) if cases_file.exists() else []
    if page := located(folder, {*own, *(found[0] if found else ())}):
        written = "" if page.exists() else ", which its command writes when it ends"
        raise ValueError(f"{folder} is a run of jaxedit.locate; its own page is {page}{written}")
    if not summary_file.exists() and not cases_file.exists():
        raise ValueError(
            f"{folder} is no run: it has neither summary.json nor cases.jsonl; give {WRITERS}"
        )
    run = run_of(cases_file)
    told = of_run(run, own)
    last = found[-1].get("at", 0) if found else 0
    settled = whole(folder / "config.json")
    return Run(
        folder,
        told or summarise(found, last),
        tuple(r for r in found if r.get("at", 0) == last),
        bool(told),
        str(settled.get("command", "")),
        mapping(settled.get("config")),
        whole(folder / "timing.json"),
        of_run(run, whole(folder / "analysis.json")),
    )


def located(folder: Path, keys: Set[str]) -> Path | None:
    """The page of a folder that is one of tracing, or of comparing finders of neurons."""
    for name, key in (("trace.html", "window"), ("neurons.html", "finders")):
        if key in keys or (not keys and (folder / name).exists()):
            return folder / name
    return None


def run_of(file: Path) -> str:
    """The run that the records are of, as their first line says; "" where it does not."""
    if not file.exists():
        return ""
    with file.open(encoding="utf-8", errors="replace") as text:
        try:
            return str(mapping(json.loads(text.readline())).get("run", ""))
        except ValueError:
            return ""


def of_run(run: str, found: Record) -> Record:
    """What was made of the records; {} where it says that it was made of another run's."""
    return found if found.get("run", run) == run or not run else {}


def whole(file: Path) -> Record:
    """A file of one object; {} where there is none."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} should hold an object, not a {type(found).__name__}")
    return found


def records(file: Path) -> list[Record]:
    """The records in order; a line that a killed run left half is left out."""
    found: dict[tuple[int, int], Record] = {}
    # not splitlines, which also ends a line within a text that has another kind of separator
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "place" in record:  # the first line says which run it is
                found[int(record.get("at", 0)), int(record["place"])] = record
        except (ValueError, TypeError) as error:
            if number == len(lines):  # a line that was written to its end has another after it
                break
            raise ValueError(f"{file}, line {number}, is no record of a case: {error}") from error
    return [found[key] for key in sorted(found)]


def summarise(found: list[Record], last: int) -> Record:
    """What summary.json would say, if the run ended here."""
    cases = [r for r in found if r.get("at", 0) == last]
    metrics = summary.summarise([scores(case) for case in cases])
    told = {
        "cases": len(cases),
        "failed": sum(bool(case.get("failed")) for case in cases),
        "metrics": summary.as_json(metrics),
    }
    told |= summary.by_source([{**case, "scores": scores(case)} for case in cases])
    if last:
        told |= summary.over_time(found)
    return told


def scores(case: Record) -> dict[str, float]:
    """The metrics of a case that are numbers."""
    found = mapping(case.get("scores"))
    return {str(name): v for name, x in found.items() if (v := number(x)) is not None}


def mapping(value: Any) -> Record:
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def number(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval(metric: Any) -> Interval | None:
    """A mean with its interval, of no width where none is known."""
    found = mapping(metric)
    mean, low, high, n = (number(found.get(key)) for key in Interval._fields)
    if mean is None:
        return None
    return Interval(mean, mean if low is None else low, mean if high is None else high, int(n or 0))
