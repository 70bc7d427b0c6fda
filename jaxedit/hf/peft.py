"""Deltas as PEFT LoRA adapters and back: PyTorch servers load what was edited here.

A module of an adapter is a tensor of the family's key table without its ".weight". PEFT computes
W + scale · B A of weights [O, I]: lora_A [R, I] is our aᵀ, lora_B [O, R] our bᵀ.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import delta, fit
from jaxedit.base import Deltas, Dense, LowRank
from jaxedit.files import whole
from jaxedit.hf.families import FAMILIES, Key, family_keys
from jaxedit.models.config import ModelConfig
from jaxedit.models.sites import matrices
from jaxedit.tensorfile import entries, read_header, write

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Fields of an adapter's config under which its modules compute something else than W + scale · B A.
BEYOND: tuple[str, ...] = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices")
BEYOND += ("layer_replication", "target_parameters", "alora_invocation_tokens", "use_qalora")
BEYOND += ("arrow_config", "kasa_config", "monteclora_config", "use_bdlora")


class Factors(NamedTuple):
    """One layer of one matrix on the host: a [I, R], b [R, O]."""

    a: np.ndarray
    b: np.ndarray


def export(
    deltas: Deltas, cfg: ModelConfig, folder: str | os.PathLike, base_name: str | None = None
) -> None:
    """Writes shared low-rank deltas as an adapter that PeftModel.from_pretrained loads.

    Matrices that the files fuse along their outputs become one module, whose rank is the sum.
    base_name: what `base_model_name_or_path` is to say.
    """
    deltas = delta.single(deltas)
    fit.check(deltas, matrices(cfg), cfg.layers)
    if cfg.tied and "head" in deltas:
        raise ValueError(
            "delta 'head' is not exported: the head of this model is its embedding table; merge it "
            "(merge.untie, merge.apply) and save the model instead"
        )
    layered = {path: to_layers(path, d) for path, d in deltas.items()}
    modules: dict[str, Factors] = {}
    conv = False
    for key in module_keys(cfg):
        paths = [to_path(ours) for ours in key.ours]
        touched = {i for path in paths for i in layered.get(path, {})}
        for i in sorted(touched):
            parts = [layered.get(path, {}).get(i) for path in paths]
            widths = [matrices(cfg)[path][1] for path in paths]
            # GPT-NeoX's files say embed_out, its module is an lm_head since transformers 5
            hf = "lm_head" if paths == ["head"] else key.hf.removesuffix(".weight")
            modules[hf.format(i)] = fuse(parts, widths, key, cfg)
            conv |= not key.out_in
    if not modules:
        raise ValueError("the deltas change nothing, so there is no adapter to write")
    tensors = {}
    for name, (a, b) in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    if jax.process_index() == 0:
        ranks = {name: f.a.shape[1] for name, f in modules.items()}
        text = json.dumps(describe(ranks, conv, base_name), indent=2)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / WEIGHTS, entries(tensors), {"format": "pt"})
        whole(folder / CONFIG, text + "\n")


def describe(ranks: Mapping[str, int], conv: bool, base_name: str | None) -> dict[str, Any]:
    """adapter_config.json: alpha equals the rank in every module, so that the scale is one."""
    r = max(ranks.values())
    # PEFT takes the names in a pattern for regular expressions
    others = {re.escape(name): n for name, n in ranks.items() if n != r}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": conv,  # GPT-2's Conv1D
        "target_modules": sorted(ranks),
    }


def to_layers(path: str, d: Any) -> dict[int, Factors]:
    """layer -> factors, of the layers that change; "head" is a layer 0."""
    if isinstance(d, Dense):
        raise ValueError(
            f"delta {path!r} is of full rank and an adapter holds factors; "
            "approximate it first: delta.truncate(deltas, rank)"
        )
    if path == "embed":
        raise ValueError(
            "delta 'embed' is not exported: PEFT would change the lookup and, in a tied model, "
            "leave the head as it was; merge the edit and save the model instead"
        )
    a, b = np.asarray(d.a), np.asarray(d.b)
    if a.ndim > 2 + ("/" in path):
        raise ValueError(f"delta {path!r} has one change per row; choose it with delta.row")
    if "/" not in path:
        a, b = a[None], b[None]
    layers = range(len(a)) if d.layers is None else np.asarray(d.layers).tolist()
    found = {i: trim(a[j], b[j]) for j, i in enumerate(layers) if i != -1}
    return {i: f for i, f in found.items() if f.a.shape[1]}


def trim(a: np.ndarray, b: np.ndarray) -> Factors:
    """Without the ranks that are zero: padding, from where deltas were joined."""
    used = a.any(0) & b.any(1)
    return Factors(a[:, used], b[used])


def fuse(parts: list[Factors | None], widths: list[int], key: Key, cfg: ModelConfig) -> Factors:
    """One module of several matrices: each part's b is zero outside its columns; see `split`."""
    pad = lambda b, j: np.pad(b, ((0, 0), (sum(widths[:j]), sum(widths[j + 1 :]))))
    have = [(j, f) for j, f in enumerate(parts) if f is not None]
    a = np.concatenate([f.a for _, f in have], 1)
    b = np.concatenate([pad(f.b, j) for j, f in have], 0)
    if key.by_head and len(widths) > 1:  # GPT-NeoX: q, k and v of head 0, then of head 1, …
        b = b.reshape(len(b), len(widths), -1, cfg.head_dim).swapaxes(1, 2).reshape(len(b), -1)
    return Factors(a, b)


