"""Local means and variances: SSIM, MS-SSIM, VIF, Qy."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfuse.metrics.triple import Triple
from jaxfuse.metrics.windows import (
    Moments,
    Weights,
    apart,
    gaussian,
    local_moments,
    mean,
    pad,
    smooth,
    total,
    uniform,
)
from jaxfuse.shapes import Array

K1, K2 = 0.01, 0.03
WINDOW, SIGMA = 11, 1.5
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM, finest scale first. Wang, Simoncelli and Bovik, 2003, section 3.2."""
VIF_WINDOWS = (17, 9, 5, 3)
VIF_NOISE = 2.0
"""Variance of the visual noise in squared grey levels. Sheikh and Bovik, 2006."""
VIF_TINY = 1e-10

# Visible, infrared, fused; then the fused image with each source.
PAIRS = (0, 0), (1, 1), (2, 2), (0, 2), (1, 2)
PAIRS_ALL = (*PAIRS, (0, 1))


class Pair(NamedTuple):
    """Local means, variances and covariance of two images."""

    mean_x: Array
    mean_y: Array
    variance_x: Array
    variance_y: Array
    covariance: Array


def _pair(moments: Moments, first: int, second: int) -> Pair:
    means, covariances = moments
    return Pair(
        means[first],
        means[second],
        covariances[first],
        covariances[second],
        covariances[PAIRS_ALL.index((first, second))],
    )


def _contrast_structure(p: Pair, c2: float) -> Array:
    return (2.0 * p.covariance + c2) / (p.variance_x + p.variance_y + c2)


def _luminance(p: Pair, c1: float) -> Array:
    square_x, square_y = p.mean_x * p.mean_x, p.mean_y * p.mean_y
    return (2.0 * p.mean_x * p.mean_y + c1) / (square_x + square_y + c1)


