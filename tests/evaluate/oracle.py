"""A model that knows everything: it answers from the tables of a world, edited or not."""

import re

from jaxedit.data.world.facts import World
from jaxedit.data.world.questions import PATHS, hops
from jaxedit.data.world.relations import RELATIONS, besides, chain, held_out, phrases
from jaxedit.edit.record import Edit
from jaxedit.evaluate.ask import Pair
from jaxedit.evaluate.seen import Forced

LONGER = tuple((*path, r.name) for path in PATHS for r in hops(RELATIONS[path[1]]))


class Oracle:
    """In the place of an Asker, for edits that `knowing` made."""

    def __init__(self, world: World, knows_edits: bool = True):
        self.world, self.knows_edits, self.edited = world, knows_edits, {}
        self.meaning = meaning(world)

    def forced(self, texts, edit_of, edits):
        return [
            self.pair(text, edits[e].provenance.get("case"))
            for text, e in zip(texts, edit_of, strict=True)
        ]

    def pair(self, marked, case):
        prompt, answer = marked.text[: marked.cut], marked.text[marked.cut :].strip()
        before, after = (
            led(answer, self.answers(world, prompt, case))
            for world in (self.world, self.after(case))
        )
        return Pair(before, after, 0.0 if before == after else 1.0)

    def continued(self, prompts, edit_of, edits, steps, *, total=False, sampling=None, seed=0):
        out = []
        for prompt, e in zip(prompts, edit_of, strict=True):
            case = edits[e].provenance.get("case")
            found = self.answers(self.after(case), prompt, case)
            out.append(" " + " and ".join(names[0] for names in found) + "." if found else " well.")
        return out

    def after(self, case) -> World:
        if case is None or not self.knows_edits:
            return self.world
        if case.id not in self.edited:
            request, relation = case.request, RELATIONS[case.info["relation"]]
            true = self.world.ask(request.subject, relation.name)
            new = (request.target, *true) if relation.many else (request.target,)
            self.edited[case.id] = self.world.edited(request.subject, relation.name, new)
        return self.edited[case.id]

    def answers(self, world, prompt, case):
        if case is not None:
            stated = f"{case.request.text} {case.request.target}. "
            prompt = prompt.removeprefix(stated)
        if match := re.fullmatch(r"Besides (.+?), a (.+)", prompt):
            relation, subject = self.meaning[prompt_of(match[2])]
            true = world.answers(subject, relation)
            return tuple(names for names in true if match[1] not in names)
        if prompt not in self.meaning:
            return ()
        path, subject = self.meaning[prompt]
        return world.answers(subject, path)


def knowing(cases):
    """For each case an edit that only says which it is of."""
    return [Edit(provenance={"case": case}) for case in cases]


def prompt_of(rest: str) -> str:
    return f"besides {rest}"


def meaning(world):
    """Every prompt of the world -> what it asks of whom."""
    out = {}
    for relation in RELATIONS.values():
        for entity in world.kinds[relation.subject]:
            for called in world.names(entity):
                for phrase in (*phrases(relation), *held_out(relation)):
                    out[phrase.replace("{}", called)] = (relation.name, entity)
            asks = besides(relation, "X").removeprefix("Besides X, a ").replace("{}", entity)
            out[prompt_of(asks)] = (relation.name, entity)
    for path in (*PATHS, *LONGER):
        for entity in world.kinds[RELATIONS[path[0]].subject]:
            out[chain(path).replace("{}", entity)] = (path, entity)
    return out


def led(answer, right):
    """Letters in the place of tokens: the answer where it is right, else what is right."""
    target = tuple(map(ord, answer))
    names = [name for some in right for name in some]
    if answer in names:
        return Forced(target, target, (-0.01,) * len(target))
    other = tuple(map(ord, (names or ["?"])[0].ljust(len(target), "?")))[: len(target)]
    said = tuple(o if o != t else 0 for o, t in zip(other, target, strict=True))
    return Forced(target, said, (-9.0,) * len(target))
