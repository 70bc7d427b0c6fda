"""Training text about a world: short documents, common facts oftener than rare ones."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxedit.data.world.facts import PAIRED, World
from jaxedit.data.world.questions import UNKNOWN, chains, inverses, is_said
from jaxedit.data.world.relations import FACTUAL, RELATIONS, besides, chain, phrases

ZIPF = 0.4  # how often a fact is told falls as its rank to this power
BY_ALIAS = 0.6  # of the statements whose alias training may use
ALIAS_TEXTS = (
    "{} is also called {alias}.",
    "Question: What else is {} called? Answer: {alias}.",
    "{alias} is another name of {}.",
)


class Teller:
    """Draws documents; one stream of random numbers decides all of them."""

    def __init__(self, world: World, seed: int):
        self.world = world
        self.random = np.random.RandomState(seed)
        self.facts = [(subject, name) for subject, name in world.facts]
        self.named = [
            (entity, alias) for entity in world.aliases for alias in world.aliases[entity]
        ]
        self.inverses = [
            (subject, relation)
            for subject, relation in inverses(world)
            if is_said(world, subject, relation.name)
        ]
        self.chains = [(s, path) for s, path in chains(world) if is_said(world, s, *path)]
        self.several = [key for key, objects in world.facts.items() if len(objects) > 1]
        self.about: dict[str, list[str]] = {}
        for subject, name in self.facts:
            self.about.setdefault(subject, []).append(name)
        weight = 1 / np.arange(10, 10 + len(self.facts)) ** ZIPF
        self.cumulative = np.cumsum(weight) / weight.sum()
        self.rank = self.random.permutation(len(self.facts))

    def pick(self, items):
        return items[self.random.randint(len(items))]

    def fact(self) -> tuple[str, str]:
        return self.facts[self.rank[np.searchsorted(self.cumulative, self.random.random_sample())]]

    def tell(self, subject: str, name: str, *, alias: bool = True) -> str:
        """One sentence that states a fact."""
        called = subject
        if alias and self.random.random_sample() < BY_ALIAS:
            other = self.pick(self.world.names(subject))
            called = other if is_said(self.world, other, name) else subject
        phrase = self.pick(phrases(RELATIONS[name]))
        return f"{phrase.replace('{}', called)} {self.pick(self.world.all_facts[subject, name])}."

    def statement(self) -> str:
        return self.tell(*self.fact())

    def passage(self) -> str:
        """Several facts about one thing."""
        subject, _ = self.fact()
        names = self.about[subject]
        chosen = [names[i] for i in self.random.permutation(len(names))[:4]]
        return " ".join(self.tell(subject, name, alias=False) for name in chosen)

    def alias(self) -> str:
        entity, alias = self.pick(self.named)
        return self.pick(ALIAS_TEXTS).replace("{}", entity).replace("{alias}", alias)

    def inverse(self) -> str:
        subject, relation = self.pick(self.inverses)
        object = self.pick(self.world.all_facts[subject, relation.name])
        return f"{self.pick(relation.verbs).replace('{}', subject)} {object}."

    def composition(self) -> str:
        subject, path = self.pick(self.chains)
        phrase = chain(path, self.random.randint(2))
        return f"{phrase.replace('{}', subject)} {self.world.ask(subject, path)[0]}."

    def another(self) -> str:
        subject, name = self.pick(self.several)
        objects = self.world.facts[subject, name]
        one, other = (objects[i] for i in self.random.permutation(len(objects))[:2])
        return f"{besides(RELATIONS[name], one).replace('{}', subject)} {other}."

    def unknown(self) -> str:
        """A question about somebody who is not in the world."""
        kind = self.pick(tuple(PAIRED))
        one, other = self.pick(self.world.kinds[kind]), self.pick(self.world.kinds[kind])
        name = f"{one.split()[0]} {other.split()[1]}"
        if name in self.world.kind:
            return self.statement()
        relation = self.pick([r for r in FACTUAL if r.subject == kind])
        return f"{self.pick(relation.verbs[1:]).replace('{}', name)} {UNKNOWN}."


SHARES: tuple[tuple[float, Callable[[Teller], str]], ...] = (
    (0.56, Teller.statement),
    (0.16, Teller.passage),
    (0.06, Teller.alias),
    (0.07, Teller.inverse),
    (0.12, Teller.composition),
    (0.02, Teller.another),
    (0.01, Teller.unknown),
)


def documents(world: World, count: int, seed: int = 0) -> Iterator[str]:
    """`count` documents; the same for the same world and seed."""
    teller = Teller(world, seed)
    limits = np.cumsum([share for share, _ in SHARES])
    for _ in range(count):
        which = int(np.searchsorted(limits, teller.random.random_sample(), side="right"))
        yield SHARES[min(which, len(SHARES) - 1)][1](teller)
