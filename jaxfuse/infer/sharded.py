"""One large image over several devices, exactly: each holds some of its rows.

Runs `Model.passes` under shard_map. A device's window overlaps its neighbours' by the largest halo
of all passes; after each pass the overlap is replaced by the rows of the neighbour that answers for
them, and sums over the image are added up over the devices (see docs/adr/0007).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfuse.models.base import Model
from jaxfuse.shapes import Array, Params

ROWS_AXIS = "rows"


class Layout(NamedTuple):
    """Windows of equal size over the rows of an image, one a device; the first and the last one end
    where the image does.
    """

    size: int
    starts: tuple[int, ...]
    firsts: tuple[int, ...]
    """First row that each window answers for; its last is the row before the next one's first."""


def layout(height: int, devices: int, halo: int) -> Layout:
    """Windows for at most so many devices: fewer where the image is low."""
    for count in range(devices, 1, -1):
        size = -(-(height + 2 * halo * (count - 1)) // count)
        starts = tuple((height - size) * i // (count - 1) for i in range(count))
        firsts = (0, *(start + halo for start in starts[1:]))
        # What a window gets from its neighbours must be rows that these answer for.
        from_above = all(a <= b for a, b in zip(firsts[:-1], starts[1:], strict=True))
        lasts = (*firsts[2:], height)
        from_below = all(a + size <= b for a, b in zip(starts[:-1], lasts, strict=True))
        own = all(a < b for a, b in zip(firsts, (*firsts[1:], height), strict=True))
        if size <= height and from_above and from_below and own:
            return Layout(size, starts, firsts)
    return Layout(height, (0,), (0,))


def _refresh(x: Array, plan: Layout, halo: int) -> Array:
    """Replaces the rows of a window (1, size, w, c) that its neighbours answer for by theirs."""
    count, size = len(plan.starts), plan.size
    if count == 1 or not halo:
        return x
    me = lax.axis_index(ROWS_AXIS)
    ends = [start + size for start in plan.starts]
    # Rows of a window below its last own one; they differ by a row where sizes do not divide.
    below = [end - first for end, first in zip(ends[:-1], plan.firsts[1:], strict=True)]
    steps = [b - a for a, b in zip(plan.starts[:-1], plan.starts[1:], strict=True)]
    # Downwards: the rows before the next window's first own one, which begin where it does.
    offset = jnp.asarray([*steps, 0])[me]
    sent = lax.dynamic_slice_in_dim(x, offset, halo, axis=1)
    above = lax.ppermute(sent, ROWS_AXIS, [(i, i + 1) for i in range(count - 1)])
    x = jnp.where(me > 0, lax.dynamic_update_slice_in_dim(x, above, 0, axis=1), x)
    # Upwards: a window's first own rows, as many as the one above lacks at most.
    most = max(below)
    sent = lax.slice_in_dim(x, halo, halo + most, axis=1)
    under = lax.ppermute(sent, ROWS_AXIS, [(i + 1, i) for i in range(count - 1)])
    longer = jnp.pad(x, ((0, 0), (0, most), (0, 0), (0, 0)))
    place = jnp.asarray([*(size - rows for rows in below), size])[me]
    return lax.dynamic_update_slice_in_dim(longer, under, place, axis=1)[:, :size]


@functools.lru_cache(maxsize=16)
def _program(model: Model, mesh: Mesh, plan: Layout, height: int, width: int) -> jax.stages.Wrapped:
    halo = max(step.halo for step in model.passes)
    lasts = (*plan.firsts[1:], height)

    def run(params: Params, visible: Array, infrared: Array) -> Array:
        me = lax.axis_index(ROWS_AXIS)
        row = jnp.asarray(plan.starts)[me] + jnp.arange(plan.size)
        own = (row >= jnp.asarray(plan.firsts)[me]) & (row < jnp.asarray(lasts)[me])
        mask = jnp.broadcast_to(own[:, None].astype(jnp.float32), (plan.size, width))
        maps, sums = {"visible": visible, "infrared": infrared}, {}
        for number, step in enumerate(model.passes):
            needs = tuple(sums[name] for name in step.needs)
            reads = tuple(maps[name] for name in step.reads)
            written, partial = step.program(step.params(params), reads, needs, mask)
            given = lax.psum(partial, ROWS_AXIS)
            sums |= dict(zip(step.gives, given, strict=True))
            later = {name for following in model.passes[number + 1 :] for name in following.reads}
            for name, window in zip(step.writes, written, strict=True):
                maps[name] = _refresh(window, plan, halo) if name in later else window
        return maps["image"]

    rows = PartitionSpec(None, ROWS_AXIS)
    return jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(PartitionSpec(), rows, rows),
            out_specs=rows,
            check_vma=False,
        )
    )


def fuse_sharded(
    model: Model,
    params: Params,
    visible: np.ndarray,
    infrared: np.ndarray,
    devices: int = 0,
) -> np.ndarray:
    """The fused luma, float32 (h, w): `model.apply` on the whole image to rounding.

    visible, infrared: luma in [0, 1], (h, w), of equal shape. devices: how many of this process'
    devices share the rows; 0 takes all, and low images use fewer. Each device needs the memory of
    its rows, see `layout`. Raises ValueError where the model has no passes, or devices are too few.
    """
    if not model.passes:
        raise ValueError(f'{model.name} has no exact windows: use method="whole" or method="tiles"')
    height, width = visible.shape
    available = jax.local_devices()
    if devices > len(available):
        raise ValueError(f"devices = {devices}, but JAX sees {len(available)}: use fewer, or 0")
    chosen = available[: devices or None]
    plan = layout(height, len(chosen), max(step.halo for step in model.passes))
    count, size = len(plan.starts), plan.size
    mesh = Mesh(np.array(chosen[:count]), (ROWS_AXIS,))
    rows = NamedSharding(mesh, PartitionSpec(None, ROWS_AXIS))

    def place(image: np.ndarray) -> jax.Array:
        windows = [np.asarray(image, np.float32)[start : start + size] for start in plan.starts]
        return jax.device_put(np.concatenate(windows)[None, :, :, None], rows)

    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    fused = _program(model, mesh, plan, height, width)(params, place(visible), place(infrared))
    windows = np.asarray(fused)[0, :, :, 0].reshape(count, size, width)
    lasts = (*plan.firsts[1:], height)
    return np.concatenate(
        [
            window[first - start : last - start]
            for window, start, first, last in zip(
                windows, plan.starts, plan.firsts, lasts, strict=True
            )
        ]
    )
