"""A decoder-only transformer as pure functions: read, write, or edit with low rank, at any site, in
one program.

Three arguments carry every method (all of them pytrees: another layer, position or edit is not
another compilation):
`reads` which activations come out, `writes` which are replaced or shifted, `deltas` low-rank
changes of weights, shared or one per row of the batch.

`run_blocks` scans stacked layers [start, stop). Leaves of a cache, and of writes and deltas with
`layers=None`, lead with an axis over the layers that are run.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Cache, Deltas, Output, Params, Reads, Writes, chains
from jaxedit.models.cache import run_unstacked
from jaxedit.models.config import ModelConfig
from jaxedit.models.layers import attention, columns, mlp, norm, rotations
from jaxedit.models.sites import check_names, check_shapes, join, matrices, sites, split, tap
from jaxedit.models.specs import pin
from jaxedit.models.vocabulary import embed, unembed
from jaxedit.sharding import constrain, on_mesh_of

RESIDUAL = ("batch", None, None)


def forward(
    params: Params,
    tokens_BT: Array,
    cfg: ModelConfig,
    *,
    pos_BT: Array | None = None,
    cache: Cache | None = None,
    reads: Reads | None = None,
    writes: Writes | None = None,
    deltas: Deltas | None = None,
    logits_at: Array | None = None,
    remat: bool = False,
) -> Output:
    """Logits [B, T, V], the activations asked for, and the updated cache.

    pos_BT: position of each token, -1 at padding (default: 0… T-1, or on from what the cache
    holds). logits_at [B, P]: columns to compute logits for, instead of all T. remat: recompute
    activations in the backward pass.

    The mesh is that of params. On several hosts every process passes the same, whole batch.
    """
    check_names("read", reads or {}, sites(cfg), cfg)
    check_names("write", writes or {}, sites(cfg), cfg)
    check_names("delta", deltas or {}, matrices(cfg), cfg)
    check_shapes(tokens_BT, pos_BT, cache, cfg)
    with on_mesh_of(params):
        return _forward(
            params,
            tokens_BT,
            cfg,
            pos_BT,
            cache,
            dict(reads or {}),
            chains(writes),
            chains(deltas),
            logits_at,
            remat,
        )


@partial(jax.jit, static_argnames=("cfg", "remat"))
def _forward(
    params: Params,
    tokens_BT: Array,
    cfg: ModelConfig,
    pos_BT: Array | None,
    cache: Cache | None,
    reads: dict,
    writes: dict,
    deltas: dict,
    logits_at: Array | None,
    remat: bool,
) -> Output:
    if not isinstance(params["blocks"], tuple):
        params = pin(params, cfg)
    x_BTD, seen, cache = through(
        params, tokens_BT, cfg, pos_BT, cache, reads, writes, deltas, remat
    )
    if logits_at is not None:
        x_BTD = columns(x_BTD, logits_at)
    return Output(unembed(params, x_BTD, cfg, deltas=deltas), seen, cache)


def hidden(
    params: Params,
    tokens_BT: Array,
    cfg: ModelConfig,
    *,
    pos_BT: Array | None = None,
    deltas: Deltas | None = None,
    remat: bool = False,
    unroll: bool = False,
    plain: bool = False,
) -> Array:
    """What `unembed` makes logits of, [B, T, D]: for losses that do not hold all logits at once.

    plain: as in `run_blocks`. Where gradients of params are wanted on a mesh, the caller pins them
    (`specs.pin`).
    """
    changes = chains(deltas)
    return through(
        params, tokens_BT, cfg, pos_BT, None, {}, {}, changes, remat, unroll=unroll, plain=plain
    )[0]


def through(
    params: Params,
    tokens_BT: Array,
    cfg: ModelConfig,
    pos_BT: Array | None,
    cache: Cache | None,
    reads: dict,
    writes: dict,
    deltas: dict,
    remat: bool,
    unroll: bool = False,
    plain: bool = False,
) -> tuple[Array, dict[str, Array], Cache | None]:
    """Embedding and all blocks."""
    plain = plain or (pos_BT is None and cache is None)
    if pos_BT is None:
        pos_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
        pos_BT = pos_BT if cache is None else pos_BT + cache.pos.max(1, keepdims=True) + 1
    first: dict[str, Array] = {}
    x_BTD = constrain(embed(params, tokens_BT, cfg, pos_BT=pos_BT, deltas=deltas), *RESIDUAL)
    x_BTD = tap("embed", x_BTD, reads, writes, first)
    inner = lambda named: {k: v for k, v in named.items() if k not in ("embed", "head")}
    x_BTD, seen, cache = run_blocks(
        params,
        x_BTD,
        cfg,
        pos_BT=pos_BT,
        cache=cache,
        reads=inner(reads),
        writes=inner(writes),
        deltas=inner(deltas),
        remat=remat,
        plain=plain,
        unroll=unroll,
    )
    return x_BTD, seen | first, cache


def run_blocks(
    params: Params,
    x_BTD: Array,
    cfg: ModelConfig,
    *,
    pos_BT: Array,
    cache: Cache | None = None,
    start: int = 0,
    stop: int | None = None,
    reads: Reads | None = None,
    writes: Writes | None = None,
    deltas: Deltas | None = None,
    remat: bool = False,
    plain: bool = False,
    unroll: bool = False,
    keep: bool = True,
    at_BQ: Array | None = None,
) -> tuple[Array, dict[str, Array], Cache | None]:
    """Scans layers [start, stop): work on layer l need not run the layers below it again.

    plain: promises that there is no cache and that pos_BT counts from 0 in every row, with padding
    only on the right, where nobody reads what comes out: a fused attention then needs no mask.
    unroll: layers one after the other in the program, not in a loop: longer to compile, faster in
    training. keep: the cache comes back with these columns in it. Where gradients are wanted of a
    run that only reads it, say False: a loop that carries the cache of all layers saves it at every
    one of them. at_BQ: the columns of every row that come out, [B, Q, D]; the last layer that runs
    then computes nothing for the others but keys and values, so nothing is read or written.
    """
    stop = cfg.layers if stop is None else stop
    if not 0 <= start <= stop <= cfg.layers:
        raise ValueError(f"layers [{start}, {stop}) of a model with {cfg.layers}")
    reads, writes, deltas = dict(reads or {}), chains(writes), chains(deltas)
    unstacked = isinstance(params["blocks"], tuple)
    if at_BQ is not None and (reads or writes or start == stop or unstacked):
        raise ValueError(
            "at_BQ: of a run of stacked layers, at least one, without reads and writes"
        )
    slot, pos_BS = jnp.int32(0), pos_BT
    if cache is not None:
        slot = cache.end
        pos_BS = jax.lax.dynamic_update_slice_in_dim(
            cache.pos, pos_BT.astype(cache.pos.dtype), slot, 1
        )
    sincos = rotations(cfg.ropes, pos_BT, cfg.rotary_dim) if cfg.rotary_dim else None
    window_L = jnp.asarray(cfg.windows) if any(cfg.windows) else None
    kind_L = jnp.asarray(cfg.rope_kind) if cfg.rope_kind else None

    # leaves on all layers are sliced by the scan, the others picked by the layer's number
    whole = (start, stop) == (0, cfg.layers) and at_BQ is None
    scanned, picked = split(writes), split(deltas)
    # Where only some layers run, weights are picked by number too: slicing the stack inside jit
    # would copy it. (They are then not differentiated efficiently; a method that trains weights
    # runs all layers.)
    xs = (jnp.arange(start, stop), params["blocks"] if whole else None, scanned, picked)

    def one(
        x_BTD: Array, i: Array, p: Params, w: dict, d: dict, store: Any, at_BQ: Array | None = None
    ) -> tuple[Array, dict]:
        found: dict[str, Array] = {}
        x_BTD = block(
            p,
            x_BTD,
            cfg,
            store=store,
            pos_BT=pos_BT,
            pos_BS=pos_BS,
            plain=plain,
            window=None if window_L is None else window_L[i],
            sincos=None if sincos is None else sincos[0 if kind_L is None else kind_L[i]],
            tap=partial(tap, reads=reads, writes=join(w, writes, i), seen=found),
            deltas=join(d, deltas, i),
            at_BQ=at_BQ,
        )
        return x_BTD, found

    def put(old: Array, new: Array, *layer: Array) -> Array:
        zero = jnp.int32(0)
        at = (*layer, zero, zero, slot, zero)
        new = new.astype(old.dtype)[None] if layer else new.astype(old.dtype)
        return jax.lax.dynamic_update_slice(old, new, at)

    if unstacked:  # as `unstack` makes it
        return run_unstacked(one, put, params["blocks"][start:stop], x_BTD, xs, cache, pos_BS)

    def step(carry: tuple, xs: tuple, at_BQ: Array | None = None) -> tuple[tuple, dict[str, Array]]:
        x_BTD, kv = carry
        i, p, w, d = xs
        numbered = lambda c: jax.lax.dynamic_index_in_dim(c, i - start, keepdims=False)
        if p is None:
            p = jax.tree.map(
                lambda z: jax.lax.dynamic_index_in_dim(z, i, keepdims=False), params["blocks"]
            )

        def store(k_BKTH: Array, v_BKTH: Array) -> tuple[Array, Array]:
            nonlocal kv
            if cache is None:
                return k_BKTH, v_BKTH
            if kv is None:
                return put(numbered(cache.k), k_BKTH), put(numbered(cache.v), v_BKTH)
            # in the carry, not the scan's inputs and outputs: XLA then updates the cache in place
            kv = (put(kv[0], k_BKTH, i - start), put(kv[1], v_BKTH, i - start))
            return numbered(kv[0]), numbered(kv[1])

        x_BTD, found = one(x_BTD, i, p, w, d, store, at_BQ)
        return (x_BTD, kv), found

    again = partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    looped = again(step, prevent_cse=False) if remat else step
    first = (cache.k, cache.v) if cache is not None and keep else None
    if at_BQ is not None:
        xs, last = jax.tree.map(lambda z: z[:-1], xs), jax.tree.map(lambda z: z[-1], xs)
    (x_BTD, kv), seen = jax.lax.scan(looped, (x_BTD, first), xs, unroll=unroll)
    if at_BQ is not None:
        (x_BTD, kv), _ = (again(step) if remat else step)((x_BTD, kv), last, at_BQ)
    if cache is None or kv is None:
        return x_BTD, seen, None
    return x_BTD, seen, Cache(*kv, pos=pos_BS, end=cache.end + pos_BT.shape[1])


def block(
    p: Params,
    x_BTD: Array,
    cfg: ModelConfig,
    *,
    tap: Any,
    deltas: Mapping[str, Any],
    at_BQ: Array | None = None,
    **attend: Any,
) -> Array:
    """One layer of the residual stream; at_BQ: of these columns."""
    x_BTD = tap("resid_pre", x_BTD)
    h_BTD = norm(p["norm1"], x_BTD, cfg) if "norm1" in p else x_BTD
    a_BTD = attention(p["attn"], h_BTD, cfg, tap=tap, deltas=deltas, at_BQ=at_BQ, **attend)
    if at_BQ is not None:
        x_BTD, h_BTD = columns(x_BTD, at_BQ), columns(h_BTD, at_BQ)
    a_BTD = tap("attn_out", norm(p["post_norm1"], a_BTD, cfg) if "post_norm1" in p else a_BTD)
    if not cfg.parallel:
        x_BTD = h_BTD = tap("resid_mid", x_BTD + a_BTD)
    elif "norm2" in p:
        h_BTD = x_BTD
    h_BTD = norm(p["norm2"], h_BTD, cfg) if "norm2" in p else h_BTD  # GPT-J: the MLP shares norm1
    m_BTD = mlp(p["mlp"], h_BTD, cfg, tap=tap, deltas=deltas)
    m_BTD = tap("mlp_out", norm(p["post_norm2"], m_BTD, cfg) if "post_norm2" in p else m_BTD)
    x_BTD = x_BTD + m_BTD + a_BTD if cfg.parallel else x_BTD + m_BTD
    return constrain(tap("resid_post", x_BTD), *RESIDUAL)
