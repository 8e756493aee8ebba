"""A drawing board for made-up scenes: one map of surface numbers, one table of what each surface is.

Everything a camera could see of a scene (colour, temperature, light given off, distance, class, instance) is
looked up in the same map of numbers, so all of it is registered by construction. Coordinates are metres in
front of the camera: x to the right, y up from the road, z away from the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
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
Colour = Sequence[float]


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


class Canvas:
    """Surface numbers at `SUB` times the wanted size. What is drawn later hides what was drawn before."""

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
        """Metres (..., 3) to column and row (..., 2) in pixels; pixel i covers i to i + 1."""
        scale = self.focal / points[..., 2]
        column = self.centre + points[..., 0] * scale
        return np.stack([column, self.horizon + (self.eye - points[..., 1]) * scale], -1)

    def _fixed(self, pixels: np.ndarray) -> np.ndarray:
        scaled = (pixels * SUB - 0.5) * (1 << _SHIFT)
        return np.rint(scaled.clip(-4e6, 4e6)).astype(np.int32)

    def fill(self, points: np.ndarray, number: int) -> None:
        """Fills one polygon (n, 3) given in metres; the part behind the camera is cut off."""
        points = _clip_near(np.asarray(points, np.float64))
        if len(points) > 2:
            cv2.fillPoly(self.ids, [self._fixed(self.project(points))], number, shift=_SHIFT)

    def fill_many(self, points: np.ndarray, number: int) -> None:
        """Fills polygons (k, n, 3) given in metres, all in front of the camera. Overlaps stay open."""
        if len(points):
            outlines = list(self._fixed(self.project(points)))
            cv2.fillPoly(self.ids, outlines, number, shift=_SHIFT)

    def fill_each(self, points: np.ndarray, numbers: Sequence[int]) -> None:
        """Fills convex polygons (k, n, 3) one after the other, each with its own number."""
        for outline, number in zip(self._fixed(self.project(points)), numbers, strict=True):
            cv2.fillConvexPoly(self.ids, outline, number, shift=_SHIFT)

    def stroke(self, points: np.ndarray, metres: float, number: int, closed: bool = False) -> None:
        """Draws a line (n, 3) that is `metres` wide, at least one sub-pixel."""
        wide = max(1, round(SUB * self.focal * metres / float(points[..., 2].mean())))
        outline = self._fixed(self.project(points))
        cv2.polylines(self.ids, [outline], closed, number, wide, shift=_SHIFT)

    def shade(self, mask: np.ndarray, ground: np.ndarray, level: int = 255) -> None:
        """Marks a polygon (n, 2) of x, z on the ground in one of the ground masks."""
        points = np.column_stack([ground[:, 0], np.zeros(len(ground)), ground[:, 1]])
        points = _clip_near(points)
        if len(points) > 2:
            pixels = (self.project(points) - 0.5).clip(-1e5, 1e5) * (1 << _SHIFT)
            cv2.fillPoly(mask, [np.rint(pixels).astype(np.int32)], level, cv2.LINE_AA, _SHIFT)

    def layers(self) -> Layers:
        """Looks everything up."""
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


def limbs(
    start: np.ndarray, end: np.ndarray, thick: np.ndarray, thin: np.ndarray, corners: int = 5
) -> np.ndarray:
    """Outlines (n, 2 corners, 2) of rounded bars from start to end (n, 2), radii thick and thin (n,)."""
    along = end - start
    turn = np.arctan2(along[:, 1], along[:, 0])[:, None]
    arc = np.linspace(np.pi / 2, 3 * np.pi / 2, corners)
    back, front = turn + arc, turn + arc + np.pi
    cap0 = start[:, None] + thick[:, None, None] * np.stack([np.cos(back), np.sin(back)], -1)
    cap1 = end[:, None] + thin[:, None, None] * np.stack([np.cos(front), np.sin(front)], -1)
    return np.concatenate([cap0, cap1], 1)


def standing(outlines: np.ndarray, x: float, z: float) -> np.ndarray:
    """Places flat outlines (..., 2) of metres right and up in the upright plane at x, z."""
    right, up = outlines[..., 0] + x, outlines[..., 1]
    return np.stack([right, up, np.full_like(right, z)], -1)


def ring(radius: float, corners: int, phase: float = 0.0) -> np.ndarray:
    """Corners (n, 2) of a regular polygon around the origin."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + phase
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)
