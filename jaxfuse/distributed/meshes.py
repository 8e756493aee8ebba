"""Meshes, shardings, and host arrays to device arrays and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfuse.config import ConfigError
from jaxfuse.shapes import Batch

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"
"""Devices along it hold parts of the parameters; they share in the batch as well."""
SMALL = 1 << 14
"""Arrays with fewer numbers than this are not worth a gather: every device holds them whole."""


def data_mesh(devices: int = 0, fsdp: int = 1) -> Mesh:
    """A mesh over the first `devices` devices (0: all, of all processes).

    One axis, `data`; with fsdp > 1 a second one, `fsdp`, of that many devices each of which holds a
    part of the parameters.
    """
    available = jax.devices()
    if devices > len(available):
        raise ConfigError(
            f"train.devices = {devices}, but JAX sees {len(available)} {available[0].platform} "
            "device(s): use fewer, or on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
        )
    if devices and jax.process_count() > 1 and devices != len(available):
        raise ConfigError(
            f"train.devices = {devices}: {jax.process_count()} processes use all of their "
            f"{len(available)} devices: set it to 0"
        )
    chosen = np.array(available[: devices or len(available)])
    if len(chosen) % fsdp:
        raise ConfigError(f"train.fsdp = {fsdp}: must divide the {len(chosen)} devices")
    # An explicit Mesh has Auto axes on every JAX version; make_mesh's default changed and pmap
    # rejects the new one.
    if fsdp > 1:
        return Mesh(chosen.reshape(-1, fsdp), (DATA_AXIS, FSDP_AXIS))
    return Mesh(chosen, (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    axes = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(axes if len(axes) > 1 else DATA_AXIS))


def by_rule(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array of `tree` (arrays or ShapeDtypeStructs).

    Without an fsdp axis every device holds everything. With one, arrays of `SMALL` numbers and more
    are split along their longest axis that its devices divide (the last of equal ones); parameters
    and the optimizer's averages of them have equal shapes and thus equal shardings.
    """
    whole = replicated(mesh)
    if FSDP_AXIS not in mesh.axis_names:
        return jax.tree.map(lambda x: whole, tree)
    parts = mesh.shape[FSDP_AXIS]

    def one(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size % parts == 0]
        if x.size < SMALL or not axes or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return whole
        longest = max(axes, key=lambda axis: (x.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP_AXIS))

    return jax.tree.map(one, tree)


def whole_on_host(tree: Any, mesh: Mesh) -> Any:
    """The arrays as NumPy arrays, gathered from all devices. Every process calls it."""
    if any(not x.is_fully_replicated for x in jax.tree.leaves(tree)):
        tree = _gather(mesh)(tree)
    return jax.device_get(tree)


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def to_global(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds whole, on devices of its own, as replicated global ones."""

    def one(x: Any) -> Any:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        plain = jax.random.key_data(x) if is_key else x
        copies = [shard.data for shard in plain.addressable_shards]
        whole = jax.make_array_from_single_device_arrays(plain.shape, replicated(mesh), copies)
        return jax.random.wrap_key_data(whole, impl=jax.random.key_impl(x)) if is_key else whole

    return jax.tree.map(one, tree)


def to_devices(batch: Batch, mesh: Mesh) -> dict[str, Any]:
    """This process's rows as arrays sharded over the mesh, whose devices must divide them."""
    devices = len(mesh.local_devices)
    for name, array in batch.items():
        if len(array) % devices:
            raise ConfigError(
                f"{name}: {len(array)} rows cannot be split over {devices} devices: "
                "make train.batch_size and data.external.pool multiples of the device count"
            )
    sharding = by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
