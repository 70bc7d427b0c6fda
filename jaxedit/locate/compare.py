"""One score for all that find neurons: do they matter for a fact, and for it alone (PCR)?

Each finder looks for the neurons of a fact in some wordings of it. Its best k are silenced, then
doubled, where the answer is predicted, and the answer's probability is asked for again: of the same
wordings, of others (synonymy), of the inverse relation (symmetry), of other facts of the same
relation, and of other relations. Fewer than k where fewer score above zero. The probability change
ratio is

    PCR = mean |change of related questions| / mean |change of unrelated ones|

related: the fact, in all wordings; unrelated: other facts with other answers. A ratio of two means
over facts, with its interval over resampled facts; both means are told, since a small denominator
makes any ratio large.

    kn            knowledge neurons: integrated gradients
    increase      what the neuron adds to the answer's log-probability
    activation    how active it is, whatever the answer
    qrnca         knowledge neurons, those that other facts have too counting for less; of the k
                  highest those that more than 0.3 of the facts have are taken out
    lape          neurons of few relations (where there are several)
    random        as many as kn's (or the first finder's, where kn is not computed), in the same
                  layers, at random
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import settings
from jaxedit.checksum import checksum
from jaxedit.data.cases import Skipped
from jaxedit.evaluate.metrics import bootstrap
from jaxedit.evaluate.records import lines
from jaxedit.files import whole
from jaxedit.hf.load import inspect
from jaxedit.hf.load import load as load_model
from jaxedit.locate import neurons, questions, specific
from jaxedit.locate.explain import methods
from jaxedit.locate.facts import Asked, facts
from jaxedit.locate.questions import Question
from jaxedit.models.config import Model
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import ONE_DEVICE, MeshConfig, alone
from jaxedit.tensorfile import entries, read_header, write

FINDERS = ("kn", "increase", "activation", "qrnca", "lape", "random")
GROUPS = ("same wording", "other wordings", "inverse", "same relation", "other relations")
RELATED, UNRELATED = GROUPS[:2], GROUPS[3:]
CASES, SUMMARY, SCORES = "facts.jsonl", "summary.json", "scores"
VERSION = 2  # of what a record says; those of another one are made again
MODES = {"suppress": 0.0, "enhance": 2.0}


@dataclasses.dataclass(frozen=True)
class CompareTask:
    model: str
    facts: str = "world:small:0:100"  # world:SIZE:SEED:COUNT, or NAME:PATH of a dataset of facts
    finders: tuple[str, ...] = FINDERS
    ks: tuple[int, ...] = (5, 20)  # neurons of a fact
    wordings: int = 3  # in which neurons are looked for; as many others are asked
    unrelated: int = 8  # facts of the same relation, and as many of others
    steps: int = 20  # of the integral
    exact: int = 300  # neurons whose increase is exact
    known: float = 0.1  # facts whose answer has less probability are not looked at
    limit: int = 0
    seed: int = 0
    mesh: MeshConfig = ONE_DEVICE
    dtype: settings.Dtype | None = None
    workdir: str = "runs/neurons"

    def __post_init__(self) -> None:
        if unknown := [f for f in self.finders if f not in FINDERS]:
            raise ValueError(f"finder {unknown[0]!r}: of {', '.join(FINDERS)}")
        if not self.ks or min(*self.ks, self.wordings, self.unrelated, self.steps) < 1:
            raise ValueError("ks, wordings, unrelated and steps: each at least 1")
        if self.limit < 0:
            raise ValueError(f"limit {self.limit}: at least 0 (all facts)")


def run(cfg: CompareTask, progress: Progress = quiet) -> dict[str, Any]:
    """Scores and effects of every fact that has none yet; returns and writes the summary."""
    read, skipped = facts(cfg.facts, wordings=cfg.wordings, limit=cfg.limit, seed=cfg.seed)
    alone("locating")
    shape = inspect(cfg.model)[0]  # what can be seen to be wrong is said before a model is read
    if max(cfg.ks) > shape.layers * shape.mlp:
        said = f"k {max(cfg.ks)}: {cfg.model} has {shape.layers * shape.mlp:,} neurons"
        raise ValueError(f"{said}; give fewer")
    of_several(cfg, read)
    model = load_model(cfg.model, cfg.mesh.make(), cfg.dtype)
    every, more = usable(model, read)
    p = questions.probabilities(model, [fact.found_in[0] for fact in every])
    places = np.flatnonzero(p >= cfg.known).tolist()
    asked = [every[i] for i in places]
    if len(asked) < 2:
        raise ValueError(
            f"{cfg.facts}: {len(asked)} of {len(every)} facts have answers of p >= {cfg.known}; to "
            "compare takes two at least"
        )
    of_several(cfg, asked)
    folder = Path(cfg.workdir)
    (folder / SCORES).mkdir(parents=True, exist_ok=True)
    how = dataclasses.asdict(cfg) | {"workdir": "", "model": checksum(model.params)}
    key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:12]
    total = 2 * len(asked)
    scored = []
    for place, fact in zip(places, asked, strict=True):
        scored.append(stored(folder / SCORES / f"{key}-{place}.safetensors", model, fact, cfg))
        progress(len(scored), total)
    table = finders(cfg, asked, scored)
    key = f"{key}.{VERSION}"
    done = {r["place"]: r for r in lines(folder / CASES) if r.get("key") == key}
    whole(folder / CASES, "".join(json.dumps(r) + "\n" for r in done.values()))
    with (folder / CASES).open("a") as out:
        for i, place in enumerate(places):
            if place not in done:
                done[place] = {"key": key, "place": place, **effects(cfg, model, asked, i, table)}
                out.write(json.dumps(done[place]) + "\n")
                out.flush()
            progress(len(asked) + i + 1, total)
    summary: dict[str, Any] = {
        "model": cfg.model, "facts": len(every), "known": len(asked),
        "p": float(p[p >= cfg.known].mean()),
        "skipped": [[s.row, s.reason] for s in [*skipped, *more]],
        "layers": model.cfg.layers, "neurons": model.cfg.mlp, "finders": {},
        "like": control(cfg),
        "consistency": consistency([s["kn"] for s in scored]) if "kn" in needed(cfg) else {},
    }  # fmt: skip
    found = [done[place] for place in places]
    for name, sets in table.items():
        summary["finders"][name] = {
            "by_layer": sets[max(cfg.ks)].mean(0).sum(1).tolist(),
            **{str(k): {"neurons": float(sets[k].sum((1, 2)).mean()),
                        **{mode: ratio(found, name, k, mode) for mode in MODES}}
               for k in cfg.ks},
        }  # fmt: skip
    whole(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def of_several(cfg: CompareTask, some: Sequence[Asked]) -> None:
    """LAPE needs two relations; it is left out where all finders are asked for, else an error."""
    names = {fact.relation for fact in some}
    if "lape" in cfg.finders and set(cfg.finders) != set(FINDERS) and len(names) == 1:
        raise ValueError(
            f"finder lape: all {len(some)} facts are of relation {names.pop()!r}, it takes two; "
            "leave it out, or give more facts"
        )


def control(cfg: CompareTask) -> str:
    """The finder that random neurons are like: kn where it is computed, else the first one."""
    others = [name for name in FINDERS[:-1] if name in cfg.finders]
    return "kn" if not others or {"kn", "qrnca"} & set(others) else others[0]


def needed(cfg: CompareTask) -> list[str]:
    """The scores that the finders come from."""
    some = {*cfg.finders, *([control(cfg)] if "random" in cfg.finders else [])}
    some |= {"kn"} if "qrnca" in some else set()
    return [name for name in ("kn", "increase", "activation") if name in some]


def usable(model: Model, some: Sequence[Asked]) -> tuple[list[Asked], list[Skipped]]:
    """The facts all of whose questions the model's tokenizer can ask."""
    flat = [(i, q) for i, f in enumerate(some) for q in (*f.found_in, *f.others, *f.inverse)]
    _, gone = questions.tokens(model, [q for _, q in flat], skip=True)
    why = {flat[int(s.row)][0]: s.reason for s in gone}
    kept = [fact for i, fact in enumerate(some) if i not in why]
    return kept, [Skipped(some[i].found_in[0][0], reason) for i, reason in why.items()]


