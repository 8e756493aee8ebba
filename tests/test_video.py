"""Fusing videos: levels, times and sound that stay, early ends that lose nothing, memory."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_network
from jaxfuse import cli, weights
from jaxfuse.config import ConfigError, UserError
from jaxfuse.data import images
from jaxfuse.data.images import FileError
from jaxfuse.infer import levels, video
from jaxfuse.infer.predict import Fuser, ImageError, fuse
from jaxfuse.infer.video import files, frames, reading, writing
from jaxfuse.infer.video.files import VideoError, fuse_videos
from jaxfuse.infer.video.lanes import Halted, Lane, Worker
from jaxfuse.models import Compute, Fused, Model

HEIGHT, WIDTH = 32, 48
RATE = 25
SOUND = 48000


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    model = tiny_network.create(Compute())
    return Fuser(tiny_network.NAME, model.init(jax.random.key(0)), {}, model)


def _mix(share: float) -> Fuser:
    """A network that shows `share` of the visible image and the rest of the infrared one."""

    def apply(params, visible, infrared) -> Fused:
        mixed = params["share"] * visible + (1 - params["share"]) * infrared
        return Fused(mixed, mixed, {})

    return Fuser("mix", {"share": jnp.float32(share)}, {}, Model("mix", lambda key: {}, apply))


VISIBLE, INFRARED = _mix(1.0), _mix(0.0)


def write_video(
    path: Path,
    planes: list[np.ndarray] | int = 6,
    *,
    pixels: str = "yuv420p",
    codec: str = "ffv1",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    rate: int | Fraction = RATE,
    times: list[int] | None = None,
    ticks: Fraction | None = None,
    full: bool = False,
    sound: str = "",
    seconds: float | None = None,
    seed: int = 0,
    matrix: list[int] | None = None,
    options: dict[str, str] | None = None,
    **tags: int,
) -> Path:
    """A video of noise, or of given lumas. times: in ticks, by default of 1 / rate.

    seconds: of sound, by default as long as the video.
    """
    rng = np.random.default_rng(seed)
    given = planes if isinstance(planes, list) else [None] * planes
    if isinstance(planes, list):
        size = planes[0].shape[:2]
    ticks = ticks or 1 / Fraction(rate)
    times = times or list(range(len(given)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], pixels
        stream.codec_context.time_base = ticks
        stream.codec_context.color_range = 2 if full else 1
        stream.codec_context.options = options or {}
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if matrix:
            stream.set_display_matrix(matrix)
        heard = container.add_stream(sound, SOUND, layout="mono") if sound else None
        until = (max(times) + 1) * ticks if seconds is None else seconds
        said = 0
        for plane, when in zip(given, times, strict=True):
            while heard and said < min(float(when * ticks), until) * SOUND:
                said += _say(container, heard, said)
            frame = av.VideoFrame(size[1], size[0], pixels)
            _fill(frame, plane, rng)
            frame.color_range = 2 if full else 1
            frame.pts, frame.time_base = when, ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        while heard and said < until * SOUND:
            said += _say(container, heard, said)
        if heard:
            container.mux(heard.encode(None))
    return path


def _say(container, stream, said: int) -> int:
    wave = (3000 * np.sin(np.arange(said, said + 1024) / 20)).astype(np.float32) / 32768
    format_ = stream.codec_context.format.name
    frame = av.AudioFrame.from_ndarray(
        wave[None] if "flt" in format_ else (wave[None] * 32767).astype(np.int16),
        format=format_,
        layout="mono",
    )
    frame.sample_rate, frame.pts, frame.time_base = SOUND, said, Fraction(1, SOUND)
    container.mux(stream.encode(frame))
    return 1024


def _fill(frame: av.VideoFrame, luma: np.ndarray | None, rng: np.random.Generator) -> None:
    deep = frame.format.components[0].bits > 8
    for index, plane in enumerate(frame.planes):
        rows = np.frombuffer(plane, "<u2" if deep else np.uint8).reshape(plane.height, -1)
        top = 2 ** frame.format.components[0].bits
        if index == 0 and luma is not None:
            rows[:, : luma.shape[1]] = luma
        else:
            rows[:] = rng.integers(top // 8, top * 7 // 8, rows.shape)


def write_infrared(path: Path, planes: list[np.ndarray] | int = 6, **options) -> Path:
    options = {"pixels": "gray", "full": True, "seed": 1, **options}
    return write_video(path, planes, **options)


def read_planes(path: Path, index: int = 0) -> list[np.ndarray]:
    """One plane of each frame, as stored."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            plane = frame.planes[index]
            deep = frame.format.components[0].bits > 8
            rows = np.frombuffer(plane, "<u2" if deep else np.uint8).reshape(plane.height, -1)
            found.append(rows[:, : plane.width].copy())
    return found


def read_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def read_sound(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(audio=0)
            if packet.size
        ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """An infrared and a visible video without loss."""
    return write_infrared(tmp_path / "ir.mkv"), write_video(tmp_path / "vi.mkv")


# What is in a frame


def test_every_frame_is_fused_and_keeps_its_colours(tmp_path, pair, fuser):
    infrared, visible = pair
    summary = fuse_videos(infrared, visible, tmp_path / "out.mkv", fuser, codec="ffv1")
    assert (summary.target, summary.frames, summary.notes) == (tmp_path / "out.mkv", 6, [])
    assert names(tmp_path) == {"ir.mkv", "vi.mkv", "out.mkv"}
    for found, luma, infrared_luma in zip(
        read_planes(summary.target), read_planes(visible), read_planes(infrared), strict=True
    ):
        unit = np.clip((luma.astype(np.float32) - 16) / 219, 0, 1)
        wanted = 16 + 219 * fuse(unit, infrared_luma.astype(np.float32) / 255, fuser)
        assert np.abs(found - wanted).max() <= 0.51
        assert np.abs(found.astype(int) - luma).max() > 20
    for index in (1, 2):
        for found, seen in zip(
            read_planes(summary.target, index), read_planes(visible, index), strict=True
        ):
            np.testing.assert_array_equal(found, seen)


@pytest.mark.parametrize(
    ("pixels", "full"),
    [
        ("yuv420p", False),
        ("yuv420p", True),
        ("yuv422p10le", False),
        ("yuv444p10le", True),
        ("gray", True),
        ("gray", False),
        ("gray16le", True),
    ],
)
def test_levels_go_there_and_back_exactly(tmp_path, pixels, full):
    """A network that shows the visible image gives back every level that its range has."""
    bits = av.VideoFormat(pixels).components[0].bits
    top = 2**bits
    luma = np.linspace(0, top - 1, HEIGHT * WIDTH).round().reshape(HEIGHT, WIDTH).astype(int)
    if bits == 8:
        luma = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256
    visible = write_video(
        tmp_path / "vi.mkv", [luma, luma.T.reshape(luma.shape)], pixels=pixels, full=full
    )
    infrared = write_infrared(tmp_path / "ir.mkv", 2)
    fuse_videos(infrared, visible, tmp_path / "out.mkv", VISIBLE, codec="ffv1")
    wanted = luma if full else np.clip(luma, 16 * top // 256, 235 * top // 256)
    found = read_planes(tmp_path / "out.mkv")[0]
    np.testing.assert_array_equal(found, wanted)
    with av.open(str(tmp_path / "out.mkv")) as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == pixels
        # FFV1 in Matroska: the container says which range it is.
        assert frame.color_range == (2 if full else 1)


def test_gray_with_few_levels_keeps_them_in_h264(tmp_path):
    """Written with colours, which every player shows; crf 0 loses nothing."""
    luma = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256
    for full in (True, False):
        write_video(tmp_path / "vi.mkv", [luma], pixels="gray", full=full)
        infrared = write_infrared(tmp_path / "ir.mkv", 1)
        out = tmp_path / "out.mp4"
        fuse_videos(infrared, tmp_path / "vi.mkv", out, VISIBLE, crf=0, overwrite=True)
        np.testing.assert_array_equal(read_planes(out)[0], luma if full else np.clip(luma, 16, 235))
        assert {int(x) for x in np.unique(read_planes(out, 1)[0])} == {128}


def test_infrared_of_every_kind_is_spread_by_its_range(tmp_path):
    """Black and white of the infrared file are black and white of the network."""
    visible = write_video(tmp_path / "vi.mkv", 1, full=True)
    ramp = np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))
    for number, (pixels, full, low, high) in enumerate(
        [
            ("gray", True, 0, 255),
            ("gray16le", True, 0, 65535),
            ("gray10le", False, 64, 940),
            ("yuv420p", False, 16, 235),
            ("yuv420p", True, 0, 255),
        ]
    ):
        luma = np.rint(low + (high - low) * ramp)
        infrared = tmp_path / f"ir{number}.mkv"
        frame = _neutral(luma, pixels)
        write_frames(infrared, [frame], "ffv1", full)
        out = tmp_path / f"out{number}.mkv"
        fuse_videos(infrared, visible, out, INFRARED, codec="ffv1")
        assert np.abs(read_planes(out)[0] - 255 * ramp).max() <= 1.0, pixels


