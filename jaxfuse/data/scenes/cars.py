"""Cars: an outline seen from the side, drawn out to the car's width, with glass, lamps and wheels.

A thermal camera sees cool glass and roofs (they mirror the cold sky) and, on a car that runs, a hot
bonnet, grille, wheels, exhaust and road below.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxfuse.data.scenes.canvas import BLACK, CAR, Canvas, Colour, ring
from jaxfuse.data.scenes.weather import COOL_WHITE, Lamp, Setting, lay_shadow

PAINTS = (
    (0.62, 0.63, 0.64),
    (0.62, 0.63, 0.64),
    (0.30, 0.31, 0.33),
    (0.30, 0.31, 0.33),
    (0.03, 0.03, 0.035),
    (0.03, 0.03, 0.035),
    (0.10, 0.11, 0.12),
    (0.42, 0.03, 0.025),
    (0.03, 0.08, 0.28),
    (0.02, 0.14, 0.09),
    (0.55, 0.38, 0.05),
    (0.68, 0.66, 0.60),
)
RUBBER = (0.025, 0.025, 0.027)

# Metres along (rear to front) and up of the outline's corners: sill, tail, foot of the rear window,
# both ends of the roof, foot of the windscreen, edge of the bonnet, sill.
_SALOON = "-2.2 .3 -2.2 .92 -1.5 1 -.85 1.42 .3 1.44 1 .98 2.1 .76 2.2 .3"
_HATCH = "-1.9 .3 -1.95 .95 -1.9 1 -1.45 1.46 .25 1.5 1 1 1.85 .8 1.95 .3"
_SUV = "-2.2 .35 -2.25 1.05 -2.2 1.1 -1.9 1.7 .15 1.75 .9 1.15 2.1 .98 2.2 .35"
_VAN = "-2.4 .35 -2.4 1.15 -2.4 1.2 -2.35 2.1 1.15 2.15 1.95 1.2 2.4 1 2.5 .35"
_SHAPES = tuple(
    np.array(text.split(), float).reshape(8, 2)
    for text in (_SALOON, _SALOON, _HATCH, _HATCH, _SUV, _SUV, _VAN)
)
_WIDTHS = np.array([1, 1, 0.95, 0.74, 0.74, 0.95, 0.97, 0.97])
TAIL, REAR_WINDOW, ROOF, WINDSCREEN, BONNET, NOSE = 0, 2, 3, 4, 5, 6
"""The strips across a car, by the outline's corner they start from."""


class _Body(NamedTuple):
    """A car's outline in the world."""

    place: np.ndarray
    axes: np.ndarray
    """(3, 3): rows along, up, across."""
    half: float
    left: np.ndarray
    """(8, 3) metres."""
    right: np.ndarray
    tall: bool

    def points(self, along: Colour, up: Colour, across: Colour) -> np.ndarray:
        """Points (n, 3) in the world of points in the car's own directions."""
        return self.place + np.column_stack([along, up, across]) @ self.axes


@lru_cache(maxsize=64)
def _share(left: float, right: float, low: float, high: float) -> np.ndarray:
    """Weights (4, 4) of a quad's corners for a rectangle inside it."""
    rows = [(a, b) for a, b in ((left, low), (right, low), (right, high), (left, high))]
    return np.array([((1 - a) * (1 - b), a * (1 - b), a * b, (1 - a) * b) for a, b in rows])


