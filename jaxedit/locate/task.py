"""Causal tracing of many facts: a record per fact, the average effect by token and layer, pictures.

A fact counts if the model says its answer. The average indirect effect of a kind of state is what
restoring it adds to the answer's probability under noise, a mean over facts, by the role of the
token: the subject's first, middle and last, the one after it, those further on, and the last.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxedit import settings
from jaxedit.checksum import checksum
from jaxedit.data import asked
from jaxedit.data.cases import SLOT, EditRequest, Fact, Skipped
from jaxedit.data.read import READERS, read
from jaxedit.data.requests import Row, mark, tokenise
from jaxedit.evaluate.overlap import rsim
from jaxedit.evaluate.records import lines
from jaxedit.files import whole
from jaxedit.hf.load import load as load_model
from jaxedit.locate import trace
from jaxedit.models.config import Model
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import ONE_DEVICE, MeshConfig, alone

ROLES = ("first", "middle", "last", "next", "further", "final")
CASES, SUMMARY = "cases.jsonl", "summary.json"


@dataclasses.dataclass(frozen=True)
class TraceTask:
    model: str
    facts: str  # world:SIZE:SEED:COUNT, known_1000:PATH, another dataset, or a file of requests
    kinds: tuple[trace.Kind, ...] = ("hidden", "mlp", "attn")
    samples: int = 10  # of noise
    noise: trace.Rule = "gaussian"
    # the noise's standard deviation (uniform: its bound); 0: `times` that of subjects' embeddings.
    # covariance: `times` their whole covariance's root, whatever the level
    level: float = 0.0
    times: float = 3.0
    window: int = 0  # layers that are restored together (mlp, attn); 0: a fifth of them
    sever: trace.Sever = ""
    # tokens in a program, and groups of layers, as in locate.trace; 0: what suits the platform
    together: int = 0
    groups: int = 0
    limit: int = 0  # facts; 0: all
    seed: int = 1
    mesh: MeshConfig = ONE_DEVICE
    dtype: settings.Dtype | None = None
    workdir: str = "runs/trace"

    def __post_init__(self) -> None:
        if unknown := [k for k in self.kinds if k not in trace.SITES]:
            raise ValueError(f"kind {unknown[0]!r}: of {', '.join(trace.SITES)}")
        if self.noise not in get_args(trace.Rule):
            raise ValueError(f"noise {self.noise!r}: of {', '.join(get_args(trace.Rule))}")
        if self.sever not in get_args(trace.Sever):
            raise ValueError(f"sever {self.sever!r}: '', mlp, attn")
        if not self.traced:
            said = f"kinds {', '.join(self.kinds) or 'none'}, sever {self.sever!r}"
            raise ValueError(f"{said}: nothing is left to trace; add a kind that is not severed")
        if self.samples < 1 or min(self.level, self.times) < 0:
            raise ValueError(
                f"samples={self.samples}, level={self.level}, times={self.times}: at least "
                "1 sample, and neither of the others negative"
            )
        if self.limit < 0:
            raise ValueError(f"limit {self.limit}: at least 0 (all facts)")

    @property
    def traced(self) -> tuple[trace.Kind, ...]:
        """The kinds less the severed one, which cannot be restored: its scores are all the same."""
        return tuple(kind for kind in self.kinds if kind != self.sever)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A fact as tokens."""

    place: int
    text: str
    subject: str
    answers: tuple[str, ...]
    tokens: tuple[int, ...]  # of the prompt
    span: tuple[int, int]  # the subject's first and last
    relation: str  # its name, or the prompt with a slot


def facts(source: str, limit: int = 0) -> tuple[list[Fact], list[Skipped]]:
    """What is true, of a dataset of facts or of what requests say was true before."""
    name, _, path = source.partition(":")
    if name in READERS and path:
        found = read(name, path)
        if all(isinstance(item, Fact) for item in found.items):
            return list(found.items)[: limit or None], list(found.skipped)
    requests, skipped = asked.requests(source, limit)
    made = []
    for i, request in enumerate(requests):
        if request.ground_truth:
            made.append(Fact(str(i), request.prompt, request.subject, request.ground_truth))
        else:
            skipped.append(Skipped(f"{source}[{i}]", "no ground_truth: nothing is known to trace"))
    return made, skipped


