"""What is asked about cases, and what the unedited and the edited model do with it."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np

from jaxedit.data.cases import EditCase, EditRequest, Probe
from jaxedit.data.requests import Marked, mark
from jaxedit.edit.record import Edit
from jaxedit.evaluate.ask import Asker, Pair
from jaxedit.evaluate.scores import Protocol
from jaxedit.evaluate.seen import EDIT, Asked, Forced, Observed, Seen
from jaxedit.evaluate.texts import generation_match
from jaxedit.models.generate import Sampling

NOWHERE = (-1, -1)
WORD = re.compile(r"(?<!\w)\S")  # where a word or a mark begins
# Beside the requests, where the new and the former answer are compared.
CHANGED = ("rephrase", "attribute")  # the new one is right
NEIGHBORS = ("locality/neighborhood", "locality/distracting")  # the former one is
CONTINUED = Sampling(top_k=5)  # how fluency is sampled in ROME, MEMIT and EasyEdit


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """How probes are asked."""

    # paper: as each dataset's authors ask; easyedit: as zjunlp/EasyEdit does: one space before
    # every answer, the first name of the first answer alone, fluency after the request's prompt
    protocol: Protocol = "paper"
    say: int = 20  # tokens of a free answer; 0: none is asked for
    continued: int = 100  # tokens of a text whose fluency is measured, its beginning included; or 0
    beginnings: int = 10  # of the "generation" probes of a case, the first so many
    seed: int = 0  # of these texts

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise ValueError(f"protocol {self.protocol!r}: {' or '.join(get_args(Protocol))}")
        if min(self.say, self.continued, self.beginnings) < 0:
            raise ValueError(
                f"say={self.say} continued={self.continued} beginnings={self.beginnings}: numbers "
                "from 0 on"
            )


class Item(NamedTuple):
    """A probe of a case, and the rows that its answers are."""

    case: int
    key: str
    probe: Probe
    answers: tuple[tuple[int, ...], ...]
    new: int | None
    true: int | None
    against: tuple[int, ...]
    replies: bool = False  # ConvSent: the divergence is over every answer, not the first alone


@dataclasses.dataclass
class Rows:
    """Texts with their edits, each once."""

    protocol: Protocol
    number: dict[tuple[int, str, str], int] = dataclasses.field(default_factory=dict)

    def add(self, edit: int, prompt: str, answer: str) -> int:
        return self.number.setdefault((edit, prompt, answer), len(self.number))

    @property
    def texts(self) -> list[Marked]:
        return [self.text(prompt, answer) for _, prompt, answer in self.number]

    def text(self, prompt: str, answer: str) -> Marked:
        if self.protocol == "easyedit":
            return Marked(f"{prompt} {answer}", len(prompt), NOWHERE)
        return mark(prompt, answer, NOWHERE)


def observe(
    asker: Asker,
    cases: Sequence[EditCase],
    edits: Sequence[Edit],
    edit_of: Sequence[int] | None = None,
    cfg: AskConfig = AskConfig(),
    made: Sequence[EditRequest] = (),
) -> list[Observed]:
    """Every case asked of the unedited model and of its edit: edits[edit_of[i]], or edits[i].

    made: the requests of an edit that cases share; what it says elsewhere is no case's locality.
    """
    edit_of = list(range(len(cases))) if edit_of is None else list(edit_of)
    texts = {request.text for request in made}
    asked_of = [apart(case, texts) for case in cases]
    rows = Rows(cfg.protocol)
    items = [
        item(rows, i, edit_of[i], case, key, probe)
        for i, case in enumerate(cases)
        for key, probe in asked_of[i]
    ]
    pairs = asker.forced(rows.texts, [edit for edit, _, _ in rows.number], edits)
    before, after, known = spoken(asker, items, edits, edit_of, cfg)
    continued = continuations(asker, cases, edits, edit_of, cfg)
    asked: dict[int, list[Asked]] = {i: [] for i in range(len(cases))}
    skipped: dict[int, list[str]] = {i: [] for i in range(len(cases))}
    for n, it in enumerate(items):
        found = assemble(it, pairs, before.get(n), after.get(n), known.get(n, ()))
        if isinstance(found, Asked):
            asked[it.case].append(found)
        else:
            skipped[it.case].append(f"{it.key}: {it.probe.prompt!r:.60}: {found}")
    return [
        Observed(
            case,
            tuple(asked[i]),
            tuple(continued[i]),
            tuple(continued[i].values()),
            own_failures(edits[edit_of[i]], case),
            tuple(skipped[i]),
            sum(1 for _ in questions(case)) - len(asked_of[i]),
        )
        for i, case in enumerate(cases)
    ]


def own_failures(edit: Edit, case: EditCase) -> tuple[str, ...]:
    """Of what an edit says has failed, what is about this case."""
    starts = tuple(f"{request.text!r}: " for request in case.requests)
    return tuple(why for why in edit.provenance.get("failed") or () if why.startswith(starts))


def questions(case: EditCase) -> Iterator[tuple[str, Probe]]:
    """All that is asked about a case: its requests, then its probes."""
    for request in case.requests:
        yield EDIT, Probe(request.text, ((request.target,),), request.subject)
    for key, probes in case.probes.items():
        if key != "generation":
            yield from ((key, probe) for probe in probes)


def apart(case: EditCase, texts: Set[str]) -> list[tuple[str, Probe]]:
    """All of it without the locality probes that ask what the request of another case changes.

    A prompt may begin with another sentence ("distracting"), so its end says what it asks.
    """
    others = lambda prompt: (
        {end for begin in WORD.finditer(prompt) if (end := prompt[begin.start() :]) in texts}
        - {request.text for request in case.requests}
    )
    return [
        (key, probe) for key, probe in questions(case)
        if not (texts and key.startswith("locality/") and others(probe.prompt))
    ]  # fmt: skip


def item(rows: Rows, i: int, edit: int, case: EditCase, key: str, probe: Probe) -> Item:
    answers = probe.answers
    if rows.protocol == "easyedit" and "sentiment" not in case.info:
        answers = tuple(names[:1] for names in answers[:1])
    add = lambda name: rows.add(edit, probe.prompt, name)
    new = true = None
    if found := rivals(case, key, probe):
        new, true = map(add, found)
    against: tuple[int, ...] = ()
    replies = "sentiment" in case.info
    if replies and key == "rephrase":
        other = "negative" if case.info["sentiment"] == "positive" else "positive"
        against = tuple(add(reply) for reply in case.info[other])
    return Item(i, key, probe, tuple(tuple(map(add, names)) for names in answers),
                new, true, against, replies)  # fmt: skip


def rivals(case: EditCase, key: str, probe: Probe) -> tuple[str, str] | None:
    """The new and the former answer, where they are to be compared after this prompt.

    A neighbour's own answer is the former one; where it has the new one, there is no comparison,
    nor where the former answer stays right beside the new one, as that of a relation with many.
    """
    stays = {n for probe in case.probes.get("locality/forgetfulness", ()) for n in probe.names}
    for request in case.requests:
        if key not in NEIGHBORS and stays & set(request.ground_truth):
            continue
        if key == EDIT and request.text == probe.prompt and request.ground_truth:
            return request.target, request.ground_truth[0]
        if len(case.requests) > 1:
            continue
        if key in NEIGHBORS and probe.names and request.target not in probe.names:
            return request.target, probe.names[0]
        if key in CHANGED and request.ground_truth:
            return request.target, request.ground_truth[0]
    return None


def spoken(
    asker: Asker,
    items: Sequence[Item],
    edits: Sequence[Edit],
    edit_of: Sequence[int],
    cfg: AskConfig,
) -> tuple[dict[int, str | None], dict[int, str | None], dict[int, tuple[bool, ...]]]:
    """The free answers of both models by item, and which conditions the unedited one knows."""
    if not cfg.say:
        return {}, {}, {}
    prompts = dict.fromkeys(it.probe.prompt for it in items)
    prompts |= dict.fromkeys(c.prompt for it in items for c in it.probe.conditions)
    unedited = asker.continued(list(prompts), [0] * len(prompts), [Edit()], cfg.say)
    plain = dict(zip(prompts, unedited, strict=True))
    wanted = dict.fromkeys((edit_of[it.case], it.probe.prompt) for it in items)
    edited = asker.continued([p for _, p in wanted], [e for e, _ in wanted], edits, cfg.say)
    now = dict(zip(wanted, edited, strict=True))
    before = {n: plain[it.probe.prompt] for n, it in enumerate(items)}
    after = {n: now[edit_of[it.case], it.probe.prompt] for n, it in enumerate(items)}
    known = {
        n: tuple(
            generation_match(plain[c.prompt] or "", c.answers, every=True)
            for c in it.probe.conditions
        )
        for n, it in enumerate(items)
        if it.probe.conditions
    }
    return before, after, known


def continuations(
    asker: Asker,
    cases: Sequence[EditCase],
    edits: Sequence[Edit],
    edit_of: Sequence[int],
    cfg: AskConfig,
) -> list[Mapping[str, tuple[str, str]]]:
    """For every case, its beginnings and what both models write after them."""
    if not cfg.continued:
        return [{} for _ in cases]
    begun = [beginnings(case, cfg) for case in cases]
    prompts = dict.fromkeys(text for some in begun for text in some)
    write = partial(
        asker.continued, steps=cfg.continued, total=True, sampling=CONTINUED, seed=cfg.seed
    )
    unedited = write(list(prompts), [0] * len(prompts), [Edit()])
    plain = dict(zip(prompts, unedited, strict=True))
    wanted = dict.fromkeys((edit_of[i], text) for i, some in enumerate(begun) for text in some)
    edited = write([p for _, p in wanted], [e for e, _ in wanted], edits)
    now = dict(zip(wanted, edited, strict=True))
    out: list[Mapping[str, tuple[str, str]]] = []
    for i, some in enumerate(begun):
        found = {}
        for text in some:
            old, new = plain[text], now[edit_of[i], text]
            if old is not None and new is not None:
                found[text] = (old, new)
        out.append(found)
    return out


def beginnings(case: EditCase, cfg: AskConfig) -> list[str]:
    probes = case.probes.get("generation", ())
    if probes and cfg.protocol == "paper":
        return [probe.prompt for probe in probes[: cfg.beginnings]]
    return [case.requests[0].text]


def assemble(
    it: Item,
    pairs: Sequence[Pair | str],
    before: str | None,
    after: str | None,
    known: tuple[bool, ...],
) -> Asked | str:
    """A probe as it was seen; or why it could not be asked."""
    good = lambda i: isinstance(pairs[i], Pair)
    answers = [[i for i in names if good(i)] for names in it.answers]
    answers = [names for names in answers if names]
    if it.answers and not answers:
        return str(pairs[it.answers[0][0]])
    one = lambda i: pairs[i] if i is not None and good(i) else None
    new, true = one(it.new), one(it.true)
    against = [p for i in it.against if (p := one(i))]

    def seen(side: str, text: str | None) -> Seen:
        take: Callable[[Any], Any] = lambda pair: getattr(pair, side) if pair else None
        forced: tuple[tuple[Forced, ...], ...] = tuple(
            tuple(take(pairs[i]) for i in names) for names in answers
        )
        both = new and true
        return Seen(forced, take(both and new), take(both and true),
                    tuple(map(take, against)), text)  # fmt: skip

    first = [pairs[names[0]] for names in (answers if it.replies else answers[:1])]
    kls = [pair.kl for pair in first if isinstance(pair, Pair)]
    kl = float(np.mean(kls)) if kls else None
    return Asked(it.key, it.probe, seen("before", before), seen("after", after), kl, known)
