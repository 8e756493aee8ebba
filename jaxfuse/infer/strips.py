"""Large images in windows, exactly: what `Model.apply` gives on the whole image, in little memory.

Runs `Model.passes` (see `jaxfuse.models.base.Pass`, docs/adr/0007): each pass goes once over the
image, strip of rows by strip of rows, each strip in small windows (see WINDOW_PIXELS).
Memory is two or three strips of feature maps and the maps that `memory_budget` allows; other maps
lie in scratch files.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfuse.infer.maps import DEFAULT_BUDGET, MapStore
from jaxfuse.models.base import Model, Pass
from jaxfuse.shapes import Params

WINDOW_PIXELS = {"cpu": 9216}
NATIVE_WINDOW_PIXELS = 20480
OTHER_WINDOW_PIXELS = 1 << 19
"""Pixels of a window by JAX backend. On CPU a window's temporary arrays, 3.4 KB a pixel (less by
kernels in C++), must stay below 32 MiB: glibc maps larger ones anew for each call, and their page
faults double a pass's time. Other backends: not measured."""

GRAIN = 16
"""Window sides are multiples of this in larger images: images of many sizes share programs."""

CALL_COST = 400
"""What starting a window costs, in pixels."""

IN_FLIGHT = 2
"""Windows handed to the device before the first one's result is awaited."""


class Cut(NamedTuple):
    """One window along one axis: it covers start .. start + size and answers for first .. last."""

    start: int
    first: int
    last: int


def cuts(length: int, size: int, halo: int) -> tuple[Cut, ...]:
    """Windows of equal size along an axis; what they answer for is the axis, without overlap.

    Every pixel answered for is `halo` or more from a window edge that is no edge of the image.
    """
    if size >= length:
        return (Cut(0, 0, length),)
    if size <= 2 * halo:
        raise ValueError(
            f"windows of {size} pixels leave nothing between halos of {halo}: use {2 * halo + 1} "
            "or more"
        )
    step = size - 2 * halo
    count = math.ceil((length - 2 * halo) / step)
    starts = [min(i * step, length - size) for i in range(count)]
    ends = [start + size - halo for start in starts[:-1]] + [length]
    return tuple(Cut(*cut) for cut in zip(starts, [0, *ends[:-1]], ends, strict=True))


