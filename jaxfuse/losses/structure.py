"""Agreement of an image with its reconstruction: structure, intensity, gradient."""

from __future__ import annotations

import jax.numpy as jnp

from jaxfuse.ops import filters
from jaxfuse.shapes import Gray, Scalar


def mean_square(x: Gray, y: Gray) -> Scalar:
    """Mean squared difference, >= 0."""
    return jnp.mean(jnp.square(x - y))


def dissimilarity(x: Gray, y: Gray) -> Scalar:
    """(1 - SSIM) / 2, in [0, 1]; window 11, sigma 1.5, data range 1. Wang et al., TIP 2004."""
    return (1.0 - filters.ssim(x, y)) / 2.0


def both_dissimilarities(visible: Gray, infrared: Gray, fused: Gray) -> Scalar:
    """(1 - SSIM(Y, F)) + (1 - SSIM(IR, F)), in [0, 4]. Ours."""
    return 2.0 * (dissimilarity(visible, fused) + dissimilarity(infrared, fused))


def reconstruction(x: Gray, x_hat: Gray, structure: float = 5.0) -> Scalar:
    """structure * (1 - SSIM) / 2 + MSE. CrossFuse, stage I, one modality."""
    return structure * dissimilarity(x, x_hat) + mean_square(x, x_hat)


def gradient_difference(x: Gray, x_hat: Gray) -> Scalar:
    """Mean |grad x - grad x_hat| over both directions: normalised Sobel, replicate padding.
    CrossFuse, stage I.
    """
    pairs = zip(filters.sobel(x, True, "edge"), filters.sobel(x_hat, True, "edge"), strict=True)
    return sum(jnp.mean(jnp.abs(a - b)) for a, b in pairs) / 2.0