def car(
    canvas: Canvas,
    setting: Setting,
    rng: np.random.Generator,
    x: float,
    z: float,
    yaw: float,
    running: bool,
) -> list[Lamp]:
    """A car whose nose points along yaw (0 = away from the camera). Returns the light it throws."""
    outline = _SHAPES[rng.integers(len(_SHAPES))] * rng.uniform(0.95, 1.04)
    half, paint = rng.uniform(0.84, 0.93), PAINTS[rng.integers(len(PAINTS))]
    tone = rng.uniform(0.8, 1.1) * np.array(paint)
    engine, brake = rng.uniform(9, 16) * running, bool(rng.random() < 0.4)
    place, (s, c) = np.array([x, 0.0, z]), (np.sin(yaw), np.cos(yaw))
    axes = np.array([(s, 0, c), (0, 1, 0), (c, 0, -s)])
    along, up = outline.T
    sides = [place + np.column_stack([along, up, half * sign * _WIDTHS]) @ axes for sign in (-1, 1)]
    body = _Body(place, axes, half, sides[0], sides[1], bool(outline[2, 1] > 1.15))
    _on_ground(canvas, setting, body, running)

    instance, plane, air = canvas.instance(), canvas.upright(z), setting.air

    def part(albedo: Colour, heat: float, lit: float = 0.0, emission: Colour = BLACK) -> int:
        return canvas.surface(
            albedo,
            air + heat,
            CAR,
            plane,
            instance=instance,
            emission=emission,
            sun=lit,
            grain=0.02,
            ripple=0.5,
        )

    rubber, hub = part(RUBBER, 0.7 * engine + 1), part((0.2, 0.2, 0.21), engine)
    glass_tone = (0.006, 0.007, 0.008) if setting.night else (0.09, 0.12, 0.15)
    glass = part(glass_tone, -3.0)
    for end in (-1.9, 1.9):
        for sign in (-1, 1):
            edge = half * sign * np.array([0.98, 0.76, 0.76, 0.98])
            canvas.fill(body.points((end,) * 4, (0, 0, 0.4, 0.4), edge), rubber)
    for face, quad, lit in _facing(canvas, setting, body):
        if face > NOSE:
            _flank(canvas, body, face - NOSE - 1, part(tone, 1.5 + 4 * lit, 0.85 * lit), glass)
            _wheels(canvas, body, face - NOSE - 1, rubber, hub)
            continue
        warm = {ROOF: -3.0, BONNET: 0.8 * engine, NOSE: 0.6 * engine, TAIL: 0.15 * engine}.get(
            face, 0
        )
        dull = 0.6 if face in (TAIL, NOSE) and not lit else 0.9
        canvas.fill(quad, part(dull * tone, 1.5 + warm + 4 * lit, lit))
        if face in (REAR_WINDOW, WINDSCREEN):
            pane = part(glass_tone, -3.0, 0.25 * lit) if lit else glass
            canvas.fill(_share(0.06, 0.94, 0.08, 0.92) @ quad, pane)
        elif face == TAIL:
            glow = (2.6 if brake else 0.9) * (1.0 if setting.night else 0.1) * running
            red = part((0.35, 0.01, 0.01), 3, 0, (glow, 0.04 * glow, 0.02 * glow))
            bumper = part((0.03, 0.03, 0.03), 2 + 0.4 * engine)
            canvas.fill(_share(0.02, 0.98, 0.0, 0.22) @ quad, bumper)
            canvas.fill(_share(0.03, 0.2, 0.55, 0.9) @ quad, red)
            canvas.fill(_share(0.8, 0.97, 0.55, 0.9) @ quad, red)
            canvas.fill(_share(0.37, 0.63, 0.36, 0.58) @ quad, part((0.55, 0.55, 0.5), -1))
            exhaust = part((0.1, 0.1, 0.1), 2 + 2.2 * engine)
            canvas.fill(_share(0.12, 0.22, -0.08, 0.04) @ quad, exhaust)
        elif face == NOSE:
            # This strip runs from the bonnet's edge down to the sill.
            beam = (13.0 if setting.night else 0.8) * running
            white = part((0.5, 0.5, 0.5), 2 + 0.8 * engine, 0, tuple(beam * k for k in COOL_WHITE))
            canvas.fill(
                _share(0.26, 0.74, 0.12, 0.5) @ quad, part((0.02, 0.02, 0.02), 1.3 * engine)
            )
            canvas.fill(_share(0.04, 0.2, 0.2, 0.55) @ quad, white)
            canvas.fill(_share(0.8, 0.96, 0.2, 0.55) @ quad, white)
            canvas.fill(_share(0.38, 0.62, 0.62, 0.84) @ quad, part((0.6, 0.6, 0.55), 0))
    if not (setting.night and running):
        return []
    ahead, behind = place + 4.5 * axes[0], place - 3.0 * axes[0]
    return [
        Lamp(float(ahead[0]), 0.7, float(ahead[2]), COOL_WHITE, 1.4, False),
        Lamp(float(behind[0]), 0.7, float(behind[2]), (1.0, 0.1, 0.05), 0.08, False),
    ]


def _on_ground(canvas: Canvas, setting: Setting, body: _Body, running: bool) -> None:
    """Shadow and warmth around a car's foot."""
    across = body.half * np.array([-1, -1, 1, 1])
    foot = body.points((-2.1, 2.2, 2.2, -2.1), (0, 0, 0, 0), across)
    canvas.shade(canvas.contact, foot[:, [0, 2]], 235)
    if running:
        canvas.shade(canvas.heat, foot[:, [0, 2]], 255)
    for edge in (body.left, body.right):
        lay_shadow(canvas, setting, np.vstack([foot[:1], edge[1:7], foot[1:2]]))
    lay_shadow(canvas, setting, np.vstack([body.left[2:6], body.right[5:1:-1]]))


def _facing(canvas: Canvas, setting: Setting, body: _Body) -> list[tuple[int, np.ndarray, float]]:
    """Faces the camera sees, far ones first: number, corners (4, 3), cosine of the sun's angle.

    0 to 6 are the strips across the car, 7 and 8 its left and right cabin.
    """
    left, right = body.left, body.right
    quads = np.empty((9, 4, 3))
    quads[:7] = np.stack([left[:-1], right[:-1], right[1:], left[1:]], 1)
    quads[7], quads[8] = left[2:6], right[2:6]
    normal = np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 1])
    middle = quads.mean(1)
    outward = np.sign(((middle - body.place - (0, 0.8, 0)) * normal).sum(1))
    normal *= (outward / (np.linalg.norm(normal, axis=1) + 1e-9))[:, None]
    sight = (0, canvas.eye, 0) - middle
    away = np.linalg.norm(sight, axis=1)
    away[7:] -= 1.5
    seen, lit = (sight * normal).sum(1) > 0, np.maximum(normal @ setting.sun, 0)
    return [(int(k), quads[k], float(lit[k])) for k in np.argsort(-away) if seen[k]]


def _flank(canvas: Canvas, body: _Body, side: int, paint: int, glass: int) -> None:
    """The side of a car: doors, cabin, side windows."""
    edge = (body.left, body.right)[side]
    cabin = edge[[2, 5, 4, 3]]
    canvas.fill(edge[[0, 1, 2, 5, 6, 7]], paint)
    canvas.fill(cabin, paint)
    for start, end in ((0.55, 0.92),) if body.tall else ((0.10, 0.46), (0.52, 0.9)):
        canvas.fill(_share(start, end, 0.08, 0.84) @ cabin, glass)


def _wheels(canvas: Canvas, body: _Body, side: int, rubber: int, hub: int) -> None:
    across = np.full(14, (-1, 1)[side] * (body.half + 0.01))
    for axle in (-1.32, 1.32):
        for radius, number in ((0.34, rubber), (0.19, hub)):
            disc = ring(radius, 14)
            canvas.fill(body.points(disc[:, 0] + axle, disc[:, 1] + 0.34, across), number)
