"""Sums over images and over windows: what the metrics are computed with.

Images are (b, h, w). Every filter is a sum of shifted images, first over rows, then over columns.
Weights are tuples of Python floats, so that they are exact in either precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxfuse.shapes import Array, Float

ROWS, COLUMNS = -2, -1
Weights = tuple[float, ...]


def apart(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function by itself wherever it is called from, with the named arguments fixed.

    XLA's CPU backend otherwise fuses chains of filters into loops that compute every intermediate
    pixel anew for each pixel that needs it: ten times slower, and slow to compile.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.partial(jax.jit, static_argnames=static)
        @functools.wraps(function)
        def compiled(*arguments: Any, **named: Any) -> Any:
            # The mark belongs on this call only, not on every small function inside.
            with set_xla_metadata(inlineable=None):
                return function(*arguments, **named)

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if jax.default_backend() != "cpu":
                return function(*arguments, **named)
            with set_xla_metadata(inlineable="false"):
                return compiled(*arguments, **named)

        return call

    return wrap


def total(x: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Sum over the pixels of each image."""
    # A product with ones: XLA's CPU backend would compute what is summed inside the loop of a
    # reduction, one pixel at a time. In float32 the two levels keep the rounding at 1e-7.
    ones = jnp.ones((x.shape[-1],), x.dtype)
    last = (((x.ndim - 1,), (0,)), ((), ()))
    rows = lax.dot_general(x, ones, last, precision=lax.Precision.HIGHEST)
    return jnp.sum(rows, axis=-1)


def mean(x: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Mean over the pixels of each image."""
    return total(x) / (x.shape[-2] * x.shape[-1])


def centred(x: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """The image minus its mean."""
    return x - mean(x)[:, None, None]


def spread_of(x: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Largest minus smallest pixel of each image."""
    return jnp.max(x, axis=(-2, -1)) - jnp.min(x, axis=(-2, -1))


def correlation(x: Float[Array, "b h w"], y: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Pearson's coefficient, in [-1, 1]; NaN where an image is constant."""
    # A constant image is a rounding error away from its mean, which must not count as contrast.
    flat = (spread_of(x) == 0) | (spread_of(y) == 0)
    x, y = centred(x), centred(y)
    spread = jnp.sqrt(total(x * x)) * jnp.sqrt(total(y * y))
    return jnp.where(flat, jnp.nan, total(x * y) / spread)


def gaussian(size: int, sigma: float) -> Weights:
    """`size` samples of a Gaussian around the middle one, with sum 1."""
    x = np.arange(size) - (size - 1) / 2
    weights = np.exp(-0.5 * (x / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


def uniform(size: int) -> Weights:
    """`size` equal weights with sum 1."""
    return (1.0 / size,) * size


def pad(x: Float[Array, "b h w"], width: int, mode: str) -> Float[Array, "b H W"]:
    """Adds `width` pixels on every side; mode as in `numpy.pad`: constant (0), edge, reflect."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(width, width)] * 2, mode=mode)


def _taps(x: Array, count: int, axis: int, stride: int = 1) -> list[Array]:
    """The image as each of `count` weights of a window sees it; only whole windows."""
    last = x.shape[axis] - count
    if last < 0:
        raise ValueError(f"window of {count} pixels on an image of shape {x.shape}")
    return [
        lax.slice_in_dim(x, i, i + last + 1, stride=stride, axis=x.ndim + axis)
        for i in range(count)
    ]


@apart("weights", "axis", "stride")
def correlate(x: Array, weights: Weights, axis: int, stride: int = 1) -> Array:
    """Correlation along one axis, whole windows only, every `stride`-th result."""
    taps = _taps(x, len(weights), axis, stride)
    terms = [w * tap for w, tap in zip(weights, taps, strict=True) if w != 0]
    return sum(terms[1:], terms[0])


def smooth(x: Float[Array, "b h w"], weights: Weights, stride: int = 1) -> Float[Array, "b H W"]:
    """Correlation with the product of `weights` over rows and over columns, whole windows only."""
    return correlate(correlate(x, weights, ROWS, stride), weights, COLUMNS, stride)


class Moments(NamedTuple):
    """Of windows: the mean of each image, the covariance of each pair."""

    means: list[Array]
    covariances: list[Array]


def _around(x: Array, weights: Weights, axis: int) -> tuple[Array, list[Array], Array]:
    """Middle pixel, differences of all from it, and their weighted sum."""
    taps = _taps(x, len(weights), axis)
    middle = taps[len(weights) // 2]
    # Differences from the middle pixel are small where the image is flat, so that squaring and
    # subtracting loses nothing there: float32 suffices, which E[xy] - E[x]E[y] does not allow.
    different = [tap - middle for tap in taps]
    return middle, different, sum(w * d for w, d in zip(weights, different, strict=True))


@apart("weights", "axis")
def _line_mean(x: Array, weights: Weights, axis: int) -> Array:
    middle, _, offset = _around(x, weights, axis)
    return middle + offset


@apart("weights", "axis")
def _line_covariance(x: Array, y: Array, weights: Weights, axis: int) -> Array:
    _, different_x, offset_x = _around(x, weights, axis)
    _, different_y, offset_y = _around(y, weights, axis)
    products = zip(weights, different_x, different_y, strict=True)
    return sum((w * p) * q for w, p, q in products) - offset_x * offset_y


def local_moments(
    images: Sequence[Float[Array, "b h w"]],
    pairs: Sequence[tuple[int, int]],
    rows: Weights,
    columns: Weights,
) -> Moments:
    """Means and population covariances in every whole window, weighted by rows x columns.

    pairs: which images' covariances, by position; (i, i) is a variance. Weights sum to 1.
    The covariance in a window is the mean of those in its columns plus that of the columns' means.
    """
    means = [_line_mean(x, rows, ROWS) for x in images]
    covariances = [
        correlate(_line_covariance(images[i], images[j], rows, ROWS), columns, COLUMNS)
        + _line_covariance(means[i], means[j], columns, COLUMNS)
        for i, j in pairs
    ]
    return Moments([_line_mean(x, columns, COLUMNS) for x in means], covariances)


def sobel(x: Float[Array, "b h w"], mode: str) -> tuple[Array, Array]:
    """Right minus left and below minus above, weighted 1, 2, 1 across; of the image's size.

    mode: what lies outside, as in `numpy.pad`. Whole grey levels give whole numbers.
    """
    x = pad(x, 1, mode)
    across, along = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)
    smooth_rows, smooth_columns = correlate(x, across, ROWS), correlate(x, across, COLUMNS)
    return correlate(smooth_rows, along, COLUMNS), correlate(smooth_columns, along, ROWS)
