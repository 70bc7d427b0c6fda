"""Which memory a prompt is about, if any: memories, and a classifier of their scope.

A scope is an encoder (blocks of a model, with changes of their own), a projection and a distance:

    p(x in the scope of m) = exp(-scale · d(e(x), e(m)))        d = |e - e'|², or 1 - cos(e, e')

A router chooses the most likely of its memories, and none where that is not likely enough.

Shapes: B prompts, T columns, M memories, P tokens of a memory, D width of the encoder, H of what
is made of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array, Params
from jaxedit.models.config import ModelConfig
from jaxedit.models.transformer import run_blocks
from jaxedit.models.vocabulary import embed
from jaxedit.sharding import constrain

Distance = Literal["euclidean", "cosine"]
Pool = Literal["mean", "last"]


@struct.dataclass
class Scope:
    """Says how likely a prompt is about a memory."""

    w_DH: Array
    scale: Array  # []
    deltas: Mapping[str, Any]  # of the encoder
    blocks: int = struct.field(pytree_node=False)  # of the encoder that run; 0: all
    pool: Pool = struct.field(pytree_node=False)
    distance: Distance = struct.field(pytree_node=False)
    encoder: str = struct.field(pytree_node=False)  # a model's folder; "": the edited model

    def __call__(self, params: Params, tokens_BT: Array, pos_BT: Array, cfg: ModelConfig) -> Array:
        """Prompts as the encoder sees them, projected, [B, H] float32.

        Every token's state is brought to one length first, so that none outweighs the others.
        """
        tokens_BT, pos_BT = (constrain(jnp.asarray(x), "batch", None) for x in (tokens_BT, pos_BT))
        x_BTD = embed(params, tokens_BT, cfg, pos_BT=pos_BT)
        x_BTD, _, _ = run_blocks(
            params, x_BTD, cfg, pos_BT=pos_BT, stop=self.blocks or None, deltas=self.deltas,
            remat=True,
        )  # fmt: skip
        x_BTD = x_BTD.astype(jnp.float32)
        x_BTD = x_BTD * jax.lax.rsqrt(jnp.square(x_BTD).mean(-1, keepdims=True) + 1e-6)
        if self.pool == "last":
            x_BD = jnp.take_along_axis(x_BTD, pos_BT.argmax(1)[:, None, None], 1)[:, 0]
        else:
            real_BT1 = (pos_BT >= 0)[..., None].astype(jnp.float32)
            x_BD = (x_BTD * real_BT1).sum(1) / jnp.maximum(real_BT1.sum(1), 1)
        e_BH = jnp.matmul(x_BD, self.w_DH, precision="highest")
        if self.distance == "cosine":
            e_BH = e_BH * jax.lax.rsqrt(jnp.square(e_BH).sum(-1, keepdims=True) + 1e-12)
        return e_BH

    def log_probability(self, e_BH: Array, keys_MH: Array) -> Array:
        """Of every prompt being about every memory, [B, M]."""
        dot_BM = jnp.matmul(e_BH, keys_MH.T, precision="highest")
        if self.distance == "cosine":
            d_BM = 1 - dot_BM
        else:
            square = lambda x: jnp.square(x).sum(-1)
            d_BM = square(e_BH)[:, None] + square(keys_MH) - 2 * dot_BM
        return -self.scale * jnp.maximum(d_BM, 0)


@struct.dataclass
class Router:
    """Memories, and what chooses one of them for a prompt."""

    scope: Scope
    keys_MH: Array
    tokens_MP: Array  # int32: what stands before a prompt that a memory is about; -1 beyond
    threshold: float = struct.field(pytree_node=False, default=0.5)
    # Rows carry the likeliest memory, however likely: what is said is mixed in that proportion.
    soft: bool = struct.field(pytree_node=False, default=False)

    def __len__(self) -> int:
        return self.keys_MH.shape[0]

    def likeliest(self, e_BH: Array) -> tuple[Array, Array]:
        """The memory that each prompt is likeliest about (of equals the latest), and how likely."""
        if not len(self):
            return jnp.full(e_BH.shape[0], -1), jnp.zeros(e_BH.shape[0])
        p_BM = jnp.exp(self.scope.log_probability(e_BH, jnp.asarray(self.keys_MH)))
        return len(self) - 1 - p_BM[:, ::-1].argmax(-1), p_BM.max(-1)

    def __call__(self, e_BH: Array) -> Array:
        """The memory that each prompt is about, -1: none."""
        best_B, p_B = self.likeliest(e_BH)
        return jnp.where(p_B >= self.threshold, best_B, -1)

    def prefix(self, i: int) -> tuple[int, ...]:
        """The tokens of memory i."""
        return tuple(t for t in np.asarray(self.tokens_MP)[i].tolist() if t >= 0)

    @property
    def all_tokens(self) -> tuple[int, ...]:
        """Of all memories."""
        return tuple(t for i in range(len(self)) for t in self.prefix(i))

    def take(self, rows: Any) -> "Router":
        """Some of the memories."""
        return dataclasses.replace(self, keys_MH=self.keys_MH[rows], tokens_MP=self.tokens_MP[rows])


def join(routers: Sequence[Router]) -> Router:
    """The memories of all, in order; they must have the same scope."""
    first, *others = routers
    for other in others:
        xs, x = jax.tree.flatten(first.scope)
        ys, y = jax.tree.flatten(other.scope)
        if str(x) != str(y) or not all(map(np.array_equal, xs, ys)):
            raise ValueError("memories of different scope classifiers do not go together")
    P = max(r.tokens_MP.shape[1] for r in routers)
    wide = lambda x: np.pad(x, [(0, 0), (0, P - x.shape[1])], constant_values=-1)
    keys: Any = np.concatenate([np.asarray(r.keys_MH) for r in routers])
    tokens: Any = np.concatenate([wide(np.asarray(r.tokens_MP)) for r in routers])
    return dataclasses.replace(first, keys_MH=keys, tokens_MP=tokens)
