"""Colour to grey levels, the way each evaluator does it: four ways that differ by a level.

Runs on the host, in NumPy: the ways differ in how they round, which a compiler is free to change.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxfuse.shapes import Array

CHANNELS = {
    "cddfuse": "gray: 0.299 R + 0.587 G + 0.114 B in float32, rounded (OpenCV)",
    "crossfuse": "gray: 0.299 R + 0.587 G + 0.114 B in float32, rounded (OpenCV)",
    "zoo": "gray: (19595 R + 38470 G + 7471 B + 32768) >> 16 (Pillow's L)",
    "vifb": "gray: 0.298936 R + 0.587043 G + 0.114021 B, rounded (rgb2gray)",
    "vifb_color": "mean of R, G and B, each against infrared",
    "jaxfuse": "Y = 0.299 R + 0.587 G + 0.114 B, not rounded",
}
"""What each convention scores, as result rows say it."""

_VIFB_WEIGHTS = 0.298936, 0.587043, 0.114021


def _whole(x: np.ndarray) -> np.ndarray:
    """8-bit levels: floats are rounded, as saving them to a file does."""
    return x if x.dtype == np.uint8 else np.rint(x).astype(np.uint8)


def _opencv(x: np.ndarray) -> np.ndarray:
    # OpenCV rounds the product of green, then the sums with blue and with red (multiply-adds).
    # Where the exact sum is a half, these roundings decide; this gives what it gives.
    red, green, blue = (x[..., i].astype(np.float64) for i in range(3))
    weights = np.float64(np.float32([0.299, 0.587, 0.114]))
    level = np.float32(green * weights[1])
    level = np.float32(blue * weights[2] + level)
    return np.rint(np.float32(red * weights[0] + level))


def _pillow(x: np.ndarray) -> np.ndarray:
    red, green, blue = (_whole(x)[..., i].astype(np.int64) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.float32)


def _matlab(x: np.ndarray) -> np.ndarray:
    red, green, blue = (_whole(x)[..., i].astype(np.float64) for i in range(3))
    a, b, c = _VIFB_WEIGHTS
    return np.floor(a * red + b * green + c * blue + 0.5).astype(np.float32)


def _luma(x: np.ndarray) -> np.ndarray:
    red, green, blue = (x[..., i].astype(np.float64) for i in range(3))
    return (0.299 * red + 0.587 * green + 0.114 * blue).astype(np.float32)


_WAYS = {
    "cddfuse": _opencv,
    "crossfuse": _opencv,
    "zoo": _pillow,
    "vifb": _matlab,
    "jaxfuse": _luma,
}


def to_gray(image: Array | np.ndarray, convention: str) -> np.ndarray:
    """Grey levels (..., h, w), float32, 0..255, of a colour or gray image.

    image: uint8, or floats in 0..255; (..., h, w, 3), red first, (..., h, w, 1) or (h, w). Gray
    stays as it is. Colours equal gray where R = G = B. `vifb_color` scores colours: it has no gray.
    """
    if convention == "vifb_color":
        raise ValueError("to_gray: vifb_color scores colours: give metrics.score the colour images")
    if convention not in _WAYS:
        raise ValueError(f"to_gray: convention {convention!r}: use one of {', '.join(_WAYS)}")
    if isinstance(image, jax.core.Tracer):
        raise TypeError("to_gray runs on the host: call it before, not inside, a jitted function")
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim < 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"to_gray: image of shape {image.shape}: the last axis must hold 3 colours or 1 gray"
        )
    if image.dtype != np.uint8:
        if not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"to_gray: dtype {image.dtype}: give uint8, or floats in 0..255")
        if not (image.size and image.min() >= 0 and image.max() <= 255):
            raise ValueError("to_gray: levels outside 0..255, NaN, or no pixels at all")
    if image.shape[-1] == 1:
        return image[..., 0].astype(np.float32)
    return _WAYS[convention](image).astype(np.float32)
