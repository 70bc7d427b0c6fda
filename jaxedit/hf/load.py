"""A Hugging Face folder or hub name -> Model. Every device gets its own slices, read straight from
the files.
"""

import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit.hf.families import FAMILIES, Key, family_keys
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.specs import nest, shardings, specs
from jaxedit.tensorfile import Tensor, read_header

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # what is fetched from a hub
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}


def load(name: str | os.PathLike, mesh: Mesh | None = None, dtype: Any = None) -> Model:
    """Parameters, config and tokenizer of a folder or a hub name.

    dtype: of the weights and the computation ("float32", "bfloat16"); None keeps the weights as
    they are stored and computes in their dtype (in float32 where they are float16, whose range is
    too small).
    """
    folder = find(name)
    cfg = read_config(folder)
    tensors = match(read_tensors(folder), cfg, folder)
    stored = FLOATS.get(tensors[family_keys(cfg)[0].hf].dtype, "float32")
    compute = jnp.dtype(dtype or ("float32" if stored == "float16" else stored)).name
    cfg = cfg.replace(dtype=compute)
    params = read_params(tensors, cfg, mesh, None if dtype is None else jnp.dtype(dtype))
    return Model(params, cfg, read_tokenizer(folder))


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
            HFValidationError,
            HfHubHTTPError,
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
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
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
        eos = json.loads(generation.read_text()).get("eos_token_id")
        ids = eos if isinstance(eos, list) else [eos]
        cfg = cfg if eos is None else cfg.replace(eos_ids=tuple(ids))
    return cfg


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder: one safetensors file, or the shards that an index names."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
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
                f"{folder}: only {bins[0]}, a pickle, which could run code and is never loaded. Convert it "
                "where you trust it: AutoModelForCausalLM.from_pretrained(f).save_pretrained(f)"
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
                f"{folder}: {name} has shape {list(out[name].shape)}, config.json asks for {list(shape)}"
            )
    heads = {k.hf for k in family.keys if k.ours[0].startswith("head/")} if cfg.tied else set()
    known = lambda n: n in want or n in heads or any(re.search(p, n) for p in family.ignore)
    if extra := sorted(n for n in out if not known(n)):
        raise ValueError(
            f"{folder}: {extra[0]} is a tensor that a {cfg.family} of this config does not have"
            + (f" (and {len(extra) - 1} more)" if len(extra) > 1 else "")
        )
    return out


def stored_shape(key: Key, ours: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a file's tensor, from those of the weights it holds (without their layer axis).
    """
    parts = [shape[1:] if "{}" in key.hf else shape for shape in ours]
    shape = (*parts[0][:-1], sum(p[-1] for p in parts))
    return shape[::-1] if key.out_in else shape


def read_params(
    tensors: Mapping[str, Tensor], cfg: ModelConfig, mesh: Mesh | None, dtype: np.dtype | None
) -> dict[str, Any]:
    """The parameter tree, leaf by leaf: the host never holds more than one leaf's local part."""
    table, out = specs(cfg), {}
    where = shardings(cfg, mesh) if mesh is not None else {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for key in family_keys(cfg):
            for part, path in enumerate(key.ours):
                shape = table[path].shape
                names = [key.hf.format(i) for i in range(shape[0])] if "{}" in key.hf else [key.hf]
                stored = FLOATS.get(tensors[names[0]].dtype)
                if stored is None:
                    raise ValueError(
                        f"{names[0]} is stored as {tensors[names[0]].dtype}, not as floats"
                    )
                kind = jnp.dtype(dtype or stored)
                sizes = [table[p].shape[-1] for p in key.ours]

                def local(index: tuple[slice, ...]) -> np.ndarray:
                    stacked = "{}" in key.hf
                    block = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]  # noqa
                    buffer = np.empty([b - a for a, b in block], kind)
                    rows = range(*block[0]) if stacked else [0]
                    inner = block[1:] if stacked else block

                    def fill(j: int) -> None:
                        x = read_part(tensors[names[rows[j]]], key, part, sizes, inner, cfg)
                        (buffer[j] if stacked else buffer)[...] = x

                    list(pool.map(fill, range(len(rows))))
                    return buffer

                if mesh is None:
                    out[path] = jnp.asarray(local(tuple(slice(None) for _ in shape)))
                else:
                    out[path] = jax.make_array_from_callback(shape, where[path], local)
    return nest(out)


def read_part(
    tensor: Tensor,
    key: Key,
    part: int,
    sizes: list[int],
    block: list[tuple[int, int]],
    cfg: ModelConfig,
) -> np.ndarray:
    """A block (in, out) or (out,) of one weight of ours out of the file's tensor that holds it."""
    start, stop = block[-1]
    if key.by_head and len(sizes) > 1:
        H = cfg.head_dim
        first, last = start // H, -(-stop // H)
        fused = slice(first * 3 * H, last * 3 * H)
    else:
        offset = sum(sizes[:part])
        fused = slice(offset + start, offset + stop)
    others = [slice(a, b) for a, b in block[:-1]]
    x = tensor.read(fused, *others) if key.out_in or not others else tensor.read(*others, fused)
    x = x.T if key.out_in else x
    if key.by_head and len(sizes) > 1:
        x = x.reshape(*x.shape[:-1], last - first, 3, H)[..., part, :].reshape(*x.shape[:-1], -1)
        x = x[..., start - first * H : stop - first * H]
    return x


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None where it has none."""
    if not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
