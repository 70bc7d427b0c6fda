"""Editing methods by name, and their settings for a model: the published ones where there are any,
else what follows from the model's depth.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from jaxedit import settings
from jaxedit.edit.editor import Editor, Protocol
from jaxedit.edit.presets import MODELS, named, published
from jaxedit.edit.prompts.serac import serac
from jaxedit.edit.prompts.serac_learner import SeracConfig
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
from jaxedit.models.config import ModelConfig

PROTOCOLS = get_args(Protocol)
BIASED = ("gpt2", "gptj", "gpt_neox")  # families whose down projection has a bias


class Method(NamedTuple):
    make: Callable[[Any], Editor]
    config: type
    fixed: Mapping[str, Any] = {}  # what makes it this method


EDITORS: dict[str, Method] = {
    "rome": Method(rome, RomeConfig),
    "r-rome": Method(rome, RomeConfig, {"key": "mean"}),
    "bird": Method(bird, BirdConfig),
    "memit": Method(memit, MemitConfig),
    "pmet": Method(pmet, PmetConfig),
    "emmet": Method(emmet, EmmetConfig),
    "alphaedit": Method(alphaedit, AlphaEditConfig),
    "ft-l": Method(fine_tune, FineTuneConfig, {"objective": "prompt_last"}),
    "ft-c": Method(fine_tune, FineTuneConfig, {"objective": "target"}),
    "ft-m": Method(fine_tune, FineTuneConfig, {"objective": "target", "bound": None}),
    "lora": Method(lora, LoraEditConfig),
    "adalora": Method(adalora, AdaLoraConfig),
    "kn": Method(kn, KnConfig),
    "mend": Method(mend, MendConfig),
    "ke": Method(ke, KeConfig),
    "slag": Method(slag, SlagConfig),
    "enn": Method(enn, EnnConfig),
    "malmen": Method(malmen, MalmenConfig),
    "serac": Method(serac, SeracConfig),
}


def find(name: str) -> Method:
    if name not in EDITORS:
        close = difflib.get_close_matches(name.lower(), EDITORS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"method {name!r}: one of {', '.join(EDITORS)}{hint}")
    return EDITORS[name]


def configure(
    method: str,
    model: ModelConfig | None,
    *,
    preset: str = "",
    protocol: str = "paper",
    **overrides: Any,
) -> Any:
    """The method's config for this model. preset: whose published settings ("gpt2-xl"), or "any";
    "": those of the model that has this shape. overrides: fields, {"layer": 5, "values.lr": 0.1}.
    """
    check_protocol(protocol)
    found = find(method)
    name = preset or (named(model) if model else "any")
    chosen = published(method, name, protocol, model) | dict(found.fixed)
    if protocol == "easyedit" and found.make is fine_tune:  # by a part of its name, the bias too
        family = MODELS[name].family if model is None else ""
        chosen["bias"] = family in BIASED if model is None else model.mlp_bias
    cfg = found.config(**{k: v for k, v in chosen.items() if "." not in k})
    cfg = override(cfg, {k: v for k, v in chosen.items() if "." in k}, None)
    # apart from the published ones, with which a whole `values` is not to be mixed
    return under(override(cfg, overrides, model), protocol)


def check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r}: one of {', '.join(PROTOCOLS)}")


def under(cfg: Any, protocol: str) -> Any:
    """A config that is of this protocol, and does what the method itself does otherwise there."""
    check_protocol(protocol)
    new: dict[str, Any] = {"protocol": protocol} if hasattr(cfg, "protocol") else {}
    if hasattr(cfg, "rows"):
        new["rows"] = dataclasses.replace(cfg.rows, protocol=protocol)
    return dataclasses.replace(cfg, **new)


def protocol_of(cfg: Any) -> str:
    return cfg.protocol if hasattr(cfg, "protocol") else cfg.rows.protocol


def name_of(cfg: Any) -> str:
    """The method that a config is of."""
    for name, method in reversed(EDITORS.items()):  # the special ones come after the general
        fixed = method.fixed.items()
        if type(cfg) is method.config and all(getattr(cfg, f) == value for f, value in fixed):
            return name
    raise ValueError(f"{type(cfg).__name__} is no config of a method: {', '.join(EDITORS)}")


def override(cfg: Any, changes: Mapping[str, Any], model: ModelConfig | None) -> Any:
    """A config with some fields changed, checked against the model, if that is known."""
    hints = {key: hint for key, hint, _ in settings.walk(cfg)}
    new = {}
    for key, value in changes.items():
        if key not in hints:
            hint = settings.suggest(key, hints)
            raise ValueError(f"{name_of(cfg)} has no setting {key!r}; {hint}")
        value = tuple(value) if isinstance(value, list) else value
        new[key] = settings.settle(name_of(cfg), key, hints[key], value, [value])
    cfg = settings.rebuild(cfg, new, "")
    if model is not None:
        check(cfg, model)
    return cfg


def check(cfg: Any, model: ModelConfig) -> None:
    """Raises where a config names layers that the model has not."""
    layers = getattr(cfg, "layers", ()) or ((cfg.layer,) if hasattr(cfg, "layer") else ())
    if bad := [i for i in layers if not 0 <= i < model.layers]:
        raise ValueError(f"layer {bad[0]}: the model has layers 0 to {model.layers - 1}")
