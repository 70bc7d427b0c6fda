"""The everyday call: requests in, edits out.

edits = run(model, requests, "rome")                       one edit for each request
edits = run(model, requests, "memit", independent=False)   one edit for all of them
edits = run(model, requests, "alphaedit", independent=False, batch=100)    a sequence
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxedit import delta, merge
from jaxedit.base import Deltas, Dense
from jaxedit.checksum import checksum
from jaxedit.data.aligned import Groups, Requests, aligned
from jaxedit.data.cases import EditRequest
from jaxedit.data.contexts import contexts
from jaxedit.data.documents import Source
from jaxedit.data.world.vocabulary import is_world
from jaxedit.edit import learned
from jaxedit.edit.editor import Editor, State
from jaxedit.edit.methods import configure, find, name_of, override, protocol_of, under
from jaxedit.edit.record import Edit, origin
from jaxedit.edit.results import add, fetch, real, trim, trouble, whole, written
from jaxedit.edit.room import in_programs
from jaxedit.edit.stats import Stats, StatsConfig, collect, load
from jaxedit.models.config import Model
from jaxedit.progress import Progress, quiet

WORLD_TEXT = StatsConfig(Source(("world:small:0:20000",)), documents=20_000, length=128)


def run(
    model: Model,
    requests: Sequence[EditRequest],
    method: Any = "rome",
    independent: bool = True,
    **how: Any,
) -> list[Edit]:
    """One edit per request; not independent: one per `batch` requests (0: as many as the method
    takes together), each made on the model that the ones before it left. Otherwise as `stream`.
    """
    found = list(stream(model, requests, method, independent, **how))
    if not independent:
        return [edit for _, edit in found]
    return [edit for _, edit in sorted(found, key=lambda item: item[0])]


def stream(
    model: Model,
    requests: Sequence[EditRequest],
    method: Any = "rome",
    independent: bool = True,
    *,
    batch: int = 0,
    **how: Any,
) -> Iterator[tuple[list[int], Edit]]:
    """Edits as they are made, each with the places of its requests. how: as `prepare` has it."""
    if batch and independent:
        raise ValueError(f"batch={batch}: independent edits are of one request; leave batch out")
    if not requests:
        return
    ready = prepare(model, method, **how)
    yield from ready.each(requests) if independent else ready.sequence(requests, batch)


def prepare(
    model: Model,
    method: Any = "rome",
    *,
    stats: Stats | StatsConfig | str | os.PathLike | None = None,
    preset: str = "",
    protocol: str = "",
    seed: int = 0,
    size: int = 0,
    skip: bool = False,
    progress: Progress = quiet,
    **overrides: Any,
) -> "Ready":
    """A method made ready for a model, for requests that come in parts.

    method: a name, with the settings that suit the model, or a method's config. protocol: "paper"
    or "easyedit" (default: that of the config, "paper" for a name). stats: second moments, a folder
    with them, or the text to take them of (default: text that fits the model). size: requests in
    one program (0: as memory allows). skip: a request that cannot be used gives an empty edit that
    says why, instead of an error. overrides: fields of the method's config, {"layer": 5,
    "values.steps": 30}.
    """
    if size < 0:
        raise ValueError(f"size={size}: a number of requests, or 0")
    if isinstance(method, str):
        protocol = protocol or "paper"
        cfg = configure(method, model.cfg, preset=preset, protocol=protocol, **overrides)
    else:
        name, cfg = name_of(method), override(method, overrides, model.cfg)
        method, cfg = name, under(cfg, protocol := protocol or protocol_of(method))
    if trained := hasattr(cfg, "trained"):
        cfg = learned.config(cfg.trained, cfg, method)
    editor = find(method).make(cfg)
    groups = contexts(editor.rows.contexts, model)
    about = origin(model, method=method, protocol=protocol, config=cfg, seed=seed, contexts=groups)
    given: Any = None
    if editor.stats:
        given = resolve(model, stats, editor.stats)
        about["stats"] = {**given.about, "tokens": given.count}
    elif trained:
        given = learned.load(cfg.trained, method, cfg, editor.learner, model)
        about["trained"] = checksum(given.trained)
    state = editor.init(jax.random.key(seed), model, given)
    return Ready(editor, model, state, groups, about, size, skip, progress)


@dataclasses.dataclass(frozen=True)
class Ready:
    """A method, what it knows of the model, and what the provenance of every edit says."""

    editor: Editor
    model: Model
    state: State
    groups: Groups
    about: Mapping[str, Any]
    size: int = 0
    skip: bool = False
    progress: Progress = quiet

    def each(self, requests: Sequence[EditRequest]) -> Iterator[tuple[list[int], Edit]]:
        """Every request an edit of its own, as they are made, with the request's place."""
        if requests:
            yield from self.work(requests).each(self.state)

    def sequence(
        self, requests: Sequence[EditRequest], batch: int = 0
    ) -> Iterator[tuple[list[int], Edit]]:
        """Edits of `batch` requests (0: as many as the method takes together), each on the model as
        the ones before left it.
        """
        most = self.editor.together
        if batch < 0:
            raise ValueError(f"batch={batch}: a number of requests, or 0")
        if most and batch > most:
            raise ValueError(
                f"batch={batch}: {self.about['method']} takes {most} request at a time; leave "
                "batch out, or use memit or emmet"
            )
        if requests:
            yield from self.work(requests).sequence(self.state, batch or most or len(requests))

    def work(self, requests: Sequence[EditRequest]) -> "Work":
        editor, model = self.editor, self.model
        found = aligned(
            model.tokenizer, requests, groups=self.groups, about=editor.rows.about,
            token=editor.rows.token, beside=editor.beside,
            longest=model.cfg.max_len if model.cfg.learned_pos else None, skip=self.skip,
        )  # fmt: skip
        found = in_programs(found, model, editor, self.size)
        return Work(editor, model, requests, found, self.about, self.progress)


