"""Peak host memory of loading a sharded checkpoint of 1 GB, and what each of eight devices holds.

    .venv/bin/python benchmarks/load_memory.py         1 minute; writes 1 GB to a temporary folder

Each load runs in a process of its own, which reports the growth of its peak resident memory over
what it held after the imports. On a CPU the "devices" are host memory, so the model itself counts.
Claim: at most the checkpoint's size + 20 %.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
from measure import report

import jaxedit
from jaxedit.hf.load import inspect
from jaxedit.models.shapes import SHAPES
from jaxedit.models.specs import count
from jaxedit.sharding import make_mesh

CFG = SHAPES["llama-2-7b"].replace(
    layers=16, embed=1024, heads=16, kv_heads=8, head_dim=64, rotary_dim=64, mlp=4096
)


def resident(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most. (getrusage also counts the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def load(folder: str, sizes: list[int]) -> None:
    """The child: loads, and says what it took."""
    inspect(folder)  # imports all that loading needs; their memory is not the loading's
    mesh = make_mesh(sizes[0], sizes[1], sizes[2]) if sizes else None
    jax.block_until_ready(jax.numpy.zeros(1))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, start = resident("VmRSS"), time.perf_counter()
    model = jaxedit.load(folder, mesh)
    jax.block_until_ready(model.params)
    took, grown = time.perf_counter() - start, resident("VmHWM") - before
    held = dict.fromkeys(jax.devices(), 0)
    for x in jax.tree.leaves(model.params):
        for shard in x.addressable_shards:
            held[shard.device] += shard.data.nbytes
    size = 4 * count(CFG)
    report(
        "load a sharded checkpoint",
        mesh=sizes or None,
        checkpoint_gb=size / 1e9,
        peak_growth_gb=grown / 1e9,
        ratio=grown / size,
        seconds=took,
        device_share_largest=max(held.values()) / size,
        device_share_smallest=min(b for b in held.values() if b) / size,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/model"
        params = jaxedit.init(jax.random.key(0), CFG)
        jaxedit.save(jaxedit.Model(params, CFG), folder, max_shard=200_000_000)
        for sizes in ([], [1, 8, 1], [2, 2, 2]):
            command = [sys.executable, __file__, folder, *map(str, sizes)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        load(sys.argv[1], [int(n) for n in sys.argv[2:]])
    else:
        main()
