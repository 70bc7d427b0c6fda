"""Published settings of editing methods, by model, and what is used for any other model.

"paper": from the repositories of each method's authors (kmeng01/rome, kmeng01/memit, xpq-tech/PMET,
scalable-model-editing, jianghoucheng/AlphaEdit); "easyedit": from zjunlp/EasyEdit. Where one of
them has no settings for a model, those of the other are used.
"""

from typing import Any, NamedTuple

from jaxedit.models.config import ModelConfig

Settings = dict[str, Any]  # field of the method's config -> value


def search(steps: int, lr: float, weight_decay: float, clamp: float, **more: Any) -> Settings:
    """Settings of the value search."""
    found = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "clamp": clamp, **more}
    return {f"values.{k}": v for k, v in found.items()}


def span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def gate(gated: bool) -> Settings:
    """The MLP's matrices, where there is a third."""
    return {"targets": ("mlp/gate", "mlp/up", "mlp/down")} if gated else {}


TRAINED = ("mend", "malmen", "ke", "slag", "enn")  # see edit/learner.py
ONE = ("rome", "r-rome", "bird", "emmet")  # methods of one layer
GPT = search(20, 0.5, 0.5, 4.0)
LLAMA = search(25, 0.5, 1e-3, 4.0)


class Known(NamedTuple):
    """A model that settings are published for: how it is recognised, and where it is."""

    family: str
    layers: int
    embed: int
    hub: str
    vocab: int = 0  # where the other numbers do not tell it apart


MODELS: dict[str, Known] = {
    "gpt2-medium": Known("gpt2", 24, 1024, "openai-community/gpt2-medium"),
    "gpt2-large": Known("gpt2", 36, 1280, "openai-community/gpt2-large"),
    "gpt2-xl": Known("gpt2", 48, 1600, "openai-community/gpt2-xl"),
    "gpt-j-6b": Known("gptj", 28, 4096, "EleutherAI/gpt-j-6b"),
    "gpt-neox-20b": Known("gpt_neox", 44, 6144, "EleutherAI/gpt-neox-20b"),
    "llama-2-7b": Known("llama", 32, 4096, "meta-llama/Llama-2-7b-hf", 32000),
    "llama-3-8b": Known("llama", 32, 4096, "meta-llama/Meta-Llama-3-8B", 128256),
    "llama-3.2-3b": Known("llama", 28, 3072, "meta-llama/Llama-3.2-3B"),
    "mistral-7b": Known("mistral", 32, 4096, "mistralai/Mistral-7B-v0.1"),
    "qwen2.5-7b": Known("qwen2", 28, 3584, "Qwen/Qwen2.5-7B"),
    "world": Known("gpt2", 4, 128, "world", 1024),
    "world-llama": Known("llama", 4, 128, "world-llama", 1024),
}
WORLDS = ("world", "world-llama")
LIKE_LLAMA = ("llama-2-7b", "llama-3-8b", "llama-3.2-3b", "mistral-7b", "qwen2.5-7b")

