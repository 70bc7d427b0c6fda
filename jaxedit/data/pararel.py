"""ParaRel (Elazar et al. 2021): facts of T-REx, and many ways to say each relation."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.data import files
from jaxedit.data.cases import SLOT, Fact, Found, find
from jaxedit.data.fields import names, number, text

SUBJECT, OBJECT = "[X]", "[Y]"
FOLDERS = ("graphs_json", "trex_lms_vocab")  # patterns and facts, a file for each relation


class Relation(NamedTuple):
    name: str
    patterns: tuple[str, ...]  # as published
    prompts: tuple[str, ...]  # what can be continued by the object: the best first


def pararel(source: str | os.PathLike, split: str | None = None) -> Found[Fact]:
    """One file of all relations, {relation: {graphs, vocab}}, or the two published folders.

    A pattern is a prompt up to its [Y] if [X] comes before that. The fact's own prompt is the first
    pattern that ends with [Y], or else the first that can be a prompt; the others are its
    paraphrases. A subject that has several objects in a relation makes several facts.
    """
    return find(rows(source, split), fact)


def rows(
    source: str | os.PathLike, split: str | None
) -> Iterator[tuple[str, tuple[Relation, Any]]]:
    for name, graphs, vocabulary in relations(source, split):
        relation = read_patterns(name, graphs)
        for label, row in files.named(name, vocabulary):
            yield label, (relation, row)


def relations(source: str | os.PathLike, split: str | None) -> Iterator[tuple[str, Any, Any]]:
    """Name, patterns and facts of each relation."""
    patterns, facts = (Path(source).expanduser() / name for name in FOLDERS)
    if patterns.is_dir() and facts.is_dir():
        known = {content.name: content.value for content in files.contents(patterns)}
        for name, _, value in files.contents(facts):
            yield name, known.get(name, []), value
        return
    for file, _, value in files.contents(source, split):
        for name, relation in value.items() if isinstance(value, dict) else ():
            if not isinstance(relation, dict) or "vocab" not in relation:
                raise ValueError(f"{file}: {name} is not a relation with its graphs and vocab")
            yield name, relation.get("graphs") or [], relation["vocab"]


def read_patterns(name: str, graphs: list) -> Relation:
    patterns = tuple(text(graph, "pattern") for graph in graphs)
    usable = [p for p in patterns if p.count(SUBJECT) == p.count(OBJECT) == 1]
    usable = [p for p in usable if p.index(SUBJECT) < p.index(OBJECT)]
    # Stable: patterns that end with the object come first, each kind in the published order.
    usable.sort(key=lambda p: bool(p.partition(OBJECT)[2].strip(" .")))
    prompts = (p.partition(OBJECT)[0].replace(SUBJECT, SLOT).strip() for p in usable)
    return Relation(name, patterns, tuple(dict.fromkeys(prompts)))


def fact(pair: tuple[Relation, Any], reasons: list[str]) -> Fact:
    relation, row = pair
    if not relation.prompts:
        raise ValueError(f"{relation.name} has no pattern with [X] before [Y]")
    first, *others = relation.prompts
    return Fact(
        number(row, "uuid"),
        first,
        text(row, "sub_label"),
        names(row["obj_label"]),
        relation.name,
        tuple(others),
        relation.patterns,
    )
