"""Multiple choice: which of the answers a model finds the most likely.

The prompts are those of lm-evaluation-harness, and so are the names of the measures:

acc        the choice whose tokens together are the most likely
acc_norm   the same by character of the choice, so that long ones are not at a disadvantage
acc_bytes  by byte: another number where a choice is not ASCII

Examples stand before the question, each with its right answer, parted by an empty line.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxedit.data.cases import Skipped
from jaxedit.data.exams import Question
from jaxedit.data.requests import Marked, Row, tokenise
from jaxedit.edit.record import Edit
from jaxedit.evaluate.likelihood import ROWS, Line, likelihoods, readable, shorten
from jaxedit.models.config import Model
from jaxedit.progress import Progress, quiet
from jaxedit.settings import suggest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MEASURES: Mapping[str, Callable[[str], int]] = {  # what a choice's likelihood is divided by
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
CHUNK = 1024  # questions that are tokenised at once


@dataclasses.dataclass(frozen=True)
class Form:
    """How a question is put."""

    before: str = ""  # the question's own words
    after: str = ""  # them and, with letters, the list of choices
    letters: bool = False  # the choices are listed and answered by letter, otherwise in full
    head: str = ""  # before everything else; {} is the place of the subject
    by_subject: bool = False  # examples are of the question's subject

    def prompt(self, question: Question) -> str:
        if len(question.choices) > len(LETTERS) and self.letters:
            raise ValueError(f"{len(question.choices)} choices; there are {len(LETTERS)} letters")
        lines = [f"\n{a}. {choice}" for a, choice in zip(LETTERS, question.choices, strict=False)]
        listed = "".join(lines) if self.letters else ""
        return f"{self.before}{question.question.strip()}{listed}{self.after}"

    def choices(self, question: Question) -> tuple[str, ...]:
        """What may follow the prompt, after a space."""
        return tuple(LETTERS[: len(question.choices)]) if self.letters else question.choices


FORMS: Mapping[str, Form] = {
    "mmlu": Form(
        after="\nAnswer:",
        letters=True,
        head="The following are multiple choice questions (with answers) about {}.\n\n",
        by_subject=True,
    ),
    "mmlu/text": Form(
        before="Question: ",
        after="\nAnswer:",
        head="The following are questions (with answers) about {}.\n\n",
        by_subject=True,
    ),
    "commonsense_qa": Form("Question: ", "\nAnswer:", letters=True),
    "commonsense_qa/text": Form("Question: ", "\nAnswer:"),
    "piqa": Form("Question: ", "\nAnswer:"),
    "plain": Form(),  # the choices go on with the question's own words
}


@dataclasses.dataclass(frozen=True)
class Exam:
    """Questions, and how they are put."""

    questions: Sequence[Question]
    form: str = "plain"  # one of FORMS
    shots: int = 0  # so many examples before each question
    examples: Sequence[Question] = ()  # what they are taken from, the first ones first

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r}: {suggest(self.form, FORMS)}")
        if self.shots < 0 or (self.shots and not self.examples):
            raise ValueError(f"{self.shots} shots of {len(self.examples)} examples: give examples")


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question, and how likely a model finds its choices."""

    question: Question
    logp: tuple[float, ...]  # of each choice as a whole, in nats
    choices: tuple[str, ...]  # as they were put: letters, or in full
    is_cut: bool  # the beginning of its prompt did not fit into the model

    def pick(self, measure: str = "acc") -> int:
        """The number of the choice that is preferred; of equals the first."""
        sizes = [MEASURES[measure](choice) for choice in self.choices]
        return int(np.argmax(np.asarray(self.logp) / np.asarray(sizes)))

    def is_right(self, measure: str = "acc") -> bool:
        return self.pick(measure) == self.question.answer


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A model's answers to an exam."""

    answered: tuple[Answered, ...]  # in the order of the questions
    unknown: int  # questions that were left out, as nobody says what is right
    skipped: tuple[Skipped, ...]  # and those that cannot be put to this model

    @property
    def cut(self) -> int:
        return sum(a.is_cut for a in self.answered)