PAPER: dict[str, dict[str, Settings]] = {
    "rome": {
        "gpt2-medium": {"layer": 8} | search(20, 0.5, 0.5, 3.0),
        "gpt2-large": {"layer": 12} | GPT,
        "gpt2-xl": {"layer": 17} | GPT,
        "gpt-j-6b": {"layer": 5} | GPT,
        "gpt-neox-20b": {"layer": 15} | GPT,
        "llama-3-8b": {"layer": 5} | LLAMA,
    },
    "memit": {
        "gpt2-xl": {"layers": span(13, 17), "weight": 20000.0} | search(20, 0.5, 0.5, 0.75),
        "gpt-j-6b": {"layers": span(3, 8), "weight": 15000.0} | search(25, 0.5, 0.5, 0.75),
        "gpt-neox-20b": {"layers": span(6, 10), "weight": 6000.0} | search(20, 0.5, 0.5, 0.8),
        "llama-3-8b": {"layers": span(4, 8), "weight": 15000.0} | search(25, 0.1, 0.5, 0.75),
    },
    "pmet": {
        "gpt-j-6b": {"layers": span(3, 8), "weight": 6000.0} | search(30, 0.2, 0.5, 0.75, kl=1.0),
        "gpt-neox-20b": {"layers": span(6, 10), "weight": 15000.0}
        | search(30, 0.5, 0.5, 0.8, kl=0.8),
    },
    "emmet": {
        "gpt2-xl": {"layer": 17, "weight": 1000.0} | search(20, 0.5, 0.5, 0.75),
        "gpt-j-6b": {"layer": 5, "weight": 1.0} | search(25, 0.5, 0.5, 0.75),
        "llama-2-7b": {"layer": 5, "weight": 1.0} | LLAMA,
    },
    "alphaedit": {
        "gpt2-xl": {"layers": span(13, 17), "l2": 10.0} | search(20, 0.5, 0.5, 0.75),
        "gpt-j-6b": {"layers": span(3, 8), "l2": 10.0} | search(25, 0.5, 0.5, 0.75),
        "llama-3-8b": {"layers": span(4, 8), "l2": 10.0} | search(25, 0.1, 0.5, 0.75),
    },
    # the term's weights are published for GPT-2 XL alone
    "bird": {
        "gpt2-xl": {"layer": 17} | GPT,
        "gpt-j-6b": {"layer": 5, "rows.contexts.lengths": ((5, 5), (10, 5))} | GPT,
        "llama-2-7b": {"layer": 5, "rows.contexts.lengths": ((5, 5), (10, 5))} | LLAMA,
    },
    # one matrix, with a bound on every weight
    "ft-l": {
        "gpt2-medium": {"layer": 0, "bound": 2e-3},
        "gpt2-large": {"layer": 0, "bound": 1e-3},
        "gpt2-xl": {"layer": 0, "bound": 5e-4},
        "gpt-j-6b": {"layer": 0, "bound": 5e-5},
    },
    "ft-m": {"gpt2-xl": {"layer": 1}, "gpt-j-6b": {"layer": 21}},
    # published for BERT; thresholds from kmeng01/rome
    "kn": {
        "gpt2-xl": {},
        "gpt-j-6b": {"threshold": 0.1},
        **{name: {} for name in LIKE_LLAMA},
    },
}
LAST = {
    "gpt2-xl": {"layers": span(45, 47)},
    "gpt-j-6b": {"layers": span(25, 27)},
    "llama-2-7b": {"layers": span(29, 31)} | gate(True),
    "llama-3-8b": {"layers": span(29, 31)} | gate(True),
    "mistral-7b": {"layers": span(29, 31)} | gate(True),
    "llama-3.2-3b": {"layers": span(25, 27)} | gate(True),
    "qwen2.5-7b": {"layers": span(25, 27)} | gate(True),
}
PAPER["mend"] = PAPER["ke"] = PAPER["slag"] = PAPER["enn"] = LAST
PAPER["malmen"] = {
    "gpt2-xl": {"layers": span(42, 47)},
    "gpt-j-6b": {"layers": span(22, 27)},
    **{name: {"layers": span(18, 26)} for name in LIKE_LLAMA},
}
PAPER["serac"] = {name: {"layers": span(0, known.layers - 1)} for name, known in MODELS.items()}
PAPER["r-rome"] = PAPER["rome"]
PAPER["ft-c"] = PAPER["ft-l"]

