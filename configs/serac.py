r"""SERAC: a memory of edits, a trained classifier of what each is about, and a trained model that
answers where one is.

python -m jaxedit.train --config configs/serac.py:world
python -m jaxedit.evaluate --config configs/knowedit.py:world-serac
"""

from jaxedit.train.editor import PRESETS as PRESETS
from jaxedit.train.editor import for_model
from jaxedit.train.loop import TrainConfig
from jaxedit.train.optimizer import OptimizerConfig

FAST = OptimizerConfig(3e-3, 0, "linear", 0.05, beta2=0.999, weight_decay=0.0, clip=100.0)


def config(preset: str = "world") -> TrainConfig:
    ours = {"optimizer": FAST, "loop": {"steps": 500}} if preset.startswith("world") else {}
    return for_model("serac", preset, **ours)
