"""Causal tracing (Meng et al., 2022): which states, restored, bring back what noise took away.

A prompt is run clean; then with noise on its subject's embeddings, which makes the answer unlikely;
then with the noise and one state restored to what it was in the clean run. The score of a (token,
layer) is the probability of the answer at the prompt's last token, a mean over n samples of noise,
which are the same ones for every state.

    hidden      the residual stream after the layer
    mlp, attn   what the MLP or attention adds, in a window of layers around the layer

Severed (`sever`): besides, the MLPs (or attention) of all layers are held at that token to what
they were under noise, so that what is restored cannot work through them.

What a restored state cannot reach is never run again: layers below it and columns before it are
those of the noisy run, kept as residual streams and as a cache. So the states of a few neighbouring
tokens, at all layers, are rows of one batch, which grows from layer to layer as theirs come.

T columns, L layers, n samples of noise, S columns of a tail, B rows: layer, token, sample.
"""

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array, Cache, Params, Write
from jaxedit.models.cache import init_cache
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import forward, run_blocks
from jaxedit.models.vocabulary import unembed
from jaxedit.sharding import on_mesh_of

Kind = Literal["hidden", "mlp", "attn"]
Sever = Literal["", "mlp", "attn"]
Rule = Literal["gaussian", "uniform", "covariance"]
SITES = {"hidden": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
# where it is written: what comes out of a layer goes into the next, and the layer need not be run
WHERE = {"hidden": "resid_pre", "mlp": "mlp_out", "attn": "attn_out"}
ROWS = 4096  # of a program: more samples of noise are run one after the other


class Traced(NamedTuple):
    """Of one prompt and one kind of state."""

    scores_TL: np.ndarray
    low: float  # with the noise and nothing restored
    high: float  # without noise
    answer: int  # a token


@struct.dataclass
class Runs:
    """What is needed of the clean and of the noisy run."""

    clean: Array  # [L, 1, T, D] at the place that is restored
    noisy: Array  # [L, n, T, D] before each layer
    severed: Array | None  # [L, n, T, D] at the site that is held
    cache: Cache
    answer: Array
    high: Array
    low_n: Array


def trace(
    params: Params,
    tokens_T: np.ndarray,
    noise_nTD: np.ndarray | Array,
    cfg: ModelConfig,
    *,
    kind: Kind = "hidden",
    window: int = 0,
    sever: Sever = "",
    answer: int | None = None,
    rows: int = ROWS,
    together: int = 0,
    groups: int = 0,
) -> Traced:
    """noise_nTD is added to the embeddings: zero at every token that is not the subject's.

    window: layers that are restored together (mlp and attn; 0: a fifth of the depth, as ten of
    GPT-2-XL's 48). answer: a token; by default what the clean run says. together: tokens whose
    states are rows of one program. groups: of layers; what joins the batch within one runs from its
    beginning. More of the one and fewer of the other are fewer programs to compile, and more work;
    0: by what compiling and working cost on the platform.
    """
    at_hand = (2, 12) if jax.default_backend() == "cpu" else (4, 3)
    together, groups = together or at_hand[0], groups or at_hand[1]
    T, n = len(tokens_T), len(noise_nTD)
    if kind not in SITES or sever not in ("", "mlp", "attn"):
        raise ValueError(f"kind {kind!r}, sever {sever!r}: of {', '.join(SITES)}; '', mlp, attn")
    if noise_nTD.shape != (n, T, cfg.embed) or not T:
        raise ValueError(f"noise {list(noise_nTD.shape)}: [n, {T}, {cfg.embed}] for these tokens")
    window = 1 if kind == "hidden" else window or default_window(cfg.layers)
    if not 1 <= window <= cfg.layers:
        raise ValueError(f"a window of {window} layers; the model has {cfg.layers}")
    pad = -T % together  # on the left, so that few lengths occur
    tokens = np.pad(np.asarray(tokens_T, np.int32), (pad, 0))
    pos = np.r_[np.full(pad, -1), np.arange(T)].astype(np.int32)
    noise = jnp.pad(jnp.asarray(noise_nTD, jnp.float32), ((0, 0), (pad, 0), (0, 0)))
    moved = np.flatnonzero(np.asarray(jnp.abs(noise).max((0, 2)) > 0))
    first = int(moved[0]) if len(moved) else T + pad  # before it a restored state is what it was
    each = max(rows // (cfg.layers * together), 1)
    parts = [noise[i : i + each] for i in range(0, n, each)]
    asked = jnp.int32(-1 if answer is None else answer)
    scores, low = np.zeros((T + pad, cfg.layers)), 0.0
    with on_mesh_of(params):
        for part in parts:
            given = (jnp.asarray(tokens), jnp.asarray(pos), part, asked)
            found = noisy(params, *given, cfg, kind, sever)
            share = len(part) / n
            low += share * float(found.low_n.mean())
            scores[:first] += share * float(found.low_n.mean())
            if kind == "hidden":  # after the last layer only the last column is looked at
                scores[first:-1, -1] += share * float(found.low_n.mean())
                scores[-1:, -1] += share * float(found.high) * (first < T + pad)
            for begin in range(first // together * together, T + pad, together):
                got = cells(
                    params,
                    found,
                    jnp.asarray(pos),
                    cfg,
                    begin,
                    kind,
                    window,
                    sever,
                    together,
                    groups,
                )
                at = slice(max(begin, first), begin + together)
                got = np.asarray(got)[at.start - begin :]
                scores[at, : got.shape[1]] += share * got
    return Traced(scores[pad:], low, float(found.high), int(found.answer))


def default_window(layers: int) -> int:
    return max(round(layers * 10 / 48), 1)


def reach(layer: int, window: int, layers: int) -> tuple[int, int]:
    """The layers [first, last) of a window around a layer, as the authors cut it."""
    return max(0, layer - window // 2), min(layers, layer - (-window // 2))


@partial(jax.jit, static_argnames=("cfg", "kind", "sever"))
def noisy(
    params: Params, tokens_T: Array, pos_T: Array, noise_nTD: Array, answer: Array,
    cfg: ModelConfig, kind: str, sever: str,
) -> Runs:  # fmt: skip
    """The clean run, and the noisy ones."""
    n, T, _ = noise_nTD.shape
    last = lambda rows: jnp.full((rows, 1), T - 1)
    clean = forward(params, tokens_T[None], cfg, pos_BT=pos_T[None], reads={WHERE[kind]: None},
                    logits_at=last(1))  # fmt: skip
    p_V = jax.nn.softmax(clean.logits[0, 0])
    answer = jnp.where(answer < 0, p_V.argmax(), answer)
    wide = lambda x: jnp.broadcast_to(x, (n, *x.shape))
    add = Write(jnp.ones((n, T), bool), noise_nTD, add=True)
    reads = {"resid_pre": None} | ({SITES[sever]: None} if sever else {})
    out = forward(params, wide(tokens_T), cfg, pos_BT=wide(pos_T), cache=init_cache(cfg, n, T),
                  writes={"embed": add}, reads=reads, logits_at=last(n))  # fmt: skip
    assert out.cache is not None
    low_n = jax.nn.softmax(out.logits[:, 0])[:, answer]
    held = out.reads[SITES[sever]] if sever else None
    before = out.reads["resid_pre"]
    return Runs(clean.reads[WHERE[kind]], before, held, out.cache, answer, p_V[answer], low_n)


@partial(jax.jit, static_argnames=("cfg", "begin", "kind", "window", "sever", "together", "groups"))
def cells(
    params: Params, runs: Runs, pos_T: Array, cfg: ModelConfig, begin: int, kind: str, window: int,
    sever: str, together: int, groups: int,
) -> Array:  # fmt: skip
    """Scores [together, L] of the states of the columns from `begin` on; of what comes out of
    layers [together, L - 1].
    """
    L, n, T, D = runs.noisy.shape
    S, W = T - begin, min(together, T - begin)
    if kind == "hidden":
        span = [(layer + 1, layer + 2) for layer in range(L - 1)]
    else:
        span = [reach(layer, window, L) for layer in range(L)]
    ends = [round(L * (g + 1) / groups) for g in range(groups)]
    x_lWnSD = jnp.zeros((0, W, n, S, D), runs.noisy.dtype)
    start = 0
    for stop in sorted(set(ends)):
        if stop == start:
            continue
        came = len(x_lWnSD)
        joined = sum(first < stop for first, _ in span)
        if not joined:
            start = stop
            continue
        fresh = jnp.broadcast_to(runs.noisy[start, :, begin:], (joined - came, W, n, S, D))
        x_lWnSD = jnp.concatenate([x_lWnSD, fresh])
        layer = jnp.arange(start, stop)[:, None]
        first, last = (jnp.array(z) for z in zip(*span[:joined], strict=True))
        inside = (first <= layer) & (layer < last)  # [layers, l]
        here = jnp.eye(S, dtype=bool)[:W]  # [W, S]
        every = (joined, W, n)
        wide = lambda x, every=every: jnp.broadcast_to(x, (len(x), *every, *x.shape[4:]))
        rows = lambda x: x.reshape(len(x), -1, *x.shape[4:])
        mask = rows(wide(inside[:, :, None, None, None] & here[:, None]))
        writes: dict[str, Any] = {WHERE[kind]: (Write(mask, runs.clean[start:stop, :, begin:]),)}
        if runs.severed is not None:
            hold = rows(wide(jnp.broadcast_to(here[:, None], (stop - start, 1, W, 1, S))))
            value = rows(wide(runs.severed[start:stop, None, None, :, begin:]))
            writes[SITES[sever]] = (*writes.get(SITES[sever], ()), Write(hold, value))
        B = joined * W * n
        x_BSD, _, _ = run_blocks(
            params, x_lWnSD.reshape(B, S, D), cfg, start=start, stop=stop, writes=writes,
            pos_BT=jnp.broadcast_to(pos_T[begin:], (B, S)),
            cache=prefix(runs.cache, pos_T, begin, start, stop, joined * W) if begin else None,
            keep=False,
        )  # fmt: skip
        x_lWnSD = x_BSD.reshape(joined, W, n, S, D)
        start = stop
    logits = unembed(params, x_lWnSD[:, :, :, -1].reshape(1, -1, D), cfg)[0]
    p = jax.nn.softmax(logits)[:, runs.answer].reshape(len(span), W, n)
    return p.mean(-1).T


def prefix(cache: Cache, pos_T: Array, begin: int, start: int, stop: int, times: int) -> Cache:
    """The noisy run's keys and values of the columns before, for every row, and room for a tail."""
    room = len(pos_T) - begin

    def one(x: Array) -> Array:
        x = jnp.pad(x[start:stop, :, :, :begin], ((0, 0), (0, 0), (0, 0), (0, room), (0, 0)))
        n = x.shape[1]
        wide = jnp.broadcast_to(x[:, None], (x.shape[0], times, *x.shape[1:]))
        return wide.reshape(x.shape[0], times * n, *x.shape[2:])

    n = cache.k.shape[1]
    pos = jnp.pad(pos_T[:begin], (0, room), constant_values=-1)
    return Cache(one(cache.k), one(cache.v), jnp.broadcast_to(pos, (times * n, len(pos))),
                 jnp.int32(begin))  # fmt: skip


def says(params: Params, tokens_T: np.ndarray, cfg: ModelConfig, multiple: int = 8) -> int:
    """The first choice after a prompt, which is padded on the left so that few lengths occur."""
    pad = -len(tokens_T) % multiple
    tokens = jnp.asarray(np.pad(np.asarray(tokens_T, np.int32), (pad, 0)))[None]
    pos = jnp.maximum(jnp.arange(tokens.shape[1]) - pad, -1)[None]
    last = jnp.full((1, 1), tokens.shape[1] - 1)
    return int(forward(params, tokens, cfg, pos_BT=pos, logits_at=last).logits[0, 0].argmax())


def noise(
    rule: Rule, key: Array | int, n: int, subject_T: np.ndarray, cfg: ModelConfig,
    level: float | np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Noise [n, T, D] on the subject's tokens. An integer is a seed of NumPy's, as the authors draw
    it.

    gaussian: independent, of standard deviation `level`. uniform: from -level to level. covariance:
    Gaussian, `level` a root [D, D] of its covariance (`root_of`).
    """
    if rule not in get_args(Rule):
        raise ValueError(f"noise {rule!r}: of {', '.join(get_args(Rule))}")
    shape = (n, int(subject_T.sum()), cfg.embed)
    if isinstance(key, int):
        random = np.random.RandomState(key)
        drawn = random.uniform(-1, 1, shape) if rule == "uniform" else random.randn(*shape)
    elif rule == "uniform":
        drawn = np.asarray(jax.random.uniform(key, shape, minval=-1, maxval=1))
    else:
        drawn = np.asarray(jax.random.normal(key, shape))
    out = np.zeros((n, len(subject_T), cfg.embed))
    out[:, subject_T] = drawn @ np.asarray(level).T if rule == "covariance" else level * drawn
    return out


gaussian = partial(noise, "gaussian")


def root_of(params: Params, cfg: ModelConfig, subjects: list[list[int]]) -> np.ndarray:
    """A root [D, D] of the covariance of the embeddings of all subjects' tokens."""
    some = np.asarray(embeddings(params, cfg, subjects), np.float64)
    values, vectors = np.linalg.eigh(np.cov(some, rowvar=False))
    return vectors * np.sqrt(np.maximum(values, 0))


def spread(params: Params, cfg: ModelConfig, subjects: list[list[int]]) -> float:
    """The standard deviation of the embeddings' entries over all tokens of all subjects, as the
    model scales them.
    """
    return float(embeddings(params, cfg, subjects).std())


def embeddings(params: Params, cfg: ModelConfig, subjects: list[list[int]]) -> Array:
    """The embeddings of all tokens of all subjects, as the model scales them, in float32."""
    some = params["embed"]["w"][jnp.asarray([t for tokens in subjects for t in tokens])]
    return some.astype(jnp.float32) * cfg.embed_scale
