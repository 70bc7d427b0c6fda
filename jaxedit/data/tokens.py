"""Tokenised documents as one flat array, made once and then mapped from a cache file.

The cache is a safetensors file: "tokens" (uint16 is stored as I16), "starts", "hashes". Its name is
a digest of the text, the tokenizer and how the one was made into the other. It appears when it is
whole, so that hosts that share the folder may race: they make the same file.
"""

import hashlib
import io
import itertools
import json
import os
import socket
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxedit import tensorfile
from jaxedit.data.cases import Skipped
from jaxedit.data.documents import Document, Source, digest, read, strings
from jaxedit.progress import Progress, quiet

VERSION = 1  # of what a document becomes; another one makes all caches anew
CHARACTERS = 1 << 20  # given to the tokenizer at once
KEPT = 10  # reasons of skipped rows that are kept; all are counted


class Tokens(NamedTuple):
    """Documents one after the other, each ended by the tokenizer's end-of-text token."""

    flat: np.ndarray  # uint16 or uint32 [tokens]
    starts: np.ndarray  # int64 [documents + 1]
    hashes: np.ndarray  # uint64 [documents], as `documents.Document` has them
    left_out: int = 0  # rows that were no documents
    skipped: tuple[Skipped, ...] = ()  # the first of them


def from_strings(texts: Iterable[str], tokenizer: Any) -> Tokens:
    """Tokens of strings in memory, in memory."""
    out = io.BytesIO()
    tokens = tokenise(strings(texts), tokenizer, out)
    return tokens._replace(flat=np.frombuffer(out.getbuffer(), token_dtype(tokenizer)))


def from_source(source: Source, tokenizer: Any, folder: Path, progress: Progress = quiet) -> Tokens:
    """Tokens of files or hub datasets, from the cache in `folder`, which is filled if need be."""
    how = [VERSION, digest(source), tokenizer_digest(tokenizer)]
    name = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:32]
    file = folder / f"{name}.safetensors"
    if file.exists():
        try:
            return open_cache(file)
        except ValueError as error:
            warnings.warn(f"{error}; the text is tokenised again", stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    # Process numbers repeat from host to host, and in containers are all the same.
    mine = f".{name}.{socket.gethostname()}.{os.getpid()}"
    part, whole = folder / f"{mine}.part", folder / f"{mine}.safetensors"
    try:
        with open(part, "wb") as out:
            tokens = tokenise(read(source, progress), tokenizer, out)
        flat = np.memmap(part, token_dtype(tokenizer), mode="r")
        write_cache(whole, tokens._replace(flat=flat))
        os.replace(whole, file)
    finally:
        part.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    return open_cache(file)


def tokenise(documents: Iterable[Document | Skipped], tokenizer: Any, out: BinaryIO) -> Tokens:
    """Writes the tokens to `out`; what is returned has none. Memory holds a few documents."""
    end, dtype = tokenizer.eos_token_id, token_dtype(tokenizer)
    if end is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, which ends each document: set its eos_token"
        )
    lengths, hashes, left_out, size = [0], list[int](), 0, 0
    skipped: list[Skipped] = []
    held: list[Document] = []

    def flush() -> None:
        rows = tokenizer(
            [d.text for d in held],
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # a document is longer than the model: that is what windows are for
        )["input_ids"]
        rows = [row if row[-1:] == [end] else [*row, end] for row in rows]
        lengths.extend(map(len, rows))
        hashes.extend(d.hash for d in held)
        out.write(np.array(list(itertools.chain.from_iterable(rows)), dtype).tobytes())

    for item in documents:
        if isinstance(item, Skipped):
            left_out += 1
            if len(skipped) < KEPT:
                skipped.append(item)
            continue
        held.append(item)
        size += len(item.text)
        if size >= CHARACTERS:
            flush()
            held, size = [], 0
    if held:
        flush()
    if not hashes:
        why = f"; {left_out} rows skipped, {skipped[0].row}: {skipped[0].reason}" if skipped else ""
        raise ValueError(f"the text is empty: no documents{why}")
    starts = np.cumsum(np.array(lengths, np.int64))
    return Tokens(np.empty(0, dtype), starts, np.array(hashes, np.uint64), left_out, tuple(skipped))


def token_dtype(tokenizer: Any) -> np.dtype:
    largest = max(tokenizer.get_vocab().values(), default=0)
    return np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)


def tokenizer_digest(tokenizer: Any) -> str:
    """A name for what a tokenizer does to a text, padding and truncation aside."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
        state["settings"] = repr(sorted(getattr(tokenizer, "init_kwargs", {}).items()))
    else:
        state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    text = json.dumps([state, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_cache(file: Path, tokens: Tokens) -> None:
    flat = tokens.flat.view(np.int16) if tokens.flat.dtype == np.uint16 else tokens.flat
    arrays = {"tokens": flat, "starts": tokens.starts, "hashes": tokens.hashes.view(np.int64)}
    about = {
        "dtype": tokens.flat.dtype.name,
        "crc": [crc(x) for x in arrays.values()],
        "left_out": tokens.left_out,
        "skipped": [(s.row, s.reason) for s in tokens.skipped],
    }
    tensorfile.write(file, tensorfile.entries(arrays), {"about": json.dumps(about)})


def open_cache(file: Path) -> Tokens:
    """Refuses a file that is truncated or damaged: every byte is checked, at some GB a second."""
    header, metadata = tensorfile.read_header(file)
    try:
        about = json.loads(metadata["about"])
        at = header["tokens"]
        stored = np.memmap(file, tensorfile.DTYPES[at.dtype], "r", at.start, at.shape)
        starts, hashes = header["starts"].read(), header["hashes"].read()
        whole = about["crc"] == [crc(x) for x in (stored, starts, hashes)]
        skipped = tuple(Skipped(*s) for s in about["skipped"])
        flat, left_out = stored.view(about["dtype"]), about["left_out"]
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{file}: a damaged cache")
    return Tokens(flat, starts, hashes.view(np.uint64), left_out, skipped)


def crc(x: np.ndarray) -> int:
    total = 0
    for at in range(0, len(x), CHARACTERS):
        total = zlib.crc32(np.ascontiguousarray(x[at : at + CHARACTERS]).view(np.uint8).data, total)
    return total
