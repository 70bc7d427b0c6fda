"""The folder of a ledger: what is on disk, and how it stays whole.

`base.json` says which model, `ledger.jsonl` has a line per add, undo and redo, in order, and
`edits/<id>.safetensors` are the edits. A line is appended when its edit's file is whole and on
disk, under a lock (flock) on the log that the kernel lets go when its holder dies. What a killed
process leaves is a torn last line, which is ignored, and cut off before the next one; or a file
that no line names, which the next add writes over.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxedit import delta
from jaxedit.base import Deltas
from jaxedit.edit.conflicts import Claim, Layer, Request, claims_of, requests_of
from jaxedit.edit.record import Edit

VERSION = 1  # of the layout
BASE, LINES, EDITS = "base.json", "ledger.jsonl", "edits"


class Change(NamedTuple):
    path: str
    layer: Layer
    norm: float  # Frobenius


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the log says about an edit; the edit itself is in its file."""

    id: str
    file: str  # inside the folder
    sha256: str  # of the file
    time: str
    method: str
    requests: tuple[Request, ...]
    after: frozenset[str] | int  # it was made on top of these, or of so many right before it
    changes: tuple[Change, ...]
    beyond: tuple[str, ...]  # as `Edit.beyond`
    active: bool = True

    @property
    def norm(self) -> float:
        """Of all its changes together."""
        return math.hypot(*(c.norm for c in self.changes))

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        return tuple(claims_of(self.id, self.requests))

    def is_after(self, other: "Entry") -> bool:
        """Was it made on the model as the other had left it."""
        if isinstance(self.after, frozenset):
            return other.id in self.after
        return 0 < int(self.id) - int(other.id) <= self.after

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Entry":
        """From a line of the log that adds it."""
        after = line["after"]
        return cls(
            id=line["id"],
            file=line["file"],
            sha256=line["sha256"],
            time=line["time"],
            method=line["method"],
            requests=tuple(line["requests"]),
            after=after if isinstance(after, int) else frozenset(after),
            changes=tuple(Change(*c) for c in line["changes"]),
            beyond=tuple(line["beyond"]),
        )


