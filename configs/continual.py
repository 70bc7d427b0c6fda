r"""A thousand edits one after the other: what is forgotten, and how far the model drifts.

    python -m jaxedit.evaluate --config configs/continual.py:world-rome
    python -m jaxedit.evaluate --config configs/continual.py:mixed-memit \
        --set model=FOLDER batch=100 drift.sets="(mmlu:FOLDER@test,)"

A preset is DATA-METHOD, or DATA-METHOD@MODEL as in configs/knowedit.py. `world`: 300 facts of the
model that ships, changed, added and erased in turn, with the perplexity of a text about the world;
on a CPU. `thousand`: 500 changed and 500 added ones (a trained editor has learned from none of the
first 200). `mixed`: zsRE, CounterFact and wiki_recent in turn, 1,000 of them, after 10, 100, 500
and all of them. The report draws the curves and the forgetting matrix: case i, asked after edit j.
To apply a trained editor to other data than it was trained on is an independent run of it:
configs/knowedit.py with --set editor.…
"""

from jaxedit.data.documents import Source
from jaxedit.evaluate.ability import AbilityConfig
from jaxedit.evaluate.task import EvaluateTask, for_data, methods_for

DATA = {
    "world": ("world:small:0:300:counterfactual+insertion+erasure",),
    "thousand": ("world:small:0:500", "world:small:0:500:insertion:1"),
    "mixed": (
        "knowedit/zsre:data/knowedit/ZsRE", "counterfact:data/counterfact",
        "knowedit/wiki_recent:data/knowedit/wiki_recent",
    ),
}  # fmt: skip
MODEL = {"world": "world", "thousand": "world", "mixed": "llama-2-7b"}
PRESETS = tuple(f"{data}-{m}" for data, model in MODEL.items() for m in methods_for(model))


def config(preset: str = "world-rome") -> EvaluateTask:
    named, _, model = preset.partition("@")
    name, _, method = named.partition("-")
    ours = MODEL[name] == "world"
    text = Source(("world:small:0:300",)) if ours else Source()
    return for_data(
        DATA[name], method, model or MODEL[name], how="sequence",
        batch=0 if method in ("rome", "r-rome") else 1, limit=0 if ours else 334,
        drift=AbilityConfig(text=text), workdir=f"runs/continual-{preset.replace('@', '-')}",
    )  # fmt: skip
