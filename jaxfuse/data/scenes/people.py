"""People, on foot and on bicycles.

Skin reads near 32 degrees in a thermal camera; clothes lie between skin and air, shoes and bags
near air.
"""

from __future__ import annotations

import numpy as np

from jaxfuse.data.scenes.canvas import (
    BICYCLE,
    BLACK,
    PERSON,
    Canvas,
    Colour,
    limbs,
    ring,
    standing,
)
from jaxfuse.data.scenes.weather import COOL_WHITE, Setting, lay_shadow

CLOTHES = (
    (0.02, 0.02, 0.03),
    (0.05, 0.05, 0.06),
    (0.03, 0.05, 0.13),
    (0.25, 0.04, 0.04),
    (0.12, 0.10, 0.07),
    (0.45, 0.45, 0.44),
    (0.06, 0.14, 0.09),
    (0.40, 0.30, 0.08),
    (0.14, 0.20, 0.34),
    (0.20, 0.20, 0.21),
)
SKINS = ((0.52, 0.31, 0.22), (0.40, 0.23, 0.15), (0.22, 0.12, 0.08), (0.58, 0.38, 0.29))
HAIRS = ((0.015, 0.012, 0.01), (0.05, 0.03, 0.018), (0.18, 0.11, 0.05), (0.25, 0.25, 0.25))
FRAMES = ((0.4, 0.4, 0.4), (0.03, 0.03, 0.03), (0.35, 0.03, 0.03), (0.03, 0.1, 0.3))

Point = tuple[float, float]


class _Pose:
    """Joints of a figure, in shares of its height, right of and above the point at its feet."""

    def __init__(self, rng: np.random.Generator, riding: float) -> None:
        self.heading = riding or float(rng.choice((-1.0, -0.6, 0.12, 0.6, 1.0)))
        turned = abs(self.heading)
        self.wide = 0.078 * (1 - 0.42 * turned)
        bend, swing = rng.uniform(0, 0.08), rng.uniform(-0.27, 0.27) * turned
        if riding:
            self.hip, self.neck = (-0.10 * riding, 0.53), (0.09 * riding, 0.80)
            self.knees = [(0.10 * riding, 0.37), (0.06 * riding, 0.45)]
            self.feet = [(0.03 * riding, 0.15), (0.0, 0.24)]
            self.hands = [(0.26 * riding, 0.60), (0.27 * riding, 0.60)]
            return
        forward = float(np.sign(self.heading)) * turned
        self.hip, self.neck = (0.0, 0.50), (0.02 * forward, 0.80)
        self.knees = [(0.42 * s + 0.03 * forward, 0.275) for s in (-swing, swing)]
        self.feet = [(0.78 * s - 0.03 * forward * (s * forward < 0), 0.03) for s in (-swing, swing)]
        self.hands = [(0.6 * s + 0.02 * forward, 0.44 + bend) for s in (swing, -swing)]


