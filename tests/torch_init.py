"""PyTorch's random starting weights, drawn with NumPy.

The golden file of CrossFuse was made from freshly initialised published modules. These functions
draw the same numbers without torch: its CPU generator is MT19937, as is NumPy's `RandomState`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

CROSSFUSE_SEED = 7
CROSSFUSE_NOISE_SEED = 11
CROSSFUSE_NOISE = np.float32(0.1)
BLOCK = 16
"""From this many numbers on, torch draws normal ones in blocks."""


class TorchGenerator:
    """`torch.Generator().manual_seed(seed)` on a CPU: the float32 tensors it fills."""

    def __init__(self, seed: int):
        self._bits = np.random.RandomState(seed)

    def _words(self, count: int) -> np.ndarray:
        return self._bits.randint(0, 2**32, count, dtype=np.uint32)

    def _unit(self, count: int) -> np.ndarray:
        """float32 in [0, 1): 24 bits of one word each."""
        return (self._words(count) & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)

    def _unit_double(self, count: int) -> np.ndarray:
        """float64 in [0, 1): 53 bits of two words each, the high word first."""
        high, low = self._words(2 * count).astype(np.uint64).reshape(count, 2).T
        return ((high << np.uint64(32) | low) & np.uint64(2**53 - 1)) * 2.0**-53

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        """`torch.empty(shape).uniform_(low, high)`."""
        start, width = np.float32(low), np.float32(high) - np.float32(low)
        return (self._unit(math.prod(shape)) * width + start).reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """`torch.randn(shape)` by Box and Muller; sizes that torch fills with leftovers raise.

        Small tensors pair neighbours, in double; larger ones the halves of each block of 16.
        """
        count = math.prod(shape)
        if count % (BLOCK if count >= BLOCK else 2):
            raise ValueError(f"normal: {count} numbers: use an even count, from 16 on a 16-fold")
        if count < BLOCK:
            angle, radius = self._unit_double(count).reshape(-1, 2).T
        else:
            radius, angle = self._unit(count).reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
        radius = np.sqrt(-2 * np.log1p(-radius))
        angle = angle.dtype.type(2 * math.pi) * angle
        values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return values.astype(np.float32).reshape(shape)


def crossfuse_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The weights behind the golden outputs, by name. shapes: of each, in torch's own order.

    Convolutions and their biases start at U(-1 / sqrt(fan in), 1 / sqrt(fan in)), factors at 1,
    other biases at 0; then everything that is no kernel is shifted by a tenth of normal noise.
    """
    generator = TorchGenerator(CROSSFUSE_SEED)
    state: dict[str, np.ndarray] = {}
    fan_in = 0
    for name, shape in shapes.items():
        if len(shape) == 4:
            fan_in = math.prod(shape[1:])
        if len(shape) == 4 or name.endswith("shffleconv.bias"):
            bound = fan_in**-0.5
            state[name] = generator.uniform(shape, -bound, bound)
        else:
            state[name] = np.full(shape, 0.0 if name.endswith(".bias") else 1.0, np.float32)
    noise = TorchGenerator(CROSSFUSE_NOISE_SEED)
    for name, array in state.items():
        if array.ndim != 4:
            state[name] = array + CROSSFUSE_NOISE * noise.normal(array.shape)
    return state
