"""Who and what stands where in a street: cars in lanes, people on pavements, trees in rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxfuse.data.scenes.canvas import NEAR
from jaxfuse.data.scenes.cars import car
from jaxfuse.data.scenes.people import bicycle, person
from jaxfuse.data.scenes.roadside import hedge, sign, street_lamp, tree
from jaxfuse.data.scenes.street import SIDES, Street
from jaxfuse.data.scenes.weather import COOL_WHITE, SODIUM, WARM_WHITE


class _Cast:
    """Collects things with their places, then draws the far ones first."""

    def __init__(self, street: Street) -> None:
        self.street = street
        self.things: list[tuple[float, Callable, float, tuple]] = []
        self.taken: list[tuple[float, float, float]] = []

    def add(self, draw: Callable, x: float, z: float, room: float, *more: object) -> None:
        """Places a thing unless something else stands within `room` metres."""
        x, z = float(x), float(z)
        if all(abs(x - a) > room + c or abs(z - b) > room + c for a, b, c in self.taken):
            self.taken.append((x, z, room))
            self.things.append((z, draw, x, more))

    def draw(self) -> None:
        street = self.street
        for z, draw, x, more in sorted(self.things, key=lambda thing: -thing[0]):
            lamps = draw(street.canvas, street.setting(x, z), street.rng, x, z, *more)
            street.lamps.extend(lamps or ())


def draw_traffic(street: Street) -> None:
    """Draws everything that stands or moves in the street."""
    rng, edges = street.rng, street.edges
    for side in SIDES:
        if street.green[side] and rng.random() < 0.7:
            setting, end = street.setting(edges[side], 8.0), min(street.crossing - 1, 70.0)
            hedge(street.canvas, setting, rng, edges[side], NEAR, end)
    cast = _Cast(street)
    _lamps(street, cast)
    _cars(street, cast)
    _people(street, cast)
    _trees(street, cast)
    for _ in range(rng.integers(1, 6)):
        side = int(rng.choice(SIDES))
        cast.add(sign, street.kerbs[side] + side * 0.35, rng.uniform(6, 40), 0.2)
    cast.draw()


def _cars(street: Street, cast: _Cast) -> None:
    rng = street.rng
    for lane, yaw, go_on in ((0.0, 0.0, 0.65), (2 * street.middle, np.pi, 0.75)):
        z = rng.uniform(8, 32)
        while z < 90 and rng.random() < go_on:
            cast.add(car, lane + rng.uniform(-0.3, 0.3), z, 1.0, yaw + rng.normal(0, 0.03), True)
            z += rng.uniform(9, 30)
    for side in SIDES:
        if street.half > 4.0 and rng.random() < 0.6:
            x, z = street.kerbs[side] - side * 1.05, rng.uniform(6, 16)
            while z < 50:
                yaw = 0.0 if rng.random() < 0.8 else np.pi
                if not street.on_crossing(z, 6.0) and rng.random() < 0.7:
                    cast.add(car, x, z, 0.9, yaw, bool(rng.random() < 0.15))
                z += rng.uniform(5.6, 8)
    if street.crossing < 40 and rng.random() < 0.5:
        heading = float(rng.choice((-1.0, 1.0)))
        z = street.crossing + street.half * (1 + 0.5 * heading)
        cast.add(car, rng.uniform(-9, 9), z, 2.0, heading * np.pi / 2, True)


def _people(street: Street, cast: _Cast) -> None:
    rng, kerbs, edges = street.rng, street.kerbs, street.edges
    for _ in range(rng.integers(2, 9)):
        side = int(rng.choice(SIDES))
        x = kerbs[side] + side * rng.uniform(0.5, street.pavement - 0.3)
        z = 4.5 + 38 * rng.random() ** 1.7
        cast.add(person, x, z, 0.2)
        if rng.random() < 0.35:
            beside = float(rng.choice((-0.65, 0.65)))
            cast.add(person, x + beside, z + rng.uniform(-0.4, 0.4), 0.2)
    for _ in range(rng.integers(0, 3)):
        z = street.crossing - 2 if street.crossing < 40 else rng.uniform(8, 30)
        across = rng.uniform(-1, 1) * street.half
        cast.add(person, street.middle + across, z + rng.uniform(-1, 1), 0.4)
    for _ in range(rng.integers(0, 3)):
        side = int(rng.choice(SIDES))
        x = kerbs[side] - side * rng.uniform(0.3, 0.9)
        cast.add(bicycle, x, rng.uniform(5, 28), 0.7, True)
    if rng.random() < 0.4:
        side, z = int(rng.choice(SIDES)), rng.uniform(5, 16)
        for k in range(rng.integers(1, 4)):
            cast.add(bicycle, edges[side] - side * 0.5, z + 0.9 * k, 0.4, False)


def _lamps(street: Street, cast: _Cast) -> None:
    rng = street.rng
    colour = (SODIUM, WARM_WHITE, COOL_WHITE)[rng.integers(3)]
    gap, z, sides = rng.uniform(14, 28), rng.uniform(6, 20), ((-1,), (1,), SIDES)[rng.integers(3)]
    working = 0.35 if rng.random() < 0.3 else 0.97
    while z < 95:
        for side in sides:
            on = street.weather.night and bool(rng.random() < working)
            cast.add(street_lamp, street.kerbs[side] + side * 0.5, z, 0.1, colour, on)
        z += gap


def _trees(street: Street, cast: _Cast) -> None:
    rng = street.rng
    for side in SIDES:
        green = street.green[side]
        if rng.random() < (0.85 if green else 0.4):
            x = street.kerbs[side] + side * (street.pavement + 1.2 if green else 1.0)
            z = rng.uniform(6, 18)
            while z < 75:
                if not street.on_crossing(z) and rng.random() < 0.8:
                    cast.add(tree, x + rng.uniform(-0.3, 0.3), z, 0.3)
                z += rng.uniform(5, 11)
