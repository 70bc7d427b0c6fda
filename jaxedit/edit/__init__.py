"""Editing: what an edit is, the methods that make one, and the ledger that keeps them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxedit.edit.editor import Editor, EditResult
    from jaxedit.edit.ledger import Ledger
    from jaxedit.edit.methods import EDITORS, configure
    from jaxedit.edit.prompts.serac import serac
    from jaxedit.edit.prompts.serac_learner import SeracConfig
    from jaxedit.edit.record import Edit
    from jaxedit.edit.runner import run, stream
    from jaxedit.edit.stats import Stats, StatsConfig
    from jaxedit.edit.weights.adalora import AdaLoraConfig, adalora
    from jaxedit.edit.weights.alphaedit import AlphaEditConfig, alphaedit
    from jaxedit.edit.weights.bird import BirdConfig, bird
    from jaxedit.edit.weights.emmet import EmmetConfig, emmet
    from jaxedit.edit.weights.enn import EnnConfig, enn
    from jaxedit.edit.weights.fine_tune import FineTuneConfig, fine_tune
    from jaxedit.edit.weights.ke import KeConfig, ke
    from jaxedit.edit.weights.kn import KnConfig, kn
    from jaxedit.edit.weights.lora import LoraEditConfig, lora
    from jaxedit.edit.weights.malmen import MalmenConfig, malmen
    from jaxedit.edit.weights.memit import MemitConfig, memit
    from jaxedit.edit.weights.mend import MendConfig, mend
    from jaxedit.edit.weights.pmet import PmetConfig, pmet
    from jaxedit.edit.weights.rome import RomeConfig, rome
    from jaxedit.edit.weights.slag import SlagConfig, slag

# Imported at first use: an edit's file can be read without the methods.
HOME = {
    "editor": ("EditResult", "Editor"),
    "ledger": ("Ledger",),
    "methods": ("EDITORS", "configure"),
    "prompts.serac": ("serac",),
    "prompts.serac_learner": ("SeracConfig",),
    "record": ("Edit",),
    "runner": ("run", "stream"),
    "stats": ("Stats", "StatsConfig"),
    "weights.adalora": ("AdaLoraConfig", "adalora"),
    "weights.alphaedit": ("AlphaEditConfig", "alphaedit"),
    "weights.bird": ("BirdConfig", "bird"),
    "weights.emmet": ("EmmetConfig", "emmet"),
    "weights.enn": ("EnnConfig", "enn"),
    "weights.fine_tune": ("FineTuneConfig", "fine_tune"),
    "weights.ke": ("KeConfig", "ke"),
    "weights.kn": ("KnConfig", "kn"),
    "weights.lora": ("LoraEditConfig", "lora"),
    "weights.malmen": ("MalmenConfig", "malmen"),
    "weights.memit": ("MemitConfig", "memit"),
    "weights.mend": ("MendConfig", "mend"),
    "weights.pmet": ("PmetConfig", "pmet"),
    "weights.rome": ("RomeConfig", "rome"),
    "weights.slag": ("SlagConfig", "slag"),
}
MODULE = {name: f"jaxedit.edit.{module}" for module, names in HOME.items() for name in names}

__all__ = [
    "EDITORS",
    "AdaLoraConfig",
    "AlphaEditConfig",
    "BirdConfig",
    "Edit",
    "EditResult",
    "Editor",
    "EmmetConfig",
    "EnnConfig",
    "FineTuneConfig",
    "KeConfig",
    "KnConfig",
    "Ledger",
    "LoraEditConfig",
    "MalmenConfig",
    "MemitConfig",
    "MendConfig",
    "PmetConfig",
    "RomeConfig",
    "SeracConfig",
    "SlagConfig",
    "Stats",
    "StatsConfig",
    "adalora",
    "alphaedit",
    "bird",
    "configure",
    "emmet",
    "enn",
    "fine_tune",
    "ke",
    "kn",
    "lora",
    "malmen",
    "memit",
    "mend",
    "pmet",
    "rome",
    "run",
    "serac",
    "slag",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in MODULE:
        raise AttributeError(f"module 'jaxedit.edit' has no attribute {name!r}")
    return getattr(importlib.import_module(MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
