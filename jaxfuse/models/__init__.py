"""Networks, each a few pure functions: `create(name)` gives a fusion network,
`create_segmenter(name, classes)` a segmentation network, `light_head` a head on fused features. One
published network, one file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from jaxfuse.models import crossfuse, lite, segformer
from jaxfuse.models.base import (
    Fused,
    Head,
    Model,
    Pass,
    Segmented,
    Segmenter,
    resize_logits,
    trainable,
)
from jaxfuse.models.layers import Compute
from jaxfuse.models.platform import traced_for

MODELS: dict[str, Callable[[Compute], Model]] = {
    "crossfuse": crossfuse.create,
    "lite": lite.create,
}

SEGMENTERS: dict[str, Callable[[int, Compute], Segmenter]] = {
    name: functools.partial(segformer.create, name, sizes)
    for name, sizes in segformer.ARCHITECTURES.items()
}


def create(
    name: str,
    compute_dtype: str = "float32",
    depthwise: str = "auto",
    remat: str = "auto",
    kernels: str = "auto",
) -> Model:
    """The fusion network of that name. A wrong name raises with the list of right ones."""
    if name not in MODELS:
        raise ValueError(f"no model named {name!r}: choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name](Compute(compute_dtype, depthwise, remat, kernels))


def create_segmenter(
    name: str,
    classes: int,
    compute_dtype: str = "float32",
    depthwise: str = "auto",
    remat: str = "auto",
) -> Segmenter:
    """The segmentation network of that name. A wrong name raises with the list of right ones."""
    if name not in SEGMENTERS:
        raise ValueError(
            f"no segmentation network named {name!r}: choose one of {', '.join(sorted(SEGMENTERS))}"
        )
    return SEGMENTERS[name](classes, Compute(compute_dtype, depthwise, remat))


def light_head(channels: int, classes: int, compute_dtype: str = "float32") -> Head:
    """The light segmentation head on fused features of that many channels."""
    return segformer.light_head(channels, classes, Compute(compute_dtype))


__all__ = [
    "MODELS",
    "SEGMENTERS",
    "Compute",
    "Fused",
    "Head",
    "Model",
    "Pass",
    "Segmented",
    "Segmenter",
    "create",
    "create_segmenter",
    "light_head",
    "resize_logits",
    "traced_for",
    "trainable",
]
