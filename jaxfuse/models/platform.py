"""Which kind of device a program is traced for: networks choose between formulations by it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_GIVEN: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def platform() -> str:
    """cpu, gpu or tpu: JAX's default backend, or what `traced_for` names: onnx as well."""
    return _GIVEN.get() or jax.default_backend()


def at_home() -> bool:
    """Whether programs are traced for this machine: not inside `traced_for`."""
    return not _GIVEN.get()


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Inside, whatever is traced is what a machine with such devices would trace.

    For compiling on one kind of machine what another will run; "onnx" is for graphs that ONNX
    runtimes will run. Functions that `jax.jit` has traced before keep what they were.
    """
    token = _GIVEN.set(name)
    try:
        yield
    finally:
        _GIVEN.reset(token)
