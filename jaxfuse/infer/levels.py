"""From stored levels to stored levels in one compiled program, colours included."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxfuse.models import Model
from jaxfuse.ops import color
from jaxfuse.shapes import Array, Params

Levels = tuple[float, float]
"""What stands for 0 and for 1: black and white of stored integers."""
Stretch = Literal["none", "minmax"]


@functools.cache
def program(
    model: Model, stretch: Stretch = "none"
) -> Callable[[Params, Array, Array, Array, Array], Array]:
    """The network between stored levels, under jit; compiles once per model, size and dtype.

    (params, visible (h, w) or (h, w, 3), infrared (h, w), levels of each (2,)) -> fused, like
    visible in shape, dtype and levels, as `replace_luma` colours it. Levels beyond are clipped.
    stretch: minmax spreads the fused luma over [0, 1].
    One program from integers to integers: a quarter of the bytes to and fro, and no passes over
    floats on the host.
    """

    def unit(stored: Array, levels: Array) -> Array:
        low, high = levels
        return jnp.clip((stored.astype(jnp.float32) - low) / (high - low), 0.0, 1.0)

    def run(
        params: Params,
        visible: Array,
        infrared: Array,
        visible_levels: Array,
        infrared_levels: Array,
    ) -> Array:
        rgb = unit(visible if visible.ndim == 3 else visible[:, :, None], visible_levels)
        heat = unit(infrared[:, :, None], infrared_levels)
        fused = model.apply(params, color.luma(rgb)[None], heat[None]).image[0]
        if stretch == "minmax":
            low, high = fused.min(), fused.max()
            spread = jnp.where(high > low, high - low, 1.0)
            fused = jnp.where(high > low, (fused - low) / spread, fused)
        black, white = visible_levels
        stored = color.replace_luma(rgb, fused) * (white - black) + black
        if jnp.issubdtype(visible.dtype, jnp.integer):
            stored = jnp.rint(stored)
        return stored.astype(visible.dtype).reshape(visible.shape)

    return jax.jit(run)
