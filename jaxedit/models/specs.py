"""One table of weights per architecture: the source of shapes, initialisation, shardings and
counts.

Blocks are stacked on a leading layer axis. An optional weight (bias, gate, norm) is there or not;
the forward pass reads its presence off the tree.
"""

import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from jaxedit import sharding
from jaxedit.base import Params
from jaxedit.models.config import ModelConfig


class Spec(NamedTuple):
    """One weight: its shape, what each axis is called, how it starts, into how many pieces each
    axis may be cut.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "normal"  # "normal" (0.02) | "ones" | "zeros"
    parts: tuple[int, ...] = ()  # heads are cut whole; () = shape


def specs(cfg: ModelConfig) -> dict[str, Spec]:
    """path ("blocks/mlp/down/w") -> Spec, for every weight of the architecture."""
    L, D, F, V = cfg.layers, cfg.embed, cfg.mlp, cfg.vocab
    N, K, H = cfg.heads, cfg.kv_heads, cfg.head_dim
    out: dict[str, Spec] = {"embed/w": Spec((V, D), ("vocab", "embed"))}
    if cfg.learned_pos:
        out["pos/w"] = Spec((cfg.max_len, D), (None, "embed"))

    def matrix(name: str, i: tuple[str, int], o: tuple[str, int], bias: bool, cut: int = 0) -> None:
        (i_name, I), (o_name, O) = i, o
        parts = {"heads": cut}
        out[f"blocks/{name}/w"] = Spec(
            (L, I, O),
            ("layer", i_name, o_name),
            "normal",
            (L, parts.get(i_name, I), parts.get(o_name, O)),
        )
        if bias:
            out[f"blocks/{name}/b"] = Spec(
                (L, O), ("layer", o_name), "zeros", (L, parts.get(o_name, O))
            )

    def norm(path: str, size: int, block: bool = True) -> None:
        lead, axis = ((L,), ("layer",)) if block else ((), ())
        start = "zeros" if cfg.norm == "rms1p" else "ones"
        out[f"{path}/w"] = Spec((*lead, size), (*axis, None), start)
        if cfg.norm == "layer":
            out[f"{path}/b"] = Spec((*lead, size), (*axis, None), "zeros")

    d, mlp = ("embed", D), ("mlp", F)
    for name, n in (("q", N), ("k", K), ("v", K)):
        matrix(f"attn/{name}", d, ("heads", n * H), cfg.qkv_bias, cut=n)
    matrix("attn/o", ("heads", N * H), d, cfg.out_bias, cut=N)
    if cfg.qk_norm:
        full = cfg.qk_norm == "full"
        norm("blocks/attn/q_norm", N * H if full else H)
        norm("blocks/attn/k_norm", K * H if full else H)
    if cfg.gated:
        matrix("mlp/gate", d, mlp, cfg.mlp_bias)
    matrix("mlp/up", d, mlp, cfg.mlp_bias)
    matrix("mlp/down", mlp, d, cfg.mlp_bias)
    if cfg.pre_norm:
        norm("blocks/norm1", D)
        if not cfg.shared_norm:
            norm("blocks/norm2", D)
    if cfg.post_norm:
        norm("blocks/post_norm1", D)
        norm("blocks/post_norm2", D)
    norm("norm", D, block=False)
    if not cfg.tied:
        out["head/w"] = Spec((D, V), ("embed", "vocab"))
        if cfg.head_bias:
            out["head/b"] = Spec((V,), ("vocab",), "zeros")
    return out


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(flat, sep="/")


def flatten(params: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def shardings(cfg: ModelConfig, mesh: Mesh) -> dict[str, jax.sharding.NamedSharding]:
    """path -> where the weight lies on the mesh."""
    return {k: sharding.place(s.axes, s.parts or s.shape, mesh) for k, s in specs(cfg).items()}


def pin(params: Params, cfg: ModelConfig) -> Params:
    """The same weights, held where the table puts them on the current mesh; their gradients then
    end up there too, not whole on every device.
    """
    table = specs(cfg)
    hold = lambda s, x: sharding.constrain(x, *s.axes, parts=s.parts)
    return nest({k: hold(table[k], x) if k in table else x for k, x in flatten(params).items()})


def abstract(cfg: ModelConfig, dtype: Any = "float32", mesh: Mesh | None = None) -> Params:
    """The parameter tree without its numbers, e.g. as the target of a checkpoint's restore."""
    where = shardings(cfg, mesh) if mesh else {}
    make = lambda k, s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype), sharding=where.get(k))
    return nest({k: make(k, s) for k, s in specs(cfg).items()})


def count(cfg: ModelConfig) -> int:
    """How many parameters."""
    return sum(int(np.prod(s.shape)) for s in specs(cfg).values())


def init(
    key: jax.Array, cfg: ModelConfig, dtype: Any = "float32", mesh: Mesh | None = None
) -> Params:
    """Random parameters, made where they will lie. A weight depends on the key and its own path
    alone.
    """
    table = specs(cfg)
    where = nest(shardings(cfg, mesh)) if mesh else None

    @partial(jax.jit, out_shardings=where)
    def make(key: jax.Array) -> Params:
        def leaf(path: str, s: Spec) -> jax.Array:
            if s.init != "normal":
                return jnp.full(s.shape, float(s.init == "ones"), dtype)
            k = jax.random.fold_in(key, zlib.crc32(path.encode()))
            return (0.02 * jax.random.normal(k, s.shape)).astype(dtype)

        return nest({path: leaf(path, s) for path, s in table.items()})

    return make(key)


def check(params: Params, cfg: ModelConfig) -> None:
    """Raises where params are not the tree that cfg describes."""
    have, want = {k: tuple(x.shape) for k, x in flatten(params).items()}, specs(cfg)
    for path in sorted(have.keys() | want.keys()):
        if path not in have:
            raise ValueError(f"params have no {path!r}, which the {cfg.family} config asks for")
        if path not in want:
            raise ValueError(f"params have {path!r}, which the {cfg.family} config does not know")
        if have[path] != want[path].shape:
            raise ValueError(f"{path!r} has shape {have[path]}, the config says {want[path].shape}")