def person(
    canvas: Canvas,
    setting: Setting,
    rng: np.random.Generator,
    x: float,
    z: float,
    riding: float = 0.0,
) -> None:
    """A walking or standing figure; riding seats it on a bicycle that heads right (> 0) or left."""
    height, pose = rng.uniform(1.5, 1.9), _Pose(rng, riding)
    air, turned = setting.air, abs(pose.heading)
    bare, warmth = rng.random() < (0.08 if air < 15 else 0.5), rng.uniform(0.42, 0.68)
    dress, trousers = (CLOTHES[k] for k in rng.integers(len(CLOTHES), size=2))
    plane, who = canvas.upright(z), canvas.instance()
    lit = 0.75 * max(float(setting.sun[1]) * 0.5 - float(setting.sun[2]) * 0.6, 0.0)

    def cloth(albedo: Colour, share: float, grain: float = 0.1) -> int:
        heat = air + share * max(33.0 - air, 5.0)
        return canvas.surface(
            albedo, heat, PERSON, plane, instance=who, sun=lit, grain=grain, ripple=0.9
        )

    skin = cloth(SKINS[rng.integers(len(SKINS))], 0.97, 0.05)
    hair = cloth(HAIRS[rng.integers(len(HAIRS))], 0.76)
    top, legs = cloth(dress, warmth), cloth(trousers, 0.85 * warmth)
    shoe = cloth(CLOTHES[rng.integers(2)], 0.35 * warmth)
    sleeve = skin if bare else top
    bars: list[tuple[float, ...]] = []
    numbers: list[int] = []

    def bar(a: Point, b: Point, r0: float, r1: float, number: int) -> None:
        bars.append((*a, *b, r0, r1))
        numbers.append(number)

    wide, (neck_x, neck_y) = pose.wide, pose.neck
    toe = 0.04 * pose.heading
    for side, out in ((0, -wide), (1, wide)):
        stance = out * (0.2 if riding else 0.62)
        knee = (pose.knees[side][0] + stance, pose.knees[side][1])
        foot = (pose.feet[side][0] + stance, pose.feet[side][1])
        hand = (pose.hands[side][0] + 1.5 * out, pose.hands[side][1])
        elbow = (0.5 * (neck_x + hand[0]) - 0.03 * pose.heading + 0.9 * out, 0.62)
        shoulder = (neck_x + 1.25 * out, neck_y - 0.005)
        bar((pose.hip[0] + 0.55 * out, pose.hip[1]), knee, 0.055, 0.037, legs)
        bar(knee, foot, 0.037, 0.025, legs)
        bar(foot, (foot[0] + toe, foot[1] - 0.012), 0.022, 0.017, shoe)
        if side == 1:
            bar(pose.hip, pose.neck, 0.048 + 0.5 * wide, 0.042 + 0.7 * wide, top)
        bar(shoulder, elbow, 0.031, 0.025, sleeve)
        bar(elbow, hand, 0.025, 0.019, sleeve)
        bar(hand, (hand[0], hand[1] - 0.02), 0.019, 0.015, skin)
    face = neck_x + 0.02 * pose.heading
    bar(pose.neck, (face, 0.9), 0.03, 0.03, skin)
    bar((face, 0.905), (face, 0.94), 0.041, 0.047, skin)
    bar((face - 0.02 * pose.heading, 0.948), (face, 0.958), 0.045, 0.040, hair)
    if not riding and turned > 0.5 and rng.random() < 0.5:
        bag, back = cloth(CLOTHES[rng.integers(len(CLOTHES))], 0.2), -0.11 * pose.heading
        bar((back, 0.60), (back + 0.01, 0.74), 0.055, 0.05, bag)
    canvas.fill_each(standing(height * limbs(np.array(bars)), x, z), numbers)
    if not riding:
        canvas.shade(canvas.contact, ring(1.0, 10) * (0.34, 0.22) + (x, z), 150)
    lay_shadow(canvas, setting, standing(height * _UPRIGHT, x, z))


_UPRIGHT = np.array([(-0.1, 0), (-0.16, 0.8), (-0.05, 1), (0.05, 1), (0.16, 0.8), (0.1, 0)])
_JOINTS = {
    "rear": (-0.52, 0.34),
    "front": (0.53, 0.34),
    "pedal": (-0.04, 0.3),
    "saddle": (-0.2, 0.88),
    "head": (0.38, 0.82),
    "bars": (0.36, 1.02),
}
_TUBES = (
    ("rear", "pedal"),
    ("rear", "saddle"),
    ("pedal", "saddle"),
    ("pedal", "head"),
    ("saddle", "head"),
    ("head", "front"),
    ("head", "bars"),
)
_LEAN = np.array([(-0.5, 0), (-0.3, 0.9), (0.4, 0.9), (0.6, 0)])


def bicycle(
    canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float, ridden: bool
) -> None:
    """A bicycle from the side or at an angle, parked or with its rider."""
    turn = float(rng.choice((-1.0, -0.8, -0.35, 0.35, 0.8, 1.0)))
    plane, which = canvas.upright(z), canvas.instance()
    warm, lit = setting.air + (3.0 if ridden else 0.5), 0.5 * float(setting.sun[1])

    def part(albedo: Colour, heat: float, emission: Colour = BLACK) -> int:
        return canvas.surface(
            albedo, heat, BICYCLE, plane, instance=which, emission=emission, sun=lit
        )

    tyre, black = part((0.025, 0.025, 0.027), warm + 1), part((0.02, 0.02, 0.02), warm + 3)
    frame = part(FRAMES[rng.integers(len(FRAMES))], warm)
    stretch = (turn, 1.0)
    for hub in (-0.52, 0.53):
        wheel = standing(ring(0.33, 16) * stretch, x + hub * turn, z, 0.34)
        canvas.stroke(wheel, 0.045, tyre, closed=True)
    for ends in _TUBES:
        line = np.array([_JOINTS[end] for end in ends]) * stretch
        canvas.stroke(standing(line, x, z), 0.035, frame)
    for bar in (((-0.32, 0.93), (-0.1, 0.92)), ((0.24, 1.06), (0.44, 1.03))):
        canvas.stroke(standing(np.array(bar) * stretch, x, z), 0.06, black)
    if ridden and setting.night:
        lamp = part((0.5, 0.5, 0.5), warm + 6, tuple(6 * c for c in COOL_WHITE))
        canvas.fill(standing(ring(0.05, 6), x + 0.5 * turn, z, 0.85), lamp)
    lay_shadow(canvas, setting, standing(_LEAN * stretch, x, z))
    canvas.shade(canvas.contact, ring(1.0, 10) * (0.6 * abs(turn) + 0.1, 0.2) + (x, z), 120)
    if ridden:
        person(canvas, setting, rng, x, z - 0.01, riding=turn)
