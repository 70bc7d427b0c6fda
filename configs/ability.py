r"""What a model can do at all, before and after an edit: exams, and the perplexity of a text.

    python -m jaxedit.evaluate --config configs/ability.py:world --set edit=edit.safetensors
    python -m jaxedit.evaluate --config configs/ability.py:exams \
        --set model=FOLDER edit=edit.safetensors ability.sets="(mmlu:FOLDER@test,piqa:FOLDER)"

`world` needs nothing: the perplexity of a text about its world. `exams` takes MMLU, CommonsenseQA
and PIQA from files (the forms are in jaxedit/evaluate/choice.py). For TriviaQA, XSum, AGIEval and
all else that lm-evaluation-harness offers: `pip install -e ".[harness]"`, then

    python -m jaxedit.evaluate harness --tasks triviaqa \
        --model_args model=FOLDER,edit=edit.safetensors
"""

from jaxedit.data.documents import Source
from jaxedit.evaluate.ability import AbilityConfig, AbilityTask

PRESETS = ("world", "world-llama", "exams")


def config(preset: str = "world") -> AbilityTask:
    if preset == "exams":
        sets = ("mmlu:data/eval/mmlu@test", "commonsense_qa:data/eval/commonsense_qa",
                "piqa:data/eval/piqa")  # fmt: skip
        return AbilityTask("gpt2", ability=AbilityConfig(sets), workdir="runs/ability-exams")
    text = Source(("world:small:0:500",))
    return AbilityTask(preset, ability=AbilityConfig(text=text), dtype="float32",
                       workdir=f"runs/ability-{preset}")  # fmt: skip
