from __future__ import annotations

import errno
import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxfuse.data import images
from jaxfuse.data.images import FileError, decode, read_infrared, read_labels, read_visible, size
from jaxfuse.data.pairs import DataError

H, W = 6, 9


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def random8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8)


def random16(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 65536, shape).astype(np.uint16)


def smooth8(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A picture that lossy formats keep well."""
    return cv2.resize(random8(rng, 3, 4, 3), (w, h), interpolation=cv2.INTER_CUBIC)


def save_bgr(path: Path, pixels: np.ndarray) -> Path:
    """RGB(A) or gray pixels of any depth through OpenCV."""
    swapped = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    assert cv2.imwrite(str(path), np.ascontiguousarray(swapped))
    return path


def raw_png(w: int, h: int, depth: int, kind: int, rows: bytes, before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + body


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def set_tiff_tag(data: bytes, tag: int, value: int) -> bytes:
    """Changes a SHORT tag of a little-endian TIFF."""
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for i in range(count):
        if struct.unpack_from("<H", data, at + 2 + 12 * i)[0] == tag:
            struct.pack_into("<H", changed, at + 2 + 12 * i + 8, value)
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


def raw_tiff(pixels: np.ndarray, order: str, planar: bool = False) -> bytes:
    """An uncompressed TIFF of (h, w, c) unsigned pixels, byte order "<" or ">"."""
    h, w, c = pixels.shape
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    planes = [stored[..., i].tobytes() for i in range(c)] if planar else [stored.tobytes()]
    bits = 8 * pixels.itemsize
    values: dict[int, tuple[str, list[int]]] = {
        256: ("I", [w]),
        257: ("I", [h]),
        258: ("H", [bits] * c),
        259: ("H", [1]),
        262: ("H", [2 if c > 1 else 1]),
        273: ("I", []),
        277: ("H", [c]),
        278: ("I", [h]),
        279: ("I", [len(plane) for plane in planes]),
        284: ("H", [2 if planar else 1]),
    }
    at = 14 + 12 * len(values)
    rest, entries = b"", b""
    for plane in planes:
        values[273][1].append(at + len(rest))
        rest += plane
    for tag, (form, numbers) in values.items():
        data = b"".join(struct.pack(order + form, number) for number in numbers)
        if len(data) > 4:
            data, rest = struct.pack(order + "I", at + len(rest)), rest + data
        kind = {"H": 3, "I": 4}[form]
        entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(values))
    return head + entries + bytes(4) + rest


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# What is read


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "tiff", "webp"])
def test_lossless_formats_keep_8_bit_pixels(
    tmp_path: Path, rng: np.random.Generator, ending: str
) -> None:
    colour, gray = random8(rng, H, W, 3), random8(rng, H, W)
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(colour).save(tmp_path / f"c.{ending}", **options)
    Image.fromarray(gray).save(tmp_path / f"g.{ending}", **options)
    np.testing.assert_array_equal(decode(tmp_path / f"c.{ending}").pixels, colour)
    visible = read_visible(tmp_path / f"c.{ending}")
    assert visible.dtype == np.float32 and visible.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(visible, colour.astype(np.float32) / np.float32(255))
    repeated = read_visible(tmp_path / f"g.{ending}")
    np.testing.assert_array_equal(np.rint(255 * repeated), np.stack([gray] * 3, axis=-1))
    infrared = read_infrared(tmp_path / f"g.{ending}")
    assert infrared.shape == (H, W, 1) and infrared.dtype == np.float32
    np.testing.assert_array_equal(infrared[..., 0], gray.astype(np.float32) / np.float32(255))


def test_jpeg_equals_pillow(tmp_path: Path, rng: np.random.Generator) -> None:
    picture = Image.fromarray(smooth8(rng, 40, 61))
    for name, options in (("a.jpg", {}), ("b.jpeg", {"progressive": True, "quality": 80})):
        picture.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as image:
            expected = np.asarray(image).astype(int)
        got = decode(tmp_path / name)
        assert got.bits == 8
        assert np.abs(got.pixels.astype(int) - expected).max() <= 1


def test_grayscale_jpeg_has_one_channel(tmp_path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(smooth8(rng, 20, 30)).convert("L").save(tmp_path / "a.JPG")
    assert decode(tmp_path / "a.JPG").pixels.shape == (20, 30)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_is_kept(
    tmp_path: Path, rng: np.random.Generator, ending: str, channels: int
) -> None:
    pixels = random16(rng, H, W, channels)
    pixels = pixels[..., 0] if channels == 1 else pixels
    path = save_bgr(tmp_path / f"a.{ending}", pixels)
    got = decode(path)
    assert got.bits == 16 and got.pixels.dtype == np.uint16
    colour = pixels if channels == 1 else pixels[..., :3]
    np.testing.assert_array_equal(got.pixels, colour)
    assert size(path) == (H, W)
    visible = read_visible(path)
    expected = colour.astype(np.float64) / 65535
    expected = expected[..., None] if channels == 1 else expected
    np.testing.assert_allclose(visible, np.broadcast_to(expected, visible.shape), atol=1e-7)
    if channels == 1:
        np.testing.assert_allclose(read_infrared(path), expected, atol=1e-7)


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_alpha_is_dropped_without_blending(
    tmp_path: Path, rng: np.random.Generator, ending: str
) -> None:
    pixels = random8(rng, H, W, 4)
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", **options)
    np.testing.assert_array_equal(decode(tmp_path / f"a.{ending}").pixels, pixels[..., :3])


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_gray_with_alpha(tmp_path: Path, rng: np.random.Generator, ending: str) -> None:
    pixels = random8(rng, H, W, 2)
    Image.fromarray(pixels, mode=None).save(tmp_path / f"a.{ending}")
    got = read_infrared(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(np.rint(255 * got[..., 0]), pixels[..., 0])


def test_16_bit_gray_with_alpha_png(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">4H", 1000, 65535, 60000, 30)
    (tmp_path / "a.png").write_bytes(raw_png(2, 1, 16, 4, row))
    got = read_infrared(tmp_path / "a.png")
    np.testing.assert_allclose(65535 * got.ravel(), [1000, 60000], rtol=1e-6)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_palettes_become_colours(tmp_path: Path, rng: np.random.Generator, ending: str) -> None:
    indexed = Image.fromarray(random8(rng, H, W, 3)).quantize(8)
    indexed.save(tmp_path / f"a.{ending}")
    expected = np.asarray(indexed.convert("RGB"))
    np.testing.assert_array_equal(decode(tmp_path / f"a.{ending}").pixels, expected)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_one_bit_is_black_and_white(tmp_path: Path, rng: np.random.Generator, ending: str) -> None:
    mask = rng.random((H, W)) > 0.5
    Image.fromarray(mask).save(tmp_path / f"a.{ending}")
    got = decode(tmp_path / f"a.{ending}")
    assert got.bits == 8
    np.testing.assert_array_equal(got.pixels, 255 * mask.astype(np.uint8))


def test_gray_png_below_8_bit_fills_the_range(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(raw_png(4, 1, 2, 0, b"\0\x1b"))
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels, [[0, 85, 170, 255]])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_compressions(tmp_path: Path, rng: np.random.Generator, compression: str) -> None:
    pixels = random8(rng, H, W, 3)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_tiff_in_which_white_is_zero(tmp_path: Path, rng: np.random.Generator, bits: int) -> None:
    stored = {
        1: rng.random((H, W)) > 0.5,
        8: random8(rng, H, W),
        16: random16(rng, H, W),
    }[bits]
    data = set_tiff_tag(encoded(Image.fromarray(stored), "TIFF"), 262, 0)
    (tmp_path / "a.tif").write_bytes(data)
    as_shown = ~stored if bits > 1 else 255 * (~stored).astype(np.uint8)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif").pixels, as_shown)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_float_tiff(tmp_path: Path, rng: np.random.Generator, dtype: type, channels: int) -> None:
    pixels = rng.random((H, W, channels)).astype(np.float32).astype(dtype)
    pixels.flat[:2] = 0, 1
    pixels = pixels[..., 0] if channels == 1 else pixels
    path = save_bgr(tmp_path / "a.tif", pixels)
    got = decode(path)
    assert got.bits == 32 and got.pixels.dtype == np.float32
    np.testing.assert_array_equal(got.pixels, pixels.astype(np.float32))
    assert size(path) == (H, W)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_layouts(
    tmp_path: Path, rng: np.random.Generator, order: str, planar: bool, channels: int
) -> None:
    for pixels in (random8(rng, H, W, channels), random16(rng, H, W, channels)):
        (tmp_path / "a.tif").write_bytes(raw_tiff(pixels, order, planar))
        assert size(tmp_path / "a.tif") == (H, W)
        if planar and channels == 3 and pixels.dtype == np.uint16:
            with pytest.raises(DataError, match=r"a\.tif: 16-bit colours stored plane by plane"):
                decode(tmp_path / "a.tif")
            continue
        got = decode(tmp_path / "a.tif").pixels
        assert got.dtype == pixels.dtype and got.dtype.isnative
        np.testing.assert_array_equal(got, pixels[..., 0] if channels == 1 else pixels)


def test_content_counts_not_the_name(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = random8(rng, H, W)
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg").pixels, pixels)


def test_smallest_image(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 51).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_infrared(tmp_path / "a.png"), [[[0.2]]], atol=1e-7)
    assert size(tmp_path / "a.png") == (1, 1)


TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: np.rot90(x, 2),
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}
"""What EXIF says must be done to the stored pixels."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied(
    tmp_path: Path, rng: np.random.Generator, ending: str, orientation: int
) -> None:
    picture = Image.fromarray(smooth8(rng, 20, 31))
    options = {"lossless": True} if ending == "webp" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"plain.{ending}", **options)
    picture.save(tmp_path / f"turned.{ending}", exif=exif, **options)
    expected = TURNS[orientation](decode(tmp_path / f"plain.{ending}").pixels)
    got = decode(tmp_path / f"turned.{ending}").pixels
    np.testing.assert_array_equal(got, expected)
    assert got.flags["C_CONTIGUOUS"]
    assert size(tmp_path / f"turned.{ending}") == expected.shape[:2]