def _similarity(p: Pair, data_range: float) -> Array:
    """Wang et al., 2004, eq. 13, per window."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    return _luminance(p, c1) * _contrast_structure(p, c2)


def _gaussian_moments(t: Triple) -> Moments:
    weights = gaussian(WINDOW, SIGMA)
    return local_moments(t.images, PAIRS, weights, weights)


def _uniform_moments(t: Triple) -> Moments:
    """7 x 7 windows, with the covariances of samples rather than populations."""
    means, covariances = local_moments(t.images, PAIRS, uniform(7), uniform(7))
    return Moments(means, [c * (49.0 / 48.0) for c in covariances])


def _ssim(moments: Moments, data_range: float) -> Array:
    """Sum over the two sources."""
    return sum(mean(_similarity(_pair(moments, s, 2), data_range)) for s in (0, 1))


def ssim(t: Triple) -> Array:
    """Mean over the sources; Gaussian window 11, sigma 1.5, range 255."""
    return ssim_vifb(t) / 2.0


def ssim_vifb(t: Triple) -> Array:
    """Sum over the sources; Gaussian window 11, sigma 1.5, range 255."""
    return _ssim(t.shared(_gaussian_moments), 255.0)


def ssim_zoo(t: Triple) -> Array:
    """Sum over the sources; Gaussian window 11, sigma 1.5, range 1 though levels reach 255."""
    return _ssim(t.shared(_gaussian_moments), 1.0)


def ssim_cddfuse(t: Triple) -> Array:
    """Sum over the sources; uniform window 7, sample covariance, range 2 on levels to 255."""
    return _ssim(t.shared(_uniform_moments), 2.0)


def ssim_crossfuse(t: Triple) -> Array:
    """As in `cddfuse` with range 1."""
    return _ssim(t.shared(_uniform_moments), 1.0)


@apart("padded")
def _halved(x: Array, padded: bool) -> Array:
    """Means of 2 x 2 pixels. An odd size loses its last line, or gains a 0 on both sides."""
    h, w = x.shape[-2:]
    if padded:
        x = jnp.pad(x, ((0, 0), (h % 2, h % 2), (w % 2, w % 2)))
        h, w = x.shape[-2:]
    h, w = h - h % 2, w - w % 2
    rows = x[:, 0:h:2, :w] + x[:, 1:h:2, :w]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) / 4.0


def _multiscale(t: Triple, data_range: float, padded: bool) -> Array:
    """Sum over the sources; a negative factor counts as 0."""
    weights = gaussian(WINDOW, SIGMA)
    images, moments = list(t.images), t.shared(_gaussian_moments)
    products: list[Array | float] = [1.0, 1.0]
    for scale, exponent in enumerate(SCALES):
        if scale:
            images = [_halved(x, padded) for x in images]
            moments = local_moments(images, PAIRS, weights, weights)
        for source in (0, 1):
            pair = _pair(moments, source, 2)
            if scale == len(SCALES) - 1:
                factor = mean(_similarity(pair, data_range))
            else:
                factor = mean(_contrast_structure(pair, (K2 * data_range) ** 2))
            products[source] = products[source] * jnp.maximum(factor, 0.0) ** exponent
    return products[0] + products[1]


def ms_ssim(t: Triple) -> Array:
    """Mean over the sources; range 255; an odd size loses its last line when halved."""
    return _multiscale(t, 255.0, padded=False) / 2.0


def ms_ssim_zoo(t: Triple) -> Array:
    """Sum over the sources; range 1; an odd size is padded with 0 on both sides when halved."""
    return _multiscale(t, 1.0, padded=True)


@apart()
def _fidelity_terms(p: Pair) -> tuple[Array, Array]:
    """Information that the second image keeps of the first, and that the first has, per window."""
    s1, s2, s12 = jnp.maximum(p.variance_x, 0.0), jnp.maximum(p.variance_y, 0.0), p.covariance
    flat1, flat2 = s1 < VIF_TINY, s2 < VIF_TINY
    gain = jnp.where(flat1 | flat2, 0.0, s12 / (s1 + VIF_TINY))
    left = jnp.where(flat1, s2, s2 - gain * s12)
    left = jnp.where(flat2, 0.0, left)
    left = jnp.where(gain < 0.0, s2, left)
    gain = jnp.maximum(gain, 0.0)
    s1 = jnp.where(flat1, 0.0, s1)
    left = jnp.maximum(left, VIF_TINY)
    return (
        jnp.log1p(gain * gain * s1 / (left + VIF_NOISE)),
        jnp.log1p(s1 / VIF_NOISE),
    )


def _fidelity(t: Triple, windows: tuple[Weights, ...], same: bool) -> tuple[Array, Array]:
    """VIF of the fused image for each source; NaN where a source has no contrast anywhere.

    same: zeros around the image, results of its size; else whole windows only.
    """
    images = list(t.images)
    kept, held = [0.0, 0.0], [0.0, 0.0]
    for scale, weights in enumerate(windows):
        margin = len(weights) // 2 if same else 0
        around = [pad(x, margin, "constant") for x in images]
        if scale:
            images = [smooth(x, weights, stride=2) for x in around]
            around = [pad(x, margin, "constant") for x in images]
        moments = local_moments(around, PAIRS, weights, weights)
        for source in (0, 1):
            numerator, denominator = _fidelity_terms(_pair(moments, source, 2))
            kept[source] += total(numerator)
            held[source] += total(denominator)
    return kept[0] / held[0], kept[1] / held[1]


def _centred_windows() -> tuple[Weights, ...]:
    return tuple(gaussian(n, n / 5) for n in VIF_WINDOWS)


def vif(t: Triple) -> Array:
    """Mean over the sources; NaN where a source is constant."""
    return sum(_fidelity(t, _centred_windows(), same=False)) / 2.0


def vif_cddfuse(t: Triple) -> Array:
    """Sum over the sources; a source that is constant counts as 1."""
    terms = _fidelity(t, _centred_windows(), same=False)
    return sum(jnp.where(jnp.isnan(term), 1.0, term) for term in terms)


def vif_zoo(t: Triple) -> Array:
    """Sum over the sources; zeros outside, windows off their centre and stretched."""
    windows = []
    for n in VIF_WINDOWS:
        x = np.linspace(-(n + 1) // 2, n // 2, n)
        weights = np.exp(-0.5 * (x / (n / 5)) ** 2)
        windows.append(tuple((weights / weights.sum()).tolist()))
    return sum(_fidelity(t, tuple(windows), same=True))


@apart("data_range")
def _best_similarity(
    between: Pair, visible: Pair, infrared: Pair, share: Array, data_range: float
) -> Array:
    """Where the sources agree, the similarities weighted, infrared by `share`; else the larger."""
    agreement, visible, infrared = (
        _similarity(p, data_range) for p in (between, visible, infrared)
    )
    weighted = share * infrared + (1.0 - share) * visible
    return jnp.where(agreement >= 0.75, weighted, jnp.maximum(infrared, visible))


def _yang(moments: Moments, share: Array, data_range: float) -> Array:
    pairs = (_pair(moments, a, b) for a, b in ((0, 1), (0, 2), (1, 2)))
    return mean(_best_similarity(*pairs, share, data_range))


def yang(t: Triple) -> Array:
    """Gaussian window 7, sigma 1.5, range 255; flat sources share equally."""
    weights = gaussian(7, 1.5)
    moments = local_moments(t.images, PAIRS_ALL, weights, weights)
    visible, infrared = moments.covariances[:2]
    both = visible + infrared
    share = jnp.where(both > 0, infrared / jnp.where(both > 0, both, 1.0), 0.5)
    return _yang(moments, share, 255.0)


def yang_zoo(t: Triple) -> Array:
    """The window is one Gaussian in each of 7 rows, so its sum is 7; zeros outside; range 1."""
    around = [pad(x, 3, "constant") for x in t.images]
    means, covariances = local_moments(around, PAIRS_ALL, uniform(7), gaussian(7, 1.5))
    # What E[xy] - E[x] E[y] gives with weights of sum 7: negative where an image is bright.
    summed = [
        7.0 * c - 42.0 * means[i] * means[j]
        for c, (i, j) in zip(covariances, PAIRS_ALL, strict=True)
    ]
    moments = Moments([7.0 * m for m in means], summed)
    visible, infrared = summed[:2]
    return _yang(moments, infrared / (infrared + visible + 1e-10), 1.0)
