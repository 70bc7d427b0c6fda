"""Second moments of keys, E[k kᵀ], of all wanted layers in one pass over text.

    stats = collect(model, StatsConfig(text=Source(("texts/",))), layers=(13, 14, 15))
    stats.moment(13)                                     [F, F], float32

The sums (`edit.moments`) are kept in a folder whose name comes from the weights, the text and how
it was read, a file for each layer; a pass that was stopped goes on from its last part, and ends
with the same bits. Of a job of several processes the first one writes, and all read that folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxedit import tensorfile
from jaxedit.base import Array
from jaxedit.checksum import checksum
from jaxedit.data.documents import HUB, Source, digest
from jaxedit.edit import solve
from jaxedit.edit.moments import SITE, accumulate, parts, tokenise
from jaxedit.edit.solve import Factored
from jaxedit.models.config import Model
from jaxedit.progress import Progress, is_first, quiet
from jaxedit.sharding import mesh_of

VERSION = 1  # of what is computed; another one begins anew
PART = "part.safetensors"  # of a folder: where a pass goes on
SAMPLE = "In 1889 the Eiffel Tower's cost was 7,800,000 francs; l'été à Paris, 東京."
PUBLISHED = re.compile(r"\.(\d+)\.mlp\.")  # the layer, in the names of ROME's published files


@dataclasses.dataclass(frozen=True)
class StatsConfig:
    """Which text, and how much of it. The defaults are those of ROME's authors."""

    text: Source = dataclasses.field(
        default_factory=lambda: Source(paths=("hub:wikimedia/wikipedia:20231101.en:train",))
    )
    documents: int = 100_000  # those with the least hashes: a random choice, the same in any order
    # Longer documents are cut: a model with 131,072 positions would otherwise be given all of them,
    # and what attention costs grows with the square.
    length: int = 1024
    batch: int = 8192  # tokens of a forward pass, padding included
    save_every: int = 100  # batches, between which a stop loses what was done
    folder: str = ""  # ~/.cache/jaxedit/stats

    def __post_init__(self) -> None:
        if min(self.documents, self.length, self.batch, self.save_every) < 1:
            raise ValueError(f"{self}: documents, length, batch and save_every are at least 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Stats:
    """Second moments of some layers, of `count` tokens."""

    moments: Mapping[int, Array]  # layer -> [F, F] float32
    count: int
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # goes into provenance
    folder: Path | None = None  # where what is derived from them may be kept

    def moment(self, layer: int) -> Array:
        if layer not in self.moments:
            raise ValueError(
                f"no second moment of layer {layer}; there are those of "
                f"{', '.join(map(str, sorted(self.moments))) or 'none'}: collect it, or give stats"
            )
        return self.moments[layer]

    def null_space(self, layer: int, threshold: float) -> tuple[Array, int]:
        """The projection onto directions with less than the threshold, and how many there are."""
        moment_FF = self.moment(layer)
        if self.folder is None:
            return solve.null_space(moment_FF, threshold)
        # by content: a folder of published files may be given those of another model
        name = f"null.{layer}.{threshold}.{checksum({'moment': moment_FF})[:12]}.safetensors"
        file = self.folder / name
        if file.exists():
            tensors, about = tensorfile.read_header(file)
            return jnp.asarray(tensors["free"].read()), int(about["count"])
        free_FF, count = solve.null_space(moment_FF, threshold)
        with contextlib.suppress(OSError):  # published files may lie where nobody can write
            write(file, {"free": free_FF}, {"count": str(count)})
        return free_FF, count


def need(stats: Stats | None, layers: Sequence[int]) -> Stats:
    """The statistics, if there are those that a method needs."""
    if stats is None:
        raise ValueError(
            f"this method needs the second moments of layers {', '.join(map(str, layers))}: "
            "give stats (edit.stats.collect)"
        )
    for layer in layers:
        if not bool(jnp.isfinite(stats.moment(layer)).all()):
            raise ValueError(
                f"the second moment of layer {layer} has numbers that are not finite: the model "
                "overflows on this text; take it in another dtype"
            )
    return stats


def factored(stats: Stats | None, layer: int, ridge: float) -> Factored:
    """A second moment, ready to be solved with."""
    stats = need(stats, (layer,))
    moment_FF = stats.moment(layer)
    f = solve.factor(moment_FF, ridge)
    if not bool(jnp.isfinite(f.factor_FF).all()):
        rank, F = solve.rank(moment_FF), len(moment_FF)
        raise ValueError(
            f"the second moment of layer {layer} cannot be inverted: its rank is {rank} of {F}, "
            f"from {stats.count:,} tokens; collect more text, or set ridge=1e-4 (of its mean "
            "diagonal)"
        )
    return f


def collect(
    model: Model, cfg: StatsConfig, layers: Sequence[int], *, progress: Progress = quiet
) -> Stats:
    """The second moments of these layers, read from cfg.folder where they are, else computed."""
    if bad := [i for i in layers if not 0 <= i < model.cfg.layers]:
        raise ValueError(f"layer {bad[0]}: the model has layers 0 to {model.cfg.layers - 1}")
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; use edit.stats.of_tokens on rows of tokens")
    key = identity(model, cfg)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(cfg.folder).expanduser() if cfg.folder else Path(home, "jaxedit", "stats")
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = root / f"{model.cfg.family}-{name}"
    wanted = tuple(sorted(set(layers)))
    have = as_first([(folder / file_name(i)).exists() for i in wanted])
    missing = tuple(i for i, there in zip(wanted, have, strict=True) if not there)
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        most = min(cfg.length, model.cfg.max_len) if model.cfg.learned_pos else cfg.length
        rows, skipped = tokenise(model.tokenizer, cfg.text, cfg.documents, most)
        sums_nFF, count = add_up(model, rows, missing, cfg, folder / PART, progress)
        about = {k: str(v) for k, v in key.items()} | {"count": str(count)}
        about |= {"left out": f"{skipped} documents"} if skipped else {}
        for n, layer in enumerate(missing):
            write(folder / file_name(layer), {"sum": sums_nFF[n]}, about | {"layer": str(layer)})
        if is_first():
            (folder / PART).unlink(missing_ok=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"wrote {folder}")
    return load(folder, layers)


def of_tokens(model: Model, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Stats:
    """The second moments of these layers over rows of tokens, in memory."""
    layers = tuple(sorted(set(layers)))
    sums_nFF, count = add_up(model, rows, layers, StatsConfig(), None, quiet)
    moments = {layer: sums_nFF[n] / count for n, layer in enumerate(layers)}
    return Stats(moments, count)


def file_name(layer: int) -> str:
    return f"{SITE}.{layer}.safetensors"


def load(source: str | os.PathLike, layers: Sequence[int]) -> Stats:
    """Second moments from a folder that `collect` filled, or of ROME's published .npz files (or one
    such file).
    """
    path = Path(source).expanduser()
    if not layers:
        raise ValueError("second moments of no layers; name at least one")
    if not path.exists():
        raise ValueError(f"{path}: no such folder or file")
    moments: dict[int, Array] = {}
    counts: set[int] = set()
    about: dict[str, str] = {}
    for layer in layers:
        file = path / file_name(layer)
        if path.is_dir() and file.exists():
            tensors, about = tensorfile.read_header(file)
            count = int(about["count"])
            moments[layer] = jnp.asarray(tensors["sum"].read()) / count
        elif published := find_published(path, layer):
            moments[layer], count = read_published(published)
            about = {"text": published.name}
        else:
            raise ValueError(f"{path}: no second moment of layer {layer} (no {file.name}, no .npz)")
        counts.add(count)
    if len(counts) > 1:
        raise ValueError(f"{path}: the layers' moments are of different texts: {sorted(counts)}")
    about = {k: v for k, v in about.items() if k != "layer"}
    return Stats(moments, counts.pop(), about, path if path.is_dir() else None)


def find_published(path: Path, layer: int) -> Path | None:
    """The one .npz file of this layer."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    files = [f for f in files if (m := PUBLISHED.search(f.name)) and int(m[1]) == layer]
    if len(files) > 1:
        one, other = files[0].name, files[1].name
        raise ValueError(f"{path}: {one} and {other} are both of layer {layer}; move one away")
    return files[0] if files else None


def read_published(file: Path) -> tuple[Array, int]:
    """The mean of k kᵀ and how many k there were; ROME's authors save their sum."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            sum_FF, count = arrays["mom2.mom2"].astype(np.float32), int(arrays["mom2.count"])
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: not as ROME's authors save second moments: {error}") from None
    return jnp.asarray(sum_FF / np.float32(count)), count


def identity(model: Model, cfg: StatsConfig) -> dict[str, Any]:
    """What decides the moments. Text goes by its contents, a dataset of the hub by its name: it is
    not read.
    """
    source, sample = cfg.text, model.tokenizer(SAMPLE)["input_ids"]  # tells of a BOS
    one = lambda path: (
        path if path.startswith(HUB) else digest(dataclasses.replace(source, paths=(path,)))
    )
    return {
        "version": VERSION, "base": checksum(model.params), "dtype": model.cfg.dtype, "site": SITE,
        "text": [source.field, source.document, source.group, *map(one, source.paths)],
        "documents": cfg.documents, "length": cfg.length,
        "tokenizer": hashlib.sha256(str(sample).encode()).hexdigest()[:16],
    }  # fmt: skip


def add_up(
    model: Model,
    rows: Sequence[Sequence[int]],
    layers: tuple[int, ...],
    cfg: StatsConfig,
    saved: Path | None,
    progress: Progress,
) -> tuple[Array, int]:
    """Sums of k kᵀ [n, F, F] and the number of tokens; goes on from `saved`, if that is there."""
    if not layers or not any(rows):
        raise ValueError(f"second moments of layers {layers} over {len(rows)} rows: no tokens")
    mesh = mesh_of(model.params)
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    todo = list(parts(rows, cfg.batch, multiple))
    plan = {"layers": str(layers), "shapes": str([part.tokens.shape for part in todo])}
    F = model.cfg.mlp
    sums_nFF, done = jnp.zeros((len(layers), F, F), jnp.float32), 0
    if saved is not None and as_first([saved.exists()])[0]:
        with contextlib.suppress(ValueError, KeyError):  # damaged: begin anew
            tensors, about = tensorfile.read_header(saved)
            if plan.items() <= about.items():
                sums_nFF, done = jnp.asarray(tensors["sums"].read()), int(about["done"])
    for i in range(done, len(todo)):
        sums_nFF = accumulate(sums_nFF, model.params, *todo[i], model.cfg, layers)
        if saved is not None and (i + 1) % cfg.save_every == 0 and i + 1 < len(todo):
            write(saved, {"sums": sums_nFF}, plan | {"done": str(i + 1)})
        progress(i + 1, len(todo))
    return sums_nFF, sum(int((p.pos >= 0).sum()) for p in todo)


def as_first(answers: Sequence[bool]) -> list[bool]:
    """What the first process of a job answers: one that does other work would wait for ever."""
    if jax.process_count() > 1:
        return multihost_utils.broadcast_one_to_all(np.array(answers)).tolist()
    return list(answers)


def on_host(x: Array) -> np.ndarray:
    """All of an array, also where other processes hold parts of it."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def write(file: Path, arrays: Mapping[str, Array], about: Mapping[str, str]) -> None:
    """One process of a job writes; all have the arrays."""
    host = {name: on_host(x) for name, x in arrays.items()}
    if is_first():
        tensorfile.write(file, tensorfile.entries(host), dict(about))
