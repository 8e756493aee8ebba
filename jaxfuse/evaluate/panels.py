"""Panels: pictures with captions beside each other, label maps in colours, and what these mean."""

from __future__ import annotations

import math

import cv2
import numpy as np

from jaxfuse.data.builders.classes import ClassList
from jaxfuse.data.pairs import IGNORE

GAP = 4
LINE = 18
"""Pixels of a caption."""
WIDEST = 480
"""Pictures wider than this are shown smaller."""
VOID = (255, 255, 255)
"""Of ignored pixels."""


def colours(labels: np.ndarray, classes: ClassList) -> np.ndarray:
    """uint8 (h, w, 3) of a label map, in the colours of the list; ignored pixels are white."""
    table = np.full((256, 3), VOID, np.uint8)
    table[: len(classes)] = classes.palette
    table[IGNORE] = VOID
    return table[labels]


def line(shown: list[tuple[str, np.ndarray]], wide: int) -> np.ndarray:
    """uint8 (h, w, 3): captions and pictures beside each other, each `wide` pixels; pictures
    wider than `WIDEST` are made smaller.
    """
    tiles = []
    for words, picture in shown:
        height, width = picture.shape[:2]
        if width > WIDEST:
            size = (WIDEST, max(1, round(height * WIDEST / width)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
        tile = np.full((picture.shape[0] + LINE + GAP, wide + GAP, 3), 255, np.uint8)
        tile[LINE : LINE + picture.shape[0], : picture.shape[1]] = picture
        tiles.append(_caption(tile, words, 0))
    return np.concatenate(tiles, axis=1)


def _caption(tile: np.ndarray, words: str, left: int) -> np.ndarray:
    shown = words.encode("ascii", "replace").decode()
    tile = np.ascontiguousarray(tile)
    return cv2.putText(
        tile, shown, (left, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA
    )


def legend(used: list[int], classes: ClassList, width: int) -> np.ndarray:
    """uint8 (h, width, 3): colours and names of some classes."""
    cell = 8 * max(len(classes.names[label]) for label in used) + LINE + GAP if used else width
    across = max(1, width // cell)
    drawn = np.full((LINE * math.ceil(len(used) / across), width, 3), 255, np.uint8)
    for at, label in enumerate(used):
        top, left = LINE * (at // across), cell * (at % across)
        drawn[top : top + LINE - GAP, left : left + LINE - GAP] = classes.palette[label]
        strip = drawn[top : top + LINE]
        drawn[top : top + LINE] = _caption(strip, classes.names[label], left + LINE)
    return drawn
