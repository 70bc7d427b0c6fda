"""KnowEdit's six tasks (Zhang et al. 2024): wiki_recent, wiki_counterfact, ZsRE, WikiBio, ConvSent,
Sanitation.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from jaxedit.data import files
from jaxedit.data.cases import Cases, EditCase, EditRequest, Probe, collect, find, slotted
from jaxedit.data.fields import Probes, names, text

# The published names of probes, by the field they stand in.
PROBES = {
    ("portability", "Subject_Aliasing"): "portability/subject_aliasing",
    ("portability", "Reasoning"): "portability/reasoning",
    ("portability", "Logical_Generalization"): "portability/logical_generalization",
    ("locality", "Relation_Specificity"): "locality/relation_specificity",
    ("locality", "Forgetfulness"): "locality/forgetfulness",
}
# ConvSent's published instruction, its spelling included, around a question about a topic.
INSTRUCTION = "From the sentiment dataset, answer {} {}."
ADVERBS = {"positive": "postively", "negative": "negatively"}
QUESTIONS = (
    "What do you think of {}?",
    "How do you feel about {}?",
    "What is your opinion of {}?",
    "Do you like {}?",
)
FORGOTTEN = "Question:{}\nAnswer:"  # the form in which Sanitation asks


def edits(source: str | os.PathLike, split: str | None = None) -> Cases:
    """wiki_recent, wiki_counterfact and ZsRE: one request, and probes of portability and locality.

    A probe's ground truth is a string, a list of aliases, or a list of such lists: the first two
    are one answer, the last is several. ZsRE's own ground truth lists several true objects in 25
    rows; any of them was true before.
    """
    return collect(files.rows(source, split), edit_case)


def edit_case(row: Any, reasons: list[str]) -> EditCase:
    subject, target = text(row, "subject"), text(row, "target_new")
    truth = row.get("ground_truth")
    request = EditRequest.of(
        text(row, "prompt"), subject, target, () if truth is None else names(truth)
    )
    probes = Probes(subject, reasons)
    for field in ("rephrase", "rephrase_prompt"):
        probes.add_field("rephrase", row, field, target)
    published(probes, row)
    info = {"cond": row["cond"]} if row.get("cond") else {}
    return EditCase("", (request,), probes.by_key, info)


def published(probes: Probes, row: Mapping[str, Any]) -> None:
    """The probes under a row's `portability` and `locality`, whose keys come and go."""
    for field in ("portability", "locality"):
        for name, entries in (row.get(field) or {}).items():
            key = PROBES.get((field, name))
            listed = entries if isinstance(entries, list) else [entries]
            for entry in listed if entries else []:
                if key is None:
                    probes.reasons.append(f"{field}/{name}: not a kind of probe that is known")
                elif not isinstance(entry, Mapping) or entry.get("ground_truth") is None:
                    probes.reasons.append(f"{key}: {entry!r:.60} has no prompt or ground_truth")
                else:
                    probes.add(key, entry.get("prompt"), entry["ground_truth"])


def wikibio(source: str | os.PathLike, split: str | None = None) -> Cases:
    """WikiBio: after a passage as long as a page, the true next sentence."""

    def case(row: Any, reasons: list[str]) -> EditCase:
        subject = text(row, "concept")
        request = EditRequest.of(text(row, "text"), subject, text(row, "labels"))
        probes = Probes(subject, reasons)
        published(probes, row)
        return EditCase("", (request,), probes.by_key)

    return collect(files.rows(source, split), case)


@dataclasses.dataclass(frozen=True)
class Topic:
    """A record of ConvSent: what may be said about something, in favour and against."""

    id: str
    name: str
    replies: Mapping[str, tuple[str, ...]]


def convsent(source: str | os.PathLike, split: str | None = None) -> Cases:
    """ConvSent: two cases a topic, one towards each sentiment.

    The request is the published instruction and the first reply of the sentiment. Plain questions
    about the topic are its "rephrase" probes, with the replies of the sentiment as answers; the
    question about the next topic, with any reply, is "locality/unrelated". All replies are in
    `info` under "positive" and "negative", for metrics that compare the two.
    """
    topics = find(files.rows(source, split), topic)
    cases = [
        opinion(t, after, sentiment)
        for t, after in zip(topics, topics.items[1:] + topics.items[:1], strict=True)
        for sentiment in ADVERBS
    ]
    return Cases(tuple(cases), topics.skipped)


