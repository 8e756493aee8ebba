"""Video files out: encoders and what they can hold, sound as it was, one file whole or none."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av

from jaxfuse.config.errors import require
from jaxfuse.data.images import FileError
from jaxfuse.infer.video.planes import FULL, LIMITED, STEPS, PixelFormat, coloured, levels
from jaxfuse.infer.video.reading import VideoReader, words

CRF = 18
PRESETS = (
    "ultrafast superfast veryfast faster fast medium slow slower veryslow placebo".split()  # noqa: SIM905
)

WRITTEN_EXTENSIONS: dict[str, tuple[str, ...]] = {
    ".mp4": ("libx264", "mpeg4"),
    ".m4v": ("libx264", "mpeg4"),
    ".mov": ("libx264", "mpeg4"),
    ".mkv": ("libx264", "mpeg4"),
    ".webm": ("libvpx-vp9",),
    ".avi": ("libx264", "mpeg4"),
}
"""File name endings that are written, each with its encoders: the first one that there is."""

_TURN_LOST = {".avi"}
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_FILES = ("encoder", "major_brand", "minor_version", "compatible_brands")
"""Metadata of the file, not of what it shows."""


def _mpeg4(crf: int, preset: str) -> dict[str, str]:
    # A step of its quantiser doubles where that of H.264 does, every 6 of crf.
    quantiser = str(min(31, max(1, round(2 ** ((crf - 12) / 6)))))
    return {"qmin": quantiser, "qmax": quantiser}


class _Encoder(NamedTuple):
    largest: int
    """crf; 0 where there is nothing to choose."""
    options: Callable[[int, str], dict[str, str]]
    smallest: int = 1
    """Pixels a side."""


ENCODERS = {
    "libx264": _Encoder(51, lambda crf, preset: {"crf": str(crf), "preset": preset}),
    "libx265": _Encoder(
        51,
        lambda crf, preset: {
            "crf": str(crf),
            "preset": preset,
            "x265-params": "log-level=none",
        },
        smallest=64,  # x265 4.1 writes beyond its memory below 50 or so.
    ),
    "libvpx-vp9": _Encoder(
        63,
        lambda crf, preset: {
            "crf": str(crf),
            "deadline": "realtime",
            "cpu-used": "6",
            "row-mt": "1",
        },
    ),
    "mpeg4": _Encoder(51, _mpeg4),
    "ffv1": _Encoder(0, lambda crf, preset: {"level": "3", "slicecrc": "1"}),
}
"""Those that are offered; ffv1 loses nothing."""


def encoder_for(target: Path, codec: str, crf: int | None, preset: str) -> str:
    """The encoder's name. Raises ConfigError or FileError for what cannot be."""
    if target.suffix.lower() not in WRITTEN_EXTENSIONS:
        known = ", ".join(WRITTEN_EXTENSIONS)
        raise FileError(target, f"ending {target.suffix!r}", f"for a video use one of {known}")
    require(codec == "auto" or codec in ENCODERS, "codec", codec, f"use {', '.join(ENCODERS)}")
    require(preset in PRESETS, "preset", preset, f"use one of {', '.join(PRESETS)}")
    wanted = WRITTEN_EXTENSIONS[target.suffix.lower()] if codec == "auto" else (codec,)
    found = next((name for name in wanted if _there_is(name)), None)
    if found is None:
        remedy = f"choose another --codec; there are {', '.join(filter(_there_is, ENCODERS))}"
        raise FileError(target, f"this FFmpeg has no encoder {' or '.join(wanted)}", remedy)
    largest = ENCODERS[found].largest
    require(crf is None or largest > 0, "crf", crf, f"{found} loses nothing: leave crf away")
    require(crf is None or 0 <= crf <= largest, "crf", crf, f"{found} takes 0 to {largest}")
    return found


