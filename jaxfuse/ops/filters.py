"""Sobel gradients, Gaussian blur and structural similarity: filters as sums of shifted images.

Every function takes images of shape (..., h, w, c), any number of leading axes, and filters each
channel by itself. A small separable filter is written as slices, products and sums, which XLA fuses
on every backend; its CPU backend runs grouped convolutions several times slower. Everything is
differentiable and works under `vmap`.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import lax

from jaxfuse.shapes import Array, Float, Scalar

SobelPadding = Literal["edge", "zero"]
_PAD_MODES = {"edge": "edge", "zero": "constant"}

SSIM_K1 = 0.01
SSIM_K2 = 0.03
_SSIM_EPS = 1e-12


def _slice(x: Array, axis: int, start: int, length: int) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + length)
    return x[tuple(index)]


def _pad(x: Array, axis: int, width: int, mode: str) -> Array:
    """Pads one axis on both sides; "reflect" bounces as often as it must, as `numpy.pad` does."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (width, width)
    return jnp.pad(x, pads, mode=mode)


def _check_image(x: Array, name: str) -> None:
    if x.ndim < 3 or 0 in x.shape:
        raise ValueError(
            f"{name}: image of shape {x.shape}: give (..., height, width, channels), none empty"
        )


def _sobel_axis(padded: Array, along: int, across: int) -> Array:
    """[1, 2, 1] over `across`, then next minus previous over `along`; removes the border."""
    n_along, n_across = padded.shape[along] - 2, padded.shape[across] - 2
    smooth = (
        _slice(padded, across, 0, n_across)
        + 2.0 * _slice(padded, across, 1, n_across)
        + _slice(padded, across, 2, n_across)
    )
    return _slice(smooth, along, 2, n_along) - _slice(smooth, along, 0, n_along)


def sobel(
    x: Float[Array, "*b h w c"], normalized: bool, padding: SobelPadding
) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
    """Horizontal and vertical Sobel response, each of the input's shape.

    Kernel [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]] as a correlation (brighter to the right is positive)
    and its transpose (brighter below is positive). normalized: divided by 8, so that a ramp of
    slope s gives s. padding: what lies outside, the nearest pixel ("edge") or 0 ("zero").
    CrossFuse uses (True, "edge") in stage I and (False, "zero") in stage II.
    """
    _check_image(x, "sobel")
    if padding not in _PAD_MODES:
        raise ValueError(f"sobel: padding {padding!r}: use one of {', '.join(_PAD_MODES)}")
    mode = _PAD_MODES[padding]
    padded = _pad(_pad(x, -3, 1, mode), -2, 1, mode)
    gx = _sobel_axis(padded, along=-2, across=-3)
    gy = _sobel_axis(padded, along=-3, across=-2)
    if normalized:
        gx, gy = gx / 8.0, gy / 8.0
    return gx, gy


def sobel_magnitude(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """|Sobel_x| + |Sobel_y|, not normalised, zeros outside; range [0, 8] for images in [0, 1].

    The gradient of CrossFuse's stage II.
    """
    gx, gy = sobel(x, normalized=False, padding="zero")
    return jnp.abs(gx) + jnp.abs(gy)


def gaussian_kernel(size: int, sigma: float | Scalar) -> Float[Array, " size"]:
    """`size` samples of a Gaussian at -(size - 1) / 2 ... (size - 1) / 2, divided by their sum.

    size: odd number of pixels. sigma: standard deviation in pixels, > 0; may be traced.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"gaussian_kernel: size {size}: use a positive odd number of pixels")
    x = jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2.0
    weights = jnp.exp(-0.5 * jnp.square(x / sigma))
    return weights / jnp.sum(weights)


def _correlate(x: Array, axis: int, kernel: Array) -> Array:
    """1-D correlation over one axis, reflect padding, same size."""
    taps, length = kernel.shape[0], x.shape[axis]
    padded = _pad(x, axis, taps // 2, "reflect")
    total = kernel[0] * _slice(padded, axis, 0, length)
    for tap in range(1, taps):
        total = total + kernel[tap] * _slice(padded, axis, tap, length)
    return total


def gaussian_blur(
    x: Float[Array, "*b h w c"],
    size_hw: tuple[int, int] = (21, 9),
    sigma: float | Scalar = 1.0,
) -> Float[Array, "*b h w c"]:
    """Gaussian blur with a window of `size_hw` (height, width) pixels, both odd.

    Result: size and range of the input.

    sigma: standard deviation in pixels, > 0, equal for both axes; a number or a traced scalar (one
    per example through `vmap`). Outside the image the content is mirrored without repeating the
    border pixel, as often as a small image needs it (`numpy.pad(mode="reflect")`); an axis of one
    pixel is extended by that pixel.
    """
    _check_image(x, "gaussian_blur")
    rows, columns = size_hw
    x = _correlate(x, -3, gaussian_kernel(rows, sigma))
    return _correlate(x, -2, gaussian_kernel(columns, sigma))


def ssim_map(
    x: Float[Array, "*b h w c"],
    y: Float[Array, "*b h w c"],
    window: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Structural similarity around every pixel, per channel, in [-1, 1]; 1 where the images agree.

    Gaussian window, reflect padding (images smaller than the window: see `gaussian_blur`),
    C1 = (0.01 L)^2 and C2 = (0.03 L)^2 with L = `data_range`, the range of the images.
    Wang et al., IEEE TIP 2004, eq. 13; the border is kept.
    """
    if x.shape != y.shape:
        raise ValueError(
            f"ssim_map: shapes {x.shape} and {y.shape} differ: give images of one shape"
        )
    _check_image(x, "ssim_map")
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    # Variances do not depend on the level, but E[x^2] - E[x]^2 in float32 does, and C2 is only
    # 9e-4: centring first takes the error of the mean from 4e-6 to 1e-7. The gradient with respect
    # to the level is zero.
    level_x = lax.stop_gradient(jnp.mean(x, axis=(-3, -2), keepdims=True))
    level_y = lax.stop_gradient(jnp.mean(y, axis=(-3, -2), keepdims=True))
    x, y = x - level_x, y - level_y
    stacked = jnp.stack([x, y, x * x, y * y, x * y])
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = gaussian_blur(stacked, (window, window), sigma)
    covariance = mean_xy - mean_x * mean_y
    variances = mean_xx + mean_yy - mean_x * mean_x - mean_y * mean_y
    mean_x, mean_y = mean_x + level_x, mean_y + level_y
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    numerator = (2.0 * product + c1) * (2.0 * covariance + c2)
    return numerator / ((squares + c1) * (variances + c2) + _SSIM_EPS)


def ssim(
    x: Float[Array, "*b h w c"],
    y: Float[Array, "*b h w c"],
    window: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
) -> Scalar:
    """Mean of `ssim_map` over all pixels, channels and images, in [-1, 1]; higher is more alike."""
    return jnp.mean(ssim_map(x, y, window, sigma, data_range))
