"""Published files as Python values: JSON, JSON lines, either of them gzipped, or a hub dataset."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
HUB = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?(:[\w.-]+)?")
SPLITS = {"val": "validation", "valid": "validation"}  # the same split under other names


class Content(NamedTuple):
    name: str  # what rows and errors are named by: the file without its suffix
    path: Path | None  # None for a hub dataset
    value: Any


def rows(source: str | os.PathLike, split: str | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of all files of a source, each with a name: "blender_test[12]", counted from 0."""
    for name, _, value in contents(source, split):
        yield from named(name, value)


def named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The rows of a list, or the values of an object, each with its name."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    yield from ((f"{name}[{key}]", row) for key, row in pairs)


def contents(source: str | os.PathLike, split: str | None = None) -> Iterator[Content]:
    """What each file of a source holds, one file at a time.

    source: a file, a folder (its files, not those of folders inside) or a hub dataset, written
    "owner/name", "owner/name:config" or "owner/name/path/of/file.json".
    split: of a folder, the files whose name has that word ("test_cf.json" has "test"); of a hub
    dataset, its split. All of them without it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        for file in listed(path, split):
            yield Content(stem(file), file, read(file))
    elif path.exists():
        if split is not None:
            raise ValueError(f"{path} is one file: give its folder, or no split (not {split!r})")
        yield Content(stem(path), path, read(path))
    else:
        yield from fetched(str(source), split)


def listed(folder: Path, split: str | None) -> list[Path]:
    """The data files of a folder, in order of their names."""
    files = sorted(f for f in folder.iterdir() if f.name.endswith(SUFFIXES) and f.is_file())
    if not files:
        inside = ", ".join(sorted(f.name for f in folder.iterdir() if f.is_dir()))
        hint = f"; it has the folders {inside}" if inside else ""
        raise FileNotFoundError(f"{folder}: no file ending in {', '.join(SUFFIXES)}{hint}")
    chosen = files if split is None else [f for f in files if canonical(split) in words(f)]
    if not chosen:
        has = ", ".join(f.name for f in files)
        raise FileNotFoundError(f"{folder}: no file of the split {split!r}; it has {has}")
    return chosen


def words(file: Path) -> set[str]:
    return {canonical(word) for word in re.split(r"[^a-z0-9]+", stem(file).lower())}


def canonical(split: str) -> str:
    return SPLITS.get(split.lower(), split.lower())


def stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")


def read(file: Path) -> list | dict:
    """The list or object in a file; the rows of JSON lines are a list."""
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.name.endswith(".gz") else raw).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: not whole gzip ({error}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text at byte {error.start}; fetch it again") from None
    if text.startswith("version https://git-lfs"):
        raise ValueError(f"{file}: a Git LFS pointer, not the data; run git lfs pull")
    value = lines(file, text) if ".jsonl" in file.name else whole(file, text)
    if not isinstance(value, list | dict):
        raise ValueError(f"{file}: a {type(value).__name__}, not a list or an object of rows")
    return value


def whole(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # Some files of JSON lines are called .json: a second value follows on a line of its own.
        if error.msg == "Extra data" and error.lineno > 1:
            return lines(file, text)
        raise ValueError(broken(file, error.lineno, error)) from None


def lines(file: Path, text: str) -> list:
    out = []
    # Not splitlines, which also splits at characters that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(broken(file, number, error)) from None
    return out


def broken(file: Path, line: int, error: json.JSONDecodeError) -> str:
    return f"{file}: not JSON at line {line}, column {error.colno} ({error.msg}); is it cut off?"


def fetched(source: str, split: str | None) -> Iterator[Content]:
    """The rows of a hub dataset, through the `datasets` package."""
    local = source.startswith((".", "/", "~")) or (
        source.endswith(SUFFIXES) and source.count("/") < 2
    )
    if local or not HUB.fullmatch(source):
        raise FileNotFoundError(f"{source}: no such file or folder")
    import datasets

    name, _, config = source.partition(":")
    owner, repo, *inside = name.split("/")
    try:
        loaded = datasets.load_dataset(
            f"{owner}/{repo}",
            name=config or None,
            data_files="/".join(inside) or None,
            split=split,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{source}: neither a file or folder here nor a dataset that the hub could give "
            f"({reason}); check the name, or give the path of a downloaded file"
        ) from None
    parts = loaded if isinstance(loaded, dict) else {split or "train": loaded}
    for part, table in parts.items():
        yield Content(f"{source}/{part}", None, list(table))