# what EasyEdit does otherwise, whatever the model
EASY: dict[str, Settings] = {
    "rome": {"covariance": False},
    "r-rome": {"covariance": False},
    "mend": {"objective.outer": "edit"},  # its trainer asks for the request, not another wording
    "kn": {"site": "mlp_pre", "points": "linspace", "scaled": False, "old": 2.0, "new": 1.0},
}
EASYEDIT: dict[str, dict[str, Settings]] = {
    "rome": {
        "gpt2-xl": {"layer": 17, "covariance": False} | GPT,
        "gpt-j-6b": {"layer": 5, "covariance": False} | GPT,
        **{name: {"layer": 5, "covariance": False} | LLAMA for name in LIKE_LLAMA},
    },
    "memit": {
        "gpt2-xl": PAPER["memit"]["gpt2-xl"],
        "gpt-j-6b": PAPER["memit"]["gpt-j-6b"],
        **{name: {"layers": span(4, 8), "weight": 15000.0} | LLAMA for name in LIKE_LLAMA},
    },
    "pmet": {
        "gpt-j-6b": {"layers": span(3, 8), "weight": 15000.0} | search(30, 0.2, 0.5, 0.75, kl=1.0),
        "llama-2-7b": {"layers": span(4, 8), "weight": 15000.0}
        | search(20, 0.5, 0.5, 1.0, kl=0.0625),
        "llama-3.2-3b": {"layers": span(4, 8), "weight": 15000.0}
        | search(25, 0.5, 0.5, 1.0, kl=0.0625),
    },
    "emmet": {
        "gpt2-xl": {"layer": 17, "weight": 10000.0} | search(20, 0.5, 0.5, 0.75),
        "gpt-j-6b": {"layer": 5, "weight": 100000.0} | search(25, 0.5, 0.5, 0.75),
        "llama-2-7b": {"layer": 5, "weight": 100000.0} | LLAMA,
        "llama-3.2-3b": {"layer": 5, "weight": 100000.0} | LLAMA,
    },
    "alphaedit": {
        "gpt2-xl": PAPER["alphaedit"]["gpt2-xl"],
        "gpt-j-6b": PAPER["alphaedit"]["gpt-j-6b"],
        "llama-3-8b": {"layers": span(4, 8), "l2": 1.0} | search(25, 0.1, 0.5, 0.75),
        "qwen2.5-7b": {"layers": span(4, 8), "l2": 1.0} | LLAMA,
    },
    "ft-l": {
        "gpt2-xl": {"layer": 0, "bound": 5e-4},
        "gpt-j-6b": {"layer": 21},
        **{name: {"layer": 21} for name in ("llama-2-7b", "llama-3-8b", "llama-3.2-3b")},
        "mistral-7b": {"layer": 21, "bound": 5e-5},
        "qwen2.5-7b": {"layer": 27},
    },
    "ft-m": {
        "gpt2-xl": {"layer": 0},
        "gpt-j-6b": {"layer": 21},
        **{name: {"layer": 21} for name in LIKE_LLAMA if name != "qwen2.5-7b"},
        "qwen2.5-7b": {"layer": 27},
    },
    "ft-c": {"gpt2-xl": {"layer": 0, "bound": 5e-4}, "mistral-7b": {"layer": 21, "bound": 5e-5}},
    "lora": {
        "gpt2-xl": {"steps": 30, "targets": ("attn/q", "attn/k", "attn/v")},
        "gpt-j-6b": {"steps": 50, "targets": ("mlp/up", "mlp/down")},
        "qwen2.5-7b": {"steps": 60},
        **{name: {} for name in ("llama-2-7b", "llama-3-8b", "llama-3.2-3b")},
    },
    "kn": {
        "gpt2-xl": EASY["kn"],
        "gpt-j-6b": EASY["kn"] | {"threshold": 0.1},
        # one point, at zero: the slope there, not an integral
        **{name: EASY["kn"] | {"steps": 1} for name in LIKE_LLAMA},
    },
}
EASYEDIT["r-rome"] = EASYEDIT["rome"]
EASYEDIT["adalora"] = EASYEDIT["lora"]

# The models that ship have four layers, and names are gathered in the first; their residual stream
# is long, so values are far. In the Llama-style one a search with large steps is caught beside the
# way for one fact in twenty; small steps find it.
SEARCH = {"world": search(80, 1.0, 1e-3, 4.0), "world-llama": search(500, 0.1, 1e-3, 8.0)}
FREE = {"layers": (0,), "l2": 0.01}
FEW = {"rows.contexts.lengths": ((10, 5),)}  # contexts: as many as MEMIT's
OURS: dict[str, dict[str, Settings]] = {
    "rome": {
        "world": {"layer": 0} | SEARCH["world"],
        "world-llama": {"layer": 0} | FEW | SEARCH["world-llama"],
    },
    "memit": {name: {"layers": (0,), "weight": 5.0} | SEARCH[name] for name in WORLDS},
    "pmet": {name: {"layers": (0,), "weight": 5.0} | SEARCH[name] for name in WORLDS},
    "emmet": {name: {"layer": 0, "weight": 50.0} | SEARCH[name] for name in WORLDS},
    "alphaedit": {
        "world": FREE | {"threshold": 25.0} | search(300, 0.2, 1e-3, 4.0, stop_loss=0.003),
        "world-llama": FREE | {"threshold": 10.0} | SEARCH["world-llama"],
    },
    "ft-l": {name: {"layer": 1, "lr": 5e-3} for name in WORLDS},
    "ft-m": {name: {"layer": 1, "lr": 5e-3} for name in WORLDS},
    "ft-c": {name: {"layer": 1, "lr": 5e-3, "bound": 0.05} for name in WORLDS},
    "lora": {name: {"stop_loss": 0.01} for name in WORLDS},
    "adalora": {name: {} for name in WORLDS},
    **{
        m: {name: {"layers": (1, 2, 3)} | gate(name == "world-llama") for name in WORLDS}
        for m in TRAINED
    },
}
# The normed gradient is added: a step below zero begins by learning, not by unlearning. What is to
# be kept is compared where its answers are, which the goals for these models are about.
for name in WORLDS:
    OURS["mend"][name] |= {"step": -1e-3, "objective.edit": 1.0, "objective.where": "answer"}
    OURS["malmen"][name] = {"layers": (1, 2, 3), "rank": 256, "step": 3e-3}
    network = {"scale": 16.0, "step": 0.02, "objective.where": "answer"}
    OURS["ke"][name] |= network | {"margin": 0.1}
    OURS["slag"][name] |= network | {"sequence": 4, "objective.local": 4.0}
    OURS["enn"][name] |= {"step": 0.02, "objective.edit": 1.0, "objective.where": "answer"}
