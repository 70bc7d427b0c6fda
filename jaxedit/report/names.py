"""What metrics and kinds of probes are called, in which order they stand, and which way is better.

Whatever is not known here is shown under its own name, after the rest.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxedit.evaluate import summary

TITLES = {
    "edit_success": "Edit success",
    "counterfact": "CounterFact",
    "convsent": "ConvSent",
    "mquake": "MQuAKE",
    "ripple": "RippleEdits",
}
# of each group the number to show where there is room for one, the first that a run has
HEADLINES = {
    "edit_success": ("token", "exact", "generation", "probability"),
    "generalization": ("token", "exact", "generation", "probability"),
    "portability": ("token", "exact", "generation"),
    "locality": ("agreement", "exact", "neighborhood/agreement", "neighborhood/probability"),
    "counterfact": ("score",),
    "mquake": ("multi_hop", "instance_wise"),
    "ripple": ("logical_generalization",),
    "convsent": ("expression",),
    "sanitation": ("forget",),
    "fluency": ("",),
}
MEANING = {
    "token": "share of the answer's tokens that are the model's first choice, led through it",
    "exact": "share of answers whose every token is",
    "generation": "share of continuations that say an answer",
    "probability": "how often the answer that should win, the new one or for neighborhood the "
    "former, is the more probable of the two",
    "magnitude": "by how much it is, as a difference of probabilities",
    "agreement": "share of tokens that are said as before the edit",
    "kl": "KL(before ‖ after) over the answer's tokens, in nats",
    "drift": "the same, over replies about another topic",
    "fluency": "entropy of the n-grams of free text, in bits: repetition lowers it",
    "consistency": "how alike the free text is to texts about the new answer",
    "score": "harmonic mean of efficacy, paraphrase and neighborhood success",
    "perplexity": "of the edited model on text that has nothing to do with the edits",
}
BEFORE = "_before"  # ends the name of what the unedited model scores
LOWER = ("kl", "perplexity", "drift")  # lower is better


def group(name: str) -> str:
    return name.partition("/")[0].removesuffix(BEFORE)


def title(name: str) -> str:
    """Of a group of metrics, or of kinds of probes."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def label(name: str) -> str:
    """A metric's name within its group: `reasoning · token`."""
    rest = name.removesuffix(BEFORE).partition("/")[2]
    return rest.replace("_", " ").replace("/", " · ") or title(group(name)).lower()


def full(name: str) -> str:
    """`Portability · reasoning · token`."""
    rest = name.removesuffix(BEFORE).partition("/")[2]
    return " · ".join([title(group(name)), *([label(name)] if rest else [])])


def kind_of(name: str) -> str:
    """The kind of probe in a metric's name: `reasoning`; "all" where it is over every kind."""
    parts = name.removesuffix(BEFORE).split("/")[1:-1]
    return " · ".join(parts).replace("_", " ") or "all"


def last(name: str) -> str:
    return name.removesuffix(BEFORE).rpartition("/")[2]


def meanings(names: Iterable[str]) -> dict[str, str]:
    used = {last(name) for name in names}
    return {word: what for word, what in MEANING.items() if word in used}


def lower_is_better(name: str) -> bool:
    return last(name) in LOWER


def is_share(name: str) -> bool:
    """Is it told in percent and drawn from 0 to 100, or from -100."""
    return summary.is_share(name)


def show(name: str, value: float) -> str:
    """Shares in percent, without the sign; a true minus."""
    text = f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"
    return minus(text)


def spread(name: str, low: float, high: float) -> str:
    return f"[{show(name, low)}, {show(name, high)}]"


def minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def ordered_all(names: Iterable[str]) -> list[str]:
    """Group by group; within one, what is over all kinds first."""

    def place(name: str) -> tuple[Any, ...]:
        kind, *rest = summary.place(name)
        return kind, group(name), *rest

    return sorted(set(names), key=place)


def ordered(names: Iterable[str]) -> list[str]:
    """The same without what is before an edit, where there is the number after it."""
    names = ordered_all(names)
    return [n for n in names if not (n.endswith(BEFORE) and n.removesuffix(BEFORE) in names)]


def headlines(names: Iterable[str]) -> list[str]:
    """The names of the few metrics that tell most about a run."""
    names = set(names)
    found = []
    for head, choices in HEADLINES.items():
        full = [f"{head}/{choice}" if choice else head for choice in choices]
        found += [name for name in full if name in names][:1]
    return found or ordered(names)[:5]


def count(number: int) -> str:
    return f"{number:,} case{'' if number == 1 else 's'}"


def in_words(value: Any) -> str:
    """A setting in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={in_words(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return "" if value is None else str(value)
