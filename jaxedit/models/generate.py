"""Generation: prefill, then one compiled loop over a static cache; writes and deltas hold for every
row as in `forward`.

Rows do not see each other: what a row generates does not depend on the prompts beside it, nor on
their lengths.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, Deltas, Params, Writes, chains
from jaxedit.models.cache import init_cache, unstack
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.sites import check_names, check_shapes, matrices, sites
from jaxedit.models.transformer import _forward
from jaxedit.sharding import constrain, on_mesh_of

UNSTACK = 1 << 32  # bytes of blocks up to which a CPU decodes with its layers unstacked


class Sampling(NamedTuple):
    """How the next token is drawn. Data, so that other settings are not another compilation; only
    the power of two that holds top_k is known to the program.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0


class Generated(NamedTuple):
    tokens_BN: Array  # what follows the prompt, 0 after the end
    length_B: Array  # how many of them come before a stop token


def decode(
    params: Params,
    tokens_BT: Array,
    pos_BT: Array,
    cfg: ModelConfig,
    *,
    steps: int,
    sampling: Sampling | None = None,
    key: Array | None = None,
    stop_ids: Sequence[int] | Array = (),
    writes: Writes | None = None,
    deltas: Deltas | None = None,
) -> Generated:
    """Continues left-padded prompts by up to `steps` tokens; greedy unless `sampling` is given."""
    check_names("write", writes or {}, sites(cfg), cfg)
    check_names("delta", deltas or {}, matrices(cfg), cfg)
    check_shapes(tokens_BT, pos_BT, None, cfg)
    if steps < 1:
        raise ValueError(f"{steps} steps; at least 1")
    if sampling is not None and key is None:
        raise ValueError("sampling needs a key, e.g. jax.random.key(0)")
    stop_ids = jnp.asarray(stop_ids, jnp.int32).reshape(-1)
    with on_mesh_of(params):
        return _decode(
            params,
            tokens_BT,
            pos_BT,
            cfg,
            steps,
            sampling,
            key,
            stop_ids,
            chains(writes),
            chains(deltas),
            contenders(sampling, cfg.vocab),
        )


@partial(jax.jit, static_argnames=("cfg", "steps", "most"))
def _decode(
    params: Params,
    tokens_BT: Array,
    pos_BT: Array,
    cfg: ModelConfig,
    steps: int,
    sampling: Sampling | None,
    key: Array | None,
    stop_ids: Array,
    writes: dict,
    deltas: dict,
    most: int,
) -> Generated:
    B, T = tokens_BT.shape
    later = {
        k: tuple(w for w in (w.after_prompt() for w in ws) if w is not None)
        for k, ws in writes.items()
    }
    later = {k: ws for k, ws in later.items() if ws}
    run = partial(_forward, cfg=cfg, reads={}, deltas=deltas, remat=False)

    def draw(logits_BV: Array, i: Array) -> Array:
        if sampling is None or key is None:
            return logits_BV.argmax(-1).astype(jnp.int32)
        return sample(jax.random.fold_in(key, i), logits_BV, sampling, most)

    last_B1 = jnp.full((B, 1), T - 1, jnp.int32)
    out = run(
        params,
        tokens_BT,
        pos_BT=pos_BT,
        cache=init_cache(cfg, B, T + steps),
        writes=writes,
        logits_at=last_B1,
    )
    token_B = draw(out.logits[:, 0], jnp.int32(0))
    is_stop = lambda token_B: (token_B[:, None] == stop_ids).any(-1)
    done_B = is_stop(token_B)
    tokens_BN = jnp.zeros((B, steps), jnp.int32).at[:, 0].set(jnp.where(done_B, 0, token_B))
    inner, cache = params, out.cache
    if is_small_on_cpu(params):
        inner, cache = unstack(params, cache, cfg)
    state = (
        jnp.int32(1),
        token_B,
        pos_BT[:, -1] + 1,
        cache,
        tokens_BN,
        done_B,
        1 - done_B.astype(jnp.int32),
    )

    def step(state: tuple) -> tuple:
        i, token_B, pos_B, cache, tokens_BN, done_B, length_B = state
        pos_B1 = pos_B[:, None]
        out = run(inner, token_B[:, None], pos_BT=pos_B1, cache=cache, writes=later, logits_at=None)
        token_B = draw(out.logits[:, 0], i)
        done_B = done_B | is_stop(token_B)
        tokens_BN = tokens_BN.at[:, i].set(jnp.where(done_B, 0, token_B))
        length_B = length_B + (~done_B).astype(jnp.int32)
        return i + 1, token_B, pos_B + 1, out.cache, tokens_BN, done_B, length_B

    go_on = lambda state: (state[0] < steps) & ~state[5].all()
    state = jax.lax.while_loop(go_on, step, state)
    # whole on every device: each process of a job turns all of them into text
    return Generated(constrain(state[4], None, None), constrain(state[6], None))