def _neutral(luma: np.ndarray, pixels: str) -> av.VideoFrame:
    frame = av.VideoFrame(luma.shape[1], luma.shape[0], pixels)
    deep = frame.format.components[0].bits > 8
    for index, plane in enumerate(frame.planes):
        rows = np.frombuffer(plane, "<u2" if deep else np.uint8).reshape(plane.height, -1)
        rows[:] = 128
        if index == 0:
            rows[:, : luma.shape[1]] = luma
    return frame


def write_frames(path: Path, given: list[av.VideoFrame], codec: str, full: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, RATE)
        stream.width, stream.height = given[0].width, given[0].height
        stream.pix_fmt = given[0].format.name
        stream.codec_context.color_range = 2 if full else 1
        for number, frame in enumerate(given):
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_rgb_videos_are_fused_like_pictures(tmp_path, fuser):
    rng = np.random.default_rng(0)
    rgb = rng.integers(60, 190, (HEIGHT, WIDTH, 3), np.uint8)
    levels = rng.integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="bgr0")
    visible = write_frames(tmp_path / "vi.mkv", [frame], "ffv1")
    gray = av.VideoFrame.from_ndarray(np.repeat(levels[:, :, None], 3, 2), format="rgb24")
    infrared = write_frames(tmp_path / "ir.mkv", [gray.reformat(format="bgr0")], "ffv1")
    fuse_videos(infrared, visible, tmp_path / "out.mkv", fuser, codec="ffv1")
    with av.open(str(tmp_path / "out.mkv")) as container:
        found = next(container.decode(video=0))
        assert (found.format.name, found.color_range, found.colorspace) == ("yuv444p", 1, 6)
        found = found.to_ndarray(format="rgb24").astype(int)
    wanted = fuse(rgb, levels, fuser).astype(int)
    # Where no RGB colour has that luma, pictures lose saturation and videos clip.
    inside = ((wanted > 8) & (wanted < 247)).all(2)
    assert inside.mean() > 0.5
    assert np.abs(found - wanted)[inside].max() <= 3


def test_a_pseudo_colour_infrared_is_refused_by_frame(tmp_path, fuser):
    visible = write_video(tmp_path / "vi.mkv", 4)
    infrared = write_video(tmp_path / "ir.mkv", 4)
    with pytest.raises(FileError, match=r"ir\.mkv: pseudo-colour infrared in frame 1, .*gray"):
        fuse_videos(infrared, visible, tmp_path / "out.mkv", fuser)
    gray = np.full((HEIGHT, WIDTH), 90)
    given = [_neutral(gray, "yuv420p") for _ in range(4)]
    np.frombuffer(given[2].planes[1], np.uint8)[:40] = 200
    write_frames(infrared, given, "ffv1")
    with pytest.raises(
        VideoError, match=r"in frame 3, .*: .*; fused until then: 2 frames, in .*\.partial"
    ):
        fuse_videos(infrared, visible, tmp_path / "out.mkv", fuser)


@pytest.mark.parametrize("size", [(31, 48), (32, 47), (31, 47)])
def test_odd_sizes_stay(tmp_path, size):
    visible = write_video(tmp_path / "vi.mkv", 2, size=size)
    infrared = write_infrared(tmp_path / "ir.mkv", 2, size=size)
    summary = fuse_videos(infrared, visible, tmp_path / "out.mp4", VISIBLE, crf=0)
    seen, found = read_planes(visible)[0], read_planes(summary.target)[0]
    assert found.shape == size
    np.testing.assert_array_equal(found, np.clip(seen, 16, 235))
    (note,) = summary.notes
    assert f"yuv420p of libx264 has no {size[1]} x {size[0]} pixels" in note
    assert "written as yuv4" in note


def test_no_flicker(tmp_path, fuser):
    """Where nothing changes nothing changes, whatever one pixel does."""
    rng = np.random.default_rng(3)
    both = rng.integers(20, 230, (2, HEIGHT, WIDTH))
    visible_lumas, infrared_lumas = ([luma.copy() for _ in range(5)] for luma in both)
    for number, level in enumerate((0, 255, 128, 255, 3)):
        visible_lumas[number][10, 10] = infrared_lumas[number][10, 10] = level
    colours = [_neutral(luma, "yuv420p") for luma in visible_lumas]
    visible = write_frames(tmp_path / "vi.mkv", colours, "ffv1", full=True)
    infrared = write_infrared(tmp_path / "ir.mkv", infrared_lumas)
    fuse_videos(infrared, visible, tmp_path / "out.mkv", fuser, codec="ffv1")
    found = np.stack(read_planes(tmp_path / "out.mkv")).astype(int)
    changed = np.ptp(found, axis=0) > 0
    assert changed[10, 10]
    changed[8:13, 8:13] = False  # Two 3x3 convolutions reach two pixels.
    assert not changed.any()