@functools.lru_cache(maxsize=256)
def choose_window(height: int, width: int, halo: int, pixels: int) -> tuple[int, int]:
    """(height, width) of the windows of at most about `pixels` pixels that make a pass cheapest."""

    def sides(length: int) -> list[int]:
        smallest = math.ceil(max(3 * GRAIN, 4 * halo) / GRAIN) * GRAIN
        return [*range(smallest, min(length, pixels // smallest + 1), GRAIN), length]

    def cost(window: tuple[int, int]) -> int:
        count = len(cuts(height, window[0], halo)) * len(cuts(width, window[1], halo))
        return count * (window[0] * window[1] + CALL_COST)

    windows = [(h, w) for h in sides(height) for w in sides(width)]
    allowed = [window for window in windows if window[0] * window[1] <= pixels]
    return min(allowed, key=cost) if allowed else min(windows, key=math.prod)


@functools.lru_cache(maxsize=256)
def _compiled(program: Callable) -> Callable:
    return jax.jit(program)


def _copy(window: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 64 bytes: JAX on CPU copies others once more."""
    memory = np.empty(window.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + window.nbytes].view(window.dtype).reshape(window.shape)
    copy[...] = window
    return copy


class _Strip(NamedTuple):
    """Rows of the maps a pass writes, on the way to the store."""

    row: Cut
    maps: dict[str, np.ndarray]


class _Sweep:
    """One pass over the image."""

    def __init__(
        self,
        step: Pass,
        params: Params,
        sums: dict[str, Any],
        store: MapStore,
        io: ThreadPoolExecutor,
        shape: tuple[int, int],
        window: tuple[int, int],
    ):
        self.step, self.store, self.io, self.window = step, store, io, window
        self.rows = cuts(shape[0], window[0], step.halo)
        self.columns = cuts(shape[1], window[1], step.halo)
        self.width = shape[1]
        self.run_window = functools.partial(_compiled(step.program), step.params(params))
        self.needs = tuple(sums[name] for name in step.needs)
        self.total: Any = None
        self.unwritten: collections.deque[_Strip] = collections.deque()
        self.writes: collections.deque[Future] = collections.deque()

    def run(self) -> dict[str, Any]:
        """Sweeps and returns the sums, by name."""
        strip = self.io.submit(self._read, self.rows[0])
        running: collections.deque[tuple[int, Cut, tuple, tuple]] = collections.deque()
        for i, row in enumerate(self.rows):
            maps = strip.result()
            if i + 1 < len(self.rows):
                strip = self.io.submit(self._read, self.rows[i + 1])
            for column in self.columns:
                windows = tuple(
                    _copy(rows[None, :, column.start : column.start + self.window[1]])
                    for rows in maps
                )
                written, partial = self.run_window(windows, self.needs, self._mask(row, column))
                running.append((i, column, written, partial))
                if len(running) > IN_FLIGHT:
                    self._settle(*running.popleft())
        while running:
            self._settle(*running.popleft())
        while self.writes:
            self.writes.popleft().result()
        return dict(zip(self.step.gives, jax.tree.map(np.float32, self.total or ()), strict=True))

    def _read(self, row: Cut) -> list[np.ndarray]:
        return [
            self.store.read(name, row.start, row.start + self.window[0]) for name in self.step.reads
        ]

    def _mask(self, row: Cut, column: Cut) -> np.ndarray:
        mask = np.zeros(self.window, np.float32)
        mask[
            row.first - row.start : row.last - row.start,
            column.first - column.start : column.last - column.start,
        ] = 1
        return mask

    def _settle(self, i: int, column: Cut, written: tuple, partial: tuple) -> None:
        """Takes over a finished window. A strip is written once no window still reads its rows."""
        row = self.rows[i]
        if column is self.columns[0]:
            shape = (row.last - row.first, self.width)
            maps = {
                name: np.empty((*shape, channels), dtype)
                for name, (channels, dtype) in self.step.writes.items()
            }
            self.unwritten.append(_Strip(row, maps))
        for name, window in zip(self.step.writes, written, strict=True):
            kept = np.asarray(window)[0, row.first - row.start : row.last - row.start]
            self.unwritten[-1].maps[name][:, column.first : column.last] = kept[
                :, column.first - column.start : column.last - column.start
            ]
        partial = jax.tree.map(lambda part: np.asarray(part, np.float64), partial)
        # Sums of many windows in float64: their own rounding would grow with the image.
        self.total = partial if self.total is None else jax.tree.map(np.add, self.total, partial)
        if column is self.columns[-1]:
            still_read = self.rows[i + 1].start if i + 1 < len(self.rows) else self.rows[-1].last
            while self.unwritten and self.unwritten[0].row.last <= still_read:
                self.writes.append(self.io.submit(self._write, self.unwritten.popleft()))
            while len(self.writes) > 1:
                self.writes.popleft().result()

    def _write(self, strip: _Strip) -> None:
        for name, rows in strip.maps.items():
            self.store.write(name, strip.row.first, rows)


def fuse_strips(
    model: Model,
    params: Params,
    visible: np.ndarray,
    infrared: np.ndarray,
    *,
    window: tuple[int, int] | None = None,
    memory_budget: int = DEFAULT_BUDGET,
    scratch: str | Path | None = None,
) -> np.ndarray:
    """The fused luma, float32 (h, w): `model.apply` on the whole image to rounding (about 1e-6).

    visible, infrared: luma in [0, 1], (h, w) or (1, h, w, 1), of equal shape. window: (height,
    width) of the windows, default by what is fastest. memory_budget: bytes of feature maps kept in
    memory, 256 x h x w each for CrossFuse; the others lie in files in `scratch` (default: the
    system's temporary folder; mind that it may itself be memory). Raises ScratchError where the
    disk is full, ValueError where the model has no passes.
    """
    if not model.passes:
        raise ValueError(f'{model.name} has no exact windows: use method="whole" or method="tiles"')
    height, width = visible.shape if visible.ndim == 2 else visible.shape[1:3]
    inputs = {
        name: np.ascontiguousarray(image, np.float32).reshape(height, width, 1)
        for name, image in (("visible", visible), ("infrared", infrared))
    }
    params = jax.tree.map(jnp.asarray, params)
    pixels = WINDOW_PIXELS.get(jax.default_backend(), OTHER_WINDOW_PIXELS)
    pixels = NATIVE_WINDOW_PIXELS if model.native() else pixels
    layout = {
        name: spec for step in model.passes for name, spec in step.writes.items() if name != "image"
    }
    fused = np.empty((height, width, 1), np.float32)
    sums: dict[str, Any] = {}
    # One thread reads and writes maps, in the order it is told to, while the device computes.
    with (
        MapStore(height, width, layout, memory_budget, scratch) as store,
        ThreadPoolExecutor(1) as io,
    ):
        for name, image in (*inputs.items(), ("image", fused)):
            store.add(name, image)
        for number, step in enumerate(model.passes):
            size = window or choose_window(height, width, step.halo, pixels)
            size = (min(size[0], height), min(size[1], width))
            sums |= _Sweep(step, params, sums, store, io, (height, width), size).run()
            later = {
                name
                for following in model.passes[number + 1 :]
                for name in (*following.reads, *following.writes)
            }
            for name in step.reads:
                if name not in later:
                    store.drop(name)
    return fused[:, :, 0]
