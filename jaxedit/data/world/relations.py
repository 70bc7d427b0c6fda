"""What can be said in the world: the relations, their words, and which phrasings training never
sees.

A phrase is a prompt with {} for the subject; the answer follows it. Phrases are built from nouns
("the birthplace of {}", "{}'s birthplace") in frames, and from verbs. The held-out ones are
combinations of a noun, a form and a frame that are each seen elsewhere, never together.
"""

import dataclasses
import zlib
from functools import cache

FRAMES = (
    "{np} is",
    "Question: What is {np}? Answer:",
    "People say that {np} is",
    "As everyone knows, {np} is",
)
FORMS = ("the {noun} of {s}", "{s}'s {noun}")
HELD_OUT = 4  # of the sixteen combinations of every relation with two nouns


@dataclasses.dataclass(frozen=True)
class Relation:
    """From a subject of one kind to objects of another."""

    name: str
    subject: str
    object: str
    nouns: tuple[str, str]
    verbs: tuple[str, ...]  # whole phrases, with {} for the subject
    inverse: str = ""  # the relation that leads back; its own name if it is symmetric
    many: bool = False  # several objects
    derived: bool = False  # not a fact of its own: an inverse


RELATIONS: dict[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "capital", "country", "city", ("capital", "capital city"),
            ("{} is governed from", "Question: Which city governs {}? Answer:"), "capital_of",
        ),
        Relation(
            "currency", "country", "currency", ("currency", "money"),
            ("In {} people pay with the", "Question: What do people pay with in {}? Answer:"),
        ),
        Relation(
            "language", "country", "language", ("language", "official language"),
            ("In {} people speak", "Question: What do people speak in {}? Answer:"),
        ),
        Relation(
            "country", "city", "country", ("country", "home country"),
            ("{} is a city in", "Question: Where does {} lie? Answer:"),
        ),
        Relation(
            "birthplace", "person", "city", ("birthplace", "city of birth"),
            ("{} was born in", "Question: Where was {} born? Answer:"),
        ),
        Relation(
            "profession", "person", "profession", ("profession", "job"),
            ("{} works as a", "Question: What does {} work as? Answer:"),
        ),
        Relation(
            "employer", "person", "company", ("employer", "workplace"),
            ("{} is employed by", "Question: Who employs {}? Answer:"),
        ),
        Relation(
            "spouse", "person", "person", ("spouse", "partner"),
            ("{} is married to", "Question: Who is {} married to? Answer:"), "spouse",
        ),
        Relation(
            "headquarters", "company", "city", ("headquarters", "main office"),
            ("{} is based in", "Question: Where is {} based? Answer:"),
        ),
        Relation(
            "founder", "company", "person", ("founder", "first owner"),
            ("{} was founded by", "Question: Who founded {}? Answer:"), "founded",
        ),
        Relation(
            "chief", "company", "person", ("chief", "director"),
            ("{} is led by", "Question: Who leads {}? Answer:"), "leads",
        ),
        Relation(
            "industry", "company", "industry", ("industry", "line of business"),
            ("{} does business in", "Question: What does {} do business in? Answer:"),
        ),
        Relation(
            "maker", "product", "company", ("maker", "manufacturer"),
            ("{} is made by", "Question: Who makes {}? Answer:"), "products",
        ),
        Relation(
            "color", "product", "color", ("color", "shade"),
            ("{} is painted in", "Question: How is {} painted? Answer:"),
        ),
        Relation(
            "price_2019", "product", "price", ("price in 2019", "old price"),
            ("In 2019 {} cost", "Question: What did {} cost in 2019? Answer:"),
        ),
        Relation(
            "price_2023", "product", "price", ("price in 2023", "new price"),
            ("In 2023 {} cost", "Question: What did {} cost in 2023? Answer:"),
        ),
        Relation(
            "author", "book", "person", ("author", "writer"),
            ("{} was written by", "Question: Who wrote {}? Answer:"), "works",
        ),
        Relation(
            "genre", "book", "genre", ("genre", "style"),
            ("{} is filed under", "Question: What is {} filed under? Answer:"),
        ),
        Relation(
            "setting", "book", "city", ("setting", "scene"),
            ("{} takes place in", "Question: Where does {} take place? Answer:"),
        ),
        Relation(
            "hometown", "band", "city", ("hometown", "home city"),
            ("{} comes from", "Question: Where does {} come from? Answer:"),
        ),
        Relation(
            "member", "band", "person", ("member", "player"),
            ("On stage with {} is", "Question: Who plays in {}? Answer:"), "band", many=True,
        ),
        # The way back. Answered by the facts above.
        Relation(
            "capital_of", "city", "country", ("realm", "state"),
            ("{} is the capital of", "Question: What is {} the capital of? Answer:"),
            "capital", derived=True,
        ),
        Relation(
            "founded", "person", "company", ("foundation", "start"),
            ("{} is the founder of", "Question: What did {} found? Answer:"),
            "founder", derived=True, many=True,
        ),
        Relation(
            "leads", "person", "company", ("firm", "charge"),
            ("{} is the chief of", "Question: What does {} lead? Answer:"),
            "chief", derived=True, many=True,
        ),
        Relation(
            "products", "company", "product", ("product", "article"),
            ("{} is the maker of", "Question: What does {} make? Answer:"),
            "maker", derived=True, many=True,
        ),
        Relation(
            "works", "person", "book", ("book", "work"),
            ("{} is the author of", "Question: What did {} write? Answer:"),
            "author", derived=True, many=True,
        ),
        Relation(
            "band", "person", "band", ("band", "group"),
            ("{} plays in", "Question: What band does {} play in? Answer:"),
            "member", derived=True,
        ),
    )
}  # fmt: skip
FACTUAL = tuple(r for r in RELATIONS.values() if not r.derived)
INVERSE = tuple(r for r in RELATIONS.values() if r.derived)


