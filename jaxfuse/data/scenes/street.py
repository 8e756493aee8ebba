"""A street's plan, and its ground: road, paint, kerbs, pavements, lawns, and the horizon behind."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxfuse.data.scenes.canvas import (
    BACKGROUND,
    BUILDING,
    NEAR,
    ROAD,
    VEGETATION,
    Canvas,
    ring,
)
from jaxfuse.data.scenes.weather import Lamp, Setting, Weather

FAR = 120.0
SIDES = (-1, 1)


class Block(NamedTuple):
    """A building beside the street."""

    side: int
    face: float
    """x of the wall along the street."""
    near: float
    far: float
    height: float


class Street:
    """A straight street with an optional crossing, and where the sun reaches in it.

    Nothing depends on the image size: the same random stream gives the same street at any.
    """

    def __init__(self, rng: np.random.Generator, weather: Weather, height: int, width: int) -> None:
        self.rng, self.weather = rng, weather
        focal, horizon = height * rng.uniform(1.0, 1.35), height * rng.uniform(0.36, 0.5)
        centre, eye = width * (0.5 + rng.uniform(-0.16, 0.16)), rng.uniform(1.25, 1.9)
        self.canvas = Canvas(height, width, focal, horizon, centre, eye)
        self.lamps: list[Lamp] = []
        self.half = rng.uniform(3.2, 5.2)
        """Half the road's width."""
        self.middle = float(rng.choice((-1.0, 1.0))) * self.half * rng.uniform(0.25, 0.6)
        """x of the centre line; the camera drives at x = 0."""
        self.pavement = rng.uniform(2.0, 4.0)
        crossing = rng.uniform(11, 26)
        self.crossing = crossing if rng.random() < 0.4 else np.inf
        """z where a crossing road begins."""
        self.crossed = self.crossing + 2 * self.half
        self.kerbs = {side: self.middle + side * self.half for side in SIDES}
        self.edges = {side: self.middle + side * (self.half + self.pavement) for side in SIDES}
        self.green = {side: bool(rng.random() < 0.35) for side in SIDES}
        """Sides with gardens instead of house fronts."""
        self.blocks = self._plan_blocks()

    def _plan_blocks(self) -> list[Block]:
        rng, blocks = self.rng, []
        for side in SIDES:
            green = self.green[side]
            face = self.edges[side] + side * (rng.uniform(3.0, 9.0) if green else 0.0)
            z = rng.uniform(-6, 3)
            while z < 95:
                length, floors = rng.uniform(8, 20), int(rng.choice((2, 3, 3, 4, 5, 6)))
                gap = rng.uniform(0, 5) if rng.random() < (0.9 if green else 0.3) else 0.0
                setback, built = rng.uniform(0, 0.6), rng.random() < (0.55 if green else 0.95)
                end = z + length
                if z < self.crossed + 2 and end > self.crossing - 2:
                    end, built = self.crossing - 2, built and self.crossing - 2 - z > 5
                    gap = self.crossed + 2 - end
                if built:
                    height = 3.1 * floors + 0.8
                    blocks.append(Block(side, face + side * setback, z, end, height))
                z = end + gap
        return sorted(blocks, key=lambda block: -block.near)

    def on_crossing(self, z: float, margin: float = 3.0) -> bool:
        """Whether z lies on the crossing road or close to it."""
        return self.crossing - margin < z < self.crossed + margin

    def setting(self, x: float, z: float, up: float = 0.0) -> Setting:
        """Surroundings of a point: the sun counts only where no building is in its way."""
        sun = self.weather.sun
        if sun[1] > 0:
            for block in self.blocks:
                steps = (block.face - x) / (sun[0] or 1e-9)
                reach = z + steps * sun[2]
                if 0.01 < steps < (block.height - up) / sun[1] and block.near < reach < block.far:
                    return Setting(False, self.weather.air, np.zeros(3))
        return Setting(self.weather.night, self.weather.air, sun)


def draw_horizon(street: Street) -> None:
    """Hills, woods or roofs where the street ends."""
    rng, canvas, weather = street.rng, street.canvas, street.weather
    for z, tall, tone in ((1.6 * FAR, 26.0, 0.8), (FAR, 13.0, 1.0)):
        x = np.linspace(-1.6, 1.6, 60) * z
        if rng.random() < 0.5:
            top, label = np.repeat(rng.uniform(0.25, 1.0, 20), 3) * tall, BUILDING
            tint = np.array((0.22, 0.21, 0.21)) * tone
        else:
            wave = np.sin(x / z * rng.uniform(2, 6) + rng.uniform(0, 6))
            top, label = tall * (0.45 + 0.25 * wave + rng.uniform(-0.07, 0.07, 60)), VEGETATION
            tint = np.array((0.05, 0.085, 0.035)) * tone
        number = canvas.surface(
            tint,
            weather.air - 1.0,
            label,
            canvas.upright(z),
            sun=0.4 * float(weather.sun[1]),
            grain=0.4,
            ripple=0.5,
        )
        outline = np.column_stack([x, top, np.full(60, z)])
        canvas.fill(np.vstack([outline, [(x[-1], -3, z), (x[0], -3, z)]]), number)