def is_small_on_cpu(params: Params) -> bool:
    """Is a second copy of the weights, for the loop over tokens, worth its memory."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params["blocks"]))
    alone = jax.sharding.get_abstract_mesh().empty
    return jax.default_backend() == "cpu" and alone and size <= UNSTACK


def contenders(s: Sampling | None, vocab: int) -> int:
    """How many of the most likely tokens have to be looked at: a power of two that holds top_k, all
    of them where only top_p limits them, none where nothing does.
    """
    if s is None:
        return 0
    if not all(isinstance(x, int | float) for x in s):
        return vocab  # not known while the program is made
    if 0 < s.top_k < vocab:
        return min(1 << (int(s.top_k) - 1).bit_length(), vocab)
    return vocab if s.top_p < 1 else 0


def sample(key: Array, logits_BV: Array, s: Sampling, most: int | None = None) -> Array:
    """One token per row: temperature, then top-k, then top-p of what is left. Every row has its own
    noise. most: as `contenders` says, by default all; sorting a vocabulary costs far more than a
    few of its tokens.
    """
    logits_BV = logits_BV / s.temperature
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(logits_BV.shape[0]))
    if most == 0:
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
    top_BK, token_BK = jax.lax.top_k(logits_BV, most or logits_BV.shape[-1])
    rank_K = jnp.arange(top_BK.shape[-1])
    keep_BK = jnp.broadcast_to((rank_K < s.top_k) | (s.top_k == 0), top_BK.shape)
    p_BK = jax.nn.softmax(jnp.where(keep_BK, top_BK, -jnp.inf), -1)
    keep_BK &= (jnp.cumsum(p_BK, -1) - p_BK < s.top_p) | (rank_K == 0)
    pick_B = jax.vmap(jax.random.categorical)(keys_B, jnp.where(keep_BK, top_BK, -jnp.inf))
    return jnp.take_along_axis(token_BK, pick_B[:, None], 1)[:, 0].astype(jnp.int32)


def encode(
    tokenizer: Any, texts: Sequence[str], *, multiple: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """tokens [B, T] and positions [B, T], left padded (position -1) to a multiple, so that few
    shapes occur.
    """
    rows = [tokenizer(text)["input_ids"] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise ValueError(f"prompt {text!r} has no tokens; give at least one character")
    T = -(-max(map(len, rows)) // multiple) * multiple
    tokens, pos = np.zeros((len(rows), T), np.int32), np.full((len(rows), T), -1, np.int32)
    for i, row in enumerate(rows):
        tokens[i, T - len(row) :], pos[i, T - len(row) :] = row, np.arange(len(row))
    return tokens, pos


def generate(
    model: Model,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    writes: Writes | None = None,
    deltas: Deltas | None = None,
) -> list[str]:
    """What the model writes after each prompt, without the prompt; temperature 0 is greedy.

    Ends at the model's end-of-text tokens, and where one of the strings `stop` begins. Masks of
    writes speak of the columns of `encode(model.tokenizer, prompts)`.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        return []
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; use jaxedit.models.generate.decode on tokens")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(
            f"{temperature=} {top_k=} {top_p=}: need temperature >= 0, top_k >= 0, 0 < top_p <= 1"
        )
    tokens_BT, pos_BT = encode(model.tokenizer, prompts)
    need, most = int(pos_BT.max()) + 1 + max_new_tokens, model.cfg.max_len
    if model.cfg.learned_pos and need > most:
        raise ValueError(
            f"prompt and {max_new_tokens} new tokens need {need} positions, the model has {most}"
        )
    ids = [model.tokenizer(s, add_special_tokens=False)["input_ids"] for s in stop]
    out = decode(
        model.params,
        jnp.asarray(tokens_BT),
        jnp.asarray(pos_BT),
        model.cfg,
        steps=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p) if temperature else None,
        key=jax.random.key(seed) if temperature else None,
        stop_ids=[*model.cfg.eos_ids, *(i[0] for i in ids if len(i) == 1)],
        writes=writes,
        deltas=deltas,
    )
    tokens_BN, length_B = np.asarray(out.tokens_BN), np.asarray(out.length_B)
    texts = [model.tokenizer.decode(t[:n]) for t, n in zip(tokens_BN, length_B, strict=True)]
    ends = lambda text: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))
    return [text[: ends(text)] for text in texts]