def _there_is(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


class VideoWriter:
    """Encodes frames that are like those of `visible`, and copies packets of sound.

    path: written there as `target` would be. sound: whose packets come. Raises FileError for what
    the container or the encoder cannot hold.
    """

    def __init__(
        self,
        path: Path,
        target: Path,
        visible: VideoReader,
        sound: VideoReader | None,
        codec: str,
        crf: int | None,
        preset: str,
    ) -> None:
        self._target = target
        self._shift = Fraction(0) if sound in (None, visible) else visible.start - sound.start
        self._ending = target.suffix.lower()
        if self._ending in _TURN_LOST and visible.matrix is not None:
            found = f"{self._ending} cannot say that the picture is turned, as {visible.path} is"
            raise FileError(target, found, "write .mp4 or .mkv")
        self._grid = self._ending == ".avi"
        self._rate, self._last = visible.rate, None
        if self._grid:
            self._require_grid(visible)
        options = ENCODERS[codec].options(CRF if crf is None else crf, preset)
        self.notes: list[str] = []
        """What the result does not hold of the visible video."""
        self.pixel_format = self._pixel_format(visible, codec, options)
        self.frames = 0
        """Frames in the file, without those that the encoder still holds back."""
        self._full = self._drained = False
        self._closed: bool | None = None
        """Whether the file was ended well; None before it is."""
        try:
            self._container = av.open(str(path), "w", format=_muxer(self._ending))
        except (av.FFmpegError, OSError) as error:
            raise self._refused(error) from None
        try:
            self._picture = self._container.add_stream(codec, visible.rate, options)
        except ValueError:
            found = f"{self._ending} cannot hold video of {codec}"
            raise FileError(target, found, "write .mkv, or choose another --codec") from None
        self._prepare(visible, codec)
        self._heard: dict[int, int] = {}
        self._sounds = {s.index: self._add_sound(s) for s in (sound.sound if sound else ())}
        kept = visible.metadata.items()
        self._container.metadata.update({k: v for k, v in kept if k.lower() not in _OF_FILES})

    def _pixel_format(
        self, visible: VideoReader, codec: str, options: dict[str, str]
    ) -> PixelFormat:
        own, frame = visible.pixel_format, visible.first
        smallest = ENCODERS[codec].smallest
        if min(frame.width, frame.height) < smallest:
            found = f"{frame.width} x {frame.height} pixels, but {codec} needs {smallest} a side"
            raise FileError(self._target, found, "choose another --codec")
        for pixel_format in _pixel_formats(own, codec):
            if not _opens(codec, pixel_format, frame.width, frame.height, options):
                continue
            lost = _lost(own, pixel_format)
            odd = own.colour != "gray" and (frame.width % 2 or frame.height % 2)
            if odd and pixel_format.colour != own.colour and not lost:
                self.notes.append(
                    f"{self._target}: written as {pixel_format.name}, which some players do not "
                    f"show: {own.name} of {codec} has no {frame.width} x {frame.height} pixels"
                )
            elif lost:
                self.notes.append(
                    f"{self._target}: written as {pixel_format.name}: {codec} has no {own.name}, "
                    f"as {visible.path} is"
                )
            return pixel_format
        found = f"{codec} cannot encode {frame.width} x {frame.height} pixels as {own.name}"
        raise FileError(self._target, found, "choose another --codec (ffv1 in .mkv takes any)")

    def _prepare(self, visible: VideoReader, codec: str) -> None:
        stream, context, first = self._picture, self._picture.codec_context, visible.first
        context.width, context.height = first.width, first.height
        context.pix_fmt = self.pixel_format.name
        # PyAV's default cuts each frame into slices, which makes files larger.
        context.thread_type = "AUTO"
        if self._grid:
            # It numbers its frames, in the order they are stored.
            context.time_base, context.max_b_frames = 1 / visible.rate, 0
        elif codec == "mpeg4" and first.time_base.denominator > 65535:
            context.time_base = Fraction(1, 60000)
        else:
            context.time_base = first.time_base
        stream.time_base = context.time_base
        context.flags |= int(av.codec.context.Flags.frame_duration)
        ratio = visible.pixel_ratio
        if ratio:
            context.sample_aspect_ratio = ratio
        black, _ = levels(first, self.pixel_format.bits)
        context.color_range = LIMITED if black else FULL
        context.colorspace = 6 if coloured(first.format) else first.colorspace
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        if visible.matrix is not None:
            stream.set_display_matrix(visible.matrix.ravel().tolist())

    def _add_sound(self, source: av.AudioStream) -> av.AudioStream:
        try:
            stream = self._container.add_stream_from_template(source)
        except ValueError:
            found = f"{self._ending} cannot hold sound of {source.codec_context.name}"
            raise FileError(
                self._target, found, "write .mkv, which holds any, or add --no-audio"
            ) from None
        stream.metadata.update(source.metadata)
        return stream

    def frame(self, frame: av.VideoFrame) -> None:
        """Appends a frame of `pixel_format`."""
        if self._grid:
            number = self._place(frame.pts * frame.time_base)
            frame.pts, frame.time_base, frame.duration = number, 1 / self._rate, 1
        self._append(frame)

    def packet(self, packet: av.Packet) -> None:
        """Appends a packet of sound."""
        if self._shift:
            ticks = round(self._shift / packet.time_base)
            packet.dts += ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
        # Containers take packets in order only; recorders now and then repeat a time.
        earliest = self._heard.get(packet.stream_index, packet.dts - 1) + 1
        packet.dts = self._heard[packet.stream_index] = max(packet.dts, earliest)
        packet.pts = max(packet.dts, packet.dts if packet.pts is None else packet.pts)
        packet.stream = self._sounds[packet.stream_index]
        self._mux(packet, "add --no-audio")

    def _require_grid(self, visible: VideoReader) -> None:
        """Looks before anything is fused, where the file has a table of its times."""
        for time in visible.stated_times:
            self._place(time)
        self._last = None

    def _place(self, time: Fraction) -> int:
        """AVI's number of a frame. Raises FileError where it has none."""
        exact = time * self._rate
        number = round(exact)
        if abs(exact - number) > Fraction(1, 4) or (
            self._last is not None and number <= self._last
        ):
            found = f"frame rate varies (a frame at {float(exact / self._rate):.3f} s)"
            raise FileError(self._target, found, "AVI cannot hold that: write .mp4 or .mkv")
        self._last = number
        return number

    def _append(self, frame: av.VideoFrame | None) -> None:
        """None: what the encoder holds back."""
        for packet in self._encoded(frame):
            try:
                self._mux(packet)
            except FileError:
                # Those after it would be shown without what they build on.
                self._drained = True
                raise
            self.frames += 1

    def _encoded(self, frame: av.VideoFrame | None) -> list[av.Packet]:
        try:
            return self._picture.encode(frame)
        except av.FFmpegError as error:
            raise self._refused(error) from None

    def _mux(self, packet: av.Packet, remedy: str = "") -> None:
        try:
            self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise self._refused(error, remedy) from None

    def close(self) -> None:
        """Encodes what the encoder holds back and ends the file, so that it can be played."""
        self._drain()
        self._end()

    def rescue(self) -> bool:
        """After an error: ends the file with the frames there are. Whether it can be played."""
        for step in (self._drain, self._end):
            # The first error is the one to tell.
            with contextlib.suppress(Exception):
                step()
        return bool(self._closed) and not self._full

    def _drain(self) -> None:
        if not self._drained:
            self._drained = True
            self._append(None)

    def _end(self) -> None:
        # FFmpeg ends a file once only, well or not.
        if self._closed is not None:
            return
        self._closed = False
        try:
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise self._refused(error) from None
        self._closed = True

    def _refused(self, error: Exception, remedy: str = "") -> FileError:
        number = getattr(error, "errno", None)
        if number in _FULL_DISK:
            self._full = True
            remedy = "free some space, or write to another disk"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            remedy = "choose a place that you may write to"
        remedy = remedy or "write .mkv, or choose another --codec"
        return FileError(self._target, f"cannot be written ({words(error)})", remedy)


def _muxer(ending: str) -> str:
    return {".mkv": "matroska", ".m4v": "mp4"}.get(ending, ending[1:])


def _lost(own: PixelFormat, other: PixelFormat) -> bool:
    if other.bits < own.bits:
        return True
    if own.colour == "gray":
        return False
    return any(a > b for a, b in zip(STEPS[other.colour], STEPS[own.colour], strict=True))


def _pixel_formats(own: PixelFormat, codec: str) -> Iterator[PixelFormat]:
    """What an encoder takes, the most fitting first."""
    offered = {pixels.name for pixels in av.Codec(codec, "w").video_formats or ()}
    # Few players show H.264 and the like without colours.
    gray = ["gray"] if own.colour == "gray" and codec == "ffv1" else []
    known = [PixelFormat(c, bits) for c in (*gray, *STEPS) for bits in (8, 9, 10, 12, 14, 16)]

    def cost(other: PixelFormat) -> tuple[bool, bool, int, int]:
        across, down = STEPS.get(other.colour, (1, 1))
        if own.colour == other.colour:
            finer = 0
        elif own.colour == "gray":
            finer = 16 - across * down if other.colour == "420" else 17 + across * down
        else:
            finer = 17 - across * down
        return (_lost(own, other), other.bits < own.bits, finer, abs(other.bits - own.bits))

    yield from sorted((other for other in known if other.name in offered), key=cost)


def _opens(
    codec: str, pixel_format: PixelFormat, width: int, height: int, options: dict[str, str]
) -> bool:
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, pixel_format.name
    context.time_base, context.options = Fraction(1, 25), options
    try:
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True
