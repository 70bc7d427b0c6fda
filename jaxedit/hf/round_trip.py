"""A config of ours from a config.json and back, and whether what is written says all of it."""

import dataclasses
import json
import math
from typing import Any

from jaxedit.hf import config
from jaxedit.hf.families import FAMILIES
from jaxedit.models.config import ModelConfig


def from_hf(kind: str, raw: dict[str, Any]) -> ModelConfig:
    """The config that a config.json of this model_type describes."""
    from transformers import CONFIG_MAPPING

    c = CONFIG_MAPPING[kind].from_dict(raw)
    family = FAMILIES[kind]
    cfg = ModelConfig(**family.read(getattr(c, "text_config", None) or c))
    return cfg.replace(family=family.model_type) if family.model_type else cfg


def to_hf(cfg: ModelConfig, dtype: str) -> Any:
    """transformers' config of it."""
    from transformers import CONFIG_MAPPING

    family = FAMILIES[cfg.family]
    c = CONFIG_MAPPING[cfg.family](**family.write(cfg), dtype=dtype)
    c.architectures = [family.architecture]
    return c


def check_config(cfg: ModelConfig) -> None:
    """Raises where a Hugging Face folder of this family would be read as another architecture."""
    if cfg.family not in FAMILIES:
        raise ValueError(f"family={cfg.family!r}: one of {', '.join(FAMILIES)}")
    try:
        c = to_hf(cfg, "float32")
        found = from_hf(cfg.family, json.loads(c.to_json_string(use_diff=False)))
    except Exception as error:  # of transformers, which checks what it is given in its own ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"a {cfg.family} of Hugging Face cannot be this model: {reason}"
        ) from error
    want, got = told(cfg), told(found)
    if lost := [name for name in want if not alike(want[name], got[name])]:
        changes = ", ".join(f"{n}={want[n]!r} (it would be read as {got[n]!r})" for n in lost)
        raise ValueError(
            f"a {cfg.family} of Hugging Face cannot say {changes}: change that, take a family that "
            "has it, or keep the model as a checkpoint (jaxedit.hf.load.save_checkpoint)"
        )


def told(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that matter to what a model of this config computes, each in one spelling."""
    out = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    del out["dtype"], out["attention"]  # how it is computed
    out["attn_scale"] = cfg.head_dim**-0.5 if cfg.attn_scale is None else cfg.attn_scale
    for name in ("windows", "rope_kind"):
        out[name] = out[name] if any(out[name]) else ()
    if cfg.tied:
        del out["head_bias"]
    if cfg.rotary_dim:
        out["ropes"] = tuple(map(config.write_rope, cfg.ropes))
    else:
        out |= {"ropes": (), "rope_kind": (), "rope_interleaved": False}
    return out


def alike(x: Any, y: Any) -> bool:
    """Equal, floats up to what a square root and its square lose."""
    if isinstance(x, float) and isinstance(y, float):
        return math.isclose(x, y, rel_tol=1e-6)
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(alike(x[k], y[k]) for k in x)
    if isinstance(x, tuple) and isinstance(y, tuple):
        return len(x) == len(y) and all(map(alike, x, y))
    return bool(x == y)
