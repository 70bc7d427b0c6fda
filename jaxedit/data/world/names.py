"""Names from shared syllables: no part of a name says what it names, or anything about it."""

import numpy as np

# A consonant and a vowel each, so that the tokenizer cuts every name between them.
SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


class Names:
    """Draws names that were not drawn before."""

    def __init__(self, random: np.random.RandomState):
        self.random = random
        self.taken: set[str] = set()

    def word(self, syllables: tuple[int, int]) -> str:
        count = self.random.randint(syllables[0], syllables[1] + 1)
        return "".join(SYLLABLES[self.random.randint(len(SYLLABLES))] for _ in range(count)).title()

    def fresh(self, make) -> str:
        """What `make` draws, the first that is new; longer and longer where names run out."""
        for attempt in range(10_000):
            name = make(attempt)
            if name not in self.taken:
                self.taken.add(name)
                return name
        raise ValueError("the world ran out of names: ask for fewer entities")

    def new(self) -> str:
        return self.fresh(lambda attempt: self.word((2, 2 + attempt // 10)))

    def pool(self, count: int) -> list[str]:
        """Parts of names, each used by many."""
        return [self.new() for _ in range(count)]

    def pair(self, firsts: list[str], lasts: list[str]) -> str:
        """A first name and a last name, or a brand and a model."""
        pick = lambda pool: pool[self.random.randint(len(pool))]
        return self.fresh(lambda _: f"{pick(firsts)} {pick(lasts)}")
