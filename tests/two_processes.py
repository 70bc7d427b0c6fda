"""One of the two processes of test_processes.py: loads, runs, saves on a mesh over both."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxedit
from jaxedit import cli
from jaxedit.hf.load import save_checkpoint
from jaxedit.hf.save import save
from jaxedit.models.generate import decode
from jaxedit.models.specs import flatten
from jaxedit.sharding import make_mesh
from jaxedit.tensorfile import Tensor

TOKENS = np.random.RandomState(0).randint(0, 101, (4, 8)).astype(np.int32)
POS = np.broadcast_to(np.arange(8, dtype=np.int32), (4, 8))
STEPS = 4


def loss(params, tokens, cfg):
    out = jaxedit.forward(params, tokens, cfg)
    logp = jax.nn.log_softmax(out.logits[:, :-1])
    return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean(), out.logits


def gather(tree, mesh):
    """Every number of a tree, on every process."""
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(np.asarray, whole)


def refused(model, folder) -> str:
    try:
        save(model, folder)
    except FileExistsError as error:
        return str(error)
    return ""


def main(source: Path, out: Path) -> None:
    cli.start_distributed()
    me = jax.process_index()
    read, taken = Tensor.read, []

    def counted(self, *index):
        taken.append(read(self, *index))
        return taken[-1]

    Tensor.read = counted
    model = jaxedit.load(source, mesh=make_mesh(fsdp=2, tensor=2))
    facts = {
        "devices": [jax.local_device_count(), jax.device_count()],
        "read": sum(x.nbytes for x in taken),
        "blocks": {
            path: sorted({str(s.index) for s in x.addressable_shards})
            for path, x in flatten(model.params).items()
        },
    }

    # host arrays, alike in every process, are the whole batch
    grad, logits = jax.grad(loss, has_aux=True)(model.params, TOKENS, model.cfg)
    facts["rows"] = sorted({str(s.index[0]) for s in logits.addressable_shards})
    generated = decode(model.params, jnp.asarray(TOKENS), POS, model.cfg, steps=STEPS)
    found = gather(flatten(grad) | {"logits": logits}, model.mesh)
    found["decoded"] = np.asarray(generated.tokens_BN)
    if me == 0:
        np.savez(out / "found.npz", **found)

    save_checkpoint(model, out / "orbax")
    back = jaxedit.load(out / "orbax", mesh=model.mesh)
    same = lambda x, y: all(
        np.array_equal(a.data, b.data)
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )
    facts["restored"] = all(jax.tree.leaves(jax.tree.map(same, back.params, model.params)))

    save(model, out / "hf", max_shard=20_000)
    facts["refused"] = refused(model, out / "hf")
    save(model, out / "hf", max_shard=20_000, overwrite=True)
    # Weights that each process has for itself: nothing makes the first one wait for a late one.
    alone = jaxedit.load(source)
    time.sleep(2 * me)
    save(alone, out / "alone")
    facts["left"] = sorted(p.name for p in out.iterdir() if p.name.startswith("."))
    (out / f"facts{me}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
