"""How many bytes each method's edits take, and what they do to a bound on the edited model's risk.

    python -m jaxedit.bounds --config configs/bits.py:world

20 edits of each method that needs no training; five of each are bounded, on passages about the
world, of which 200,000 are drawn. One CPU.
"""

from jaxedit.bounds.bits import BitsConfig
from jaxedit.bounds.claims import ClaimConfig
from jaxedit.bounds.risk import ReadConfig
from jaxedit.bounds.sample import SampleConfig
from jaxedit.data.documents import Source

PRESETS = ("world", "world-llama")


def config(preset: str = "world") -> BitsConfig:
    return BitsConfig(
        preset,
        "world:small:0:20",
        ("rome", "memit", "alphaedit", "ft-m", "lora", "kn"),
        SampleConfig(Source(("world:small:0:20000",)), draws=200_000),
        ClaimConfig("betting", evaluated=2000, fresh=0, read=ReadConfig(window=128, stride=64)),
        dtype="float32",
        workdir=f"runs/bits/{preset}",
    )