def test_stretches_that_would_flicker(tmp_path, pair, fuser):
    with pytest.raises(ConfigError, match=r"stretch = 'minmax': .*flicker: leave it away"):
        fuse_videos(*pair, tmp_path / "out.mkv", fuser, stretch="minmax")
    low = [np.full((HEIGHT, WIDTH), level) for level in (1000, 1400, 1200)]
    low[0][0, 0], low[1][0, 0] = 900, 1700
    infrared = write_infrared(tmp_path / "dark.mkv", low, pixels="gray16le")
    visible = write_video(tmp_path / "three.mkv", 3, full=True)
    out = tmp_path / "out.mkv"
    options = {"codec": "ffv1", "overwrite": True}
    (note,) = fuse_videos(infrared, visible, out, INFRARED, **options).notes
    assert "dark.mkv: its 16-bit values reach from 0.014 to 0.026 of 1: it looks black" in note
    for how, ends in (("minmax", (900, 1700)), ("percentile", (1000, 1400))):
        summary = fuse_videos(infrared, visible, out, INFRARED, infrared_stretch=how, **options)
        assert summary.notes == []
        for found, luma in zip(read_planes(out), low, strict=True):
            wanted = 255 * np.clip((luma - ends[0]) / (ends[1] - ends[0]), 0, 1)
            assert np.abs(found - wanted).max() <= 0.51


def test_a_constant_infrared_is_black(tmp_path):
    flat = [np.full((HEIGHT, WIDTH), 7)]
    infrared = write_infrared(tmp_path / "ir.mkv", flat)
    visible = write_video(tmp_path / "vi.mkv", 1, full=True)
    out = tmp_path / "out.mkv"
    fuse_videos(infrared, visible, out, INFRARED, codec="ffv1", infrared_stretch="minmax")
    assert read_planes(out)[0].max() == 0


# Files: kinds, tags, turns


@pytest.mark.parametrize(
    ("ending", "codec", "stored"),
    [
        (".mp4", "auto", "h264"),
        (".m4v", "auto", "h264"),
        (".mov", "mpeg4", "mpeg4"),
        (".mkv", "libx265", "hevc"),
        (".webm", "auto", "vp9"),
        (".avi", "auto", "h264"),
        (".avi", "mpeg4", "mpeg4"),
        (".mp4", "libvpx-vp9", "vp9"),
    ],
)
def test_kinds_of_files(tmp_path, fuser, ending, codec, stored):
    smooth = [np.add.outer(np.arange(64), np.arange(96)) + 40 + i for i in range(12)]
    given = [_neutral(luma, "yuv420p") for luma in smooth]
    visible = write_frames(tmp_path / "vi.mkv", given, "ffv1")
    infrared = write_infrared(tmp_path / "ir.mkv", 12, size=(64, 96))
    out = tmp_path / f"out{ending}"
    summary = fuse_videos(infrared, visible, out, VISIBLE, codec=codec)
    assert summary.frames == 12 and summary.notes == []
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name.replace("libvpx-", ""), stream.average_rate) == (
            stored,
            RATE,
        )
        length = stream.duration * stream.time_base if stream.duration else Fraction(12, RATE)
        assert length == Fraction(12, RATE)
    for found, wanted in zip(read_planes(out), smooth, strict=True):
        assert np.abs(found - wanted).mean() < 3
    if ending != ".avi":
        assert read_times(out) == [Fraction(i, RATE) for i in range(12)]


def test_quality_and_effort_reach_the_encoder(tmp_path, fuser):
    visible = write_video(tmp_path / "vi.mkv", size=(64, 96))
    infrared = write_infrared(tmp_path / "ir.mkv", size=(64, 96))

    def size(**options) -> int:
        fuse_videos(infrared, visible, tmp_path / "o.mkv", VISIBLE, overwrite=True, **options)
        return (tmp_path / "o.mkv").stat().st_size

    for codec in ("libx264", "libx265", "libvpx-vp9", "mpeg4"):
        assert size(codec=codec, crf=45) < 0.7 * size(codec=codec) < size(codec=codec, crf=4)
    assert size() == size(codec="libx264", crf=18, preset="veryfast")
    assert size(preset="ultrafast") != size(preset="slow")


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm"])
def test_a_turned_video_stays_turned(tmp_path, ending):
    quarter = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    visible = write_video(tmp_path / "vi.mp4", 2, codec="mpeg4", matrix=quarter)
    infrared = write_infrared(tmp_path / "ir.mkv", 2, size=(WIDTH, HEIGHT))
    out = tmp_path / f"out{ending}"
    codec = "auto" if ending == ".webm" else "libx264"
    fuse_videos(infrared, visible, out, INFRARED, codec=codec, crf=1)
    with av.open(str(visible)) as before, av.open(str(out)) as after:
        first, second = (next(c.decode(video=0)) for c in (before, after))
        assert first.rotation == second.rotation != 0
        assert (second.height, second.width) == (HEIGHT, WIDTH)
    # The upright infrared picture lies in the turned one as the visible one does.
    upright = np.rot90(read_planes(out)[0], first.rotation // 90)
    wanted = 16 + read_planes(infrared)[0] * (219 / 255)
    assert np.abs(upright - wanted).mean() < 3


def test_turns_that_cannot_be(tmp_path, fuser):
    quarter = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    visible = write_video(tmp_path / "vi.mp4", 2, codec="mpeg4", matrix=quarter)
    infrared = write_infrared(tmp_path / "ir.mkv", 2, size=(WIDTH, HEIGHT))
    with pytest.raises(FileError, match=r"\.avi cannot say that the picture is turned"):
        fuse_videos(infrared, visible, tmp_path / "out.avi", fuser)
    flat = write_infrared(tmp_path / "flat.mkv", 2)
    with pytest.raises(
        FileError,
        match=r"vi\.mp4: is 32 x 48 pixels \(width x height\), .*flat\.mkv is 48 x 32",
    ):
        fuse_videos(flat, visible, tmp_path / "out.mp4", fuser)
    assert names(tmp_path) == {"vi.mp4", "ir.mkv", "flat.mkv"}


@pytest.mark.parametrize(("k", "flip"), [(k, flip) for k in range(4) for flip in (False, True)])
def test_every_turn_by_quarters(k, flip):
    """Pixels stored under a matrix and shown by it are those stored upright."""
    turn = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k)
    turn = turn @ np.diag([-1 if flip else 1, 1])
    stored = np.arange(6).reshape(2, 3)
    points = np.array([(x, y) for y in range(2) for x in range(3)]) @ turn
    points -= points.min(0)
    shown = np.zeros(points.max(0)[::-1] + 1, int)
    for (x, y), level in zip(points, stored.ravel(), strict=True):
        shown[y, x] = level
    matrix = np.eye(3, dtype=np.int32)
    matrix[:2, :2] = turn * 65536
    np.testing.assert_array_equal(files.planes.turned(stored, matrix, None), shown)
    np.testing.assert_array_equal(files.planes.turned(shown, None, matrix), stored)


def test_tags_of_colour_and_shape_stay(tmp_path, pair):
    tags = {"colorspace": 1, "color_primaries": 1, "color_trc": 1}
    visible = write_video(
        tmp_path / "tagged.mp4",
        2,
        codec="libx264",
        full=True,
        sample_aspect_ratio=Fraction(4, 3),
        **tags,
    )
    out = tmp_path / "out.mp4"
    fuse_videos(write_infrared(tmp_path / "two.mkv", 2), visible, out, VISIBLE)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert stream.sample_aspect_ratio == Fraction(4, 3)
        assert {name: getattr(frame, name) for name in tags} == tags
        assert frame.color_range == 2


