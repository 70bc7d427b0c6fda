"""A Hugging Face folder or hub name -> Model. Every device gets its own slices, read straight from
the files.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxedit import checkpoint
from jaxedit.hf.families import FAMILIES, family_keys
from jaxedit.hf.round_trip import from_hf
from jaxedit.hf.weights import FLOATS, read_params, stored_shape
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.specs import abstract, flatten, specs
from jaxedit.progress import Progress, quiet
from jaxedit.tensorfile import Tensor, read_header

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # what is fetched from a hub


CHECKPOINT = "_CHECKPOINT_METADATA"  # Orbax's mark
WEIGHTS, TRAINED = "weights", "float32"  # what a training's checkpoint has trained, and its dtype
ASSETS = Path(__file__).parents[1] / "assets"  # models that ship with the package, by name


def load(
    name: str | os.PathLike,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    progress: Progress = quiet,
) -> Model:
    """Parameters, config and tokenizer of a folder, a hub name, a checkpoint of a model of ours or
    of its training, or one that ships with the package ("world", "world-llama").

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
    cfg = cfg.replace(dtype=jnp.dtype(dtype or compute_dtype(stored)).name)
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
        stored = about.get("dtype", TRAINED)
        return ModelConfig.from_dict(about["model"]), stored, used
    cfg = read_config(folder)
    found = read_tensors(folder)
    tensors = match(found, cfg, folder)
    stored = FLOATS.get(tensors[family_keys(cfg)[0].hf].dtype, "float32")
    files = {t.file for t in found.values()}
    return cfg.replace(dtype=compute_dtype(stored)), stored, sum(f.stat().st_size for f in files)


def compute_dtype(stored: str) -> str:
    """What weights that are stored so compute in: float16's range is too small for activations."""
    return "float32" if stored == "float16" else stored


def model_metadata(folder: Path) -> dict[str, Any]:
    about = checkpoint.metadata(folder)
    if "model" not in about:
        raise ValueError(f"{folder}: a checkpoint, but not one of a model")
    if (what := about.get("trained", WEIGHTS)) != WEIGHTS:
        raise ValueError(
            f"{folder}: a checkpoint of deltas ({what}), not of a model; the same command goes on "
            "with the run, which ends with edit.safetensors"
        )
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
    target = abstract(cfg, dtype or about.get("dtype", TRAINED), mesh)
    if "dtype" in about:
        return Model(checkpoint.restore(folder, target), cfg, read_tokenizer(folder / "tokenizer"))
    tokenizer = read_tokenizer(folder.absolute().parents[1] / "tokenizer")  # of all its checkpoints
    cfg = cfg.replace(dtype=jnp.dtype(dtype or TRAINED).name)
    return Model(trained_params(folder, target), cfg, tokenizer)


def trained_params(folder: Path, target: dict[str, Any]) -> dict[str, Any]:
    """The weights of a training's checkpoint. The host holds all of its state for a while."""
    found = checkpoint.restore(folder)["trained"]
    if not isinstance(found, dict) or flatten(found).keys() != flatten(target).keys():
        raise ValueError(f"{folder}: a checkpoint of a training, but not of a model's weights")

    def place(x: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        if like.sharding is None:
            return jnp.asarray(x, like.dtype)
        part = lambda index: x[index].astype(like.dtype)
        return jax.make_array_from_callback(like.shape, like.sharding, part)

    return jax.tree.map(place, found, target)


def find(name: str | os.PathLike) -> Path:
    """The folder itself, the model of that name that ships with the package, or the hub's."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if (ASSETS / name / "config.json").is_file():
        return ASSETS / name
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
    if not file.exists() and (steps := checkpoint.steps(folder)):
        raise ValueError(f"{folder} holds the checkpoints of a run: give one, {folder}/{steps[-1]}")
    if not file.exists():
        raise FileNotFoundError(
            f"{folder}: no config.json, so this is not a Hugging Face model folder"
        )
    raw = read_json(file)
    if {"command", "config"} <= raw.keys():
        raise ValueError(f"{folder} is the work directory of a run, {result(folder)}")
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{file}: model_type {kind!r} is not supported: {', '.join(FAMILIES)}")
    if quantized := raw.get("quantization_config"):
        method = quantized.get("quant_method", "unknown")
        raise ValueError(f"{folder}: quantized weights ({method}); load the unquantized original")
    cfg = from_hf(kind, raw)
    generation = folder / "generation_config.json"
    if generation.exists():
        eos = read_json(generation).get("eos_token_id")
        ids = eos if isinstance(eos, list) else [eos]
        cfg = cfg if eos is None else cfg.replace(eos_ids=tuple(ids))
    return cfg


def result(folder: Path) -> str:
    """Where a run has put its model, or as much of it as there is."""
    if (folder / "model" / "config.json").is_file():
        return f"whose model is {folder / 'model'}"
    saved = folder / "checkpoints"
    if saved.is_dir() and (steps := checkpoint.steps(saved)):
        return f"which has not written a model; its last checkpoint is {saved / str(steps[-1])}"
    return "which has no model"


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


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None where it has none."""
    if (folder / "encoder.json").exists():  # GPT-2's, under the names it was published with
        from transformers import GPT2Tokenizer

        return GPT2Tokenizer(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))
    if not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
