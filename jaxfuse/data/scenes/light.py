"""From a drawn street to a world: texture, light, sky and warmth for each pixel.

`world(seed, index, ...)` is a pure function: the same arguments give the same arrays, bit for bit,
in any order and in any process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from jaxfuse.data.scenes.buildings import draw_building
from jaxfuse.data.scenes.canvas import Canvas, Layers
from jaxfuse.data.scenes.street import Street, draw_ground, draw_horizon
from jaxfuse.data.scenes.traffic import draw_traffic
from jaxfuse.data.scenes.weather import Lamp, Weather, draw_weather

f32 = np.float32


class World(NamedTuple):
    """A scene before any camera. float32; light is linear and 1 is a sunlit white wall."""

    night: bool
    layers: Layers
    diffuse: np.ndarray
    """(h, w, 3): light reflected."""
    direct: np.ndarray
    """(h, w, 3): light of lamps, lit windows and sky."""
    temperature: np.ndarray
    """(h, w), degrees Celsius."""
    depth: np.ndarray
    """(h, w), metres."""
    veil: np.ndarray
    """(3,): the colour that distant things fade to."""
    haze: float
    """Loss of contrast per metre."""


class _Space(NamedTuple):
    """Where each pixel's surface is, metres."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


def stream(seed: int, index: int, use: int = 0) -> np.random.Generator:
    """The random stream of one scene for one use; use 0 begins with the choice of night or day."""
    return np.random.default_rng([seed, index, use])


def is_night(seed: int, index: int, night_share: float) -> bool:
    """Whether a scene is at night, without drawing it."""
    return bool(stream(seed, index).random() < night_share)


def world(seed: int, index: int, height: int, width: int, night_share: float = 0.5) -> World:
    """Draws and lights scene `index` of `seed`, height x width pixels."""
    rng = stream(seed, index)
    weather = draw_weather(rng, bool(rng.random() < night_share))
    street = Street(rng, weather, height, width)
    draw_horizon(street)
    draw_ground(street)
    for block in street.blocks:
        draw_building(street, block)
    draw_traffic(street)

    canvas = street.canvas
    layers = canvas.layers()
    depth = 1 / layers.nearness
    column = (np.arange(width, dtype=f32) + f32(0.5 - canvas.centre)) / f32(canvas.focal)
    row = (f32(canvas.horizon - 0.5) - np.arange(height, dtype=f32)) / f32(canvas.focal)
    space = _Space(column * depth, f32(canvas.eye) + row[:, None] * depth, depth)
    fine, coarse = _textures(rng, canvas, layers.ground, space)
    soft, ground = height / 240, layers.ground
    cast, contact, heated = (
        cv2.GaussianBlur(mask, (0, 0), sigma * soft).astype(f32) * (ground * f32(1 / 255))
        for mask, sigma in ((canvas.cast, 0.8), (canvas.contact, 1.2), (canvas.heat, 2.5))
    )

    texture = 1 + layers.grain * (f32(0.5) * fine + f32(0.5) * coarse)
    np.maximum(texture, f32(0.1), out=texture)
    texture *= 1 - f32(0.75) * contact
    if weather.night:
        light = _lamplight(street.lamps, space)
        beam = 0.6 + 0.6 * rng.random() if rng.random() < 0.5 else 0.0
        light += _headlight(column, row, depth, beam)[..., None]
        light += weather.ambient.astype(f32)
    else:
        light = (layers.sun * (1 - cast))[..., None] * weather.sunlight.astype(f32)
        light += weather.ambient.astype(f32)
    light *= texture[..., None]
    light *= layers.albedo

    sky, sky_heat = _sky(rng, weather, canvas)
    shown = layers.open_sky[: len(sky)]
    direct = layers.emission
    direct[: len(sky)] += sky * shown[..., None]

    heat = layers.temperature + layers.ripple * (f32(0.35) * fine + f32(0.65) * coarse)
    heat += f32(7 * weather.sun[1]) * ground * (f32(0.5) - cast)
    heat += f32(6) * heated
    # Air in between takes and gives warmth: distant things drift to its temperature.
    heat = weather.air + (heat - f32(weather.air)) * np.exp(depth * f32(-1 / 400))
    heat[: len(sky)] += shown * (sky_heat - heat[: len(sky)])
    veil = (0.75 * weather.skyline + 0.25 * weather.zenith).astype(f32)
    return World(weather.night, layers, light, direct, heat, depth, veil, weather.haze)


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """Two tiles (2, 512, 512) of smooth noise that repeat without a seam: fine grain, blotches."""
    rng, tiles = np.random.default_rng(7), []
    for octaves in ((512, 256, 128), (128, 64, 32)):
        tile = np.zeros((512, 512), f32)
        for cells in octaves:
            grid = np.pad(rng.standard_normal((cells, cells)).astype(f32), 2, mode="wrap")
            scale = 512 // cells
            big = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            tile += big[2 * scale : 2 * scale + 512, 2 * scale : 2 * scale + 512]
        tiles.append(tile / tile.std())
    both = np.stack(tiles)
    both.flags.writeable = False
    return both


