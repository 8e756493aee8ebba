"""What stands beside a road: trees, hedges, street lamps, signs."""

from __future__ import annotations

import numpy as np

from jaxfuse.data.scenes.canvas import (
    BLACK,
    POLE,
    VEGETATION,
    Canvas,
    Colour,
    limbs,
    ring,
    standing,
)
from jaxfuse.data.scenes.weather import Lamp, Setting, lay_shadow

STEEL = (0.16, 0.165, 0.17)
BARK = (0.07, 0.055, 0.04)


def tree(canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float) -> None:
    """A tree in leaf, or bare."""
    height, spread, lean = rng.uniform(4.5, 9.0), rng.uniform(1.3, 2.4), rng.uniform(-0.3, 0.3)
    crown, trunk = height - spread, rng.uniform(0.14, 0.26)
    bark = canvas.surface(
        BARK,
        setting.air + 1.5,
        VEGETATION,
        canvas.upright(z),
        sun=0.4 * float(setting.sun[1]),
        grain=0.4,
        ripple=0.6,
    )
    stem = np.array([(0, 0, lean, crown, trunk, 0.55 * trunk)])
    trunk_only = standing(limbs(stem, 2)[0], x, z)
    if rng.random() < 0.2:
        stem[0, 2:4] = (0.4 * lean, 0.38 * height)
        bars = _branches(rng, 0.4 * lean, 0.38 * height, height, trunk, 4 if z < 25 else 3)
        canvas.fill_each(standing(limbs(bars, 3), x, z), [bark] * len(bars))
        canvas.fill(standing(limbs(stem, 2)[0], x, z), bark)
        lay_shadow(canvas, setting, trunk_only)
        return
    tips = np.column_stack([rng.uniform(-0.7, 0.7, 3) * spread, crown + rng.uniform(0, 0.8, 3)])
    forks = np.column_stack(
        [np.tile((lean, 0.7 * crown), (3, 1)), tips, np.tile((0.09, 0.05), (3, 1))]
    )
    canvas.fill_each(standing(limbs(np.vstack([stem, forks]), 2), x, z), [bark] * 4)
    _leaves(canvas, setting, rng, np.array([x + lean, crown + 0.3]), z, spread)
    lay_shadow(canvas, setting, trunk_only)
    lay_shadow(canvas, setting, standing(1.05 * spread * ring(1.0, 14), x + lean, z, crown))


def _leaves(
    canvas: Canvas,
    setting: Setting,
    rng: np.random.Generator,
    centre: np.ndarray,
    z: float,
    spread: float,
) -> None:
    """Heaps of leaves, dark ones below and behind, light ones above and in front."""
    tint = np.array((0.06, 0.11, 0.03)) * rng.uniform(0.7, 1.3, 3)
    sunny, share = float(setting.sun[1] > 0), 1.0 if z < 25 else 0.5
    for tone, up, count, size in ((0.5, -0.2, 26, 0.30), (0.9, 0.0, 26, 0.26), (1.4, 0.2, 24, 0.2)):
        count = int(share * count)
        leaf = canvas.surface(
            tone * tint,
            setting.air + 0.9 * tone - 0.7,
            VEGETATION,
            canvas.upright(z),
            sun=(0.15 + 0.55 * up + 0.25 * tone) * sunny,
            grain=0.75,
            ripple=1.2,
        )
        radius, angle = np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
        middle = np.column_stack([radius * np.cos(angle), 0.95 * radius * np.sin(angle) + up])
        jagged = ring(1.0, 9) * rng.uniform(0.6, 1.3, (count, 9, 1)) * size * spread
        heaps = jagged + (spread * middle + centre)[:, None]
        canvas.fill_each(standing(heaps, 0.0, z), [leaf] * count)


def _branches(
    rng: np.random.Generator, x: float, low: float, high: float, trunk: float, times: int
) -> np.ndarray:
    """Bars (n, 6) of bare branches that fork `times` times."""
    tips, bars = [(x, low, np.pi / 2, 0.55 * trunk, 0.42 * (high - low))], []
    for _ in range(times):
        grown = []
        for px, py, angle, thick, length in tips:
            forks = 3 if len(tips) < 9 else 2
            for turn in np.linspace(-0.6, 0.6, forks) + rng.uniform(-0.3, 0.3, forks):
                reach = length * rng.uniform(0.7, 1.1)
                qx, qy = px + reach * np.cos(angle + turn), py + reach * np.sin(angle + turn)
                bars.append((px, py, qx, qy, thick, 0.6 * thick))
                grown.append((qx, qy, angle + turn, 0.6 * thick, 0.68 * length))
        tips = grown
    return np.array(bars)


