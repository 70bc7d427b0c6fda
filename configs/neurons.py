"""Finders of neurons beside each other: do their neurons matter for a fact, and for it alone?

    python -m jaxedit.locate --config configs/neurons.py:world
    python -m jaxedit.locate --config configs/neurons.py:gpt2-xl --set facts=pararel:FOLDER

world, world-llama: 100 facts of the models that ship; a CPU. gpt2-xl, gpt-j-6b, llama-2-7b: facts
of ParaRel in their several wordings; one GPU, on which they have not been run.
"""

from jaxedit.edit.presets import MODELS
from jaxedit.locate.compare import CompareTask

PRESETS = ("world", "world-llama", "gpt2-xl", "gpt-j-6b", "llama-2-7b")


def config(preset: str = "world") -> CompareTask:
    ours = preset in ("world", "world-llama")
    return CompareTask(
        MODELS[preset].hub,
        "world:small:0:100" if ours else "pararel:data/pararel",
        limit=0 if ours else 200,
        dtype="float32" if ours else None,
        workdir=f"runs/neurons-{preset}",
    )
