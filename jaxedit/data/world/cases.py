"""Edits of a world, with every probe whose right answer the world knows.

An edit changes one fact and nothing else; what a probe should answer is asked of the world after
the edit (`World.edited`), so that it is right by construction, near or far from the fact.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from jaxedit.data.cases import EditCase, EditRequest, Probe
from jaxedit.data.world.facts import World
from jaxedit.data.world.names import Names
from jaxedit.data.world.questions import UNKNOWN, ask, hops
from jaxedit.data.world.relations import (
    FACTUAL,
    RELATIONS,
    Relation,
    besides,
    chain,
    held_out,
    phrases,
)

KINDS = ("counterfactual", "insertion", "erasure")
NEIGHBORS = 5
UNRELATED = 5


def cases(
    world: World,
    count: int,
    *,
    seed: int = 0,
    kinds: tuple[str, ...] = ("counterfactual",),
    relations: tuple[str, ...] = (),
) -> Iterator[EditCase]:
    """`count` edits of different facts (of these relations, if named), the kinds in turn."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"a kind of edit {unknown[0]!r}: one of {', '.join(KINDS)}")
    random = np.random.RandomState(seed)
    names = Names(random)
    names.taken |= {n for entity in world.kind for n in world.names(entity)}
    if unknown := [name for name in relations if name not in RELATIONS]:
        raise ValueError(f"a relation {unknown[0]!r}: one of {', '.join(RELATIONS)}")
    facts = [fact for fact in world.facts if not relations or fact[1] in relations]
    if count > len(facts):
        of = f" of {', '.join(relations)}" if relations else ""
        raise ValueError(f"{count} edits of a world with {len(facts)} facts{of}")
    order = random.permutation(len(facts))
    for i in range(count):
        kind = kinds[i % len(kinds)]
        subject, name = facts[order[i]]
        relation = RELATIONS[name]
        if kind == "insertion":
            yield insertion(world, names, relation, f"{kind}-{i}", random)
        elif kind == "erasure":
            yield erasure(world, subject, relation, f"{kind}-{i}", random)
        else:
            yield counterfactual(world, subject, relation, f"{kind}-{i}", random)


def counterfactual(
    world: World, subject: str, relation: Relation, id: str, random: np.random.RandomState
) -> EditCase:
    """Another object than the true one, which some fact has; one more of them where a relation has
    many.
    """
    true = world.ask(subject, relation.name)
    # a name that no text gives as an answer is none that the model could say
    said = {
        o for (_, name), objects in world.facts.items() if name == relation.name for o in objects
    }
    others = [o for o in world.kinds[relation.object] if o in said and o not in (*true, subject)]
    target = others[random.randint(len(others))]
    after = world.edited(subject, relation.name, (target, *true) if relation.many else (target,))
    request = request_for(relation, subject, target, world.answers(subject, relation.name))
    probes = consequences(after, subject, relation, target) | locality(
        world, after, subject, relation, request, random
    )
    if relation.many:
        kept = tuple(world.names(o) for o in true)
        probes["locality/forgetfulness"] = [
            Probe(besides(relation, target).replace("{}", subject), kept, subject)
        ]
    return case(id, request, probes, "counterfactual", relation)


def insertion(
    world: World, names: Names, relation: Relation, id: str, random: np.random.RandomState
) -> EditCase:
    """A first fact about something that the world has never heard of."""
    subject = f"{names.new()} {names.new()}" if relation.subject == "person" else names.new()
    target = world.kinds[relation.object][random.randint(len(world.kinds[relation.object]))]
    after = world.with_entity(subject, relation.subject)
    after = after.edited(subject, relation.name, (target,))
    request = request_for(relation, subject, target, ())
    probes = consequences(after, subject, relation, target) | locality(
        world, after, subject, relation, request, random
    )
    return case(id, request, probes, "insertion", relation)


def erasure(
    world: World, subject: str, relation: Relation, id: str, random: np.random.RandomState
) -> EditCase:
    """The fact is to be forgotten: "I don't know", however it is asked."""
    true = world.answers(subject, relation.name)
    request = request_for(relation, subject, UNKNOWN, true)
    unknown = ((UNKNOWN,),)
    say = lambda phrase, called: Probe(phrase.replace("{}", called), unknown, called)
    probes: dict[str, list[Probe]] = {
        "rephrase": [say(phrase, subject) for phrase in held_out(relation)],
        "portability/subject_aliasing": [
            say(phrases(relation)[0], alias) for alias in world.aliases.get(subject, ())
        ],
    }
    after = world.edited(subject, relation.name, ())
    probes |= locality(world, after, subject, relation, request, random)
    return case(id, request, probes, "erasure", relation)


