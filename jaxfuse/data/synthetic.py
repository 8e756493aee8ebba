"""Street scenes without a data set: made-up pairs with labels and boxes, seen by made-up cameras.

A scene is a pure function of (seed, index). Two sensors on the same seed and index see the same
world: equal labels and boxes, other images.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import cv2
import numpy as np

from jaxfuse.config import SourceConfig
from jaxfuse.data.builders.base import Time
from jaxfuse.data.builders.classes import ClassList, plain_list
from jaxfuse.data.pairs import DataError, Pair
from jaxfuse.data.scenes import CLASSES, Layers, World, is_night, stream, world

__all__ = ["CLASSES", "SENSORS", "Sensor", "SyntheticPairs", "boxes"]

SMALLEST_BOX = 12
"""Visible pixels below which an instance has no box."""
TOE = 0.10
"""Grey level of the coldest thing on the ground; the sky lies below."""


@dataclasses.dataclass(frozen=True)
class Sensor:
    """A visible camera and the thermal camera beside it. Blur in pixels of a 240-row image."""

    gain: float = 1.0
    """Exposure."""
    gamma: float = 2.2
    """Grey level = signal^(1/gamma)."""
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Gain of red, green, blue."""
    illumination: float = 1.0
    """How much light falls on the scene (lamps and sky themselves stay as bright)."""
    noise: float = 0.01
    """Standard deviation of the noise at full signal, of 1; it falls with the signal's root."""
    blur: float = 0.5
    """Standard deviation of the lens' blur."""
    glare: float = 0.04
    """Share of very bright light that the lens scatters."""
    veil: float = 0.0
    """Stray light added everywhere: lifts the blacks."""
    haze: float = 1.0
    """Multiplies the haze of the scene."""
    ir_gain: float = 1.0
    """Grey level of the hottest thing, of 1."""
    ir_gamma: float = 1.0
    """As `gamma`, for the thermal image."""
    ir_noise: float = 0.007
    """Standard deviation, of 1; half as much again lies in stripes, one value per column."""
    ir_blur: float = 0.8
    """Standard deviation of the thermal lens' blur."""
    ir_polarity: int = 1
    """1: hot is white. -1: hot is black."""
    ir_equalise: float = 0.0
    """Share of histogram equalisation in the thermal image, 0 to 1."""


SENSORS: dict[str, Sensor] = {
    "clear": Sensor(gain=2.2),
    "dim": Sensor(
        gain=1.1,
        gamma=1.9,
        tint=(0.86, 1.0, 0.92),
        illumination=0.85,
        noise=0.028,
        blur=0.9,
        ir_gain=0.55,
        ir_gamma=0.75,
        ir_noise=0.018,
        ir_blur=1.1,
    ),
    "haze": Sensor(
        gain=2.6,
        gamma=2.4,
        tint=(1.0, 1.0, 1.08),
        noise=0.014,
        blur=0.7,
        glare=0.10,
        veil=0.025,
        haze=4.0,
        ir_noise=0.014,
        ir_equalise=0.5,
    ),
}
"""The cameras: well exposed; underexposed, soft and noisy; bright and flat."""
VARIED = "varied"
"""Every scene is seen by cameras of its own, drawn at random."""


def varied(rng: np.random.Generator) -> Sensor:
    """Cameras drawn at random, over about the range of `SENSORS` (hot is always white)."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def scaled(low: float, high: float) -> float:
        return math.exp(between(math.log(low), math.log(high)))

    return Sensor(
        gain=scaled(0.9, 2.8),
        gamma=between(1.8, 2.5),
        tint=(between(0.85, 1.05), between(0.95, 1.05), between(0.9, 1.1)),
        illumination=between(0.75, 1.0),
        noise=scaled(0.007, 0.035),
        blur=between(0.4, 1.0),
        glare=between(0.02, 0.1),
        veil=between(0.0, 0.025),
        haze=scaled(0.5, 4.0),
        ir_gain=between(0.5, 1.0),
        ir_gamma=between(0.7, 1.2),
        ir_noise=scaled(0.005, 0.022),
        ir_blur=between(0.7, 1.2),
        ir_equalise=max(0.0, between(-0.5, 0.5)),
    )


@lru_cache(maxsize=1)
def _long_noise() -> np.ndarray:
    """A long fixed sequence of normal numbers: reading it is ten times faster than drawing them."""
    sequence = np.random.default_rng(11).standard_normal(1 << 20, dtype=np.float32)
    sequence.flags.writeable = False
    return sequence


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Normal noise from a random place of the long sequence, repeated where that is too short."""
    sequence, count = _long_noise(), math.prod(shape)
    start = int(rng.integers(max(len(sequence) - count, 0) + 1))
    part = np.resize(sequence[start : start + count], shape)
    return part * np.float32(sigma)