def read(folder: str | os.PathLike, cfg: ModelConfig) -> dict[str, LowRank]:
    """The deltas of an adapter that PEFT (or `export`) saved, with its scale in b."""
    folder = Path(folder)
    config = read_config(folder)
    modules = read_modules(folder, cfg)
    keys: dict[str, tuple[Key, int]] = {}
    for key in module_keys(cfg):
        layers = range(cfg.layers if "{}" in key.hf else 1)
        keys |= {key.hf.format(i).removesuffix(".weight"): (key, i) for i in layers}
    found: dict[str, dict[int, Factors]] = {}
    for name, (a, b) in modules.items():
        if name not in keys:
            raise ValueError(
                f"{folder}: module {name} is not a matrix of this {cfg.family} that a delta may "
                "change" + (" (its head is the embedding)" if cfg.tied and "head" in name else "")
            )
        key, layer = keys[name]
        b = rescale(b, scale_of(config, name, a.shape[1]))
        widths = [matrices(cfg)[to_path(p)][1] for p in key.ours]
        size = (matrices(cfg)[to_path(key.ours[0])][0], sum(widths))
        if (a.shape[0], b.shape[1]) != size or a.shape[1] != b.shape[0]:
            raise ValueError(
                f"{folder}: {name} has factors {list(a.shape)} and {list(b.shape)}, for a matrix "
                f"{list(size)}; the adapter belongs to another model"
            )
        for ours, part in zip(key.ours, split(b, widths, key, cfg), strict=True):
            f = Factors(a, part) if len(widths) == 1 else trim(a, part)
            if f.a.shape[1]:
                found.setdefault(to_path(ours), {})[layer] = f
    return {path: from_layers(path, layers) for path, layers in found.items()}


def split(b: np.ndarray, widths: list[int], key: Key, cfg: ModelConfig) -> list[np.ndarray]:
    """The columns of each matrix that a module fuses."""
    if key.by_head and len(widths) > 1:
        heads = b.reshape(len(b), -1, len(widths), cfg.head_dim)
        return [heads[:, :, j].reshape(len(b), -1) for j in range(len(widths))]
    return np.split(b, np.cumsum(widths)[:-1], axis=1)


def from_layers(path: str, layers: Mapping[int, Factors]) -> LowRank:
    """One LowRank of the factors of several layers, ranks padded to the largest."""
    if "/" not in path:
        return LowRank(*map(jnp.asarray, layers[0]))
    numbers = sorted(layers)
    R = max(f.a.shape[1] for f in layers.values())
    wide = lambda x, axis: np.pad(
        x, [(0, R - n if j == axis else 0) for j, n in enumerate(x.shape)]
    )
    a = np.stack([wide(layers[i].a, 1) for i in numbers])
    b = np.stack([wide(layers[i].b, 0) for i in numbers])
    return LowRank(jnp.asarray(a), jnp.asarray(b), jnp.array(numbers, jnp.int32))


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json; refuses what W + scale · B A does not say."""
    file = folder / CONFIG
    if not file.exists():
        raise FileNotFoundError(f"{folder}: no {CONFIG}, so this is not a PEFT adapter")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type {config.get('peft_type')!r}; only LORA is supported")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{file}: bias={config['bias']!r} trains biases; only 'none' is a delta")
    if beyond := [name for name in BEYOND if config.get(name)]:
        raise ValueError(
            f"{file}: {beyond[0]}={config[beyond[0]]!r} is more than a low-rank change of weights; "
            "merge the adapter with PEFT (merge_and_unload) and load the merged model"
        )
    return config


def read_modules(folder: Path, cfg: ModelConfig) -> dict[str, Factors]:
    """module -> its factors, as [I, R] and [R, O]."""
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(
            f"{folder}: no {WEIGHTS}"
            + ("; .bin is a pickle and never loaded" if list(folder.glob("*.bin")) else "")
        )
    sides: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in read_header(folder / WEIGHTS)[0].items():
        head = re.search(r"(lm_head|embed_out)\.base_layer\.weight$", name)
        if head and tensor.shape == (cfg.vocab, cfg.embed):
            continue  # PEFT saves the base's head beside its factors; LoRA leaves it as it is
        match = re.fullmatch(rf"(?:{PREFIX})?(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match is None:
            raise ValueError(f"{folder}: {name} is not a factor of a linear layer (lora_A, lora_B)")
        module, side = match.groups()
        for old, new in FAMILIES[cfg.family].renames:
            if f"{module}.".startswith(old):
                module = (new + f"{module}."[len(old) :]).removesuffix(".")
                break
        sides.setdefault(module, {})[side] = tensor.read().T
    if halves := [module for module, s in sides.items() if len(s) < 2]:
        raise ValueError(f"{folder}: {halves[0]} has one of lora_A and lora_B; the file is damaged")
    return {module: Factors(s["A"], s["B"]) for module, s in sides.items()}


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / √r (rsLoRA), with the alpha that PEFT chooses for this module."""
    patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
    hit = (v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module))
    alpha = next(hit, config.get("lora_alpha", 8))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def rescale(b: np.ndarray, scale: float) -> np.ndarray:
    """In float32 where the scale is not one: low precision would round it."""
    return b if scale == 1 else b.astype(np.float32) * np.float32(scale)


def module_keys(cfg: ModelConfig) -> list[Key]:
    """The tensors of the files that an adapter may change."""
    ours = matrices(cfg).keys() - {"embed"}
    return [key for key in family_keys(cfg) if to_path(key.ours[0]) in ours]


def to_path(ours: str) -> str:
    """A weight's path in params -> its name among the matrices; biases have none."""
    return ours.removeprefix("blocks/").removesuffix("/w") if ours.endswith("/w") else ours
