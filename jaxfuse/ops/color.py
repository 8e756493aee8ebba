"""BT.601 luma and chroma, and how a fused luma gets its colours back.

Full range, floats: R, G, B, Y in [0, 1], Cb and Cr in [0, 1] around 0.5. Colours are the last axis;
any number of leading axes. Gray images (one channel) are their own luma and pass through.
NumPy arrays are accepted; results are JAX arrays, float32.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxfuse.shapes import Array, Float

Gamut = Literal["desaturate", "clip"]

_KR, _KG, _KB = 0.299, 0.587, 0.114
_CB_SCALE = 2.0 * (1.0 - _KB)
_CR_SCALE = 2.0 * (1.0 - _KR)
# Below this a chroma difference is rounding, and dividing by it would blow up gradients.
_CHROMA_FLOOR = 1e-6


def _as_float(x: Array | np.ndarray, name: str) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: dtype {x.dtype}: give floats in [0, 1] (uint8: divide by 255)")
    if x.ndim == 0 or x.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name}: shape {x.shape}: the last axis must hold 3 colours, or 1 for gray"
        )
    return jnp.asarray(x, jnp.float32)


def luma(rgb: Float[Array | np.ndarray, "*b c"]) -> Float[Array, "*b 1"]:
    """Y = 0.299 R + 0.587 G + 0.114 B (BT.601), in [0, 1]. Gray passes through."""
    rgb = _as_float(rgb, "luma")
    if rgb.shape[-1] == 1:
        return rgb
    # Written out: on a TPU a product with a 3 x 1 matrix would round to bfloat16.
    return _KR * rgb[..., 0:1] + _KG * rgb[..., 1:2] + _KB * rgb[..., 2:3]


def rgb_to_ycbcr(rgb: Float[Array | np.ndarray, "*b c"]) -> Float[Array, "*b c"]:
    """RGB to Y, Cb, Cr, all in [0, 1]; gray has chroma 0.5. One channel passes through as Y."""
    rgb = _as_float(rgb, "rgb_to_ycbcr")
    if rgb.shape[-1] == 1:
        return rgb
    y = luma(rgb)
    cb = (rgb[..., 2:3] - y) / _CB_SCALE + 0.5
    cr = (rgb[..., 0:1] - y) / _CR_SCALE + 0.5
    return jnp.concatenate([y, cb, cr], axis=-1)


def ycbcr_to_rgb(ycc: Float[Array | np.ndarray, "*b c"]) -> Float[Array, "*b c"]:
    """Y, Cb, Cr to RGB, the inverse of `rgb_to_ycbcr`. One channel passes through.

    Not clipped: a Y, Cb, Cr that no RGB colour has gives values outside [0, 1], see `replace_luma`.
    """
    ycc = _as_float(ycc, "ycbcr_to_rgb")
    if ycc.shape[-1] == 1:
        return ycc
    y, cb, cr = ycc[..., 0:1], ycc[..., 1:2] - 0.5, ycc[..., 2:3] - 0.5
    r = y + _CR_SCALE * cr
    b = y + _CB_SCALE * cb
    g = (y - _KR * r - _KB * b) / _KG
    return jnp.concatenate([r, g, b], axis=-1)


def replace_luma(
    rgb: Float[Array | np.ndarray, "*b c"],
    y: Float[Array | np.ndarray, "*b 1"],
    gamut: Gamut = "desaturate",
) -> Float[Array, "*b c"]:
    """The image `rgb` with luma `y` and its own Cb, Cr: how a fused Y becomes a colour image.

    y: the fused luma; values outside [0, 1] are clipped, since no RGB colour has them.
    Result in [0, 1], clipped once, at the end. With `y = luma(rgb)` it is `rgb` to rounding, 1e-7.
    gamut: what happens where (y, Cb, Cr) is no RGB colour, as on hot objects before strong colours.
    "desaturate" scales Cb and Cr of that pixel towards gray, by as little as brings R, G and B into
    [0, 1]: luma and hue stay. "clip" cuts R, G and B one by one: more colour, but luma moves (a hot
    object on red loses contrast) and hue shifts. Gray `rgb` gives `y`.
    """
    if gamut not in ("desaturate", "clip"):
        raise ValueError(f"replace_luma: gamut {gamut!r}: use 'desaturate' or 'clip'")
    rgb, y = _as_float(rgb, "replace_luma"), _as_float(y, "replace_luma")
    if y.shape != (*rgb.shape[:-1], 1):
        raise ValueError(
            f"replace_luma: luma of shape {y.shape} for an image of shape {rgb.shape}: "
            f"expected {(*rgb.shape[:-1], 1)}"
        )
    y = jnp.clip(y, 0.0, 1.0)
    if rgb.shape[-1] == 1:
        return y
    old = luma(rgb)
    moved = rgb + (y - old)
    if gamut == "desaturate":
        chroma = rgb - old
        room = jnp.where(chroma > 0, 1.0 - y, y)
        size = jnp.abs(chroma)
        over = size > jnp.maximum(room, _CHROMA_FLOOR)
        fits = jnp.where(over, room / jnp.where(over, size, 1.0), 1.0)
        moved = moved - (1.0 - jnp.min(fits, axis=-1, keepdims=True)) * chroma
    return jnp.clip(moved, 0.0, 1.0)
