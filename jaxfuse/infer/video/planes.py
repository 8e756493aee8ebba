"""A video frame's pixels: which plane holds the luma, at which levels, and how to replace it.

Luma is read from and written to the Y plane of the file's own pixel format: no RGB is made of a
YUV video, and its colours stay as they are to the last bit until they are encoded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type

from jaxfuse.data.images import FileError, pseudo_colour

LIMITED, FULL = 1, 2
"""FFmpeg's numbers of colour ranges: 16..235 of 255, and 0..255; 0 is unspecified."""
BT601 = 5
"""FFmpeg's number of the colour space."""

STEPS = {"444": (1, 1), "440": (1, 2), "422": (2, 1), "420": (2, 2), "411": (4, 1), "410": (4, 4)}
"""Pixels across and down that share a colour, by what stands after "yuv" in a format's name."""

_IN_PLANES = re.compile(r"(?:yuv[ja]?4\d\dp|gray)(\d*)(?:le)?")


class PixelFormat(NamedTuple):
    """Pixels in planes, luma first."""

    colour: str
    """A key of STEPS, or "gray"."""
    bits: int

    @property
    def name(self) -> str:
        """FFmpeg's."""
        base = "gray" if self.colour == "gray" else f"yuv{self.colour}p"
        return base if self.bits == 8 else f"{base}{self.bits}le"

    @property
    def dtype(self) -> np.dtype:
        """Of a level."""
        return np.dtype(np.uint8 if self.bits == 8 else "<u2")


