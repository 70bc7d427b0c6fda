"""One mesh, `data × fsdp × tensor`, and the rules that place arrays on it by the names of their
axes.

The batch is split over data and fsdp, weights over fsdp (storage) and tensor (compute). An axis
that does not divide its dimension is dropped, so every model runs on every mesh; `jaxedit info`
shows what a device then holds.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "group": ("data",),  # the batch of all devices that hold one weight together
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layer": (),
    None: (),
}


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of these sizes; one of them may be -1: what the others leave."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ValueError(
            f"mesh {tuple(sizes)}: sizes are positive, and at most one is -1 (the rest)"
        )
    if -1 in sizes:
        known = -sizes[0] * sizes[1] * sizes[2]
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    count = sizes[0] * sizes[1] * sizes[2]
    if count > len(devices) or (-1 in (data, fsdp, tensor) and count != len(devices)):
        raise ValueError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {count} devices, "
            f"there are {len(devices)}"
        )
    # Auto: XLA propagates shardings between the constraints; make_mesh would default to Explicit
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count]
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = 1  # parts of the batch; one of the three may be -1, the rest of the devices
    fsdp: int = 1  # parts of the batch and of the stored weights
    tensor: int = 1  # parts of every matrix product

    def make(self) -> Mesh | None:
        sizes = (self.data, self.fsdp, self.tensor)
        return None if sizes == (1, 1, 1) and jax.process_count() == 1 else make_mesh(*sizes)


ONE_DEVICE = MeshConfig()


def alone(what: str) -> None:
    """Raises in a job of several processes, for work that is not made for it."""
    if (count := jax.process_count()) > 1:
        raise ValueError(f"{what} runs in one process on all of its devices; there are {count}")


def partition(
    axes: Sequence[str | None], parts: Sequence[int], mesh: Mapping[str, int]
) -> PartitionSpec:
    """Mesh axes for logical `axes`, given the mesh's sizes; parts: into how many pieces each
    dimension may be cut.
    """
    out: list[tuple[str, ...] | str | None] = []
    for axis, n in zip(axes, parts, strict=True):
        if axis not in RULES:
            raise ValueError(f"unknown axis {axis!r}: one of {[a for a in RULES if a]}")
        names: list[str] = []
        size = 1
        for name in RULES[axis]:
            width = mesh.get(name, 1)
            if width > 1 and n % (size * width) == 0:
                names.append(name)
                size *= width
        out.append(tuple(names) if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*out)


def shard_size(
    shape: Sequence[int],
    axes: Sequence[str | None],
    parts: Sequence[int],
    mesh: Mapping[str, int],
) -> int:
    """How many numbers of an array one device of such a mesh holds."""
    cut = 1
    for names in partition(axes, parts or shape, mesh):
        for name in (names,) if isinstance(names, str) else names or ():
            cut *= mesh[name]
    return math.prod(shape) // cut


def place(axes: Sequence[str | None], parts: Sequence[int], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, partition(axes, parts, mesh.shape))


def constrain(x: jax.Array, *axes: str | None, parts: Sequence[int] = ()) -> jax.Array:
    """Fixes x's layout under the current mesh, and that of its gradient; without a mesh, x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(AXES) & set(mesh.auto_axes):
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, parts or x.shape, mesh.shape))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that concrete arrays of a tree lie on; None for tracers, host arrays and single
    devices.
    """
    for x in jax.tree.leaves(tree):
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
            s = x.sharding
            if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh) and s.mesh.size > 1:
                return s.mesh
    return None


@contextmanager
def on_mesh_of(tree: Any) -> Iterator[None]:
    """Runs the body under the mesh of `tree`, so that callers need not carry it; inside their jit,
    grad and vmap too.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(tree))
    mesh = next((m for m in meshes if not m.empty), None)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        yield
        return
    # abstract: tracers know no more of it, and the devices come with the arrays
    with jax.sharding.use_abstract_mesh(mesh):
        yield
