"""What compiled programs are kept in, and compiling for TPUs that are not here."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxfuse.config import ConfigError, UserError
from jaxfuse.distributed.meshes import DATA_AXIS, FSDP_AXIS

TPU_COMPILER = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment in which the TPU compiler asks no cloud server which machine it runs on, leaves a TPU
that is here to other processes, and is quiet."""


CXX_COMPILERS = "c++", "g++", "clang++"


class TopologyError(UserError, RuntimeError):
    """Devices that cannot be compiled for; the message says why."""


def cache_folder(name: str) -> Path:
    """Where such things are kept between runs: XDG_CACHE_HOME (or ~/.cache)/jaxfuse/NAME."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "jaxfuse", name)


def cxx_compiler() -> list[str]:
    """The C++ compiler: what CXX says, with arguments, as for any build, or the first of c++, g++
    and clang++ that is installed. Empty without; ConfigError where CXX names no program.
    """
    given = os.environ.get("CXX", "").strip()
    if not given:
        return list(filter(None, map(shutil.which, CXX_COMPILERS)))[:1]
    program, *arguments = shlex.split(given)
    found = shutil.which(program)
    if found is None:
        raise ConfigError(f"CXX = {given!r}: no such program: name a C++ compiler, or unset it")
    return [found, *arguments]


def compilation_cache() -> Path:
    """Turns on JAX's persistent compilation cache, so that a program compiles once per machine.

    JAX_COMPILATION_CACHE_DIR moves it; else it is `cache_folder("xla")`.
    Returns its folder.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(given) if given else cache_folder("xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def topology_mesh(kind: str, shape: Sequence[int], fsdp: int = 1) -> Mesh:
    """The mesh that `data_mesh` makes, of TPU chips that are not here: programs can be compiled for
    them, not run. kind: v5e. shape: (16, 16).

    Raises TopologyError without the TPU compiler, and where it knows no such slice; ConfigError
    where fsdp does not divide its chips.
    """
    name = _slice_name(kind, shape)
    if math.prod(shape) % fsdp:
        raise ConfigError(
            f"train.fsdp = {fsdp}: must divide the {math.prod(shape)} chips of {name}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            "libtpu, the TPU compiler, is not installed: "
            'pip install -c constraints.txt -e ".[tpu]" brings it (200 MB)'
        )
    for variable, value in {**TPU_COMPILER, "TPU_ACCELERATOR_TYPE": f"{kind}-1"}.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # The compiler takes hosts of four chips, 2x2, for granted.
    host = {} if math.prod(shape) > 1 else {"chips_per_host_bounds": (1, 1, 1)}
    try:
        found = topologies.get_topology_desc(name, platform="tpu", **host).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        said = str(error).partition("\n")[0]
        if "chips_per_host_bounds" in said:
            said = "the compiler puts four chips, 2x2, on a host"
        raise TopologyError(
            f"{name}: {said}: take a slice such as {_works(kind, shape)}"
        ) from error
    chips = np.array(found)
    if fsdp > 1:
        return Mesh(chips.reshape(-1, fsdp), (DATA_AXIS, FSDP_AXIS))
    return Mesh(chips, (DATA_AXIS,))


def _slice_name(kind: str, shape: Sequence[int]) -> str:
    return f"{kind}:{'x'.join(map(str, shape))}"


def _works(kind: str, shape: Sequence[int]) -> str:
    """Slices of as many axes that there are: one chip, one host, several."""
    tail = (1,) * (len(shape) - 2)
    return ", ".join(_slice_name(kind, (*sides, *tail)) for sides in ((1, 1), (2, 2), (4, 4)))


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


class Ahead:
    """A jitted function, compiled apart from its first run.

    On a processor what compilers used is given back to the system in between, which glibc would
    keep for the process otherwise.
    """

    def __init__(self, jitted: Any):
        self.jitted = jitted
        self.compiled: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jitted, name)

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            self.compiled = self.jitted.lower(*arguments).compile()
            if jax.default_backend() == "cpu":
                _give_back()
        try:
            return self.compiled(*arguments)
        except (TypeError, ValueError):
            # Arrays of other shapes or places than the first ones: jit compiles once more, or says
            # what is wrong. Nothing was donated yet.
            return self.jitted(*arguments)


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def compute_on_cpu() -> None:
    """Leaves accelerators alone; works until JAX's devices are first used."""
    jax.config.update("jax_platforms", "cpu")