def stored(file: Path, model: Model, fact: Asked, cfg: CompareTask) -> dict[str, np.ndarray]:
    """A fact's scores in every wording it is looked for in, computed once."""
    if file.is_file():
        return {name: tensor.read() for name, tensor in read_header(file)[0].items()}
    asked, every = list(fact.found_in), methods(cfg.steps, cfg.exact)
    made = {name: questions.scores(model, asked, every[name]) for name in needed(cfg)}
    if "lape" in cfg.finders:
        made["active"], made["tokens"] = active(model, asked)
    write(file, entries(made), {})
    return made


def active(model: Model, asked: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """At how many of the prompts' tokens each neuron is active, and how many they are: for LAPE."""
    rows = [r.tokens[: r.prompt] for r in questions.tokens(model, asked)[0]]
    shape = (len(rows), questions.bucket(max(map(len, rows))))
    tokens, pos = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    for b, ids in enumerate(rows):
        tokens[b, : len(ids)], pos[b, : len(ids)] = ids, np.arange(len(ids))
    found, seen = specific.count(model.params, model.cfg, [(jnp.asarray(tokens), jnp.asarray(pos))])
    return found, np.array([seen])


def finders(
    cfg: CompareTask, asked: Sequence[Asked], scored: Sequence[Mapping[str, Any]]
) -> dict[str, dict[int, np.ndarray]]:
    """Every finder's neurons [N, L, F] of N facts, for each number of them."""
    best = lambda scores: {k: np.asarray(neurons.highest(scores, k, over=0.0)) for k in cfg.ks}
    out: dict[str, dict[int, np.ndarray]] = {}
    for name in needed(cfg):
        out[name] = best(np.stack([s[name].mean(0) for s in scored]))
    if "qrnca" in cfg.finders:
        out["qrnca"] = {k: specific.qrnca([s["kn"] for s in scored], top=k)[1] for k in cfg.ks}
    names = sorted({fact.relation for fact in asked})
    if len(names) > 1 and "lape" in cfg.finders:
        of = np.array([names.index(fact.relation) for fact in asked])
        total = lambda field: np.stack(
            [np.sum([s[field] for s, o in zip(scored, of, strict=True) if o == k], 0)
             for k in range(len(names))]
        )  # fmt: skip
        found = specific.lape(total("active"), total("tokens")[:, 0], share=1.0)
        score_LF = np.maximum(np.log(len(names)) - found.entropy_LF, 0)
        out["lape"] = best(np.where(found.sets_KLF, score_LF, 0)[of].astype(np.float32))
    like = lambda sets: neurons.random_like(jax.random.key(cfg.seed), jnp.asarray(sets))
    if "random" in cfg.finders:
        out["random"] = {k: np.asarray(like(out[control(cfg)][k])) for k in cfg.ks}
    return {name: out[name] for name in FINDERS if name in out and name in cfg.finders}


def effects(
    cfg: CompareTask, model: Model, asked: Sequence[Asked], i: int,
    table: Mapping[str, Mapping[int, np.ndarray]],
) -> dict[str, Any]:  # fmt: skip
    """How a fact's neurons of every finder change the probability of the answers of each group: the
    mean change, and the mean size of it.
    """
    some = groups(asked, i, cfg)
    flat = [q for group in GROUPS for q in some[group]]
    names = [(name, k) for name in table for k in cfg.ks]
    sets = [table[name][k][i] for name, k in names]
    sets_MLF, which = np.stack(sets), np.repeat(np.arange(len(sets)), len(flat))
    base = questions.probabilities(model, flat)
    out: dict[str, Any] = {"p": {}, "change": []}
    ends = np.cumsum([0, *(len(some[g]) for g in GROUPS)])
    parts = {g: slice(a, b) for g, a, b in zip(GROUPS, ends[:-1], ends[1:], strict=True) if b > a}
    out["p"] = {g: float(base[at].mean()) for g, at in parts.items()}
    for mode, factor in MODES.items():
        p = questions.probabilities(model, flat * len(sets), sets_MLF, which, factor)
        for (name, k), row in zip(names, p.reshape(len(sets), -1) - base, strict=True):
            found = {
                g: [float(row[at].mean()), float(np.abs(row[at]).mean())] for g, at in parts.items()
            }
            out["change"].append({"finder": name, "k": k, "mode": mode, "groups": found})
    return out


def groups(asked: Sequence[Asked], i: int, cfg: CompareTask) -> dict[str, list[Question]]:
    """Questions about the fact, and about others whose answer is another."""
    random = np.random.RandomState([cfg.seed, i])
    mine = asked[i]
    others = [asked[j] for j in random.permutation(len(asked)) if asked[j].answer != mine.answer]
    same = [o.found_in[0] for o in others if o.relation == mine.relation][: cfg.unrelated]
    rest = [o.found_in[0] for o in others if o.relation != mine.relation][: cfg.unrelated]
    every = (list(mine.found_in), list(mine.others), list(mine.inverse), same, rest)
    return dict(zip(GROUPS, every, strict=True))


def ratio(every: Sequence[Mapping[str, Any]], name: str, k: int, mode: str) -> dict[str, Any]:
    """The changes of all groups, and the PCR, with intervals over facts."""
    wanted = {"finder": name, "k": k, "mode": mode}
    found = [next(c["groups"] for c in r["change"] if wanted.items() <= c.items()) for r in every]
    out: dict[str, Any] = {}
    for group in GROUPS:
        change = [f[group][0] for f in found if group in f]
        if change:
            out[group] = bootstrap(np.array(change))._asdict()
    size = lambda f, some: np.mean([f[g][1] for g in some if g in f])
    both = np.array([
        (size(f, RELATED), size(f, UNRELATED)) for f in found if any(g in f for g in UNRELATED)
    ])  # fmt: skip
    if len(both):
        divide = lambda means: means[:, 0] / np.maximum(means[:, 1], 1e-9)
        out["pcr"] = bootstrap(both, divide)._asdict()
        out["related"], out["unrelated"] = both.mean(0).tolist()
    return out


def consistency(kn: Sequence[np.ndarray]) -> dict[str, float]:
    """Do a fact's wordings have the same knowledge neurons: agreement of the scores, within facts
    and over facts, and the refined sets with and without the share that is moved to keep them few.
    """
    several = [x for x in kn if len(x) > 1]
    out = {"across": neurons.alike(np.stack([x.mean(0) for x in kn]))}
    if several:
        out["within"] = float(np.mean([neurons.alike(x) for x in several]))
        coarse = [np.asarray(neurons.above(jnp.asarray(x), 0.2)) for x in several]
        least = min(3, *(len(x) for x in several))
        refined = neurons.refine(coarse, least=least)
        out |= {"coarse": float(np.mean([c.sum((1, 2)).mean() for c in coarse])),
                "refined": refined.free, "refined_forced": refined.forced,
                "share_forced": refined.share, "in_all": refined.consistent}  # fmt: skip
    return out