def _textures(
    rng: np.random.Generator, canvas: Canvas, ground: np.ndarray, space: _Space
) -> tuple[np.ndarray, np.ndarray]:
    """Fine and coarse noise (h, w) on the surfaces, unit variance near the camera, fading far away.

    It lies in metres across and away on the ground, along and up on what stands.
    """
    z = np.minimum(space.z, 60)
    a = space.x + (1 - ground) * z
    b = space.y + ground * (z - space.y)
    pixel = z * f32(1 / canvas.focal)
    pixel *= 1 + ground * (z * f32(1 / canvas.eye) - 1)
    found = []
    for tile, per_metre, blur in zip(_noise(), (40.0, 26.0), (0.5, 0.12), strict=True):
        place = []
        for metres in (a, b):
            at = metres * f32(per_metre / 512) + f32(rng.random())
            at -= np.floor(at)
            at *= 512
            place.append(at)
        noise = cv2.remap(tile, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        noise /= 1 + np.square(pixel * f32(per_metre * blur))
        found.append(noise)
    return found[0], found[1]


def _lamplight(lamps: list[Lamp], space: _Space) -> np.ndarray:
    """Light (h, w, 3) of all lamps. It is smooth: worked out on every second pixel."""
    height, width = space.z.shape
    x, y, z = (part[::2, ::2] for part in space)
    light = np.zeros((*z.shape, 3), f32)
    for lamp in lamps:
        dx, dy, dz = x - f32(lamp.x), y - f32(lamp.y), z - f32(lamp.z)
        square = dx * dx + dy * dy + dz * dz + f32(0.6)
        fall = f32(lamp.power) / square
        if lamp.downward:
            fall *= np.maximum(-dy / np.sqrt(square), 0)
        for channel in range(3):
            light[..., channel] += fall * f32(lamp.colour[channel])
    return cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)


def _headlight(column: np.ndarray, row: np.ndarray, depth: np.ndarray, beam: float) -> np.ndarray:
    """Light (h, w) of the head lamps of the car that carries the camera."""
    across = np.exp(-np.square(column / f32(0.42)))
    above = np.exp(-np.square(np.maximum(row + f32(0.02), 0) / f32(0.05)))
    return (f32(12 * beam) * above[:, None] * across) / (depth * depth + 30)


def _sky(
    rng: np.random.Generator, weather: Weather, canvas: Canvas
) -> tuple[np.ndarray, np.ndarray]:
    """Light (rows, w, 3) and temperature (rows, w) of the sky, from the top to the horizon.

    All but the stars is smooth: worked out at half the size.
    """
    height, width = min(canvas.height, int(canvas.horizon) + 2), canvas.width
    coarse = (width + 1) // 2, (height + 1) // 2
    at = (np.arange(coarse[1]) + 0.5) * (height / coarse[1])
    up = ((canvas.horizon - at) / canvas.height).clip(0, 1)[:, None]
    low = np.exp(-up / 0.16).astype(f32)
    zenith, skyline = weather.zenith.astype(f32), weather.skyline.astype(f32)
    sky = zenith + low[..., None] * (skyline - zenith)
    cells = rng.standard_normal((3, 14, 20)).astype(f32)
    clouds = np.zeros(coarse[::-1], f32)
    for k, (rows, columns) in enumerate(((4, 5), (7, 10), (14, 20))):
        grid = cells[k, :rows, :columns]
        clouds += cv2.resize(grid, coarse, interpolation=cv2.INTER_CUBIC) / (1 + k)
    cover = np.clip(f32(weather.cloud - 0.4) + f32(0.35) * clouds, 0, 1)
    white = 0.75 * skyline + 0.25 * zenith + f32(0.3) * weather.sunlight.astype(f32)
    bright = (f32(0.9) + f32(0.1) * clouds)[..., None] * white
    sky = sky + f32(0.85) * cover[..., None] * (bright - sky)
    heat = f32(weather.air - 34 + 6 * weather.cloud) + 24 * low + 10 * cover
    sky, heat = (cv2.resize(part, (width, height)) for part in (sky, heat))
    stars = rng.random((60, 3))
    if weather.night and weather.cloud < 0.6:
        rows, columns = (stars[:, :2] * (0.9 * canvas.horizon, width)).astype(int).T
        sky[rows.clip(0, height - 1), columns] += 0.1 * stars[:, 2:].astype(f32) ** 2
    return sky, heat
