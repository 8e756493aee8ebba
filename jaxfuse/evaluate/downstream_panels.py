"""Predictions to look at: for a handful of test images, every row's picture and what was seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxfuse.data import images
from jaxfuse.data.pairs import IGNORE
from jaxfuse.evaluate.downstream import Judged
from jaxfuse.evaluate.panels import WIDEST, colours, legend, line
from jaxfuse.evaluate.results import make_folder


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
    lines = [line([("", blank), *zip(rows, pictures, strict=True)], wide)]
    used = set(np.unique(labels).tolist()) - {IGNORE}
    for way, of_rows in found.maps.items():
        shown = [("labels", colours(labels, found.classes))]
        for row in rows:
            shown.append((f"{way}: {row}", colours(of_rows[row][number], found.classes)))
            used |= set(np.unique(of_rows[row][number]).tolist())
        lines.append(line(shown, wide))
    lines.append(legend(sorted(used), found.classes, lines[0].shape[1]))
    return np.concatenate(lines)
