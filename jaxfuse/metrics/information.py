"""Entropies of grey levels: EN, CE, MI, NMI, TE, QNCIE.

Everything is computed from exact counts of the 256 grey levels; a pixel counts for the nearest one.
Logarithms are to base 2, results in bits, unless a convention says otherwise.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxfuse.metrics.triple import Triple
from jaxfuse.metrics.windows import correlation, mean
from jaxfuse.shapes import Array, Float, Int

LEVELS = 256
VISIBLE, INFRARED, FUSED = range(3)
TSALLIS_ORDER = 1.85


def levels(x: Float[Array, "b h w"]) -> Int[Array, "b h w"]:
    """The nearest whole grey level, 0..255."""
    return jnp.clip(jnp.round(x), 0, LEVELS - 1).astype(jnp.int32)


def _counts(index: Int[Array, "b h w"], bins: int) -> Int[Array, "b bins"]:
    batch = index.shape[0]
    shifted = index + bins * jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    zeros = jnp.zeros((batch * bins,), jnp.int32)
    filled = zeros.at[shifted.reshape(-1)].add(1, mode="promise_in_bounds")
    return filled.reshape(batch, bins)


def _shares(counts: Array, t: Triple) -> Array:
    # Divided by a constant, which XLA turns into a product: 1 must still be 1, its logarithm 0.
    return jnp.where(counts == t.pixels, 1.0, counts.astype(t.fused.dtype) / t.pixels)


def histogram(t: Triple, image: int) -> Float[Array, "b 256"]:
    """Share of each grey level in one of the three images."""
    return _shares(_counts(levels(t.images[image]), LEVELS), t)


def joint(t: Triple, first: int, second: int) -> Float[Array, "b 256 256"]:
    """Share of each pair of grey levels in two of the three images."""
    index = levels(t.images[first]) * LEVELS + levels(t.images[second])
    return _shares(_counts(index, LEVELS * LEVELS).reshape(-1, LEVELS, LEVELS), t)


def _share_times_log(p: Array, ratio: Array) -> Array:
    """p log2 ratio where p > 0, else 0."""
    return jnp.where(p > 0, p * jnp.log2(jnp.where(p > 0, ratio, 1.0)), 0.0)


def _entropy(t: Triple, image: int, inside: float = 0.0) -> Float[Array, " b"]:
    """H in bits; `inside` is what some evaluators add to p in the logarithm."""
    p = t.shared(histogram, image)
    return -jnp.sum(_share_times_log(p, p + inside), axis=-1)


def _information(t: Triple, first: int, second: int) -> Float[Array, " b"]:
    """I(first; second) in bits."""
    p = t.shared(joint, first, second)
    independent = t.shared(histogram, first)[:, :, None] * t.shared(histogram, second)[:, None, :]
    return jnp.sum(_share_times_log(p, p / jnp.where(p > 0, independent, 1.0)), axis=(-2, -1))


def entropy(t: Triple) -> Array:
    """Entropy of the fused image."""
    return _entropy(t, FUSED)


def entropy_zoo(t: Triple) -> Array:
    """The same with 1e-7 added in the logarithm."""
    return _entropy(t, FUSED, 1e-7)


def mutual_information(t: Triple) -> Array:
    """I(F; V) + I(F; I) in bits."""
    return t.shared(_information, VISIBLE, FUSED) + t.shared(_information, INFRARED, FUSED)


def mutual_information_nats(t: Triple) -> Array:
    """The same in nats."""
    return math.log(2.0) * mutual_information(t)


def normalised_mutual_information(t: Triple) -> Array:
    """2 (I(F; V) / (H(F) + H(V)) + I(F; I) / (H(F) + H(I))); NaN where H(F) + H(source) = 0."""
    fused = _entropy(t, FUSED)
    return 2.0 * sum(
        t.shared(_information, source, FUSED) / (fused + _entropy(t, source))
        for source in (VISIBLE, INFRARED)
    )


def normalised_mutual_information_zoo(t: Triple) -> Array:
    """2 MI / (H(V) + H(I) + 1e-10), with 1e-10 in the logarithms too."""
    entropies = _entropy(t, INFRARED, 1e-10) + _entropy(t, VISIBLE, 1e-10)
    return 2.0 * mutual_information(t) / (entropies + 1e-10)


def _divergence(t: Triple, source: int) -> Array:
    p, q = t.shared(histogram, source), t.shared(histogram, FUSED)
    both = (p > 0) & (q > 0)
    ratio = jnp.where(both, p, 1.0) / jnp.where(both, q, 1.0)
    return jnp.sum(jnp.where(both, p * jnp.log2(ratio), 0.0), axis=-1)


def cross_entropy(t: Triple) -> Array:
    """Mean over sources of sum p log2(p / q) over the levels that source and fused image share."""
    return (_divergence(t, VISIBLE) + _divergence(t, INFRARED)) / 2.0


def cross_entropy_zoo(t: Triple) -> Array:
    """Binary cross-entropy, in nats, of sigmoids of grey levels; target: the sources' mean."""
    # In terms of 1 - sigmoid, which is what differs between pixels that are not black.
    rest = [jnp.clip(jax.nn.sigmoid(-x), 0.0, 1.0) for x in t.images]
    target = jnp.clip((rest[VISIBLE] + rest[INFRARED]) / 2.0, 1e-7, 1.0 - 1e-7)
    fused = jnp.clip(rest[FUSED], 1e-7, 1.0 - 1e-7)
    return -mean((1.0 - target) * jnp.log1p(-fused) + target * jnp.log(fused))


