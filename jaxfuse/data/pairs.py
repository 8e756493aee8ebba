"""What a set of image pairs is to everything that reads one."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxfuse.config import UserError

IGNORE = 255
"""In a label map, a pixel that counts in nothing. `shapes.IGNORE_LABEL`, without importing JAX."""


class DataError(UserError, ValueError):
    """Input that cannot be used; the message names the file, the value and the remedy."""


class Pair(NamedTuple):
    """One registered pair. Height and width are equal in all members."""

    stem: str
    visible: np.ndarray
    """float32 (h, w, 3) in [0, 1], red first; gray images repeat their channel."""
    infrared: np.ndarray
    """float32 (h, w, 1) in [0, 1]."""
    labels: np.ndarray | None = None
    """int32 (h, w), 255 = ignore."""
    boxes: np.ndarray | None = None
    """float32 (n, 5): x0, y0, x1, y1 in pixels, class."""


@runtime_checkable
class Pairs(Protocol):
    """A fixed, ordered set of pairs. Picklable; reading is a pure function of the index."""

    def __len__(self) -> int: ...

    def stem(self, index: int) -> str:
        """A name unique within the set."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, without decoding the pixels."""
        ...

    def __getitem__(self, index: int) -> Pair: ...
