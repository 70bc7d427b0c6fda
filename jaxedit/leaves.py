"""A tree of arrays, numbers and PRNG keys as plain arrays with a table, and back."""

import importlib.metadata
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import VERSION

FORMAT = 1
NUMBERS = ("bool", "int", "float")
KEYS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def encode(tree: Any, metadata: dict | None) -> tuple[dict[str, Any], dict]:
    """The arrays that Orbax writes, and the JSON beside them."""
    if "versions" in (metadata := metadata or {}):
        raise ValueError("metadata has a key 'versions', which is taken: choose another")
    try:
        metadata = json.loads(json.dumps(metadata))
    except TypeError as error:
        raise ValueError(f"metadata is not JSON: {error}") from error
    arrays, leaves = {}, {}
    for name, (path, leaf) in name_leaves(tree).items():
        kind, array = describe(leaf)
        numeric = jnp.issubdtype(array.dtype, np.number) or array.dtype == bool
        if kind not in ("array", *NUMBERS, *KEYS) or not numeric:
            raise ValueError(
                f"leaf {name!r} is of type {type(leaf).__name__}: a checkpoint holds arrays, "
                "numbers and PRNG keys; text goes into metadata"
            )
        spec = {"shape": list(array.shape), "dtype": str(array.dtype)}
        leaves[name] = {"path": path, "kind": kind, **spec}
        if isinstance(array, jax.Array) and jax.process_count() > 1 and array.is_fully_addressable:
            array = np.asarray(array)  # every process has its own, alike: Orbax writes the first's
        if array.size:  # Orbax writes no empty arrays; the table is enough to make them again
            arrays[name] = array
    orbax = importlib.metadata.version("orbax-checkpoint")
    versions = {"jaxedit": VERSION, "jax": jax.__version__, "orbax": orbax}
    about = {"metadata": metadata, "versions": versions | {"format": FORMAT}, "leaves": leaves}
    return arrays or {"": np.zeros(1)}, about  # nor empty trees


def decode(kind: str, like: Any, array: Any) -> Any:
    """The restored leaf."""
    if kind in NUMBERS:
        return array.item()
    if kind == "array" and isinstance(like, np.ndarray):
        return array
    array = jnp.asarray(array) if place(like) is None else jax.device_put(array, like.sharding)
    return jax.random.wrap_key_data(array, impl=KEYS[kind]) if kind in KEYS else array


def name_leaves(tree: Any) -> dict[str, tuple[list[str], Any]]:
    """Every leaf with its path, under the path's name."""
    named: dict[str, tuple[list[str], Any]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        name = "/".join(path)
        if name in named:
            raise ValueError(f"two leaves are named {name!r}: change one of the keys")
        named[name] = path, leaf
    return named


def describe(leaf: Any) -> tuple[str, Any]:
    """The kind of a leaf, and the array that stands for it: itself, or the data of PRNG keys."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return "array" if hasattr(leaf, "dtype") else type(leaf).__name__, np.asarray(leaf)
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "array", leaf
    if isinstance(leaf, jax.Array):
        return str(leaf.dtype), jax.random.key_data(leaf)
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return str(leaf.dtype), data.update(sharding=leaf.sharding)


def fits(have: dict, kind: str, like: Any) -> bool:
    number_to_array = kind == "array" and have["kind"] in NUMBERS
    if have["shape"] != list(like.shape) or not (kind == have["kind"] or number_to_array):
        return False
    family = np.integer if have["kind"] == "int" else np.floating
    both = jnp.dtype(have["dtype"]), like.dtype
    return both[0] == both[1] or all(jnp.issubdtype(dtype, family) for dtype in both)


def on_host(shape, dtype, **_) -> np.ndarray:
    return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)  # any size, in a few bytes


def place(like: Any) -> jax.sharding.Sharding | None:
    """Where an array must go; where an uncommitted one is says nothing."""
    return getattr(like, "sharding", None) if getattr(like, "committed", True) else None
