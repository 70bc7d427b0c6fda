"""What a run's edits are like beside their scores: what its answers are wrong in, which weights
changed and how, what the changed values say, whose edits change the same.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxedit.data.cases import EditCase
from jaxedit.edit.record import Edit
from jaxedit.evaluate import errors
from jaxedit.evaluate.analysis import weights
from jaxedit.evaluate.growth import growth
from jaxedit.evaluate.hits import hits
from jaxedit.evaluate.overlap import shared
from jaxedit.evaluate.protocol import How, Plan, chunks, own_edits
from jaxedit.files import whole
from jaxedit.models.config import Model
from jaxedit.progress import is_first

VALUES = "mlp/down"  # its rows are the values that are mapped to the vocabulary


FILE = "analysis.json"


def of_run(
    plan: Plan,
    records: Sequence[Mapping[str, Any]],
    how: How,
    batch: int,
    count: int,
    *,
    made: Mapping[int, Edit],
    sequence: Sequence[Edit],
) -> dict[str, Any]:
    """Of the first `count` edits, or of a whole sequence; they are made again where an earlier
    start of the run made them.
    """
    ready, model = plan.ready, plan.ready.model
    if how == "sequence":
        requests = [r for case in plan.cases for r in case.requests]
        return of_sequence(
            model, records, sequence or [e for _, e in ready.sequence(requests, batch)]
        )
    if how != "independent":
        return of_edits(model, records, (), ())
    some = plan.cases[:count]
    if all(i in made for i in range(len(some))):
        return of_edits(model, records, some, [made[i] for i in range(len(some))])
    edits: list[Edit] = []
    for places in chunks(len(plan.cases), plan.chunk):  # in the programs that the run makes them in
        if len(edits) < len(some):
            edits += own_edits(ready, [plan.cases[i] for i in places])
    return of_edits(model, records, some, edits[: len(some)])


def is_there(folder: Path, run: str) -> bool:
    """Has this run been analysed."""
    file = folder / FILE
    return file.exists() and json.loads(file.read_text()).get("run") == run


def add_drift(folder: Path, run: str, now: Mapping[str, Any]) -> None:
    """What the model still can after so many edits: into a file, before that stop's records."""
    if is_first():
        others = [x for x in drift(folder, run) if x["edits"] != now["edits"]]
        found = sorted([*others, now], key=lambda x: x["edits"])
        whole(folder / f"drift-{run}.json", json.dumps(found) + "\n")


def drift(folder: Path, run: str) -> list[Any]:
    """What this run has found so far, by the number of edits."""
    file = folder / f"drift-{run}.json"
    return json.loads(file.read_text()) if file.exists() else []


def of_edits(
    model: Model,
    records: Sequence[Mapping[str, Any]],
    cases: Sequence[EditCase],
    edits: Sequence[Edit],
) -> dict[str, Any]:
    """Of a run's records, and of some of its edits, each with its case."""
    out: dict[str, Any] = {"errors": errors.count(errors.judge(records))}
    some = [(c, e) for c, e in zip(cases, edits, strict=True) if changes(e)]
    if not some:
        return out
    kept_cases, kept = zip(*some, strict=True)
    out["edits"] = len(kept)
    out["weights"] = weights(kept, model.params)
    if all(VALUES in e.deltas for e in kept):
        first = [case.requests[0] for case in kept_cases]
        out["hits"] = hits(model, kept, first, path=VALUES)
    path = next(iter(kept[0].deltas))
    if len(kept) > 2 and all(path in e.deltas for e in kept):
        alike = {
            "subject": [case.requests[0].subject for case in kept_cases],
            "relation": [relation(case) for case in kept_cases],
        }
        out["overlap"] = shared(kept, alike, path=path)
    return out


def of_sequence(
    model: Model, records: Sequence[Mapping[str, Any]], edits: Sequence[Edit]
) -> dict[str, Any]:
    """Of edits that were made one after the other: how the change grows."""
    kept = [e for e in edits if changes(e)]
    out: dict[str, Any] = {"errors": errors.count(errors.judge(records))}
    return out | ({"growth": growth(kept, model.params)} if kept else {})


def changes(edit: Edit) -> bool:
    """Does it change weights by what it was asked for; behind a router all edits' are the same."""
    return bool(edit.deltas) and edit.router is None


def relation(case: EditCase) -> str:
    """What the case says its relation is, or the words of its prompt."""
    return str(case.info.get("relation") or case.requests[0].prompt)
