"""What a fused image should keep of its sources: the brighter level, the stronger gradient."""

from __future__ import annotations

import jax.numpy as jnp

from jaxfuse.losses import decomposition
from jaxfuse.ops import filters
from jaxfuse.shapes import Gray, Scalar

FLAT = 0.01
"""Standard deviation of an image that counts as flat."""


def maximum_intensity(visible: Gray, infrared: Gray, fused: Gray) -> Scalar:
    """Mean |max(Y, IR) - F|, in [0, 1]. CrossFuse, stage II."""
    return jnp.mean(jnp.abs(jnp.maximum(visible, infrared) - fused))


def maximum_gradient(visible: Gray, infrared: Gray, fused: Gray) -> Scalar:
    """Mean |max(|S Y|, |S IR|) - |S F||, |S x| = |Sobel_x| + |Sobel_y| with zero padding.
    CrossFuse, stage II.
    """
    strongest = jnp.maximum(filters.sobel_magnitude(visible), filters.sobel_magnitude(infrared))
    return jnp.mean(jnp.abs(strongest - filters.sobel_magnitude(fused)))


def strongest_difference(visible: Gray, infrared: Gray, fused: Gray) -> Scalar:
    """Mean |d - d_F| over both directions: d is the difference of neighbouring pixels in the image
    where it is larger, with its sign. Ours; unlike `maximum_gradient` no checkerboard satisfies it.
    """
    total = jnp.zeros((), jnp.float32)
    for axis in (1, 2):
        of_visible, of_infrared, of_fused = (
            jnp.diff(x, axis=axis) for x in (visible, infrared, fused)
        )
        stronger = jnp.abs(of_visible) >= jnp.abs(of_infrared)
        target = jnp.where(stronger, of_visible, of_infrared)
        total = total + jnp.mean(jnp.abs(target - of_fused))
    return total


def unexplained_differences(visible: Gray, infrared: Gray, fused: Gray) -> Scalar:
    """(1 - corr(F - IR, Y)) + (1 - corr(F - Y, IR)), in [0, 4]: what the fused image adds to one
    image should come from the other. 2 - SCD (Aslantas and Bendes, AEU 2015) of each example but
    for `FLAT`: contrasts below a hundredth count little, which are noise.
    """
    of_visible = decomposition.correlation(fused - infrared, visible, FLAT)
    of_infrared = decomposition.correlation(fused - visible, infrared, FLAT)
    return (1.0 - of_visible) + (1.0 - of_infrared)


def imitation(teacher: Gray, fused: Gray) -> Scalar:
    """Mean |T - F| + mean ||S T| - |S F||, of a teacher's fused image and a student's; |S x| as in
    `maximum_gradient`. Ours.
    """
    edges = jnp.abs(filters.sobel_magnitude(teacher) - filters.sobel_magnitude(fused))
    return jnp.mean(jnp.abs(teacher - fused)) + jnp.mean(edges)
