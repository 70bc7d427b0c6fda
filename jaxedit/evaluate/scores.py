"""The numbers of one case, under the names that reports use, from what was asked and answered.

A protocol says what counts as an answer:

* "paper": any name of any answer, and the best of them where tokens are counted; the probes of a
  group are one test, as good as its best probe or its worst. Tokens, exact answers and, where
  there is text, generations; probabilities where two answers were compared.
* "easyedit": only the first name of the first answer, and only tokens; every probe counts alike.

Metrics of MQuAKE, RippleEdits, ConvSent and Sanitation are those of their authors under both. A
metric that cannot be computed for a case, for want of probes for example, is not in its dict.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from jaxedit.data.cases import KEYS
from jaxedit.evaluate import metrics
from jaxedit.evaluate.seen import EDIT, Asked, Forced, Observed, Seen
from jaxedit.evaluate.texts import (
    References,
    contains,
    generation_match,
    ngram_entropy,
    reference_score,
    words,
)

Protocol = Literal["paper", "easyedit"]
Tokenise = Callable[[str], Sequence[Any]]
SUCCESSES = {EDIT: "edit_success", "rephrase": "generalization"}


def score(
    observed: Observed,
    protocol: Protocol = "paper",
    *,
    references: References | None = None,
    tokenise: Tokenise = words,
) -> dict[str, float]:
    """Every metric of the case that can be computed.

    references: texts about the new object, for consistency. tokenise: into what generated texts are
    divided to compare them place by place; the published numbers use the model's tokenizer.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol {protocol!r}: one of {', '.join(get_args(Protocol))}")
    found: dict[str, float] = {}
    for key, name in SUCCESSES.items():
        found |= named(name, successes(observed.of(key), protocol))
    portability = by_key(observed, "portability/", lambda asked: successes(asked, protocol))
    found |= portability | over_keys("portability", portability)
    in_text = bool(observed.of("forget", "retain"))  # Sanitation compares generations
    locality = by_key(
        observed, "locality/", lambda asked: localities(asked, protocol, in_text, tokenise)
    )
    found |= locality | over_keys("locality", locality, ("agreement", "exact"))
    for part in (convsent, mquake, ripple):
        found |= part(observed)
    found |= sanitation(observed, tokenise)
    return found | fluency(observed, references)


def said(seen: Seen, answers: Sequence[Sequence[str]], *, every: bool = False) -> bool | None:
    """Is an answer said, by any name? From the generated text if there is one, and otherwise from
    the first choices under each name; None where neither is known.

    every: all answers are needed. First choices can say one only, so with them one is enough.
    """
    if seen.text is not None and answers:
        return generation_match(seen.text, answers, every=every)
    return exact(seen)


def kept(asked: Asked, in_text: bool = False, tokenise: Tokenise = words) -> float | None:
    """Share of what was said before the edit that is said after it, place by place.

    First choices under the first answer; of generated texts if `in_text`, or if the probe has no
    answers. None where there is nothing to compare.
    """
    before, after = asked.before.text, asked.after.text
    first = [s.answers[0][0] for s in (asked.before, asked.after) if s.answers]
    if len(first) == 2 and first[0].target and not (in_text and before is not None):
        return metrics.agreement(first[0].said, first[1].said)
    if before is None or after is None:
        return None
    return metrics.agreement(tokenise(before), tokenise(after))


def right(asked: Asked, in_text: bool = False, tokenise: Tokenise = words) -> bool | None:
    """After the edit: is an answer said, or, of what the edit should leave alone, is what was said
    still said in full?
    """
    if asked.key.startswith("locality/") or asked.key == "retain":
        share = kept(asked, in_text, tokenise)
        return None if share is None else share == 1
    return said(asked.after, asked.probe.answers, every=asked.key.startswith("ripple/"))


