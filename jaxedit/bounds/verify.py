"""A certificate read, checked against its bytes and the data, and made a model."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit import merge, settings
from jaxedit.bounds.certificate import (
    CODE,
    FILE,
    FORMAT,
    BoundConfig,
    Meters,
    certify_file,
    place,
)
from jaxedit.bounds.family import decode, family
from jaxedit.bounds.sample import load
from jaxedit.models.config import Model
from jaxedit.progress import quiet

NOTHING = "nothing"


def certified(file: str | Path) -> Model:
    """The model that a certificate speaks about, from its bytes: the weights that were evaluated,
    with a head of its own where only the head of a tied one was changed.
    """
    stated, file = read(file)
    cfg, data = config_of(stated, file), bytes_of(stated, file)
    found = family(cfg.family)
    one = decode(data, cfg.family, cfg.choices, found.space.dim, cfg.round.levels)
    params, deltas = place(found, one)
    base = found.base._replace(params=params)
    if deltas is None:
        return base
    if "head" in deltas:
        params, model = merge.untie(params, base.cfg)
        base = base._replace(params=params, cfg=model)
    return base._replace(params=merge.apply(base.params, deltas))


def config_of(stated: dict[str, Any], file: Path) -> BoundConfig:
    try:
        return settings.restore(BoundConfig, stated["config"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is of another version of jaxedit ({error})") from None


def bytes_of(stated: dict[str, Any], file: Path) -> bytes:
    code = file.with_name(CODE)
    if not code.exists():
        raise ValueError(f"{code}: the bytes that the certificate speaks about are not beside it")
    data = code.read_bytes()
    same(stated, file, "hypothesis", hashlib.sha256(data).hexdigest())
    return data


def same(stated: dict[str, Any], file: Path, name: str, have: str) -> None:
    if stated["sha256"].get(name) != have:
        raise ValueError(f"{file}: the {name} is another than the one that was certified")


class Difference(NamedTuple):
    what: str
    stated: Any
    found: Any


def read(file: str | Path) -> tuple[dict[str, Any], Path]:
    """A certificate, from its file or its folder."""
    file = Path(file)
    file = file / FILE if file.is_dir() else file
    if not file.exists():
        raise ValueError(f"{file}: no such certificate; give the file or its folder")
    try:
        stated = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no certificate ({error})") from None
    if not isinstance(stated, dict) or "claims" not in stated:
        raise ValueError(f"{file} is no certificate: it has no claims")
    if stated.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {stated.get('format')}, this version states format {FORMAT}: make "
            "it again (training that has ended is not repeated)"
        )
    kinds = {"claims": dict, "theorems": dict, "baselines": dict, "sha256": dict, "config": dict,
             "m": int, "n": int, "bytes": int, "delta": float, "theorem": str}  # fmt: skip
    wrong = [name for name, kind in kinds.items() if not isinstance(stated.get(name), kind)]
    if wrong:
        raise ValueError(f"{file} is damaged: {', '.join(wrong)} missing, or of another kind")
    return stated, file


def verify(
    file: str | Path, meters: Meters = lambda label, unit: quiet
) -> tuple[dict[str, Any], list[Difference]]:
    """Decodes the bytes beside a certificate, evaluates them on the data, and states it all again.

    Returns the new certificate, and what differs from the old one by more than 1e-9.
    """
    stated, file = read(file)
    cfg, data = config_of(stated, file), bytes_of(stated, file)
    found = family(cfg.family)
    sample = load(cfg.sample, found.base.tokenizer, meters("tokenising", "bytes"))
    same(stated, file, "sample", sample.digest())
    again = certify_file(cfg, found, sample, data, meters)
    return again, differences(stated, again)


def differences(stated: Any, found: Any, at: str = "") -> list[Difference]:
    """All that is not the same on both sides; numbers may differ by 1e-9."""
    if isinstance(stated, dict) and isinstance(found, dict):
        out = []
        for key in sorted({*stated, *found} - {"config", "device", "versions"}, key=str):
            name = f"{at}.{key}" if at else key
            out += differences(stated.get(key, NOTHING), found.get(key, NOTHING), name)
        return out
    if isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        pairs = enumerate(zip(stated, found, strict=True))
        return [d for i, (one, other) in pairs for d in differences(one, other, f"{at}[{i}]")]
    numbers = isinstance(stated, float) and isinstance(found, float)
    same = abs(stated - found) <= 1e-9 if numbers else stated == found  # NaN is not the same
    return [] if same else [Difference(at, stated, found)]
