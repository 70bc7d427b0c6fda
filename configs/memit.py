r"""MEMIT: many facts at once, in several layers.

    python -m jaxedit.edit --config configs/memit.py:world
    python -m jaxedit.edit --config configs/memit.py:llama-2-7b \
        --set requests=cases.jsonl dtype=bfloat16

`world` needs nothing: 200 facts of the model that ships, on a CPU; what came of it is in
benchmarks/RESULTS.md. The others read the model from the hub or a folder (--set model=FOLDER);
none of them has been run, for want of the models. requests is a file of JSON lines (prompt,
subject, target), a dataset (counterfact:FOLDER) or world:SIZE:SEED:COUNT.
--set independent=false edits all requests together, and writes a ledger.
Second moments are taken of 100,000 articles of Wikipedia, or of any text (--set
stats.text.paths=FOLDER), or read: --set moments=FILE takes the authors' own .npz files.
MODEL-easyedit: the settings of EasyEdit, and its ways where they are others.
"""

from jaxedit.edit.task import EditTask, for_model

PRESETS = (
    "world", "world-llama", "gpt2-xl", "gpt-j-6b", "gpt-neox-20b", "llama-2-7b",
    "llama-3-8b", "mistral-7b", "qwen2.5-7b", "gpt2-xl-easyedit", "gpt-j-6b-easyedit",
    "llama-2-7b-easyedit", "mistral-7b-easyedit", "qwen2.5-7b-easyedit",
)  # fmt: skip


def config(preset: str = "world") -> EditTask:
    return for_model("memit", preset)
