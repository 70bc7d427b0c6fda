"""Texts that generated ones should be like after an edit: about things of which is true what the
edit says.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from jaxedit.data.asked import WORLD
from jaxedit.data.cases import EditCase
from jaxedit.data.world.facts import World, make
from jaxedit.data.world.relations import RELATIONS, phrases
from jaxedit.evaluate.texts import References, TfIdf

Find = Callable[[EditCase], References | None]
SNIPPETS, VOCABULARY, IDF = "attribute_snippets.json", "tfidf_vocab.json", "idf.npy"


def of_sources(data: Sequence[str], folder: str = "") -> Find:
    """Those of the worlds among `data`, as `data.asked` names them, and of a folder; a case that
    has none is not measured.
    """
    worlds = dict.fromkeys(tuple(s.split(":")[1:3]) for s in data if s.startswith(WORLD))
    finds = [of_world(make(size, int(seed))) for size, seed in worlds]
    finds += [of_counterfact(folder)] if folder else []
    return lambda case: next((found for f in finds if (found := f(case)) is not None), None)


def of_world(world: World) -> Find:
    """What a world tells of others that have the new object in the same relation."""
    told = {subject: passage(world, subject) for subject, _ in world.facts}
    tfidf = TfIdf.fit(tuple(told.values()))
    have: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (subject, relation), objects in world.facts.items():
        for thing in objects:
            have[relation, thing].append(subject)

    def find(case: EditCase) -> References | None:
        if len(case.requests) != 1 or "relation" not in case.info:
            return None
        request = case.request
        others = have.get((case.info["relation"], request.target), ())
        texts = tuple(told[s] for s in others if s != request.subject)
        return References(tfidf, texts) if texts else None

    return find


def passage(world: World, subject: str) -> str:
    """All facts about something, each in the plainest words."""
    found = [
        f"{phrases(relation)[0].replace('{}', subject)} {thing}."
        for relation in RELATIONS.values()
        for thing in world.facts.get((subject, relation.name), ())
    ]
    return " ".join(found)


def of_counterfact(folder: str | Path) -> Find:
    """The snippets of Wikipedia that are published with CounterFact, by relation and object; with
    the word counts that stand beside them, or those of the snippets.
    """
    folder = Path(folder).expanduser()
    if not (file := folder / SNIPPETS).is_file():
        raise FileNotFoundError(f"references {str(folder)!r}: no {SNIPPETS} there")
    texts: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in json.loads(file.read_text()):
        key = (str(row["relation_id"]), str(row["target_id"]))
        texts[key] = (*texts.get(key, ()), *(sample["text"] for sample in row["samples"]))
    tfidf = published(folder) or TfIdf.fit(tuple(t for some in texts.values() for t in some))

    @cache
    def references(key: tuple[str, str]) -> References | None:
        return References(tfidf, texts[key]) if texts.get(key) else None

    return lambda case: references(
        (str(case.info.get("relation")), str(case.info.get("target_id")))
    )


def published(folder: Path) -> TfIdf | None:
    vocabulary, idf = folder / VOCABULARY, folder / IDF
    if not (vocabulary.is_file() and idf.is_file()):
        return None
    return TfIdf.of(json.loads(vocabulary.read_text()), np.load(idf, allow_pickle=False))