def hedge(
    canvas: Canvas,
    setting: Setting,
    rng: np.random.Generator,
    x: float,
    near: float,
    far: float,
) -> None:
    """A row of bushes along the street."""
    steps = int((far - near) / 0.5) + 2
    top = rng.uniform(0.7, 1.4) * rng.uniform(0.82, 1.15, steps)
    leaf = canvas.surface(
        np.array((0.05, 0.095, 0.03)) * rng.uniform(0.7, 1.2, 3),
        setting.air,
        VEGETATION,
        canvas.wall(x),
        sun=0.6 * float(setting.sun[1]),
        grain=0.7,
        ripple=1.0,
    )
    upper = np.column_stack([np.full(steps, x), top, np.geomspace(near, far, steps)])
    outline = np.vstack([upper, upper[::-1] * (1, 0, 1)])
    canvas.fill(outline, leaf)
    lay_shadow(canvas, setting, outline)


def street_lamp(
    canvas: Canvas,
    setting: Setting,
    rng: np.random.Generator,
    x: float,
    z: float,
    colour: Colour,
    on: bool,
) -> list[Lamp]:
    """A post with an arm towards the road (x = 0). Returns its light, where it is on."""
    height, arm = rng.uniform(5.2, 6.6), -float(np.sign(x)) * rng.uniform(1.0, 1.8)
    power, plane, sun = rng.uniform(4, 9), canvas.upright(z), float(setting.sun[1])
    post = canvas.surface(STEEL, setting.air + 1, POLE, plane, sun=0.6 * sun)
    bars = np.array([(0, 0, 0, height, 0.09, 0.05), (0, height, arm, height + 0.25, 0.05, 0.04)])
    outlines = standing(limbs(bars, 2), x, z)
    canvas.fill_each(outlines, [post, post])
    head = canvas.surface(
        (0.5, 0.5, 0.5),
        setting.air + (14 if on else 1),
        POLE,
        plane,
        emission=tuple(14 * k for k in colour) if on else BLACK,
        sun=sun,
    )
    box = np.array([(-0.3, 0.2), (0.3, 0.2), (0.22, 0.34), (-0.22, 0.34)])
    canvas.fill(standing(box, x + arm, z, height), head)
    lay_shadow(canvas, setting, outlines[0])
    return [Lamp(x + arm, height + 0.1, z, colour, power, True)] if on else []


def sign(canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float) -> None:
    """A road sign, a traffic light or a bollard."""
    plane, sun = canvas.upright(z), 0.55 * float(setting.sun[1])
    kind, lit, height = int(rng.integers(4)), int(rng.integers(3)), rng.uniform(2.4, 3.1)

    def part(albedo: Colour, heat: float, emission: Colour = BLACK) -> int:
        return canvas.surface(albedo, setting.air + heat, POLE, plane, emission=emission, sun=sun)

    if kind == 3:
        stem = np.array([(-0.09, 0), (-0.09, 1), (0.09, 1), (0.09, 0)])
        canvas.fill(standing(stem, x, z), part((0.05, 0.05, 0.05), 0.5))
        canvas.fill(standing(stem * (1, 0.2) + (0, 0.65), x, z), part((0.6, 0.2, 0.03), 0.5))
        lay_shadow(canvas, setting, standing(stem, x, z))
        return
    stem = np.array([(-0.045, 0), (-0.045, height), (0.045, height), (0.045, 0)])
    canvas.fill(standing(stem, x, z), part(STEEL, 0.5))
    lay_shadow(canvas, setting, standing(stem, x, z))
    if kind == 2:
        box = np.array([(-0.16, -0.9), (0.16, -0.9), (0.16, 0), (-0.16, 0)])
        canvas.fill(standing(box, x, z, height), part((0.02, 0.02, 0.02), 2))
        colour = ((3.0, 0.1, 0.05), (3.0, 1.4, 0.1), (0.1, 2.6, 1.2))[lit]
        bulb = standing(ring(0.1, 8), x, z, height - 0.17 - 0.28 * lit)
        canvas.fill(bulb, part(BLACK, 8, colour))
        return
    face = ((0.5, 0.03, 0.03), (0.03, 0.1, 0.4))[kind]
    for radius, paint in ((0.36, (0.6, 0.6, 0.58)), (0.30, face)):
        plate = ring(radius, 12 if kind == 0 else 4)
        canvas.fill(standing(plate, x, z, height - 0.1), part(paint, -0.5))
