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
import uuid
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from PIL import Image

from jaxfuse.data.headers import RESAVE, FileError, Header, read_header, require_complete

# Every failure below becomes one error line; OpenCV would print several more of its own.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""File name endings, lower case, that are read and written."""

Stretch = Literal["none", "minmax", "percentile"]

GRAY_MEAN_LIMIT = 2.0
GRAY_MAX_LIMIT = 16.0
"""Grey levels, mean and largest, that the three channels of a gray image may differ by: lossy
colour coding stays far below, a pseudo-colour palette or a coloured overlay is far above."""

BLACK_LEVELS = 2
"""Grey levels of 255 up to which a picture counts as black."""

SMALL_RANGE = 16384
"""A 16-bit image that spans fewer levels than this, a quarter of all, looks black."""

_FULL = {8: 255, 16: 65535}
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


class Decoded(NamedTuple):
    """The pixels of one file, upright."""

    pixels: np.ndarray
    """(h, w) or (h, w, 3) red first; uint8, uint16, or float32 in [0, 1]."""
    bits: int
    """8, 16 or 32 per channel; fewer than 8 are widened to 8, 9 to 15 are stored as 16."""


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


def _decode_tiff(path: Path, data: bytes, header: Header) -> np.ndarray | None:
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
    return decode_bytes(path, _read(path))


def decode_bytes(path: Path, data: bytes) -> Decoded:
    """As `decode`, of a file's content; `path` is named in errors."""
    header = read_header(path, io.BytesIO(data))
    require_complete(path, data, header.kind)
    pixels = _decode_tiff(path, data, header) if header.kind == "TIFF" else _by_opencv(data)
    if pixels is None:
        raise FileError(path, f"truncated, damaged or an unusual kind of {header.kind}", RESAVE)
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
            header = read_header(path, stream)
    except OSError as error:
        raise _unreadable(path, error) from None
    turned = header.orientation in (5, 6, 7, 8)
    return (header.width, header.height) if turned else (header.height, header.width)


def stored_bits(path: str | Path) -> int:
    """8, 16 or 32 bits per channel, from the header only. Raises FileError."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            header = read_header(path, stream)
            stream.seek(24)
            depth = stream.read(1)[0]
    except OSError as error:
        raise _unreadable(path, error) from None
    bits = {"PNG": depth, "TIFF": header.tags.get(258, (8, 0))[0]}.get(header.kind, 8)
    return 8 if bits <= 8 else 16 if bits <= 16 else 32


def _unit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.float32:
        return pixels
    return np.divide(pixels, np.float32(_FULL[8 * pixels.itemsize]), dtype=np.float32)


def visible_from(decoded: Decoded) -> np.ndarray:
    """float32 (h, w, 3) in [0, 1]; a gray image repeats its channel."""
    values = _unit(decoded.pixels)
    return cv2.cvtColor(values, cv2.COLOR_GRAY2RGB) if values.ndim == 2 else values


def pseudo_colour(values: np.ndarray) -> float | None:
    """Largest difference of the channels of (h, w, 3) in [0, 1], grey levels, where they are not
    one gray image stored three times; else None.
    """
    spread = 255 * (values.max(axis=2) - values.min(axis=2))
    worst = float(spread.max())
    return worst if spread.mean() > GRAY_MEAN_LIMIT or worst > GRAY_MAX_LIMIT else None


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
            worst = pseudo_colour(values)
            if worst is not None:
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


def black(decoded: Decoded) -> bool:
    """Whether the picture holds nothing: no 8-bit level above 2, or one such value everywhere."""
    low, high = float(decoded.pixels.min()), float(decoded.pixels.max())
    full = _FULL.get(decoded.bits, 1)
    return high <= BLACK_LEVELS * full / 255 and (decoded.bits == 8 or low == high)


def _lit(path: str | Path) -> Decoded:
    decoded = decode(path)
    if black(decoded):
        found = f"all black (no value above {decoded.pixels.max():g})"
        raise FileError(Path(path), found, "record it again, or leave the pair out by a split")
    return decoded


def read_visible(path: str | Path, allow_black: bool = True) -> np.ndarray:
    """float32 (h, w, 3) in [0, 1], red first: uint8 / 255, uint16 / 65535, floats as they are.

    Gray images repeat their channel, palettes become RGB, alpha is dropped. Raises like `decode`;
    with allow_black=False also FileError for an all-black picture.
    """
    return visible_from(decode(path) if allow_black else _lit(path))


def read_infrared(
    path: str | Path, stretch: Stretch = "none", allow_black: bool = True
) -> np.ndarray:
    """float32 (h, w, 1) in [0, 1]: uint8 / 255, uint16 / 65535, floats as they are.

    Three channels that are equal, or differ by at most 2 grey levels on average and 16 anywhere,
    become their mean; more is a pseudo-colour picture and raises FileError, as `decode` does.
    stretch: a 14-bit sensor fills a small part of 16 bits. "minmax" maps this image's own range to
    [0, 1]; "percentile" its 0.5 to 99.5 % quantiles, clipping beyond. A constant image becomes 0.
    With allow_black=False an all-black picture raises FileError.
    """
    return infrared_from(decode(path) if allow_black else _lit(path), path, stretch)


def spans_little(path: str | Path, values: np.ndarray) -> bool:
    """Whether a 16-bit file's values in [0, 1] span so little that it looks black."""
    if (values.max() - values.min()) * 65535 >= SMALL_RANGE:
        return False
    return decode(path).bits == 16