def create(folder: Path, base: Mapping[str, Any]) -> None:
    """A folder without edits, which appears when it is whole."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        (part / EDITS).mkdir(parents=True)
        (part / LINES).touch()
        about = {"jaxedit": "ledger", "version": VERSION, "time": now()} | dict(base)
        (part / BASE).write_text(json.dumps(about, indent=2) + "\n")
        for path in (part / BASE, part):
            sync(path)
        os.rename(part, folder)  # fails where another process has just made one
        sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_base(folder: Path) -> dict[str, Any]:
    file = folder / BASE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: no {BASE}, so this is not a ledger; Ledger.create makes one"
        )
    try:
        base = json.loads(file.read_text())
        known = base["jaxedit"] == "ledger" and {"checksum", "family", "config"} <= base.keys()
        version = base["version"]
    except (ValueError, LookupError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(f"{file}: damaged, or not of a ledger; put it back from a copy")
    if version != VERSION:
        raise ValueError(
            f"{folder}: a ledger of format {version}, this jaxedit reads {VERSION}; use the "
            "version that wrote it, or a later one"
        )
    return base


def describe(edit: Edit) -> dict[str, Any]:
    """What a line of the log says about an edit."""
    about = edit.provenance
    after = about.get("after") or 0
    if not isinstance(after, int | list | tuple):
        raise ValueError(
            f"provenance after={after!r}: the ids of the edits that it was made on, or their number"
        )
    changes = measure(edit.deltas)
    if wrong := [c for c in changes if not math.isfinite(c.norm)]:
        raise ValueError(
            f"delta {wrong[0].path!r} has numbers that are not finite; this edit failed, make it "
            "again"
        )
    return {
        "method": str(about.get("method") or ""),
        "requests": requests_of(about),
        "after": after if isinstance(after, int) else [str(id) for id in after],
        "changes": changes,
        "beyond": list(edit.beyond),
    }


def measure(deltas: Deltas) -> list[Change]:
    """The size of every change, matrix by matrix and layer by layer."""
    deltas = delta.single(deltas)
    out = []
    for path, sizes in delta.norm(deltas).items():
        values, layers = np.asarray(sizes).reshape(-1).tolist(), deltas[path].layers
        numbers: Sequence[Layer] = range(len(values))
        if "/" not in path:
            numbers = [None]
        elif layers is not None:
            numbers = np.asarray(layers).tolist()
        pairs = zip(numbers, values, strict=True)
        out += [Change(path, n, size) for n, size in pairs if size and n != -1]
    return out


class Log:
    """The lines and what they add up to: `entries`, by id, as of the last `refresh`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._end = 0  # how much of the file was read, in bytes
        self._swept = False
        self.refresh()

    def refresh(self) -> None:
        """Takes in what was appended since, by whichever process."""
        with open(self.folder / LINES, "rb") as file:
            self._read(file)

    def find(self, id: str | int) -> Entry:
        """The entry of an id, "0007" or 7."""
        name = f"{int(id):04}" if str(id).isdecimal() else str(id)
        if name not in self.entries:
            n = len(self.entries)
            raise ValueError(
                f"{self.folder} has no edit {id}: it "
                + (f"has 0001 to {n:04}" if n else "is empty")
            )
        return self.entries[name]

    def load(self, entry: Entry) -> Edit:
        """The edit itself; refuses a file that is not the one that was added."""
        file = self.folder / entry.file
        if not file.is_file():
            raise FileNotFoundError(f"edit {entry.id}: {file} is missing; put it back from a copy")
        if digest(file) != entry.sha256:
            raise ValueError(
                f"edit {entry.id}: {file} is damaged (not what was added); put it back from a copy"
            )
        return Edit.load(file)

    def add(self, edit: Edit, about: Mapping[str, Any]) -> str:
        """Appends an edit, and returns its id when it is on disk."""
        with self._locked() as file:
            if not self._swept:  # what a killed process was writing
                for part in (self.folder / EDITS).glob(".*.part"):
                    part.unlink()
                self._swept = True
            id = f"{len(self.entries) + 1:04}"
            name = f"{EDITS}/{id}.safetensors"
            edit.save(self.folder / name)
            sync(self.folder / EDITS)
            line = {"op": "add", "id": id, "file": name, "sha256": digest(self.folder / name)}
            self._append(file, [line | {"time": now()} | dict(about)])
        return id

    def switch(self, op: str, ids: Sequence[str | int] | None) -> list[Entry]:
        """Appends an "undo" or "redo" of edits that can be; None: of all of them."""
        with self._locked() as file:
            able = lambda e: e.active == (op == "undo")
            if ids is None:
                entries = [e for e in self.entries.values() if able(e)]
            else:
                entries = list({e.id: e for e in map(self.find, ids)}.values())
            if bad := [e.id for e in entries if not able(e)]:
                state = "was undone already" if op == "undo" else "was not undone"
                raise ValueError(f"edit {bad[0]} {state}, so there is nothing to {op}")
            self._append(file, [{"op": op, "id": e.id, "time": now()} for e in entries])
        return [self.entries[e.id] for e in entries]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The file at its end, read to it, without a torn line, and no other process in it."""
        with open(self.folder / LINES, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read(file)
            file.truncate(self._end)
            file.seek(self._end)
            yield file

    def _append(self, file: BinaryIO, lines: Sequence[Mapping[str, Any]]) -> None:
        texts = [json.dumps(line).encode() for line in lines]
        file.write(b"".join(text + b"\n" for text in texts))
        file.flush()
        os.fsync(file.fileno())
        for text in texts:
            self._note(text)

    def _read(self, file: BinaryIO) -> None:
        if file.seek(0, os.SEEK_END) < self._end:
            raise ValueError(f"{self.folder / LINES} is shorter than it was; open the ledger again")
        file.seek(self._end)
        for text in file.read().split(b"\n")[:-1]:  # the last one is empty, or torn
            self._note(text)

    def _note(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            id = line["id"]
            if line["op"] == "add":
                if id in self.entries:
                    raise ValueError(f"{id} is added twice")
                self.entries[id] = Entry.of(line)
            else:
                active = {"undo": False, "redo": True}[line["op"]]
                self.entries[id] = dataclasses.replace(self.entries[id], active=active)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self.folder / LINES}: the line at byte {self._end} is damaged "
                f"({type(error).__name__}: {error}); put the file back from a copy"
            ) from None
        self._end += len(text) + 1


def digest(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
