r"""LoRA and AdaLoRA: low ranks in all layers.

    python -m jaxedit.edit --config configs/lora.py:world
    python -m jaxedit.edit --config configs/lora.py:llama-2-7b \
        --set requests=cases.jsonl dtype=bfloat16

`world` needs nothing: 200 facts of the model that ships, on a CPU; what came of it is in
benchmarks/RESULTS.md. The others read the model from the hub or a folder (--set model=FOLDER);
none of them has been run, for want of the models. requests is a file of JSON lines (prompt,
subject, target), a dataset (counterfact:FOLDER) or world:SIZE:SEED:COUNT.
A preset is a model for LoRA, or METHOD:MODEL.
MODEL-easyedit: the settings of EasyEdit, and its ways where they are others.
"""

from jaxedit.edit.task import EditTask, for_model

PRESETS = (
    "world", "world-llama", "adalora:world", "adalora:world-llama", "gpt2-xl", "gpt-j-6b",
    "llama-2-7b", "llama-3-8b", "qwen2.5-7b", "adalora:gpt2-xl", "adalora:gpt-j-6b",
    "adalora:llama-2-7b", "adalora:llama-3-8b", "gpt2-xl-easyedit", "gpt-j-6b-easyedit",
    "llama-2-7b-easyedit", "llama-3-8b-easyedit", "qwen2.5-7b-easyedit",
)  # fmt: skip


def config(preset: str = "world") -> EditTask:
    method, _, name = preset.partition(":")
    return for_model(method, name) if name else for_model("lora", preset)
