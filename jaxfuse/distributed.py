"""Devices: mesh, shardings, host arrays to device arrays. The only reader of the environment."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfuse.config import ConfigError, UserError
from jaxfuse.shapes import Batch

DATA_AXIS = "data"
TPU_COMPILER = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment in which the TPU compiler asks no cloud server which machine it runs on, leaves a TPU
that is here to other processes, and is quiet."""


class TopologyError(UserError, RuntimeError):
    """Devices that cannot be compiled for; the message says why."""


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


def topology_mesh(kind: str, shape: Sequence[int]) -> Mesh:
    """A mesh with one axis, `data`, of TPU chips that are not here: programs can be compiled for
    them, not run. kind: v5e. shape: (16, 16).

    Raises TopologyError without the TPU compiler, and where it knows no such slice.
    """
    name = f"{kind}:{'x'.join(map(str, shape))}"
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            "libtpu, the TPU compiler, is not installed: "
            'pip install -c constraints.txt ".[tpu]" brings it (200 MB)'
        )
    for variable, value in {**TPU_COMPILER, "TPU_ACCELERATOR_TYPE": f"{kind}-1"}.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # The compiler takes hosts of four chips, 2x2, for granted.
    host = {} if math.prod(shape) > 1 else {"chips_per_host_bounds": (1, 1, 1)}
    try:
        found = topologies.get_topology_desc(name, platform="tpu", **host).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise TopologyError(f"{name}: {str(error).splitlines()[0]}") from error
    return Mesh(np.array(found), (DATA_AXIS,))


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Inside, compiled programs are neither kept nor looked for: those for devices that are not
    here can be written to JAX's cache but not read back.
    """
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def compute_on_cpu() -> None:
    """Leaves accelerators alone; works until JAX's devices are first used."""
    jax.config.update("jax_platforms", "cpu")


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
