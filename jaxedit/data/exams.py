"""Questions that say what a model can do at all, and the training examples of transfer papers."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from jaxedit.data import files
from jaxedit.data.cases import Found, find
from jaxedit.data.fields import number, optional, text

ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with choices, of which one is right."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None  # which choice, from 0; None where the file does not tell
    subject: str = ""

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(c.strip() for c in self.choices):
            raise ValueError(f"the choices {self.choices!r:.60} need to be two or more, none empty")
        if self.answer is not None and not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer}, but there are {len(self.choices)} choices")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question whose answer is worked out."""

    id: str
    question: str
    solution: str
    answer: str  # the number at its end, without commas


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A training example: what is said in turn, the last of it by the assistant."""

    id: str
    messages: tuple[tuple[str, str], ...]  # role and content
    dataset: str = ""
    subject: str = ""


def mmlu(source: str | os.PathLike, split: str | None = None) -> Found[Question]:
    def question(row: Any, reasons: list[str]) -> Question:
        asked = text(row, "question")
        choices = tuple(str(choice).strip() for choice in row["choices"])
        return Question("", asked, choices, index(row), optional(row, "subject"))

    return find(files.rows(source, split), question)


def commonsense_qa(source: str | os.PathLike, split: str | None = None) -> Found[Question]:
    """The subject is the concept that a question was made from."""

    def question(row: Any, reasons: list[str]) -> Question:
        asked = text(row, "question")
        choices, labels = row["choices"]["text"], row["choices"]["label"]
        key = optional(row, "answerKey")
        if key and key not in labels:
            raise ValueError(f"answerKey {key!r}: one of {', '.join(labels)}")
        answer = labels.index(key) if key else None
        concept = optional(row, "question_concept")
        return Question(number(row, "id"), asked, tuple(choices), answer, concept)

    return find(files.rows(source, split), question)


def piqa(source: str | os.PathLike, split: str | None = None) -> Found[Question]:
    """The labels are a file of their own, valid-labels.lst beside valid.jsonl; without it, or the
    hub's `label`, questions have no answer.
    """

    def question(pair: tuple[Any, str], reasons: list[str]) -> Question:
        row, label = pair
        choices = (text(row, "sol1"), text(row, "sol2"))
        answer = int(label) if label else index(row, "label")
        return Question("", text(row, "goal"), choices, answer)

    return find(labelled(source, split), question)


def labelled(source: str | os.PathLike, split: str | None) -> Iterator[tuple[str, Any]]:
    for name, path, value in files.contents(source, split):
        labels = [""] * len(value)
        beside = path.with_name(f"{name}-labels.lst") if path else None
        if beside and beside.exists():
            labels = beside.read_text().split()
            if len(labels) != len(value):
                raise ValueError(f"{beside}: {len(labels)} labels for {len(value)} questions")
        for (row_name, row), label in zip(files.named(name, value), labels, strict=True):
            yield row_name, (row, label)


def gsm8k(source: str | os.PathLike, split: str | None = None) -> Found[Problem]:
    def problem(row: Any, reasons: list[str]) -> Problem:
        solution, mark, answer = text(row, "answer").rpartition("####")
        answer = answer.strip().replace(",", "")
        if not mark or not answer:
            raise ValueError("the answer does not end in #### and a number")
        return Problem("", text(row, "question"), solution.strip(), answer)

    return find(files.rows(source, split), problem)


def transfer(source: str | os.PathLike, split: str | None = None) -> Found[Dialogue]:
    """GSM and MMLU as messages, the form in which ParaKnowTransfer publishes its examples."""

    def dialogue(row: Any, reasons: list[str]) -> Dialogue:
        messages = tuple((text(m, "role"), text(m, "content")) for m in row["messages"])
        for role, _ in messages:
            if role not in ROLES:
                raise ValueError(f"role {role!r}: one of {', '.join(ROLES)}")
        if not messages or messages[-1][0] != "assistant":
            raise ValueError("the last message is not the assistant's")
        name, dataset = number(row, "id"), optional(row, "dataset")
        return Dialogue(name, messages, dataset, optional(row, "category"))

    return find(files.rows(source, split), dialogue)


def index(row: Any, field: str = "answer") -> int | None:
    """The number of the right choice; the hub marks unknown ones with -1."""
    value = row.get(field)
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field} is {value!r:.60}, not the number of a choice")
    return value