def test_what_an_encoder_cannot_hold_is_said(tmp_path):
    visible = write_video(tmp_path / "vi.mkv", 2, pixels="yuv444p10le")
    infrared = write_infrared(tmp_path / "ir.mkv", 2)
    (note,) = fuse_videos(infrared, visible, tmp_path / "a.mp4", VISIBLE, codec="mpeg4").notes
    assert "a.mp4: written as yuv420p: mpeg4 has no yuv444p10le, as " in note
    assert fuse_videos(infrared, visible, tmp_path / "b.mp4", VISIBLE).notes == []
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert next(container.decode(video=0)).format.name == "yuv444p10le"
    with pytest.raises(FileError, match=r"\.webm cannot hold video of libx264: write"):
        fuse_videos(infrared, visible, tmp_path / "c.webm", VISIBLE, codec="libx264")
    with pytest.raises(FileError, match="48 x 32 pixels, but libx265 needs 64 a side: choose"):
        fuse_videos(infrared, visible, tmp_path / "c.mp4", VISIBLE, codec="libx265")


# Sound


@pytest.mark.parametrize(
    ("ending", "sound"), [(".mp4", "aac"), (".mkv", "flac"), (".webm", "libopus")]
)
def test_sound_is_copied(tmp_path, ending, sound):
    codec = "libvpx-vp9" if ending == ".webm" else "mpeg4"
    visible = write_video(tmp_path / f"vi{ending}", 30, codec=codec, sound=sound)
    infrared = write_infrared(tmp_path / "ir.mkv", 30, sound="flac")
    out = tmp_path / f"out{ending}"
    assert fuse_videos(infrared, visible, out, VISIBLE).notes == []
    assert len(read_sound(visible)) > 10
    assert read_sound(out) == read_sound(visible)
    assert read_times(out) == read_times(visible)
    fuse_videos(infrared, visible, out, VISIBLE, audio=False, overwrite=True)
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_sound_of_the_infrared_file_where_the_visible_has_none(tmp_path):
    """Moved with the pictures: both first frames belong together."""
    visible = write_video(tmp_path / "vi.mkv", 10, times=list(range(5, 15)))
    infrared = write_infrared(tmp_path / "ir.mkv", 10, sound="flac", seconds=0.4)
    summary = fuse_videos(infrared, visible, tmp_path / "out.mkv", VISIBLE, codec="ffv1")
    (note,) = summary.notes
    assert "begins at 0.20 s" in note and "taken to belong together" in note
    before, after = read_sound(infrared), read_sound(summary.target)
    assert [data for _, data in after] == [data for _, data in before] != []
    for (was, _), (now, _) in zip(before, after, strict=True):
        assert abs(now - was - Fraction(1, 5)) <= Fraction(1, 1000)
    assert read_times(summary.target) == read_times(visible)


def test_sound_that_a_container_cannot_hold(tmp_path, fuser):
    visible = write_video(tmp_path / "vi.mp4", 3, codec="mpeg4", sound="aac")
    infrared = write_infrared(tmp_path / "ir.mkv", 3)
    message = r"out\.webm: \.webm cannot hold sound of aac: write \.mkv, .* --no-audio"
    with pytest.raises(FileError, match=message):
        fuse_videos(infrared, visible, tmp_path / "out.webm", fuser)
    assert names(tmp_path) == {"vi.mp4", "ir.mkv"}
    fuse_videos(infrared, visible, tmp_path / "out.webm", fuser, audio=False)


# Times


def test_varying_times_stay(tmp_path):
    times = [0, 40, 47, 130, 131, 400, 777]
    for ending, ticks in ((".mkv", Fraction(1, 1000)), (".mp4", Fraction(1, 90000))):
        here = [round(Fraction(when, 1000) / ticks) for when in times]
        visible = write_video(tmp_path / f"vi{ending}", 7, times=here, ticks=ticks, codec="libx264")
        infrared = write_infrared(tmp_path / "ir.mkv", 7, times=times, ticks=Fraction(1, 1000))
        out = tmp_path / f"out{ending}"
        fuse_videos(infrared, visible, out, VISIBLE, match="number", overwrite=True)
        assert read_times(out) == read_times(visible)
        with av.open(str(visible)) as before, av.open(str(out)) as after:
            rates = {c.streams.video[0].average_rate for c in (before, after)}
            assert len(rates) == 1


def test_varying_times_that_avi_cannot_hold(tmp_path):
    """MP4 has a table of its times: refused before anything is fused. Of Matroska the frames before
    stay.
    """
    infrared = write_infrared(tmp_path / "ir.mkv", 20)
    for ending, ticks in ((".mp4", Fraction(1, 90000)), (".mkv", Fraction(1, 1000))):
        times = [round((i + 0.5 * (i >= 15)) / RATE / ticks) for i in range(20)]
        visible = write_video(
            tmp_path / f"vi{ending}", 20, times=times, ticks=ticks, codec="libx264"
        )
        with pytest.raises(UserError, match=r"frame rate varies .*AVI cannot hold that") as error:
            fuse_videos(infrared, visible, tmp_path / "out.avi", VISIBLE, match="number")
        if ending == ".mp4":
            assert isinstance(error.value, FileError)
            assert not any(name.startswith("out") for name in names(tmp_path))
        else:
            assert isinstance(error.value, VideoError)
            assert "fused until then: 15 frames, in" in str(error.value)
            assert len(read_planes(tmp_path / "out.partial.avi")) == 15


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24), Fraction(9), Fraction(60)])
def test_frame_rates_stay(tmp_path, rate):
    visible = write_video(tmp_path / "vi.mp4", 8, rate=rate, codec="libx264")
    infrared = write_infrared(tmp_path / "ir.mkv", 8, rate=rate)
    for ending in (".mp4", ".mkv", ".avi"):
        out = tmp_path / f"out{ending}"
        assert fuse_videos(infrared, visible, out, VISIBLE).notes == []
        with av.open(str(out)) as container:
            assert container.streams.video[0].average_rate == rate
        if ending == ".mp4":
            assert read_times(out) == read_times(visible)


