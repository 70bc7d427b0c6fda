r"""AlphaEdit: sequences of edits that leave the keys of other text alone.

    python -m jaxedit.edit --config configs/alphaedit.py:world
    python -m jaxedit.edit --config configs/alphaedit.py:llama-3-8b \
        --set requests=cases.jsonl dtype=bfloat16

`world` needs nothing: 200 facts of the model that ships, on a CPU; what came of it is in
benchmarks/RESULTS.md. The others read the model from the hub or a folder (--set model=FOLDER);
none of them has been run, for want of the models. requests is a file of JSON lines (prompt,
subject, target), a dataset (counterfact:FOLDER) or world:SIZE:SEED:COUNT.
--set independent=false batch=100 edits in a sequence of batches of 100, and writes a ledger.
Second moments are taken of 100,000 articles of Wikipedia, or of any text (--set
stats.text.paths=FOLDER), or read: --set moments=FILE takes the authors' own .npz files.
MODEL-easyedit: the settings of EasyEdit, and its ways where they are others.
"""

from jaxedit.edit.task import EditTask, for_model

PRESETS = (
    "world", "world-llama", "gpt2-xl", "gpt-j-6b", "llama-3-8b", "qwen2.5-7b",
    "gpt2-xl-easyedit", "gpt-j-6b-easyedit", "llama-3-8b-easyedit", "qwen2.5-7b-easyedit",
)  # fmt: skip


def config(preset: str = "world") -> EditTask:
    return for_model("alphaedit", preset)
