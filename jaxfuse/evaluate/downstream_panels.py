"""Predictions to look at: for a handful of test images, every row's picture and what was seen."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from jaxfuse.data import images
from jaxfuse.data.builders.classes import IGNORE, ClassList
from jaxfuse.evaluate.downstream import Judged
from jaxfuse.evaluate.results import make_folder

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


def write(found: Judged, out: str | Path) -> list[Path]:
    """OUT/panels/STEM.png of each kept image: the pictures of all rows, then labels and predictions
    of the first seed, retrained and frozen. Pictures of before are removed.
    """
    folder = Path(out) / "panels"
    make_folder(folder)
    for old in folder.glob("*.png"):
        old.unlink()
    written = []
    first = next(iter(found.maps.values()))
    for number in sorted(next(iter(first.values()))):
        path = folder / f"{found.stems[number]}.png"
        images.write(path, panel(found, number).astype(np.float32) / np.float32(255))
        written.append(path)
    return written


def panel(found: Judged, number: int) -> np.ndarray:
    """uint8 (h, w, 3): a line of pictures, a line of predictions for each way, the colours used."""
    rows = [about.name for about in found.rows]
    captions = [*rows, *(f"{way}: {row}" for way in found.maps for row in rows)]
    pictures = [
        np.rint(255 * images.read_visible(found.pictures[row][number])).astype(np.uint8)
        for row in rows
    ]
    labels = images.read_labels(found.pictures["labels"][number])
    # A blank stands above the labels, which stand before each line of predictions.
    blank = np.full_like(pictures[0], 255)
    wide = max(min(WIDEST, blank.shape[1]), 8 * max(map(len, captions)))
    lines = [_line([("", blank), *zip(rows, pictures, strict=True)], wide)]
    used = set(np.unique(labels).tolist()) - {IGNORE}
    for way, of_rows in found.maps.items():
        shown = [("labels", colours(labels, found.classes))]
        for row in rows:
            shown.append((f"{way}: {row}", colours(of_rows[row][number], found.classes)))
            used |= set(np.unique(of_rows[row][number]).tolist())
        lines.append(_line(shown, wide))
    lines.append(_legend(sorted(used), found.classes, lines[0].shape[1]))
    return np.concatenate(lines)


def _line(shown: list[tuple[str, np.ndarray]], wide: int) -> np.ndarray:
    """Captions and pictures beside each other, each `wide` pixels."""
    tiles = []
    for words, picture in shown:
        height, width = picture.shape[:2]
        if width > WIDEST:
            size = (WIDEST, max(1, round(height * WIDEST / width)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
        tile = np.full((picture.shape[0] + LINE + GAP, wide + GAP, 3), 255, np.uint8)
        tile[LINE : LINE + picture.shape[0], : picture.shape[1]] = picture
        tiles.append(_write(tile, words, 0))
    return np.concatenate(tiles, axis=1)


def _write(tile: np.ndarray, words: str, left: int) -> np.ndarray:
    shown = words.encode("ascii", "replace").decode()
    tile = np.ascontiguousarray(tile)
    return cv2.putText(
        tile, shown, (left, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA
    )


def _legend(used: list[int], classes: ClassList, width: int) -> np.ndarray:
    cell = 8 * max(len(classes.names[label]) for label in used) + LINE + GAP if used else width
    across = max(1, width // cell)
    legend = np.full((LINE * math.ceil(len(used) / across), width, 3), 255, np.uint8)
    for at, label in enumerate(used):
        top, left = LINE * (at // across), cell * (at % across)
        legend[top : top + LINE - GAP, left : left + LINE - GAP] = classes.palette[label]
        strip = legend[top : top + LINE]
        legend[top : top + LINE] = _write(strip, classes.names[label], left + LINE)
    return legend