def tokens_of(model: Model, some: Sequence[Fact]) -> tuple[list[Asked], list[Skipped]]:
    texts = []
    for place, fact in enumerate(some):
        request = EditRequest(fact.prompt, fact.subject, fact.answers[0])
        start = fact.prompt.index(SLOT)
        span = (start, start + len(fact.subject))
        texts.append((place, mark(request.text, request.target, span)))
    made, skipped = [], []
    for place, row in tokenise(model.tokenizer, texts):
        fact = some[place]
        if not isinstance(row, Row):
            skipped.append(Skipped(fact.id, row))
            continue
        text = fact.prompt.replace(SLOT, fact.subject)
        tokens, relation = row.tokens[: row.prompt], fact.relation or fact.prompt
        made.append(Asked(place, text, fact.subject, fact.answers, tokens, row.subject, relation))
    return made, skipped


def level_of(cfg: TraceTask, model: Model, some: Sequence[Asked]) -> float | np.ndarray:
    """How large the noise is; of "covariance" a root of it."""
    subjects = [list(a.tokens[a.span[0] : a.span[1] + 1]) for a in some]
    if cfg.noise == "covariance":
        return cfg.times * trace.root_of(model.params, model.cfg, subjects)
    if cfg.level:
        return cfg.level
    return cfg.times * trace.spread(model.params, model.cfg, subjects)


def one(
    cfg: TraceTask, model: Model, asked: Asked, level: float | np.ndarray, answer: int | None = None
) -> dict[str, Any]:
    """A fact traced, if it is known; or of a given answer (a token, -1: what the model says),
    whatever is true.
    """
    subject = np.zeros(len(asked.tokens), bool)
    subject[asked.span[0] : asked.span[1] + 1] = True
    noise = trace.noise(cfg.noise, cfg.seed, cfg.samples, subject, model.cfg, level)
    assert model.tokenizer is not None
    record: dict[str, Any] = {
        "place": asked.place, "prompt": asked.text, "subject": asked.subject,
        "tokens": [model.tokenizer.decode([t]) for t in asked.tokens], "span": list(asked.span),
    }  # fmt: skip
    every = answer is not None
    if answer is None or answer < 0:
        answer = trace.says(model.params, np.array(asked.tokens), model.cfg)
    said = model.tokenizer.decode([answer]).strip()
    known = bool(said) and any(a.strip().startswith(said) for a in asked.answers)
    record |= {"said": said, "known": known, "window": window_of(cfg, model), "sever": cfg.sever}
    if not (known or every):
        return record
    for kind in cfg.traced:
        found = trace.trace(
            model.params, np.array(asked.tokens), noise, model.cfg,
            answer=answer, kind=kind, window=cfg.window, sever=cfg.sever,
            together=cfg.together, groups=cfg.groups,
        )  # fmt: skip
        record |= {"low": found.low, "high": found.high}
        record[kind] = found.scores_TL.round(6).tolist()
    return record


def window_of(cfg: TraceTask, model: Model) -> int:
    return cfg.window or trace.default_window(model.cfg.layers)


