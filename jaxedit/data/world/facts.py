"""The facts: who was born where, what follows from it, and what would follow from an edit."""

import dataclasses
import itertools
from collections.abc import Mapping
from functools import cached_property, lru_cache

import numpy as np

from jaxedit.data.world.names import Names
from jaxedit.data.world.relations import FACTUAL, RELATIONS

VALUES: dict[str, tuple[str, ...]] = {
    kind: tuple(names.split())
    for kind, names in {
        "profession": "baker doctor farmer gardener lawyer painter pilot poet sailor singer tailor "
        "teacher",
        "industry": "coal cotton glass grain paper salt silk steel timber wool",
        "color": "black blue brown gold green grey orange pink red silver white yellow",
        "genre": "adventure comedy drama fantasy history horror mystery romance",
    }.items()
} | {"price": tuple(str(price) for price in range(110, 910, 20))}
# How many of each kind; the rest of the parts are pools that names are drawn from.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"country": 6, "city": 18, "person": 40, "company": 10, "product": 16, "book": 16,
             "band": 5, "currency": 5, "language": 5, "first": 12, "last": 14, "brand": 4,
             "model": 8},
    "small": {"country": 12, "city": 36, "person": 96, "company": 24, "product": 36, "book": 36,
              "band": 10, "currency": 10, "language": 10, "first": 20, "last": 24, "brand": 6,
              "model": 12},
    "large": {"country": 180, "city": 4000, "person": 24000, "company": 3000, "product": 4000,
              "book": 4000, "band": 800, "currency": 120, "language": 140, "first": 400,
              "last": 1200, "brand": 100, "model": 200},
}  # fmt: skip
PAIRED = {"person": ("first", "last"), "product": ("brand", "model")}
MEMBERS = 3  # of a band
Facts = Mapping[tuple[str, str], tuple[str, ...]]  # (subject, relation) -> objects


@dataclasses.dataclass(frozen=True)
class World:
    """Entities by kind, their other names, and the facts."""

    seed: int
    kinds: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, tuple[str, ...]]
    facts: Facts

    @cached_property
    def kind(self) -> dict[str, str]:
        """The kind of every entity and value."""
        return {name: kind for kind, names in self.kinds.items() for name in names}

    @cached_property
    def all_facts(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """With the inverses that follow."""
        out = dict(self.facts)
        for (subject, name), objects in self.facts.items():
            inverse = RELATIONS[name].inverse
            if inverse and inverse != name:
                for object in objects:
                    key = (object, inverse)
                    out[key] = (*out.get(key, ()), subject)
        return out

    def names(self, entity: str) -> tuple[str, ...]:
        """All that an entity is called, the usual name first."""
        return (entity, *self.aliases.get(entity, ()))

    def ask(self, subject: str, path: tuple[str, ...] | str) -> tuple[str, ...]:
        """What the relations of the path lead to; () where there is nothing."""
        if isinstance(path, str):
            return tuple(dict.fromkeys(self.all_facts.get((subject, path), ())))
        at: tuple[str, ...] = (subject,)
        for relation in path:
            step = [self.all_facts.get((entity, relation), ()) for entity in at]
            at = tuple(dict.fromkeys(itertools.chain(*step)))
        return at

    def answers(self, subject: str, path: tuple[str, ...] | str) -> tuple[tuple[str, ...], ...]:
        """The same with every name of each answer, as a probe wants it."""
        return tuple(self.names(entity) for entity in self.ask(subject, path))

    def edited(self, subject: str, relation: str, objects: tuple[str, ...]) -> "World":
        """The world in which that one fact is another, and whatever follows from it.

        A symmetric relation is changed at both ends, and the former partners are left without one.
        """
        facts = dict(self.facts)
        if RELATIONS[relation].inverse == relation:
            for end in (subject, *objects):
                for partner in facts.pop((end, relation), ()):
                    facts.pop((partner, relation), None)
            for object in objects:
                facts[object, relation] = (subject,)
        facts[subject, relation] = objects
        return dataclasses.replace(self, facts=facts)

    def with_entity(self, name: str, kind: str) -> "World":
        return dataclasses.replace(self, kinds={**self.kinds, kind: (*self.kinds[kind], name)})


def make(size: str | Mapping[str, int] = "small", seed: int = 0) -> World:
    """A world of a named size, or of given numbers of each kind."""
    if not isinstance(size, str):
        return made(size, seed)
    if size not in SIZES:
        raise ValueError(f"a world of size {size!r}: one of {', '.join(SIZES)}")
    return named(size, seed)


@lru_cache(maxsize=4)
def named(size: str, seed: int) -> World:
    """Made once: a large one takes seconds, and training asks for its own several times."""
    return made(SIZES[size], seed)


def made(count: Mapping[str, int], seed: int) -> World:
    random = np.random.RandomState(seed)
    names = Names(random)
    pools = {part: names.pool(count[part]) for parts in PAIRED.values() for part in parts}
    kinds: dict[str, tuple[str, ...]] = dict(VALUES)
    for kind in ("country", "city", "person", "company", "product", "book", "band", "currency",
                 "language"):  # fmt: skip
        if kind in PAIRED:
            parts = [pools[part] for part in PAIRED[kind]]
            kinds[kind] = tuple(names.pair(*parts) for _ in range(count[kind]))
        else:
            kinds[kind] = tuple(names.new() for _ in range(count[kind]))
    aliases = {
        entity: (names.new(),)
        for kind in ("country", "city", "person", "company", "book", "band")
        for entity in kinds[kind]
    }
    return World(seed, kinds, aliases, draw(kinds, random))


def draw(kinds: Mapping[str, tuple[str, ...]], random: np.random.RandomState) -> Facts:
    """Objects at random, but capitals in their countries, couples in pairs, one band a person."""
    facts: dict[tuple[str, str], tuple[str, ...]] = {}
    pick = lambda kind: kinds[kind][random.randint(len(kinds[kind]))]
    cities = [kinds["city"][i] for i in random.permutation(len(kinds["city"]))]
    for i, country in enumerate(kinds["country"]):  # every country has its first city as capital
        facts[country, "capital"] = (cities[i],)
    for i, city in enumerate(cities):
        first = i < len(kinds["country"])
        facts[city, "country"] = (kinds["country"][i] if first else pick("country"),)
    people = [kinds["person"][i] for i in random.permutation(len(kinds["person"]))]
    for one, other in zip(people[0::4], people[1::4], strict=False):  # half of them are couples
        facts[one, "spouse"], facts[other, "spouse"] = (other,), (one,)
    players = [kinds["person"][i] for i in random.permutation(len(kinds["person"]))]
    for i, band in enumerate(kinds["band"]):
        members = players[i * MEMBERS : (i + 1) * MEMBERS]
        facts[band, "member"] = tuple(members)
    for relation in FACTUAL:
        for subject in kinds[relation.subject]:
            if relation.name not in ("capital", "country", "spouse", "member"):
                facts[subject, relation.name] = (pick(relation.object),)
    order = {name: i for i, name in enumerate(RELATIONS)}
    return dict(sorted(facts.items(), key=lambda item: order[item[0][1]]))