def request_for(
    relation: Relation, subject: str, target: str, true: tuple[tuple[str, ...], ...]
) -> EditRequest:
    names = tuple(name for names in true for name in names)
    return EditRequest(phrases(relation)[0], subject, target, names)


def consequences(
    after: World, subject: str, relation: Relation, target: str
) -> dict[str, list[Probe]]:
    """What should be answered otherwise after the edit."""
    probes = {
        "rephrase": [ask(after, subject, relation.name, phrase) for phrase in held_out(relation)],
        "portability/subject_aliasing": [
            ask(after, subject, relation.name, phrase, alias)
            for alias in after.aliases.get(subject, ())
            for phrase in phrases(relation)[:2]
        ],
    }
    if relation.many:  # which of several objects a chain goes on from is not said
        reasoning = []
    else:
        paths = [(relation.name, second.name) for second in hops(relation)]
        longer = [(*path, r.name) for path in paths for r in hops(RELATIONS[path[1]])]
        about = [(subject, path) for path in paths + longer[:2]]
        for first in FACTUAL:  # and the edited fact as the second hop, asked of another subject
            if first.object == relation.subject and not first.many:
                asked = [
                    e for e in after.kinds[first.subject] if subject in after.ask(e, first.name)
                ]
                about += [(entity, (first.name, relation.name)) for entity in asked[:1]]
        reasoning = [
            ask(after, entity, path, chain(path))
            for entity, path in about
            if after.ask(entity, path) not in ((), (entity,))
        ]
    inverse = RELATIONS.get(relation.inverse)
    if inverse and after.kind.get(target):
        phrase = inverse.verbs[0]
        probes["portability/logical_generalization"] = [ask(after, target, inverse.name, phrase)]
    return probes | {"portability/reasoning": reasoning}


def locality(
    world: World,
    after: World,
    subject: str,
    relation: Relation,
    request: EditRequest,
    random: np.random.RandomState,
) -> dict[str, list[Probe]]:
    """What should be answered as before: facts that the edit leaves as they were."""

    def kept(pairs: Iterable[tuple[str, str]], most: int | None = None) -> list[Probe]:
        same = (
            ask(world, entity, name, phrases(RELATIONS[name])[0])
            for entity, name in pairs
            if world.ask(entity, name) and world.ask(entity, name) == after.ask(entity, name)
        )
        return list(itertools.islice(same, most))

    objects = set(world.ask(subject, relation.name))
    same_object = [
        (entity, relation.name)
        for entity in (world.kinds[relation.subject] if objects else ())
        if entity != subject and not objects.isdisjoint(world.ask(entity, relation.name))
    ]
    anybody = [(e, relation.name) for e in world.kinds[relation.subject] if e != subject]
    near = same_object or [anybody[i] for i in random.permutation(len(anybody))]
    neighbors = kept(near[: 3 * NEIGHBORS], NEIGHBORS)
    facts = list(world.facts)
    far = [facts[i] for i in random.randint(len(facts), size=4 * UNRELATED)]
    stated = f"{request.text} {request.target}."
    return {
        "locality/relation_specificity": kept(
            (subject, other.name) for other in FACTUAL if other.name != relation.name
        ),
        "locality/neighborhood": neighbors,
        "locality/distracting": [
            Probe(f"{stated} {probe.prompt}", probe.answers, probe.subject) for probe in neighbors
        ],
        "locality/unrelated": kept(
            ((e, name) for e, name in far if e != subject and name != relation.name), UNRELATED
        ),
    }


def case(
    id: str, request: EditRequest, probes: dict[str, list[Probe]], kind: str, relation: Relation
) -> EditCase:
    subject = request.subject
    beginnings = (subject, f"{subject}'s", f"People say that {subject}")
    probes["generation"] = [Probe(text, (), subject) for text in beginnings]
    found = {key: tuple(some) for key, some in probes.items() if some}
    return EditCase(id, (request,), found, {"kind": kind, "relation": relation.name})