def choose(
    model: Model,
    exam: Exam,
    edit: Edit | None = None,
    *,
    size: int = ROWS,
    progress: Progress = quiet,
) -> Sheet:
    """The exam as the model takes it, edited where there is an edit.

    A prompt too long for the model loses its beginning, as in lm-evaluation-harness; `cut` counts
    them. A question whose choices alone are too long, or that has too few examples, is skipped.
    size: rows of a batch.
    """
    known = [q for q in exam.questions if q.answer is not None]
    answered: list[Answered] = []
    skipped: list[Skipped] = []
    for at in range(0, len(known), CHUNK):
        some = known[at : at + CHUNK]
        n = len(some)
        share = lambda done, of, at=at, n=n: progress(at + n * done // of, len(known))
        put = list(lines_of(model, exam, some, edit))
        lines = [line for _, _, found in put if not isinstance(found, str) for line in found]
        told = iter(likelihoods(model, lines, edit, size=size, progress=share))
        for question, is_cut, found in put:
            if isinstance(found, str):
                skipped.append(Skipped(question.id, found))
                continue
            logp = tuple(next(told).total for _ in found)
            choices = FORMS[exam.form].choices(question)
            answered.append(Answered(question, logp, choices, is_cut))
    return Sheet(tuple(answered), len(exam.questions) - len(known), tuple(skipped))


def lines_of(
    model: Model, exam: Exam, questions: Sequence[Question], edit: Edit | None
) -> Iterator[tuple[Question, bool, list[Line] | str]]:
    """For each question: was a prompt of it shortened, and a line for each choice, or why not."""
    form = FORMS[exam.form]
    texts: list[tuple[int, Marked]] = []
    prompts = [prompt(exam, question) for question in questions]
    for i, (question, asked) in enumerate(zip(questions, prompts, strict=True)):
        if asked is not None:
            marked = [Marked(f"{asked} {c}", len(asked), (-1, -1)) for c in form.choices(question)]
            texts += [(i, text) for text in marked]
    found: dict[int, list[Row | str]] = {}
    for i, row in tokenise(model.tokenizer, texts):
        found.setdefault(i, []).append(row)
    space = readable(model, edit)
    for i, question in enumerate(questions):
        if i not in found:
            yield question, False, too_few(exam, question)
            continue
        rows = found[i]
        lines = [
            r if isinstance(r, str) else shorten(Line(r.tokens, r.prompt), space) for r in rows
        ]
        bad = [line for line in lines if isinstance(line, str)]
        good = [line for line in lines if isinstance(line, Line)]
        whole = [len(r.tokens) for r in rows if isinstance(r, Row)]
        is_cut = [len(line.tokens) for line in good] != whole
        yield question, is_cut, bad[0] if bad else good


def prompt(exam: Exam, question: Question) -> str | None:
    """All that stands before the answer; None where the examples do not suffice."""
    form = FORMS[exam.form]
    shown = examples(exam, question)
    if len(shown) < exam.shots:
        return None
    subject = question.subject.replace("_", " ")
    head = form.head.replace("{}", subject) if subject else form.head.replace(" about {}", "")
    solved = [f"{form.prompt(q)} {form.choices(q)[q.answer or 0]}\n\n" for q in shown]
    return head + "".join(solved) + form.prompt(question)


def examples(exam: Exam, question: Question) -> list[Question]:
    """The first of the examples that are for this question; never the question itself."""
    out: list[Question] = []
    same = lambda q: (q.question, q.choices) == (question.question, question.choices)
    for q in exam.examples:
        if len(out) == exam.shots:
            break
        fits = q.subject == question.subject or not FORMS[exam.form].by_subject
        if fits and q.answer is not None and not same(q):
            out.append(q)
    return out


def too_few(exam: Exam, question: Question) -> str:
    of = f" of {question.subject!r}" if FORMS[exam.form].by_subject else ""
    return f"{len(examples(exam, question))} examples{of}, {exam.shots} are asked for"
