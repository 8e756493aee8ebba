"""What a fused image should keep of its sources: the brighter level, the stronger gradient."""

from __future__ import annotations

import jax.numpy as jnp

from jaxfuse.ops import filters
from jaxfuse.shapes import Gray, Scalar


def maximum_intensity(visible: Gray, infrared: Gray, fused: Gray) -> Scalar:
    """Mean |max(Y, IR) - F|, in [0, 1]. CrossFuse, stage II."""
    return jnp.mean(jnp.abs(jnp.maximum(visible, infrared) - fused))


def maximum_gradient(visible: Gray, infrared: Gray, fused: Gray) -> Scalar:
    """Mean |max(|S Y|, |S IR|) - |S F||, |S x| = |Sobel_x| + |Sobel_y| with zero padding.
    CrossFuse, stage II.
    """
    strongest = jnp.maximum(filters.sobel_magnitude(visible), filters.sobel_magnitude(infrared))
    return jnp.mean(jnp.abs(strongest - filters.sobel_magnitude(fused)))


def imitation(teacher: Gray, fused: Gray) -> Scalar:
    """Mean |T - F| + mean ||S T| - |S F||, of a teacher's fused image and a student's; |S x| as in
    `maximum_gradient`. Ours.
    """
    edges = jnp.abs(filters.sobel_magnitude(teacher) - filters.sobel_magnitude(fused))
    return jnp.mean(jnp.abs(teacher - fused)) + jnp.mean(edges)
