"""Array aliases and the conventions every other file keeps, stated once.

Images are NHWC float32 in [0, 1] inside the package and uint8 or uint16 at its edges. Visible
images are RGB (or gray), infrared images have one channel. Label maps are int32 with 255 = ignore.
Boxes are xyxy in pixels. A *grey level* is a number on the 0..255 scale. Only shapes are checked,
and only under pytest.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jaxtyping import Array, Float, Int, Key, UInt8

Image: TypeAlias = Float[Array, "b h w c"]
"""A batch of images, NHWC, [0, 1]."""
Gray: TypeAlias = Float[Array, "b h w 1"]
"""A batch of one-channel images, NHWC, [0, 1]."""
Rgb: TypeAlias = Float[Array, "b h w 3"]
"""A batch of colour images, NHWC, [0, 1], red first."""
Features: TypeAlias = Float[Array, "b _ _ _"]
"""A batch of feature maps, NHWC, any range."""
Labels: TypeAlias = Int[Array, "b h w"]
"""A batch of label maps, int32, 255 = ignore."""
Scalar: TypeAlias = Float[Array, ""]
PRNGKey: TypeAlias = Key[Array, ""]
Params: TypeAlias = dict[str, Any]
"""A plain nested dict of arrays; the top level names the network's modules."""
Batch: TypeAlias = dict[str, Any]
"""A dict of arrays with one common leading axis; what the pipeline yields and a step takes."""
Metrics: TypeAlias = dict[str, Any]
"""A flat dict of scalars."""

IGNORE_LABEL = 255

__all__ = [
    "IGNORE_LABEL",
    "Array",
    "Batch",
    "Features",
    "Float",
    "Gray",
    "Image",
    "Int",
    "Key",
    "Labels",
    "Metrics",
    "PRNGKey",
    "Params",
    "Rgb",
    "Scalar",
    "UInt8",
]