def run(cfg: TraceTask, progress: Progress = quiet) -> dict[str, Any]:
    """Traces what is not traced yet; returns and writes the summary."""
    alone("locating")
    model = load_model(cfg.model, cfg.mesh.make(), cfg.dtype)
    if model.tokenizer is None:
        raise ValueError(f"{cfg.model} has no tokenizer")
    found, skipped = facts(cfg.facts, cfg.limit)
    asked, more = tokens_of(model, found)
    if not asked:
        raise ValueError(f"{cfg.facts}: no fact can be traced: {[*skipped, *more][:1]}")
    level = level_of(cfg, model, asked)
    workdir = Path(cfg.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    root = np.atleast_2d(level)
    size = float(np.sqrt(np.square(root).sum() / len(root)))  # a standard deviation of either
    how = dataclasses.asdict(cfg) | {"workdir": "", "level": size, "model": checksum(model.params)}
    key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:12]
    file = workdir / CASES
    done = {r["place"]: r for r in lines(file) if r.get("key") == key}
    whole(file, "".join(json.dumps(r) + "\n" for r in done.values()))
    with file.open("a") as out:
        for i, fact in enumerate(asked):
            if fact.place not in done:
                done[fact.place] = {"key": key} | one(cfg, model, fact, level)
                out.write(json.dumps(done[fact.place]) + "\n")
                out.flush()
            progress(i + 1, len(asked))
    known = [done[a.place] for a in asked if done[a.place]["known"]]
    known = [{k: x for k, x in r.items() if k != cfg.sever} for r in known]
    summary: dict[str, Any] = {
        "model": cfg.model, "facts": len(asked), "known": len(known), "noise": size,
        "rule": cfg.noise, "sever": cfg.sever,
        "layers": model.cfg.layers, "window": window_of(cfg, model),
        "skipped": [[s.row, s.reason] for s in [*skipped, *more]],
    }  # fmt: skip
    if known:
        summary["low"], summary["high"] = (
            float(np.mean([r[k] for r in known])) for k in ("low", "high")
        )
        summary["effects"] = {kind: effects(known, kind) for kind in cfg.traced}
        summary["recommended"] = recommend(summary["effects"], cfg.sever)
        of = [a for a in asked if done[a.place]["known"]]
        summary["overlap"] = overlap(known, {"subject": [a.subject for a in of],
                                             "relation": [a.relation for a in of]})  # fmt: skip
    whole(workdir / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def roles(tokens: int, span: Sequence[int]) -> list[list[int]]:
    """The tokens of each role; a subject of one token is its first and its last, as the authors
    count. What comes before the subject has none.
    """
    first, last = span
    after = list(range(last + 1, tokens))
    return [
        [first],
        list(range(first + 1, last)),
        [last],
        after[:1] if len(after) > 1 else [],
        after[1:-1],
        after[-1:],
    ]


def effects(known: Sequence[Mapping[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """By role: at every layer the mean effect over facts, and half of its 95 % interval."""
    found: dict[str, list[np.ndarray]] = {role: [] for role in ROLES}
    for record in known:
        gain_TL = np.array(record[kind]) - record["low"]
        for role, at in zip(ROLES, roles(len(gain_TL), record["span"]), strict=True):
            if at:
                found[role].append(gain_TL[at].mean(0))
    out = {}
    for role, some in found.items():
        if some:
            x = np.stack(some)
            error = (
                1.96 * x.std(0, ddof=1) / math.sqrt(len(x)) if len(x) > 1 else np.zeros(x.shape[1])
            )
            out[role] = {"n": len(x), "mean": x.mean(0).tolist(), "error": error.tolist()}
    return out


def recommend(
    found: Mapping[str, Mapping[str, Any]], sever: trace.Sever = ""
) -> dict[str, Any] | None:
    """The layer whose MLPs matter most at the subject's last token, which is what ROME edits, and
    the two next ones. differs: is the effect more than zero by its interval; None of one fact,
    which has no interval. Where MLPs are severed nothing is to be seen of theirs.
    """
    kind = "mlp" if "mlp" in found else "hidden"
    if sever == "mlp" or "last" not in found.get(kind, {}):
        return None
    of = found[kind]["last"]
    at = lambda i: {"layer": i, "effect": of["mean"][i], "error": of["error"][i]}
    best, *others = (at(i) for i in np.argsort(-np.array(of["mean"]), kind="stable").tolist())
    more = best["effect"] > best["error"]
    return {**best, "n": of["n"], "kind": kind, "differs": None if more and of["n"] == 1 else more,
            "next": others[:2]}  # fmt: skip


def overlap(
    known: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Do facts of one subject, or relation, lie in the same layers: RSim of the tenth of the layers
    that matter most at the subject's last token.
    """
    kind = "mlp" if "mlp" in known[0] else next(k for k in trace.SITES if k in known[0])
    scores_NL = np.array([r[kind][r["span"][1]] for r in known], np.float32)
    k = max(round(scores_NL.shape[1] / 10), 1)
    found = {name: rsim(scores_NL, of, k=k) for name, of in groups.items()}
    return {"kind": kind, "layers": k, **found}
