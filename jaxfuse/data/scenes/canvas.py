"""A drawing board for made-up scenes: one map of surface numbers, one table of surfaces.

Everything a camera could see of a scene (colour, temperature, light given off, distance, class,
instance) is looked up in the same map of numbers, so all of it is registered by construction.
Coordinates are metres: x to the right of the camera, y up from the road, z away from the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

CLASSES = (
    "background",
    "car",
    "person",
    "bicycle",
    "road",
    "building",
    "vegetation",
    "pole",
    "sky",
)
BACKGROUND, CAR, PERSON, BICYCLE, ROAD, BUILDING, VEGETATION, POLE, SKY = range(len(CLASSES))

SUB = 2
"""Sub-pixels per pixel and axis: edges come out antialiased."""
NEAR = 1.0
"""Nothing closer than this many metres is drawn."""
_SHIFT = 3
BLACK = (0.0, 0.0, 0.0)

Plane = tuple[float, float, float]
Colour = Sequence[float] | np.ndarray


class Layers(NamedTuple):
    """A drawn scene, one value per pixel; float32 unless stated, (h, w) unless stated."""

    albedo: np.ndarray
    """(h, w, 3) linear red, green, blue."""
    temperature: np.ndarray
    """Degrees Celsius, as a thermal camera would read them."""
    emission: np.ndarray
    """(h, w, 3) light given off, linear; 1 is a sunlit white wall."""
    sun: np.ndarray
    """Cosine of the sun's angle on the surface, 0 in its own shade."""
    open_sky: np.ndarray
    """Share of the pixel that is sky."""
    nearness: np.ndarray
    """1 / z, per metre."""
    grain: np.ndarray
    """Strength of the visible texture."""
    ripple: np.ndarray
    """Strength of the thermal texture, degrees."""
    ground: np.ndarray
    """1 on horizontal ground, else 0."""
    labels: np.ndarray
    """int32, index in `CLASSES`."""
    instances: np.ndarray
    """int32, 0 = no instance."""


class _Shape(NamedTuple):
    """Something to draw: `count` polygons of equal length, one after the other in `points`."""

    target: np.ndarray
    points: np.ndarray
    count: int
    number: int | Sequence[int]
    wide: int = 0
    """Width of a line in sub-pixels; 0 fills."""
    closed: bool = False


