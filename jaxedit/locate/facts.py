"""Facts in several wordings: in some their neurons are looked for, in others they are asked."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxedit.data.asked import WORLD
from jaxedit.data.cases import SLOT, Fact, Skipped
from jaxedit.data.read import READERS, read
from jaxedit.data.world import relations
from jaxedit.data.world.facts import World, make
from jaxedit.locate.questions import Question


@dataclasses.dataclass(frozen=True)
class Asked:
    """A fact: how it is looked for, and how related ones are asked."""

    relation: str
    answer: str
    found_in: tuple[Question, ...]
    others: tuple[Question, ...]  # other wordings
    inverse: tuple[Question, ...]


def of_world(world: World, count: int, seed: int, wordings: int) -> list[Asked]:
    """Facts with one answer, all relations alike; other wordings include such as training never
    used.
    """
    random = np.random.RandomState(seed)
    keys = [k for k, objects in world.facts.items() if len(objects) == 1]
    made = []
    for i in random.permutation(len(keys))[:count]:
        subject, name = keys[i]
        relation, (answer,) = relations.RELATIONS[name], world.facts[keys[i]]
        seen, unseen = relations.phrases(relation), relations.held_out(relation)
        ask = lambda phrase, subject=subject, answer=answer: (phrase.replace(SLOT, subject), answer)
        back = relations.RELATIONS.get(relation.inverse)
        inverse: tuple[Question, ...] = ()
        if back is not None and world.ask(answer, back.name) == (subject,):
            inverse = ((back.verbs[0].replace(SLOT, answer), subject),)
        others = (*unseen, *seen[wordings:])[:wordings]
        found_in = tuple(map(ask, seen[:wordings]))
        made.append(Asked(name, answer, found_in, tuple(map(ask, others)), inverse))
    return made


def of_facts(some: Sequence[Fact], wordings: int) -> tuple[list[Asked], list[Skipped]]:
    made, skipped = [], []
    for fact in some:
        phrases = [fact.prompt, *fact.paraphrases]
        asked = tuple((p.replace(SLOT, fact.subject), fact.answers[0]) for p in phrases)
        if len(asked) < 2:
            skipped.append(Skipped(fact.id, "one wording only: none is left to be asked"))
            continue
        few = min(wordings, len(asked) // 2)
        made.append(Asked(fact.relation, fact.answers[0], asked[:few], asked[few:][:wordings], ()))
    return made, skipped


def facts(
    source: str, *, wordings: int = 3, limit: int = 0, seed: int = 0
) -> tuple[list[Asked], list[Skipped]]:
    """Facts of world:SIZE:SEED:COUNT, or of a dataset, NAME:PATH, in an order that the seed says;
    the first `limit` of them (0: all).
    """
    if source.startswith(WORLD):
        fields = source.removeprefix(WORLD).split(":")
        if len(fields) != 3 or not all(f.isdigit() for f in fields[1:]):
            raise ValueError(f"facts {source!r}: write world:SIZE:SEED:COUNT")
        count = min(int(fields[2]), limit or int(fields[2]))
        return of_world(make(fields[0], int(fields[1])), count, seed, wordings), []
    name, _, path = source.partition(":")
    if name not in READERS or not path:
        raise ValueError(f"facts {source!r}: world:SIZE:SEED:COUNT, or pararel:PATH")
    found = read(name, path)
    made, skipped = of_facts([item for item in found.items if isinstance(item, Fact)], wordings)
    # datasets are sorted by relation: a few of them are any
    order = np.random.RandomState(seed).permutation(len(made))[: limit or None]
    return [made[i] for i in order], [*found.skipped, *skipped]
