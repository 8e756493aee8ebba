"""Buildings: a wall along the street, a gable towards the camera, windows in both."""

from __future__ import annotations

import cv2
import numpy as np

from jaxfuse.data.scenes.canvas import BLACK, BUILDING, NEAR, Canvas, Colour, Plane
from jaxfuse.data.scenes.street import Block, Street
from jaxfuse.data.scenes.weather import COOL_WHITE, WARM_WHITE, Lamp

WALLS = (
    (0.30, 0.10, 0.065),
    (0.42, 0.34, 0.24),
    (0.36, 0.36, 0.35),
    (0.55, 0.52, 0.46),
    (0.24, 0.18, 0.13),
    (0.48, 0.40, 0.20),
    (0.18, 0.20, 0.22),
)
FLOOR, DEEP = 3.1, 14.0
"""Height of a floor and depth of a building, metres."""


class _Wall:
    """One upright face of a building: u runs along it (z along the street, else x), y up."""

    def __init__(self, canvas: Canvas, block: Block, along: bool, warm: float, sun: float) -> None:
        self.canvas, self.along, self.warm, self.sun = canvas, along, warm, sun
        self.other = block.face if along else block.near
        self.plane: Plane = canvas.wall(block.face) if along else canvas.upright(block.near)
        self.start = block.near if along else block.face
        self.end = block.far if along else block.face + block.side * DEEP
        self.visible_start = max(self.start, NEAR + 0.01) if along else self.start

    def surface(
        self, albedo: Colour, heat: float, emission: Colour = BLACK, grain: float = 0.14
    ) -> int:
        return self.canvas.surface(
            albedo,
            heat + 6 * self.sun,
            BUILDING,
            self.plane,
            emission=emission,
            sun=self.sun,
            grain=grain,
            ripple=0.2,
        )

    def points(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        placed = np.empty((*u.shape, 3))
        placed[..., 2 if self.along else 0] = u
        placed[..., 1] = y
        placed[..., 0 if self.along else 2] = self.other
        return placed

    def quads(self, u0: object, u1: object, y0: object, y1: object) -> np.ndarray:
        """Rectangles (..., 4, 3); each bound a number or an array."""
        u0, u1, y0, y1 = np.broadcast_arrays(u0, u1, y0, y1)
        u, y = np.empty((*u0.shape, 4)), np.empty((*u0.shape, 4))
        u[..., 0] = u[..., 3] = u0
        u[..., 1] = u[..., 2] = u1
        y[..., 0] = y[..., 1] = y0
        y[..., 2] = y[..., 3] = y1
        return self.points(u, y)


def draw_building(street: Street, block: Block) -> None:
    """Draws one building and, by day, its shadow."""
    rng, canvas, weather = street.rng, street.canvas, street.weather
    tone = np.array(WALLS[rng.integers(len(WALLS))]) * rng.uniform(0.8, 1.2)
    warm, lived = weather.air + rng.uniform(-1.0, 2.5), rng.uniform(0.08, 0.4)
    house = block.height < 2.5 * FLOOR and bool(rng.random() < 0.7)
    if weather.sun[1] > 0:
        _lay_shadow(street, block)
    middle = (block.near + block.far) / 2
    open_to_sun = bool(street.setting(block.face - block.side * 0.1, middle, 3.0).sun[1] > 0)
    sun = max(-block.side * float(weather.sun[0]), 0.0) * open_to_sun
    front = _Wall(canvas, block, True, warm, sun)
    walls = [front]
    if block.near > NEAR + 0.5:
        walls.insert(0, _Wall(canvas, block, False, warm, max(-float(weather.sun[2]), 0.0)))
    for wall in walls:
        tint = tone if wall.along else 0.9 * tone
        plaster = wall.surface(tint, warm)
        trim = wall.surface(np.clip(1.35 * tint, 0, 0.65), warm - 0.3)
        canvas.fill(wall.quads(wall.visible_start, wall.end, 0.0, block.height), plaster)
        if house:
            _roof(street, block, wall, plaster, bool(tone[0] > 0.3))
        else:
            top = wall.quads(wall.visible_start, wall.end, block.height - 0.45, block.height)
            canvas.fill(top, trim)
        _windows(street, block, wall, trim, lived)


def _roof(street: Street, block: Block, wall: _Wall, plaster: int, tiles: bool) -> None:
    ridge_x, top = block.face + block.side * DEEP / 2, block.height + 3.4
    if not wall.along:
        gable = [(block.face, block.height), (ridge_x, top), (wall.end, block.height)]
        corners = np.array(gable)
        street.canvas.fill(wall.points(corners[:, 0], corners[:, 1]), plaster)
        return
    slope = street.canvas.surface(
        (0.16, 0.08, 0.06) if tiles else (0.09, 0.09, 0.095),
        wall.warm - 3.0,
        BUILDING,
        wall.plane,
        sun=0.6 * float(street.weather.sun[1]),
        grain=0.25,
        ripple=0.4,
    )
    points = wall.quads(wall.visible_start, wall.end, block.height, top)
    points[2:, 0] = ridge_x
    street.canvas.fill(points, slope)


def _windows(street: Street, block: Block, wall: _Wall, trim: int, lived: float) -> None:
    rng, weather = street.rng, street.weather
    bays = max(2, round(abs(wall.end - wall.start) / rng.uniform(2.2, 3.2)))
    floors, pitch = int(block.height // FLOOR), (wall.end - wall.start) / bays
    shop, banded = bool(rng.random() < 0.4) and wall.along, bool(rng.random() < 0.5)
    lit = rng.random((floors, bays)) < lived
    glass = rng.choice(3, (floors, bays), p=(0.5, 0.3, 0.2))
    state = np.where(lit & weather.night, 3 + glass, glass)
    if shop and weather.night and rng.random() < 0.7:
        state[0] = 3
    u, size = wall.start + pitch * (np.arange(bays) + 0.5), 0.3 * abs(pitch)
    if wall.along:
        kept = u - 1.5 * size > NEAR
        u, state = u[kept], state[:, kept]
    if not len(u):
        return
    y0, y1 = (np.arange(floors)[:, None] * FLOOR + np.array([1.0, 2.5])).T[..., None]
    wide = np.full((floors, 1), size)
    if shop:
        y0[0], y1[0], wide[0] = 0.45, 2.7, 1.4 * size
    close = street.canvas.focal / max(block.near, 4.0) > 0.045 * street.canvas.height
    if close:
        frames = wall.quads(u - wide - 0.1, u + wide + 0.1, y0 - 0.14, y1 + 0.08)
        wall.canvas.fill_many(frames.reshape(-1, 4, 3), trim)
        if banded:
            y = np.arange(1, floors) * FLOOR + 0.05
            wall.canvas.fill_many(wall.quads(wall.visible_start, wall.end, y, y + 0.18), trim)
    panes = wall.quads(u - wide, u + wide, y0, y1)
    mirrored = np.full(3, 0.003) if weather.night else weather.zenith
    looks = (
        (0.10 * mirrored, wall.warm - 0.4, BLACK),
        (0.30 * mirrored, wall.warm - 0.8, BLACK),
        (0.42 * mirrored, wall.warm - 1.3, BLACK),
        (BLACK, wall.warm + 3.0, tuple(0.30 * k for k in WARM_WHITE)),
        (BLACK, wall.warm + 2.5, tuple(0.09 * k for k in WARM_WHITE)),
        (BLACK, wall.warm + 2.0, tuple(0.18 * k for k in COOL_WHITE)),
    )
    for look, (albedo, heat, emission) in enumerate(looks):
        if (state == look).any():
            number = wall.surface(albedo, heat, emission, 0.05)
            wall.canvas.fill_many(panes[state == look], number)
    if close:
        bars = wall.quads(u - 0.04, u + 0.04, y0, y1)
        wall.canvas.fill_many(bars.reshape(-1, 4, 3), trim)
    if state[0, 0] == 3 and shop:
        x, z = block.face - block.side * 1.0, float(u.mean())
        street.lamps.append(Lamp(x, 1.8, z, WARM_WHITE, 0.9, False))


def _lay_shadow(street: Street, block: Block) -> None:
    """The shadow of a building on the ground: its foot and its top, joined."""
    away = street.weather.sun[[0, 2]] / street.weather.sun[1] * block.height
    back = block.face + block.side * DEEP
    foot = np.array([(x, z) for x in (block.face, back) for z in (block.near, block.far)])
    hull = cv2.convexHull(np.vstack([foot, foot - away]).astype(np.float32))[:, 0]
    street.canvas.shade(street.canvas.cast, hull)