def read_mask(path: str | Path) -> np.ndarray:
    """What an annotation PNG stores: int32 (h, w) values, or uint8 (h, w, 3) colours, red first.

    Of a palette the indices are taken, not the colours; alpha is dropped. Raises FileError for
    another format, a damaged file, and values above 255.
    """
    path = Path(path)
    return mask_bytes(path, _read(path))


def mask_bytes(path: Path, data: bytes) -> np.ndarray:
    """As `read_mask`, of a file's content; `path` is named in errors."""
    header = read_header(path, io.BytesIO(data))
    if header.kind != "PNG":
        raise FileError(path, f"a {header.kind} file", "save label maps as index PNG")
    require_complete(path, data, header.kind)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, mask = image.mode, np.asarray(image)
    except Exception:  # As in _by_pillow.
        raise FileError(path, "damaged PNG", RESAVE) from None
    if mask.ndim == 3 and mask.shape[2] == 2:
        mask = mask[..., 0]
    if mask.ndim == 3:
        return _upright(mask[..., :3], header.orientation)
    mask = mask.astype(np.int32)
    if mode == "L" and (depth := data[24]) < 8:
        mask //= 255 // (2**depth - 1)  # Pillow spreads 2 and 4 bit over 0..255.
    if mask.max() > 255:
        raise FileError(path, f"label {mask.max()}", "labels are 0..254, and 255 = ignore")
    return _upright(mask, header.orientation)


def read_labels(path: str | Path) -> np.ndarray:
    """int32 (h, w) class indices, 255 = ignore, from an index PNG: gray or palette, 1 to 16 bit.

    Of a palette the indices are taken, not the colours. Raises FileError for other formats, for a
    colour picture and for values above 255.
    """
    labels = read_mask(path)
    if labels.ndim != 2:
        remedy = "save class indices, one channel, 255 = ignore"
        raise FileError(path, "a colour picture, not class indices", remedy)
    return labels


def read_four_channels(path: str | Path) -> np.ndarray:
    """uint8 or uint16 (h, w, 4), red first, of a PNG whose fourth channel is a picture, not alpha.

    Raises FileError for a damaged file and for one with another number of channels.
    """
    path = Path(path)
    data = _read(path)
    header = read_header(path, io.BytesIO(data))
    require_complete(path, data, header.kind)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise FileError(path, f"truncated, damaged or an unusual kind of {header.kind}", RESAVE)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels != 4:
        remedy = "use the files as published: red, green, blue and infrared in one PNG"
        raise FileError(path, f"{channels} channels, where the fourth is the infrared", remedy)
    return _upright(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), header.orientation)


def write_bytes(path: Path, blob: bytes) -> None:
    """Puts `blob` at `path` whole or not at all. Raises FileError where the disk refuses."""
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
    write_bytes(path, blob.tobytes())
