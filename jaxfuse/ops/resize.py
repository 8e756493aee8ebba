"""Bilinear resizing, as two products with small fixed matrices."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfuse.shapes import Array, Float


@functools.lru_cache(maxsize=256)
def _matrix(before: int, after: int) -> np.ndarray:
    """(after, before): what each new sample takes of each old one; every row sums to 1."""
    position = np.maximum((np.arange(after) + 0.5) * before / after - 0.5, 0.0)
    low = np.minimum(position.astype(np.int64), before - 1)
    high = np.minimum(low + 1, before - 1)
    part = position - low
    matrix = np.zeros((after, before))
    rows = np.arange(after)
    matrix[rows, low] += 1.0 - part
    matrix[rows, high] += part
    return matrix.astype(np.float32)


def bilinear(x: Float[Array, "b _ _ c"], height: int, width: int) -> Float[Array, "b _ _ c"]:
    """Maps of another size by bilinear interpolation, in the dtype given.

    Pixels are areas: centres lie at half-integers, and beyond the outermost ones the value stays.
    PyTorch's `interpolate(size, mode="bilinear", align_corners=False)`, without anti-aliasing where
    the map shrinks. Any sizes from 1x1.
    """
    if min(height, width) < 1:
        raise ValueError(f"bilinear: cannot make a map of {height}x{width}: sizes start at 1")
    # Products, and not gathers, because the gradient of a gather is a scatter: five times slower on
    # a CPU. The full precision keeps float32 what it is on accelerators that would round it.
    if x.shape[1] != height:
        rows = jnp.asarray(_matrix(x.shape[1], height), x.dtype)
        x = jnp.einsum("oh,bhwc->bowc", rows, x, precision=lax.Precision.HIGHEST)
    if x.shape[2] != width:
        columns = jnp.asarray(_matrix(x.shape[2], width), x.dtype)
        x = jnp.einsum("pw,bowc->bopc", columns, x, precision=lax.Precision.HIGHEST)
    return x
