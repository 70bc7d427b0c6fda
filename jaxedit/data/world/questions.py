"""Everything that can be asked about a world, in groups, each question with its right answers.

A share of what could be said about aliases, inverses and chains is never said in training (the
facts themselves all are), so that "…_new" measures what the model worked out.
"""

import zlib
from collections.abc import Callable, Iterator

from jaxedit.data.cases import Probe
from jaxedit.data.world.facts import World
from jaxedit.data.world.relations import (
    FACTUAL,
    INVERSE,
    RELATIONS,
    Relation,
    chain,
    held_out,
    phrases,
)

UNSAID = 0.3  # the share that training never says
UNKNOWN = "I don't know"


def is_said(world: World, *what: str) -> bool:
    """Does training say this: a fixed pseudo-random choice."""
    hashed = zlib.crc32("|".join((str(world.seed), *what)).encode())
    return hashed / 2**32 >= UNSAID


def hops(first: Relation) -> list[Relation]:
    """The relations that can follow one, to a single answer."""
    return [
        r
        for r in FACTUAL
        if r.subject == first.object and not r.many and not (r.name == first.name == "spouse")
    ]


PATHS: tuple[tuple[str, str], ...] = tuple(
    (first.name, second.name) for first in FACTUAL if not first.many for second in hops(first)
)


def chains(world: World) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every (subject, path) of two hops that leads somewhere."""
    for path in PATHS:
        for subject in world.kinds[RELATIONS[path[0]].subject]:
            if world.ask(subject, path):
                yield subject, path


def inverses(world: World) -> Iterator[tuple[str, Relation]]:
    """Every (subject, inverse relation) that follows from the facts."""
    for subject, name in world.all_facts:
        if RELATIONS[name] in INVERSE:
            yield subject, RELATIONS[name]


def ask(world: World, subject: str, relation: str | tuple[str, ...], phrase: str,
        called: str = "") -> Probe:  # fmt: skip
    """A probe: the phrase about the subject, by its usual or another name."""
    called = called or subject
    return Probe(phrase.replace("{}", called), world.answers(subject, relation), called)


def facts(world: World, phrasings: Callable[[Relation], tuple[str, ...]]) -> Iterator[Probe]:
    for subject, name in world.facts:
        for phrase in phrasings(RELATIONS[name]):
            yield ask(world, subject, name, phrase)


def aliases(world: World, said: bool) -> Iterator[Probe]:
    for subject, name in world.facts:
        for alias in world.aliases.get(subject, ()):
            if is_said(world, alias, name) == said:
                yield ask(world, subject, name, phrases(RELATIONS[name])[0], alias)


def backwards(world: World, said: bool) -> Iterator[Probe]:
    for subject, relation in inverses(world):
        if is_said(world, subject, relation.name) == said:
            yield ask(world, subject, relation.name, relation.verbs[0])


def compositions(world: World, said: bool) -> Iterator[Probe]:
    for subject, path in chains(world):
        if is_said(world, subject, *path) == said:
            yield ask(world, subject, path, chain(path))


GROUPS: dict[str, Callable[[World], Iterator[Probe]]] = {
    "facts": lambda world: facts(world, phrases),
    "paraphrases_new": lambda world: facts(world, held_out),
    "aliases_said": lambda world: aliases(world, True),
    "aliases_new": lambda world: aliases(world, False),
    "inverses_said": lambda world: backwards(world, True),
    "inverses_new": lambda world: backwards(world, False),
    "two_hops_said": lambda world: compositions(world, True),
    "two_hops_new": lambda world: compositions(world, False),
}


def questions(world: World, group: str) -> list[Probe]:
    """The questions of a group of GROUPS."""
    if group not in GROUPS:
        raise ValueError(f"a group of questions {group!r}: one of {', '.join(GROUPS)}")
    return list(GROUPS[group](world))
