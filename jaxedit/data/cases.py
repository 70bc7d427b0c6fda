"""An edit request, the probes that say what it should and should not change, and rows that could
not be read.

All of it is text on the host. `data.requests` turns it into arrays.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Self

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
    "single_hop",  # MQuAKE: the facts of a chain, one by one
    "multi_hop",  # MQuAKE: the whole chain
    "ripple/logical_generalization",
    "ripple/compositionality_1",
    "ripple/compositionality_2",
    "ripple/subject_aliasing",
    "ripple/preservation",
    "ripple/relation_specificity",
)


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
        if not subject.strip():
            raise ValueError("empty subject")
        at = text.rfind(subject)
        if at < 0:
            raise ValueError(f"subject {subject!r} does not occur in the prompt {text!r}")
        prompt = text[:at] + SLOT + text[at + len(subject) :]
        return cls(prompt, subject, target, tuple(ground_truth))

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
class Skipped:
    row: str  # which, as the file counts or names it
    reason: str


@dataclasses.dataclass(frozen=True)
class Cases:
    """What a reader found: the cases, and the rows or probes that it left out, with the reason."""

    cases: tuple[EditCase, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[EditCase]:
        return iter(self.cases)

    def __getitem__(self, i: int) -> EditCase:
        return self.cases[i]

    def report(self, shown: int = 5) -> str:
        """One line, or a few: how much was read, what was not."""
        lines = [f"{len(self.cases):,} cases, {len(self.skipped):,} rows or probes skipped"]
        lines += [f"  {skip.row}: {skip.reason}" for skip in self.skipped[:shown]]
        if len(self.skipped) > shown:
            lines.append(f"  and {len(self.skipped) - shown} more")
        return "\n".join(lines)


def collect(rows: Iterable[tuple[str, Any]], read: Callable[[Any, list[str]], EditCase]) -> Cases:
    """Reads (name, row) pairs; `read` may append reasons why it left out a part of a row.

    A row that raises ValueError, KeyError or TypeError breaks the contract of its dataset: it is
    listed with the reason, and the rest is read.
    """
    cases, skipped = [], []
    for name, row in rows:
        reasons: list[str] = []
        try:
            cases.append(read(row, reasons))
        except KeyError as error:
            reasons = [f"no field {error}"]
        except (ValueError, TypeError, AttributeError) as error:
            reasons = [str(error)]
        skipped += [Skipped(name, reason) for reason in reasons]
    return Cases(tuple(cases), tuple(skipped))
