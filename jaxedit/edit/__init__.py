"""Editing: what an edit is, the methods that make one, and the ledger that keeps them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxedit.edit.editor import Editor, EditResult
    from jaxedit.edit.ledger import Ledger
    from jaxedit.edit.methods import EDITORS, configure
    from jaxedit.edit.record import Edit
    from jaxedit.edit.runner import run, stream
    from jaxedit.edit.stats import Stats, StatsConfig
    from jaxedit.edit.weights.alphaedit import AlphaEditConfig, alphaedit
    from jaxedit.edit.weights.emmet import EmmetConfig, emmet
    from jaxedit.edit.weights.memit import MemitConfig, memit
    from jaxedit.edit.weights.pmet import PmetConfig, pmet
    from jaxedit.edit.weights.rome import RomeConfig, rome

# Imported at first use: an edit's file can be read without the methods.
HOME = {
    "editor": ("EditResult", "Editor"),
    "ledger": ("Ledger",),
    "methods": ("EDITORS", "configure"),
    "record": ("Edit",),
    "runner": ("run", "stream"),
    "stats": ("Stats", "StatsConfig"),
    "weights.alphaedit": ("AlphaEditConfig", "alphaedit"),
    "weights.emmet": ("EmmetConfig", "emmet"),
    "weights.memit": ("MemitConfig", "memit"),
    "weights.pmet": ("PmetConfig", "pmet"),
    "weights.rome": ("RomeConfig", "rome"),
}
MODULE = {name: f"jaxedit.edit.{module}" for module, names in HOME.items() for name in names}

__all__ = [
    "EDITORS",
    "AlphaEditConfig",
    "Edit",
    "EditResult",
    "Editor",
    "EmmetConfig",
    "Ledger",
    "MemitConfig",
    "PmetConfig",
    "RomeConfig",
    "Stats",
    "StatsConfig",
    "alphaedit",
    "configure",
    "emmet",
    "memit",
    "pmet",
    "rome",
    "run",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in MODULE:
        raise AttributeError(f"module 'jaxedit.edit' has no attribute {name!r}")
    return getattr(importlib.import_module(MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
