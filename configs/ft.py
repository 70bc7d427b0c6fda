r"""Fine-tuning of one matrix: FT-L, FT-M, FT-C.

    python -m jaxedit.edit --config configs/ft.py:world
    python -m jaxedit.edit --config configs/ft.py:llama-2-7b \
        --set requests=cases.jsonl dtype=bfloat16

`world` needs nothing: 200 facts of the model that ships, on a CPU; what came of it is in
benchmarks/RESULTS.md. The others read the model from the hub or a folder (--set model=FOLDER);
none of them has been run, for want of the models. requests is a file of JSON lines (prompt,
subject, target), a dataset (counterfact:FOLDER) or world:SIZE:SEED:COUNT.
A preset is a model for FT-M, or METHOD:MODEL. An edit holds a whole matrix; --set size=4 limits
how many are made in one program.
MODEL-easyedit: the settings of EasyEdit, and its ways where they are others.
"""

from jaxedit.edit.task import EditTask, for_model

PRESETS = (
    "world", "world-llama", "ft-l:world", "ft-c:world", "gpt2-xl", "gpt-j-6b", "llama-2-7b",
    "llama-3-8b", "mistral-7b", "qwen2.5-7b", "ft-l:gpt2-xl", "ft-l:gpt-j-6b",
    "ft-l:llama-2-7b", "ft-c:gpt2-xl", "ft-c:gpt-j-6b", "gpt2-xl-easyedit",
    "gpt-j-6b-easyedit", "llama-2-7b-easyedit", "llama-3-8b-easyedit",
    "mistral-7b-easyedit", "qwen2.5-7b-easyedit", "ft-l:gpt2-xl-easyedit",
    "ft-l:gpt-j-6b-easyedit", "ft-l:llama-2-7b-easyedit", "ft-c:gpt2-xl-easyedit",
)  # fmt: skip


def config(preset: str = "world") -> EditTask:
    method, _, name = preset.partition(":")
    return for_model(method, name) if name else for_model("ft-m", preset)
