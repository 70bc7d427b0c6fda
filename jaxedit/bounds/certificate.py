"""From a config to a certificate: train, round, encode, decode, evaluate what was decoded, bound.

What is bounded is what the bytes say, and nothing else: the file is decoded before anything is
evaluated, and `verify` needs the certificate, the file and the data, not the training.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import settings, tensorfile
from jaxedit.base import VERSION
from jaxedit.bounds import fit, quantize, risk
from jaxedit.bounds.claims import THEOREMS, ClaimConfig, Seen, beside, chosen, claims, parted
from jaxedit.bounds.code import published_bits
from jaxedit.bounds.family import (
    Choices,
    Family,
    FamilyConfig,
    Hypothesis,
    decode,
    encode,
    family,
    model_of,
    moved,
)
from jaxedit.bounds.family import hypothesis as rounded
from jaxedit.bounds.fit import FitConfig, SubspaceTask
from jaxedit.bounds.sample import Sample, SampleConfig, load
from jaxedit.checksum import checksum
from jaxedit.files import whole
from jaxedit.models.config import ModelConfig
from jaxedit.progress import Progress, quiet
from jaxedit.train import loop

FILE, CODE, FORMAT = "certificate.json", "hypothesis.bin", 2
Meters = Callable[[str, str], Progress]


@dataclasses.dataclass(frozen=True)
class RoundConfig:
    kind: Literal["kmeans", "uniform"] = "kmeans"
    levels: int = 7
    train: FitConfig | None = None  # levels and numbers are trained on, rounded (QAT)


@dataclasses.dataclass(frozen=True)
class BoundConfig:
    sample: SampleConfig
    family: FamilyConfig
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    round: RoundConfig = RoundConfig()
    choices: Choices = dataclasses.field(default_factory=Choices)
    claim: ClaimConfig = dataclasses.field(default_factory=ClaimConfig)
    workdir: str = "runs/bound"

    @property
    def task(self) -> SubspaceTask:
        """What trains it."""
        return SubspaceTask(self.sample, self.family, self.fit)


def run(cfg: BoundConfig, meters: Meters = lambda label, unit: quiet) -> dict[str, Any]:
    """Makes workdir/certificate.json and workdir/hypothesis.bin; returns the certificate."""
    workdir = Path(cfg.workdir)
    found = family(cfg.family)
    sample = load(cfg.sample, found.base.tokenizer, meters("tokenising", "bytes"))
    check(cfg, sample, found.base.cfg)
    w_d, levels = numbers(cfg, found, sample, workdir, meters)
    one = rounded(w_d, levels, cfg.choices.alphas[0])
    seen = look(cfg, found, sample, one, meters("evaluating", "windows"))
    best = claimed(cfg, sample, seen, one)["bits"]["alpha"]
    data = encode(one._replace(alpha=best), cfg.family, cfg.choices, cfg.round.levels)
    workdir.mkdir(parents=True, exist_ok=True)
    whole(workdir / CODE, data)
    certificate = certify_file(cfg, found, sample, data, meters, seen)
    whole(workdir / FILE, (settings.to_json(certificate) + "\n").encode())
    return certificate


def check(cfg: BoundConfig, sample: Sample, model: ModelConfig) -> None:
    m, n = len(sample), cfg.claim.evaluated
    if n > m:
        raise ValueError(f"evaluated={n} documents of {m}: at most all of them, which is 0")
    if (most := max(cfg.claim.topk, default=1)) >= sample.vocab:
        raise ValueError(f"topk={most}: there are {sample.vocab} tokens")
    read, longest = cfg.claim.read, model.max_len
    if model.learned_pos and max(read.window, read.stride) > longest:
        raise ValueError(f"read.window={read.window}: the model has positions for {longest} tokens")
    if cfg.claim.fresh and not len(sample.population):
        raise ValueError(
            f"fresh={cfg.claim.fresh}: without draws the true distribution is not known; set it 0"
        )


def numbers(
    cfg: BoundConfig, found: Family, sample: Sample, workdir: Path, meters: Meters
) -> tuple[np.ndarray, np.ndarray]:
    """w and its levels, trained as the config says. A run that was stopped goes on."""
    state = trained(cfg.task, fit.task(found, sample, cfg.fit), workdir / "fit", meters)
    w_d = np.asarray(state["w"], np.float64)
    _, levels = quantize.KINDS[cfg.round.kind](w_d, cfg.round.levels)
    if cfg.round.train is None:
        return w_d, levels
    start = {"w": w_d.astype(np.float32), "levels": levels.astype(np.float32)}
    how = (cfg.task, cfg.round)
    task = fit.task(found, sample, cfg.round.train, start)
    state = trained(how, task, workdir / "rounded", meters, cfg.round.train)
    return np.asarray(state["w"], np.float64), np.asarray(state["levels"], np.float64)


def trained(
    how: Any, task: loop.Task, folder: Path, meters: Meters, cfg: FitConfig | None = None
) -> dict[str, Any]:
    """The numbers after training, from their file if the same training has ended before."""
    cfg = cfg or how.fit
    name = hashlib.sha256(repr(how).encode()).hexdigest()[:12]
    folder = folder.with_name(f"{folder.name}-{name}")
    file = folder / fit.FILE
    if not file.exists():
        state, step = loop.run(task, cfg.loop, folder, progress=meters("training", "steps"))
        if step < cfg.steps:
            raise SystemExit(143)
        fit.write(state, folder)
    header, _ = tensorfile.read_header(file)
    return {name: tensor.read() for name, tensor in header.items()}


def look(
    cfg: BoundConfig, found: Family, sample: Sample, one: Hypothesis, progress: Progress = quiet
) -> Seen:
    """All the documents that are needed are read once."""
    params, deltas = place(found, one)
    some = chosen(cfg.claim, sample)
    together = np.concatenate(list(some.values()))
    model = found.base.cfg
    seen = risk.read(params, deltas, model, sample, together, cfg.claim.read, progress)
    return parted(some, seen.take)


@jax.jit
def _expand(space: Any, theta0: Any, w_d: Any) -> Any:
    return moved(space, theta0, w_d)


def place(found: Family, one: Hypothesis) -> tuple[Any, Any]:
    """The weights and deltas that the decoded numbers stand for."""
    theta = _expand(found.space, found.theta0, jnp.asarray(one.w))
    return model_of(found.cfg, found.base.params, theta)


def certify_file(
    cfg: BoundConfig, found: Family, sample: Sample, data: bytes, meters: Meters,
    seen: Seen | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The certificate of a file: everything in it follows from the bytes, the config, the data."""
    one = decode(data, cfg.family, cfg.choices, found.space.dim, cfg.round.levels)
    params, deltas = place(found, one)
    if seen is None:
        seen = look(cfg, found, sample, one, meters("evaluating", "windows"))
    if cfg.claim.pilot and one.alpha != (best := claimed(cfg, sample, seen, one)["bits"]["alpha"]):
        raise ValueError(f"the file says alpha = {one.alpha:g}, the pilot chooses {best:g}")
    by = {t: claimed(cfg, sample, seen, one, t, one.alpha) for t in THEOREMS}
    mine = by[cfg.claim.theorem]
    return {
        "format": FORMAT,
        "claims": mine,
        "theorems": {t: {k: v["bound"] for k, v in c.items()} for t, c in by.items()},
        "theorem": cfg.claim.theorem,
        "delta": cfg.claim.delta,
        "m": len(sample),
        "n": cfg.claim.evaluated or len(sample),
        "candidates": cfg.claim.candidates,
        "bytes": len(data),
        "sample_bits": compressed(sample, mine["bits"], len(data)),
        "numbers": len(one.symbols),
        "parameters": found.space.size,
        "levels": len(one.levels),
        "published_bits": published_bits(one.symbols, len(one.levels)),
        "baselines": beside(cfg.claim, cfg.choices.alphas, sample),
        "sha256": {
            "hypothesis": hashlib.sha256(data).hexdigest(),
            "weights": checksum(params if deltas is None else as_tree(deltas)),
            "sample": sample.digest(),
        },
        "versions": {"jaxedit": VERSION, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "config": dataclasses.asdict(cfg),
    }


def claimed(
    cfg: BoundConfig, sample: Sample, seen: Seen, one: Hypothesis, theorem: str = "",
    alpha: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """What is claimed of a hypothesis, whose file is counted with each alpha."""

    @functools.cache
    def nats(alpha: float) -> float:
        file = encode(one._replace(alpha=alpha), cfg.family, cfg.choices, cfg.round.levels)
        return 8 * len(file) * math.log(2)

    return claims(cfg.claim, cfg.choices.alphas, sample, seen, nats, theorem, alpha)


def compressed(sample: Sample, bits: dict[str, Any], size: int) -> dict[str, float]:
    """What the m documents take: plainly, by the model as the n say, and with its file."""
    lengths = np.diff(sample.tokens.starts)[sample.documents_m] - 1
    tokens = int(lengths.sum())
    plain, model = tokens * bits["vacuous"], tokens * bits["risk"]
    return {"tokens": tokens, "plain": plain, "model": model, "with_file": model + 8 * size}


def as_tree(deltas: Any) -> dict[str, Any]:
    return {name: {"a": d.a, "b": d.b} for name, d in deltas.items()}
