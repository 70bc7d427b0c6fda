"""An edit request, the probes that say what it should and should not change, facts, and rows that
could not be read.

All of it is text on the host. `data.requests` turns it into arrays.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

SLOT = "{}"
# What a probe asks about. Each dataset's reader says in its docstring which of them it fills.
KEYS = (
    "rephrase",  # the request in other words
    "portability/subject_aliasing",  # the request with another name of its subject
    "portability/reasoning",  # facts that follow from the new one by one or more hops
    "portability/logical_generalization",  # the inverse relation and its like
    "locality/relation_specificity",  # other facts of the same subject
    "locality/forgetfulness",  # the other answers of a relation with many
    "locality/neighborhood",  # other subjects that share the old answer
    "locality/distracting",  # the same, after a sentence that states the edit
    "locality/unrelated",  # anything else
    "attribute",  # CounterFact: other subjects that truly have the new answer
    "generation",  # beginnings to be continued freely; no answers
    "forget",  # Sanitation: other questions whose answer is to be refused as well
    "retain",  # Sanitation: questions that training may use to keep the rest as it is
    "single_hop",  # MQuAKE: the facts of a chain, one by one
    "multi_hop",  # MQuAKE: the whole chain
    "ripple/logical_generalization",
    "ripple/compositionality_1",
    "ripple/compositionality_2",
    "ripple/subject_aliasing",
    "ripple/preservation",
    "ripple/relation_specificity",
)


def slotted(text: str, subject: str) -> str:
    """A prompt with a slot at the last place that names its subject; one with a slot stays."""
    if SLOT in text:
        return text
    if not subject.strip():
        raise ValueError("empty subject")
    at = text.rfind(subject)
    if at < 0:
        raise ValueError(f"subject {subject!r} does not occur in the prompt {text!r}")
    return text[:at] + SLOT + text[at + len(subject) :]


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """After `prompt` with the subject in its slot, the model should say `target`."""

    prompt: str  # "The capital of {} is": exactly one slot
    subject: str
    target: str  # without a leading space; how it is joined is the tokenizer's affair
    ground_truth: tuple[str, ...] = ()  # what was true before, every alias; () where unknown

    def __post_init__(self) -> None:
        if self.prompt.count(SLOT) != 1:
            raise ValueError(f"prompt {self.prompt!r} needs exactly one {SLOT} for the subject")
        for name in ("subject", "target"):
            if not getattr(self, name).strip():
                raise ValueError(f"empty {name}")

    @classmethod
    def of(cls, text: str, subject: str, target: str, ground_truth: Iterable[str] = ()) -> Self:
        """From a prompt that names its subject: the slot goes to the last place that does."""
        return cls(slotted(text, subject), subject, target, tuple(ground_truth))

    @property
    def text(self) -> str:
        return self.prompt.replace(SLOT, self.subject)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A prompt and what counts as right after it.

    answers: each thing that may be said, as all its names, the usual one first; several where a
    relation has several objects. () where only agreement with the unedited model can be asked for.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...] = ()
    subject: str = ""  # as it stands in the prompt, where that is known
    # Probes of a case that share a key and a group are one test, passed if any or all of them are.
    group: str = ""
    rule: Literal["any", "all"] = "all"
    conditions: tuple["Probe", ...] = ()  # the test counts only if the unedited model knows these

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("a probe with an empty prompt")
        for names in self.answers:
            if not names or not all(name.strip() for name in names):
                raise ValueError(f"the probe {self.prompt!r} has an empty answer")

    @property
    def names(self) -> tuple[str, ...]:
        """Every string that is a right answer."""
        return tuple(name for names in self.answers for name in names)


@dataclasses.dataclass(frozen=True)
class EditCase:
    """A request (several where one case needs several, as in MQuAKE) and its probes by key."""

    id: str
    requests: tuple[EditRequest, ...]
    probes: Mapping[str, tuple[Probe, ...]] = dataclasses.field(default_factory=dict)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what else the row says

    def __post_init__(self) -> None:
        unknown = [key for key in self.probes if key not in KEYS]
        if unknown:
            raise ValueError(f"probe key {unknown[0]!r}: one of {', '.join(KEYS)}")

    @property
    def request(self) -> EditRequest:
        """The one request of a case that has one."""
        (request,) = self.requests
        return request


@dataclasses.dataclass(frozen=True)
class Fact:
    """Something that is true: after `prompt` with the subject in its slot comes an answer."""

    id: str
    prompt: str  # exactly one slot
    subject: str
    answers: tuple[str, ...]  # every name of the one answer, the usual one first
    relation: str = ""
    paraphrases: tuple[str, ...] = ()  # the prompt in other words, each with one slot
    patterns: tuple[str, ...] = ()  # ParaRel's sentences, [X] for the subject, [Y] for the answer

    def __post_init__(self) -> None:
        for prompt in (self.prompt, *self.paraphrases):
            if prompt.count(SLOT) != 1:
                raise ValueError(f"prompt {prompt!r} needs exactly one {SLOT} for the subject")
        if not self.subject.strip():
            raise ValueError("empty subject")
        if not self.answers or not all(name.strip() for name in self.answers):
            raise ValueError(f"the fact {self.text!r} has an empty answer")

    @property
    def text(self) -> str:
        return self.prompt.replace(SLOT, self.subject)


@dataclasses.dataclass(frozen=True)
class Skipped:
    row: str  # which, as the file counts or names it
    reason: str
    whole: bool = True  # False: only a part of the row, such as a probe, was left out


class Named(Protocol):
    """A frozen dataclass with an id."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Named)


