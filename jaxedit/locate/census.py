"""A census of neurons (Voita, Ferrando, Nalmpantis, 2024): dead ones, detectors of tokens and
n-grams, and neurons of positions, from what fires where in a corpus.

A neuron is active where it (mlp_key) is above a threshold: zero for ReLU; GELU and SiLU have no
zero, so the threshold is a choice, and what depends on it can be told for several at once.

A pass over windows of text counts; all numbers are integers and add up whatever the batches. What
each token brings about takes V counts for every neuron, so it is counted for some layers at a time,
as many as fit, a pass for each such part.

Shapes: B windows, T columns, L layers, l layers of a part, F neurons, V vocab, M chosen neurons.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.locate.passes import Batch, one_pass
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward
from jaxedit.progress import Progress, quiet
from jaxedit.sharding import on_mesh_of

Corpus = Callable[[], Iterable[Batch]]  # begins anew at every call
POSITIONAL = 0.05  # nats
COVER, TRIGGERS = 0.95, 5  # of activations, by so many tokens


@struct.dataclass
class Counts:
    """int32 on the device: of less than two thousand million tokens."""

    active: Array  # [L, F, T] by position
    seen: Array  # [T]
    largest: Array  # [L, F] the highest activation, float32
    by_token: Array  # [l, V, F], of the layers of this part
    tokens: Array  # [V]


class Census(NamedTuple):
    """The counts of a corpus, on the host; token counts of layers that were not asked for: none."""

    active_LFT: np.ndarray
    seen_T: np.ndarray
    largest_LF: np.ndarray
    by_token: dict[int, np.ndarray]  # layer -> [V, F]
    tokens_V: np.ndarray

    @property
    def frequency_LF(self) -> np.ndarray:
        return self.active_LFT.sum(-1) / max(int(self.seen_T.sum()), 1)


def census(
    params: Params, cfg: ModelConfig, corpus: Corpus, columns: int, *, threshold: float = 0.0,
    layers: Sequence[int] | None = None, memory: float = 2e9, ignore: Sequence[int] = (),
    folder: str | Path | None = None, progress: Progress = quiet, total: int = 0,
) -> Census:  # fmt: skip
    """Counts of all windows of `columns` tokens.

    layers: whose activations are counted by token (all by default; () for none), in as many passes
    as `memory` bytes ask for. ignore: tokens that do not count by token, as a BOS. folder: where a
    pass is saved, and goes on if the model, and the batches that were counted, are the same.
    """
    chosen = range(cfg.layers) if layers is None else layers
    if bad := [i for i in chosen if not 0 <= i < cfg.layers]:
        raise ValueError(f"layer {bad[0]}: the model has {cfg.layers}")
    most = max(int(memory // (4 * cfg.vocab * cfg.mlp)), 1)
    parts = [tuple(chosen[i : i + most]) for i in range(0, len(chosen), most)] or [()]
    found: dict[int, np.ndarray] = {}
    for p, part in enumerate(parts):
        file = None if folder is None else Path(folder) / f"census-{p}.safetensors"
        step = lambda done, n, p=p: progress(p * n + done, len(parts) * n)
        counts = counted(params, cfg, corpus, columns, part, threshold, ignore, file, step, total)
        found |= {layer: np.asarray(counts.by_token[i]) for i, layer in enumerate(part)}
    active, seen, largest = map(np.asarray, (counts.active, counts.seen, counts.largest))
    return Census(active, seen, largest, found, np.asarray(counts.tokens))


def counted(
    params: Params, cfg: ModelConfig, corpus: Corpus, columns: int, part: tuple[int, ...],
    threshold: float, ignore: Sequence[int], file: Path | None, progress: Progress, total: int,
) -> Counts:  # fmt: skip
    zeros = partial(jnp.zeros, dtype=jnp.int32)
    L, F, V = cfg.layers, cfg.mlp, cfg.vocab
    start = Counts(zeros((L, F, columns)), zeros(columns), jnp.full((L, F), -jnp.inf),
                   zeros((len(part), V, F)), zeros(V))  # fmt: skip
    kept = jnp.ones(V, bool).at[jnp.asarray(list(ignore), jnp.int32)].set(False)

    def more(counts: Counts, batch: Batch) -> Counts:
        tokens_BT, pos_BT = batch
        if tokens_BT.shape[1] > columns or int(np.max(pos_BT)) >= columns:
            raise ValueError(f"a window of {tokens_BT.shape[1]} tokens; columns={columns}")
        with on_mesh_of(params):
            return add(params, counts, jnp.asarray(tokens_BT), jnp.asarray(pos_BT),
                       jnp.float32(threshold), kept, cfg, part)  # fmt: skip

    return one_pass(
        start, corpus(), more, params=params, what="a census", file=file, progress=progress,
        settings=f"{threshold} {list(part)} {list(ignore)} {columns}", total=total,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("cfg", "part"), donate_argnames="old")
def add(
    params: Params, old: Counts, tokens_BT: Array, pos_BT: Array, threshold: Array, kept_V: Array,
    cfg: ModelConfig, part: tuple[int, ...],
) -> Counts:  # fmt: skip
    B, T = tokens_BT.shape
    first_B1 = jnp.zeros((B, 1), jnp.int32)
    out = forward(
        params, tokens_BT, cfg, pos_BT=pos_BT, reads={"mlp_key": None}, logits_at=first_B1
    )
    act_LBTF = out.reads["mlp_key"].astype(jnp.float32)
    real_BT = pos_BT >= 0
    on_LBTF = ((act_LBTF > threshold) & real_BT[None, :, :, None]).astype(jnp.int32)
    columns, flat = old.seen.shape[0], jnp.where(real_BT, pos_BT, 0).reshape(-1)
    by_pos = jax.vmap(lambda on: jax.ops.segment_sum(on.reshape(B * T, -1), flat, columns))
    real = real_BT.astype(jnp.int32).reshape(-1)
    counts = (real_BT & kept_V[tokens_BT]).astype(jnp.int32)
    token = tokens_BT.reshape(-1)
    by_token = [
        jax.ops.segment_sum((on_LBTF[i] * counts[..., None]).reshape(B * T, -1), token, cfg.vocab)
        for i in part
    ]
    masked = jnp.where(real_BT[None, :, :, None], act_LBTF, -jnp.inf)
    return Counts(
        active=old.active + by_pos(on_LBTF).swapaxes(1, 2),
        seen=old.seen + jax.ops.segment_sum(real, flat, columns),
        largest=jnp.maximum(old.largest, masked.max((1, 2))),
        by_token=old.by_token + jnp.stack(by_token) if part else old.by_token,
        tokens=old.tokens + jax.ops.segment_sum(counts.reshape(-1), token, cfg.vocab),
    )


def dead(found: Census, thresholds: Sequence[float] = (0.0,)) -> dict[float, np.ndarray]:
    """Neurons that are never above each threshold, [L, F]."""
    return {t: found.largest_LF <= t for t in thresholds}


class Detector(NamedTuple):
    layer: int
    neuron: int
    tokens: tuple[int, ...]  # which it fires at, the most frequent first


def detectors(
    found: Census, *, most: int = TRIGGERS, cover: float = COVER, fires: float = COVER
) -> list[Detector]:
    """Neurons that (1) at most `most` tokens cover, (2) of which those count at whose occurrences
    it fires in a share `fires` at least, and that (3) still explain a share `cover` of it.
    """
    out = []
    for layer, by_VF in found.by_token.items():
        total_F = by_VF.sum(0)
        few = min(most, len(by_VF))
        top_KF = np.argpartition(-by_VF, few - 1, 0)[:few]
        some_KF = np.take_along_axis(by_VF, top_KF, 0)
        always_KF = some_KF >= fires * np.maximum(found.tokens_V[top_KF], 1)
        kept_KF = np.where(always_KF & (some_KF > 0), some_KF, 0)
        is_one_F = (total_F > 0) & (kept_KF.sum(0) >= cover * total_F)
        for f in np.flatnonzero(is_one_F):
            order = np.argsort(-kept_KF[:, f], kind="stable")
            tokens = tuple(int(top_KF[k, f]) for k in order if kept_KF[k, f])
            out.append(Detector(layer, int(f), tokens))
    return out


def covered(count_X: np.ndarray | Sequence[int], cover: float = COVER) -> int:
    """The least number of n-grams that explain a share of a neuron's activations."""
    count = np.sort(np.asarray(count_X))[::-1]
    if not count.sum():
        return 0
    return int(np.searchsorted(np.cumsum(count), cover * count.sum() - 1e-9) + 1)


