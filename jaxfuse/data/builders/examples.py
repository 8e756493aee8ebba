"""One pair as the bytes and numbers of a record.

A file's own bytes are kept where they are what a record holds, so that preparing is quick, loses
nothing and reads back bit for bit; else the pixels are written anew as PNG, which loses nothing
either, but for one case that is counted: infrared in three unequal channels becomes their mean,
rounded to the levels of the set.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxfuse.data.builders.base import Dataset, Entry, read_entry_boxes, split_channels
from jaxfuse.data.builders.classes import Coding, read_classes
from jaxfuse.data.folders import require_equal_sizes
from jaxfuse.data.headers import FileError, read_header
from jaxfuse.data.images import Decoded, decode, infrared_from

_FULL = {8: 255, 16: 65535}
_PNG_GRAY, _PNG_RGB = 0, 2


@dataclasses.dataclass(frozen=True)
class Form:
    """What every record of a prepared set holds."""

    visible_bits: int = 8
    infrared_bits: int = 8
    labels: bool = False
    boxes: bool = False
    coding: Coding = "index"
    """How label files were read; in records labels are always indices."""
    classes: tuple[str, ...] = ()
    box_classes: tuple[str, ...] = ()


class Example(NamedTuple):
    """What a record stores, and what its index needs to know."""

    values: dict[str, Any]
    height: int
    width: int
    rounded: bool
    """Whether the infrared levels are the rounded mean of unequal channels."""


def png(pixels: np.ndarray, file: Path) -> bytes:
    """A PNG of (h, w) or (h, w, 3) integers, red first."""
    ok, blob = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    if not ok:
        raise FileError(
            file, f"{pixels.shape} pixels cannot be stored as PNG", "use smaller images"
        )
    return blob.tobytes()


def _keeps(path: Path, blob: bytes, decoded: Decoded, colour: bool, bits: int) -> bool:
    """Whether the file itself is such a picture: nothing to turn, drop, widen or look up."""
    if decoded.bits != bits or (decoded.pixels.ndim == 3) != colour:
        return False
    header = read_header(path, io.BytesIO(blob))
    if header.orientation != 1:
        return False
    if header.kind == "PNG":
        plain = b"tRNS" not in blob.split(b"IDAT", 1)[0]  # One colour may stand for transparent.
        return plain and blob[24] == bits and blob[25] == (_PNG_RGB if colour else _PNG_GRAY)
    return header.kind == "JPEG"


def _levels(values: np.ndarray, bits: int) -> np.ndarray:
    full = _FULL[bits]
    return np.rint(values * full).astype(np.uint8 if bits == 8 else np.uint16)


def _widened(pixels: np.ndarray, bits: int, path: Path) -> np.ndarray:
    """Integer pixels at `bits`: 8 bit become 16 without loss; nothing else changes."""
    if pixels.dtype == np.float32:
        raise FileError(path, "floating-point pixels", "save as 8 or 16 bit: records hold integers")
    if 8 * pixels.itemsize == bits:
        return pixels
    if bits < 8 * pixels.itemsize:
        raise FileError(path, "a 16-bit file among 8-bit ones", "start the preparation again")
    return pixels.astype(np.uint16) * 257


def _visible(path: Path, decoded: Decoded, blob: bytes | None, bits: int) -> bytes:
    if blob is not None and _keeps(path, blob, decoded, True, bits):
        return blob
    pixels = _widened(decoded.pixels, bits, path)
    return png(np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels, path)


def _infrared(path: Path, decoded: Decoded, blob: bytes | None, bits: int) -> tuple[bytes, bool]:
    if blob is not None and _keeps(path, blob, decoded, False, bits):
        return blob, False
    pixels = decoded.pixels
    if pixels.ndim == 2:
        return png(_widened(pixels, bits, path), path), False
    _widened(pixels[:1, :1], bits, path)  # Refuses what records cannot hold.
    values = infrared_from(decoded, path)[..., 0]
    levels = _levels(values, bits)
    exact = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(
        pixels[..., 0], pixels[..., 2]
    )
    return png(levels, path), not exact


def make_example(entry: Entry, dataset: Dataset, form: Form) -> Example:
    """Reads and checks one pair. Raises FileError for whatever cannot be read or does not fit."""
    if entry.infrared is None:
        colours, heat = split_channels(entry.visible)
        visible = _visible(entry.visible, colours, None, form.visible_bits)
        infrared, rounded = _infrared(entry.visible, heat, None, form.infrared_bits)
    else:
        colours, heat = decode(entry.visible), decode(entry.infrared)
        require_equal_sizes(
            entry.infrared, heat.pixels.shape[:2], entry.visible, colours.pixels.shape[:2]
        )
        visible = _visible(entry.visible, colours, entry.visible.read_bytes(), form.visible_bits)
        infrared, rounded = _infrared(
            entry.infrared, heat, entry.infrared.read_bytes(), form.infrared_bits
        )
    height, width = colours.pixels.shape[:2]
    values: dict[str, Any] = {
        "visible": visible,
        "infrared": infrared,
        "stem": entry.stem,
        "time": entry.time,
    }
    if form.labels:
        if entry.labels is None:
            raise FileError(entry.visible, "no label map", "label it, or leave it out by a split")
        labels = read_classes(entry.labels, dataset.classes, (height, width), form.coding)
        values["labels"] = png(labels.astype(np.uint8), entry.labels)
    if form.boxes:
        boxes = read_entry_boxes(entry, (height, width), dataset)
        if boxes is None:
            raise FileError(entry.visible, "no boxes", "add them, or leave it out by a split")
        values["boxes"] = boxes
    return Example(values, height, width, rounded)