def test_orientation_of_deep_tiff(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = random16(rng, H, W, 3)
    # A tag of the same kind that means nothing here becomes the orientation.
    data = save_bgr(tmp_path / "a.tif", pixels).read_bytes()
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    tags = [struct.unpack_from("<H", data, at + 2 + 12 * i)[0] for i in range(count)]
    changed = bytearray(set_tiff_tag(data, 284, 6))
    struct.pack_into("<H", changed, at + 2 + 12 * tags.index(284), 274)
    (tmp_path / "a.tif").write_bytes(changed)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif").pixels, np.rot90(pixels, -1))
    assert size(tmp_path / "a.tif") == (W, H)


def test_size_does_not_decode(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ending in ("png", "jpg", "bmp", "tif", "webp"):
        Image.fromarray(random8(rng, H, W, 3)).save(tmp_path / f"a.{ending}")
    save_bgr(tmp_path / "b.tif", rng.random((H, W, 3)).astype(np.float32))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", refuse)
    monkeypatch.setattr(Image.Image, "load", refuse)
    for path in tmp_path.iterdir():
        assert size(path) == (H, W), path


# Infrared


def test_three_equal_channels_are_one(tmp_path: Path, rng: np.random.Generator) -> None:
    for gray in (random8(rng, H, W), random16(rng, H, W)):
        path = save_bgr(tmp_path / "a.png", np.stack([gray] * 3, axis=-1))
        expected = gray.astype(np.float64) / np.iinfo(gray.dtype).max
        np.testing.assert_allclose(read_infrared(path)[..., 0], expected, atol=1e-7)


def test_nearly_equal_channels_become_their_mean(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = np.stack([rng.integers(20, 200, (H, W))] * 3, axis=-1)
    pixels[..., 1] += 1
    pixels[0, 0, 2] += 9
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    got = read_infrared(tmp_path / "a.png")
    np.testing.assert_allclose(got[..., 0], pixels.mean(axis=2) / 255, atol=1e-6)


def test_gray_coded_as_colour_jpeg_is_infrared(tmp_path: Path, rng: np.random.Generator) -> None:
    gray = smooth8(rng, 40, 60)[..., 0]
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(tmp_path / "a.jpg", quality=70)
    got = read_infrared(tmp_path / "a.jpg")
    assert np.abs(255 * got[..., 0] - gray).mean() < 4


@pytest.mark.parametrize("kind", ["palette", "overlay"])
def test_pseudo_colour_is_refused(tmp_path: Path, kind: str) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (20, 1))
    if kind == "palette":
        pixels = cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[..., ::-1]
    else:
        pixels = np.stack([ramp] * 3, axis=-1)
        pixels[3, 5] = 200, 40, 40
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "hot.png")
    worst = int((pixels.max(axis=2).astype(int) - pixels.min(axis=2)).max())
    with pytest.raises(DataError, match=rf"hot\.png: .*up to {worst} of 255.*gray export"):
        read_infrared(tmp_path / "hot.png")
    assert read_visible(tmp_path / "hot.png").shape == (20, 64, 3)


def test_stretch_is_asked_for(tmp_path: Path, rng: np.random.Generator, unchecked: None) -> None:
    raw = rng.integers(7000, 8200, (40, 50)).astype(np.uint16)
    path = save_bgr(tmp_path / "a.png", raw)
    plain = read_infrared(path)[..., 0]
    np.testing.assert_allclose(plain, raw / 65535, atol=1e-7)
    minmax = read_infrared(path, "minmax")[..., 0]
    np.testing.assert_allclose(minmax, (raw - raw.min()) / np.ptp(raw), atol=1e-4)
    assert minmax.min() == 0 and minmax.max() == 1
    low, high = np.percentile(raw, (0.5, 99.5))
    expected = np.clip((raw - low) / (high - low), 0, 1)
    np.testing.assert_allclose(read_infrared(path, "percentile")[..., 0], expected, atol=1e-4)
    flat = save_bgr(tmp_path / "flat.png", np.full((4, 4), 77, np.uint8))
    assert not read_infrared(flat, "minmax").any()
    with pytest.raises(DataError, match=r"a\.png: stretch = 'max': use one of none, minmax"):
        read_infrared(path, "max")


# Labels


def test_labels_are_indices(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.choice([0, 1, 2, 7, 255], (H, W)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "gray.png")
    palette = Image.fromarray(values)
    palette.putpalette(list(random8(rng, 768)))
    palette.save(tmp_path / "palette.png")
    assert palette.mode == "P"
    save_bgr(tmp_path / "deep.png", values.astype(np.uint16))
    for name in ("gray", "palette", "deep"):
        labels = read_labels(tmp_path / f"{name}.png")
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, values)
    # 1, 2 and 4 bit gray, where readers like to spread the values.
    for depth, packed, expected in ((1, 0xA5, [1, 0, 1, 0]), (2, 0x1B, [0, 1, 2, 3])):
        data = raw_png(4, 1, depth, 0, bytes([0, packed]))
        (tmp_path / "small.png").write_bytes(data)
        np.testing.assert_array_equal(read_labels(tmp_path / "small.png"), [expected])
    (tmp_path / "small.png").write_bytes(raw_png(2, 1, 4, 0, b"\0\x3c"))
    np.testing.assert_array_equal(read_labels(tmp_path / "small.png"), [[3, 12]])


def test_bad_labels_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(random8(rng, H, W, 3)).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"colour\.png: a colour picture, not class indices"):
        read_labels(tmp_path / "colour.png")
    save_bgr(tmp_path / "deep.png", np.full((H, W), 300, np.uint16))
    with pytest.raises(DataError, match=r"deep\.png: label 300: labels are 0\.\.254"):
        read_labels(tmp_path / "deep.png")
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: a JPEG file: save label maps as index PNG"):
        read_labels(tmp_path / "a.jpg")


