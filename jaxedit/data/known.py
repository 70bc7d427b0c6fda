"""known_1000: facts that GPT-2 XL knows, on which ROME traces causes (Meng et al. 2022)."""

import os
from typing import Any

from jaxedit.data import files
from jaxedit.data.cases import Fact, Found, find, slotted
from jaxedit.data.fields import names, number, optional, text


def known(source: str | os.PathLike, split: str | None = None) -> Found[Fact]:
    """Facts, with nothing to be edited; from `prompt`, as `template` often stops a word before."""
    return find(files.rows(source, split), fact)


def fact(row: Any, reasons: list[str]) -> Fact:
    subject = text(row, "subject")
    prompt = slotted(text(row, "prompt"), subject)
    return Fact(
        number(row, "known_id"),
        prompt,
        subject,
        names(row["attribute"]),
        optional(row, "relation_id"),
    )
