"""StableHLO: what `jax.export` writes and any JAX reads, without this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax import export

from jaxfuse.export.program import REMEDY, ExportError, Run, Settings, function
from jaxfuse.infer.predict import Fuser

_GPUS = {"cuda", "rocm"}


def require() -> None:
    """Raises ExportError where jax.export cannot write files."""
    try:
        import flatbuffers
    except ImportError as error:
        raise ExportError(f"flatbuffers is missing: {REMEDY}") from error
    del flatbuffers


def build(fuser: Fuser, settings: Settings) -> bytes:
    """The serialised program, weights inside.

    In the formulations for a GPU where it is for GPUs alone, else in those for a TPU, which XLA
    runs well on a CPU too: a grouped convolution would be many times slower there.
    """
    kind = "gpu" if _GPUS.issuperset(settings.platforms) else "tpu"
    image = settings.image()
    with _no_places():
        exported = export.export(
            jax.jit(function(fuser, kind)), platforms=tuple(dict.fromkeys(settings.platforms))
        )(image, image)
    return bytes(exported.serialize())


@contextlib.contextmanager
def _no_places() -> Iterator[None]:
    # A program says where in which file of this machine each operation was traced.
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def runner(data: bytes) -> Run | None:
    """The program, ready to run here; None where it is for other platforms than this machine's."""
    exported = export.deserialize(bytearray(data))
    if export.default_export_platform() not in exported.platforms:
        return None
    call = jax.jit(exported.call)

    def run(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
        return np.asarray(call(visible, infrared))

    return run
