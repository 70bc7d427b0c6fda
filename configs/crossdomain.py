r"""A trained editor where it was not trained: learned on facts about people, edits of facts about
things, and the other way round.

    python -m jaxedit.train --config configs/mend.py:world-people
    python -m jaxedit.evaluate --config configs/crossdomain.py:mend-people-things
    jaxedit report runs/crossdomain-mend-people-people runs/crossdomain-mend-people-things

A preset is METHOD-LEARNED-EDITED. Datasets are crossed in the same way: train on one
(configs/mend.py:llama-2-7b-zsre), then
`python -m jaxedit.evaluate --config configs/knowedit.py:wiki_counterfact-mend --set \
editor.trained=runs/mend-llama-2-7b-zsre/editor`.
"""

import dataclasses

from jaxedit.evaluate.task import EvaluateTask, for_data
from jaxedit.train.editor import DOMAINS, held_out

METHODS = ("mend", "malmen", "ke", "slag", "enn", "serac")
PRESETS = tuple(f"{m}-{x}-{y}" for m in METHODS for x in DOMAINS for y in DOMAINS)


def config(preset: str = "mend-people-things") -> EvaluateTask:
    method, learned, edited = preset.split("-")
    cfg = for_data(held_out(DOMAINS[edited]), method, workdir=f"runs/crossdomain-{preset}")
    trained = f"runs/{method}-world-{learned}/editor"
    return dataclasses.replace(cfg, editor=dataclasses.replace(cfg.editor, trained=trained))
