r"""Editable neural networks: weights that have learned to be edited by a step of gradient descent.

python -m jaxedit.train --config configs/enn.py:world
jaxedit edit --model world --method enn --set trained=runs/enn-world/editor …
"""

from jaxedit.train.editor import PRESETS as PRESETS
from jaxedit.train.editor import for_model
from jaxedit.train.loop import TrainConfig
from jaxedit.train.optimizer import OptimizerConfig

ADAM = OptimizerConfig(3e-4, 0, "linear", beta2=0.999, weight_decay=0.0, clip=100.0)


def config(preset: str = "world") -> TrainConfig:
    if preset.startswith("world"):
        how = {"steps": 300, "eval_every": 50}
        return for_model("enn", preset, optimizer=ADAM, step_lr=1e-3, loop=how)
    return for_model("enn", preset)
