"""Non-vacuous bounds of language models that few numbers choose (SubLoRA, Lotfi et al., 2024).

    python -m jaxedit.bounds --config configs/sublora.py:world
    jaxedit bound verify runs/bounds/world
    python -m jaxedit.bounds --config configs/sublora.py:eltec --set sample.text.paths=NOVELS
    python -m jaxedit.bounds --config configs/sublora.py:modes --set base.sample.text.paths=NOVELS
    python -m jaxedit.train --config configs/sublora.py:eltec-train

NOVELS is any English text as JSONL, such as ELTeC's English novels (eltec_eng.jsonl.gz). Passages
of it are drawn independently, so that the true risk can be measured beside the bound. One CPU, but
for gpt2-small and gpt2-small-train (one GPU).

world: one certificate, of text about the small world, which needs no file. eltec: the same of
novels. modes: SubLoRA beside LoRA alone, a subspace of all weights, and all weights (table 1 of the
paper). sizes: models of several sizes (table 2, figure 3). dims: how many numbers (figure 2).
fronts: how many, of which rank and how many levels (figure 1). shuffled: text whose tokens are
permuted (figure 4). finetuned: the shipped model, which has seen none of the text, as the prior.
"""

import dataclasses
from typing import Any

from jaxedit.bounds.certificate import BoundConfig, RoundConfig
from jaxedit.bounds.claims import ClaimConfig
from jaxedit.bounds.family import Choices, FamilyConfig
from jaxedit.bounds.fit import PUBLISHED, FitConfig
from jaxedit.bounds.risk import ReadConfig
from jaxedit.bounds.sample import SampleConfig
from jaxedit.bounds.subspace import SubspaceConfig
from jaxedit.bounds.sweep import SweepConfig
from jaxedit.data.documents import Source
from jaxedit.models.shapes import SHAPES
from jaxedit.train.loop import TrainConfig

SWEEPS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "modes": (
        ("SubLoRA", ("choices.model=0",)),
        ("LoRA", ("choices.model=1", "family.subspace.kind=identity")),
        ("subspace", ("choices.model=2", "family.lora=none")),
        ("all weights", (
            "choices.model=3", "family.lora=none", "family.subspace.kind=identity",
            "fit.optimizer.lr=3e-3",
        )),
    ),
    "sizes": tuple(
        (f"{layers} x {width}", (
            f"choices.model={i}", f"family.model.layers={layers}", f"family.model.embed={width}",
            f"family.model.mlp={4 * width}", f"family.model.head_dim={width // 4}",
        ))
        for i, (layers, width) in enumerate(((1, 32), (2, 64), (3, 128), (4, 192)))
    ),
    "dims": tuple((str(d), (f"family.subspace.dim={d}",)) for d in (100, 256, 484, 1024, 2025)),
    "shuffled": tuple((str(n), (f"sample.shuffled={n}",)) for n in (0, 2, 4, 16, 64)),
    "fronts": tuple(
        (f"rank {r}, {k} levels: {d}", (
            f"family.lora.rank={r}", f"round.levels={k}", f"family.subspace.dim={d}",
        ))
        for r, k, dims in (
            (1, 7, (100, 256, 484)), (4, 3, (100, 484, 2025)), (4, 11, (100, 484, 2025)),
        )
        for d in dims
    ),
}  # fmt: skip
AXES = {"dims": "numbers", "shuffled": "tokens permuted together", "fronts": "bytes"}
PRESETS = ("world", "eltec", "eltec-train", *SWEEPS, "finetuned", "gpt2-small", "gpt2-small-train")
SMALL = SHAPES["gpt2-small"].replace(
    layers=2, embed=64, heads=4, kv_heads=4, head_dim=16, mlp=256, vocab=257, max_len=128,
    bos_id=256, eos_ids=(256,),
)  # fmt: skip
FAST = dataclasses.replace(PUBLISHED, lr=2e-2, warmup=100, final=0.05, weight_decay=0.0)


def config(preset: str = "eltec") -> Any:
    name = preset.removesuffix("-train")
    base = gpt2_small() if name == "gpt2-small" else eltec()
    if name == "world":
        text = Source(paths=("world:small:0:200000",), cut=64)
        base = dataclasses.replace(base, sample=SampleConfig(text, draws=200_000))
    if name == "finetuned":
        base = finetuned(base)
    if preset.endswith("-train"):
        return TrainConfig(base.task, base.fit.loop, f"runs/bounds/{preset}")
    if preset not in SWEEPS:
        return dataclasses.replace(base, workdir=f"runs/bounds/{preset}")
    variants = SWEEPS[preset]
    if preset not in ("dims", "fronts"):
        choices = Choices(levels=(7,), models=len(variants) if preset != "shuffled" else 1)
        base = dataclasses.replace(base, choices=choices)
    return SweepConfig(base, variants, AXES.get(preset, ""), f"runs/bounds/{preset}")


def eltec() -> BoundConfig:
    """Passages of 64 characters, byte by byte."""
    fit = FitConfig(steps=2000, batch=64, length=64, optimizer=FAST, unroll=True)
    gentle = dataclasses.replace(FAST, lr=2e-3, warmup=20)
    return BoundConfig(
        sample=SampleConfig(Source(paths=("data/text/eltec_eng.jsonl.gz",), cut=64), draws=500_000),
        family=FamilyConfig(SMALL, subspace=SubspaceConfig(dim=1024)),
        fit=fit,
        round=RoundConfig(levels=7, train=dataclasses.replace(fit, steps=600, optimizer=gentle)),
        choices=Choices(dims=(100, 256, 484, 1024, 2025), ranks=(1, 4), levels=(3, 5, 7, 11)),
        claim=ClaimConfig(theorem="betting", read=ReadConfig(window=64, stride=64)),
    )


def finetuned(base: BoundConfig) -> BoundConfig:
    """A pretrained model is a prior that costs nothing, if the text is none that it has seen: the
    shipped one knows the small world of seed 0, and nothing of that of seed 1.
    """
    text = Source(paths=("world:small:1:200000",))
    return dataclasses.replace(
        base,
        sample=SampleConfig(text, draws=200_000),
        family=FamilyConfig(start="world", tokenizer="", subspace=SubspaceConfig(dim=484)),
    )


def gpt2_small() -> BoundConfig:
    """GPT-2-small from random weights, on passages of 128 characters in GPT-2's tokens."""
    rate = dataclasses.replace(PUBLISHED, warmup=100, final=0.05)
    fit = FitConfig(steps=2000, batch=1024, length=48, optimizer=rate, log_every=20, unroll=True)
    gentle = dataclasses.replace(rate, lr=5e-4, warmup=20)
    return BoundConfig(
        sample=SampleConfig(
            Source(paths=("data/text/eltec_eng.jsonl.gz",), cut=128), draws=400_000
        ),
        family=FamilyConfig(
            SHAPES["gpt2-small"].replace(vocab=50304, max_len=1024),
            tokenizer="data/tokenizers/gpt2",
            subspace=SubspaceConfig(dim=5041),
            dtype="bfloat16",
        ),
        fit=fit,
        round=RoundConfig(levels=7, train=dataclasses.replace(fit, steps=300, optimizer=gentle)),
        choices=Choices(dims=(1024, 2025, 5041, 10_000), ranks=(1, 4), levels=(3, 5, 7, 11)),
        claim=ClaimConfig(theorem="betting", read=ReadConfig(window=48, stride=48, batch=49_152)),
    )
