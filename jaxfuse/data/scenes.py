"""Made-up street scenes: what is where, how warm it is, and what light falls on it.

`world(seed, index, ...)` is a pure function: the same arguments give the same arrays, bit for bit, in any
order and any process. The layout does not depend on the image size, so a scene can be drawn at any scale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from jaxfuse.data.actors import (
    COOL_WHITE,
    SODIUM,
    WARM_WHITE,
    Lamp,
    Setting,
    bicycle,
    car,
    hedge,
    person,
    sign,
    street_lamp,
    tree,
)
from jaxfuse.data.canvas import (
    BACKGROUND,
    BLACK,
    BUILDING,
    NEAR,
    ROAD,
    VEGETATION,
    Canvas,
    Layers,
)

WALLS = (
    (0.30, 0.10, 0.065),
    (0.42, 0.34, 0.24),
    (0.36, 0.36, 0.35),
    (0.55, 0.52, 0.46),
    (0.24, 0.18, 0.13),
    (0.48, 0.40, 0.20),
    (0.18, 0.20, 0.22),
)
FAR = 120.0


class World(NamedTuple):
    """A scene before any camera: light per pixel and temperature per pixel."""

    night: bool
    layers: Layers
    diffuse: np.ndarray
    """float32 (h, w, 3): light reflected, linear; 1 is a sunlit white wall."""
    direct: np.ndarray
    """float32 (h, w, 3): light given off by lamps and sky."""
    temperature: np.ndarray
    """float32 (h, w), degrees Celsius."""
    depth: np.ndarray
    """float32 (h, w), metres."""
    veil: np.ndarray
    """float32 (3,): colour that distant things fade to."""
    haze: float
    """Loss of contrast per metre."""


class Block(NamedTuple):
    """A building beside the street."""

    side: int
    face: float
    near: float
    far: float
    height: float


class Weather(NamedTuple):
    """Light and air of one scene."""

    night: bool
    air: float
    sun: np.ndarray
    """Unit vector (3,) to the sun, or zeros."""
    sunlight: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    skyline: np.ndarray
    cloud: float
    haze: float


def stream(seed: int, index: int, use: int = 0) -> np.random.Generator:
    """The random stream of one scene for one use; its first number decides night or day."""
    return np.random.default_rng([seed, index, use])


def is_night(seed: int, index: int, night_share: float) -> bool:
    """Whether a scene is at night, without drawing it."""
    return bool(stream(seed, index).random() < night_share)


def _weather(rng: np.random.Generator, night: bool) -> Weather:
    haze = rng.uniform(0.0008, 0.003) if rng.random() < 0.75 else rng.uniform(0.006, 0.016)
    if night:
        glow = np.array((0.020, 0.017, 0.016)) * rng.uniform(0.4, 1.6)
        zenith = np.array((0.0025, 0.0035, 0.007)) * rng.uniform(0.5, 1.5)
        ambient = np.array((0.018, 0.021, 0.030)) * rng.uniform(0.4, 1.3)
        return Weather(
            True, rng.uniform(4, 16), np.zeros(3), np.zeros(3), ambient, zenith, glow, rng.random(), haze
        )
    air, kind = rng.uniform(12, 26), rng.random()
    if kind < 0.30:
        grey = rng.uniform(0.45, 0.75)
        zenith, skyline = np.array((0.80, 0.86, 0.95)) * grey, np.array((1.0, 1.0, 1.0)) * grey * 1.1
        ambient = np.array((0.62, 0.66, 0.72)) * grey * 1.2
        return Weather(False, air, np.zeros(3), np.zeros(3), ambient, zenith, skyline, 0.95, haze)
    low = kind > 0.8
    height = np.deg2rad(rng.uniform(12, 22) if low else rng.uniform(30, 62))
    turn = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(height) * np.sin(turn), np.sin(height), -np.cos(height) * np.cos(turn)])
    if low:
        return Weather(
            False,
            air - 3,
            sun,
            np.array((0.75, 0.50, 0.28)),
            np.array((0.20, 0.21, 0.27)),
            np.array((0.16, 0.24, 0.44)),
            np.array((0.95, 0.62, 0.36)),
            rng.uniform(0.2, 0.7),
            haze,
        )
    return Weather(
        False,
        air,
        sun,
        np.array((0.95, 0.89, 0.78)),
        np.array((0.22, 0.25, 0.31)),
        np.array((0.14, 0.30, 0.62)) * rng.uniform(0.8, 1.2),
        np.array((0.62, 0.74, 0.86)),
        rng.uniform(0.1, 0.7),
        haze,
    )


class _Street:
    """Lays one street out on a canvas."""

    def __init__(self, rng: np.random.Generator, weather: Weather, height: int, width: int) -> None:
        self.rng, self.weather = rng, weather
        focal = height * rng.uniform(1.0, 1.35)
        self.canvas = Canvas(
            height,
            width,
            focal,
            height * rng.uniform(0.36, 0.5),
            width * (0.5 + rng.uniform(-0.16, 0.16)),
            rng.uniform(1.25, 1.9),
        )
        self.lamps: list[Lamp] = []
        self.blocks: list[Block] = []
        self.half = rng.uniform(3.2, 5.2)
        self.middle = rng.choice((-1.0, 1.0)) * self.half * rng.uniform(0.2, 0.6)
        self.pavement = rng.uniform(2.0, 4.0)
        self.crossing = rng.uniform(11, 26) if rng.random() < 0.4 else None
        self.kerbs = {side: self.middle + side * self.half for side in (-1, 1)}
        self.edges = {side: self.middle + side * (self.half + self.pavement) for side in (-1, 1)}
        self.green = {side: bool(rng.random() < 0.35) for side in (-1, 1)}

    def setting(self, x: float, z: float) -> Setting:
        """Surroundings at x, z: the sun counts only where no building is in its way."""
        sun = self.weather.sun
        if sun[1] > 0:
            for block in self.blocks:
                steps = (block.side * block.face - block.side * x) / (block.side * sun[0] + 1e-9)
                reach = z + steps * sun[2]
                if 0 < steps < block.height / sun[1] and block.near < reach < block.far:
                    sun = np.zeros(3)
                    break
        return Setting(self.weather.night, self.weather.air, sun)

    def patch(self, corners: list[tuple[float, float]], number: int) -> None:
        self.canvas.fill(np.array([(x, 0.0, z) for x, z in corners]), number)

    def strip(self, x0: float, x1: float, z0: float, z1: float, number: int) -> None:
        self.patch([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], number)

    def ground(self, albedo: tuple, warm: float, label: int, grain: float, ripple: float = 0.5) -> int:
        weather, canvas = self.weather, self.canvas
        return canvas.surface(
            albedo,
            weather.air + warm,
            label,
            canvas.ground_plane,
            sun=float(weather.sun[1]),
            grain=grain,
            ripple=ripple,
        )

    def distance(self) -> None:
        """Hills, woods or roofs on the horizon."""
        rng, canvas, air = self.rng, self.canvas, self.weather.air
        for z, tall, tone in ((FAR * 1.6, 26.0, 0.8), (FAR, 13.0, 1.0)):
            steps = 60
            x = np.linspace(-1.6, 1.6, steps) * z
            if rng.random() < 0.5:
                top = np.repeat(rng.uniform(0.25, 1.0, steps // 3), 3) * tall
                tint, label = np.array((0.22, 0.21, 0.21)) * tone, BUILDING
            else:
                top = tall * (0.45 + 0.25 * np.sin(x / z * rng.uniform(2, 6) + rng.uniform(0, 6)))
                top += rng.uniform(-0.07, 0.07, steps) * tall
                tint, label = np.array((0.05, 0.085, 0.035)) * tone, VEGETATION
            number = canvas.surface(
                tint, air - 1.0, label, canvas.upright(z), sun=0.4 * self.weather.sun[1], grain=0.4, ripple=0.5
            )
            outline = np.column_stack([x, top, np.full(steps, z)])
            canvas.fill(np.vstack([outline, [(x[-1], -3, z), (x[0], -3, z)]]), number)

    def roadway(self) -> None:
        """Ground, pavements, road, paint, and the small things lying on them."""
        rng, day = self.rng, not self.weather.night
        road_tone = rng.uniform(0.07, 0.15)
        asphalt = np.array((1.0, 0.99, 0.97)) * road_tone
        road = self.ground(tuple(asphalt), 4.0, ROAD, 0.35)
        paving = self.ground(tuple(np.array((1.0, 0.96, 0.90)) * rng.uniform(0.2, 0.32)), 2.5, BACKGROUND, 0.3)
        kerb = self.ground((0.36, 0.35, 0.33), 2.0, BACKGROUND, 0.2)
        joint = self.ground((0.13, 0.125, 0.12), 2.5, BACKGROUND, 0.2)
        grass = self.ground(tuple(np.array((0.075, 0.12, 0.035)) * rng.uniform(0.8, 1.2)), -0.5, VEGETATION, 0.6, 1.0)
        paint = self.ground((0.62, 0.62, 0.60), 1.5, ROAD, 0.25)
        dark = self.ground(tuple(asphalt * 0.62), 4.6, ROAD, 0.3)
        far = 2 * FAR
        for side in (-1, 1):
            base = grass if self.green[side] else paving
            self.strip(self.middle, self.middle + side * far, NEAR, far, base)
            self.strip(self.middle, self.edges[side], NEAR, far, paving)
            for z in np.arange(2, 26, 1.2 if rng.random() < 0.7 else 2.4):
                self.strip(self.kerbs[side], self.edges[side], z, z + 0.035, joint)
            self.strip(self.middle, self.kerbs[side] + side * 0.18, NEAR, far, kerb)
        self.strip(self.kerbs[-1], self.kerbs[1], NEAR, far, road)
        if self.crossing:
            near = self.crossing
            self.strip(-far, far, near, near + 2 * self.half, road)
        for side in (-1, 1):
            gutter = self.kerbs[side] - side * 0.25
            self.strip(self.kerbs[side], gutter, NEAR, far, dark)
        for _ in range(rng.integers(1, 4)):
            x, z = self.middle + rng.uniform(-0.8, 0.5) * self.half, rng.uniform(3, 20)
            self.strip(x, x + rng.uniform(0.6, 1.8), z, z + rng.uniform(1, 5), dark)
        x, z = self.middle + rng.uniform(-0.6, 0.6) * self.half, rng.uniform(3.5, 12)
        cover = self.ground((0.05, 0.047, 0.045), 7.0 if day else 9.0, ROAD, 0.2)
        self.patch([tuple(p) for p in np.array([(x, z)]) + 0.33 * _ROUND], cover)
        line, stop = rng.integers(3), self.crossing or far
        for z in np.arange(2.0, 90.0, 6.0 if line else far):
            end = z + (3.0 if line else far)
            if z < stop - 2 or z > stop + 2 * self.half:
                for shift in (-0.12, 0.12) if line == 2 else (0.0,):
                    self.strip(self.middle + shift - 0.07, self.middle + shift + 0.07, z, min(end, stop if z < stop else far), paint)
        if rng.random() < 0.6:
            for side in (-1, 1):
                x = self.kerbs[side] - side * 0.45
                self.strip(x - 0.06, x + 0.06, NEAR, stop, paint)
        if self.crossing and rng.random() < 0.75:
            for x in np.arange(self.kerbs[-1] + 0.4, self.kerbs[1] - 0.4, 0.95):
                self.strip(x, x + 0.5, self.crossing - 3.4, self.crossing - 0.6, paint)
            self.strip(self.middle + 0.3, self.kerbs[1] - 0.3, self.crossing - 5.0, self.crossing - 4.6, paint)
        cracks = np.cumsum(rng.uniform(-0.35, 0.45, (2, 9, 2)), 1) + rng.uniform((-3, 3), (2, 8), (2, 1, 2))
        for crack in cracks:
            points = np.column_stack([crack[:, 0] + self.middle, np.zeros(9), crack[:, 1].clip(2.2, 60)])
            self.canvas.stroke(points, 0.015, dark)

    def plan_sides(self) -> None:
        """Buildings beside the street, or gardens."""
        rng = self.rng
        for side in (-1, 1):
            face = self.edges[side] + side * (rng.uniform(3.0, 9.0) if self.green[side] else 0.0)
            z = rng.uniform(-6, 3)
            while z < 95:
                length = rng.uniform(8, 20)
                height = rng.choice((2, 3, 3, 4, 5, 6)) * 3.1 + 0.8
                end = z + length
                gap = rng.uniform(0, 5) if rng.random() < (0.9 if self.green[side] else 0.3) else 0.0
                street = self.crossing is not None and z < self.crossing + 2 * self.half + 2
                if street and end > self.crossing - 2:
                    if self.crossing - 2 - z > 5:
                        self.blocks.append(Block(side, face, z, self.crossing - 2, height))
                    z = self.crossing + 2 * self.half + 2
                    continue
                if rng.random() < (0.55 if self.green[side] else 0.95):
                    self.blocks.append(Block(side, face + side * rng.uniform(0, 0.6), z, end, height))
                z = end + gap
        self.blocks.sort(key=lambda block: -block.near)

    def building(self, block: Block) -> None:
        """One building: the wall along the street, the gable towards the camera, windows in both."""
        rng, canvas, weather = self.rng, self.canvas, self.weather
        air, sun = weather.air, weather.sun
        tone = np.array(WALLS[rng.integers(len(WALLS))]) * rng.uniform(0.8, 1.2)
        warm, lived = rng.uniform(0.5, 3.0), rng.uniform(0.1, 0.5)
        near, floors = max(block.near, NEAR + 0.01), int(block.height // 3.1)
        deep = block.face + block.side * 14
        house = floors == 2 and rng.random() < 0.7
        wall_sun = max(-block.side * float(sun[0]), 0.0)
        gable_sun = max(-float(sun[2]), 0.0)
        if wall_sun and self.shaded(block):
            wall_sun *= 0.0
        sides = [(canvas.wall(block.face), wall_sun, True)]
        if block.near > NEAR + 0.5:
            sides.append((canvas.upright(block.near), gable_sun, False))
        if weather.sun[1] > 0:
            self.block_shadow(block, deep)
        for plane, lit, along in reversed(sides):
            def surface(albedo: object, heat: float, emission: object = BLACK, grain: float = 0.15, plane=plane, lit=lit) -> int:
                return canvas.surface(
                    tuple(albedo), heat + 6 * lit, BUILDING, plane, emission=tuple(emission), sun=lit, grain=grain, ripple=0.35
                )

            def quads(u0, u1, y0, y1, along=along) -> np.ndarray:
                u0, u1, y0, y1 = np.broadcast_arrays(u0, u1, y0, y1)
                u = np.stack([u0, u1, u1, u0], -1).astype(float)
                y = np.stack([y0, y0, y1, y1], -1).astype(float)
                other = np.full_like(u, block.face if along else block.near)
                return np.stack([other, y, u] if along else [u, y, other], -1)

            wall = surface(tone * (1 if along else 0.9), air + warm)
            trim = surface(np.clip(tone * 1.35, 0, 0.65), air + 0.7 * warm)
            start, end = (near, block.far) if along else (block.face, deep)
            canvas.fill(quads(start, end, 0.0, block.height), wall)
            if house and not along:
                peak = np.array([(start, block.height, block.near), (end, block.height, block.near), ((start + end) / 2, block.height + 3.4, block.near)])
                canvas.fill(peak, wall)
            elif house:
                roof = canvas.surface((0.16, 0.08, 0.06) if tone[0] > 0.3 else (0.09, 0.09, 0.095), air - 2, BUILDING, plane, sun=0.6 * sun[1], grain=0.3, ripple=0.4)
                ridge = block.face + block.side * 7
                canvas.fill(np.array([(block.face, block.height, near), (block.face, block.height, block.far), (ridge, block.height + 3.4, block.far), (ridge, block.height + 3.4, near)]), roof)
            else:
                canvas.fill(quads(start, end, block.height - 0.45, block.height), trim)
            bays = max(2, round(abs(block.far - block.near if along else 12) / rng.uniform(2.2, 3.2)))
            first = block.near if along else block.face
            pitch = (block.far - block.near if along else deep - block.face) / bays
            scale = canvas.focal / near
            if abs(pitch) * scale * (abs(block.face) / near if along else 1) < 4:
                continue
            u = first + pitch * (np.arange(bays) + 0.5)
            keep = u - 0.4 * abs(pitch) > near if along else np.ones(bays, bool)
            u, size = u[keep], 0.3 * abs(pitch)
            if not len(u):
                continue
            floor = np.arange(floors)[:, None] * 3.1
            y0, y1 = floor + 1.0, floor + 2.5
            shop = rng.random() < 0.4
            if shop:
                y0[0], y1[0], = 0.45, 2.7
            wide = np.where((floor < 1) & shop, 1.4 * size, size)
            state = np.where(rng.random((floors, len(u))) < lived, rng.integers(2, 5, (floors, len(u))), rng.integers(0, 2, (floors, len(u))))
            if shop and rng.random() < 0.7:
                state[0] = 2
            if not weather.night:
                state = np.where(state > 1, state % 2, state)
            if scale * 0.1 > 1:
                canvas.fill_many(quads(u - wide - 0.1, u + wide + 0.1, y0 - 0.14, y1 + 0.08).reshape(-1, 4, 3), trim)
                bands = floor[1:, 0] + 0.05
                if rng.random() < 0.5:
                    canvas.fill_many(quads(start, end, bands, bands + 0.18), trim)
            panes = quads(u - wide, u + wide, y0, y1)
            reflect = (0.012, 0.014, 0.017) if weather.night else weather.zenith * 0.35
            looks = [
                (0.6 * np.asarray(reflect), air + 0.3 * warm - 2.0, BLACK),
                (1.3 * np.asarray(reflect), air - 3.0, BLACK),
                (BLACK, air + 4.5, np.array(WARM_WHITE) * 0.55),
                (BLACK, air + 3.5, np.array(WARM_WHITE) * 0.22),
                (BLACK, air + 4.0, np.array(COOL_WHITE) * 0.35),
            ]
            for k, (albedo, heat, emission) in enumerate(looks):
                if (state == k).any():
                    canvas.fill_many(panes[state == k], surface(albedo, heat, emission, 0.05))
            if scale * 0.08 > 1:
                bars = quads(u - 0.04, u + 0.04, y0, y1)
                canvas.fill_many(bars.reshape(-1, 4, 3), trim)
            if weather.night and shop and along and state[0][0] == 2 and len(u):
                self.lamps.append(Lamp(block.face - block.side * 1.0, 1.8, float(u.mean()), WARM_WHITE, 1.5, False))

    def shaded(self, block: Block) -> bool:
        """Whether the house opposite keeps the sun from most of a wall."""
        sun, middle = self.weather.sun, (block.near + block.far) / 2
        for other in self.blocks:
            if other.side == -block.side:
                steps = (other.face - block.face) / (sun[0] + 1e-9)
                reach = middle + steps * sun[2]
                if steps > 0 and other.near < reach < other.far and steps * sun[1] + 3 < other.height:
                    return True
        return False

    def block_shadow(self, block: Block, deep: float) -> None:
        """The shadow of a building on the ground: its foot and its top, joined."""
        away = self.weather.sun[[0, 2]] / self.weather.sun[1] * block.height
        foot = np.array([(block.face, block.near), (block.face, block.far), (deep, block.far), (deep, block.near)])
        hull = cv2.convexHull(np.vstack([foot, foot - away]).astype(np.float32))[:, 0]
        self.canvas.shade(self.canvas.cast, hull.astype(float))

    def traffic(self) -> list[tuple[float, Callable[[], object]]]:
        """Everything that stands or moves, with its distance."""
        rng, canvas = self.rng, self.canvas
        todo: list[tuple[float, Callable[[], object]]] = []

        def add(z: float, draw: Callable, *arguments: object) -> None:
            todo.append((z, lambda: draw(*arguments)))

        def add_car(x: float, z: float, yaw: float, running: bool) -> None:
            todo.append((z, lambda: self.lamps.extend(car(canvas, self.setting(x, z), rng, x, z, yaw, running))))

        def place(draw: Callable, x: float, z: float, *more: object) -> None:
            todo.append((z, lambda: draw(canvas, self.setting(x, z), rng, x, z, *more)))

        lane = self.half / 2
        own, oncoming = self.middle * 0 + (0.0 if abs(self.middle) > 0.5 else lane), 2 * self.middle
        z = rng.uniform(8, 30)
        while z < 80 and rng.random() < 0.7:
            add_car(float(own + rng.uniform(-0.3, 0.3)), z, rng.normal(0, 0.03), True)
            z += rng.uniform(9, 30)
        z = rng.uniform(9, 35)
        while z < 90 and rng.random() < 0.75:
            add_car(float(oncoming + rng.uniform(-0.3, 0.3)), z, np.pi + rng.normal(0, 0.03), True)
            z += rng.uniform(9, 30)
        for side in (-1, 1):
            if self.half > 4.2 and rng.random() < 0.55:
                z = rng.uniform(6, 16)
                while z < 50:
                    away = 0.0 if rng.random() < 0.8 else np.pi
                    blocked = self.crossing and self.crossing - 6 < z < self.crossing + 2 * self.half + 3
                    if not blocked and rng.random() < 0.7:
                        add_car(self.kerbs[side] - side * 1.05, z, away, bool(rng.random() < 0.1))
                    z += rng.uniform(5.6, 8)
        if self.crossing and rng.random() < 0.45:
            heading = rng.choice((-1.0, 1.0))
            add_car(rng.uniform(-9, 9), self.crossing + self.half * (1 + 0.5 * heading), heading * np.pi / 2, True)
        for _ in range(rng.integers(2, 9)):
            side = rng.choice((-1, 1))
            x = self.kerbs[side] + side * rng.uniform(0.5, self.pavement - 0.3)
            z = 4.5 + 38 * rng.random() ** 1.7
            place(person, x, z)
            if rng.random() < 0.35:
                place(person, x + rng.choice((-0.6, 0.6)), z + rng.uniform(-0.4, 0.4))
        for _ in range(rng.integers(0, 3)):
            z = self.crossing - 2 + rng.uniform(-1, 1) if self.crossing else rng.uniform(8, 30)
            place(person, self.middle + rng.uniform(-1, 1) * self.half, z)
        for _ in range(rng.integers(0, 3)):
            side = rng.choice((-1, 1))
            place(bicycle, self.kerbs[side] - side * rng.uniform(0.3, 0.9), rng.uniform(5, 28), True)
        if rng.random() < 0.4:
            side, z = rng.choice((-1, 1)), rng.uniform(5, 16)
            for k in range(rng.integers(1, 4)):
                place(bicycle, self.edges[side] - side * 0.5, z + 0.8 * k, False)
        colour = (SODIUM, WARM_WHITE, COOL_WHITE)[rng.integers(3)]
        gap, z = rng.uniform(14, 26), rng.uniform(7, 20)
        sides = ((-1,), (1,), (-1, 1))[rng.integers(3)]
        broken = rng.random() < 0.2
        while z < 95:
            for side in sides:
                if not (broken and rng.random() < 0.6):
                    self.street_lamp(todo, self.kerbs[side] + side * 0.5, z, colour)
            z += gap
        for side in (-1, 1):
            if rng.random() < (0.85 if self.green[side] else 0.4):
                x, z = self.kerbs[side] + side * (1.0 if not self.green[side] else self.pavement + 1.2), rng.uniform(6, 18)
                while z < 75:
                    clear = not self.crossing or not self.crossing - 3 < z < self.crossing + 2 * self.half + 3
                    if clear and rng.random() < 0.8:
                        place(tree, x + rng.uniform(-0.3, 0.3), z)
                    z += rng.uniform(5, 11)
        for _ in range(rng.integers(1, 6)):
            side = rng.choice((-1, 1))
            place(sign, self.kerbs[side] + side * 0.35, rng.uniform(6, 40))
        return todo

    def street_lamp(self, todo: list, x: float, z: float, colour: tuple) -> None:
        canvas, rng = self.canvas, self.rng
        todo.append((z, lambda: self.lamps.extend(street_lamp(canvas, self.setting(x, z), rng, x, z, colour))))

    def draw(self) -> None:
        self.distance()
        self.roadway()
        self.plan_sides()
        for block in self.blocks:
            self.building(block)
        for side in (-1, 1):
            if self.green[side] and self.rng.random() < 0.7:
                end = self.crossing - 1 if self.crossing else 70.0
                hedge(self.canvas, self.setting(self.edges[side], 8), self.rng, self.edges[side], NEAR, end)
        for _, act in sorted(self.traffic(), key=lambda entry: -entry[0]):
            act()


_ROUND = np.stack([np.cos(np.linspace(0, 2 * np.pi, 12)), np.sin(np.linspace(0, 2 * np.pi, 12))], -1)


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """Two tiles (512, 512, 2) of smooth noise that repeat without a seam: fine grain, and blotches."""
    rng = np.random.default_rng(7)
    tiles = []
    for octaves in ((512, 256, 128), (128, 64, 32, 16)):
        tile = np.zeros((512, 512), np.float32)
        for cells in octaves:
            grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
            scale = 512 // cells
            big = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            tile += big[2 * scale : 2 * scale + 512, 2 * scale : 2 * scale + 512]
        tiles.append(tile / tile.std())
    both = np.stack(tiles, -1)
    both.flags.writeable = False
    return both


def world(seed: int, index: int, height: int, width: int, night_share: float = 0.5) -> World:
    """Draws and lights scene `index` of `seed`, height x width pixels."""
    rng = stream(seed, index)
    night = bool(rng.random() < night_share)
    weather = _weather(rng, night)
    street = _Street(rng, weather, height, width)
    street.draw()
    return _light(rng, weather, street)


def _light(rng: np.random.Generator, weather: Weather, street: _Street) -> World:
    """Adds texture, light, sky and warmth to what was drawn."""
    canvas = street.canvas
    layers = canvas.layers()
    depth = 1 / layers.nearness
    column = (np.arange(canvas.width, dtype=np.float32) + 0.5 - canvas.centre) / canvas.focal
    row = (canvas.horizon - np.arange(canvas.height, dtype=np.float32) - 0.5)[:, None] / canvas.focal
    x, y = column * depth, canvas.eye + row * depth
    ground = layers.ground

    # Texture follows the surface: across and away on the ground, along and up on what stands.
    offset = rng.uniform(0, 512, 4)
    a = x + (1 - ground) * depth
    b = y + ground * (depth - y)
    step = depth / canvas.focal
    step = step + ground * (step * depth / canvas.eye - step)
    tile = _noise()
    grains = []
    for k, per_metre in ((0, 40.0), (1, 22.0)):
        at = (a * per_metre + offset[2 * k], b * per_metre + offset[2 * k + 1])
        noise = cv2.remap(tile[..., k], *(c % 511 for c in at), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        grains.append(noise / (1 + (step * per_metre * (0.5 if k == 0 else 0.12)) ** 2))
    fine, coarse = grains
    texture = 1 + layers.grain * (0.45 * fine + 0.55 * coarse)
    np.maximum(texture, 0.1, out=texture)

    soft = canvas.height / 240
    cast = cv2.GaussianBlur(canvas.cast, (0, 0), 0.8 * soft).astype(np.float32) * (ground / 255)
    contact = cv2.GaussianBlur(canvas.contact, (0, 0), 1.2 * soft).astype(np.float32) * (ground / 255)
    sunny = layers.sun * (1 - cast)
    light = np.empty((canvas.height, canvas.width, 3), np.float32)
    for c in range(3):
        np.multiply(sunny, np.float32(weather.sunlight[c]), out=light[..., c])
    light += weather.ambient.astype(np.float32)
    if weather.night:
        for lamp in street.lamps:
            dx, dy, dz = x - np.float32(lamp.x), y - np.float32(lamp.y), depth - np.float32(lamp.z)
            square = dx * dx + dy * dy + dz * dz + np.float32(0.6)
            fall = np.float32(lamp.power) / square
            if lamp.downward:
                fall *= np.maximum(-dy / np.sqrt(square), 0)
            for c in range(3):
                light[..., c] += fall * np.float32(lamp.colour[c])
        if rng.random() < 0.5:
            beam = np.exp(-((column / 0.42) ** 2) - (np.maximum(row + 0.02, 0) / 0.05) ** 2)
            beam = 14 * rng.uniform(0.5, 1.2) * beam / (depth * depth + 30)
            light += beam[..., None] * np.array((1, 0.95, 0.85), np.float32)
    light *= ((1 - 0.75 * contact) * texture)[..., None]
    diffuse = layers.albedo * light

    sky, sky_heat = _sky(rng, weather, canvas)
    direct = layers.emission + sky * layers.open_sky[..., None]
    heat = layers.temperature + layers.ripple * (0.35 * fine + 0.65 * coarse)
    warm_sun = 7.0 * float(weather.sun[1])
    heat += warm_sun * ground * (0.5 - cast)
    heat += cv2.GaussianBlur(canvas.heat, (0, 0), 2.5 * soft).astype(np.float32) * (ground * (6 / 255))
    heat += layers.open_sky * sky_heat
    fade = np.exp(-depth / 350) if not weather.night else np.exp(-depth / 500)
    heat = np.where(layers.open_sky > 0.5, heat, weather.air + (heat - weather.air) * fade)
    veil = 0.75 * weather.skyline + 0.25 * weather.zenith
    return World(
        weather.night,
        layers,
        diffuse,
        direct,
        heat.astype(np.float32),
        depth,
        veil.astype(np.float32),
        weather.haze,
    )


def _sky(rng: np.random.Generator, weather: Weather, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Light (h, w, 3) and temperature (h, w) of the sky behind everything."""
    height, width = canvas.height, canvas.width
    up = ((canvas.horizon - np.arange(height, dtype=np.float32)) / canvas.height).clip(0, 1)[:, None]
    low = np.exp(-up / 0.16)
    sky = weather.zenith + (weather.skyline - weather.zenith) * low[..., None]
    sky = np.broadcast_to(sky.astype(np.float32), (height, width, 3)).copy()
    cells = rng.standard_normal((3, 24, 32)).astype(np.float32)
    clouds = np.zeros((height, width), np.float32)
    for k, (rows, columns) in enumerate(((6, 5), (12, 10), (24, 20))):
        clouds += cv2.resize(cells[k, :rows, :columns], (width, height), interpolation=cv2.INTER_CUBIC) / (1 + k)
    cover = (0.5 + 0.35 * clouds - (0.9 - weather.cloud)).clip(0, 1)
    white = 0.75 * weather.skyline + 0.25 * weather.zenith + 0.9 * weather.sunlight * 0.35
    sky += cover[..., None] * (white.astype(np.float32) * (0.9 + 0.1 * clouds[..., None]) - sky) * 0.85
    if weather.night and weather.cloud < 0.6:
        count = 60
        at = rng.random((count, 2)) * (canvas.horizon * 0.9, width)
        bright = rng.uniform(0.02, 0.25, count) ** 1.5
        rows, columns = at.astype(int).T
        sky[rows, columns] += bright[:, None].astype(np.float32)
    heat = weather.air - 34 + 24 * low + 10 * cover + 6 * weather.cloud
    return sky, heat.astype(np.float32)
