"""CrossFuse's local work on processors, in C++, where XLA leaves most of their speed unused.

Maps of 64 channels go through LayerNorm, 1x1, 3x3 and 1x1 in one go: what lies between stays in a
core's cache. `jaxfuse.models.local` says when these are used, `jaxfuse.models.crossfuse` has the
same in JAX's operations. They are compiled when first asked for (`build`); docs/adr/0010 says why
they are here.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading

import jax
import numpy as np

from jaxfuse.kernels.build import KernelsError, library
from jaxfuse.shapes import Array

_TARGETS = ("bottleneck", "bottleneck_backward", "sums", "sums_backward", "coupling")
_LOCK = threading.Lock()


@functools.cache
def _registered() -> str:
    path = library()
    try:
        loaded = ctypes.cdll.LoadLibrary(str(path))
    except OSError:
        # Damaged, or of another system: made once more.
        path.unlink(missing_ok=True)
        path = library()
        try:
            loaded = ctypes.cdll.LoadLibrary(str(path))
        except OSError as error:
            raise KernelsError(
                f"{path}: cannot be loaded: {error}: set XDG_CACHE_HOME to a folder from which "
                "programs may run, or name another compiler by CXX"
            ) from error
    # Programs that XLA keeps on disk call kernels by name: others must have other names.
    prefix = f"jaxfuse_{path.stem}"
    for name in _TARGETS:
        handler = jax.ffi.pycapsule(getattr(loaded, f"jaxfuse_{name}"))
        jax.ffi.register_ffi_target(f"{prefix}_{name}", handler, platform="cpu")
    return prefix


def _register() -> str:
    """Makes the kernels known to XLA, once, and returns what their names begin with."""
    with _LOCK:
        return _registered()


@functools.cache
def _usable() -> bool:
    try:
        _registered()
    except KernelsError as error:
        logging.getLogger("jaxfuse").warning(
            "CrossFuse runs several times slower than it could on this processor: %s.", error
        )
        return False
    return True


def available() -> bool:
    """Whether the kernels can be used here. Says once why not."""
    with _LOCK:
        return _usable()


def call(
    name: str, results: tuple[jax.ShapeDtypeStruct, ...], *arrays: Array | None, **numbers: int
) -> list[Array]:
    """The results of a kernel, under jit; None stands for an array that is not given.

    Raises KernelsError where they cannot be compiled.
    """
    none = np.zeros(0, np.float32)
    given = [none if array is None else array for array in arrays]
    attributes = {key: np.int64(value) for key, value in numbers.items()}
    run = jax.ffi.ffi_call(f"{_register()}_{name}", results, vmap_method="sequential")
    return list(run(*given, **attributes))


__all__ = ["KernelsError", "available", "call"]
