"""Fusion networks: `create(name)` gives a `Model`, two pure functions. One published network, one
file.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxfuse.models import crossfuse
from jaxfuse.models.base import Fused, Model, Pass
from jaxfuse.models.layers import Compute

MODELS: dict[str, Callable[[Compute], Model]] = {
    "crossfuse": crossfuse.create,
}


def create(
    name: str, compute_dtype: str = "float32", depthwise: str = "auto", remat: str = "auto"
) -> Model:
    """The fusion network of that name. A wrong name raises with the list of right ones."""
    if name not in MODELS:
        raise ValueError(f"no model named {name!r}: choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name](Compute(compute_dtype, depthwise, remat))


__all__ = ["MODELS", "Compute", "Fused", "Model", "Pass", "create"]
