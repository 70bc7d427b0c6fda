"""Non-vacuous bounds of language models that a few numbers choose (SubLoRA, Lotfi et al., 2024).

    python -m jaxedit.bounds --config configs/sublora.py:eltec \
        --set sample.text.paths='(DATA/text/eltec_eng.jsonl.gz,)'
    jaxedit bound verify runs/bound-eltec

eltec: passages of 64 characters of English novels, byte by byte; one CPU.
"""

import dataclasses

from jaxedit.bounds.certificate import BoundConfig, RoundConfig
from jaxedit.bounds.claims import ClaimConfig
from jaxedit.bounds.family import Choices, FamilyConfig
from jaxedit.bounds.fit import PUBLISHED, FitConfig
from jaxedit.bounds.risk import ReadConfig
from jaxedit.bounds.sample import SampleConfig
from jaxedit.bounds.subspace import SubspaceConfig
from jaxedit.data.documents import Source
from jaxedit.models.shapes import SHAPES

PRESETS = ("eltec",)
NOVELS = Source(paths=("data/text/eltec_eng.jsonl.gz",), cut=64)
SMALL = SHAPES["gpt2-small"].replace(
    layers=2, embed=64, heads=4, kv_heads=4, head_dim=16, mlp=256, vocab=257, max_len=128,
    bos_id=256, eos_ids=(256,),
)  # fmt: skip
DIMS, LEVELS = (256, 484, 1024, 2025), (3, 5, 7, 11)


def config(preset: str = "eltec") -> BoundConfig:
    fast = dataclasses.replace(PUBLISHED, lr=2e-2, warmup=100, final=0.05, weight_decay=0.0)
    return BoundConfig(
        sample=SampleConfig(NOVELS, draws=500_000),
        family=FamilyConfig(SMALL, subspace=SubspaceConfig(dim=1024)),
        fit=FitConfig(steps=2000, batch=64, length=64, optimizer=fast, unroll=True),
        round=RoundConfig(
            levels=7,
            train=FitConfig(
                steps=600,
                batch=64,
                length=64,
                unroll=True,
                optimizer=dataclasses.replace(fast, lr=2e-3, warmup=20),
            ),
        ),
        choices=Choices(dims=DIMS, ranks=(1, 4), levels=LEVELS),
        claim=ClaimConfig(theorem="betting", read=ReadConfig(window=64, stride=64)),
        workdir="runs/bound-eltec",
    )
