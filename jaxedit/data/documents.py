"""Documents of text: from JSONL and plain files (also gzip), folders, globs and hub datasets."""

import dataclasses
import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

from jaxedit.data.cases import Skipped
from jaxedit.data.world.corpus import documents as world_documents
from jaxedit.data.world.facts import make
from jaxedit.progress import Progress, quiet

Split = Literal["file", "blank", "line", "title"]
HUB, WORLD = "hub:", "world:"
JSONL = (".jsonl", ".ndjson")
PLAIN = (".txt", ".text")
TITLE = re.compile(r" = [^=].* = $")  # how an article begins in WikiText
ROWS = 1000  # of a hub dataset, read at once


@dataclasses.dataclass(frozen=True)
class Source:
    """Where text is, and how it falls into documents.

    A path is a file, a folder (every .jsonl, .ndjson, .txt and .text below it, also with .gz), a
    glob, or hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT. A JSONL line and a hub row are a
    document each. world:SIZE:SEED:COUNT is so many documents about a made-up world.
    """

    paths: tuple[str, ...] = ()
    field: str = "text"  # of JSONL lines and hub rows
    # Plain text: a document is a file, what lies between blank lines, a line, or begins at a line
    # " = Title = " of WikiText.
    document: Split = "file"
    group: str = ""  # JSONL and hub: documents with the same value of this field are held together
    cut: int = 0  # documents fall into passages of so many characters, without what is left over

    def __post_init__(self) -> None:
        if isinstance(self.paths, str):
            raise ValueError(f"paths {self.paths!r} is one string; give a tuple of them")
        if self.document not in get_args(Split):
            raise ValueError(f"document {self.document!r}: one of {', '.join(get_args(Split))}")
        if self.cut < 0:
            raise ValueError(f"cut={self.cut}: characters of a passage, or 0")


class Document(NamedTuple):
    text: str
    hash: int  # 64 bits of its group, or of its text: decides to which part it belongs


def document(row: str, text: Any, group: Any = None) -> Document | Skipped:
    """A document, unless the text is none or empty. `row` says where it was found."""
    if not isinstance(text, str):
        return Skipped(row, f"{text!r:.40} is not text")
    if not text.strip():
        return Skipped(row, "empty text")
    try:
        content = (text if group is None else str(group)).encode()
        text.encode()  # the tokenizer will, and JSON can hold half a character
    except UnicodeEncodeError:
        return Skipped(row, "half a character (a lone surrogate)")
    name = hashlib.blake2b(content, digest_size=8).digest()
    return Document(text, int.from_bytes(name, "little"))


def read(source: Source, progress: Progress = quiet) -> Iterator[Document | Skipped]:
    """Every document in the order of the paths (a folder's and a glob's files by name), and the
    rows that are none. progress: bytes of the files.
    """
    for item in whole(source, progress):
        if not source.cut or isinstance(item, Skipped):
            yield item
            continue
        for begin in range(0, len(item.text) - source.cut + 1, source.cut):
            yield Document(item.text[begin : begin + source.cut], item.hash)


def whole(source: Source, progress: Progress) -> Iterator[Document | Skipped]:
    files = find(source)
    sizes = [0 if isinstance(file, str) else file.stat().st_size for file in files]
    before, total = 0, sum(sizes)
    for file, size in zip(files, sizes, strict=True):
        if isinstance(file, str):
            yield from read_world(file) if file.startswith(WORLD) else read_hub(file, source)
            continue
        with open(file, "rb") as raw:
            parse = read_jsonl if kind(file) in JSONL else read_plain
            for item in parse(file, raw, source):
                progress(before + raw.tell(), total)
                yield item
        before += size
        progress(before, total)


def digest(source: Source) -> str:
    """A name for what `read` gives: of the files' contents, wherever they lie and however old."""
    how = (source.field, source.document, source.group, *filter(None, [source.cut]))
    content = hashlib.sha256(repr(how).encode())
    for file in find(source):
        if isinstance(file, str):
            rows = read_hub(file, source)
            if file.startswith(WORLD):  # one generator makes all: its beginning tells it
                content.update(file.encode())
                rows = itertools.islice(read_world(file), 1000)
            for item in rows:
                content.update(repr(item).encode(errors="surrogatepass"))
            continue
        with open(file, "rb") as f:
            content.update(f"{kind(file)} {hashlib.file_digest(f, 'sha256').hexdigest()}".encode())
    return content.hexdigest()


