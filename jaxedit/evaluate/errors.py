"""What is wrong with an answer after an edit: the four types of "A Comprehensive Study of Knowledge
Editing" (section 4.5), and an answer that did not change, told apart by rules about words.

An answer is what the model says up to the end of a sentence; it need not stop there. The first rule
that holds names it:

right        the target stands at its beginning, or further on with no former answer before it. What
             follows does not matter: that is fluency's affair.
meaningless  no words at all; or one to four words, or letters of a word, repeated over and over.
unchanged    a former answer, and nothing of the target; or what was said before the edit.
missing      a part of the target and no more: its beginning or end, which may be within a word (a
             token of several), or some of its words.
partial      some words of the target among others; or part of a former answer. Words that target
             and former answer share, and "of", "the" and their like, count for neither.
irrelevant   anything else.

Case, punctuation and leading articles do not matter. Where no former answer is known, what was said
before the edit up to the first comma stands in for one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from jaxedit.data.cases import SLOT
from jaxedit.evaluate.seen import EDIT
from jaxedit.evaluate.texts import UNSPACED, normalise

ErrorType = Literal["right", "meaningless", "unchanged", "missing", "partial", "irrelevant"]
TYPES: tuple[ErrorType, ...] = get_args(ErrorType)

Words = list[str]
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")  # one letter of scripts without spaces
# not the period of "St." or of an initial: the word before it has three letters or more
SENTENCE = re.compile(r"(?<=\w\w\w)[.!?](?=\s|\Z)|[\n\u3002\uff01\uff1f]")
CLAUSE = re.compile(r"[,;:](?=\s|\Z)|\s[-\u2013\u2014(]|[\uff0c\uff1b\uff1a\u3001]")
LOOP = re.compile(r"([^\W\d_]{1,3}?)\1{3,}")  # "hahahaha"
CYCLE, TIMES = 4, 3  # words of a repeated piece, and how often it has to come
ARTICLES = frozenset({"a", "an", "the"})
EMPTY = ARTICLES | {"and", "as", "at", "by", "de", "for", "from", "in", "into", "is", "it", "its"}
EMPTY |= {"of", "on", "or", "s", "that", "this", "to", "was", "were", "with"}
# Where an answer is to be another after the edit; of the first three the former one is known.
SAME = (EDIT, "rephrase", "portability/subject_aliasing")
CHANGED = {*SAME, "portability/reasoning", "portability/logical_generalization"}
CHANGED |= {"forget", "multi_hop"}


class Judged(NamedTuple):
    """One probe of a run."""

    place: int  # of its case
    key: str
    error: ErrorType
    prompt: str
    target: str
    before: str
    after: str


def error_type(
    after: str, *, target: str | Sequence[str], before: str = "", true: str | Sequence[str] = ()
) -> ErrorType:
    """What is wrong with what is said after an edit; see above.

    target, true: the new and the former answer, each by all its names. before: what the unedited
    model says.
    """
    new = names(target)
    old = [name for name in names(true) if name not in new]
    whole, first, clause = words(after), words(sentence(after)), words(leading(after))
    if any(begins(whole, name) for name in new):
        return "right"
    if earliest(first, new) < earliest(first, old):
        return "right"
    if repeats(whole):
        return "meaningless"
    if not old:
        old = [name for name in [words(leading(before))] if name and name not in new]
    own, theirs = content(new) - content(old), content(old) - content(new)
    said = set(first)
    if not said & (own or content(new)) and any(find(first, name) >= 0 for name in old):
        return "unchanged"
    if clause == words(leading(before)):
        return "unchanged"
    if any(falls_short(clause, name) for name in new):
        return "missing"
    return "partial" if said & ((own or content(new)) | theirs) else "irrelevant"


def names(given: str | Sequence[str]) -> list[Words]:
    """An answer's names as words; those that have none cannot be found."""
    found = [words(name) for name in ([given] if isinstance(given, str) else given)]
    return [name for name in found if name]


def words(text: str) -> Words:
    """In lower case and without leading articles, unless there is nothing else."""
    found: Words = WORD.findall(normalise(text))
    start = next((i for i, word in enumerate(found) if word not in ARTICLES), 0)
    return found[start:]


def sentence(text: str) -> str:
    """The first, from its first word on."""
    return SENTENCE.split(re.sub(r"\A\W+", "", text), maxsplit=1)[0]


def leading(text: str) -> str:
    """The first sentence up to its first comma."""
    return CLAUSE.split(sentence(text), maxsplit=1)[0]


def begins(said: Words, name: Words) -> bool:
    return said[: len(name)] == name


def find(said: Words, name: Words) -> int:
    """Where the name stands, -1 if nowhere."""
    places = range(len(said) - len(name) + 1)
    return next((i for i in places if said[i : i + len(name)] == name), -1)


def earliest(said: Words, some: Iterable[Words]) -> int:
    """Where the first of some names stands; the end if none does."""
    return min((at for name in some if (at := find(said, name)) >= 0), default=len(said))


def content(some: Iterable[Words]) -> set[str]:
    return {word for name in some for word in name} - EMPTY


def repeats(said: Words) -> bool:
    """No words, letters in a loop, or half of the words or more in one."""
    if not said or any(LOOP.search(word) for word in said):
        return True
    for size in range(1, CYCLE + 1):
        run = 0  # words in a row that equal the one `size` before
        for i in range(size, len(said)):
            run = run + 1 if said[i] == said[i - size] else 0
            if run + size >= max(size * TIMES, len(said) / 2):
                return True
    return False


def falls_short(said: Words, name: Words) -> bool:
    """The name's beginning or end, even within a word, or some of its words and no others."""
    part, whole, some = "".join(said), "".join(name), content([said])
    if not some or part == whole:
        return bool(part) and part != whole and whole.startswith(part)
    return whole.startswith(part) or whole.endswith(part) or some < content([name])


def judge(records: Iterable[Mapping[str, Any]]) -> Iterator[Judged]:
    """Every answer that an edit should have changed, from the records of a run (cases.jsonl): the
    greedy continuation, or where there is none the first choices under the answer's tokens.

    Of several answers, each with its names, any counts.
    """
    for record in records:
        for probe in record.get("probes", ()):
            new = [name for some in probe.get("answers", ()) for name in some]
            if probe["key"] not in CHANGED or not new:
                continue
            before, after = probe.get("before") or {}, probe.get("after") or {}
            field = "text" if after.get("text") is not None else "said"
            if (text := after.get(field)) is None:
                continue
            was = before.get(field) or ""
            error = error_type(text, target=new, before=was, true=former(record, probe))
            yield Judged(
                record.get("place", -1), probe["key"], error, probe["prompt"], new[0], was, text
            )


def former(record: Mapping[str, Any], probe: Mapping[str, Any]) -> list[str]:
    """What a probe's answer was before the edit, where the request says it."""
    if probe["key"] not in SAME:
        return []
    requests = record.get("requests", ())
    asked = lambda r: r["prompt"].replace(SLOT, r["subject"]) == probe["prompt"]
    mine = [r for r in requests if asked(r)] or requests
    return [name for r in mine for name in r.get("ground_truth") or ()]


def count(judged: Iterable[Judged]) -> dict[str, dict[str, int]]:
    """How many answers of each kind of probe are of each type: {"edit": {"right": 7, …}, …}."""
    found: dict[str, Counter[str]] = {}
    for one in judged:
        found.setdefault(one.key, Counter())[one.error] += 1
    return {key: {kind: some[kind] for kind in TYPES} for key, some in found.items()}
