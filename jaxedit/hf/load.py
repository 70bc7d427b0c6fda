"""A Hugging Face folder or hub name -> Model. Every device gets its own slices, read straight from
the files.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxedit import checkpoint
from jaxedit.hf.families import FAMILIES, Key, family_keys
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.specs import abstract, nest, shardings, specs
from jaxedit.progress import Progress, quiet
from jaxedit.tensorfile import Tensor, read_header

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # what is fetched from a hub
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}


CHECKPOINT = "_CHECKPOINT_METADATA"  # Orbax's mark


def load(
    name: str | os.PathLike,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    progress: Progress = quiet,
) -> Model:
    """Parameters, config and tokenizer of a folder, a hub name, or a checkpoint of a model of ours.

    dtype: of the weights and the computation ("float32", "bfloat16"); None keeps the weights as
    they are stored and computes in their dtype (in float32 where they are float16, whose range is
    too small).
    """
    folder = find(name)
    if (folder / CHECKPOINT).exists():
        return load_checkpoint(folder, mesh, dtype)
    cfg = read_config(folder)
    tensors = match(read_tensors(folder), cfg, folder)
    stored = FLOATS.get(tensors[family_keys(cfg)[0].hf].dtype, "float32")
    compute = jnp.dtype(dtype or ("float32" if stored == "float16" else stored)).name
    cfg = cfg.replace(dtype=compute)
    params = read_params(tensors, cfg, mesh, None if dtype is None else jnp.dtype(dtype), progress)
    return Model(params, cfg, read_tokenizer(folder))


def inspect(name: str | os.PathLike) -> tuple[ModelConfig, str, int]:
    """Config, dtype and bytes of a model, from its headers alone; raises what loading it would
    raise.
    """
    folder = find(name)
    if (folder / CHECKPOINT).exists():
        about = model_metadata(folder)
        used = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        return ModelConfig.from_dict(about["model"]), about["dtype"], used
    cfg = read_config(folder)
    found = read_tensors(folder)
    tensors = match(found, cfg, folder)
    stored = FLOATS.get(tensors[family_keys(cfg)[0].hf].dtype, "float32")
    files = {t.file for t in found.values()}
    return cfg.replace(dtype=stored), stored, sum(f.stat().st_size for f in files)


def model_metadata(folder: Path) -> dict[str, Any]:
    about = checkpoint.metadata(folder)
    if "model" not in about:
        raise ValueError(f"{folder}: a checkpoint, but not one of a model")
    return about


def save_checkpoint(model: Model, folder: str | os.PathLike) -> None:
    """Writes a model as one Orbax checkpoint, each host its own part, with config and tokenizer."""
    folder = Path(folder)
    dtype = model.params["embed"]["w"].dtype.name
    about = {"model": model.cfg.to_dict(), "dtype": dtype}
    checkpoint.save(folder, model.params, metadata=about)
    if model.tokenizer is not None and jax.process_index() == 0:
        model.tokenizer.save_pretrained(folder / "tokenizer")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {folder}")


def load_checkpoint(folder: Path, mesh: Mesh | None, dtype: Any) -> Model:
    about = model_metadata(folder)
    cfg = ModelConfig.from_dict(about["model"])
    cfg = cfg if dtype is None else cfg.replace(dtype=jnp.dtype(dtype).name)
    target = abstract(cfg, dtype or about["dtype"], mesh)
    return Model(checkpoint.restore(folder, target), cfg, read_tokenizer(folder / "tokenizer"))


def find(name: str | os.PathLike) -> Path:
    """The folder itself, or the hub's snapshot of that name."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{name} is a file; give the folder that holds config.json")
    looks_local = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    if not looks_local:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        try:
            return Path(snapshot_download(str(name), allow_patterns=FILES))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"{name}: neither a folder here nor a model that the hub could give ({reason})"
            ) from None
    raise FileNotFoundError(f"{name}: no such folder")


def read_config(folder: Path) -> ModelConfig:
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder}: no config.json, so this is not a Hugging Face model folder"
        )
    raw = read_json(file)
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{file}: model_type {kind!r} is not supported: {', '.join(FAMILIES)}")
    if quantized := raw.get("quantization_config"):
        method = quantized.get("quant_method", "unknown")
        raise ValueError(f"{folder}: quantized weights ({method}); load the unquantized original")
    from transformers import CONFIG_MAPPING

    c = CONFIG_MAPPING[kind].from_dict(raw)
    family = FAMILIES[kind]
    cfg = ModelConfig(**family.read(getattr(c, "text_config", None) or c))
    if family.model_type:
        cfg = cfg.replace(family=family.model_type)
    generation = folder / "generation_config.json"
    if generation.exists():
        eos = read_json(generation).get("eos_token_id")
        ids = eos if isinstance(eos, list) else [eos]
        cfg = cfg if eos is None else cfg.replace(eos_ids=tuple(ids))
    return cfg


