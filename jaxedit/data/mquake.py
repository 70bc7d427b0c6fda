"""MQuAKE (Zhong et al. 2023): edits, and questions whose answer hangs on all of them."""

import os
from collections.abc import Mapping
from typing import Any

from jaxedit.data import files
from jaxedit.data.cases import Cases, EditCase, EditRequest, collect
from jaxedit.data.fields import Probes, number, optional, text


def mquake(source: str | os.PathLike, split: str | None = None) -> Cases:
    """A case has one request for each edited fact of a chain.

    "multi_hop": the phrasings of one question, right if any of them is answered with the new answer
    or an alias. "single_hop": the facts of the chain after the edits, each a test of its own. In
    `info`: the old answers of both ("answer", "single_hops") and the hops as sentences to be
    completed ("cloze"). A case that lacks one of its edits is another case, so it is left out.
    """
    return collect(files.rows(source, split), case)


def case(row: Any, reasons: list[str]) -> EditCase:
    requests = tuple(request(rewrite) for rewrite in row["requested_rewrite"])
    if not requests:
        raise ValueError("no requested_rewrite")
    after, before = Probes("", reasons), Probes("", reasons)
    for question in row["questions"]:
        after.add("multi_hop", question, aliases(row, "new_answer"), group="chain", rule="any")
    for probes, field in ((after, "new_single_hops"), (before, "single_hops")):
        for hop in row.get(field) or ():
            probes.add("single_hop", hop.get("question"), aliases(hop, "answer"))
    info: dict[str, Any] = {
        "answer": tuple(aliases(row, "answer")),
        "single_hops": before.by_key.get("single_hop", ()),
        "cloze": tuple(optional(hop, "cloze") for hop in row.get("new_single_hops") or ()),
    }
    if source := optional(row, "_source"):  # a collection, whose parts should not be mixed
        info["source"] = source
    # Such a collection numbers its cases as their sources do, in several ways.
    name = f"{optional(row, '_case_id_space')} {number(row, 'case_id')}".strip()
    return EditCase(name, requests, after.by_key, info)


def request(rewrite: Mapping[str, Any]) -> EditRequest:
    target, truth = text(rewrite["target_new"], "str"), text(rewrite["target_true"], "str")
    return EditRequest(text(rewrite, "prompt"), text(rewrite, "subject"), target, (truth,))


def aliases(row: Mapping[str, Any], field: str) -> list[str]:
    """An answer and its other names; none where there is no answer."""
    answer = row.get(field)
    return [answer, *(row.get(f"{field}_alias") or ())] if answer else []
