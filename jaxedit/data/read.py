"""Published datasets by name."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxedit.data.cases import Found
from jaxedit.data.counterfact import counterfact
from jaxedit.data.exams import commonsense_qa, gsm8k, mmlu, piqa, transfer
from jaxedit.data.knowedit import convsent, edits, sanitation, wikibio
from jaxedit.data.known import known
from jaxedit.data.mquake import mquake
from jaxedit.data.pararel import pararel
from jaxedit.data.ripple import ripple
from jaxedit.data.zsre import zsre
from jaxedit.settings import suggest

READERS: Mapping[str, Callable[..., Found[Any]]] = {
    # Cases: requests and their probes.
    "knowedit/wiki_recent": edits,
    "knowedit/wiki_counterfact": edits,
    "knowedit/zsre": edits,
    "knowedit/wikibio": wikibio,
    "knowedit/convsent": convsent,
    "knowedit/sanitation": sanitation,
    "counterfact": counterfact,
    "zsre": zsre,  # towards a new answer, as EasyEdit edits
    "zsre/true": partial(zsre, target="true"),  # towards the true one, as ROME and MEMIT do
    "mquake": mquake,
    "ripple": ripple,
    # Facts.
    "known_1000": known,
    "pararel": pararel,
    # Questions, problems and dialogues.
    "mmlu": mmlu,
    "commonsense_qa": commonsense_qa,
    "piqa": piqa,
    "gsm8k": gsm8k,
    "transfer": transfer,
}


def read(name: str, source: str | os.PathLike, split: str | None = None) -> Found[Any]:
    """A dataset from a file, a folder or the hub (`files.contents` says how these are written).

    Cases, facts, questions, problems or dialogues, in the order of the files, with what was left
    out. Rows that break the contract are skipped and listed; if all of them do, this is another
    dataset, and an error.
    """
    if name not in READERS:
        raise ValueError(f"dataset {name!r}: {suggest(name, READERS)}")
    found = READERS[name](source, split)
    if not len(found):
        first = f": {found.skipped[0].row}: {found.skipped[0].reason}" if found.skipped else ""
        count = f"none of {len(found.skipped):,} rows" if found.skipped else "no row"
        raise ValueError(f"{source}: {count} could be read as {name}{first}")
    return found
