"""One image file in, one image file out: PNG, JPEG, BMP, TIFF and WebP, 8 and 16 bit.

What a file holds is recognised by its first bytes, not by its name. Gray, colour, palette and 1-bit
pictures are read; palettes become RGB; EXIF orientation is applied; alpha is dropped without
blending; colour profiles are not applied. Of a phone's multi-picture JPEG the first one is read;
animations and TIFFs of several pages are refused. Nothing is rescaled silently.
"""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from PIL import Image

from jaxfuse.data.pairs import DataError

# Every failure below becomes one error line; OpenCV would print several more of its own.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""File name endings, lower case, that are read and written."""

Stretch = Literal["none", "minmax", "percentile"]

GRAY_MEAN_LIMIT = 2.0
GRAY_MAX_LIMIT = 16.0
"""Grey levels, mean and largest, that the three channels of a gray image may differ by: lossy
colour coding stays far below, a pseudo-colour palette or a coloured overlay is far above."""

_FULL = {8: 255, 16: 65535}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_RESAVE = "copy the file again from its source, or open and save it in an image editor"
_WRITE_BITS = {ending: (16 if ending in {".png", ".tif", ".tiff"} else 8) for ending in EXTENSIONS}
_WRITE_OPTIONS = {
    ".jpg": [
        cv2.IMWRITE_JPEG_QUALITY,
        95,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101],  # Above 100 OpenCV writes the lossless kind.
}
_WRITE_OPTIONS[".jpeg"] = _WRITE_OPTIONS[".jpg"]


class FileError(DataError):
    """A file that cannot be used: which one, what was found in it, what to do about it."""

    def __init__(self, file: str | Path, value: str, remedy: str) -> None:
        super().__init__(str(file), value, remedy)
        self.file, self.value, self.remedy = str(file), value, remedy

    def __str__(self) -> str:
        return f"{self.file}: {self.value}: {self.remedy}"


class Decoded(NamedTuple):
    """The pixels of one file, upright."""

    pixels: np.ndarray
    """(h, w) or (h, w, 3) red first; uint8, uint16, or float32 in [0, 1]."""
    bits: int
    """8, 16 or 32 per channel; fewer than 8 are widened to 8, 9 to 15 are stored as 16."""


class _Header(NamedTuple):
    kind: Literal["PNG", "JPEG", "BMP", "TIFF", "WEBP"]
    height: int
    width: int
    """As stored, before the orientation is applied."""
    orientation: int
    """EXIF: 1 upright ... 8."""
    tags: dict[int, tuple[int, int]]
    """TIFF only: tag -> (first value, its offset in the file)."""


def _png_chunks(stream: io.BufferedIOBase) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset of the data, length) of each chunk up to IEND, or as far as the file goes."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        start = stream.tell()
        yield name, start, length
        if name == b"IEND":
            return
        stream.seek(start + length + 4)


def _png_header(path: Path, stream: io.BufferedIOBase) -> _Header:
    width = height = 0
    orientation = 1
    for name, start, length in _png_chunks(stream):
        if name == b"IHDR":
            width, height = struct.unpack(">II", stream.read(8))
        elif name == b"acTL":
            raise FileError(path, "an animated PNG", "export the one frame to use")
        elif name == b"eXIf":
            stream.seek(start)
            exif = Image.Exif()
            exif.load(stream.read(length))
            orientation = exif.get(0x0112, 1)
    return _Header("PNG", height, width, orientation, {})


def _tiff_header(path: Path, stream: io.BufferedIOBase) -> _Header:
    """Reads the directories of a TIFF; OpenCV and Pillow each miss some of what stands there."""
    stream.seek(0)
    start = stream.read(8)
    order = "<" if start[:2] == b"II" else ">"
    pages: list[dict[int, tuple[int, int]]] = []
    at = struct.unpack(order + "I", start[4:])[0]
    while at and len(pages) < 64:
        stream.seek(at)
        count = struct.unpack(order + "H", stream.read(2))[0]
        block = stream.read(12 * count + 4)
        tags = {}
        for i in range(count):
            tag, kind, n = struct.unpack_from(order + "HHI", block, 12 * i)
            form = {1: "B", 3: "H", 4: "I"}.get(kind)
            if form is None:
                continue
            where = at + 2 + 12 * i + 8
            if struct.calcsize(form) * n > 4:
                where = struct.unpack_from(order + "I", block, 12 * i + 8)[0]
            stream.seek(where)
            tags[tag] = (struct.unpack(order + form, stream.read(struct.calcsize(form)))[0], where)
        pages.append(tags)
        at = struct.unpack_from(order + "I", block, 12 * count)[0]
    # Later pages may be thumbnails (1) or masks (4) of the first.
    full = [tags for tags in pages if not tags.get(254, (0, 0))[0] & 5]
    if len(full) > 1:
        raise FileError(path, f"a TIFF of {len(full)} pages", "export the one page to use")
    tags = pages[0]
    return _Header("TIFF", tags[257][0], tags[256][0], tags.get(274, (1, 0))[0], tags)