class _Ground:
    """Flat shapes on the ground of one street."""

    def __init__(self, street: Street) -> None:
        self.street, self.canvas, self.weather = street, street.canvas, street.weather

    def surface(
        self, albedo: np.ndarray, warm: float, label: int, grain: float, ripple: float = 0.22
    ) -> int:
        return self.canvas.surface(
            albedo,
            self.weather.air + warm,
            label,
            self.canvas.ground_plane,
            sun=float(self.weather.sun[1]),
            grain=grain,
            ripple=ripple,
        )

    def strips(self, x0: object, x1: object, z0: object, z1: object, number: int) -> None:
        """Rectangles; each bound a number or an array."""
        x0, x1, z0, z1 = np.broadcast_arrays(*(np.atleast_1d(bound) for bound in (x0, x1, z0, z1)))
        points = np.zeros((len(x0), 4, 3))
        points[..., 0] = np.stack([x0, x1, x1, x0], 1)
        points[..., 2] = np.stack([z0, z0, z1, z1], 1)
        self.canvas.fill_many(points, number)


def draw_ground(street: Street) -> None:
    """Lawns, pavements, kerbs, the road and what is painted on it or let into it."""
    rng, ground, night = street.rng, _Ground(street), street.weather.night
    middle, kerbs, edges, far = street.middle, street.kerbs, street.edges, 2 * FAR
    asphalt = np.array((1.0, 0.99, 0.97)) * rng.uniform(0.08, 0.16)
    stone = np.array((1.0, 0.96, 0.90)) * rng.uniform(0.2, 0.32)
    stored = rng.uniform(-1.0, 4.0) if night else rng.uniform(2.0, 5.0)
    road = ground.surface(asphalt, stored, ROAD, 0.16)
    worn = ground.surface(0.8 * asphalt, stored + 0.5, ROAD, 0.16)
    paint = ground.surface(np.array((0.62, 0.62, 0.60)), stored - 2.0, ROAD, 0.2)
    paving = ground.surface(stone, stored - 1.2, BACKGROUND, 0.16)
    joint = ground.surface(0.5 * stone, stored - 1.0, BACKGROUND, 0.16)
    kerb = ground.surface(np.array((0.36, 0.35, 0.33)), stored - 1.6, BACKGROUND, 0.16)
    green = np.array((0.075, 0.12, 0.035)) * rng.uniform(0.8, 1.2)
    lawn = ground.surface(green, -1.0, VEGETATION, 0.5, 1.0)
    slab = 1.2 if rng.random() < 0.7 else 2.4
    for side in SIDES:
        ground.strips(middle, side * far, NEAR, far, lawn if street.green[side] else paving)
        ground.strips(middle, edges[side], NEAR, far, paving)
        z = np.arange(2, 26, slab)
        ground.strips(kerbs[side], edges[side], z, z + 0.035, joint)
        ground.strips(middle, kerbs[side] + side * 0.18, NEAR, far, kerb)
    ground.strips(kerbs[-1], kerbs[1], NEAR, far, road)
    if street.crossing < far:
        ground.strips(-far, far, street.crossing, street.crossed, road)
    for side in SIDES:
        ground.strips(kerbs[side], kerbs[side] - side * 0.22, NEAR, far, worn)
    for _ in range(rng.integers(1, 4)):
        x, z = middle + rng.uniform(-0.8, 0.5) * street.half, rng.uniform(3, 20)
        ground.strips(x, x + rng.uniform(0.6, 1.8), z, z + rng.uniform(1, 5), worn)
    cover = ground.surface(np.full(3, 0.05), stored + 4.0, ROAD, 0.1)
    lid = np.zeros((12, 3))
    lid[:, [0, 2]] = 0.33 * ring(1.0, 12) + (
        middle + rng.uniform(-0.6, 0.6) * street.half,
        rng.uniform(3.5, 12),
    )
    street.canvas.fill(lid, cover)
    _paint_lines(street, ground, paint)
    cracks = np.cumsum(rng.uniform(-0.35, 0.45, (2, 9, 2)), 1)
    cracks += rng.uniform((middle - 3, 3), (middle + 2, 8), (2, 1, 2))
    for crack in cracks:
        points = np.zeros((9, 3))
        points[:, 0], points[:, 2] = crack[:, 0], crack[:, 1].clip(2.2, 60)
        street.canvas.stroke(points, 0.015, worn)


def _paint_lines(street: Street, ground: _Ground, paint: int) -> None:
    """Centre line, edge lines, zebra crossing and stop line."""
    rng, middle, kerbs = street.rng, street.middle, street.kerbs
    kind, edged = int(rng.integers(3)), rng.random() < 0.6
    zebra, stop = rng.random() < 0.75, street.crossing - 6
    if kind == 0:
        starts, ends = np.array([NEAR]), np.array([2 * FAR])
    else:
        starts = np.arange(rng.uniform(1.0, 6.0), 90.0, 6.0)
        ends = starts + 3.0
    # A line stops before the crossing and goes on behind it.
    starts = np.concatenate([starts[starts < stop], np.maximum(starts, street.crossed + 1)])
    ends = np.concatenate([np.minimum(ends, stop)[: len(starts) - len(ends)], ends])
    drawn = ends > starts
    for shift in (-0.12, 0.12) if kind == 2 else (0.0,):
        x = middle + shift
        ground.strips(x - 0.07, x + 0.07, starts[drawn], ends[drawn], paint)
    if edged:
        for side in SIDES:
            x = kerbs[side] - side * 0.45
            ground.strips(x - 0.06, x + 0.06, NEAR, min(stop + 5, 2 * FAR), paint)
    if zebra and street.crossing < FAR:
        x = np.arange(kerbs[-1] + 0.4, kerbs[1] - 0.4, 0.95)
        ground.strips(x, x + 0.5, street.crossing - 3.4, street.crossing - 0.6, paint)
        ground.strips(
            middle + 0.3, kerbs[1] - 0.3, street.crossing - 5.0, street.crossing - 4.6, paint
        )