def _visible(scene: World, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    height, width = scene.depth.shape
    soft = height / 240
    light = scene.diffuse * np.float32(sensor.illumination)
    clear = np.exp(scene.depth * np.float32(-sensor.haze * scene.haze))
    clear = np.maximum(clear, scene.layers.open_sky)[..., None]
    light += scene.direct
    light -= scene.veil
    light *= clear
    light += scene.veil
    light *= np.float32(sensor.gain) * np.array(sensor.tint, np.float32)
    small = cv2.resize(
        light, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA
    )
    small = np.maximum(small - 1.2, 0)
    halo = cv2.GaussianBlur(small, (0, 0), 1.4 * soft) + cv2.GaussianBlur(small, (0, 0), 6 * soft)
    light += np.float32(sensor.glare * 5) * cv2.resize(
        halo, (width, height), interpolation=cv2.INTER_LINEAR
    )
    if sensor.blur:
        light = cv2.GaussianBlur(light, (0, 0), sensor.blur * soft)
    # A shoulder instead of a hard clip, as cameras have, then the display's gamma.
    signal = 1 - np.exp(-(light + np.float32(sensor.veil)))
    signal += _noise(rng, signal.shape, sensor.noise) * np.sqrt(signal + np.float32(0.03))
    np.clip(signal, 0, 1, out=signal)
    return cv2.pow(signal, 1 / sensor.gamma)


def _infrared(scene: World, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    height, width = scene.depth.shape
    heat = cv2.GaussianBlur(scene.temperature, (0, 0), sensor.ir_blur * height / 240)
    # The range follows what is not sky, or a cold sky leaves no contrast to the street.
    street = np.sort(heat[::3, ::3][scene.layers.open_sky[::3, ::3] < 0.5])
    if not len(street):
        street = np.sort(heat, axis=None)
    low, high = (float(street[int(share * (len(street) - 1))]) for share in (0.02, 0.995))
    low, high = low - 1.0, max(high, low + 12.0)
    grey = (heat - low) * np.float32((1 - TOE) / (high - low)) + TOE
    np.minimum(grey, 1, out=grey)
    toe = np.float32(TOE) * np.exp((heat - low) * np.float32(1 / 12))
    grey = np.where(heat < low, toe, grey)
    if sensor.ir_equalise:
        level = cv2.equalizeHist(np.rint(grey * 255).astype(np.uint8)).astype(np.float32) / 255
        grey += np.float32(sensor.ir_equalise) * (level - grey)
    if sensor.ir_polarity < 0:
        grey = 1 - grey
    grey = np.float32(sensor.ir_gain) * cv2.pow(grey, 1 / sensor.ir_gamma)
    grey += _noise(rng, grey.shape, sensor.ir_noise)
    grey += _noise(rng, (1, width), 0.5 * sensor.ir_noise)
    return grey.clip(0, 1)[..., None]


def boxes(layers: Layers) -> np.ndarray:
    """float32 (n, 5): x0, y0, x1, y1, class, of the visible part of each car, person and bicycle.

    Pixel i covers i to i + 1, so a mask of columns 3..5 gives x0 = 3, x1 = 6.
    """
    found = []
    for number in range(1, int(layers.instances.max(initial=0)) + 1):
        mask = layers.instances == number
        columns, rows = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
        if len(rows) and np.count_nonzero(mask) >= SMALLEST_BOX:
            label = layers.labels[rows[0], mask[rows[0]].argmax()]
            found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, label))
    return np.array(found, np.float32).reshape(-1, 5)


@dataclasses.dataclass(frozen=True)
class SyntheticPairs:
    """A set of `scenes` made-up pairs (see `jaxfuse.data.pairs.Pairs`)."""

    scenes: int
    height: int
    width: int
    seed: int = 0
    sensor: str = "clear"
    night_share: float = 0.5

    def __post_init__(self) -> None:
        if self.sensor not in (*SENSORS, VARIED):
            raise DataError(
                f"sensor = {self.sensor!r}: choose one of {', '.join((*SENSORS, VARIED))}"
            )
        for field, least in (("scenes", 1), ("height", 32), ("width", 32), ("seed", 0)):
            if getattr(self, field) < least:
                raise DataError(f"{field} = {getattr(self, field)!r}: use at least {least}")
        if not 0 <= self.night_share <= 1:
            raise DataError(f"night_share = {self.night_share!r}: use a share between 0 and 1")

    @classmethod
    def open(cls, source: SourceConfig) -> SyntheticPairs:
        """The set that a config describes."""
        return cls(source.scenes, source.height, source.width, source.seed, source.sensor)

    def __len__(self) -> int:
        return self.scenes

    def _check(self, index: int) -> None:
        if not 0 <= index < self.scenes:
            raise IndexError(f"scene {index}: this set has scenes 0 to {self.scenes - 1}")

    def stem(self, index: int) -> str:
        """Six digits, then N for night or D for day."""
        self._check(index)
        return f"{index:06d}{'N' if is_night(self.seed, index, self.night_share) else 'D'}"

    def time(self, index: int) -> Time:
        """When the scene plays."""
        self._check(index)
        return "night" if is_night(self.seed, index, self.night_share) else "day"

    @property
    def classes(self) -> ClassList:
        """What the labels mean."""
        return plain_list("synthetic", CLASSES)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        self._check(index)
        return self.height, self.width

    def __getitem__(self, index: int) -> Pair:
        """Draws scene `index` and looks at it. Grey levels lie on the 256 steps of 8 bits."""
        self._check(index)
        scene = world(self.seed, index, self.height, self.width, self.night_share)
        rng = stream(self.seed, index, 1)
        sensor = varied(rng) if self.sensor == VARIED else SENSORS[self.sensor]
        visible, infrared = _visible(scene, sensor, rng), _infrared(scene, sensor, rng)
        return Pair(
            self.stem(index),
            np.rint(visible * 255) / np.float32(255),
            np.rint(infrared * 255) / np.float32(255),
            scene.layers.labels,
            boxes(scene.layers),
        )
