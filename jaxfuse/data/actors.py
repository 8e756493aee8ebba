"""What stands and moves in a made-up street: people, bicycles, cars, trees, posts.

Each function draws one thing at x, z (metres, see `canvas`) and registers its instance where it has a box.
Temperatures are what a thermal camera reads: glass and roofs reflect the cold sky, skin is near 32 degrees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxfuse.data.canvas import (
    BICYCLE,
    BLACK,
    CAR,
    PERSON,
    POLE,
    VEGETATION,
    Canvas,
    Colour,
    limbs,
    ring,
    standing,
)

RUBBER, STEEL = (0.025, 0.025, 0.027), (0.16, 0.165, 0.17)
WARM_WHITE, COOL_WHITE, SODIUM = (1.0, 0.72, 0.42), (0.85, 0.95, 1.0), (1.0, 0.52, 0.16)
PAINTS = (
    (0.62, 0.63, 0.64),
    (0.30, 0.31, 0.33),
    (0.03, 0.03, 0.035),
    (0.10, 0.11, 0.12),
    (0.42, 0.03, 0.025),
    (0.03, 0.08, 0.28),
    (0.02, 0.14, 0.09),
    (0.55, 0.38, 0.05),
    (0.68, 0.66, 0.60),
)
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

# Along (rear to front) and up, metres, of the eight corners of a car's outline: sill, tail, foot of the rear
# window, roof, foot of the windscreen, bonnet's edge, sill.
_SALOON = ((-2.2, 0.3), (-2.2, 0.92), (-1.5, 1.0), (-0.85, 1.42), (0.3, 1.44), (1.0, 0.98), (2.1, 0.76))
_HATCH = ((-1.9, 0.3), (-1.95, 0.95), (-1.9, 1.0), (-1.45, 1.46), (0.25, 1.5), (1.0, 1.0), (1.85, 0.8))
_SUV = ((-2.2, 0.35), (-2.25, 1.05), (-2.2, 1.1), (-1.9, 1.7), (0.15, 1.75), (0.9, 1.15), (2.1, 0.98))
_VAN = ((-2.4, 0.35), (-2.4, 1.15), (-2.4, 1.2), (-2.35, 2.1), (1.15, 2.15), (1.95, 1.2), (2.4, 1.0))
_SHAPES = (_SALOON, _SALOON, _HATCH, _HATCH, _SUV, _SUV, _VAN)


class Setting(NamedTuple):
    """What the surroundings do to a thing."""

    night: bool
    air: float
    """Temperature, degrees."""
    sun: np.ndarray
    """Unit vector (3,) towards the sun; all 0 in shade, under cloud and at night."""


class Lamp(NamedTuple):
    """A light that falls on its surroundings."""

    x: float
    y: float
    z: float
    colour: Colour
    power: float
    """Light at one metre; 1 is full daylight."""
    downward: bool
    """Shines below itself only."""


def lay_shadow(canvas: Canvas, setting: Setting, outline: np.ndarray) -> None:
    """Casts an outline (n, 3) on the ground, away from the sun."""
    if setting.sun[1] > 0:
        away = setting.sun[[0, 2]] / setting.sun[1]
        canvas.shade(canvas.cast, outline[:, [0, 2]] - outline[:, 1:2] * away)


def person(
    canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float, riding: float = 0.0
) -> None:
    """A walking figure; riding = +-1 seats it on a bicycle that heads right or left (less: turned)."""
    stature = rng.uniform(1.52, 1.9)
    heading = riding or float(rng.choice((-1.0, -0.5, 0.12, 0.5, 1.0)))
    step, bend = rng.uniform(0.15, 0.5) * abs(heading), rng.uniform(0, 0.3)
    phase = float(rng.choice((-1.0, 1.0)))
    air, bare = setting.air, rng.random() < (0.1 if setting.air < 15 else 0.6)
    warmth = rng.uniform(0.55, 0.8)
    dress, trousers = (CLOTHES[k] for k in rng.integers(len(CLOTHES), size=2))
    plane, who = canvas.upright(z), canvas.instance()
    lit = 0.75 * max(float(setting.sun[1]) * 0.5 - float(setting.sun[2]) * 0.6, 0.0)

    def cloth(albedo: Colour, share: float, grain: float = 0.1) -> int:
        heat = air + share * max(33.0 - air, 4.0)
        return canvas.surface(
            albedo, heat, PERSON, plane, instance=who, sun=lit, grain=grain, ripple=0.8
        )

    skin = cloth(SKINS[rng.integers(len(SKINS))], 0.97, 0.05)
    hair = cloth(HAIRS[rng.integers(len(HAIRS))], 0.80)
    top, legs = cloth(dress, warmth), cloth(trousers, 0.9 * warmth)
    shoe = cloth(CLOTHES[rng.integers(2)], 0.4 * warmth)
    arm = skin if bare else top
    wide = 0.075 * (1 - 0.45 * abs(heading))
    if riding:
        hip, neck, lap = (-0.10, 0.53), (0.09, 0.80), 0.20
        knees = [(0.10, 0.37), (0.06, 0.45)]
        feet = [(0.03, 0.15), (0.0, 0.24)]
        hands = [(0.27, 0.60), (0.28, 0.60)]
    else:
        lean = 0.02 * heading
        hip, neck, lap = (0.0, 0.50), (lean, 0.80), 0.0
        swing = step * phase
        knees = [(-0.4 * swing, 0.275), (0.4 * swing + 0.03 * heading, 0.275)]
        feet = [(-0.75 * swing - 0.06 * heading * step, 0.04), (0.75 * swing, 0.03)]
        hands = [(0.55 * swing, 0.45 + bend * 0.2), (-0.55 * swing, 0.45 + bend * 0.3)]
    squeeze = heading if riding else 1.0
    spread = [-1.0, 1.0]
    bars: list[tuple[float, ...]] = []
    numbers: list[int] = []

    def bar(a: tuple[float, float], b: tuple[float, float], r0: float, r1: float, number: int) -> None:
        bars.append((squeeze * a[0], a[1], squeeze * b[0], b[1], r0, r1))
        numbers.append(number)

    toe = 0.035 * (heading if not riding else 1.0)
    for side in (0, 1):
        out = spread[side] * wide * (0.62 if not riding else 0.2)
        knee, foot = (knees[side][0] + out, knees[side][1]), (feet[side][0] + out, feet[side][1])
        elbow = (0.5 * (neck[0] + hands[side][0]) - 0.03 * heading, 0.61)
        shoulder = (neck[0] + spread[side] * wide * 1.25, neck[1] - 0.005)
        hand = (hands[side][0] + spread[side] * wide * 1.5, hands[side][1])
        elbow = (elbow[0] + spread[side] * wide * 1.6, elbow[1])
        bar((hip[0] + out * 0.9, hip[1]), knee, 0.052, 0.036, legs)
        bar(knee, foot, 0.036, 0.024, legs)
        bar(foot, (foot[0] + toe, 0.018 + foot[1] - 0.03), 0.021, 0.017, shoe)
        if side == 1:
            bar(hip, neck, 0.052 + 0.55 * wide, 0.05 + 0.75 * wide, top)
        bar(shoulder, elbow, 0.03, 0.025, arm)
        bar(elbow, hand, 0.024, 0.019, arm)
        bar(hand, (hand[0], hand[1] - 0.02), 0.02, 0.016, skin)
    face = (neck[0] + 0.012 * heading + lap * 0.1, 0.925)
    bar(neck, face, 0.03, 0.03, skin)
    bar((face[0], face[1] - 0.018), (face[0], face[1] + 0.016), 0.042, 0.047, skin)
    bar((face[0] - 0.02 * heading, face[1] + 0.025), (face[0], face[1] + 0.035), 0.044, 0.038, hair)
    if not riding and rng.random() < 0.35:
        bag = cloth(CLOTHES[rng.integers(len(CLOTHES))], 0.25)
        bar((-0.11 * heading, 0.60), (-0.10 * heading, 0.74), 0.055, 0.05, bag)
    shape = np.array(bars)
    outlines = stature * limbs(shape[:, 0:2], shape[:, 2:4], shape[:, 4], shape[:, 5])
    canvas.fill_each(standing(outlines, x, z), numbers)
    if not riding:
        canvas.shade(canvas.contact, ring(1.0, 10) * (0.34, 0.22) + (x, z), 150)
    tall = np.array([(-0.1, 0), (-0.16, 0.8), (-0.05, 1), (0.05, 1), (0.16, 0.8), (0.1, 0)])
    lay_shadow(canvas, setting, standing(stature * tall, x, z))


def bicycle(
    canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float, ridden: bool
) -> None:
    """A bicycle seen from the side or at an angle, parked or with its rider."""
    turn = float(rng.choice((-1.0, -0.8, -0.35, 0.35, 0.8, 1.0)))
    paint = PAINTS[rng.integers(len(PAINTS))]
    plane, which = canvas.upright(z), canvas.instance()
    warm = setting.air + (3.0 if ridden else 0.5)

    def part(albedo: Colour, heat: float, emission: Colour = BLACK) -> int:
        return canvas.surface(
            albedo, heat, BICYCLE, plane, instance=which, emission=emission, sun=0.5 * setting.sun[1]
        )

    tyre, frame, seat = part(RUBBER, warm + 1), part(paint, warm), part(RUBBER, warm + 3)
    stretch = (turn, 1.0)
    for hub in (-0.52, 0.53):
        wheel = (ring(0.33, 16) + (hub, 0.34)) * stretch
        canvas.stroke(standing(wheel, x, z), 0.045, tyre, closed=True)
    joints = {"rear": (-0.52, 0.34), "front": (0.53, 0.34), "pedal": (-0.04, 0.3)}
    joints |= {"saddle": (-0.2, 0.88), "head": (0.38, 0.82), "bars": (0.36, 1.02)}
    tubes = (("rear", "pedal"), ("rear", "saddle"), ("pedal", "saddle"), ("pedal", "head"))
    tubes += (("saddle", "head"), ("head", "front"), ("head", "bars"))
    for a, b in tubes:
        line = np.array([joints[a], joints[b]]) * stretch
        canvas.stroke(standing(line, x, z), 0.035, frame)
    for bar in (((-0.32, 0.93), (-0.1, 0.92)), ((0.24, 1.06), (0.44, 1.03))):
        canvas.stroke(standing(np.array(bar) * stretch, x, z), 0.06, seat)
    if ridden and setting.night:
        lamp = part(STEEL, warm + 6, tuple(6 * c for c in COOL_WHITE))
        canvas.fill(standing(ring(0.05, 6) + (0.5 * turn, 0.85), x, z), lamp)
    lay_shadow(canvas, setting, standing(np.array([(-0.5, 0), (-0.3, 0.9), (0.4, 0.9), (0.6, 0)]), x, z))
    canvas.shade(canvas.contact, ring(1.0, 10) * (0.6 * abs(turn) + 0.1, 0.2) + (x, z), 120)
    if ridden:
        person(canvas, setting, rng, x, z - 0.01, riding=turn)


def _inset(quad: np.ndarray, left: float, right: float, low: float, high: float) -> np.ndarray:
    """A part of a quad (4, 3): shares across (0 to 1) and up (0 to 1). Corners run 0,0 1,0 1,1 0,1."""
    across = np.array([left, right, right, left])[:, None]
    up = np.array([low, low, high, high])[:, None]
    bottom = quad[0] + across * (quad[1] - quad[0])
    return bottom + up * (quad[3] + across * (quad[2] - quad[3]) - bottom)


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
    shape = _SHAPES[rng.integers(len(_SHAPES))]
    shape = np.array([*shape, (shape[-1][0] + 0.1, 0.3)]) * rng.uniform(0.95, 1.04)
    half = rng.uniform(0.84, 0.93)
    paint = np.array(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.8, 1.1)
    air, sun, which, plane = setting.air, setting.sun, canvas.instance(), canvas.upright(z)
    engine, brake = (rng.uniform(8, 15) if running else 0.0), rng.random() < 0.4
    nose, side_axis = (np.array([np.sin(yaw), 0, np.cos(yaw)]), np.array([np.cos(yaw), 0, -np.sin(yaw)]))
    width = half * np.array([1, 1, 0.95, 0.74, 0.74, 0.95, 0.97, 0.97])
    place = np.array([x, 0.0, z])

    def corner(along: np.ndarray, up: np.ndarray, across: np.ndarray) -> np.ndarray:
        return place + along[:, None] * nose + up[:, None] * (0, 1, 0) + across[:, None] * side_axis

    left, right = (corner(shape[:, 0], shape[:, 1], sign * width) for sign in (-1, 1))

    def part(albedo: Colour, heat: float, lit: float = 0.0, emission: Colour = BLACK, grain=0.02) -> int:
        return canvas.surface(
            albedo, heat, CAR, plane, instance=which, emission=emission, sun=lit, grain=grain, ripple=0.5
        )

    foot = corner(np.array([-2.1, 2.2, 2.2, -2.1]), np.zeros(4), half * np.array([-1, -1, 1, 1]))
    canvas.shade(canvas.contact, foot[:, [0, 2]], 235)
    if running:
        canvas.shade(canvas.heat, foot[:, [0, 2]], 255)
    for outline in (left[1:7], right[1:7]):
        lay_shadow(canvas, setting, np.vstack([foot[:1], outline, foot[1:2]]))
    lay_shadow(canvas, setting, np.vstack([left[2:6], right[5:1:-1]]))
    lay_shadow(canvas, setting, foot)
    tyre = part(RUBBER, air + 0.6 * engine + 1)
    hub = part((0.2, 0.2, 0.21), air + 0.9 * engine)
    for end in (-1.95, 1.95):
        for sign in (-1, 1):
            edge = half * sign * np.array([1, 0.76, 0.76, 1])
            canvas.fill(corner(np.full(4, end), np.array([0, 0, 0.4, 0.4]), edge), tyre)

    glass_tint = (0.012, 0.014, 0.016) if setting.night else (0.10, 0.13, 0.16)
    warm = (3.0, 0.5, -1.5, -4.0, -1.0, engine, 0.9 * engine)
    strips = [np.array([left[k], right[k], right[k + 1], left[k + 1]]) for k in range(7)]
    flanks = [(sign, edge[[0, 1, 2, 5, 6, 7]], edge[[2, 3, 4, 5]]) for sign, edge in ((-1, left), (1, right))]
    eye, core = np.array([0, canvas.eye, 0]), place + (0, 0.8, 0)
    faces: list[tuple[float, int, np.ndarray, float]] = []
    for k, quad in enumerate([*strips, *(roof for _, _, roof in flanks)]):
        normal = np.cross(quad[1] - quad[0], quad[2] - quad[1])
        middle = quad.mean(0)
        normal *= np.sign(normal @ (middle - core)) / (np.linalg.norm(normal) + 1e-9)
        if normal @ (eye - middle) > 0:
            far = -float(np.linalg.norm(middle - eye)) + (1.5 if k > 6 else 0)
            faces.append((far, k, quad, max(float(normal @ sun), 0.0)))
    lamps: list[Lamp] = []
    for _, k, quad, lit in sorted(faces, key=lambda face: face[0]):
        if k > 6:
            sign, lower, roof = flanks[k - 7]
            canvas.fill(lower, part(paint, air + 1.5 + 3 * lit, 0.85 * lit))
            canvas.fill(roof, part(0.9 * paint, air + 1 + 2 * lit, 0.8 * lit))
            pane = part(glass_tint, air - 2.5)
            ends = ((0.10, 0.46), (0.52, 0.9)) if shape[2, 1] < 1.15 else ((0.55, 0.92),)
            up_order = roof[[0, 3, 2, 1]]
            for a, b in ends:
                canvas.fill(_inset(up_order, a, b, 0.08, 0.84), pane)
            for axle in (-1.32, 1.32):
                for radius, number in ((0.34, tyre), (0.19, hub)):
                    disc = ring(radius, 14) + (axle, 0.34)
                    canvas.fill(corner(disc[:, 0], disc[:, 1], np.full(14, sign * (half + 0.01))), number)
            continue
        tone = paint * (0.55 if k in (0, 6) and not lit else 0.9)
        canvas.fill(quad, part(tone, air + 1 + warm[k] + 3 * lit, lit))
        if k in (2, 4):
            canvas.fill(_inset(quad, 0.06, 0.94, 0.08, 0.92), part(glass_tint, air - 3, 0.2 * lit))
        elif k == 0:
            glow = (2.6 if brake else 0.9) * np.array([1, 0.04, 0.02]) * (setting.night or 0.25)
            red = part((0.35, 0.01, 0.01), air + 3, emission=tuple(glow * running))
            canvas.fill(_inset(quad, 0.02, 0.98, 0.0, 0.22), part((0.03, 0.03, 0.03), air + 2 + 0.4 * engine))
            for a, b in ((0.03, 0.2), (0.8, 0.97)):
                canvas.fill(_inset(quad, a, b, 0.55, 0.9), red)
            canvas.fill(_inset(quad, 0.37, 0.63, 0.36, 0.58), part((0.55, 0.55, 0.5), air + 2))
            canvas.fill(_inset(quad, 0.12, 0.22, -0.08, 0.04), part(STEEL, air + 2.4 * engine))
        elif k == 6:
            grille = part((0.02, 0.02, 0.022), air + 1.3 * engine)
            canvas.fill(_inset(quad, 0.26, 0.74, 0.55, 0.12), grille)
            beam = 13.0 if setting.night and running else (0.8 if running else 0.0)
            white = part((0.5, 0.5, 0.5), air + 0.8 * engine + 2, emission=tuple(beam * c for c in COOL_WHITE))
            for a, b in ((0.04, 0.2), (0.8, 0.96)):
                canvas.fill(_inset(quad, a, b, 0.25, 0.6), white)
            canvas.fill(_inset(quad, 0.38, 0.62, 0.85, 0.65), part((0.6, 0.6, 0.55), air + 3))
    if setting.night and running:
        ahead = place + 4.5 * nose
        lamps.append(Lamp(float(ahead[0]), 0.7, float(ahead[2]), COOL_WHITE, 1.6, False))
        behind = place - 3.0 * nose
        lamps.append(Lamp(float(behind[0]), 0.7, float(behind[2]), (1, 0.1, 0.05), 0.12, False))
    return lamps


def tree(canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float) -> None:
    """A leafy tree: trunk, then heaps of leaves, dark below and light above, with sky between them."""
    height, spread = rng.uniform(4.5, 9.0), rng.uniform(1.3, 2.4)
    plane, air = canvas.upright(z), setting.air
    bark = canvas.surface((0.07, 0.055, 0.04), air + 1.5, VEGETATION, plane, grain=0.4, ripple=0.6)
    crown = height - spread
    lean = rng.uniform(-0.3, 0.3)
    stems = np.array([(0, 0, lean, crown, 0.2, 0.1)] + [(lean, crown * 0.7, 0, 0, 0.09, 0.05)] * 3)
    stems[1:, 2:4] = np.column_stack([rng.uniform(-0.7, 0.7, 3) * spread, crown + rng.uniform(0, 0.8, 3)])
    outlines = limbs(stems[:, 0:2], stems[:, 2:4], stems[:, 4], stems[:, 5], 3)
    canvas.fill_each(standing(outlines, x, z), [bark] * 4)
    tint = np.array((0.06, 0.11, 0.03)) * rng.uniform(0.7, 1.3, 3)
    for tone, up, count, size in ((0.5, -0.2, 26, 0.30), (0.9, 0.0, 26, 0.26), (1.4, 0.2, 24, 0.20)):
        leaf = canvas.surface(
            tone * tint,
            air + 0.8 * tone - 0.6,
            VEGETATION,
            plane,
            sun=(0.15 + 0.55 * up + 0.25 * tone) * float(setting.sun[1] > 0),
            grain=0.75,
            ripple=1.1,
        )
        radius, angle = np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
        middle = np.column_stack([radius * np.cos(angle), 0.95 * radius * np.sin(angle) + up])
        middle = spread * middle + (lean, crown + 0.3)
        jagged = ring(1.0, 9) * rng.uniform(0.6, 1.3, (count, 9, 1)) * size * spread
        canvas.fill_each(standing(jagged + middle[:, None], x, z), [leaf] * count)
    lay_shadow(canvas, setting, standing(ring(spread * 1.05, 14) + (lean, crown), x, z))
    lay_shadow(canvas, setting, standing(np.array([(-0.2, 0), (-0.1, crown), (0.1, crown), (0.2, 0)]), x, z))


def hedge(
    canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, near: float, far: float
) -> None:
    """A row of bushes along the street."""
    height, steps = rng.uniform(0.7, 1.4), int((far - near) / 0.5) + 2
    along = np.geomspace(max(near, 1.0), far, steps)
    top = height * rng.uniform(0.82, 1.15, steps)
    line = np.full(steps, x)
    tint = np.array((0.05, 0.095, 0.03)) * rng.uniform(0.7, 1.2, 3)
    leaf = canvas.surface(
        tint, setting.air, VEGETATION, canvas.wall(x), sun=0.6 * setting.sun[1], grain=0.7, ripple=1.0
    )
    upper = np.column_stack([line, top, along])
    lower = np.column_stack([line, 0 * top, along])
    canvas.fill(np.vstack([upper, lower[::-1]]), leaf)
    lay_shadow(canvas, setting, np.vstack([upper, lower[::-1]]))


def street_lamp(
    canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float, colour: Colour
) -> list[Lamp]:
    """A post with an arm over the road. Returns its light, at night."""
    height, arm = rng.uniform(5.2, 6.6), -float(np.sign(x)) * rng.uniform(1.0, 1.8)
    plane = canvas.upright(z)
    post = canvas.surface(STEEL, setting.air + 1, POLE, plane, sun=0.6 * setting.sun[1])
    bars = np.array([(0, 0, 0, height, 0.09, 0.05), (0, height, arm, height + 0.25, 0.05, 0.04)])
    outlines = limbs(bars[:, 0:2], bars[:, 2:4], bars[:, 4], bars[:, 5], 3)
    canvas.fill_each(standing(outlines, x, z), [post, post])
    glow = tuple(14 * c for c in colour) if setting.night else BLACK
    heat = setting.air + (14 if setting.night else 2)
    head = canvas.surface((0.5, 0.5, 0.5), heat, POLE, plane, emission=glow, sun=setting.sun[1])
    box = np.array([(-0.3, 0.2), (0.3, 0.2), (0.22, 0.34), (-0.22, 0.34)]) + (arm, height)
    canvas.fill(standing(box, x, z), head)
    lay_shadow(canvas, setting, outlines_at(outlines[0], x, z))
    if not setting.night:
        return []
    return [Lamp(x + arm, height + 0.1, z, colour, rng.uniform(7, 13), True)]


def outlines_at(outline: np.ndarray, x: float, z: float) -> np.ndarray:
    """An upright outline (n, 2) at x, z."""
    return standing(outline, x, z)


def sign(canvas: Canvas, setting: Setting, rng: np.random.Generator, x: float, z: float) -> None:
    """A road sign, a traffic light or a bollard."""
    plane, air = canvas.upright(z), setting.air
    kind = rng.integers(4)
    post = canvas.surface(STEEL, air + 0.5, POLE, plane, sun=0.5 * setting.sun[1])
    height = 1.0 if kind == 3 else rng.uniform(2.4, 3.1)
    radius = 0.09 if kind == 3 else 0.045
    stem = np.array([(-radius, 0), (-radius, height), (radius, height), (radius, 0)])
    canvas.fill(standing(stem, x, z), post)
    lay_shadow(canvas, setting, standing(stem, x, z))
    if kind == 3:
        band = canvas.surface((0.6, 0.2, 0.03), air + 0.5, POLE, plane, sun=0.5 * setting.sun[1])
        canvas.fill(standing(stem * (1, 0.2) + (0, 0.6), x, z), band)
    elif kind == 2:
        case = canvas.surface((0.02, 0.02, 0.02), air + 2, POLE, plane)
        canvas.fill(standing(np.array([(-0.16, -0.9), (0.16, -0.9), (0.16, 0), (-0.16, 0)]) + (0, height), x, z), case)
        lit = rng.integers(3)
        colour = ((3.0, 0.1, 0.05), (3.0, 1.4, 0.1), (0.1, 2.6, 1.2))[lit]
        glow = canvas.surface(BLACK, air + 8, POLE, plane, emission=colour)
        canvas.fill(standing(ring(0.1, 8) + (0, height - 0.17 - 0.28 * lit), x, z), glow)
    else:
        for scale, paint in ((1.0, (0.6, 0.6, 0.58)), (0.82, ((0.5, 0.03, 0.03), (0.03, 0.1, 0.4))[kind])):
            plate = canvas.surface(paint, air - 0.5, POLE, plane, sun=0.6 * setting.sun[1])
            disc = ring(0.36 * scale, 12 if kind == 0 else 4) + (0, height - 0.1)
            canvas.fill(standing(disc, x, z), plate)
