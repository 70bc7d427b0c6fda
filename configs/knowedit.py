r"""KnowEdit, its relatives and the world: any method, every case its own edited model.

    python -m jaxedit.evaluate --config configs/knowedit.py:world-rome
    python -m jaxedit.evaluate --config configs/knowedit.py:zsre-rome \
        --set model=meta-llama/Llama-2-7b-hf data=knowedit/zsre:FOLDER
    python -m jaxedit.evaluate --config configs/knowedit.py:zsre-memit@gpt-j-6b

A preset is DATA-METHOD or DATA-METHOD@MODEL. DATA is one of world, wiki_recent, wiki_counterfact,
zsre, wikibio, convsent, sanitation, counterfact, zsre-mend, mquake, ripple; METHOD one of `jaxedit
edit --help`; MODEL one that settings of the method are published for, or world or world-llama. By
itself it is Llama-2-7B, for the world the model that ships.
"""

from jaxedit.evaluate.task import EvaluateTask, for_data, methods_for

DATA = {
    "world": "world:small:0:200",
    "wiki_recent": "knowedit/wiki_recent:data/knowedit/wiki_recent",
    "wiki_counterfact": "knowedit/wiki_counterfact:data/knowedit/wiki_counterfact",
    "zsre": "knowedit/zsre:data/knowedit/ZsRE",
    "wikibio": "knowedit/wikibio:data/knowedit/WikiBio",
    "convsent": "knowedit/convsent:data/knowedit/convsent",
    "sanitation": "knowedit/sanitation:data/knowedit/Sanitation",
    "counterfact": "counterfact:data/counterfact",
    "zsre-mend": "zsre:data/zsre",
    "mquake": "mquake:data/mquake",
    "ripple": "ripple:data/ripple",
}
model_of = lambda data: "world" if data == "world" else "llama-2-7b"
PRESETS = tuple(f"{data}-{method}" for data in DATA for method in methods_for(model_of(data)))


def config(preset: str = "world-rome") -> EvaluateTask:
    named, _, model = preset.partition("@")
    data = max((name for name in DATA if named.startswith(f"{name}-")), key=len)
    method = named.removeprefix(f"{data}-")
    workdir = f"runs/evaluate-{preset.replace('@', '-')}"
    return for_data(DATA[data], method, model or model_of(data), workdir=workdir)
