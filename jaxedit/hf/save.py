"""Model -> a folder that AutoModelForCausalLM.from_pretrained loads with equal logits."""

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxedit.hf.families import Key, family_keys
from jaxedit.hf.round_trip import check_config, to_hf
from jaxedit.hf.weights import stored_shape
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.specs import check, flatten
from jaxedit.progress import Progress, quiet
from jaxedit.tensorfile import Entry, write

SHARD = 5 * 10**9  # bytes per file, as transformers'
KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja", ".bin", ".md")  # of model files


def save(
    model: Model,
    folder: str | os.PathLike,
    *,
    overwrite: bool = False,
    max_shard: int = SHARD,
    progress: Progress = quiet,
) -> None:
    """Writes config.json, the weights in their own dtype and the tokenizer; the folder appears when
    it is whole.

    overwrite replaces a folder that holds a model and nothing else. In a job of several processes
    all of them call it, and the first one writes. A model that a folder of its family would not
    bring back is refused before anything is written.
    """
    folder = Path(folder)
    check_config(model.cfg)
    check(model.params, model.cfg)
    refuse_others(folder, overwrite)
    part = folder.with_name(f".{folder.name}.part")
    writer = jax.process_index() == 0
    if writer:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    write_weights(model, part, max_shard, writer, progress)
    if writer:
        to_hf(model.cfg, model.params["embed"]["w"].dtype.name).save_pretrained(part)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            os.replace(folder, old)
            os.replace(part, folder)
            shutil.rmtree(old)
        else:
            os.replace(part, folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {folder}")


def refuse_others(folder: Path, overwrite: bool) -> None:
    """Raises on every process where the first one finds a folder that must stay as it is."""
    problem = ""
    if folder.exists() and (held := sorted(folder.iterdir())):
        others = [f.name for f in held if not f.is_file() or f.suffix not in KINDS]
        if not overwrite:
            problem = f"{folder} is not empty; choose another folder, or pass overwrite=True"
        elif others:
            problem = f"{folder} holds {others[0]}, no part of a model; it is not overwritten"
        elif not (folder / "config.json").exists():
            problem = f"{folder} holds {held[0].name} and no config.json; it is not overwritten"
    if jax.process_count() > 1:
        # one answer for all, given before the first one writes: it could be done, and the folder
        # there, when the last one looks
        found = bool(multihost_utils.broadcast_one_to_all(np.bool_(problem)))
        problem = (problem or f"{folder}: the first process cannot write there") if found else ""
    if problem:
        raise FileExistsError(problem)


def write_weights(
    model: Model, folder: Path, max_shard: int, writer: bool, progress: Progress
) -> None:
    """One safetensors file, or shards with an index. All processes make a tensor, one writes it."""
    tensors = watch(list(file_tensors(model.params, model.cfg)), progress)
    shards: list[list[Entry]] = [[]]
    for t in tensors:
        if shards[-1] and sum(e.size for e in shards[-1]) + t.size > max_shard:
            shards.append([])
        shards[-1].append(t)
    name = "model.safetensors"
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = [name] if len(shards) == 1 else names
    for file, entries in zip(names, shards, strict=True):
        if writer:
            write(folder / file, entries, {"format": "pt"})
        else:
            for e in entries:
                e.make()
    if writer and len(shards) > 1:
        where = {e.name: f for f, entries in zip(names, shards, strict=True) for e in entries}
        total = {"total_size": sum(e.size for e in tensors)}
        text = json.dumps({"metadata": total, "weight_map": where}, indent=2)
        (folder / f"{name}.index.json").write_text(text)


def watch(tensors: list[Entry], progress: Progress) -> list[Entry]:
    """The same tensors, which report when they are made."""
    total, done = sum(e.size for e in tensors), 0

    def make(e: Entry) -> np.ndarray:
        nonlocal done
        made = e.make()
        done += e.size
        progress(done, total)
        return made

    return [e._replace(make=partial(make, e)) for e in tensors]


def file_tensors(params: dict[str, Any], cfg: ModelConfig) -> Iterator[Entry]:
    """The tensors of the files, in order, each made when it is written."""
    flat = flatten(params)
    for key in family_keys(cfg):
        leaves = [flat[path] for path in key.ours]
        shape = stored_shape(key, [x.shape for x in leaves])
        for i in range(cfg.layers) if "{}" in key.hf else [None]:
            name = key.hf if i is None else key.hf.format(i)
            yield Entry(name, shape, np.dtype(leaves[0].dtype), partial(fuse, key, leaves, i, cfg))


def fuse(key: Key, leaves: list[jax.Array], layer: int | None, cfg: ModelConfig) -> np.ndarray:
    """The file's tensor, from the weights that it holds; the inverse of load.read_part."""
    parts = [to_host(x, layer) for x in leaves]
    if len(parts) == 1:
        out = parts[0]
    elif key.by_head:
        heads = [x.reshape(*x.shape[:-1], -1, 1, cfg.head_dim) for x in parts]
        out = np.concatenate(heads, -2).reshape(*parts[0].shape[:-1], -1)
    else:
        out = np.concatenate(parts, -1)
    return np.ascontiguousarray(out.T) if key.out_in else out


def to_host(x: jax.Array, layer: int | None) -> np.ndarray:
    """A weight, or one layer of it, gathered from wherever its pieces lie."""
    replicated = None
    if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding):
        replicated = NamedSharding(x.sharding.mesh, PartitionSpec())
    return np.asarray(_gather(replicated)(x, 0 if layer is None else layer, layer is None))


_gathers: dict[Any, Any] = {}


def _gather(out: NamedSharding | None) -> Any:
    """A jitted `x[i]` that ends up whole on every process; compiled per shape, not per layer."""
    if out not in _gathers:
        take = lambda x, i, whole: (
            x if whole else jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
        )
        _gathers[out] = jax.jit(take, static_argnums=2, out_shardings=out)
    return _gathers[out]
