"""In which order edits are made and looked at.

    independent   every case has an edited model of its own
    batch         so many cases share one edit, the next ones another, of the unedited model
    sequence      every edit is made on the model that the ones before it left; all cases up to then
                  (or a sample) are asked again and again, so that forgetting is seen
    round         an edit, undone; the edit again; and then an edit back to what was true

Each is a generator of parts: a part is what is computed at once, and so what a stopped run does
again. Weights are never copied: what is asked is the unedited model with an edit beside it. Where
cases share one, what another of its requests changes is no locality of theirs.
"""

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxedit import merge
from jaxedit.checksum import checksum
from jaxedit.data.cases import EditCase, EditRequest
from jaxedit.edit.ledger import join
from jaxedit.edit.record import Edit
from jaxedit.edit.router import join as join_routers
from jaxedit.edit.runner import Ready
from jaxedit.evaluate.ask import Asker
from jaxedit.evaluate.observe import AskConfig, observe
from jaxedit.evaluate.seen import Observed

How = Literal["independent", "batch", "sequence", "round"]


class Key(NamedTuple):
    """A record: a case, and after how many of them it was asked (0: where there is no order)."""

    at: int
    place: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Cases that were asked together."""

    keys: tuple[Key, ...]
    seen: tuple[Observed, ...]
    edits: tuple[Edit, ...]  # of each case
    scores: tuple[dict[str, float], ...] = ()  # of the protocol itself, beside those of the answers
    made: tuple[Edit, ...] = ()  # sequence: every edit so far,
    joined: Edit | None = None  # and all of them as one


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done with which cases. Parts all of whose keys are in `done` are left out."""

    ready: Ready
    asker: Asker
    cases: Sequence[EditCase]
    ask: AskConfig
    chunk: int  # cases of a part
    done: Callable[[Key], bool] = lambda key: False
    clock: Callable[[str], Any] = lambda stage: None  # told when a stage begins

    def finished(self, keys: Sequence[Key]) -> bool:
        return all(map(self.done, keys))

    def observe(
        self,
        places: Sequence[int],
        edits: Sequence[Edit],
        edit_of: Sequence[int] | None = None,
        made: Sequence[EditRequest] = (),
    ) -> tuple[Observed, ...]:
        self.clock("asking")
        some = [self.cases[i] for i in places]
        return tuple(observe(self.asker, some, edits, edit_of, self.ask, made))


def independent(plan: Plan) -> Iterator[Part]:
    for places in chunks(len(plan.cases), plan.chunk):
        keys = tuple(Key(0, i) for i in places)
        if not plan.finished(keys):
            plan.clock("editing")
            edits = own_edits(plan.ready, [plan.cases[i] for i in places])
            yield Part(keys, plan.observe(places, edits), tuple(edits))


def own_edits(ready: Ready, cases: Sequence[EditCase]) -> list[Edit]:
    """An edit for each case: of its request, all of them in one program; or of its several."""
    edits: dict[int, Edit] = {}
    alone = [i for i, case in enumerate(cases) if len(case.requests) == 1]
    for places, edit in ready.each([cases[i].request for i in alone]):
        edits[alone[places[0]]] = edit
    for i, case in enumerate(cases):
        if i not in edits:
            edits[i] = together(ready, case.requests)
    return [edits[i] for i in range(len(cases))]


def together(ready: Ready, requests: Sequence[EditRequest]) -> Edit:
    """One edit of several requests: at once where the method can, else one after the other."""
    count = ready.editor.together or len(requests)
    return joined([edit for _, edit in ready.sequence(requests, min(count, len(requests)))])


def joined(edits: Sequence[Edit]) -> Edit:
    if len(edits) == 1:
        return edits[0]
    failed = [why for e in edits for why in e.provenance.get("failed") or ()]
    about = {**edits[-1].provenance, "failed": failed or None}
    made = [e for e in edits if e.router is not None]  # the others failed
    if made and all(e.router is not None or not e.deltas for e in edits):
        router = join_routers([e.router for e in made if e.router is not None])
        return dataclasses.replace(made[-1], router=router, provenance=about)
    if beyond := [what for e in edits for what in e.beyond]:
        raise ValueError(f"edits with {beyond[0]} do not add up; evaluate them alone")
    return Edit(deltas=join([e.deltas for e in edits]), provenance=about)