@dataclasses.dataclass(frozen=True)
class Work:
    """Requests that are to be edited."""

    editor: Editor
    model: Model
    requests: Sequence[EditRequest]
    found: Requests
    about: Mapping[str, Any]
    progress: Progress

    def each(self, state: State) -> Iterator[tuple[list[int], Edit]]:
        """Every request an edit of its own."""
        for skipped in self.found.skipped:
            place = int(skipped.row)
            yield [place], self.record([place], {}, {}, left_out=[(place, skipped.reason)])
        if self.editor.remembers:
            yield from self.one_by_one(state)
            return
        done = 0
        for index, batch in self.found:
            result = fetch(self.editor.each(state, self.model.params, (batch,)))
            for row, place in enumerate(index.tolist()):
                info = {k: v[row : row + 1] for k, v in result.info.items()}
                edit = self.record([place], delta.row(result.deltas, row), info)
                if "failed" not in edit.provenance:
                    router = result.router
                    router = None if router is None else router.take(slice(row, row + 1))
                    edit = dataclasses.replace(
                        edit, writes=written(result.writes, row), router=router
                    )
                yield [place], edit
            done += len(index)
            self.progress(done, len(self.found.found))

    def one_by_one(self, state: State) -> Iterator[tuple[list[int], Edit]]:
        """Each an edit of the base, in the order of the requests: only the state goes on."""
        for done, one in enumerate(sorted(self.found.found, key=lambda t: t.place), 1):
            found = dataclasses.replace(self.found, found=(one,))
            index, batches = zip(*found, strict=True)
            result, state = self.editor.edit(state, self.model.params, batches)
            order, rows = real(index, batches)
            info = {k: v[rows] for k, v in fetch(result.info).items()}
            deltas = {path: trim(d) for path, d in fetch(result.deltas).items()}
            yield order, self.record(order, deltas, info)
            self.progress(done, len(self.found.found))

    def sequence(self, state: State, batch: int) -> Iterator[tuple[list[int], Edit]]:
        """Edits of `batch` requests, each on the model as the ones before left it."""
        usable = {t.place: t for t in self.found.found}
        why = {int(s.row): s.reason for s in self.found.skipped}
        params, total = self.model.params, dict[str, Dense]()
        made = 0  # edits, without those that failed
        for start in range(0, len(self.requests), batch):
            places = range(start, min(start + batch, len(self.requests)))
            left_out = [(i, why[i]) for i in places if i in why]
            some = tuple(usable[i] for i in places if i in usable)
            record = self.record([], {}, {}, left_out=left_out, after=made)
            if some:
                index, batches = zip(*dataclasses.replace(self.found, found=some), strict=True)
                result, new = self.editor.edit(state, params, batches)
                if result.writes:
                    raise ValueError(
                        "an edit of biases is not merged, so no other can follow it: set bias=false"
                    )
                order, rows = real(index, batches)
                info = {k: v[rows] for k, v in fetch(result.info).items()}
                deltas = fetch(result.deltas)
                if result.router is None:
                    deltas = {path: trim(d) for path, d in deltas.items()}
                record = self.record(order, deltas, info, left_out=left_out, after=made)
                if result.router is not None:
                    good = rows[[not trouble(info, n) for n in range(len(rows))]]
                    if len(good):
                        router = fetch(result.router).take(good)
                        record = dataclasses.replace(record, router=router)
                    state = new
                elif record.deltas:
                    state, total = new, add(total, result.deltas)
                    params = merge.apply(self.model.params, total)
            made += not record.failed
            yield list(places), record
            self.progress(places[-1] + 1, len(self.requests))

    def record(
        self,
        places: Sequence[int],
        deltas: Deltas,
        info: Mapping[str, np.ndarray],
        *,
        left_out: Iterable[tuple[int, str]] = (),
        after: int | None = None,
    ) -> Edit:
        """An edit with its provenance; without deltas, where it failed."""
        texts = [dataclasses.asdict(self.requests[i]) for i in places]
        about = dict(self.about) | (
            {"request": texts[0]} if len(texts) == 1 else {"requests": texts}
        )
        about |= {} if after is None else {"after": after}
        numbers = {k: [whole(x) for x in np.asarray(v).tolist()] for k, v in info.items()}
        about["result"] = {k: v[0] for k, v in numbers.items()} if len(places) == 1 else numbers
        wrong = [(i, reason) for n, i in enumerate(places) if info and (reason := trouble(info, n))]
        if failed := [*left_out, *wrong]:
            about["failed"] = [f"{self.requests[i].text!r}: {reason}" for i, reason in failed]
        return Edit(deltas={} if len(wrong) == len(places) else deltas, provenance=about)


def resolve(
    model: Model,
    given: Stats | StatsConfig | str | os.PathLike | None,
    layers: Sequence[int],
    progress: Progress = quiet,
) -> Stats:
    """Second moments of these layers, from whatever says where they are."""
    if isinstance(given, Stats):
        found = given
    elif isinstance(given, str | os.PathLike):
        found = load(given, layers)
    else:
        found = collect(model, given or suitable(model), layers, progress=progress)
    for layer in layers:
        if (have := len(found.moment(layer))) != model.cfg.mlp:
            raise ValueError(
                f"the second moment of layer {layer} is of keys of {have} numbers, this model's "
                f"have {model.cfg.mlp}: it is another model's"
            )
    return found


def suitable(model: Model) -> StatsConfig:
    """Text for a model of which nothing is said: its world, if it is one of ours, or Wikipedia."""
    return WORLD_TEXT if is_world(model.tokenizer) else StatsConfig()
