"""What a run's edits are like beside their scores: what its answers are wrong in, which weights
changed and how, what the changed values say, whose edits change the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxedit.data.cases import EditCase
from jaxedit.edit.record import Edit
from jaxedit.evaluate import errors
from jaxedit.evaluate.analysis import weights
from jaxedit.evaluate.growth import growth
from jaxedit.evaluate.hits import hits
from jaxedit.evaluate.overlap import shared
from jaxedit.models.config import Model

VALUES = "mlp/down"  # its rows are the values that are mapped to the vocabulary


def findings(
    model: Model,
    records: Sequence[Mapping[str, Any]],
    cases: Sequence[EditCase],
    edits: Sequence[Edit],
) -> dict[str, Any]:
    """Of a run's records, and of some of its edits, each with its case."""
    out: dict[str, Any] = {"errors": errors.count(errors.judge(records))}
    some = [(c, e) for c, e in zip(cases, edits, strict=True) if e.deltas]
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
    kept = [e for e in edits if e.deltas]
    out: dict[str, Any] = {"errors": errors.count(errors.judge(records))}
    return out | ({"growth": growth(kept, model.params)} if kept else {})


def relation(case: EditCase) -> str:
    """What the case says its relation is, or the words of its prompt."""
    return str(case.info.get("relation") or case.requests[0].prompt)