# What is refused


def damaged(rng: np.random.Generator) -> dict[str, bytes]:
    picture = Image.fromarray(smooth8(rng, 60, 90))
    stream = cv2.imencode(".tif", random16(rng, 60, 90, 3))[1].tobytes()
    return {
        "png": encoded(picture, "PNG"),
        "jpg": encoded(picture, "JPEG"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "bmp": encoded(picture, "BMP"),
        "tif": encoded(picture, "TIFF"),
        "lzw.tif": encoded(picture, "TIFF", compression="tiff_lzw"),
        "deep.tif": stream,
        "webp": encoded(picture, "WEBP"),
    }


NAMES = ["png", "jpg", "progressive.jpg", "bmp", "tif", "lzw.tif", "deep.tif", "webp"]


@pytest.mark.parametrize("name", NAMES)
def test_truncated_files_are_refused_quietly(
    tmp_path: Path, rng: np.random.Generator, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = damaged(rng)[name]
    path = tmp_path / f"cut.{name}"
    path.write_bytes(whole)
    assert decode(path).pixels.shape == (60, 90, 3)
    for length in (len(whole) // 5, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\..*copy the file again"):
            decode(path)
    assert capfd.readouterr().err == ""


def test_half_empty_downloads_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    for name, whole in damaged(rng).items():
        if "jpg" in name or name == "png":
            path = tmp_path / name
            half = len(whole) // 2
            path.write_bytes(whole[:half] + bytes(len(whole) - half))
            # Found before decoding: OpenCV 4 takes such JPEGs and fills them with gray.
            with pytest.raises(DataError, match=r"no end of image|checksum"):
                decode(path)


def test_one_flipped_byte_in_a_png_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    data = bytearray(encoded(Image.fromarray(random8(rng, H, W, 3)), "PNG"))
    data[60] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: damaged at byte 41 \(checksum of IDAT\)"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"an empty file \(0 bytes\)"),
        (b"hello world", r"starts with b'hello wo', which is no PNG, JPEG"),
        (b"GIF89a" + bytes(40), "starts with b'GIF89a"),
        (b"\x89PNG\r\n\x1a\n", "the header says 0 x 0"),
        (b"\xff\xd8\xff" + b"x" * 50, "the header cannot be read"),
        (b"BM" + bytes(60), "the header cannot be read"),
        (b"II*\0\x08\0\0\0", "the header cannot be read"),
        (b"RIFF\xff\0\0\0WEBPVP8 " + b"x" * 60, "truncated at 76 bytes"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "odd.png").write_bytes(data)
    for reader in (decode, size):
        with pytest.raises(DataError, match=rf"odd\.png: {message}"):
            reader(tmp_path / "odd.png")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for reader in (decode, size, read_labels):
        with pytest.raises(DataError, match=r"none\.png: cannot be read \(No such file"):
            reader(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        decode(tmp_path)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_several_pictures_in_one_file_are_refused(
    tmp_path: Path, rng: np.random.Generator, kind: str
) -> None:
    frames = [Image.fromarray(random8(rng, H, W, 3)) for _ in range(2)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    (tmp_path / "film").write_bytes(data)
    with pytest.raises(DataError, match=r"film: an? (animated|TIFF of 2 pages).*export the one"):
        decode(tmp_path / "film")


def test_first_picture_of_a_phone_jpeg(tmp_path: Path, rng: np.random.Generator) -> None:
    first = Image.fromarray(smooth8(rng, 20, 30))
    data = encoded(first, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    (tmp_path / "a.jpg").write_bytes(data)
    assert decode(tmp_path / "a.jpg").pixels.shape == (20, 30, 3)
    assert size(tmp_path / "a.jpg") == (20, 30)


def test_bad_floats_are_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.random((H, W)).astype(np.float32)
    pixels[0, :3] = np.nan
    pixels[1, 0] = np.inf
    save_bgr(tmp_path / "nan.tif", pixels)
    with pytest.raises(DataError, match=r"nan\.tif: 4 pixel values are NaN or infinite"):
        decode(tmp_path / "nan.tif")
    kelvin = np.linspace(-0.5, 310, H * W, dtype=np.float32).reshape(H, W)
    save_bgr(tmp_path / "kelvin.tif", kelvin)
    with pytest.raises(DataError, match=r"kelvin\.tif: float values from -0\.5 to 310: scale"):
        read_infrared(tmp_path / "kelvin.tif")


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        (np.int8, "8-bit signed"),
        (np.int16, "16-bit signed"),
        (np.int32, "32-bit signed"),
        (np.uint32, "32-bit unsigned"),
    ],
)
def test_other_integers_are_refused(tmp_path: Path, dtype: type, found: str) -> None:
    save_bgr(tmp_path / "a.tif", np.arange(H * W).reshape(H, W).astype(dtype))
    with pytest.raises(DataError, match=rf"a\.tif: {found} integers: save as 8 or 16 bit"):
        decode(tmp_path / "a.tif")


def test_errors_cross_process_borders() -> None:
    error = FileError("a.png", "empty", "fill it")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, FileError) and str(again) == "a.png: empty: fill it"
    assert (again.file, again.value, again.remedy) == ("a.png", "empty", "fill it")


# What is written


@pytest.mark.parametrize(
    ("ending", "bits"),
    [
        ("png", 8),
        ("png", 16),
        ("tif", 8),
        ("tif", 16),
        ("TIFF", 16),
        ("bmp", 8),
        ("webp", 8),
    ],
)
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_written_is_read_back(
    tmp_path: Path, rng: np.random.Generator, ending: str, bits: int, channels: int
) -> None:
    full = 2**bits - 1
    levels = rng.integers(0, full + 1, (H, W, channels) if channels else (H, W))
    levels.flat[:2] = 0, full
    path = tmp_path / f"a.{ending}"
    images.write(path, (levels / full).astype(np.float32), bits)
    got = decode(path)
    assert got.bits == bits
    expected = levels[..., 0] if channels == 1 else levels
    pixels = got.pixels
    if ending == "webp" and channels != 3:
        assert (pixels == pixels[..., :1]).all()  # WebP knows no gray.
        pixels = pixels[..., 0]
    np.testing.assert_array_equal(pixels, expected)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_written_jpeg_is_close_and_keeps_colour(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = np.zeros((32, 48, 3), np.float32)
    pixels[:, ::2] = 1, 0, 0  # Halved colour resolution would mix the lines.
    pixels[:, 1::2] = 0, 0, 1
    images.write(tmp_path / "a.jpg", pixels)
    assert np.abs(read_visible(tmp_path / "a.jpg") - pixels).max() < 0.1


def test_levels_are_rounded_not_cut(tmp_path: Path) -> None:
    values = np.array([[0.4999, 0.5001, 99.6, 254.4, 254.6]]) / 255
    images.write(tmp_path / "a.png", values)
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels, [[0, 1, 100, 254, 255]])
    images.write(tmp_path / "b.png", np.array([[1.0000001, -1e-7]], np.float32), 16)
    np.testing.assert_array_equal(decode(tmp_path / "b.png").pixels, [[65535, 0]])


@pytest.mark.parametrize(
    ("name", "image", "bits", "message"),
    [
        ("a.jpg", np.zeros((2, 2)), 16, r"a\.jpg: bits = 16: \.jpg holds 8"),
        ("a.bmp", np.zeros((2, 2)), 16, r"a\.bmp: bits = 16"),
        ("a.webp", np.zeros((2, 2)), 16, r"a\.webp: bits = 16"),
        ("a.png", np.zeros((2, 2)), 12, r"a\.png: bits = 12: use 8 or 16"),
        ("a.gif", np.zeros((2, 2)), 8, r"a\.gif: ending '\.gif': use one of \.bmp"),
        ("a", np.zeros((2, 2)), 8, r"a: ending ''"),
        ("a.png", np.zeros((2, 2, 2)), 8, r"shape \(2, 2, 2\): give \(h, w\)"),
        ("a.png", np.zeros((0, 2)), 8, r"shape \(0, 2, 1\)"),
        ("a.png", np.zeros((2, 2), np.uint8), 8, "an array of uint8: give floats"),
        ("a.png", np.array([[0.0, np.nan]]), 8, r"values from nan to nan: give finite"),
        ("a.png", np.array([[0.0, 1.01]]), 8, r"values from 0 to 1\.01"),
        ("a.png", np.array([[-0.01, 0.5]]), 8, r"values from -0\.01 to 0\.5"),
        ("a.webp", np.zeros((1, 16400)), 8, r"a\.webp: 1 x 16400 pixels cannot be stored"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, unchecked: None, name: str, image: np.ndarray, bits: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        images.write(tmp_path / name, image, bits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "where", "remedy"),
    [
        (errno.ENOSPC, "fsync", "free some space"),
        (errno.EROFS, "replace", "choose a path that you may write to"),
    ],
)
def test_a_refusing_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str, remedy: str
) -> None:
    path = tmp_path / "a.png"
    images.write(path, np.full((4, 4), 0.2))
    before = path.read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, where, refuse)
        with pytest.raises(DataError, match=rf"a\.png: cannot be written .*: {remedy}"):
            images.write(path, np.full((4, 4), 0.7))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_really_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open

    def onto_full(self: Path, mode: str = "r", **options: Any) -> Any:
        return real_open(Path("/dev/full"), "wb") if "x" in mode else real_open(self, mode)

    monkeypatch.setattr(Path, "open", onto_full)
    with pytest.raises(DataError, match=r"a\.png: cannot be written \(No space left.*free some"):
        images.write(tmp_path / "a.png", np.random.default_rng(0).random((200, 200)))
    assert not list(tmp_path.iterdir())


def test_writing_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: cannot be written .*create the folder first"):
        images.write(tmp_path / "none" / "a.png", np.zeros((2, 2)))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(DataError, match=r"b\.png: cannot be written \(Is a directory\)"):
        images.write(tmp_path / "b.png", np.zeros((2, 2)))
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]