@pytest.mark.parametrize("ending", [".avi", ".ts", ".flv", ".mpg"])
def test_other_kinds_are_read(tmp_path, ending):
    """Frames come in the order they are shown, also where the file numbers them otherwise."""
    bars = []
    for i in range(12):
        luma = np.full((HEIGHT, WIDTH), 40)
        luma[:, 4 * i : 4 * i + 4] = 220
        bars.append(_neutral(luma, "yuv420p"))
    codec = "mpeg2video" if ending == ".mpg" else "libx264"
    visible = write_frames(tmp_path / f"vi{ending}", bars, codec)
    infrared = write_infrared(tmp_path / "ir.mkv", 12)
    out = tmp_path / "out.mkv"
    summary = fuse_videos(infrared, visible, out, VISIBLE, codec="ffv1")
    assert summary.frames == 12
    assert [int(plane.mean(0).argmax()) // 4 for plane in read_planes(out)] == list(range(12))
    steps = np.diff([float(when) for when in read_times(out)])
    assert np.abs(steps - 1 / RATE).max() <= 0.001


def levels_of(path: Path) -> list[int]:
    return [int(np.median(plane)) for plane in read_planes(path)]


def flat_infrared(path: Path, count: int, **options) -> Path:
    """Frame i is all 2 i + 20."""
    return write_infrared(
        path, [np.full((HEIGHT, WIDTH), 2 * i + 20) for i in range(count)], **options
    )


def test_frames_are_matched_by_time(tmp_path):
    """A thermal camera of 9 frames a second beside 30."""
    visible = write_video(tmp_path / "vi.mkv", 30, rate=30, full=True)
    infrared = flat_infrared(tmp_path / "ir.mkv", 9, rate=9)
    summary = fuse_videos(infrared, visible, tmp_path / "out.mkv", INFRARED, codec="ffv1")
    times = read_times(infrared)
    # The first of the smallest: where two are equally near, the earlier one.
    nearest = [int(np.argmin([abs(t - when) for t in times])) for when in read_times(visible)]
    assert levels_of(summary.target) == [2 * i + 20 for i in nearest]
    (note,) = summary.notes
    assert "has 30 frames a second" in note and "--match number" in note
    infrared = flat_infrared(tmp_path / "fast.mkv", 60, rate=60)
    out = tmp_path / "fast_out.mkv"
    fuse_videos(infrared, visible, out, INFRARED, codec="ffv1")
    assert levels_of(out) == [4 * i + 20 for i in range(30)]


def test_frames_are_matched_by_number(tmp_path):
    visible = write_video(tmp_path / "vi.mkv", 6, rate=30, full=True)
    infrared = flat_infrared(tmp_path / "ir.mkv", 6, rate=9)
    summary = fuse_videos(
        infrared, visible, tmp_path / "out.mkv", INFRARED, codec="ffv1", match="number"
    )
    assert levels_of(summary.target) == [2 * i + 20 for i in range(6)]
    assert summary.notes == []


@pytest.mark.parametrize("match", ["time", "number"])
@pytest.mark.parametrize(("visible_count", "infrared_count"), [(20, 12), (12, 20)])
def test_the_result_ends_where_either_does(tmp_path, match, visible_count, infrared_count):
    visible = write_video(tmp_path / "vi.mkv", visible_count, full=True, sound="flac")
    infrared = flat_infrared(tmp_path / "ir.mkv", infrared_count)
    out = tmp_path / "out.mkv"
    summary = fuse_videos(infrared, visible, out, INFRARED, codec="ffv1", match=match)
    assert levels_of(out) == [2 * i + 20 for i in range(12)]
    (note,) = summary.notes
    longer = "vi.mkv" if visible_count > infrared_count else "ir.mkv"
    assert f"{longer} goes on" in note and "0.48 s" in note
    end = Fraction(12, RATE)
    before, after = read_sound(visible), read_sound(out)
    assert after == before[: len(after)]
    assert after[-1][0] >= end - Fraction(1, 20)
    if visible_count > infrared_count:
        assert after[-1][0] < end + Fraction(1, 10) < before[-1][0]


def test_times_that_stand_still_are_moved_and_said(tmp_path):
    """Frames are never dropped: a frame with the time of the one before comes a tick later."""
    visible = tmp_path / "vi.nut"
    write_video(visible, 4, times=[0, 40, 80, 120], ticks=Fraction(1, 1000))
    reader = reading.VideoReader(visible)
    frames_ = list(reader.items())
    reader.close()
    again = reading.VideoReader(visible)
    for frame in frames_[1:]:
        frame.pts = 40
    again.read, again._last = 1, 0
    assert [again._timed(frame).pts for frame in frames_[1:]] == [40, 41, 42]
    assert again.unmoved == 2
    again.close()


# Early ends


def damaged(path: Path, ending: str) -> Path:
    """A video of 40 frames whose middle is gone."""
    whole = write_video(path.with_name(f"whole{ending}"), 40, codec="mpeg4", full=False)
    data = bytearray(whole.read_bytes())
    if ending == ".mp4":
        data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)
    whole.unlink()
    return path


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("which", ["visible", "infrared"])
def test_frames_before_the_damage_are_kept(tmp_path, ending, which):
    bad = damaged(tmp_path / f"bad{ending}", ending)
    whole = (
        write_infrared(tmp_path / "ir.mkv", 40)
        if which == "visible"
        else write_video(tmp_path / "vi.mkv", 40)
    )
    if which == "infrared":
        gray_copy(bad, ending)
    pair = (whole, bad) if which == "visible" else (bad, whole)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"mine")
    with pytest.raises(VideoError) as error:
        fuse_videos(*pair, out, VISIBLE, overwrite=True)
    found = len(read_planes(tmp_path / "out.partial.mp4"))
    said = str(error.value)
    assert 5 < found < 40
    assert f"bad{ending}: damaged at frame {found + 1} (" in said
    assert f"copy the file again from its source; fused until then: {found} frames, in " in said
    assert said.endswith("out.partial.mp4") and "\n" not in said
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("how", ["minmax", "percentile"])
def test_a_damaged_infrared_is_spread_by_the_range_of_the_frames_before(tmp_path, how):
    bad = tmp_path / "bad.mkv"
    gray_copy(bad, ".mkv")
    visible = write_video(tmp_path / "vi.mkv", 40, full=True)
    options = {"codec": "ffv1", "infrared_stretch": how}
    with pytest.raises(VideoError, match=r"bad\.mkv: damaged at frame \d+ .*fused until") as error:
        fuse_videos(bad, visible, tmp_path / "out.mkv", INFRARED, **options)
    found = read_planes(tmp_path / "out.partial.mkv")
    assert 5 < len(found) < 40 and f"fused until then: {len(found)} frames, in" in str(error.value)
    lumas = np.stack(_good_planes(bad))
    ends = (lumas.min(), lumas.max())
    if how == "percentile":
        ends = np.quantile(lumas, (0.005, 0.995), method="inverted_cdf")
    wanted = 255 * np.clip((lumas - float(ends[0])) / (float(ends[1]) - ends[0]), 0, 1)
    assert np.abs(np.stack(found) - wanted).max() <= 0.51
    # A result that ends before the damage is whole; the range is still that of a part.
    short = write_video(tmp_path / "short.mkv", 4, full=True)
    summary = fuse_videos(bad, short, tmp_path / "short_out.mkv", INFRARED, **options)
    assert summary.frames == 4
    assert any(
        "bad.mkv: damaged at frame" in note and note.endswith("range is that of the frames before")
        for note in summary.notes
    )


def test_a_pseudo_colour_infrared_has_no_range(tmp_path):
    infrared = write_video(tmp_path / "ir.mkv", 4)
    visible = write_video(tmp_path / "vi.mkv", 4)
    with pytest.raises(FileError, match=r"ir\.mkv: pseudo-colour infrared in frame 1, "):
        fuse_videos(infrared, visible, tmp_path / "out.mkv", VISIBLE, infrared_stretch="minmax")
    assert names(tmp_path) == {"ir.mkv", "vi.mkv"}


