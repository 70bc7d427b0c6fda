"""A small world whose every fact is known: entities, relations, text about them, edits and probes.

    world = make("small", seed=0)
    world.ask("Marola Tenvik", ("birthplace", "country"))      # what is true, by one or more hops
    documents(world, 100_000)                                   # what a model is trained on
    cases(world, 100)                                           # edits, with every right answer

Nothing is random but what the seed decides: same seed, same bytes.
"""

from jaxedit.data.world.cases import cases
from jaxedit.data.world.corpus import documents
from jaxedit.data.world.facts import SIZES, World, make
from jaxedit.data.world.questions import GROUPS, questions
from jaxedit.data.world.relations import RELATIONS, Relation

__all__ = [
    "GROUPS",
    "RELATIONS",
    "SIZES",
    "Relation",
    "World",
    "cases",
    "documents",
    "make",
    "questions",
]
