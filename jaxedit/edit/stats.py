"""Second moments of keys, E[k kᵀ], of all wanted layers in one pass over text.

    stats = collect(model, StatsConfig(text=Source(("texts/",))), layers=(13, 14, 15))
    stats.moment(13)                                     [F, F], float32

A key is the input of mlp/down at a token; padding is left out. The sums are kept in a folder whose
name comes from the weights, the text and how it was read, a file for each layer; a pass that was
stopped goes on from its last part, and ends with the same bits.
"""

import contextlib
import dataclasses
import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import tensorfile
from jaxedit.base import Array, Params
from jaxedit.checksum import checksum
from jaxedit.data.documents import HUB, Document, Source, digest, read
from jaxedit.data.requests import bucket
from jaxedit.edit import solve
from jaxedit.edit.solve import Factored
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.transformer import run_blocks
from jaxedit.models.vocabulary import embed
from jaxedit.progress import Progress, is_first, quiet
from jaxedit.sharding import constrain, mesh_of, on_mesh_of

VERSION = 1  # of what is computed; another one begins anew
SITE = "mlp_key"
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
        if self.folder is None:
            return solve.null_space(self.moment(layer), threshold)
        file = self.folder / f"null.{layer}.{threshold:g}.safetensors"
        if not file.exists():
            free_FF, count = solve.null_space(self.moment(layer), threshold)
            write(file, {"free": free_FF}, {"count": str(count)})
        tensors, about = tensorfile.read_header(file)
        return jnp.asarray(tensors["free"].read()), int(about["count"])


def need(stats: Stats | None, layers: Sequence[int]) -> Stats:
    """The statistics, if there are those that a method needs."""
    if stats is None:
        raise ValueError(
            f"this method needs the second moments of layers {', '.join(map(str, layers))}: "
            "give stats (edit.stats.collect)"
        )
    for layer in layers:
        stats.moment(layer)
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
    key = {
        "version": VERSION, "base": checksum(model.params), "dtype": model.cfg.dtype, "site": SITE,
        "text": identity(cfg.text), "documents": cfg.documents, "length": cfg.length,
    }  # fmt: skip
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(cfg.folder).expanduser() if cfg.folder else Path(home, "jaxedit", "stats")
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = root / f"{model.cfg.family}-{name}"
    missing = tuple(sorted(i for i in set(layers) if not (folder / file_name(i)).exists()))
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        rows = tokenise(model, cfg)
        sums_nFF, count = add_up(model, rows, missing, cfg, folder / "part.safetensors", progress)
        for layer, sum_FF in zip(missing, sums_nFF, strict=True):
            about = {k: str(v) for k, v in key.items()} | {"layer": str(layer), "count": str(count)}
            write(folder / file_name(layer), {"sum": sum_FF}, about)
        if is_first():
            (folder / "part.safetensors").unlink(missing_ok=True)
    return load(folder, layers)


