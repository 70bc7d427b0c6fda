"""zsRE as an editing task (Mitchell et al. 2022), with or without EasyEdit's one-hop questions."""

import os
from typing import Any, Literal

from jaxedit.data import files
from jaxedit.data.cases import Cases, EditCase, EditRequest, collect
from jaxedit.data.fields import Probes, names, number, optional, text


def zsre(
    source: str | os.PathLike, split: str | None = None, target: Literal["alt", "true"] = "alt"
) -> Cases:
    """MEND's fields; a row with `portability` also has a "portability/reasoning" probe.

    target: EasyEdit edits towards `alt`, a new answer; ROME and MEMIT towards the first of the true
    `answers`, which the model may not know. "locality/unrelated" is a question of Natural
    Questions, its prefix "nq question: " included, as in the published evaluations.
    """

    def case(row: Any, reasons: list[str]) -> EditCase:
        subject, prompt = text(row, "subject"), text(row, "src")
        true = names(row["answers"])
        if not true:
            raise ValueError("empty answers")
        wanted, before = (text(row, "alt"), true) if target == "alt" else (true[0], ())
        request = EditRequest.of(prompt, subject, wanted, before)
        probes = Probes(subject, reasons)
        probes.add_field("rephrase", row, "rephrase", wanted)
        probes.add_field("locality/unrelated", row, "loc", row.get("loc_ans") or "")
        if target == "alt":  # the added questions follow from the new answer
            probes.one_hop(row)
        info = {field: found for field in ("pred", "cond") if (found := optional(row, field))}
        return EditCase(number(row, "case_id"), (request,), probes.by_key, info)

    return collect(files.rows(source, split), case)