def entropy_difference_zoo(t: Triple) -> Array:
    """H(I) + H(V) - H(F), with 1e-10 in the logarithms: no joint entropy in it."""
    visible, infrared, fused = (_entropy(t, image, 1e-10) for image in (VISIBLE, INFRARED, FUSED))
    return infrared + visible - fused


def _tsallis_information(t: Triple, first: int, second: int) -> Array:
    """(1 - sum p(a, b)^q / (p(a) p(b))^(q - 1)) / (1 - q)."""
    q = TSALLIS_ORDER
    p = t.shared(joint, first, second)
    independent = t.shared(histogram, first)[:, :, None] * t.shared(histogram, second)[:, None, :]
    ratio = p / jnp.where(p > 0, independent, 1.0)
    return (1.0 - jnp.sum(p * ratio ** (q - 1.0), axis=(-2, -1))) / (1.0 - q)


def tsallis_information(t: Triple) -> Array:
    """I_q(V; F) + I_q(I; F), q = 1.85.

    The paper divides by H_q(V) + H_q(I) - I_q(V; I), which vanishes or turns negative where the
    sources are alike, so that the quotient ranks nothing: only its numerator is used.
    """
    return sum(_tsallis_information(t, source, FUSED) for source in (VISIBLE, INFRARED))


def _correlation_entropy(xy: Array, xf: Array, yf: Array) -> Array:
    """1 + sum l / 3 log256(l / 3) over the eigenvalues l of the matrix of the coefficients."""
    one = jnp.ones_like(xy)
    rows = [jnp.stack(row, -1) for row in ((one, xy, xf), (xy, one, yf), (xf, yf, one))]
    matrix = jnp.stack(rows, axis=-2)
    share = jnp.linalg.eigvalsh(matrix) / 3.0
    # An eigenvalue of 0 may come out below it; what it adds is 0 in the limit.
    undefined = jnp.any(jnp.isnan(matrix), axis=(-2, -1))
    entropy_of_shares = jnp.sum(_share_times_log(share, share), axis=-1)
    return jnp.where(undefined, jnp.nan, 1.0 + entropy_of_shares / math.log2(LEVELS))


def correlation_entropy_zoo(t: Triple) -> Array:
    """With Pearson's coefficients; NaN where an image is constant."""
    visible, infrared, fused = t.images
    return _correlation_entropy(
        correlation(infrared, visible), correlation(infrared, fused), correlation(visible, fused)
    )


def correlation_entropy(t: Triple) -> Array:
    """With mutual information to base 256 as coefficients."""
    pairs = (VISIBLE, INFRARED), (INFRARED, FUSED), (VISIBLE, FUSED)
    scale = 1.0 / math.log2(LEVELS)
    return _correlation_entropy(*(scale * t.shared(_information, *pair) for pair in pairs))
