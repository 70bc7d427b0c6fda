"""Products whose result is float32, whatever their factors are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.base import Array


def wide(product: Callable[[Array, Array, Any], Array], x: Array, y: Array) -> Array:
    """product(x, y, float32). The products of its gradient are of the factors' dtype, as all others
    are: by itself JAX would make them of float32, which a GPU does several times slower.
    """
    if x.dtype == jnp.float32:
        return product(x, y, jnp.float32)

    @jax.custom_vjp
    def run(x: Array, y: Array) -> Array:
        return product(x, y, jnp.float32)

    def back(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
        _, pull = jax.vjp(lambda x, y: product(x, y, x.dtype), *kept)
        return pull(g.astype(x.dtype))

    run.defvjp(lambda x, y: (run(x, y), (x, y)), back)
    return run(x, y)
