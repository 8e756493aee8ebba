"""Light and air: where the sun is, how bright the sky, how warm and how clear the air."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxfuse.data.scenes.canvas import Canvas, Colour

WARM_WHITE, COOL_WHITE, SODIUM = (1.0, 0.72, 0.42), (0.85, 0.95, 1.0), (1.0, 0.52, 0.16)


class Weather(NamedTuple):
    """Light and air of one scene. Light is linear; 1 is what falls on a sunlit wall at noon."""

    night: bool
    air: float
    """Temperature, degrees Celsius."""
    sun: np.ndarray
    """Unit vector (3,) towards the sun; all 0 at night and under a closed cloud."""
    sunlight: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    skyline: np.ndarray
    cloud: float
    """Share of the sky, 0 to 1."""
    haze: float
    """Loss of contrast per metre."""


class Setting(NamedTuple):
    """What the surroundings do to one thing."""

    night: bool
    air: float
    sun: np.ndarray
    """As in `Weather`, and all 0 in the shade."""


class Lamp(NamedTuple):
    """A light that falls on its surroundings."""

    x: float
    y: float
    z: float
    colour: Colour
    power: float
    """Light at one metre."""
    downward: bool
    """Shines below itself only."""


def draw_weather(rng: np.random.Generator, night: bool) -> Weather:
    """A night, or a day that is clear, low-sunned or overcast."""
    haze = rng.uniform(0.0008, 0.003) if rng.random() < 0.75 else rng.uniform(0.006, 0.016)
    dark, cloud, kind = np.zeros(3), rng.random(), rng.random()
    if night:
        ambient = np.array((0.0065, 0.0075, 0.0105)) * rng.uniform(0.25, 1.4)
        zenith = np.array((0.0012, 0.0018, 0.0038)) * rng.uniform(0.4, 1.6)
        glow = np.array((0.0125, 0.0105, 0.0100)) * rng.uniform(0.3, 1.8)
        air = rng.uniform(4, 16)
        return Weather(True, air, dark, dark, ambient, zenith, glow, cloud, haze)
    air = rng.uniform(12, 26)
    if kind < 0.30:
        grey = rng.uniform(0.45, 0.75)
        zenith, skyline = grey * np.array((0.80, 0.86, 0.95)), grey * np.array((1.1, 1.1, 1.1))
        ambient = grey * np.array((0.75, 0.79, 0.86))
        return Weather(False, air, dark, dark, ambient, zenith, skyline, 0.95, haze)
    low = kind > 0.8
    height = np.deg2rad(rng.uniform(12, 22) if low else rng.uniform(30, 62))
    turn = rng.uniform(0, 2 * np.pi)
    flat = np.cos(height)
    sun = np.array([flat * np.sin(turn), np.sin(height), -flat * np.cos(turn)])
    cloud = 0.1 + 0.6 * cloud
    if low:
        sunlight, ambient = np.array((0.78, 0.52, 0.29)), np.array((0.20, 0.21, 0.27))
        zenith, skyline = np.array((0.16, 0.24, 0.44)), np.array((0.95, 0.62, 0.36))
        return Weather(False, air - 3, sun, sunlight, ambient, zenith, skyline, cloud, haze)
    sunlight, ambient = np.array((1.0, 0.93, 0.80)), np.array((0.21, 0.24, 0.30))
    zenith = np.array((0.14, 0.30, 0.62)) * rng.uniform(0.8, 1.2)
    skyline = np.array((0.62, 0.74, 0.86))
    return Weather(False, air, sun, sunlight, ambient, zenith, skyline, cloud, haze)


def lay_shadow(canvas: Canvas, setting: Setting, outline: np.ndarray) -> None:
    """Casts an outline (n, 3) on the ground, away from the sun."""
    if setting.sun[1] > 0:
        away = setting.sun[[0, 2]] / setting.sun[1]
        canvas.shade(canvas.cast, outline[:, [0, 2]] - outline[:, 1:2] * away)
