"""Large images in independent tiles: approximate, for networks that have no exact way, or where
time matters most.

Each tile computes its own channel attention, so the picture differs from the whole image's;
overlapping tiles are blended so that no edge shows. `jaxfuse.infer.strips` is the exact way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxfuse.models import Model
from jaxfuse.shapes import Gray, Params

TILE = 256
OVERLAP = 64
BATCH = 2


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def fuse_tiles(
    model: Model,
    params: Params,
    visible: np.ndarray,
    infrared: np.ndarray,
    *,
    tile: int = TILE,
    overlap: int = OVERLAP,
    batch: int = BATCH,
) -> np.ndarray:
    """The fused luma, float32 (h, w), approximate.

    visible, infrared: luma in [0, 1], (h, w). tile, overlap: pixels. All tiles have one size and
    all batches one length, so one program serves every image; an image smaller than a tile is
    extended by reflection and cropped. Where tiles overlap they are blended with raised-cosine
    weights.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap = {overlap} must lie in 0..tile - 1 ({tile - 1})")
    height, width = visible.shape
    extend = ((0, max(0, tile - height)), (0, max(0, tile - width)))
    images = [
        np.pad(np.asarray(x, np.float32), extend, mode="symmetric") for x in (visible, infrared)
    ]
    places = [
        (y, x)
        for y in _starts(images[0].shape[0], tile, overlap)
        for x in _starts(images[0].shape[1], tile, overlap)
    ]
    ramp = np.minimum(np.arange(tile) + 0.5, tile - np.arange(tile) - 0.5) / max(overlap, 1)
    side = 0.5 - 0.5 * np.cos(np.pi * np.clip(ramp, 0.0, 1.0))
    weight = np.outer(side, side).astype(np.float32) + np.float32(1e-6)
    total, weights = np.zeros(images[0].shape, np.float32), np.zeros(images[0].shape, np.float32)
    run = compiled(model)
    for first in range(0, len(places), batch):
        group = places[first : first + batch]
        # The last group is filled up with its own last tile: another length would be another
        # program.
        filled = group + [group[-1]] * (batch - len(group))
        stacks = [
            np.stack([x[y0 : y0 + tile, x0 : x0 + tile, None] for y0, x0 in filled]) for x in images
        ]
        fused = np.asarray(run(params, *stacks))
        for (y0, x0), result in zip(group, fused, strict=False):
            total[y0 : y0 + tile, x0 : x0 + tile] += weight * result[:, :, 0]
            weights[y0 : y0 + tile, x0 : x0 + tile] += weight
    return (total / weights)[:height, :width]


@functools.cache
def compiled(model: Model) -> Callable[[Params, Gray, Gray], Gray]:
    """The network's image under jit; compiles once per model and shape."""
    return jax.jit(lambda params, visible, infrared: model.apply(params, visible, infrared).image)
