"""Safetensors files, read by slices and written as a stream.

Not the safetensors package: it maps files into memory, so that reading a checkpoint doubles the
process's memory, and it writes from arrays that all exist at once. Here a slice costs what it
holds. The format is eight bytes of length, a JSON header and the bytes; nothing in it is ever
executed.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "U32": np.dtype(np.uint32),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 1 << 24  # bytes held while columns are cut out of rows
STRIP = 1 << 12  # columns of so many bytes are read by themselves: disks read pages of this size


class Tensor(NamedTuple):
    """Where a tensor lies on disk."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # its first byte in the file

    def read(self, *index: slice) -> np.ndarray:
        """The tensor, or the part of it that slices (step 1, one per leading axis) select."""
        dtype = DTYPES.get(self.dtype)
        if dtype is None:
            raise ValueError(
                f"{self.file.name}: {self.name} is stored as {self.dtype}, which is not supported: "
                f"{', '.join(DTYPES)}"
            )
        bounds = [s.indices(n) for s, n in zip(index, self.shape, strict=False)]
        bounds += [(0, n, 1) for n in self.shape[len(bounds) :]]
        shape = tuple(max(stop - start, 0) for start, stop, _ in bounds)
        out = np.empty(shape, dtype)
        if out.size == 0:
            return out
        fd = os.open(self.file, os.O_RDONLY)
        try:
            if (
                not self.shape or shape[1:] == self.shape[1:]
            ):  # whole rows are one piece of the file
                row = math.prod(self.shape[1:]) * dtype.itemsize
                first = bounds[0][0] if bounds else 0
                self._fill(fd, out, self.start + first * row)
            else:
                self._fill_columns(fd, out, bounds)
        finally:
            os.close(fd)
        return out

    def _fill(self, fd: int, out: np.ndarray, offset: int) -> None:
        view = out.reshape(-1).view(np.uint8).data
        while view:
            n = os.preadv(fd, [view], offset)
            if n == 0:
                raise ValueError(f"{self.file}: ends inside {self.name}; the file is truncated")
            view, offset = view[n:], offset + n

    def _fill_columns(self, fd: int, out: np.ndarray, bounds: list) -> None:
        if len(self.shape) == 2 and out[0].nbytes >= STRIP:
            for i, x in enumerate(out, bounds[0][0]):
                offset = (i * self.shape[1] + bounds[1][0]) * out.dtype.itemsize
                self._fill(fd, x, self.start + offset)
            return
        row = math.prod(self.shape[1:]) * out.dtype.itemsize
        step = max(CHUNK // row, 1)
        columns = tuple(slice(a, b) for a, b, _ in bounds[1:])
        for at in range(bounds[0][0], bounds[0][1], step):
            stop = min(at + step, bounds[0][1])
            rows = np.empty((stop - at, *self.shape[1:]), out.dtype)
            self._fill(fd, rows, self.start + at * row)
            out[at - bounds[0][0] : stop - bounds[0][0]] = rows[(slice(None), *columns)]


def read_header(file: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and its metadata; refuses a file that is not whole."""
    file = Path(file)
    size = file.stat().st_size
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{file}: not a safetensors file, or cut off ({size} bytes)")
        try:
            header = dict(json.loads(f.read(length)))
            metadata = header.pop("__metadata__", {})
            rows = [
                (n, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for n, e in header.items()
            ]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{file}: not a safetensors file (its header cannot be read)"
            ) from None
    out, begin = {}, 8 + length
    for name, dtype, shape, start, end in rows:
        if begin + end > size:
            raise ValueError(
                f"{file}: truncated: {name} ends at byte {begin + end}, the file has {size}; "
                "fetch it again"
            )
        used = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else end - start
        if start < 0 or end - start != used or min(shape, default=0) < 0:
            raise ValueError(
                f"{file}: {name} is {dtype}{list(shape)} and lies at bytes {start} to {end}: "
                "the header contradicts itself"
            )
        out[name] = Tensor(file, name, dtype, shape, begin + start)
    return out, metadata


class Entry(NamedTuple):
    """A tensor to be written; `make` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    file: str | os.PathLike, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None
) -> None:
    """Streams tensors to a file, which appears under its name only when it is whole."""
    file, entries = Path(file), list(entries)
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    at = 0
    for e in entries:
        if np.dtype(e.dtype) not in NAMES:
            raise ValueError(f"{e.name} is {e.dtype}, which safetensors does not hold")
        header[e.name] = {
            "dtype": NAMES[np.dtype(e.dtype)],
            "shape": list(e.shape),
            "data_offsets": [at, at + e.size],
        }
        at += e.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start on eight bytes
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for e in entries:
                x = np.asarray(e.make(), order="C")
                if x.shape != tuple(e.shape) or x.dtype != e.dtype:
                    raise ValueError(
                        f"{e.name}: {x.dtype}{x.shape} to be written as {e.dtype}{e.shape}"
                    )
                f.write(x.reshape(-1).view(np.uint8).data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def entries(arrays: Mapping[str, np.ndarray]) -> Iterator[Entry]:
    """Arrays that exist already, as entries."""
    for name, x in arrays.items():
        yield Entry(name, x.shape, x.dtype, partial(np.asarray, x))
