"""What an image file says of itself, and whether all of it is there; no pixels are decoded."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from jaxfuse.data.pairs import DataError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
RESAVE = "copy the file again from its source, or open and save it in an image editor"
"""The remedy for a damaged file."""


class FileError(DataError):
    """A file that cannot be used: which one, what was found in it, what to do about it."""

    def __init__(self, file: str | Path, value: str, remedy: str) -> None:
        super().__init__(str(file), value, remedy)
        self.file, self.value, self.remedy = str(file), value, remedy

    def __str__(self) -> str:
        return f"{self.file}: {self.value}: {self.remedy}"


class Header(NamedTuple):
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


def _png_header(path: Path, stream: io.BufferedIOBase) -> Header:
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
    return Header("PNG", height, width, orientation, {})


def _tiff_header(path: Path, stream: io.BufferedIOBase) -> Header:
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
    return Header("TIFF", tags[257][0], tags[256][0], tags.get(274, (1, 0))[0], tags)


def read_header(path: Path, stream: io.BufferedIOBase) -> Header:
    """Kind, stored size and orientation, without the pixels."""
    start = stream.read(32)
    if not start:
        raise FileError(path, "an empty file (0 bytes)", RESAVE)
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
                    raise FileError(path, f"truncated at {stream.tell()} bytes", RESAVE)
                if start[12:16] == b"VP8X" and start[20] & 2:
                    raise FileError(path, "an animated WebP", "export the one frame to use")
            else:
                found = f"starts with {start[:8]!r}, which is no PNG, JPEG, BMP, TIFF or WebP"
                raise FileError(path, found, "convert it to one of these, or remove it")
            stream.seek(0)
            with Image.open(stream, formats=[kind]) as image:
                orientation = image.getexif().get(0x0112, 1) if kind != "BMP" else 1
                header = Header(kind, image.height, image.width, orientation, {})
    except FileError:
        raise
    except Exception as error:  # Broken headers surface as a dozen different exceptions.
        why = "cut short" if isinstance(error, struct.error) else str(error).split("<_io")[0]
        raise FileError(path, f"the header cannot be read ({why.strip()})", RESAVE) from None
    if header.height < 1 or header.width < 1:
        raise FileError(path, f"the header says {header.height} x {header.width} pixels", RESAVE)
    return header


def require_complete(path: Path, data: bytes, kind: str) -> None:
    """Refuses a cut or damaged PNG or JPEG, of which decoders may return a half-gray picture."""
    if kind == "PNG":
        view, last = memoryview(data), b""
        for name, start, length in _png_chunks(io.BytesIO(data)):
            end = start + length
            if end + 4 > len(data):
                break
            if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                found = f"damaged at byte {start} (checksum of {name.decode('latin1')})"
                raise FileError(path, found, RESAVE)
            last = name
        if last != b"IEND":
            raise FileError(path, f"truncated at {len(data)} bytes (no end of image)", RESAVE)
    elif kind == "JPEG":
        at = 2
        while found := _JPEG_MARKER.search(data, at):
            marker, at = data[found.end() - 1], found.end()
            if marker == 0xD9:
                return
            if marker not in (0x01, 0xD8):
                at += int.from_bytes(data[at : at + 2], "big")
        raise FileError(path, f"truncated at {len(data)} bytes (no end of image)", RESAVE)