def _header(path: Path, stream: io.BufferedIOBase) -> _Header:
    """Kind, stored size and orientation, without the pixels."""
    start = stream.read(32)
    if not start:
        raise FileError(path, "an empty file (0 bytes)", _RESAVE)
    try:
        if start.startswith(_PNG_SIGNATURE):
            header = _png_header(path, stream)
        elif start[:4] in (b"II*\x00", b"MM\x00*"):
            header = _tiff_header(path, stream)
        else:
            if start.startswith(b"\xff\xd8\xff"):
                kind = "JPEG"
            elif start.startswith(b"BM"):
                kind = "BMP"
            elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
                kind = "WEBP"
                if stream.seek(0, io.SEEK_END) < struct.unpack("<I", start[4:8])[0] + 8:
                    raise FileError(path, f"truncated at {stream.tell()} bytes", _RESAVE)
                if start[12:16] == b"VP8X" and start[20] & 2:
                    raise FileError(path, "an animated WebP", "export the one frame to use")
            else:
                found = f"starts with {start[:8]!r}, which is no PNG, JPEG, BMP, TIFF or WebP"
                raise FileError(path, found, "convert it to one of these, or remove it")
            stream.seek(0)
            with Image.open(stream, formats=[kind]) as image:
                orientation = image.getexif().get(0x0112, 1) if kind != "BMP" else 1
                header = _Header(kind, image.height, image.width, orientation, {})
    except FileError:
        raise
    except Exception as error:  # Broken headers surface as a dozen different exceptions.
        why = "cut short" if isinstance(error, struct.error) else str(error).split("<_io")[0]
        raise FileError(path, f"the header cannot be read ({why.strip()})", _RESAVE) from None
    if header.height < 1 or header.width < 1:
        raise FileError(path, f"the header says {header.height} x {header.width} pixels", _RESAVE)
    return header


def _require_complete(path: Path, data: bytes, kind: str) -> None:
    """Refuses a cut or damaged PNG or JPEG, of which decoders may return a half-gray picture."""
    if kind == "PNG":
        view, last = memoryview(data), b""
        for name, start, length in _png_chunks(io.BytesIO(data)):
            end = start + length
            if end + 4 > len(data):
                break
            if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                found = f"damaged at byte {start} (checksum of {name.decode('latin1')})"
                raise FileError(path, found, _RESAVE)
            last = name
        if last != b"IEND":
            raise FileError(path, f"truncated at {len(data)} bytes (no end of image)", _RESAVE)
    elif kind == "JPEG":
        at = 2
        while found := _JPEG_MARKER.search(data, at):
            marker, at = data[found.end() - 1], found.end()
            if marker == 0xD9:
                return
            if marker not in (0x01, 0xD8):
                at += int.from_bytes(data[at : at + 2], "big")
        raise FileError(path, f"truncated at {len(data)} bytes (no end of image)", _RESAVE)


def _by_opencv(data: bytes) -> np.ndarray | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 1:
        return pixels[..., 0]
    if pixels.dtype == np.float64:
        with np.errstate(over="ignore"):  # Refused below, as infinite.
            pixels = pixels.astype(np.float32)
    if pixels.shape[2] not in (3, 4) or pixels.dtype not in (np.uint8, np.uint16, np.float32):
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


