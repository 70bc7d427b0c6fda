"""A pass over a corpus that adds up arrays, and goes on where it was stopped."""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Params
from jaxedit.checksum import checksum
from jaxedit.progress import Progress
from jaxedit.tensorfile import entries, read_header, write

Batch = tuple[np.ndarray | Array, np.ndarray | Array]  # tokens [B, T], positions, -1 at padding
Sums = TypeVar("Sums")  # a flax dataclass of arrays
EVERY = 50  # batches between saves
ANEW = "remove it, or name another folder"


def one_pass(
    start: Sums, batches: Iterable[Batch], add: Callable[[Sums, Batch], Sums], *,
    params: Params, settings: str, file: Path | None, what: str, progress: Progress, total: int,
) -> Sums:  # fmt: skip
    """`add` over all batches.

    file: where the sums are kept, and taken from if they are of the same model, settings and
    batches; what: the name of the sums, for messages.
    """
    sums, done, rows = start, 0, hashlib.sha256()
    rest, name = iter(batches), "" if file is None else checksum(params)
    if file is not None and file.is_file():
        arrays, about = read_header(file)
        shapes = {key: x.shape for key, x in vars(start).items()}
        if about.get("key") != settings or {k: x.shape for k, x in arrays.items()} != shapes:
            raise ValueError(f"{file}: {what} with other settings; {ANEW}")
        if about.get("model") != name:
            raise ValueError(f"{file}: {what} of another model; {ANEW}")
        there = {key: jnp if isinstance(x, jax.Array) else np for key, x in vars(start).items()}
        sums = type(start)(**{k: there[k].asarray(x.read()) for k, x in arrays.items()})
        done = int(about["batches"])
        for batch in itertools.islice(rest, done):
            include(rows, batch)
        if about.get("rows") != rows.hexdigest():
            raise ValueError(f"{file}: {what} of other batches; {ANEW}")

    def save(n: int) -> None:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            about = {"key": settings, "model": name, "rows": rows.hexdigest(), "batches": str(n)}
            write(file, entries(jax.tree.map(np.asarray, vars(sums))), about)

    n = done
    for batch in rest:
        sums = add(sums, batch)
        include(rows, batch)
        n += 1
        if n % EVERY == 0:
            save(n)
        progress(n, total)
    if n > done:
        save(n)
    return sums


def include(rows: "hashlib._Hash", batch: Batch) -> None:
    for x in batch:
        rows.update(f"{x.shape}".encode() + np.ascontiguousarray(x, np.int32).tobytes())