@dataclasses.dataclass(frozen=True)
class Found(Generic[T]):
    """What a reader found: the items, and the rows or parts that it left out, with the reason."""

    items: tuple[T, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __getitem__(self, i: int) -> T:
        return self.items[i]

    @property
    def rows_skipped(self) -> int:
        return sum(skip.whole for skip in self.skipped)

    def report(self, shown: int = 5) -> str:
        """One line, or a few: how much was read, what was not."""
        rows = self.rows_skipped
        parts = len(self.skipped) - rows
        lines = [f"{len(self.items):,} read; left out: {rows:,} rows, {parts:,} parts of rows"]
        lines += [f"  {skip.row}: {skip.reason}" for skip in self.skipped[:shown]]
        if len(self.skipped) > shown:
            lines.append(f"  and {len(self.skipped) - shown:,} more")
        return "\n".join(lines)


class Cases(Found[EditCase]):
    """What a reader of edit requests found."""

    @property
    def cases(self) -> tuple[EditCase, ...]:
        return self.items


def find(rows: Iterable[tuple[str, Any]], read: Callable[[Any, list[str]], T]) -> Found[T]:
    """Reads (name, row) pairs; `read` may append reasons why it left out a part of a row.

    A row that breaks the contract of its dataset (ValueError, KeyError, TypeError, AttributeError)
    is listed with the reason, and the rest is read. What has no id of its own, or one that was
    there before, gets the name of its row.
    """
    items: list[T] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for name, row in rows:
        reasons: list[str] = []
        try:
            item = read(row, reasons)
        except KeyError as error:
            skipped.append(Skipped(name, f"no field {error}"))
            continue
        except (ValueError, TypeError, AttributeError) as error:
            skipped.append(Skipped(name, str(error)))
            continue
        if not item.id or item.id in seen:
            item = dataclasses.replace(item, id=name)
        seen.add(item.id)
        items.append(item)
        skipped += [Skipped(name, reason, whole=False) for reason in reasons]
    return Found(tuple(items), tuple(skipped))


def collect(rows: Iterable[tuple[str, Any]], read: Callable[[Any, list[str]], EditCase]) -> Cases:
    """`find` for cases."""
    found = find(rows, read)
    return Cases(found.items, found.skipped)
