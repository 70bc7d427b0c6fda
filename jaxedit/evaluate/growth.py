"""How the weights change along a sequence of edits.

Shapes: I inputs and O outputs of a matrix, L layers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxedit import delta
from jaxedit.base import Array, Params
from jaxedit.edit.record import Edit
from jaxedit.edit.stats import on_host
from jaxedit.evaluate.analysis import Part, norms, parts
from jaxedit.merge import leaf
from jaxedit.sharding import on_mesh_of


def growth(edits: Sequence[Edit], params: Params) -> dict[str, Any]:
    """What a sequence of edits adds up to, as JSON has it: {"mlp/down": {"layers": [5], "norm":
    [[1.2, 1.9, …]], "relative": …, "weight": …}}, a list of one number after each edit per layer:
    |ΔW|, |ΔW| / |W| and |W + ΔW| / |W|, where ΔW is the sum of the edits so far.

    One matrix is summed up at a time.
    """
    steps = [dict(parts(edit.deltas)) for edit in edits]
    places = sorted({place for step in steps for place in step}, key=str)
    flat = traverse_util.flatten_dict(params, sep="/")
    before = norms(params, sorted({path for path, _ in places}))
    out: dict[str, Any] = {}
    for path, layer in places:
        w, at, start = flat[leaf(path)], jnp.int32(layer or 0), before[path][layer or 0]
        sizes: list[Any] = [(0.0, start)]
        with on_mesh_of(params):
            total_IO = _nothing(w)
            for step in steps:
                if (part := step.get((path, layer))) is None:
                    sizes.append(sizes[-1])
                    continue
                total_IO, *found = _grow(total_IO, w, at, part)
                sizes.append(found)
        change, weight = np.array([[float(on_host(x)) for x in s] for s in sizes[1:]]).T
        one = out.setdefault(path, {"layers": [], "norm": [], "relative": [], "weight": []})
        one["layers"].append(layer)
        one["norm"].append(change.tolist())
        one["relative"].append((change / start).tolist())
        one["weight"].append((weight / start).tolist())
    return out


@jax.jit
def _nothing(w: Array) -> Array:
    return jnp.zeros(w.shape[-2:], jnp.float32)


@partial(jax.jit, donate_argnums=0)
def _grow(total_IO: Array, w: Array, layer: Array, part: Part) -> tuple[Array, Array, Array]:
    total_IO = total_IO + delta.product(part)
    w_IO = jax.lax.dynamic_index_in_dim(w, layer, keepdims=False) if w.ndim == 3 else w
    size = lambda x: jnp.sqrt(jnp.square(x).sum())
    return total_IO, size(total_IO), size(w_IO.astype(jnp.float32) + total_IO)
