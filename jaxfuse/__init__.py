"""Infrared-visible image fusion in JAX. Importing this is quick: JAX comes with the first use.

`fuse(vi, ir)` fuses arrays, `load(path_or_name)` reads a trained model, `Experiment` describes a
training run; every room of the package (`jaxfuse.models`, `jaxfuse.ops`, ...) is an attribute.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxfuse.config import Experiment
    from jaxfuse.infer.predict import fuse, load

__version__ = "0.1.0"

__all__ = ["Experiment", "__version__", "fuse", "load"]

_NAMES = {
    "Experiment": "jaxfuse.config",
    "fuse": "jaxfuse.infer.predict",
    "load": "jaxfuse.infer.predict",
}
_ROOMS = frozenset(
    {
        "checkpoint",
        "config",
        "convert",
        "data",
        "distributed",
        "evaluate",
        "experiments",
        "export",
        "infer",
        "losses",
        "metrics",
        "methods",
        "models",
        "ops",
        "report",
        "shapes",
        "train",
        "weights",
    }
)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"jaxfuse.{name}")
    raise AttributeError(f"module 'jaxfuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