EVERY: dict[str, tuple[str, ...]]
EVERY = {"world": ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/up", "mlp/down")}
EVERY["world-llama"] = (*EVERY["world"], "mlp/gate")
OURS["serac"] = {
    name: PAPER["serac"][name] | {"targets": EVERY[name], "rank": 16, "alpha": 32.0}
    for name in WORLDS
}
for method in (*TRAINED, "serac"):
    for name, found in OURS[method].items():
        found["trained"] = f"runs/{method}-{name}/editor"
OURS["r-rome"] = OURS["bird"] = OURS["rome"]
SOURCES = {"paper": (OURS, PAPER, EASYEDIT), "easyedit": (OURS, EASYEDIT, PAPER)}


def named(model: ModelConfig) -> str:
    """The model that has this shape, or "any"."""
    for name, known in MODELS.items():
        same = (model.family, model.layers, model.embed) == known[:3]
        if same and known.vocab in (0, model.vocab):
            return name
    return "any"


def published(method: str, name: str, protocol: str, model: ModelConfig | None) -> Settings:
    """A method's settings for a model by name; for one without, what its depth suggests."""
    if name != "any" and name not in MODELS:
        raise ValueError(f"preset {name!r}: one of {', '.join(MODELS)}, any")
    for source in SOURCES[protocol]:
        if name in source.get(method, {}):
            found = dict(source[method][name])
            if protocol == "easyedit":
                return EASY.get(method, {}) | found
            if method in ("rome", "r-rome"):
                found.pop("covariance", None)  # that is EasyEdit's simplification, not the method
            return found
    if model is None:
        known = [n for source in SOURCES[protocol] for n in source.get(method, {})]
        raise ValueError(
            f"no settings of {method} for {name}; for {', '.join(dict.fromkeys(known))}"
        )
    return derived(method, model) | (EASY.get(method, {}) if protocol == "easyedit" else {})


def derived(method: str, model: ModelConfig) -> Settings:
    """Settings for a model that nobody has published any for: the share of its depth at which the
    published ones are, a third in GPT-2 and GPT-NeoX, a sixth (MEMIT: a quarter) in the others.
    """
    if method in ("kn", "lora", "adalora"):  # find their layers themselves, or take all
        return {}
    if method == "serac":
        return {"layers": span(0, model.layers - 1)}
    if method in TRAINED:  # as MEND's authors: the MLPs of the last three layers
        top = {"layers": span(max(model.layers - 3, 0), model.layers - 1)}
        return top | (gate(model.gated) if method != "malmen" else {})
    if method in ("ft-l", "ft-m", "ft-c"):
        bound = {"bound": 5e-4} if method == "ft-c" else {}
        return {"layer": round(0.66 * (model.layers - 1))} | bound
    deep = model.family in ("gpt2", "gpt_neox")
    one = min(round(model.layers * (0.35 if deep else 0.17)), model.layers - 1)
    last = min(round(model.layers * (0.35 if deep else 0.26)), model.layers - 1)
    several = span(max(last - min(5, max(model.layers // 6, 1)) + 1, 0), last)
    values = LLAMA if model.gated else GPT
    return values | ({"layer": one} if method in ONE else {"layers": several})
