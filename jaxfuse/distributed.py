"""Devices: mesh, shardings, host arrays to device arrays. The only reader of the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfuse.config import ConfigError
from jaxfuse.shapes import Batch

DATA_AXIS = "data"


def compilation_cache() -> Path:
    """Turns on JAX's persistent compilation cache, so that a program compiles once per machine.

    JAX_COMPILATION_CACHE_DIR moves it; else it lies in XDG_CACHE_HOME (or ~/.cache)/jaxfuse/xla.
    Returns its folder.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given:
        folder = Path(given)
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(base, "jaxfuse", "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def data_mesh(devices: int = 0) -> Mesh:
    """A mesh with one axis, `data`, over the first `devices` local devices (0: all)."""
    available = jax.devices()
    if devices > len(available):
        raise ConfigError(
            f"train.devices = {devices}, but JAX sees {len(available)} {available[0].platform} "
            "device(s): use fewer, or on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
        )
    # An explicit Mesh has Auto axes on every JAX version; make_mesh's default changed and pmap
    # rejects the new one.
    return Mesh(np.array(available[: devices or len(available)]), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


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