def find(source: Source) -> list[Path | str]:
    """The files of a source, each once; hub names stay as they are."""
    found: dict[Path | str, None] = {}
    for name in source.paths:
        if name.startswith((HUB, WORLD)):
            found[name] = None
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if kind(p) in JSONL + PLAIN and p.is_file())
            if not files:
                endings = ", ".join(JSONL + PLAIN)
                raise ValueError(f"folder {name!r} has no text: no {endings}, nor these with .gz")
        elif path.is_file():
            files = [path]
        else:
            matches = glob.glob(str(path), recursive=True)
            files = sorted(p for p in map(Path, matches) if p.is_file())
            if not files:
                raise ValueError(f"no such file: {name!r} (from {os.getcwd()})")
        found |= dict.fromkeys(files)
    if not found:
        raise ValueError("no text: name at least one file, folder, glob or hub:NAME")
    return list(found)


def kind(file: Path) -> str:
    """The ending that says what is in a file, without .gz."""
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower()


def lines(file: Path, raw: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, unpacked; one clear error where it is damaged."""
    stream: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
    try:
        yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: a damaged gzip file ({error}); fetch it again") from None


def read_jsonl(file: Path, raw: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """A document a line. The first object must have the field: else it is the field that is wrong,
    not the line.
    """
    fields: list[str] = []
    for number, line in enumerate(lines(file, raw), 1):
        name = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Skipped(name, f"not JSON ({error})")
            continue
        if not isinstance(row, dict):
            yield Skipped(name, f"not a JSON object but {type(row).__name__}")
            continue
        if not fields:
            check_fields(name, source, fields := list(row))
        missing = [f for f in (source.field, source.group) if f and f not in row]
        if missing:
            yield Skipped(name, f"no field {missing[0]!r}")
        else:
            group = row[source.group] if source.group else None
            yield document(name, row[source.field], group)


def check_fields(name: str, source: Source, fields: list[str]) -> None:
    for field in (source.field, source.group):
        if field and field not in fields:
            raise ValueError(f"{name}: no field {field!r}; there are {', '.join(fields) or 'none'}")


def read_plain(file: Path, raw: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Documents of plain text, verbatim but for the line ends around them. Blank ones do not
    count.
    """
    held: list[str] = []
    begins = {
        "file": lambda line: False,
        "blank": lambda line: not line.strip(),
        "line": lambda line: True,
        "title": lambda line: TITLE.match(line.rstrip("\n")),
    }[source.document]
    number = first = 1

    def close() -> Iterator[Document | Skipped]:
        text = "".join(held)
        if text.strip():
            text = text if source.document == "file" else text.strip("\n")
            yield document(f"{file}:{first}", text)

    for number, line in enumerate(lines(file, raw), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            raise ValueError(f"{file}:{number}: not UTF-8; convert the file") from None
        if begins(text):
            yield from close()
            held, first = [], number
        held.append(text)
    yield from close()


def read_world(name: str) -> Iterator[Document | Skipped]:
    """Documents about a world, "world:small:0:100000"."""
    try:
        size, seed, count = name.removeprefix(WORLD).split(":")
        texts = world_documents(make(size, int(seed)), int(count))
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}; write world:SIZE:SEED:COUNT") from None
    for i, made in enumerate(texts):
        yield document(f"{name} {i}", made)


def read_hub(name: str, source: Source) -> Iterator[Document | Skipped]:
    """The rows of hub:NAME[:CONFIG][:SPLIT], by default of the split "train"."""
    import datasets

    path, *rest = name.removeprefix(HUB).split(":")
    if not path or len(rest) > 2:
        raise ValueError(f"{name!r}: write hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")
    config, part = rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"
    try:
        rows = datasets.load_dataset(path, config, split=part)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from error
    check_fields(name, source, rows.column_names)
    number = 0
    for some in rows.iter(ROWS):
        texts = some[source.field]
        groups = some[source.group] if source.group else [None] * len(texts)
        for text, group in zip(texts, groups, strict=True):
            yield document(f"{name}:{number}", text, group)
            number += 1


def strings(texts: Iterable[str]) -> Iterator[Document | Skipped]:
    """Strings in memory, a document each."""
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list of documents")
    for number, text in enumerate(texts):
        yield document(str(number), text)
