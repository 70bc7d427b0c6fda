"""Pretraining on text and on the large made-up world, one GPU or a mesh.

    python -m jaxedit.train --config configs/pretrain.py:gpt2-small \
        --set task.text.source.paths='(DATA/text/eltec_eng.jsonl.gz,world:large:0:1500000)' \
        task.tokenizer=DATA/tokenizers/gpt2 task.mesh.fsdp=-1

    python -m jaxedit.train --config configs/pretrain.py:llama-160m \
        --set task.text.source.paths='(DATA/text/eltec_eng.jsonl.gz,world:large:0:1500000)' \
        task.tokenizer=DATA/tokenizers/gpt2 task.mesh.fsdp=-1 workdir=runs/pretrain-llama-160m

The repository holds neither text nor GPT-2's tokenizer: the defaults data/text and
data/tokenizers/gpt2 are folders to make where the command is started, or set both as above.
task.text.source.paths: files or folders of English text, JSONL or plain, and the made-up world,
which needs no file. task.tokenizer: a folder with GPT-2's tokenizer.json, or with its vocab.json
and merges.txt.

Hardware: made for one H100 or H200 (bfloat16, 64 windows of 1,024 tokens a step). A bare training
step of gpt2-small goes through 461,100 tokens a second on an H200 (`python benchmarks/gpu.py
gpt2-small`); neither preset has been run to its end, so no loss is promised. 1.5 million
documents of the large world state each of its 130,000 facts about a dozen times.
"""

from typing import Any

from jaxedit.data.documents import Source
from jaxedit.data.text import TextConfig
from jaxedit.models.shapes import SHAPES
from jaxedit.train.language import EvalConfig, LanguageConfig
from jaxedit.train.loop import LoopConfig, TrainConfig
from jaxedit.train.optimizer import OptimizerConfig

PRESETS = ("gpt2-small", "llama-160m")
ENDS: dict[str, Any] = {"bos_id": 50256, "eos_ids": (50256,)}
TEXT = ("data/text", "world:large:0:1500000")


def config(preset: str = "gpt2-small") -> TrainConfig:
    task = LanguageConfig(
        text=TextConfig(source=Source(paths=TEXT), length=1024, batch=64, held_out=0.005),
        model=SHAPES[preset].replace(vocab=50304, tied=True, **ENDS),  # GPT-2's tokens, and a few
        tokenizer="data/tokenizers/gpt2",
        optimizer=OptimizerConfig(lr=6e-4, warmup=200, weight_decay=0.1),
        eval=EvalConfig(batches=8, world="large:0", groups=("facts", "paraphrases_new")),
        unroll=True,
        dtype="bfloat16",
        save_dtype="bfloat16",
    )
    loop = LoopConfig(steps=3000, log_every=20, eval_every=500, save_every=500)
    return TrainConfig(task, loop, f"runs/pretrain-{preset}")
