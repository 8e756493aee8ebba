"""Mutual information of features in small windows: FMI.

Haghighat, Aghagolzadeh and Seyedarabi, 2011, in the fast form of Haghighat and Razian, 2014. The
nine features of a 3 x 3 window, stretched to 0..1 and divided by their sum, are a distribution. The
joint distribution of two such windows lies between the independent one and that of Frechet's bound,
as far towards it as their correlation says (Nelsen's method).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxfuse.metrics.triple import Triple
from jaxfuse.metrics.windows import apart, mean
from jaxfuse.shapes import Array, Float

SIDE = 3
COUNT = SIDE * SIDE


def _samples(x: Float[Array, "b h w"]) -> list[Array]:
    """The nine pixels of every whole window, column by column."""
    h, w = x.shape[-2] - SIDE + 1, x.shape[-1] - SIDE + 1
    return [x[:, i : i + h, j : j + w] for j in range(SIDE) for i in range(SIDE)]


def _distribution(samples: list[Array]) -> list[Array]:
    low, high = samples[0], samples[0]
    for sample in samples[1:]:
        low, high = jnp.minimum(low, sample), jnp.maximum(high, sample)
    flat = high == low
    spread = jnp.where(flat, 1.0, high - low)
    stretched = [jnp.where(flat, 1.0, (sample - low) / spread) for sample in samples]
    total = sum(stretched)
    return [s / total for s in stretched]


def _cumulated(p: list[Array]) -> list[Array]:
    sums = [p[0]]
    for share in p[1:-1]:
        sums.append(sums[-1] + share)
    return [*sums, jnp.ones_like(p[0])]


def _entropy(p: list[Array]) -> Array:
    """In bits; of shares that may be a little below 0 by rounding or by extrapolation."""
    return -sum(_share_times_log(share) for share in p)


def _share_times_log(share: Array) -> Array:
    size = jnp.abs(share)
    return jnp.where(size > 0, share * jnp.log2(jnp.where(size > 0, size, 1.0)), 0.0)


def _deviation(p: list[Array]) -> Array:
    """Standard deviation of the position, 1 to 9, under a distribution."""
    centre = sum(i * share for i, share in enumerate(p))
    return jnp.sqrt(sum(share * jnp.square(i - centre) for i, share in enumerate(p)))


@apart()
def _windows(x: Float[Array, "b h w"]) -> tuple[list[Array], Array]:
    """The distribution in every window, and its entropy."""
    p = _distribution(_samples(x))
    return p, _entropy(p)


@apart()
def _dependence(p: list[Array], q: list[Array]) -> tuple[Array, Array]:
    """Correlation, and how far the joint distribution is from independence towards the bound."""
    covariance = sum((a - 1.0 / COUNT) * (b - 1.0 / COUNT) for a, b in zip(p, q, strict=True))
    norm_p = sum(jnp.square(a - 1.0 / COUNT) for a in p)
    norm_q = sum(jnp.square(b - 1.0 / COUNT) for b in q)
    flat = (norm_p <= 0) | (norm_q <= 0)
    correlation = jnp.where(flat, 0.0, covariance / jnp.sqrt(jnp.where(flat, 1.0, norm_p * norm_q)))
    bounds = _bounds(q, correlation)
    covariance_at_bound = sum(jnp.minimum(c, d) - c * d for c in _cumulated(p) for d in bounds)
    spread = _deviation(p) * _deviation(q)
    used = (correlation != 0) & (spread > 0) & (covariance_at_bound > 0)
    ratio = jnp.abs(correlation) * spread / jnp.where(used, covariance_at_bound, 1.0)
    return correlation, jnp.where(used, ratio, 0.0)


def _bounds(q: list[Array], correlation: Array) -> list[Array]:
    """Upper ends of the second variable's intervals.

    Frechet's lower bound is his upper one for a variable that is counted from its end.
    """
    return [jnp.where(correlation < 0, 1.0 - c, c) for c in _cumulated(q)]


@apart()
def _joint_entropy(p: list[Array], q: list[Array], correlation: Array, weight: Array) -> Array:
    upper = _bounds(q, correlation)
    lower = [jnp.where(correlation < 0, 1.0, 0.0), *upper[:-1]]
    result, before = 0.0, jnp.zeros_like(weight)
    for a, c in zip(p, _cumulated(p), strict=True):
        rest = (1.0 - weight) * a
        for b, start, end in zip(q, lower, upper, strict=True):
            low, high = jnp.minimum(start, end), jnp.maximum(start, end)
            overlap = jnp.maximum(jnp.minimum(c, high) - jnp.maximum(before, low), 0.0)
            result = result - _share_times_log(weight * overlap + rest * b)
        before = c
    return result


@apart()
def _normalised(
    source: Array, fused: Array, entropies: Array, joint: Array
) -> Float[Array, "b H W"]:
    """2 I / (H(p) + H(q)); 1 where both windows are equal, 0 where nothing is to be known."""
    samples, kept = _samples(source), _samples(fused)
    equal = samples[0] == kept[0]
    for a, b in zip(samples[1:], kept[1:], strict=True):
        equal = equal & (a == b)
    known = entropies > 0
    information = 2.0 * (entropies - joint) / jnp.where(known, entropies, 1.0)
    return jnp.where(equal, 1.0, jnp.where(known, information, 0.0))


def _fmi(visible: Array, infrared: Array, fused: Array) -> Array:
    """Mean over windows and sources; a window that equals its source's counts as 1."""
    q, entropy_q = _windows(fused)
    result = 0.0
    for source in (visible, infrared):
        p, entropy_p = _windows(source)
        joint = _joint_entropy(p, q, *_dependence(p, q))
        result = result + mean(_normalised(source, fused, entropy_p + entropy_q, joint)) / 2.0
    return result


def _slope(x: Float[Array, "b h w"]) -> Array:
    """Half of right minus left neighbour; one-sided in the first and last column."""
    inner = (x[:, :, 2:] - x[:, :, :-2]) / 2.0
    first, last = x[:, :, 1:2] - x[:, :, :1], x[:, :, -1:] - x[:, :, -2:-1]
    return jnp.concatenate([first, inner, last], axis=-1)


def feature_information_pixel(t: Triple) -> Array:
    """The features are the pixels."""
    return _fmi(*t.images)


def feature_information_gradient(t: Triple) -> Array:
    """The features are horizontal differences."""
    return _fmi(*(_slope(x) for x in t.images))
