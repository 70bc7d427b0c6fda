"""The everyday call: cases and their edits in, scores out.

scores = run(model, cases, edits)                  every case asked of its own edited model
print(table(summarise(scores)))
"""

import math
from collections.abc import Sequence
from typing import Any

from jaxedit.data.cases import EditCase
from jaxedit.edit.record import Edit
from jaxedit.edit.room import room
from jaxedit.evaluate.ask import Asker
from jaxedit.evaluate.observe import AskConfig, Protocol, observe
from jaxedit.evaluate.references import Find
from jaxedit.evaluate.scores import score
from jaxedit.models.config import Model


def run(
    model: Model,
    cases: Sequence[EditCase],
    edits: Sequence[Edit] | Edit,
    *,
    protocol: Protocol = "paper",
    references: Find | None = None,
    **how: Any,
) -> list[dict[str, float]]:
    """Every metric of every case, under the names of `scores`. One edit for each case, or one for
    all. how: the other fields of `AskConfig` (say=0: no free answers; continued=0: no fluency).
    """
    shared = isinstance(edits, Edit)
    many = [edits] if isinstance(edits, Edit) else list(edits)
    if not shared and len(many) != len(cases):
        raise ValueError(f"{len(many)} edits for {len(cases)} cases: one for each, or one for all")
    for edit in many[:1]:  # all of one base: a checksum is a pass over the weights
        edit.check(model)
    edit_of = [0] * len(cases) if shared else None
    asker = Asker(model, room(model))
    seen = observe(asker, cases, many, edit_of, AskConfig(protocol, **how))
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]
    find = references or (lambda case: None)
    found = [score(s, protocol, references=find(s.case), tokenise=encode) for s in seen]
    # an edit that broke the model has no such numbers
    return [{k: v for k, v in one.items() if math.isfinite(v)} for one in found]
