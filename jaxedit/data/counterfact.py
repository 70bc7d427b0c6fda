"""CounterFact (Meng et al. 2022), in ROME's schema and in EasyEdit's flat form."""

import os
from typing import Any

from jaxedit.data import files
from jaxedit.data.cases import SLOT, Cases, EditCase, EditRequest, collect
from jaxedit.data.fields import Probes, names, number, optional, text


def counterfact(source: str | os.PathLike, split: str | None = None) -> Cases:
    """The form of a row is seen from its fields, so a folder may hold both.

    Answers: the new object for "rephrase" and "attribute", the true one for "locality/neighborhood"
    and "locality/distracting"; "generation" has none. The added files of one-hop questions, other
    subject names and distracting neighbours are read as well.
    """
    return collect(files.rows(source, split), case)


def case(row: Any, reasons: list[str]) -> EditCase:
    return rome(row, reasons) if "requested_rewrite" in row else flat(row, reasons)


def rome(row: Any, reasons: list[str]) -> EditCase:
    rewrite = row["requested_rewrite"]
    subject, target = text(rewrite, "subject"), text(rewrite["target_new"], "str")
    truth = text(rewrite["target_true"], "str")
    request = EditRequest(text(rewrite, "prompt"), subject, target, (truth,))
    probes = Probes(subject, reasons)
    probes.add_field("rephrase", row, "paraphrase_prompts", target)
    probes.add_field("locality/neighborhood", row, "neighborhood_prompts", truth)
    probes.add_field("locality/distracting", row, "distracting_neighborhood_prompts", truth)
    probes.add_field("attribute", row, "attribute_prompts", target)
    probes.add_field("generation", row, "generation_prompts", None)
    for alias in names(row.get("alternative_subject") or []):
        prompt = request.prompt.replace(SLOT, alias)
        probes.add("portability/subject_aliasing", prompt, target)
    probes.one_hop(row)
    info = {"relation": optional(rewrite, "relation_id")}
    if name := optional(rewrite["target_new"], "id"):
        info["target_id"] = name  # with the relation it names what is published about the object
    return EditCase(number(row, "case_id"), (request,), probes.by_key, info)


def flat(row: Any, reasons: list[str]) -> EditCase:
    subject, target = text(row, "subject"), text(row, "target_new")
    truth = names(row["ground_truth"])
    request = EditRequest.of(text(row, "prompt"), subject, target, truth)
    probes = Probes(subject, reasons)
    probes.add_field("rephrase", row, "rephrase_prompt", target)
    probes.add_field(
        "locality/neighborhood", row, "locality_prompt", row.get("locality_ground_truth") or ""
    )
    probes.one_hop(row)
    return EditCase(str(row["case_id"]), (request,), probes.by_key)