def ngrams(
    params: Params, cfg: ModelConfig, corpus: Corpus, places: Sequence[tuple[int, int]], n: int,
    *, threshold: float = 0.0,
) -> list[Counter[tuple[int, ...]]]:  # fmt: skip
    """Of each chosen neuron, the n-grams that end where it is active, and how often."""
    if n < 1:
        raise ValueError(f"{n}-grams: of one token at least")
    layer_M, unit_M = (jnp.asarray(x, jnp.int32) for x in zip(*places, strict=True))
    out: list[Counter[tuple[int, ...]]] = [Counter() for _ in places]
    for tokens_BT, pos_BT in corpus():
        with on_mesh_of(params):
            given = (jnp.asarray(tokens_BT), jnp.asarray(pos_BT))
            act_MBT = np.asarray(chosen(params, *given, layer_M, unit_M, cfg))
        on_MBT = (act_MBT > threshold) & (np.asarray(pos_BT) >= n - 1)
        for m, b, t in np.argwhere(on_MBT):
            out[m][tuple(int(x) for x in tokens_BT[b, t - n + 1 : t + 1])] += 1
    return out


@partial(jax.jit, static_argnames="cfg")
def chosen(
    params: Params, tokens_BT: Array, pos_BT: Array, layer_M: Array, unit_M: Array, cfg: ModelConfig
) -> Array:
    first_B1 = jnp.zeros((len(tokens_BT), 1), jnp.int32)
    out = forward(
        params, tokens_BT, cfg, pos_BT=pos_BT, reads={"mlp_key": None}, logits_at=first_B1
    )
    return out.reads["mlp_key"][layer_M, :, :, unit_M].astype(jnp.float32)