def batch(plan: Plan, size: int) -> Iterator[Part]:
    if size < 1:
        raise ValueError(f"batch={size}: how many cases share an edit, at least 1")
    for places in chunks(len(plan.cases), size):
        keys = tuple(Key(0, i) for i in places)
        if not plan.finished(keys):
            plan.clock("editing")
            requests = [r for i in places for r in plan.cases[i].requests]
            edit = joined([e for _, e in plan.ready.sequence(requests, len(requests))])
            seen = plan.observe(places, [edit], [0] * len(places), requests)
            yield Part(keys, seen, (edit,) * len(keys))


def sequence(plan: Plan, size: int, at: Sequence[int], most: int) -> Iterator[Part]:
    """size: requests of an edit; at: after how many cases to ask; most: cases that are asked."""
    ends = np.cumsum([len(case.requests) for case in plan.cases]).tolist()
    requests = [r for case in plan.cases for r in case.requests]
    step = size or plan.ready.editor.together
    wanted = [n for n in stops(at, plan.cases, step) if not plan.finished(keys_at(n, most))]
    if not wanted:
        return
    made: list[Edit] = []
    own: dict[int, Edit] = {}
    plan.clock("editing")
    for places, edit in plan.ready.sequence(requests, size):
        made.append(edit)
        own |= dict.fromkeys(places, edit)
        whole = bisect.bisect_right(ends, places[-1] + 1)
        while wanted and wanted[0] <= whole:
            keys = keys_at(wanted.pop(0), most)
            now = joined(made)
            cases = [k.place for k in keys]
            first = [ends[i] - len(plan.cases[i].requests) for i in cases]
            edits = tuple(own[n] for n in first)
            seen = plan.observe(cases, [now], [0] * len(keys), requests[: places[-1] + 1])
            yield Part(keys, seen, edits, made=tuple(made), joined=now)
            plan.clock("editing")
        if not wanted:
            return


def stops(at: Sequence[int], cases: Sequence[EditCase], size: int) -> list[int]:
    """After how many cases to ask: as told, once the edit of `size` requests (0: of all) that holds
    the last of them is made; and at the end.
    """
    ends = np.cumsum([len(case.requests) for case in cases]).tolist()
    size = size or ends[-1]
    made = lambda n: bisect.bisect_right(ends, -(-ends[n - 1] // size) * size)
    return sorted({made(n) for n in at if 0 < n < len(cases)} | {len(cases)})


def keys_at(count: int, most: int) -> tuple[Key, ...]:
    """The cases asked after `count` of them: all, or `most` of them from the first to the last."""
    places = np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int))
    return tuple(Key(count, int(i)) for i in places)


def round_trip(plan: Plan) -> Iterator[Part]:
    """Scores: "restored" (1 where the bits are back after the edit), "repeated" (1 where the same
    edit comes out again). What is asked is whether the edit back says what was true, and everything
    else as if there had been no edit.
    """
    for place, case in enumerate(plan.cases):
        key = Key(0, place)
        if plan.done(key):
            continue
        plan.clock("editing")
        ready, model = plan.ready, plan.ready.model
        edit = together(ready, case.requests)
        if edit.beyond:
            raise ValueError(
                f"how=round undoes what is in the weights, and an edit with {edit.beyond[0]} is "
                "not; set how=independent"
            )
        edited = model._replace(params=merge.apply(model.params, edit.deltas))
        kept = merge.original(model.params, edit.deltas)
        restored = merge.restore(edited.params, kept)
        same = checksum(restored) == ready.about["base"]["checksum"]
        again = together(dataclasses.replace(ready, model=model._replace(params=restored)),
                         case.requests)  # fmt: skip
        scores = {"restored": float(same), "repeated": float(equal(edit, again))}
        back = [EditRequest(r.prompt, r.subject, r.ground_truth[0], (r.target,))
                for r in case.requests if r.ground_truth]  # fmt: skip
        if len(back) < len(case.requests):  # nobody says what was true
            yield Part((key,), (Observed(case, ()),), (edit,), (scores,))
            continue
        there = together(dataclasses.replace(ready, model=edited), back)
        kept_probes = {k: v for k, v in case.probes.items() if k.startswith("locality/")}
        other = EditCase(case.id, tuple(back), kept_probes, case.info)
        plan.clock("asking")
        (seen,) = observe(plan.asker, [other], [joined([edit, there])], None, plan.ask)
        yield Part((key,), (seen,), (edit,), (scores,))


def equal(x: Edit, y: Edit) -> bool:
    xs, ys = jax.tree.leaves(dict(x.deltas)), jax.tree.leaves(dict(y.deltas))
    same = all(np.array_equal(a, b) for a, b in zip(xs, ys, strict=False))
    return len(xs) == len(ys) and same


def chunks(count: int, size: int) -> list[range]:
    return [range(at, min(at + size, count)) for at in range(0, count, size)]