def token(seen: Seen) -> float | None:
    """Token accuracy of the best name of the best answer."""
    found = [metrics.token_accuracy(f.said, f.target) for f in forced(seen)]
    return max(found, default=None)


def first_token(seen: Seen) -> float | None:
    """Token accuracy of the first name of the first answer; None if it has no tokens."""
    found = [f for names in seen.answers[:1] for f in names[:1] if f.target]
    return metrics.token_accuracy(found[0].said, found[0].target) if found else None


def exact(seen: Seen) -> bool | None:
    """Would greedy decoding say one of the answers, by any name."""
    found = [metrics.exact_match(f.said, f.target) for f in forced(seen)]
    return any(found) if found else None


def forced(seen: Seen) -> list[Forced]:
    return [f for names in seen.answers for f in names if f.target]


def successes(asked: Sequence[Asked], protocol: Protocol) -> dict[str, float]:
    """How well the answers are said after the edit, by measure."""
    if protocol == "easyedit":
        return means({"token": [first_token(a.after) for a in asked]})
    spoken = [
        None if a.after.text is None or not a.probe.answers
        else generation_match(a.after.text, a.probe.answers)
        for a in asked
    ]  # fmt: skip
    found = {
        "token": tested(asked, [token(a.after) for a in asked]),
        "exact": tested(asked, [exact(a.after) for a in asked]),
        "generation": tested(asked, spoken),
    }
    return means(found | probabilities([(a.after.new, a.after.true) for a in asked]))


def localities(
    asked: Sequence[Asked], protocol: Protocol, in_text: bool, tokenise: Tokenise
) -> dict[str, float]:
    """How far the edit left alone what it should, by measure."""
    found: dict[str, list[Any]] = {"agreement": [kept(a, in_text, tokenise) for a in asked]}
    if protocol == "easyedit":
        return means(found)
    found["exact"] = [exact(a.after) for a in asked]
    found["exact_before"] = [exact(a.before) for a in asked]
    found["kl"] = [a.kl for a in asked]
    if asked[0].key == "locality/neighborhood":
        found |= probabilities([(a.after.true, a.after.new) for a in asked])
    return means(found)


def probabilities(pairs: Sequence[tuple[Forced | None, Forced | None]]) -> dict[str, list[Any]]:
    """Is the first of two answers more probable than the second, and by how much."""
    both = [(a.logp, b.logp) for a, b in pairs if a is not None and b is not None]
    return {
        "probability": [metrics.probability_success(a, b) for a, b in both],
        "magnitude": [metrics.probability_magnitude(a, b) for a, b in both],
    }


def tests(asked: Iterable[Asked]) -> list[list[int]]:
    """The places of probes that are one test: those of a group, and each that has none."""
    groups: dict[Any, list[int]] = {}
    for i, a in enumerate(asked):
        groups.setdefault(a.probe.group or i, []).append(i)
    return list(groups.values())


def tested(asked: Sequence[Asked], values: Sequence[float | None]) -> list[float]:
    """The values of tests from those of their probes; a test without one is left out."""
    found = []
    for places in tests(asked):
        those = [v for i in places if (v := values[i]) is not None]
        if those:
            found.append((max if asked[places[0]].probe.rule == "any" else min)(those))
    return found


def convsent(observed: Observed) -> dict[str, float]:
    """Is the wanted sentiment preferred about the topic (each question alike), and how far do
    replies about another topic drift.
    """
    if "sentiment" not in observed.case.info:
        return {}
    logp = lambda replies: [f.logp for f in replies]
    asked = [a for a in observed.of("rephrase") if forced(a.after) and a.after.against]
    shown = [
        metrics.expression(
            logp(forced(a.after)), logp(a.after.against), logp(forced(a.before))
        )
        for a in asked
    ]  # fmt: skip
    drift = [a.kl for a in observed.of("locality/unrelated")]
    return named("convsent", means({"expression": shown, "drift": drift}))


