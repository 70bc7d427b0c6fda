r"""MALMEN: a network learns how every token's value is to change, least squares make it one edit.

python -m jaxedit.train --config configs/malmen.py:world
jaxedit edit --model world --method malmen --set trained=runs/malmen-world/editor …
"""

import dataclasses

from jaxedit.train.editor import ADAM, for_model
from jaxedit.train.editor import PRESETS as PRESETS
from jaxedit.train.loop import TrainConfig


def config(preset: str = "world") -> TrainConfig:
    if preset.endswith("-zsre"):  # the authors': a thousand edits in a step
        optimizer = dataclasses.replace(ADAM, lr=1e-5, clip=1.0)
        return for_model("malmen", preset, batch=1024, step_lr=1e-5, optimizer=optimizer)
    optimizer = dataclasses.replace(ADAM, lr=8e-5, clip=1.0, schedule="linear")
    return for_model("malmen", preset, batch=256, step_lr=1e-4, optimizer=optimizer)