def pixel_format_of(path: Path, pixels: av.VideoFormat) -> PixelFormat:
    """Holds all of FFmpeg's format but its alpha. Raises FileError where there is none."""
    bits = max([8, *(part.bits for part in pixels.components)])
    if pixels.is_bayer or bits > 16:
        raise FileError(path, f"{pixels.name} pixels", "convert it to yuv420p or gray16le first")
    if coloured(pixels):
        return PixelFormat("444", bits)
    if pixels.name.startswith(("gray", "mono", "ya")):
        return PixelFormat("gray", bits)
    steps = (16 // pixels.chroma_width(16), 16 // pixels.chroma_height(16))
    for name, known in STEPS.items():
        if known == steps:
            return PixelFormat(name, bits)
    raise FileError(path, f"{pixels.name} pixels", "convert it to yuv420p first")


def coloured(pixels: av.VideoFormat) -> bool:
    """Whether the pixels are red, green and blue."""
    return pixels.is_rgb or pixels.has_palette


def convert(frame: av.VideoFrame, pixel_format: PixelFormat) -> av.VideoFrame:
    """The frame in that format: luma keeps its levels, shifted where the bits differ; RGB becomes
    BT.601 in limited range.
    """
    if frame.format.name == pixel_format.name:
        return frame
    if coloured(frame.format):
        return frame.reformat(
            format=pixel_format.name,
            src_color_range=FULL,
            dst_color_range=LIMITED,
            dst_colorspace=BT601,
        )
    before = frame.color_range
    # FFmpeg takes any gray for full range: only between equal ranges no level moves.
    gray = frame.format.name.startswith(("gray", "mono", "ya"))
    kept = FULL if gray or _is_full(frame) else LIMITED
    frame = frame.reformat(format=pixel_format.name, src_color_range=kept, dst_color_range=kept)
    frame.color_range = before
    return frame


def plane(frame: av.VideoFrame, pixel_format: PixelFormat, index: int = 0) -> np.ndarray:
    """(h, w) of a plane, in its own memory."""
    found = frame.planes[index]
    rows = np.frombuffer(found, pixel_format.dtype).reshape(found.height, -1)
    return rows[:, : found.width]


def levels(frame: av.VideoFrame, bits: int) -> tuple[float, float]:
    """What stands for black and for white in its luma, converted to that many bits."""
    if _is_full(frame):
        return 0.0, float(2**bits - 1)
    return float(16 << (bits - 8)), float(235 << (bits - 8))


def _is_full(frame: av.VideoFrame) -> bool:
    name = frame.format.name
    if coloured(frame.format):
        return False  # Once it is converted.
    if frame.color_range in (LIMITED, FULL):
        return frame.color_range == FULL
    return name.startswith(("yuvj", "gray", "mono", "ya"))


def infrared(
    path: Path, frame: av.VideoFrame, pixel_format: PixelFormat, number: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """A copy of the luma of a gray frame, (h, w) uint8 or uint16, and its black and white.

    number: from 1; the first frame is held to the limits of a picture (`images.pseudo_colour`), of
    the others only those that have colours. Raises FileError for a pseudo-colour frame.
    """
    if coloured(frame.format):
        _require_gray(path, frame, number)
        # In full range all levels stay apart.
        frame = frame.reformat(
            format=pixel_format.name,
            src_color_range=FULL,
            dst_color_range=FULL,
            dst_colorspace=BT601,
        )
        return plane(frame, pixel_format).copy(), (0.0, float(2**pixel_format.bits - 1))
    black_white = levels(frame, pixel_format.bits)
    match = _IN_PLANES.fullmatch(frame.format.name)
    if not match or int(match[1] or 8) != pixel_format.bits:
        frame = convert(frame, pixel_format)
    if pixel_format.colour != "gray" and (number == 1 or _has_colours(frame, pixel_format)):
        _require_gray(path, frame, number)
    return plane(frame, pixel_format).copy(), black_white


def _has_colours(frame: av.VideoFrame, pixel_format: PixelFormat) -> bool:
    middle = 2 ** (pixel_format.bits - 1)
    for index in (1, 2):
        chroma = plane(frame, pixel_format, index)
        low, high = int(chroma.min()), int(chroma.max())
        # Five levels of 255: what is nearer differs by at most 16 in RGB, as coding makes it.
        if max(middle - low, high - middle) > middle // 25:
            return True
    return False


def _require_gray(path: Path, frame: av.VideoFrame, number: int) -> None:
    rgb = frame.reformat(format="rgb24").to_ndarray().astype(np.float32) / np.float32(255)
    worst = pseudo_colour(rgb)
    if worst is not None:
        found = (
            f"pseudo-colour infrared in frame {number}, channels differ by up to {worst:.0f} of "
            "255 levels"
        )
        raise FileError(path, found, "give the camera's gray video, without overlays")


def with_luma(frame: av.VideoFrame, pixel_format: PixelFormat, luma: np.ndarray) -> av.VideoFrame:
    """The frame, in that format, with another luma (h, w), levels as stored."""
    frame.make_writable()
    plane(frame, pixel_format)[:] = luma
    # The encoder decides for itself; FFmpeg would force the source's kinds of pictures on it.
    frame.pict_type = 0
    return frame


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """How the picture is turned when it is shown: (3, 3) integers as FFmpeg has them."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def turned(luma: np.ndarray, source: np.ndarray | None, target: np.ndarray | None) -> np.ndarray:
    """A picture stored under one display matrix as it would be stored under another.

    Raises ValueError for turns by other than quarters.
    """
    both = []
    for matrix in (source, target):
        turn = np.eye(2) if matrix is None else matrix[:2, :2] / 65536.0
        if sorted(np.abs(turn).ravel()) != [0, 0, 1, 1] or abs(np.linalg.det(turn)) != 1:
            raise ValueError("not a turn by quarters")
        both.append(turn)
    # Points are rows: shown = stored @ matrix.
    turn = both[0] @ np.linalg.inv(both[1])
    if turn[0, 0] == 0:
        luma, across, down = luma.T, turn[1, 0], turn[0, 1]
    else:
        across, down = turn[0, 0], turn[1, 1]
    return np.ascontiguousarray(luma[:: int(down), :: int(across)])