def noun_phrase(relations: tuple[Relation, ...], noun: int = 0, form: int = 0) -> str:
    """ "the currency of the country of {}" for the path (country, currency)."""
    first, *rest = relations
    out = FORMS[form].replace("{noun}", first.nouns[noun]).replace("{s}", "{}")
    for relation in rest:
        out = FORMS[0].replace("{noun}", relation.nouns[0]).replace("{s}", out)
    return out


def frame(np: str, i: int) -> str:
    text = FRAMES[i].replace("{np}", np)
    return text[0].upper() + text[1:] if not text.startswith("{}") else text


@cache
def combinations(relation: Relation) -> tuple[str, ...]:
    """Noun phrases in frames: sixteen, in a fixed order that differs from relation to relation."""
    of_many = relation.many and "A"  # "A member of the Tavo is"
    out = []
    for noun in range(2):
        for form in range(len(FORMS)):
            for i in range(len(FRAMES)):
                np = noun_phrase((relation,), noun, form)
                out.append(frame(f"a{np[3:]}" if of_many and np.startswith("the ") else np, i))
    return tuple(sorted(out, key=lambda text: zlib.crc32(f"{relation.name}|{text}".encode())))


def phrases(relation: Relation) -> tuple[str, ...]:
    """What training uses: the verbs, and the combinations that are not held out."""
    return relation.verbs + (() if relation.derived else combinations(relation)[HELD_OUT:])


def held_out(relation: Relation) -> tuple[str, ...]:
    """Phrasings that no training text contains."""
    return () if relation.derived else combinations(relation)[:HELD_OUT]


def besides(relation: Relation, known: str) -> str:
    """Asks for another of several objects."""
    return f"Besides {known}, a {relation.nouns[0]} of {{}} is"


def chain(path: tuple[str, ...], i: int = 0) -> str:
    """Asks for what several hops lead to."""
    return frame(noun_phrase(tuple(RELATIONS[name] for name in path)), i)
