"""The types that cross module boundaries, all of them data: no method of a model lives here.

Shapes: B batch, T time, S cached time, D embed, N heads, K kv heads, H head dim, F mlp, V vocab, L
layers, R delta rank, P positions, I/O the two sides of a generic matrix, n "some layers". Weights
are [in, out].
"""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct

VERSION = "0.1.0"

Array = jax.Array
Params = dict[str, Any]  # nested dict of arrays; its structure comes from models.specs


class Layered(Protocol):
    """What `forward` asks of a write or a delta: which layers it belongs to, and itself at one of
    them.
    """

    @property
    def layers(self) -> Array | None: ...

    def at(self, layer: Array) -> Self: ...

    def __call__(self, x_BTI: Array, /) -> Array: ...


def pick(x_n: Array, layers: Array, layer: Array) -> tuple[Array, Array]:
    """The entry of x_n [n, ...] that belongs to `layer`, and whether there is one.

    `layers` is [n], or [n, B] where every row of a batch has layers of its own; an entry of -1
    belongs nowhere.
    """
    hit = layers == layer
    j = hit.argmax(0)
    if layers.ndim == 1:
        return jax.lax.dynamic_index_in_dim(x_n, j, keepdims=False), hit.any(0)
    if x_n.shape[1] != layers.shape[1]:  # [n, 1, ...]: one entry shared by all rows
        x_n = jnp.broadcast_to(x_n, (x_n.shape[0], layers.shape[1], *x_n.shape[2:]))
    j = j.reshape(1, -1, *[1] * (x_n.ndim - 2))
    return jnp.take_along_axis(x_n, j, 0)[0], hit.any(0)


def _spread(hit: Array, ndim: int) -> Array:
    """`hit` ([] or [B]) against an array of `ndim` axes that leads with B."""
    return hit.reshape(hit.shape + (1,) * (ndim - hit.ndim))


@struct.dataclass
class LowRank:
    """W + a @ b. Shared: a [n, I, R], b [n, R, O]; one per row of the batch: a [n, B, I, R], b [n,
    B, R, O].

    `layers` says which layers the n entries change: None (all of them, n = L), [n], or [n, B]. It
    is data, so another layer is not another compilation. A layer appears at most once
    (`delta.compose` joins ranks). Matrices outside the blocks ("embed", "head") have no leading n.
    """

    a: Array
    b: Array
    layers: Array | None = None

    def at(self, layer: Array) -> "LowRank":
        if self.layers is None:
            raise ValueError("a delta on all layers is sliced by the scan, not picked")
        (a, hit), (b, _) = pick(self.a, self.layers, layer), pick(self.b, self.layers, layer)
        return LowRank(jnp.where(_spread(hit, a.ndim), a, 0), b)

    def __call__(self, x_BTI: Array) -> Array:
        """x @ a @ b, accumulated in float32 whatever the compute dtype: an edit is small, its
        rounding is not.
        """
        f32 = jnp.float32
        h_BTR = jnp.matmul(x_BTI, self.a.astype(x_BTI.dtype), preferred_element_type=f32)
        return (h_BTR @ self.b.astype(f32)).astype(x_BTI.dtype)

    def dense(self) -> Array:
        return self.a @ self.b


@struct.dataclass
class Dense:
    """W + w, for updates of full rank: w [n, I, O] or [n, B, I, O]; `layers` as in LowRank."""

    w: Array
    layers: Array | None = None

    def at(self, layer: Array) -> "Dense":
        if self.layers is None:
            raise ValueError("a delta on all layers is sliced by the scan, not picked")
        w, hit = pick(self.w, self.layers, layer)
        return Dense(jnp.where(_spread(hit, w.ndim), w, 0))

    def __call__(self, x_BTI: Array) -> Array:
        return x_BTI @ self.w.astype(x_BTI.dtype)

    def dense(self) -> Array:
        return self.w


@struct.dataclass
class Write:
    """x <- value where mask ("set"), or x + value where mask (`add`).

    mask [n, B|1, T|1], value [n, B|1, T|1, dim]; `layers` as in LowRank. The site "embed" has no
    leading n. A mask with T = 1 holds at every position, in generation at the generated ones too; a
    longer one covers the prompt.
    """

    mask: Array
    value: Array
    layers: Array | None = None
    add: bool = struct.field(pytree_node=False, default=False)

    def at(self, layer: Array) -> "Write":
        if self.layers is None:
            raise ValueError("a write on all layers is sliced by the scan, not picked")
        (mask, hit), (value, _) = (
            pick(self.mask, self.layers, layer),
            pick(self.value, self.layers, layer),
        )
        return Write(mask & _spread(hit, mask.ndim), value, add=self.add)

    def __call__(self, x_BTD: Array) -> Array:
        value = self.value.astype(x_BTD.dtype)
        return jnp.where(self.mask[..., None], x_BTD + value if self.add else value, x_BTD)

    def after_prompt(self) -> "Write | None":
        """What remains of the write once generation has left the prompt."""
        return self if self.mask.shape[-1] == 1 else None


@struct.dataclass
class Scale:
    """x * factor where mask: 0 silences a unit, 2 doubles it, 1 leaves it as it is.

    mask [n, B|1, T|1], factor [n, B|1, T|1, dim]; otherwise as Write.
    """

    mask: Array
    factor: Array
    layers: Array | None = None

    def at(self, layer: Array) -> "Scale":
        if self.layers is None:
            raise ValueError("a write on all layers is sliced by the scan, not picked")
        (mask, hit), (factor, _) = (
            pick(self.mask, self.layers, layer),
            pick(self.factor, self.layers, layer),
        )
        return Scale(mask & _spread(hit, mask.ndim), factor)

    def __call__(self, x_BTD: Array) -> Array:
        return jnp.where(self.mask[..., None], x_BTD * self.factor.astype(x_BTD.dtype), x_BTD)

    def after_prompt(self) -> "Scale | None":
        return self if self.mask.shape[-1] == 1 else None


Delta = LowRank | Dense
Deltas = Mapping[str, Any]  # "mlp/down" -> Delta, or a tuple of them, which add up
Writes = Mapping[
    str, Any
]  # "mlp_out" -> Write (or another kind of it), or a tuple, applied in order
Reads = Mapping[str, Array | None]  # "mlp_key" -> None (every position) or positions [B, P]


@struct.dataclass
class Cache:
    """Keys and values of what was run so far; pos says which position a slot holds.

    Slots fill from the left. k and v are stacks over layers, or tuples of layers (`unstack`).
    """

    k: Any  # [L, B, K, S, H]
    v: Any
    pos: Array  # [B, S], -1 = empty or padding
    end: Array  # [] the next slot


@struct.dataclass
class Output:
    logits: Array  # [B, T|P, V] float32
    reads: dict[str, Array]  # site -> [L, B, T|P, dim]; "embed" without L
    cache: Cache | None


def chain(value: Any) -> tuple:
    """Several writes or deltas may share a name: always as a tuple."""
    return tuple(value) if type(value) in (tuple, list) else (value,)


def chains(named: Mapping[str, Any] | None) -> dict[str, tuple]:
    return {name: chain(value) for name, value in (named or {}).items()}