class Canvas:
    """Surface numbers at `SUB` times the wanted size. What is drawn later hides the earlier."""

    def __init__(
        self, height: int, width: int, focal: float, horizon: float, centre: float, eye: float
    ) -> None:
        """focal, horizon (row) and centre (column) in pixels; eye: height of the camera, metres."""
        self.height, self.width = height, width
        self.focal, self.horizon, self.centre, self.eye = focal, horizon, centre, eye
        self.ids = np.zeros((SUB * height, SUB * width), np.uint16)
        self.cast = np.zeros((height, width), np.uint8)
        """Ground that an object keeps the sun from."""
        self.contact = np.zeros((height, width), np.uint8)
        """Ground right under an object: little light of any kind."""
        self.heat = np.zeros((height, width), np.uint8)
        """Ground warmed by what stands on it."""
        self.instances = 0
        self.ground_plane: Plane = (0.0, 1 / (focal * eye), -horizon / (focal * eye))
        self._queue: list[_Shape] = []
        self._table: list[tuple[float, ...]] = []
        self.surface(BLACK, 0.0, SKY, (0.0, 0.0, 0.0))

    def surface(
        self,
        albedo: Colour,
        temperature: float,
        label: int,
        plane: Plane,
        *,
        instance: int = 0,
        emission: Colour = BLACK,
        sun: float = 0.0,
        grain: float = 0.0,
        ripple: float = 0.0,
    ) -> int:
        """Registers a surface and returns its number. plane gives 1/z = a column + b row + c."""
        flat = 1.0 if plane is self.ground_plane else 0.0
        row = (*albedo, temperature, *emission, sun, *plane, grain, ripple, flat, label, instance)
        self._table.append(row)
        return len(self._table) - 1

    def instance(self) -> int:
        """A fresh instance number."""
        self.instances += 1
        return self.instances

    def upright(self, z: float) -> Plane:
        """The plane that faces the camera at distance z."""
        return (0.0, 0.0, 1.0 / z)

    def wall(self, x: float) -> Plane:
        """The upright plane along the street at x."""
        return (1 / (self.focal * x), 0.0, -self.centre / (self.focal * x))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Metres (n, 3) to column and row (n, 2) in pixels; pixel i covers i to i + 1."""
        pixels = np.empty((len(points), 2))
        scale = self.focal / np.maximum(points[:, 2], NEAR)
        np.multiply(points[:, 0], scale, out=pixels[:, 0])
        np.multiply(self.eye - points[:, 1], scale, out=pixels[:, 1])
        pixels += (self.centre, self.horizon)
        return pixels

    def fill(self, points: np.ndarray, number: int) -> None:
        """Fills one polygon (n, 3)."""
        self._queue.append(_Shape(self.ids, points, 1, number))

    def fill_many(self, points: np.ndarray, number: int) -> None:
        """Fills polygons (k, n, 3) with one number. Where they overlap they leave a hole."""
        if len(points):
            self._queue.append(_Shape(self.ids, points.reshape(-1, 3), len(points), number))

    def fill_each(self, points: np.ndarray, numbers: Sequence[int]) -> None:
        """Fills convex polygons (k, n, 3) one after the other, each with its own number."""
        self._queue.append(_Shape(self.ids, points.reshape(-1, 3), len(points), numbers))

    def stroke(self, points: np.ndarray, metres: float, number: int, closed: bool = False) -> None:
        """Draws a line (n, 3) that is `metres` wide, at least one sub-pixel."""
        wide = max(1, round(SUB * self.focal * metres / float(points[:, 2].mean())))
        self._queue.append(_Shape(self.ids, points, 1, number, wide, closed))

    def shade(self, mask: np.ndarray, ground: np.ndarray, level: int = 255) -> None:
        """Marks a polygon (n, 2) of x, z on the ground in one of the ground masks."""
        points = np.zeros((len(ground), 3))
        points[:, [0, 2]] = ground
        self._queue.append(_Shape(mask, points, 1, level))

    def _draw(self) -> None:
        """Draws the queue in order. One projection for all points: many small ones are slow."""
        points = np.concatenate([shape.points for shape in self._queue])
        starts = np.cumsum([0] + [len(shape.points) for shape in self._queue])
        nearest = np.minimum.reduceat(points[:, 2], starts[:-1])
        pixels = self.project(points)
        fixed = {scale: _fixed(pixels, scale) for scale in (1, SUB)}
        for shape, start, near in zip(self._queue, starts, nearest, strict=False):
            scale, line = (SUB, cv2.LINE_8) if shape.target is self.ids else (1, cv2.LINE_AA)
            if near < NEAR:
                whole = shape.points.reshape(shape.count, -1, 3)
                cut = [part for part in map(_clip_near, whole) if len(part) > 2]
                outlines = [_fixed(self.project(part), scale) for part in cut]
            else:
                here = fixed[scale][start : start + len(shape.points)]
                outlines = list(here.reshape(shape.count, -1, 2))
            number = shape.number
            if not isinstance(number, int):
                for outline, each in zip(outlines, number, strict=True):
                    cv2.fillConvexPoly(shape.target, outline, each, line, _SHIFT)
            elif shape.wide:
                cv2.polylines(
                    shape.target, outlines, shape.closed, number, shape.wide, line, _SHIFT
                )
            elif outlines:
                cv2.fillPoly(shape.target, outlines, number, line, _SHIFT)
        self._queue.clear()

    def layers(self) -> Layers:
        """Draws what is queued and looks everything up."""
        if self._queue:
            self._draw()
        table = np.array(self._table, np.float32)
        size = (self.width, self.height)

        def blend(columns: slice) -> np.ndarray:
            # Four float32 travel as one 16-byte item: several times faster than gathering rows.
            items = np.ascontiguousarray(table[:, columns]).view(np.complex128).ravel()
            fine = items.take(self.ids).view(np.float32).reshape(*self.ids.shape, 4)
            return cv2.resize(fine, size, interpolation=cv2.INTER_AREA)

        surface, light = blend(slice(0, 4)), blend(slice(4, 8))
        sky = (self.ids == 0).view(np.uint8) * np.uint8(255)
        sky = cv2.resize(sky, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        ids = self.ids[1::SUB, 1::SUB]
        column, row, rest, grain, ripple, ground, labels, instances = (
            table[:, k].take(ids) for k in range(8, 16)
        )
        nearness = rest
        nearness += column * (np.arange(self.width, dtype=np.float32) + 0.5)
        nearness += row * (np.arange(self.height, dtype=np.float32) + 0.5)[:, None]
        return Layers(
            surface[..., :3],
            surface[..., 3],
            light[..., :3],
            light[..., 3],
            sky,
            nearness.clip(1 / 400, 1 / NEAR),
            grain,
            ripple,
            ground,
            labels.astype(np.int32),
            instances.astype(np.int32),
        )


def _fixed(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Pixels to OpenCV's fixed-point coordinates, whose whole numbers are pixel centres."""
    return np.rint(((pixels * scale - 0.5) * (1 << _SHIFT)).clip(-4e6, 4e6)).astype(np.int32)


def _clip_near(points: np.ndarray) -> np.ndarray:
    """The part of a polygon (n, 3) in front of `NEAR`."""
    inside = points[:, 2] >= NEAR
    if inside.all():
        return points
    kept = []
    for k in range(len(points)):
        here, last = points[k], points[k - 1]
        if inside[k] != inside[k - 1]:
            share = (NEAR - last[2]) / (here[2] - last[2])
            kept.append(last + share * (here - last))
        if inside[k]:
            kept.append(here)
    return np.array(kept).reshape(-1, 3)


@lru_cache(maxsize=64)
def ring(radius: float, corners: int) -> np.ndarray:
    """Corners (n, 2) of a regular polygon around the origin."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    outline = radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    outline.flags.writeable = False
    return outline


def limbs(bars: np.ndarray, corners: int = 5) -> np.ndarray:
    """Outlines (n, 2 corners, 2) of rounded bars (n, 6): start (2), end (2), radius at each."""
    start, end = bars[:, 0:2], bars[:, 2:4]
    along = end - start
    turn = np.arctan2(along[:, 1], along[:, 0])[:, None]
    back = turn + (np.pi / 2 + np.arange(corners) * (np.pi / (corners - 1)))
    cap = np.stack([np.cos(back), np.sin(back)], -1)
    return np.concatenate(
        [
            start[:, None] + bars[:, 4, None, None] * cap,
            end[:, None] - bars[:, 5, None, None] * cap,
        ],
        1,
    )


def standing(outlines: np.ndarray, x: float, z: float, up: float = 0.0) -> np.ndarray:
    """Places flat outlines (..., 2), metres right and up, in the upright plane at x, up, z."""
    placed = np.empty((*outlines.shape[:-1], 3))
    placed[..., :2] = outlines
    placed[..., :2] += (x, up)
    placed[..., 2] = z
    return placed