def mquake(observed: Observed) -> dict[str, float]:
    """MQuAKE's accuracies: of edits; of cases all of whose single facts are said (the edits, where
    the case lists no facts); of questions that any phrasing gets answered, also with the old answer
    before the edit.
    """
    hops, questions = observed.of("single_hop"), observed.of("multi_hop")
    if not hops and not questions:
        return {}
    after = lambda asked: [said(a.after, a.probe.answers) for a in asked]
    edits = after(observed.of(EDIT))
    facts = [f for f in (after(hops) or edits) if f is not None]
    old = observed.case.info.get("answer") or ()
    before = [
        None if a.before.text is None or not old else generation_match(a.before.text, [old])
        for a in questions
    ]
    found: dict[str, Sequence[float | None]] = {
        "edit_wise": edits,
        "instance_wise": [all(facts)] if facts else [],
        "multi_hop": tested(questions, after(questions)),
        "multi_hop_before": tested(questions, before),
    }
    return named("mquake", means(found))


def ripple(observed: Observed) -> dict[str, float]:
    """RippleEdits: the share of tests that are passed on each axis, of those whose conditions the
    unedited model knows. As its authors count, a query is passed if all its answers are said.
    """
    found = {}
    for key in KEYS:
        if key.startswith("ripple/"):
            counted = [
                a for a in observed.of(key)
                if len(a.known) == len(a.probe.conditions) and all(a.known)
            ]  # fmt: skip
            passed = [said(a.after, a.probe.answers, every=True) for a in counted]
            found[key] = tested(counted, passed)
    return means(found)


def sanitation(observed: Observed, tokenise: Tokenise) -> dict[str, float]:
    """Are questions with the forgotten answer refused, and others answered as before."""
    forget = [
        exact(a.after) if a.after.text is None else contains(a.after.text, a.probe.answers[0][0])
        for a in observed.of("forget")
    ]
    retain = [kept(a, True, tokenise) for a in observed.of("retain")]
    return named("sanitation", means({"forget": forget, "retain": retain}))


def fluency(observed: Observed, references: References | None) -> dict[str, float]:
    """Entropy of whole generated texts, their beginnings included as in the published numbers, and
    their likeness to references.
    """
    found: dict[str, float] = {}
    pairs = list(zip(observed.beginnings, observed.continued, strict=True))
    for suffix, which in (("", 1), ("_before", 0)):
        texts = [join(beginning, continued[which]) for beginning, continued in pairs]
        if texts:
            found[f"fluency{suffix}"] = float(np.mean([ngram_entropy(text) for text in texts]))
        if texts and references is not None:
            found[f"consistency{suffix}"] = reference_score(texts, references)
    return found


def join(beginning: str, text: str) -> str:
    """Some tokenizers drop the blank before the first word of what they decode."""
    return f"{beginning} {text}" if text[:1].isalnum() else beginning + text


def by_key(
    observed: Observed, prefix: str, measure: Callable[[Sequence[Asked]], dict[str, float]]
) -> dict[str, float]:
    """The measures of each key with the prefix that has probes."""
    found: dict[str, float] = {}
    for key in KEYS:
        if key.startswith(prefix) and (asked := observed.of(key)):
            found |= named(key, measure(asked))
    return found


def over_keys(
    prefix: str,
    found: Mapping[str, float],
    measures: Sequence[str] = ("token", "exact", "generation"),
) -> dict[str, float]:
    """The mean over keys of each measure: a key counts once, however many probes it has."""
    values = {m: [v for name, v in found.items() if name.endswith(f"/{m}")] for m in measures}
    return named(prefix, means(values))


def means(values: Mapping[str, Iterable[float | None]]) -> dict[str, float]:
    """Without what is None, and without a name that has nothing else."""
    some = {name: [float(v) for v in vs if v is not None] for name, vs in values.items()}
    return {name: float(np.mean(vs)) for name, vs in some.items() if vs}


def named(prefix: str, found: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in found.items()}