def _by_pillow(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            if image.mode in ("1", "LA"):
                return np.asarray(image.convert("L"))
            if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
                pixels = np.asarray(image)
                return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception:  # Which exception depends on the codec and on where the damage lies.
        return None


def _decode_tiff(path: Path, data: bytes, header: _Header) -> np.ndarray | None:
    tags = header.tags
    bits, samples, planes, sample_format = (
        tags.get(tag, (1, 0))[0] for tag in (258, 277, 284, 339)
    )
    if sample_format == 2 or (sample_format == 1 and bits > 16):
        found = f"{bits}-bit {'signed' if sample_format == 2 else 'unsigned'} integers"
        raise FileError(path, found, "save as 8 or 16 bit unsigned, or as float in [0, 1]")
    if bits > 8 and samples > 1 and planes == 2:
        found = f"{bits}-bit colours stored plane by plane"
        raise FileError(path, found, "save it with interleaved channels (contiguous, chunky)")
    # Both decoders turn some oriented TIFFs, by half: hide the tag, the caller turns them all. A
    # single plane is contiguous whatever its tag says, at which Pillow stumbles.
    changed, order = bytearray(data), ("little" if data[:2] == b"II" else "big")
    for tag in (274, 284) if samples == 1 else (274,):
        if tag in tags:
            changed[tags[tag][1] : tags[tag][1] + 2] = (1).to_bytes(2, order)
    data = bytes(changed)
    # Pillow reads deep colour as 8 bit; OpenCV multiplies 8-bit colours by their alpha.
    by_opencv = bits > 16 or (bits > 8 and samples > 1)
    pixels = _by_opencv(data) if by_opencv else _by_pillow(data)
    if pixels is not None and pixels.dtype == np.uint16 and tags.get(262, (1, 0))[0] == 0:
        pixels = 65535 - pixels  # White is zero; both decoders mind that at 8 bits only.
    return pixels


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _require_unit_range(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Float pixels as float32 in [0, 1]; rounding up to 1e-6 outside is taken as the bound."""
    bad = pixels.size - int(np.isfinite(pixels).sum())
    if bad:
        found = f"{bad} pixel values are NaN or infinite"
        raise FileError(path, found, "replace them, e.g. by their neighbours")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1e-6 or high > 1 + 1e-6:
        found = f"float values from {low:g} to {high:g}"
        raise FileError(path, found, "scale them to [0, 1], or save as 16 bit")
    return np.clip(pixels, 0, 1).astype(np.float32)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> FileError:
    found = f"cannot be read ({error.strerror})"
    return FileError(path, found, "check the path and its permissions")


def decode(path: str | Path) -> Decoded:
    """The upright pixels of a file at the depth they are stored in; alpha is dropped.

    Raises FileError for a file that is missing, truncated or damaged, has several pages, or holds
    signed or 32-bit integers, or floats that are NaN, infinite or outside [0, 1].
    """
    path = Path(path)
    data = _read(path)
    header = _header(path, io.BytesIO(data))
    _require_complete(path, data, header.kind)
    pixels = _decode_tiff(path, data, header) if header.kind == "TIFF" else _by_opencv(data)
    if pixels is None:
        raise FileError(path, f"truncated, damaged or an unusual kind of {header.kind}", _RESAVE)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = _require_unit_range(path, pixels)
    elif pixels.dtype not in (np.uint8, np.uint16):
        raise FileError(
            path, f"{pixels.dtype} pixels", "save as 8 or 16 bit unsigned, or as float in [0, 1]"
        )
    return Decoded(_upright(pixels, header.orientation), 8 * pixels.itemsize)


def size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, from the header only. Raises FileError."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            header = _header(path, stream)
    except OSError as error:
        raise _unreadable(path, error) from None
    turned = header.orientation in (5, 6, 7, 8)
    return (header.width, header.height) if turned else (header.height, header.width)


def _unit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.float32:
        return pixels
    return np.divide(pixels, np.float32(_FULL[8 * pixels.itemsize]), dtype=np.float32)


def visible_from(decoded: Decoded) -> np.ndarray:
    """float32 (h, w, 3) in [0, 1]; a gray image repeats its channel."""
    values = _unit(decoded.pixels)
    return cv2.cvtColor(values, cv2.COLOR_GRAY2RGB) if values.ndim == 2 else values


def infrared_from(decoded: Decoded, path: str | Path, stretch: Stretch = "none") -> np.ndarray:
    """float32 (h, w, 1) in [0, 1]; see `read_infrared`. `path` is named in the error."""
    if stretch not in get_args(Stretch):
        raise FileError(
            path, f"stretch = {stretch!r}", f"use one of {', '.join(get_args(Stretch))}"
        )
    pixels = decoded.pixels
    values = _unit(pixels)
    if values.ndim == 3:
        first = pixels[..., 0]
        if np.array_equal(first, pixels[..., 1]) and np.array_equal(first, pixels[..., 2]):
            values = values[..., 0]
        else:
            spread = 255 * (values.max(axis=2) - values.min(axis=2))
            worst = float(spread.max())
            if spread.mean() > GRAY_MEAN_LIMIT or worst > GRAY_MAX_LIMIT:
                found = (
                    f"pseudo-colour infrared, channels differ by up to {worst:.0f} of 255 levels"
                )
                remedy = "give the camera's radiometric or gray export, without overlays"
                raise FileError(path, found, remedy)
            values = values.mean(axis=2)
    if stretch != "none":
        low, high = (
            (values.min(), values.max())
            if stretch == "minmax"
            else np.percentile(values, (0.5, 99.5))
        )
        span = high - low
        values = np.clip((values - low) / span, 0, 1) if span > 0 else np.zeros_like(values)
    return np.ascontiguousarray(values, dtype=np.float32)[..., None]


def read_visible(path: str | Path) -> np.ndarray:
    """float32 (h, w, 3) in [0, 1], red first: uint8 / 255, uint16 / 65535, floats as they are.

    Gray images repeat their channel, palettes become RGB, alpha is dropped. Raises like `decode`.
    """
    return visible_from(decode(path))


def read_infrared(path: str | Path, stretch: Stretch = "none") -> np.ndarray:
    """float32 (h, w, 1) in [0, 1]: uint8 / 255, uint16 / 65535, floats as they are.

    Three channels that are equal, or differ by at most 2 grey levels on average and 16 anywhere,
    become their mean; more is a pseudo-colour picture and raises FileError, as `decode` does.
    stretch: a 14-bit sensor fills a small part of 16 bits. "minmax" maps this image's own range to
    [0, 1]; "percentile" its 0.5 to 99.5 % quantiles, clipping beyond. A constant image becomes 0.
    """
    return infrared_from(decode(path), path, stretch)


def read_labels(path: str | Path) -> np.ndarray:
    """int32 (h, w) class indices, 255 = ignore, from an index PNG: gray or palette, 1 to 16 bit.

    Of a palette the indices are taken, not the colours. Raises FileError for other formats, for a
    colour picture and for values above 255.
    """
    path = Path(path)
    data = _read(path)
    header = _header(path, io.BytesIO(data))
    if header.kind != "PNG":
        raise FileError(path, f"a {header.kind} file", "save label maps as index PNG")
    _require_complete(path, data, header.kind)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, labels = image.mode, np.asarray(image).astype(np.int32)
    except Exception:  # As in _by_pillow.
        raise FileError(path, "damaged PNG", _RESAVE) from None
    if labels.ndim != 2:
        remedy = "save class indices, one channel, 255 = ignore"
        raise FileError(path, f"a colour picture (mode {mode})", remedy)
    if mode == "L" and (depth := data[24]) < 8:
        labels //= 255 // (2**depth - 1)  # Pillow spreads 2 and 4 bit over 0..255.
    if labels.max() > 255:
        raise FileError(path, f"label {labels.max()}", "labels are 0..254, and 255 = ignore")
    return _upright(labels, header.orientation)


def _replace(path: Path, blob: bytes) -> None:
    """Puts `blob` at `path` whole or not at all."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        try:
            with part.open("xb") as stream:
                stream.write(blob)
                stream.flush()
                os.fsync(stream.fileno())  # Some file systems report a full disk only here.
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free some space, or write to another disk",
            errno.EDQUOT: "free some space, or write to another disk",
            errno.ENOENT: "create the folder first",
        }.get(error.errno or 0, "choose a path that you may write to")
        raise FileError(path, f"cannot be written ({error.strerror})", remedy) from None


def write(path: str | Path, image: np.ndarray, bits: Literal[8, 16] = 8) -> None:
    """Writes a float image in [0, 1], gray (h, w[, 1]) or RGB (h, w, 3), rounded to levels.

    The ending of `path` picks the format: PNG and TIFF 8 or 16 bit, BMP and WebP (lossless) 8, JPEG
    8 (quality 95, full colour resolution). The file appears whole or not at all, and until then
    what was there before stays. Raises FileError for another ending, depth or shape, for values
    outside [0, 1], and where the disk refuses.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in _WRITE_BITS:
        raise FileError(
            path, f"ending {path.suffix!r}", f"use one of {', '.join(sorted(_WRITE_BITS))}"
        )
    if bits not in _FULL:
        raise FileError(path, f"bits = {bits}", "use 8 or 16")
    if bits > _WRITE_BITS[ending]:
        raise FileError(
            path, f"bits = {bits}", f"{ending} holds 8: write .png or .tif, or use bits = 8"
        )
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise FileError(
            path, f"an array of shape {image.shape}", "give (h, w), (h, w, 1) or (h, w, 3)"
        )
    if not np.issubdtype(image.dtype, np.floating):
        raise FileError(path, f"an array of {image.dtype}", "give floats in [0, 1]")
    full = _FULL[bits]
    levels = np.multiply(image, np.float32(full), dtype=np.float32)
    np.rint(levels, out=levels)
    if not (levels.min() >= 0 and levels.max() <= full):  # Written so that NaN fails too.
        found = f"values from {image.min():g} to {image.max():g}"
        raise FileError(path, found, "give finite values in [0, 1]")
    levels = levels.astype(np.uint8 if bits == 8 else np.uint16)
    try:
        ok, blob = cv2.imencode(ending, levels[..., ::-1], _WRITE_OPTIONS.get(ending, []))
    except cv2.error:
        ok = False
    if not ok:
        found = f"{image.shape[0]} x {image.shape[1]} pixels cannot be stored as {ending}"
        raise FileError(path, found, "write .png or .tif")
    _replace(path, blob.tobytes())