def _good_planes(path: Path) -> list[np.ndarray]:
    """Lumas of the frames before the damage."""
    reader, found = reading.VideoReader(path), []
    with contextlib.suppress(FileError):
        for frame in reader.items():
            found.append(files.planes.plane(frame, reader.pixel_format).copy())
    reader.close()
    return found


def gray_copy(path: Path, ending: str) -> None:
    """Writes a damaged gray video there."""
    gray = [
        _neutral(np.random.default_rng(i).integers(20, 230, (HEIGHT, WIDTH)), "yuv420p")
        for i in range(40)
    ]
    write_frames(path, gray, "mpeg4")
    data = bytearray(path.read_bytes())
    if ending == ".mp4":
        data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)


def test_a_video_that_changes_its_size_ends_there(tmp_path, fuser):
    visible = tmp_path / "vi.mkv"
    with av.open(str(visible), "w") as container:
        stream = container.add_stream("mjpeg", RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        other = av.CodecContext.create("mjpeg", "w")
        other.width, other.height, other.pix_fmt = 64, 64, "yuvj420p"
        other.time_base = Fraction(1, RATE)
        for number in range(8):
            small = number < 5
            frame = av.VideoFrame(*((WIDTH, HEIGHT) if small else (64, 64)), "yuvj420p")
            _fill(frame, None, np.random.default_rng(number))
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            for packet in stream.encode(frame) if small else other.encode(frame):
                packet.stream = stream
                container.mux(packet)
    infrared = write_infrared(tmp_path / "ir.mkv", 8)
    message = r"frame 6 is 64 x 64 .* before are 48 x 32 .*cut .*until then: 5 frames"
    with pytest.raises(VideoError, match=message):
        fuse_videos(infrared, visible, tmp_path / "out.mkv", fuser)


def test_a_stop_keeps_what_there_is(tmp_path, fuser):
    visible = write_video(tmp_path / "vi.mkv", 60, sound="flac")
    infrared = write_infrared(tmp_path / "ir.mkv", 60)
    stop = threading.Event()
    out = tmp_path / "out.mp4"

    def progress(done: int, total: int) -> None:
        assert total == 60
        if done == 10:
            stop.set()

    message = r"out\.mp4: stopped after (\d+) of 60 frames, kept in .*out\.partial\.mp4"
    with pytest.raises(VideoError, match=message) as error:
        fuse_videos(infrared, visible, out, fuser, progress=progress, stop=stop)
    found = len(read_planes(tmp_path / "out.partial.mp4"))
    assert 10 <= found < 30 and f"after {found} of" in str(error.value)
    assert not out.exists()
    # Done again it replaces the part.
    fuse_videos(infrared, visible, out, fuser)
    assert len(read_planes(out)) == 60
    assert names(tmp_path) == {"vi.mkv", "ir.mkv", "out.mp4"}


def test_a_full_disk_is_said(tmp_path, pair, fuser):
    infrared = write_infrared(tmp_path / "i.mkv", 40)
    visible = write_video(tmp_path / "v.mkv", 40)
    fuse_videos(*pair, tmp_path / "warm.mkv", fuser)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
        for name in ("out.mp4", "out.mkv"):
            with pytest.raises(FileError, match=rf"{name}: cannot be written \(.*: free some sp"):
                fuse_videos(infrared, visible, tmp_path / name, fuser)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(name.startswith("out") for name in names(tmp_path))


class Broken(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("ending", [".mkv", ".mp4", ".webm"])
@pytest.mark.parametrize("where", ["decode", "compute", "encode", "progress"])
def test_a_failure_ends_all_threads_with_its_own_error(tmp_path, fuser, monkeypatch, where, ending):
    """What was fused before it stays, also what the encoder held back."""
    visible = write_video(tmp_path / "vi.mkv", 60)
    infrared = write_infrared(tmp_path / "ir.mkv", 60)
    calls = {"decode": 0, "compute": 0, "encode": 0, "progress": 0}

    def failing(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            if name == where and calls[name] == 20:
                raise Broken(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(files.planes, "convert", failing("decode", files.planes.convert))
    monkeypatch.setattr(files, "start", failing("compute", files.start))
    monkeypatch.setattr(writing.VideoWriter, "frame", failing("encode", writing.VideoWriter.frame))
    running = threading.active_count()
    with pytest.raises(Broken, match=where) as error:
        fuse_videos(
            infrared,
            visible,
            tmp_path / f"out{ending}",
            fuser,
            progress=failing("progress", lambda done, total: None),
        )
    assert threading.active_count() == running
    assert not (tmp_path / f"out{ending}").exists()
    kept = tmp_path / f"out.partial{ending}"
    count = 20 if where == "progress" else 19
    assert len(read_planes(kept)) == count
    assert error.value.__notes__ == [f"fused until then: {count} frames, in {kept}"]


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_a_packet_that_is_refused_keeps_the_frames_before(tmp_path, fuser, monkeypatch, ending):
    visible = write_video(tmp_path / "vi.mkv", 40, sound="flac")
    infrared = write_infrared(tmp_path / "ir.mkv", 40)
    packet, calls = writing.VideoWriter.packet, 0

    def back_in_time(self, given: av.Packet) -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            self._heard.clear()
            given.dts = given.pts = 0
        packet(self, given)

    monkeypatch.setattr(writing.VideoWriter, "packet", back_in_time)
    with pytest.raises(VideoError, match=r"cannot be written \(.*: add --no-audio; fused") as error:
        fuse_videos(infrared, visible, tmp_path / f"out{ending}", fuser)
    kept = tmp_path / f"out.partial{ending}"
    found = len(read_planes(kept))
    assert 5 < found < 40
    assert str(error.value).endswith(f"fused until then: {found} frames, in {kept}")
    assert len(read_sound(kept)) == 9


@pytest.mark.parametrize("lost", ["drain", "end", "end full"])
def test_a_file_that_cannot_be_ended(tmp_path, fuser, monkeypatch, lost):
    """Without what the encoder holds back it plays; without its end it is deleted."""
    visible = write_video(tmp_path / "vi.mkv", 60)
    infrared = write_infrared(tmp_path / "ir.mkv", 60)
    encoded, end = writing.VideoWriter._encoded, writing.VideoWriter._end

    def refuse(self, number: int) -> None:
        raise self._refused(av.error.FFmpegError(number, os.strerror(number)))

    def no_drain(self, frame):
        return refuse(self, errno.EINVAL) if frame is None else encoded(self, frame)

    def no_end(self):
        end(self)
        self._closed = lost == "end full"
        refuse(self, errno.ENOSPC if lost == "end full" else errno.EIO)

    if lost == "drain":
        monkeypatch.setattr(writing.VideoWriter, "_encoded", no_drain)
    else:
        monkeypatch.setattr(writing.VideoWriter, "_end", no_end)
    with pytest.raises(UserError, match=r"out\.mp4: cannot be written") as error:
        fuse_videos(infrared, visible, tmp_path / "out.mp4", fuser)
    kept = tmp_path / "out.partial.mp4"
    if lost == "drain":
        found = len(read_planes(kept))
        assert 5 < found < 60
        assert str(error.value).endswith(f"fused until then: {found} frames, in {kept}")
    else:
        assert isinstance(error.value, FileError) and not kept.exists()


def test_lanes_are_bounded_and_end_at_both_ends():
    lane = Lane(2)
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    worker = Worker("decode", lambda: lane.feed(items()))
    taken = iter(lane)
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.05)
    assert len(made) <= 6
    lane.halt()
    worker.join()
    assert worker.error is None and len(made) <= 6
    with pytest.raises(Halted):
        lane.put(1)
    other = Lane(2)
    failing = Worker("decode", lambda: other.feed(1 // i for i in (1, 0)))
    with pytest.raises(ZeroDivisionError):
        list(other)
    failing.join()
    broken = Worker("encode", lambda: 1 // 0)
    broken.join()
    assert isinstance(broken.error, ZeroDivisionError)


MEMORY = """
import resource, sys
import jax, tiny_network
from pathlib import Path
from jaxfuse.infer.predict import Fuser
from jaxfuse.infer.video.files import fuse_videos
from jaxfuse.models import Compute
from test_video import write_infrared, write_video

model = tiny_network.create(Compute())
fuser = Fuser("tiny", model.init(jax.random.key(0)), {}, model)
size = (240, 320)
for count in (30, 60, 360):
    options = {"size": size, "codec": "mpeg4"}
    write_video(Path("vi.mp4"), count, sound="aac", **options)
    write_infrared(Path("ir.mkv"), count, size=size, codec="ffv1")
    summary = fuse_videos("ir.mkv", "vi.mp4", "o.mp4", fuser, preset="ultrafast", overwrite=True)
    assert summary.frames == count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_length(fresh_python, repo):
    """300 more frames of 320 x 240 would be 34 MB of YUV and 23 MB of luma."""
    result = fresh_python("-c", MEMORY, env={"PYTHONPATH": f"{repo}:{repo / 'tests'}"})
    assert result.returncode == 0, result.stderr
    first, second, third = map(int, result.stdout.split())
    assert third - second < 12, (first, second, third)


# What is refused before anything is computed


def test_files_that_cannot_be(tmp_path, pair, fuser, unchecked):
    infrared, visible = pair
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    picture = tmp_path / "a.png"
    images.write(picture, np.full((HEIGHT, WIDTH), 0.5, np.float32))
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("flac", SOUND, layout="mono")
        _say(container, stream, 0)
        container.mux(stream.encode(None))
    small = write_infrared(tmp_path / "small.mkv", size=(30, 46))
    (tmp_path / "folder.partial.mkv").mkdir()
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    before = names(tmp_path)
    out = tmp_path / "out.mkv"
    for given, message in (
        ((tmp_path / "no.mp4", visible, out), r"no\.mp4: no such file"),
        ((tmp_path, visible, out), "is a folder, but a video is to be made: give two videos"),
        ((pipe, visible, out), "pipe.mp4: is not a file: record it to a file, or give its frames"),
        ((text, visible, out), r"text\.mp4: cannot be read as a video \(Invalid data"),
        ((picture, visible, out), r"a\.png: is a picture, but a video is to be made"),
        ((infrared, sound, out), r"sound\.mkv: holds no video"),
        (
            (small, visible, out),
            r"vi\.mkv: is 48 x 32 pixels \(width x height\), .*small\.mkv is 46 x 30: reg",
        ),
        ((infrared, visible, tmp_path / "o.gif"), r"o\.gif: ending '\.gif': for a video use one"),
        ((infrared, visible, infrared), r"ir\.mkv: is one of the videos to fuse"),
        ((infrared, visible, text), r"text\.mp4: exists already: add --overwrite"),
        ((infrared, visible, visible / "o.mkv"), r"vi\.mkv: is a file, but results"),
        ((infrared, visible, tmp_path / "folder.mkv"), r"folder\.partial\.mkv: is a folder"),
    ):
        with pytest.raises(FileError, match=message) as error:
            fuse_videos(*given, fuser)
        assert "\n" not in str(error.value)
    for options, message in (
        ({"codec": "h264"}, r"codec = 'h264': use libx264"),
        ({"preset": "quick"}, r"preset = 'quick': use one of ultrafast"),
        ({"crf": 52}, r"crf = 52: libx264 takes 0 to 51"),
        ({"crf": 3, "codec": "ffv1"}, r"crf = 3: ffv1 loses nothing"),
        ({"match": "sound"}, r"match = 'sound': use time or number"),
        (
            {"infrared_stretch": "max"},
            r"infrared_stretch = 'max': use one of none, minmax, percentile",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            fuse_videos(infrared, visible, out, fuser, **options)
    assert names(tmp_path) == before


def test_an_encoder_that_is_not_there(tmp_path, pair, fuser, monkeypatch):
    there_is = writing._there_is
    monkeypatch.setattr(writing, "_there_is", lambda name: "x26" not in name and there_is(name))
    fuse_videos(*pair, tmp_path / "out.mp4", fuser)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    with pytest.raises(FileError, match=r"no encoder libx265: choose another --codec; there are l"):
        fuse_videos(*pair, tmp_path / "b.mp4", fuser, codec="libx265")


def test_only_video_files_need_pyav(repo, fresh_python):
    importers = set()
    for path in (repo / "jaxfuse").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            found = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            if any(name.split(".")[0] == "av" for name in found):
                importers.add(path.relative_to(repo).as_posix())
    assert importers == {
        f"jaxfuse/infer/video/{name}.py"
        for name in ("files", "matching", "planes", "reading", "writing")
    }
    code = "import sys; from jaxfuse.infer.video import fuse_frames; print('av' in sys.modules)"
    assert fresh_python("-c", code).stdout == "False\n"


# Streams of frames


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64, np.longdouble]
)
@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("method", ["auto", "tiles"])
def test_frames_are_fused_as_pictures_are(fuser, dtype, colour, method):
    rng = np.random.default_rng(4)
    shape = (HEIGHT, WIDTH, 3) if colour else (HEIGHT, WIDTH)

    def make(shape):
        if np.issubdtype(dtype, np.floating):
            return rng.random(shape, np.float32).astype(dtype)
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)

    given = [(make(shape), make(shape[:2])) for _ in range(4)]
    streams = (iter(stream) for stream in zip(*given, strict=True))
    found = list(video.fuse_frames(*streams, fuser, method=method))
    assert len(found) == 4
    for result, (visible, infrared) in zip(found, given, strict=True):
        wanted = fuse(visible, infrared, fuser, method=method)
        assert (result.shape, result.dtype) == (visible.shape, visible.dtype)
        # A level; of float16 one lies 2**-11 from the next.
        step = 1 if np.issubdtype(dtype, np.integer) else 1e-3 if dtype == np.float16 else 1e-5
        assert np.abs(result.astype(np.float64) - wanted).max() <= step


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_frames_are_read_ahead_and_no_further(fuser, ahead):
    read = []

    def camera() -> Iterator[np.ndarray]:
        buffer = np.zeros((HEIGHT, WIDTH), np.uint8)
        for i in range(8):
            buffer[:] = 10 * i  # As drivers do: the same memory again.
            read.append(i)
            yield buffer

    given = 0
    for fused in video.fuse_frames(camera(), camera(), VISIBLE, ahead=ahead):
        assert (fused == 10 * given).all()
        given += 1
        assert len(read) == 2 * min(given + ahead, 8)
    assert given == 8


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("packets", [0, 1, 3])
def test_packets_of_sound_leave_the_look_ahead_as_it_is(ahead, packets):
    """A frame is started before its predecessor is waited for, whatever comes between."""
    log: list[tuple[str, int]] = []

    class Result:
        def __init__(self, number: int) -> None:
            self.number = number
            log.append(("start", number))

        def __array__(self, dtype=None, copy=None) -> np.ndarray:
            log.append(("wait", self.number))
            return np.array(self.number)

    def started() -> Iterator[tuple[str, Result | None]]:
        for number in range(6):
            yield f"frame {number}", Result(number)
            for _ in range(packets):
                yield "packet", None

    found = list(frames.look_ahead(started(), ahead))
    assert [label for label, _ in found] == [
        label for i in range(6) for label in (f"frame {i}", *["packet"] * packets)
    ]
    assert [int(result) for _, result in found if result is not None] == list(range(6))
    for number in range(6):
        begun = [other for what, other in log[: log.index(("wait", number))] if what == "start"]
        assert begun == list(range(min(number + ahead, 5) + 1))


def test_frames_that_cannot_be_fused(fuser):
    good = np.zeros((4, 6), np.uint8)
    for visible, infrared, message in (
        ([good], [good, good], "after 1 pair one kind of frames ends"),
        ([good, good], [good], "after 1 pair one kind of frames ends"),
        ([good, good], [good, good[1:]], r"frame 2: visible is 4 x 6 and infrared 3 x 6 pixels"),
        ([good[..., None]], [good], r"visible frame 1 has shape \(4, 6, 1\)"),
        ([good], [np.zeros((4, 6, 3), np.uint8)], "infrared frame 1 has shape"),
        ([good.astype(int)], [good], "visible frame 1 has dtype int64"),
        ([good], [good + np.float32("nan")], "infrared frame 1 spans nan to nan"),
    ):
        with pytest.raises(ImageError, match=message):
            list(video.fuse_frames(visible, infrared, fuser))
    with pytest.raises(ImageError, match="ahead = -1"):
        next(video.fuse_frames([good], [good], fuser, ahead=-1))

    def broken() -> Iterator[np.ndarray]:
        yield good
        raise ValueError("the camera's own")

    with pytest.raises(ValueError, match="the camera's own"):
        list(video.fuse_frames(broken(), [good, good], fuser))


def test_one_program_serves_all_frames_of_a_size(fuser):
    program = levels.program(VISIBLE.model)
    before = program._cache_size()
    given = [np.full((20, 22), i, np.uint8) for i in range(5)]
    list(video.fuse_frames(given, given, VISIBLE))
    assert program._cache_size() == before + 1


# The command


@pytest.fixture
def tiny_weights(tmp_path, fuser) -> Path:
    path = tmp_path / "tiny.safetensors"
    weights.save_weights(path, tiny_network.NAME, jax.device_get(fuser.params))
    return path


@pytest.fixture
def command(monkeypatch, tmp_path, tiny_weights):
    from jaxfuse import distributed, models

    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
    monkeypatch.setattr(distributed, "compilation_cache", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        return cli.main(["fuse", "--weights", "tiny.safetensors", *arguments])

    return run


def test_the_command_fuses_videos(pair, command, capsys):
    given = ("--ir", "ir.mkv", "--vi", "vi.mkv")
    assert command(*given, "--out", "new/out.mp4") == 0
    out, err = capsys.readouterr()
    assert out.startswith("new/out.mp4: 6 frames in ") and out.count("\n") == 1
    assert err.startswith("fusing 6/6 ") and err.count("\n") == 1
    assert command(*given, "--out", "new/out.mp4") == 1
    assert "new/out.mp4: exists already: add --overwrite" in capsys.readouterr().err
    options = ["--overwrite", "--crf", "30", "--preset", "fast", "--codec", "libx264", "--no-audio"]
    assert command(*given, "--out", "new/out.mp4", *options, "--match", "number") == 0
    capsys.readouterr()
    for bad, said in (
        (["--bits", "16"], "bits = 16: a video keeps the visible one's"),
        (["--stretch", "minmax"], "the video flicker"),
        (["--crf", "99"], "crf = 99: libx264 takes 0 to 51"),
    ):
        assert command(*given, "--out", "o.mp4", *bad) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err
    picture = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    images.write("a.png", picture)
    pictures = ("--ir", "a.png", "--vi", "a.png", "--out", "b.png")
    assert command(*pictures, "--crf", "3") == 2
    assert "crf = 3: is for videos: leave it away" in capsys.readouterr().err
    assert command("--ir", "a.png", "--vi", "vi.mkv", "--out", "b.mkv") == 1
    assert "a.png: is a picture, but a video is to be made" in capsys.readouterr().err
    assert command("--ir", "ir.mkv", "--vi", "vi.mkv", "--out", "b.png") == 1
    assert "b.png: ending '.png': for a video use one of .mp4" in capsys.readouterr().err


def test_the_command_says_what_it_did_that_may_not_be_meant(tmp_path, pair, command, capsys):
    write_infrared(tmp_path / "long.mkv", 9)
    assert command("--ir", "long.mkv", "--vi", "vi.mkv", "--out", "out.mkv") == 0
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("jaxfuse: warning: long.mkv goes on after 0.24 s, where vi.mkv ends")


SLOW = """
import sys, time
import tiny_network
from jaxfuse import cli, models
from jaxfuse.infer.video import writing

models.MODELS[tiny_network.NAME] = tiny_network.create
frame = writing.VideoWriter.frame

def slowly(self, given):
    time.sleep(0.02)
    frame(self, given)

writing.VideoWriter.frame = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_signal_ends_the_file_so_that_it_plays(tmp_path, tiny_weights, repo):
    write_video(tmp_path / "vi.mkv", 400, sound="flac", codec="mpeg4")
    write_infrared(tmp_path / "ir.mkv", 400)
    (tmp_path / "0.mp4").write_bytes(b"mine")
    arguments = ["fuse", "--ir", "ir.mkv", "--vi", "vi.mkv", "--weights", str(tiny_weights)]
    runs = []
    for number, asked in enumerate((signal.SIGINT, signal.SIGTERM)):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *arguments, "--out", f"{number}.mp4", "--overwrite"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{repo}:{repo / 'tests'}"},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        runs.append((number, asked, process))
    for number, asked, process in runs:
        partial = tmp_path / f"{number}.partial.mp4"
        until = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(asked)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, ""), err
        found = len(read_planes(partial))
        assert 0 < found < 400
        said = err.strip().splitlines()[-1]
        assert said == (
            f"jaxfuse: {number}.mp4: stopped after {found} of 400 frames, kept in "
            f"{number}.partial.mp4"
        )
    assert (tmp_path / "0.mp4").read_bytes() == b"mine"
    assert not (tmp_path / "1.mp4").exists()
