"""How many bits an edit takes, and what it does to a bound.

An edit is written as bytes (`bounds.message`) with ever fewer ranks and levels; the shortest file
whose decoded edit still says the target is the edit's description. A bound of the edited model pays
for it: the model before the edit is the prior, whose file says no changes. It may have seen the
texts from which documents are drawn, but not which ones are.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import delta, settings
from jaxedit.base import Array, Deltas, Params
from jaxedit.bounds import message, risk
from jaxedit.bounds.claims import ClaimConfig, Seen, chosen, claims, fixed
from jaxedit.bounds.message import Message
from jaxedit.bounds.sample import Sample, SampleConfig, load
from jaxedit.data.asked import requests as read_requests
from jaxedit.data.cases import EditRequest
from jaxedit.data.requests import edit_batches
from jaxedit.edit.methods import configure
from jaxedit.edit.runner import run as make_edits
from jaxedit.evaluate.records import lines
from jaxedit.files import whole
from jaxedit.hf.load import load as load_model
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import alone, on_mesh_of

RANKS = (1, 2, 4, 8)
LEVELS = (2, 3, 4, 5, 7, 11, 16, 32)
FILE, SUMMARY = "edits.jsonl", "summary.json"


@dataclasses.dataclass(frozen=True)
class BitsConfig:
    model: str
    requests: str  # as `jaxedit edit` takes them
    methods: tuple[str, ...]
    sample: SampleConfig  # what the bound speaks about
    claim: ClaimConfig = dataclasses.field(default_factory=lambda: ClaimConfig(fresh=0))
    alphas: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    ranks: tuple[int, ...] = RANKS
    levels: tuple[int, ...] = LEVELS
    bounded: int = 5  # edits of each method whose bound is stated
    dtype: settings.Dtype | None = None
    workdir: str = "runs/bits"

    def __post_init__(self) -> None:
        if not self.alphas or not all(0 < a < 1 for a in self.alphas):
            raise ValueError(f"alphas={self.alphas}: at least one, and all between 0 and 1")
        if (
            not self.methods
            or min(*self.ranks, *(n - 1 for n in self.levels), self.bounded + 1) < 1
        ):
            raise ValueError(f"{self}: methods, ranks from 1 on, levels from 2 on")


def run(cfg: BitsConfig, progress: Progress = quiet) -> dict[str, Any]:
    """Every method's edits that are not described yet; returns and writes the summary."""
    alone("describing edits")
    model = load_model(cfg.model, dtype=cfg.dtype)
    for method in cfg.methods:  # a mistake in the last one is told before the first is run
        configure(method, model.cfg)
    requests, skipped = read_requests(cfg.requests)
    sample = load(cfg.sample, model.tokenizer)
    if cfg.claim.evaluated > len(sample):
        raise ValueError(f"evaluated={cfg.claim.evaluated} documents of {len(sample)}")
    folder = Path(cfg.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    key = settings.to_json(dataclasses.asdict(cfg) | {"workdir": "", "methods": ()})
    kept = [r for r in lines(folder / FILE) if r.get("key") == key]
    done = {(r["method"], r["place"]): r for r in kept}
    whole(folder / FILE, "".join(json.dumps(r) + "\n" for r in kept))
    empty = message.encode(message.rounded([], 2), model.cfg)
    before = bound(cfg, model, sample, {}, empty)
    total = len(cfg.methods) * len(requests)
    with (folder / FILE).open("a") as out:
        for m, method in enumerate(cfg.methods):
            todo = [i for i in range(len(requests)) if (method, i) not in done]
            edits = make_edits(model, [requests[i] for i in todo], method, skip=True)
            for i, edit in zip(todo, edits, strict=True):
                record = describe(model, requests[i], edit.deltas, cfg)
                if i < cfg.bounded and record["bytes"]:
                    data = bytes.fromhex(record["file"])
                    deltas = message.decode(data, model.cfg)
                    record["bound"] = bound(cfg, model, sample, deltas, data)
                done[method, i] = {"key": key, "method": method, "place": i, **record}
                out.write(json.dumps(done[method, i]) + "\n")
                out.flush()
                progress(m * len(requests) + i + 1, total)
    every = {m: [done[m, i] for i in range(len(requests))] for m in cfg.methods}
    summary = {
        "model": cfg.model, "edits": len(requests), "before": before,
        "m": len(sample), "n": cfg.claim.evaluated or len(sample), "theorem": cfg.claim.theorem,
        "delta": cfg.claim.delta / (1 + len(cfg.claim.topk)),
        "skipped": [[s.row, s.reason] for s in skipped],
        "methods": {m: summarise(some, before) for m, some in every.items()},
    }  # fmt: skip
    whole(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def describe(model: Model, request: EditRequest, deltas: Deltas, cfg: BitsConfig) -> dict[str, Any]:
    """The shortest file that still makes the edit; {"bytes": 0} where the edit itself fails."""
    arrays = jax.tree.leaves(dict(deltas))
    raw = sum(x.nbytes for x in arrays if jnp.issubdtype(x.dtype, jnp.floating))
    failed = {"raw": raw, "bytes": 0, "file": ""}
    if not deltas:
        return failed
    full = max(delta.rank(deltas).values())
    tried: list[tuple[int, int, Message]] = []
    for rank in sorted({min(r, full) for r in cfg.ranks}):
        some = message.changes(deltas, rank)
        tried += [(rank, n, message.rounded(some, n)) for n in cfg.levels] if some else []
    if not tried:
        return failed
    says_B = said(model, request, [message.deltas_of(m.changes) for _, _, m in tried])
    good = [one for one, says in zip(tried, says_B, strict=True) if says]
    if not good:
        return failed
    rank, levels, best = min(good, key=lambda one: one[2].bits)
    data = message.encode(best, model.cfg)
    return {"raw": raw, "bytes": len(data), "rank": rank, "levels": levels,
            "matrices": len(best.changes), "file": data.hex()}  # fmt: skip


def said(model: Model, request: EditRequest, some: Sequence[Deltas]) -> np.ndarray:
    """Which edits make the model say all of the target, each token after the right ones: [B]."""
    ((_, batch),) = edit_batches(model.tokenizer, [request])
    rows = len(some)
    wide = lambda x: jnp.broadcast_to(jnp.asarray(x[0]), (rows, *x.shape[1:]))
    with on_mesh_of(model.params):
        found = right(model.params, wide(batch.tokens_BT), wide(batch.pos_BT),
                      wide(batch.target_BT), delta.stack(some), model.cfg)  # fmt: skip
    return np.asarray(found)


@partial(jax.jit, static_argnames="cfg")
def right(
    params: Params, tokens_BT: Array, pos_BT: Array, target_BT: Array, deltas: Deltas,
    cfg: ModelConfig,
) -> Array:  # fmt: skip
    logits = forward(params, tokens_BT, cfg, pos_BT=pos_BT, deltas=deltas).logits
    same_BT = logits.argmax(-1) == jnp.roll(tokens_BT, -1, 1)
    return (same_BT | ~target_BT).all(1)


def bound(
    cfg: BitsConfig, model: Model, sample: Sample, deltas: Deltas, data: bytes
) -> dict[str, float]:
    """Bits per token of a model with an edit, and their bound."""
    documents = chosen(cfg.claim, sample)["main"]
    read = risk.read(model.params, deltas or None, model.cfg, sample, documents, cfg.claim.read)
    # the file names the edit; which alpha smooths it is one more choice of the prior's
    nats = 8 * len(data) * math.log(2) + math.log(len(cfg.alphas))
    found = claims(cfg.claim, cfg.alphas, sample, Seen(read, None, None), partial(fixed, nats))[
        "bits"
    ]
    return {"risk": found["risk"], "bound": found["bound"], "vacuous": found["vacuous"]}


def summarise(some: Sequence[dict[str, Any]], before: dict[str, float]) -> dict[str, Any]:
    good = [r for r in some if r["bytes"]]
    out: dict[str, Any] = {"edits": len(some), "described": len(good)}
    if good:
        size = np.array([r["bytes"] for r in good])
        out |= {"bytes": float(size.mean()), "median": float(np.median(size)),
                "least": int(size.min()), "most": int(size.max()),
                "raw": float(np.mean([r["raw"] for r in good]))}  # fmt: skip
    bounded = [r["bound"] for r in good if "bound" in r]
    for name in ("risk", "bound"):
        if bounded:
            out[name] = float(np.mean([b[name] for b in bounded]) - before[name])
    return out