def information(active_LFT: np.ndarray, seen_T: np.ndarray) -> np.ndarray:
    """Mutual information of being active and of the position, all positions alike, in nats."""
    f = active_LFT / np.maximum(seen_T, 1)
    f = f[..., seen_T > 0].astype(np.float64)
    mean = f.mean(-1, keepdims=True)
    ratio = lambda p, q: np.where(p > 0, p, 1) / np.where((p > 0) & (q > 0), q, 1)
    part = lambda p, q: p * np.log(ratio(p, q))
    return (part(f, mean) + part(1 - f, 1 - mean)).mean(-1)


class Positional(NamedTuple):
    layer: int
    neuron: int
    information: float
    kind: str  # oscillatory, both extremes, one extreme, other
    strong: bool  # almost always active at some positions, almost never at others


def positional(found: Census, least: float = POSITIONAL) -> list[Positional]:
    """Neurons whose activity depends on the position. The kind is ours: the frequency by position,
    smoothed over a sixteenth of the window, crosses the middle of its range once (one extreme),
    twice (both extremes) or four times and more (oscillatory). strong: smoothed frequencies of
    above 0.9 and below 0.1.
    """
    info_LF = information(found.active_LFT, found.seen_T)
    out = []
    for layer, f in np.argwhere(info_LF > least):
        seen = found.seen_T > 0
        rate = found.active_LFT[layer, f][seen] / found.seen_T[seen]
        width = max(len(rate) // 16, 1)
        smooth = np.convolve(rate, np.ones(width) / width, "valid")
        above = smooth > (smooth.max() + smooth.min()) / 2
        turns = int((above[1:] != above[:-1]).sum())
        kind = "oscillatory" if turns >= 4 else {1: "one extreme", 2: "both extremes"}.get(turns)
        strong = bool(smooth.max() > 0.9 and smooth.min() < 0.1)
        out.append(
            Positional(int(layer), int(f), float(info_LF[layer, f]), kind or "other", strong)
        )
    return out
