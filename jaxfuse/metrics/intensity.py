"""Pixels and their differences: SD, SF, AG, EI, CC, SCD, MSE, RMSE, PSNR.

Grey levels are on the scale 0..255, and so are the results, unless a convention says otherwise.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxfuse.metrics.triple import Triple
from jaxfuse.metrics.windows import centred, correlation, mean, sobel, total
from jaxfuse.shapes import Array

PEAK = 255.0


def standard_deviation(t: Triple) -> Array:
    """Population standard deviation of the fused image."""
    return jnp.sqrt(mean(jnp.square(centred(t.fused))))


def _squared_differences(t: Triple) -> tuple[Array, Array]:
    """Sums of squared differences between neighbours in a row and in a column."""
    f = t.fused
    rows, columns = f[:, :, 1:] - f[:, :, :-1], f[:, 1:, :] - f[:, :-1, :]
    return total(jnp.square(rows)), total(jnp.square(columns))


def spatial_frequency(t: Triple) -> Array:
    """sqrt(RF^2 + CF^2), both squared differences divided by h w."""
    rows, columns = t.shared(_squared_differences)
    return jnp.sqrt((rows + columns) / t.pixels)


def spatial_frequency_means(t: Triple) -> Array:
    """The same, but each sum divided by how many differences it has."""
    rows, columns = t.shared(_squared_differences)
    h, w = t.fused.shape[-2:]
    return jnp.sqrt(rows / (h * (w - 1)) + columns / ((h - 1) * w))


def _difference(x: Array, axis: int) -> Array:
    """Half of next minus previous; one-sided at the ends."""
    n = x.shape[axis]
    part = lambda a, b: x[:, a:b] if axis == 1 else x[:, :, a:b]  # noqa: E731
    first, last = part(1, 2) - part(0, 1), part(n - 1, n) - part(n - 2, n - 1)
    return jnp.concatenate([first, (part(2, n) - part(0, n - 2)) / 2.0, last], axis=axis)


def _gradient_sum(t: Triple) -> Array:
    dx, dy = _difference(t.fused, 2), _difference(t.fused, 1)
    return total(jnp.sqrt((dx * dx + dy * dy) / 2.0))


def average_gradient(t: Triple) -> Array:
    """Mean of sqrt((dx^2 + dy^2) / 2), differences to the next pixel, where both exist."""
    corner = t.fused[:, :-1, :-1]
    dx, dy = t.fused[:, :-1, 1:] - corner, t.fused[:, 1:, :-1] - corner
    return mean(jnp.sqrt((dx * dx + dy * dy) / 2.0))


def average_gradient_central(t: Triple) -> Array:
    """With central differences, one-sided at the border; divided by h w."""
    return t.shared(_gradient_sum) / t.pixels


def average_gradient_vifb(t: Triple) -> Array:
    """With central differences, one-sided at the border; divided by (h - 1) (w - 1)."""
    h, w = t.fused.shape[-2:]
    return t.shared(_gradient_sum) / ((h - 1) * (w - 1))


def _edge_intensity(t: Triple, mode: str) -> Array:
    gx, gy = sobel(t.fused, mode)
    return mean(jnp.sqrt(gx * gx + gy * gy))


def edge_intensity(t: Triple) -> Array:
    """Mean Sobel magnitude, the border repeated."""
    return _edge_intensity(t, "edge")


def edge_intensity_zoo(t: Triple) -> Array:
    """Mean Sobel magnitude, zeros outside."""
    return _edge_intensity(t, "constant")


def correlation_coefficient(t: Triple) -> Array:
    """Mean of the fused image's correlations with its sources; NaN where one is constant."""
    return sum(correlation(source, t.fused) for source in t.sources) / 2.0


def sum_of_correlations(t: Triple) -> Array:
    """r(V, F - I) + r(I, F - V); NaN where the fused image equals a source, or one is constant."""
    visible, infrared, fused = t.images
    return correlation(visible, fused - infrared) + correlation(infrared, fused - visible)


def _squared_errors(t: Triple) -> tuple[Array, Array]:
    """Sums of squared differences from visible and from infrared."""
    visible, infrared, fused = t.images
    return total(jnp.square(visible - fused)), total(jnp.square(infrared - fused))


def squared_error(t: Triple) -> Array:
    """Mean over sources of the mean squared difference."""
    return sum(t.shared(_squared_errors)) / (2.0 * t.pixels)


def squared_error_of_one(t: Triple) -> Array:
    """The same for images scaled to 0..1."""
    return squared_error(t) / PEAK**2


def root_squared_error(t: Triple) -> Array:
    """Mean over sources of the root of the mean squared difference."""
    return sum(jnp.sqrt(s / t.pixels) for s in t.shared(_squared_errors)) / 2.0


def root_squared_error_vifb(t: Triple) -> Array:
    """Mean over sources of the root of the SUM of squares, divided by h w."""
    return sum(jnp.sqrt(s) for s in t.shared(_squared_errors)) / (2.0 * t.pixels)


def peak_signal_to_noise(t: Triple) -> Array:
    """10 log10(255^2 / MSE); infinite where the fused image equals both sources."""
    return 10.0 * jnp.log10(PEAK**2 / squared_error(t))


def peak_signal_to_noise_cddfuse(t: Triple) -> Array:
    """The peak is the fused image's largest level."""
    peak = jnp.max(t.fused, axis=(-2, -1))
    return 10.0 * jnp.log10(peak * peak / squared_error(t))


def peak_signal_to_noise_crossfuse(t: Triple) -> Array:
    """That peak on 0..255 over an error on 0..1, which adds 48.13 dB."""
    peak = jnp.max(t.fused, axis=(-2, -1))
    return 10.0 * jnp.log10(peak * peak / squared_error_of_one(t))


def peak_signal_to_noise_zoo(t: Triple) -> Array:
    """255^2 over an error on 0..1, which adds 48.13 dB."""
    return 10.0 * jnp.log10(PEAK**2 / squared_error_of_one(t))


def peak_signal_to_noise_vifb(t: Triple) -> Array:
    """20 log10(255 / sqrt(RMSE)) with that evaluator's RMSE in place of a mean square."""
    return 20.0 * jnp.log10(PEAK / jnp.sqrt(root_squared_error_vifb(t)))