def topic(row: Any, reasons: list[str]) -> Topic:
    name = text(row, "ent")
    replies = {"positive": names(row["pos"]), "negative": names(row["neg"])}
    for sentiment, found in replies.items():
        if not found:
            raise ValueError(f"no {sentiment} reply")
    if not all(reply.strip() for field in ("pos", "neg") for reply in row[field]):
        reasons.append("an empty reply")
    return Topic("", name, replies)


def opinion(about: Topic, after: Topic, sentiment: str) -> EditCase:
    wanted = about.replies[sentiment]
    prompt = INSTRUCTION.format(QUESTIONS[0], ADVERBS[sentiment])
    alike = tuple((reply,) for reply in wanted)
    probes = {"rephrase": tuple(Probe(q.format(about.name), alike, about.name) for q in QUESTIONS)}
    if after is not about:
        replies = after.replies["positive"] + after.replies["negative"]
        other = Probe(QUESTIONS[0].format(after.name), tuple((r,) for r in replies), after.name)
        probes["locality/unrelated"] = (other,)
    request = EditRequest(prompt, about.name, wanted[0])
    info = {"sentiment": sentiment, "topic": about.name, **about.replies}
    return EditCase(f"{about.id} {sentiment}", (request,), probes, info)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A record of Sanitation, as the request or the probe that it is for."""

    id: str
    part: str  # the list that it stands in
    answer: str  # in one case: the test file writes FINLAND
    item: EditRequest | Probe


def sanitation(source: str | os.PathLike, split: str | None = None) -> Cases:
    """Sanitation: one case for each answer to be forgotten, with a request for each question.

    Read the folder: requests are in the train file (K_F), and so is what training may retain (K_R,
    "retain"); the test file has other questions with the same answers ("forget") and others that
    should stay ("locality/unrelated"). Requests and probes ask in the published form.
    """
    asked = find(parts(source, split), question)
    requests: dict[str, list[EditRequest]] = {}
    forget: dict[str, list[Probe]] = {}
    kept: dict[str, list[Probe]] = {}
    for record in asked:
        if isinstance(record.item, EditRequest):
            requests.setdefault(record.answer, []).append(record.item)
        elif record.part == "success":
            forget.setdefault(record.answer, []).append(record.item)
        else:
            key = "retain" if record.part == "K_R" else "locality/unrelated"
            kept.setdefault(key, []).append(record.item)
    if not requests:
        raise ValueError(f"{source}: no requests (K_F); give the folder with the train file")
    shared = {key: tuple(probes) for key, probes in kept.items()}  # by all cases, not copied
    cases = []
    for answer, edits in requests.items():
        probes = shared | ({"forget": tuple(forget[answer])} if answer in forget else {})
        cases.append(EditCase(answer, tuple(edits), probes))
    return Cases(tuple(cases), asked.skipped)


def parts(source: str | os.PathLike, split: str | None) -> Iterator[tuple[str, Any]]:
    """The records of the lists in Sanitation's files, each with its list."""
    for name, _, value in files.contents(source, split):
        for part in ("K_F", "K_R", "success", "locality"):
            rows = value.get(part) if isinstance(value, dict) else None
            for label, row in files.named(f"{name}.{part}", rows or []):
                yield label, (part, row)


def question(record: tuple[str, Any], reasons: list[str]) -> Asked:
    part, row = record
    asked, truth = text(row, "question"), names(row["ground_truth"])
    if not truth:
        raise ValueError("empty ground_truth")
    item: EditRequest | Probe = Probe(FORGOTTEN.format(asked), (truth,))
    if part == "K_F":
        subject = text(row, "subject")
        prompt = FORGOTTEN.format(slotted(asked, subject))
        item = EditRequest(prompt, subject, text(row, "target_new"), truth)
    elif part == "success":
        item = Probe(FORGOTTEN.format(asked), ((text(row, "target_new"),),))
    return Asked("", part, truth[0].casefold(), item)
