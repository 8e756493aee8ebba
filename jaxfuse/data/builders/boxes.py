"""Boxes as VOC annotates them: one XML file an image."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxfuse.data.headers import FileError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: str | Path, names: Sequence[str]) -> np.ndarray:
    """float32 (n, 5): x0, y0, x1, y1 in pixels as they stand in the file, class; n may be 0.

    names: the classes in order; case does not count. Raises FileError for a file that is no such
    annotation, a class that is not among the names, and corners that are no numbers. Where a box
    lies is not judged here: published annotations hold some that leave their image, see
    `odd_boxes`.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
        raise FileError(path, found, "check the path and its permissions") from None
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise FileError(path, "declares entities", "give a plain VOC annotation")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise FileError(path, f"no XML ({error})", "copy the file again") from None
    if tree.tag != "annotation":
        raise FileError(path, f"an XML of <{tree.tag}>", "give a VOC annotation")
    table = {name.lower(): i for i, name in enumerate(names)}
    rows = []
    for number, thing in enumerate(tree.iter("object"), start=1):
        kind = (thing.findtext("name") or "").strip()
        if kind.lower() not in table:
            found = f"object {number}: class {kind!r}"
            raise FileError(path, found, f"the classes are {', '.join(names)}")
        corners = [thing.findtext(f"bndbox/{name}") for name in _CORNERS]
        try:
            values = [float(corner or "") for corner in corners]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            found = f"object {number}: corners {', '.join(map(str, corners))}"
            raise FileError(path, found, f"write {', '.join(_CORNERS)} as numbers")
        rows.append((*values, table[kind.lower()]))
    return np.array(rows, np.float32).reshape(-1, 5)


def odd_boxes(boxes: np.ndarray, height: int, width: int) -> int:
    """How many boxes are empty, or leave the image by more than one pixel."""
    x0, y0, x1, y1 = boxes[:, :4].T
    outside = (x0 < -1) | (y0 < -1) | (x1 > width + 1) | (y1 > height + 1)
    return int((outside | (x1 <= x0) | (y1 <= y0)).sum())
