"""Separation of what two modalities share from what each has alone."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxfuse.shapes import Features, Scalar


def correlation(x: Features, y: Features, flat: float = 0.0) -> Scalar:
    """Pearson correlation over pixels, averaged over samples and channels; in [-1, 1], 0 where an
    input is constant. flat: a standard deviation that both have besides, so that what is nearly
    constant counts little.
    """
    x, y = (f.astype(jnp.float32) for f in (x, y))
    x = x - x.mean((1, 2), keepdims=True)
    y = y - y.mean((1, 2), keepdims=True)
    besides = x.shape[1] * x.shape[2] * flat**2
    square_x, square_y = jnp.sum(x * x, (1, 2)) + besides, jnp.sum(y * y, (1, 2)) + besides
    # sqrt has no gradient at 0: a constant channel takes the guarded branch, where everything is 0
    # anyway.
    constant = (square_x <= 0.0) | (square_y <= 0.0)
    square_x, square_y = (jnp.where(constant, 1.0, square) for square in (square_x, square_y))
    norms = jnp.sqrt(square_x) * jnp.sqrt(square_y)
    values = jnp.sum(x * y, (1, 2)) / (norms + jnp.finfo(jnp.float32).eps)
    return jnp.mean(jnp.clip(values, -1.0, 1.0))


def decomposition(
    low_visible: Features,
    low_infrared: Features,
    high_visible: Features,
    high_infrared: Features,
    axis_name: str | None = None,
) -> tuple[Scalar, Scalar, Scalar]:
    """cc(high)^2 / (1.01 + cc(low)), and the two correlations. CDDFuse and CrossFuse, L_decomp.

    The correlations are batch means inside a ratio, so with `axis_name` they are averaged over the
    devices first: the result is the whole batch's, not a mean of parts.
    """
    high = correlation(high_visible, high_infrared)
    low = correlation(low_visible, low_infrared)
    if axis_name is not None:
        high, low = lax.pmean((high, low), axis_name)
    return jnp.square(high) / (1.01 + low), low, high