def of_tokens(model: Model, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Stats:
    """The second moments of these layers over rows of tokens, in memory."""
    sums_nFF, count = add_up(model, rows, tuple(layers), StatsConfig(), None, quiet)
    moments = {i: sum_FF / count for i, sum_FF in zip(layers, sums_nFF, strict=True)}
    return Stats(moments, count)


def file_name(layer: int) -> str:
    return f"{SITE}.{layer}.safetensors"


def load(source: str | os.PathLike, layers: Sequence[int]) -> Stats:
    """Second moments from a folder that `collect` filled, or of ROME's published .npz files (or one
    such file).
    """
    path = Path(source).expanduser()
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    published = {
        int(m[1]): f for f in files if f.suffix == ".npz" and (m := PUBLISHED.search(f.name))
    }
    moments: dict[int, Array] = {}
    counts: set[int] = set()
    about: dict[str, str] = {}
    for layer in layers:
        file = path / file_name(layer)
        if path.is_dir() and file.exists():
            tensors, about = tensorfile.read_header(file)
            count = int(about["count"])
            moments[layer] = jnp.asarray(tensors["sum"].read()) / count
        elif layer in published:
            moments[layer], count = read_published(published[layer])
            about = {"text": published[layer].name}
        else:
            raise ValueError(f"{path}: no second moment of layer {layer} (no {file.name}, no .npz)")
        counts.add(count)
    if len(counts) > 1:
        raise ValueError(f"{path}: the layers' moments are of different texts: {sorted(counts)}")
    about = {k: v for k, v in about.items() if k != "layer"}
    return Stats(moments, counts.pop(), about, path if path.is_dir() else None)


def read_published(file: Path) -> tuple[Array, int]:
    """A sum of k kᵀ and a count, as ROME's authors save them."""
    with np.load(file, allow_pickle=False) as arrays:
        if "mom2.mom2" not in arrays:
            raise ValueError(f"{file}: no array mom2.mom2; there are {', '.join(arrays.files)}")
        count = int(arrays["mom2.count"])
        return jnp.asarray(arrays["mom2.mom2"].astype(np.float32) / np.float32(count)), count


def identity(source: Source) -> list[str]:
    """A name for text: its contents, and the name of a dataset of the hub, which is not read."""
    one = lambda path: (
        path if path.startswith(HUB) else digest(dataclasses.replace(source, paths=(path,)))
    )
    return [source.field, source.document, *map(one, source.paths)]


def tokenise(model: Model, cfg: StatsConfig) -> list[list[int]]:
    """The chosen documents, cut to cfg.length tokens."""
    found = (d for d in read(cfg.text) if isinstance(d, Document))
    chosen = heapq.nsmallest(cfg.documents, found, key=lambda d: (d.hash, d.text))
    if not chosen:
        raise ValueError("the text is empty: no documents")
    most = min(cfg.length, model.cfg.max_len) if model.cfg.learned_pos else cfg.length
    rows: list[list[int]] = []
    for at in range(0, len(chosen), 1000):
        texts = [d.text for d in chosen[at : at + 1000]]
        ids = model.tokenizer(
            texts, truncation=True, max_length=most, return_attention_mask=False, verbose=False
        )["input_ids"]
        rows += [row for row in ids if row]
    return rows


class Part(NamedTuple):
    """One forward pass: tokens and positions [B, T]."""

    tokens: np.ndarray
    pos: np.ndarray


def parts(rows: Sequence[Sequence[int]], batch: int, multiple: int) -> Iterator[Part]:
    """Rows of like length together; few shapes."""
    order = sorted(rows, key=len)
    at = 0
    while at < len(order):
        T = bucket(len(order[at]))
        B = max(batch // T // multiple, 1) * multiple
        same = order[at : at + B]
        same = [row for row in same if bucket(len(row)) == T]
        tokens, pos = np.zeros((B, T), np.int32), np.full((B, T), -1, np.int32)
        for b, row in enumerate(same):
            tokens[b, : len(row)], pos[b, : len(row)] = row, np.arange(len(row))
        yield Part(tokens, pos)
        at += len(same)


def add_up(
    model: Model,
    rows: Sequence[Sequence[int]],
    layers: tuple[int, ...],
    cfg: StatsConfig,
    saved: Path | None,
    progress: Progress,
) -> tuple[Array, int]:
    """Sums of k kᵀ [n, F, F] and the number of tokens; goes on from `saved`, if that is there."""
    mesh = mesh_of(model.params)
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    todo = list(parts(rows, cfg.batch, multiple))
    F = model.cfg.mlp
    sums_nFF, done = jnp.zeros((len(layers), F, F), jnp.float32), 0
    if saved is not None and saved.exists():
        with contextlib.suppress(ValueError):  # damaged, or of other layers: begin anew
            tensors, about = tensorfile.read_header(saved)
            if about.get("layers") == json.dumps(layers) and about.get("parts") == str(len(todo)):
                sums_nFF, done = jnp.asarray(tensors["sums"].read()), int(about["done"])
    for i in range(done, len(todo)):
        sums_nFF = accumulate(sums_nFF, model.params, *todo[i], model.cfg, layers)
        if saved is not None and (i + 1) % cfg.save_every == 0 and i + 1 < len(todo):
            note = {"layers": json.dumps(layers), "parts": str(len(todo)), "done": str(i + 1)}
            write(saved, {"sums": sums_nFF}, note)
        progress(i + 1, len(todo))
    return sums_nFF, sum(int((p.pos >= 0).sum()) for p in todo)


def accumulate(
    sums_nFF: Array,
    params: Params,
    tokens_BT: np.ndarray,
    pos_BT: np.ndarray,
    cfg: ModelConfig,
    layers: tuple[int, ...],
) -> Array:
    with on_mesh_of(params):
        return _accumulate(sums_nFF, params, tokens_BT, pos_BT, cfg, layers)


@partial(jax.jit, static_argnames=("cfg", "layers"), donate_argnums=0)
def _accumulate(
    sums_nFF: Array,
    params: Params,
    tokens_BT: Array,
    pos_BT: Array,
    cfg: ModelConfig,
    layers: tuple[int, ...],
) -> Array:
    """Adds the keys of one batch, in float32; only one layer's keys exist at a time."""
    tokens_BT, pos_BT = (constrain(x, "batch", None) for x in (tokens_BT, pos_BT))
    x_BTD = embed(params, tokens_BT, cfg, pos_BT=pos_BT)
    start, out = 0, []
    for n, layer in enumerate(layers):
        through = partial(run_blocks, params, cfg=cfg, pos_BT=pos_BT)
        x_BTD, _, _ = through(x_BTD=x_BTD, start=start, stop=layer)
        x_BTD, seen, _ = through(x_BTD=x_BTD, start=layer, stop=layer + 1, reads={SITE: None})
        start = layer + 1
        keys_BTF = jnp.where((pos_BT >= 0)[..., None], seen[SITE][0], 0)
        keys_MF = keys_BTF.reshape(-1, keys_BTF.shape[-1])
        new_FF = jnp.matmul(
            keys_MF.T, keys_MF, precision="highest", preferred_element_type=jnp.float32
        )
        out.append(constrain(sums_nFF[n] + new_FF, "mlp", None))
    return jnp.stack(out)


def write(file: Path, arrays: Mapping[str, Array], about: Mapping[str, str]) -> None:
    """One process of a job writes; all have the arrays."""
    host = {name: np.asarray(x) for name, x in arrays.items()}
    if is_first():
        tensorfile.write(file, tensorfile.entries(host), dict(about))
