"""Causal tracing (Meng et al., 2022): where a model keeps what it knows of a subject.

    python -m jaxedit.locate --config configs/trace.py:world
    python -m jaxedit.locate --config configs/trace.py:gpt2-xl --set facts=known_1000:FILE

world, world-llama: 100 facts of the models that ship; a CPU. gpt2-xl, gpt-j-6b, llama-2-7b: the
facts of known_1000 that the model knows, noise as the authors' scripts have it (three times the
spread of the subjects' embeddings where they have none); one GPU. None has been run in
full: at GPT-2-XL's shape on an H200 a prompt of 12 tokens takes 0.31 s (hidden), 0.34 (mlp), 0.34
(attn), after about 20 s of compilation for each kind and each length of four tokens more
(`python benchmarks/trace.py gpu`).
"""

from jaxedit.edit.presets import MODELS
from jaxedit.locate.task import TraceTask

PRESETS = ("world", "world-llama", "gpt2-xl", "gpt-j-6b", "llama-2-7b")
LEVELS = {"gpt2-xl": 0.1, "gpt-j-6b": 0.025}  # the authors' scripts


def config(preset: str = "world") -> TraceTask:
    ours = preset in ("world", "world-llama")
    return TraceTask(
        MODELS[preset].hub,
        "world:small:0:100" if ours else "known_1000:data/locate/known_1000.json",
        level=LEVELS.get(preset, 0.0),
        dtype="float32" if ours else None,
        workdir=f"runs/trace-{preset}",
    )
