"""Models of human contrast sensitivity: Qcb and Qcv."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from jaxfuse.metrics.information import levels
from jaxfuse.metrics.triple import Triple
from jaxfuse.metrics.windows import Weights, mean, pad, smooth, sobel, spread_of, total
from jaxfuse.shapes import Array, Float

BLOCK = 16
"""Side of Qcv's regions in pixels."""


def _filtered(x: Float[Array, "b h w"], response: Callable[[Array], Array], scale: float) -> Array:
    """The image after a filter with `response(r)`, r = scale * distance from frequency 0.

    Frequencies are counted in periods over the image; the image repeats at its borders.
    """
    h, w = x.shape[-2:]
    row = jnp.arange(h, dtype=jnp.int32)
    row = jnp.minimum(row, h - row).astype(x.dtype)
    column = jnp.arange(w // 2 + 1, dtype=jnp.int32).astype(x.dtype)
    radius = scale * jnp.sqrt(jnp.square(row)[:, None] + jnp.square(column)[None, :])
    spectrum = jnp.fft.rfft2(x) * response(radius)[None]
    return jnp.fft.irfft2(spectrum, s=(h, w))


def _stretched(x: Float[Array, "b h w"], top: float) -> Array:
    """Darkest level to 0, brightest to `top`; NaN where the image is constant."""
    low = jnp.min(x, axis=(-2, -1))[:, None, None]
    return (x - low) / spread_of(x)[:, None, None] * top


def _stretched_levels() -> np.ndarray:
    """The level that becomes of each level above the darkest (columns), by the spread (rows).

    round(k / R * 255), halves upward, computed here, in float64: how k / R rounds decides them.
    """
    spread = np.maximum(np.arange(256.0), 1.0)[:, None]
    return np.minimum(np.floor(np.arange(256.0) / spread * 255.0 + 0.5), 255.0).astype(np.uint8)


def _stretched_vifb(x: Float[Array, "b h w"]) -> Array:
    """To whole levels 0..255; black stays black, other constants give NaN."""
    whole = levels(x)
    low = jnp.min(whole, axis=(-2, -1))[:, None, None]
    spread = jnp.max(whole, axis=(-2, -1))[:, None, None] - low
    index = spread * 256 + (whole - low)
    table = jnp.asarray(_stretched_levels().reshape(-1))
    stretched = table.at[index].get(mode="promise_in_bounds").astype(x.dtype)
    undefined = (spread == 0) & (low > 0)
    return jnp.where(undefined, jnp.nan, stretched)


def _sensitivity(r: Array) -> Array:
    """Difference of two Gaussians. Chen and Blum, 2009, table 1."""
    return jnp.exp(-jnp.square(r / 15.3870)) - 0.7622 * jnp.exp(-jnp.square(r / 1.3456))


def _density(sigma: float) -> Weights:
    """31 samples of a Gaussian's density; their sum is a little below 1."""
    x = np.arange(-15, 16)
    return tuple((np.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2.0 * math.pi))).tolist())


def _masked_contrasts(images: Sequence[Array], scale: float, mode: str, tiny: float) -> list[Array]:
    """Peli's contrast after the sensitivity filter, masked: C^3 / (C^2 + 1e-4).

    The contrast is the ratio of the local means over sigma 2 and sigma 4, less 1. scale: of the
    filter's frequencies. mode: what lies outside, as in `numpy.pad`. tiny: added to the divisor.
    """
    found = []
    for image in images:
        around = pad(_filtered(image, _sensitivity, scale), 15, mode)
        narrow, wide = smooth(around, _density(2.0)), smooth(around, _density(4.0)) + tiny
        size = jnp.abs(narrow / wide - 1.0)
        found.append(size * size * size / (size * size + 1e-4))
    return found


def _ratio(x: Array, y: Array) -> Array:
    return jnp.where(x < y, x / y, y / x)


def _chen_blum(masked: Sequence[Array], tiny: float) -> Array:
    """Mean of the kept contrasts, weighted with the squares of the sources' contrasts."""
    visible, infrared, fused = masked
    squares = visible * visible, infrared * infrared
    both = squares[0] + squares[1] + tiny
    kept = _ratio(visible, fused) * squares[0] + _ratio(infrared, fused) * squares[1]
    return mean(kept / both)


def chen_blum(t: Triple) -> Array:
    """On grey levels as they are; the border repeated; 1e-9 added to every contrast.

    Without that, the agreement of images that have no contrast would be 0/0.
    """
    around_zero = _masked_contrasts(t.images, 1 / 15, "edge", 0.0)
    defined = [jnp.where(jnp.isnan(c), 0.0, c) + 1e-9 for c in around_zero]
    return _chen_blum(defined, 0.0)


def chen_blum_zoo(t: Triple) -> Array:
    """On images stretched to 0..1, with half the frequencies; NaN where an image is constant."""
    stretched = [_stretched(x, 1.0) for x in t.images]
    return _chen_blum(_masked_contrasts(stretched, 1 / 30, "constant", 1e-10), 1e-10)


def chen_blum_vifb(t: Triple) -> Array:
    """On images stretched to whole levels; NaN where an image is constant or all black."""
    stretched = t.shared(_stretched_images)
    return _chen_blum(_masked_contrasts(stretched, 1 / 15, "constant", 0.0), 0.0)


def _stretched_images(t: Triple) -> tuple[Array, ...]:
    return tuple(_stretched_vifb(x) for x in t.images)


def _attention(r: Array) -> Array:
    """Contrast sensitivity of Mannos and Sakrison, 1974."""
    return 2.6 * (0.0192 + 0.144 * r) * jnp.exp(-((0.144 * r) ** 1.1))


def _block_sums(x: Float[Array, "b h w"]) -> Array:
    """Sums over regions of 16 x 16; the last ones of a row or column may be smaller."""
    h, w = x.shape[-2:]
    x = jnp.pad(x, ((0, 0), (0, -h % BLOCK), (0, -w % BLOCK)))
    rows = jnp.sum(x.reshape(x.shape[0], -1, BLOCK, x.shape[2]), axis=2)
    return jnp.sum(rows.reshape(*rows.shape[:2], -1, BLOCK), axis=3)


def _chen_varshney(images: Sequence[Array], mode: str, whole: bool) -> Array:
    """Squared errors as seen, per region, weighted with the sources' gradients to the fifth power.

    whole: divide by 256 pixels even where a region at the border has fewer.
    """
    visible, infrared, fused = images
    weights, weighted = [], []
    pixels = float(BLOCK * BLOCK) if whole else _block_sums(jnp.ones_like(fused[:1]))
    for source in (visible, infrared):
        gx, gy = sobel(source, mode)
        squared = gx * gx + gy * gy
        salience = _block_sums(squared * squared * jnp.sqrt(squared))
        error = _block_sums(jnp.square(_filtered(source - fused, _attention, 0.25))) / pixels
        weights.append(total(salience))
        weighted.append(total(salience * error))
    return sum(weighted) / sum(weights)


def chen_varshney(t: Triple) -> Array:
    """On grey levels as they are; the border repeated; NaN where both sources are constant."""
    return _chen_varshney(t.images, "edge", whole=False)


def chen_varshney_vifb(t: Triple) -> Array:
    """On images stretched to whole levels; zeros outside; NaN where one is constant, not black."""
    return _chen_varshney(t.shared(_stretched_images), "constant", whole=True)
