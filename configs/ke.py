r"""KnowledgeEditor: a network reads a fact and says by how much each entry of its gradient counts.

python -m jaxedit.train --config configs/ke.py:world
jaxedit edit --model world --method ke --set trained=runs/ke-world/editor …
"""

from jaxedit.train.editor import PRESETS as PRESETS
from jaxedit.train.editor import for_model
from jaxedit.train.loop import TrainConfig
from jaxedit.train.optimizer import OptimizerConfig

ADAM = OptimizerConfig(1e-3, 0, "linear", beta2=0.999, weight_decay=0.0, clip=100.0)
PAPER = OptimizerConfig(3e-4, 1000, "linear", beta2=0.999, weight_decay=0.0, clip=100.0)


def config(preset: str = "world") -> TrainConfig:
    if preset.startswith("world"):
        return for_model("ke", preset, optimizer=ADAM, loop={"steps": 300, "eval_every": 50})
    return for_model("ke", preset, optimizer=PAPER)
