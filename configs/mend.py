r"""MEND: a network learns to turn the gradient of a fact into an edit.

python -m jaxedit.train --config configs/mend.py:world
jaxedit edit --model world --method mend --set trained=runs/mend-world/editor …
"""

from jaxedit.train.editor import PRESETS as PRESETS
from jaxedit.train.editor import for_model
from jaxedit.train.loop import TrainConfig


def config(preset: str = "world") -> TrainConfig:
    return for_model("mend", preset)
