"""The file of a run: one JSON line for every case, appended part by part, never lost, never torn.

The first line names the run, a digest of all that decides its numbers. A line that a kill cut in
two is dropped when the run goes on. Another digest is another run: the file of the old one and what
was made of it are kept under their own names beside it, and come back with its settings.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxedit.data.cases import EditCase
from jaxedit.edit.record import Edit
from jaxedit.evaluate import metrics, scores
from jaxedit.evaluate.protocol import Key, Part
from jaxedit.evaluate.seen import Asked, Forced, Observed, Seen
from jaxedit.evaluate.texts import References
from jaxedit.files import whole
from jaxedit.progress import is_first

FILE = "cases.jsonl"
MADE = ("summary.json", "summary.csv", "analysis.json", "timing.json", "report.html")  # of a run


class Records:
    """Records by key, in memory and in a file."""

    def __init__(self, folder: Path, digest: str):
        self.file, self.digest = folder / FILE, digest
        self.found: dict[Key, dict[str, Any]] = {}
        if is_first():
            self.open()

    def open(self) -> None:
        """What is there of this run is read; what is there of another is moved away."""
        header = {"run": self.digest}
        mine = named(self.file, self.digest)
        there = lines(self.file)
        if there and there[0] != header:
            name = there[0].get("run", "unknown") if isinstance(there[0], dict) else "unknown"
            for file in (*map(self.file.with_name, MADE), self.file):  # last what says whose it is
                if file.exists():
                    os.replace(file, named(file, name))
            there = []
        if not there and mine.exists():
            there = lines(mine)
            os.replace(mine, self.file)
        for file in map(self.file.with_name, MADE):
            if (old := named(file, self.digest)).exists():
                os.replace(old, file)
        whole(self.file, "".join(text(line) for line in there or [header]))
        self.found = {key_of(line): line for line in there[1:]}

    def done(self, keys: Sequence[Key]) -> set[Key]:
        """Which of these are recorded; the same on every host of a job."""
        have = np.array([key in self.found for key in keys])
        if jax.process_count() > 1 and len(keys):
            have = multihost_utils.broadcast_one_to_all(have)
        return {key for key, there in zip(keys, have, strict=True) if there}

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends those that are not there yet, in one write."""
        if not is_first():
            return
        new = [json.loads(text(record)) for record in records]  # as they will be read again
        new = [record for record in new if key_of(record) not in self.found]
        with open(self.file, "a") as out:
            out.write("".join(map(text, new)))
            out.flush()
            os.fsync(out.fileno())
        self.found |= {key_of(record): record for record in new}


def named(file: Path, run: str) -> Path:
    """Where a file of a run is kept while its folder is another's."""
    return file.with_name(f"{file.stem}-{run}{file.suffix}")


def key_of(record: Mapping[str, Any]) -> Key:
    return Key(record.get("at", 0), record["place"])


def text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def lines(file: Path) -> list[Any]:
    """The whole lines of a file; what is left of a torn one at its end is no line."""
    found: list[Any] = []
    if file.exists():
        *whole, _ = file.read_text().split("\n")  # only there: texts hold other ends of lines
        for line in whole:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def digest(what: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=repr).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Writer:
    """What turns observations into records."""

    tokenizer: Any
    protocol: scores.Protocol
    references: Callable[[EditCase], References | None]  # texts that a case's are to be like
    sources: Sequence[str] = ()  # the data that each case is of

    def part(self, part: Part) -> list[dict[str, Any]]:
        """A record for every case of a part."""
        own = part.scores or ({},) * len(part.keys)
        return [
            record(key, seen, edit, self.score(seen) | more, self)
            for key, seen, edit, more in zip(part.keys, part.seen, part.edits, own, strict=True)
        ]

    def score(self, seen: Observed) -> dict[str, float]:
        return scores.score(
            seen, self.protocol, references=self.references(seen.case), tokenise=self.tokens
        )

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def record(
    key: Key, seen: Observed, edit: Edit, found: Mapping[str, float], writer: Writer
) -> dict[str, Any]:
    case = seen.case
    lost = [name for name, value in found.items() if not math.isfinite(value)]
    result = edit.provenance.get("result") or {}
    numbers = {k: v for k, v in result.items() if isinstance(v, int | float)}
    in_text = bool(seen.of("forget", "retain"))  # Sanitation compares what is said freely
    probes = [probe(asked, in_text, writer) for asked in seen.asked]
    pairs = zip(seen.beginnings, seen.continued, strict=True)
    return {
        "place": key.place, **({"at": key.at} if key.at else {}), "id": case.id,
        **({"source": writer.sources[key.place]} if writer.sources else {}),
        "requests": [dataclasses.asdict(r) for r in case.requests], "info": plain(case.info),
        "failed": list(seen.failed),
        "skipped": [*seen.skipped, *(f"{name} is not finite" for name in lost)],
        **({"elsewhere": seen.elsewhere} if seen.elsewhere else {}),
        "edit": numbers, "probes": probes,
        "continued": [{"beginning": b, "before": x, "after": y} for b, (x, y) in pairs],
        "scores": {name: value for name, value in found.items() if name not in lost},
    }  # fmt: skip


def probe(asked: Asked, in_text: bool, writer: Writer) -> dict[str, Any]:
    p = asked.probe
    more = {"group": p.group, "rule": p.rule} if p.group else {}
    known = {"known": list(asked.known)} if asked.known else {}
    kl = asked.kl if asked.kl is not None and math.isfinite(asked.kl) else None
    return {
        "key": asked.key, "prompt": p.prompt, "answers": [list(names) for names in p.answers],
        **more, **known, "before": side(asked.before, writer), "after": side(asked.after, writer),
        "agreement": scores.kept(asked, in_text, writer.tokens), "kl": kl,
        "right": scores.right(asked, in_text, writer.tokens),
    }  # fmt: skip


def side(seen: Seen, writer: Writer) -> dict[str, Any]:
    """One model's answers: what it says in the place of the first one, and freely."""
    first = seen.answers[0][0] if seen.answers else None
    said = None if first is None else writer.tokenizer.decode(list(first.said))
    out = {"said": said, "text": seen.text, "token": scores.token(seen),
           "exact": scores.exact(seen), "logp": None if first is None else mean(first)}  # fmt: skip
    if seen.new is not None and seen.true is not None:
        out |= {"p_new": chance(seen.new), "p_true": chance(seen.true)}
    return out


def mean(forced: Forced) -> float | None:
    found = float(np.mean(forced.logp)) if forced.logp else math.nan
    return found if math.isfinite(found) else None


def chance(forced: Forced) -> float | None:
    found = metrics.probability(forced.logp) if forced.logp else math.nan
    return found if math.isfinite(found) else None


def plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """What else the row says, as far as it is short text or numbers."""
    short = lambda v: isinstance(v, int | float) or (isinstance(v, str) and len(v) <= 200)
    return {k: v for k, v in info.items() if short(v)}
