r"""SLAG: KnowledgeEditor's network, trained on edits that follow each other.

python -m jaxedit.train --config configs/slag.py:world
jaxedit edit --model world --method slag --set trained=runs/slag-world/editor …
"""

from jaxedit.train.editor import PRESETS as PRESETS
from jaxedit.train.editor import for_model
from jaxedit.train.loop import TrainConfig
from jaxedit.train.optimizer import OptimizerConfig

ADAM = OptimizerConfig(1e-3, 0, "linear", beta2=0.999, weight_decay=0.0, clip=100.0)
PAPER = OptimizerConfig(3e-4, 0, "linear", beta2=0.999, weight_decay=0.0, clip=1.0)


def config(preset: str = "world") -> TrainConfig:
    if preset.startswith("world"):
        return for_model("slag", preset, optimizer=ADAM, loop={"steps": 200, "eval_every": 50})
    return for_model("slag", preset, optimizer=PAPER)
