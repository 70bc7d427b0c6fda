"""Locate, edit, evaluate, transfer, fuse and bound the knowledge inside language models, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxedit.base import Cache, Dense, LowRank, Output, Scale, Write
    from jaxedit.data.cases import EditCase, EditRequest
    from jaxedit.edit.record import Edit
    from jaxedit.hf.load import load
    from jaxedit.hf.save import save
    from jaxedit.models.config import Model, ModelConfig
    from jaxedit.models.generate import generate
    from jaxedit.models.specs import init
    from jaxedit.models.transformer import forward
    from jaxedit.sharding import make_mesh

# Imported at first use: `jaxedit --help` need not wait for jax, nor a kernel for transformers.
HOME = {
    "base": ("Cache", "Dense", "LowRank", "Output", "Scale", "Write"),
    "data.cases": ("EditCase", "EditRequest"),
    "edit.record": ("Edit",),
    "hf.load": ("load",),
    "hf.save": ("save",),
    "models.config": ("Model", "ModelConfig"),
    "models.generate": ("generate",),
    "models.specs": ("init",),
    "models.transformer": ("forward",),
    "sharding": ("make_mesh",),
}
MODULE = {name: f"jaxedit.{module}" for module, names in HOME.items() for name in names}

__all__ = [
    "Cache",
    "Dense",
    "Edit",
    "EditCase",
    "EditRequest",
    "LowRank",
    "Model",
    "ModelConfig",
    "Output",
    "Scale",
    "Write",
    "forward",
    "generate",
    "init",
    "load",
    "make_mesh",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in MODULE:
        raise AttributeError(f"module 'jaxedit' has no attribute {name!r}")
    return getattr(importlib.import_module(MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
