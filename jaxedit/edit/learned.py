"""What a trained editor has learned, as a checkpoint: saved whole, loaded with one call for a model
of the same shapes.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit import checkpoint, settings
from jaxedit.checksum import checksum
from jaxedit.edit.learner import Learned, Learner, first
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.sites import matrices
from jaxedit.progress import is_first
from jaxedit.sharding import mesh_of, place

# What a user may set anew; the rest is as it was trained.
FREE = ("trained", "rows", "threshold", "soft")


def base_of(cfg: ModelConfig) -> dict[str, Any]:
    """What of a model an editor depends on."""
    shapes = {path: list(size) for path, size in matrices(cfg).items() if "/" in path}
    return {"layers": cfg.layers, "matrices": shapes}


def save(
    folder: str | os.PathLike, learned: Learned, method: str, opt: Any, model: Model, **more: Any
) -> Path:
    """Writes a new folder, or another in the place of one; `more` is JSON."""
    folder = Path(folder)
    about = {
        "method": method, "config": dataclasses.asdict(opt), "base": base_of(model.cfg),
        "family": model.cfg.family, "checksum": checksum(model.params), **more,
    }  # fmt: skip
    part = folder.with_name(f".{folder.name}.part")
    if is_first():
        shutil.rmtree(part, ignore_errors=True)
    checkpoint.save(part, {"trained": learned.trained, "running": learned.running}, metadata=about)
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    return folder


def config(folder: str, opt: Any, method: str) -> Any:
    """The config that an editor was trained with, but for what may be set anew."""
    about = read(folder, method)
    saved = about["config"]
    changes: dict[str, Any] = {}
    for key, hint, value in settings.walk(opt):
        if key.split(".")[0] in FREE or settings.is_config(value):
            continue
        found = saved
        for name in key.split("."):
            found = found.get(name, value) if isinstance(found, dict) else value
        found = tuple(found) if isinstance(found, list) else found
        changes[key] = settings.settle(f"{folder}: {key}", key, hint, found, [found])
    return settings.rebuild(opt, changes, "")


def read(folder: str, method: str) -> dict[str, Any]:
    if not folder:
        raise ValueError(
            f"{method} is trained before it edits: python -m jaxedit.train --config "
            f"configs/{method}.py:…, then set trained to the folder that it has made"
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"trained={folder}: no such folder; python -m jaxedit.train --config "
            f"configs/{method}.py:… makes one"
        )
    about = checkpoint.metadata(folder)
    if (have := about.get("method")) != method:
        raise ValueError(f"trained={folder} is an editor of {have}, not of {method}")
    return about


def load(folder: str, method: str, opt: Any, learner: Learner, model: Model) -> Learned:
    """What was saved, laid out for the model's mesh; refuses a model of other shapes."""
    about = read(folder, method)
    ours, theirs = base_of(model.cfg), about["base"]
    if ours["layers"] != theirs["layers"]:
        raise ValueError(
            f"trained={folder}: for a {about['family']} of {theirs['layers']} layers; this model "
            f"has {ours['layers']}"
        )
    for path in opt.places.targets:
        have, wanted = (x["matrices"].get(path) for x in (ours, theirs))
        if have != wanted:
            raise ValueError(
                f"trained={folder}: for a {about['family']} with {path} {wanted}; this model's is "
                f"{have}"
            )
    shapes = jax.eval_shape(lambda: first(jax.random.key(0), learner, opt, model.cfg))
    target = laid_out(shapes, model)
    found = checkpoint.restore(folder, {"trained": target.trained, "running": target.running})
    return Learned(found["trained"], found["running"])


def laid_out(shapes: Any, model: Model) -> Any:
    """Where every array of a learner belongs: on a mesh, its largest side is cut over fsdp."""
    mesh = mesh_of(model.params)
    if mesh is None:
        return shapes

    def one(x: Any) -> jax.ShapeDtypeStruct:
        axes: list[str | None] = [None] * len(x.shape)
        if x.shape and max(x.shape) > 1:
            axes[x.shape.index(max(x.shape))] = "embed"
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(axes, x.shape, mesh))

    return jax.tree.map(one, shapes)


def start(key: jax.Array, learner: Learner, opt: Any, model: Model) -> Learned:
    """What an editor knows before it has learned, laid out for the model's mesh."""
    make = lambda key: first(key, learner, opt, model.cfg)
    target = laid_out(jax.eval_shape(make, key), model)
    if mesh_of(model.params) is None:
        return jax.jit(make)(key)
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, target))(key)


def size(learned: Learned) -> int:
    """How many numbers are trained."""
    return sum(int(jnp.size(x)) for x in jax.tree.leaves(learned.trained))
