"""Several certificates side by side: one config, and what each variant changes of it.

They are compared on the same documents, so each pays for being one of so many (`candidates`).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxedit import settings
from jaxedit.bounds import certificate
from jaxedit.bounds.certificate import BoundConfig
from jaxedit.bounds.family import family
from jaxedit.progress import Progress


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    base: BoundConfig
    variants: tuple[tuple[str, tuple[str, ...]], ...]  # name, and settings as after --set
    # The picture: "" bars; "bytes" a front for each of the names' first parts, "FRONT: POINT", over
    # the bytes; else names are numbers, of what this says
    across: str = ""
    workdir: str = "runs/bounds"


def configs(cfg: SweepConfig) -> dict[str, BoundConfig]:
    """Every variant's config; a mistake in one is told before any is run."""
    out: dict[str, BoundConfig] = {}
    for name, changes in cfg.variants:
        own = (f"workdir={Path(cfg.workdir, name)}", f"claim.candidates={len(cfg.variants)}")
        out[name] = settings.override(cfg.base, [*changes, *own])
    return out


def run(cfg: SweepConfig, meters: Callable[[str, str], Progress]) -> dict[str, dict[str, Any]]:
    """The certificates; those that are there already, of the same config, are kept."""
    wanted = configs(cfg)
    made = {name: kept for name, one in wanted.items() if (kept := there(one)) is not None}
    for name, one in wanted.items():
        if name not in made:
            family(one.family)  # cheap beside a run, and here all that its sizes forbid is told
    for name, one in wanted.items():
        if name not in made:
            label = lambda what, unit, name=name: meters(f"{name}: {what}", unit)
            made[name] = certificate.run(one, label)
    return {name: made[name] for name in wanted}


def there(one: BoundConfig) -> dict[str, Any] | None:
    """The certificate of just this config, if it has been made."""
    file = Path(one.workdir, certificate.FILE)
    found = json.loads(file.read_text()) if file.exists() else {}
    config = json.loads(settings.to_json(dataclasses.asdict(one)))
    same = found.get("format") == certificate.FORMAT and found["config"] == config
    return found if same else None