def read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: not valid JSON of a config (it is a {type(raw).__name__})")
    return raw


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder: one safetensors file, or the shards that an index names."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        if "weight_map" not in (listed := read_json(index)):
            raise ValueError(f"{index}: no weight_map, so it does not say which files to read")
        names = sorted(set(listed["weight_map"].values()))
        if absent := [n for n in names if not (folder / n).exists()]:
            raise FileNotFoundError(f"{folder}: {index.name} names {', '.join(absent)}, not found")
        files = [folder / n for n in names]
    elif single.exists():
        files = [single]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        if bins := sorted(p.name for p in folder.glob("*.bin")):
            raise ValueError(
                f"{folder}: only {bins[0]}, a pickle, which could run code and is never loaded. "
                "Convert it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise FileNotFoundError(f"{folder}: no .safetensors file")
    return {name: t for f in files for name, t in read_header(f)[0].items()}


def match(found: Mapping[str, Tensor], cfg: ModelConfig, folder: Path) -> dict[str, Tensor]:
    """File tensors under the table's names; names the tensor that is missing, too many or of
    another shape.
    """
    family, table, out = FAMILIES[cfg.family], specs(cfg), {}
    for name, tensor in found.items():
        for old, new in family.renames:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        out[name] = tensor
    want: dict[str, tuple[int, ...]] = {}
    for key in family_keys(cfg):
        shape = stored_shape(key, [table[path].shape for path in key.ours])
        layers = range(cfg.layers) if "{}" in key.hf else [None]
        want |= {key.hf if i is None else key.hf.format(i): shape for i in layers}
    for name, shape in want.items():
        if name not in out:
            raise ValueError(f"{folder}: tensor {name} is missing ({len(found)} tensors are there)")
        if out[name].shape != shape:
            raise ValueError(
                f"{folder}: {name} has shape {list(out[name].shape)}, "
                f"config.json asks for {list(shape)}"
            )
    heads = {k.hf for k in family.keys if k.ours == ("head/w",)} if cfg.tied else set()
    known = lambda n: n in want or n in heads or any(re.search(p, n) for p in family.ignore)
    if extra := sorted(n for n in out if not known(n)):
        raise ValueError(
            f"{folder}: {extra[0]} is a tensor that a {cfg.family} of this config does not have"
            + (f" (and {len(extra) - 1} more)" if len(extra) > 1 else "")
        )
    return out


def stored_shape(key: Key, ours: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a file's tensor, from those of the weights that it holds, layer axis and all."""
    parts = [shape[1:] if "{}" in key.hf else shape for shape in ours]
    shape = (*parts[0][:-1], sum(p[-1] for p in parts))
    return shape[::-1] if key.out_in else shape


def read_params(
    tensors: Mapping[str, Tensor],
    cfg: ModelConfig,
    mesh: Mesh | None,
    dtype: np.dtype | None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The parameter tree, leaf by leaf: the host never holds more than one leaf's local part."""
    table, out = specs(cfg), {}
    where = shardings(cfg, mesh) if mesh is not None else {}
    done, total = 0, sum(math.prod(s.shape) for s in table.values())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for key in family_keys(cfg):
            for part, path in enumerate(key.ours):
                leaf = Leaf(key, part, tuple(table[p].shape for p in key.ours), cfg, tensors, dtype)
                read = partial(leaf.read, pool=pool)
                if mesh is None:
                    out[path] = jnp.asarray(read((slice(None),) * len(leaf.shape)))
                else:
                    block = once_per_block(read)
                    out[path] = jax.make_array_from_callback(leaf.shape, where[path], block)
                progress(done := done + math.prod(leaf.shape), total)
    return nest(out)


def once_per_block(read: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`read`, which devices that hold the same block share."""
    done: dict[tuple, np.ndarray] = {}

    def block(index: tuple[slice, ...]) -> np.ndarray:
        where = tuple((s.start, s.stop) for s in index)
        if where not in done:
            done[where] = read(index)
        return done[where]

    return block


class Leaf(NamedTuple):
    """One weight of ours, and the tensors that hold it: one per layer, or one in all."""

    key: Key
    part: int  # which of key.ours it is
    shapes: tuple[tuple[int, ...], ...]  # of all of key.ours
    cfg: ModelConfig
    tensors: Mapping[str, Tensor]
    dtype: np.dtype | None  # None: as stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.part]

    def read(self, index: tuple[slice, ...], pool: ThreadPoolExecutor) -> np.ndarray:
        """The block that a device holds."""
        block = [s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True)]
        stacked = "{}" in self.key.hf
        layers = range(*block[0]) if stacked else range(1)
        names = [self.key.hf.format(i) for i in layers] if stacked else [self.key.hf]
        stored = FLOATS.get(self.tensors[names[0]].dtype)
        if stored is None:
            kind = self.tensors[names[0]].dtype
            raise ValueError(f"{names[0]} is stored as {kind}; weights are {', '.join(FLOATS)}")
        out = np.empty([b - a for a, b in block], self.dtype or jnp.dtype(stored))
        rows = out if stacked else out[None]
        inner = block[1:] if stacked else block

        def fill(j: int) -> None:
            rows[j] = self.read_one(self.tensors[names[j]], inner)

        list(pool.map(fill, range(len(names))))
        return out

    def read_one(self, tensor: Tensor, block: list[tuple[int, int]]) -> np.ndarray:
        """A block, (in, out) or (out,), of the weight in one of its tensors."""
        key, H = self.key, self.cfg.head_dim
        start, stop = block[-1]
        by_head = key.by_head and len(key.ours) > 1
        if by_head:  # q, k and v of head 0, then of head 1, …: read whole heads, keep ours
            first, last = start // H, -(-stop // H)
            columns = slice(first * 3 * H, last * 3 * H)
        else:
            offset = sum(shape[-1] for shape in self.shapes[: self.part])
            columns = slice(offset + start, offset + stop)
        inputs = [slice(a, b) for a, b in block[:-1]]
        x = tensor.read(columns, *inputs) if key.out_in else tensor.read(*inputs, columns)
        x = x.T if key.out_in else x
        if by_head:
            x = x.reshape(*x.shape[:-1], last - first, 3, H)[..., self.part, :]
            x = x.reshape(*x.shape[:-2], -1)[..., start - first * H : stop - first * H]
        return x


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None where it has none."""
    if not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
