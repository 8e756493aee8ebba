"""Video files in: frames with their times, packets of sound, and words for damage."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from jaxfuse.config import UserError
from jaxfuse.data.images import FileError, Stretch
from jaxfuse.infer.video import planes

COPY_AGAIN = "copy the file again from its source"
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails


def words(error: Exception) -> str:
    """What FFmpeg says."""
    return str(getattr(error, "strerror", None) or error)


class VideoReader:
    """One video file, read once from its beginning.

    sound: whether `items` gives packets of sound too. Raises FileError for what cannot be read.
    """

    def __init__(self, path: Path, sound: bool = False) -> None:
        self.path = path
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            found = f"cannot be read as a video ({words(error)})"
            raise FileError(path, found, f"is it a whole video file? {COPY_AGAIN}") from None
        try:
            self._open(sound)
        except BaseException:
            self.close()
            raise

    def _open(self, sound: bool) -> None:
        videos = [s for s in self._container.streams.video if not s.disposition & _COVERS]
        if not videos or videos[0].codec_context is None:
            raise FileError(self.path, "holds no video that can be decoded", "name a video file")
        self._stream = videos[0]
        self._stream.thread_type = "AUTO"
        self.sound = list(self._container.streams.audio) if sound else []
        self.metadata = dict(self._container.metadata)
        self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        """Frames a second, on average."""
        self.seconds: Fraction | None = None
        """Length, where the file states it."""
        if self._stream.duration and self._stream.time_base:
            self.seconds = self._stream.duration * self._stream.time_base
        self.read, self.unmoved, self.widest = 0, 0, 1 / self.rate
        """Frames read; those of them that had no later time than the one before; the longest time
        from one to the next.
        """
        self._last = 0
        self._items = self._read()
        self._early: list[av.VideoFrame | av.Packet] = []
        for item in self._items:
            self._early.append(item)
            if isinstance(item, av.VideoFrame):
                break
        else:
            raise FileError(self.path, "holds no frames", COPY_AGAIN)

    @property
    def first(self) -> av.VideoFrame:
        """The first frame."""
        return self._first

    @property
    def total(self) -> int:
        """Frames, as far as the file says; 0 where it does not."""
        seconds = self.seconds or Fraction(self._container.duration or 0, 1_000_000)
        return self._stream.frames or round(seconds * self.rate)

    @property
    def stated_times(self) -> list[Fraction]:
        """Seconds since the first frame, of all in the order they are stored; none where the file
        has no table of them, as MP4 and MOV do.
        """
        entries = self._stream.index_entries
        if self._counted or len(entries) != self._stream.frames:
            return []
        ticks = [entry.timestamp for entry in entries]
        return [(when - ticks[0]) * self._stream.time_base for when in ticks]

    @property
    def pixel_ratio(self) -> Fraction | None:
        """Width of a pixel over its height, where the file states it."""
        return self._stream.sample_aspect_ratio

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as shown."""
        height, width = self.first.height, self.first.width
        on_its_side = self.matrix is not None and self.matrix[0, 0] == 0
        return (width, height) if on_its_side else (height, width)

    def items(self) -> Iterator[av.VideoFrame | av.Packet]:
        """Frames, each with a time, and packets of sound. Raises FileError at damage, after all
        frames before it.
        """
        while self._early:
            yield self._early.pop(0)
        yield from self._items

    def time(self, frame: av.VideoFrame) -> Fraction:
        """Seconds since the first frame."""
        return frame.pts * frame.time_base - self.start

    @property
    def last_time(self) -> Fraction:
        """Of the last frame that was read."""
        return self._last * self._ticks - self.start

    def sound_until(self, end: Fraction) -> Iterator[av.Packet]:
        """Packets of sound that follow and begin within `end` seconds of the first frame."""
        going = {stream.index for stream in self.sound}
        if not going:
            return
        try:
            for packet in self._container.demux(*self.sound):
                if packet.dts is None:
                    continue
                if packet.dts * packet.time_base - self.start < end:
                    yield packet
                else:
                    going.discard(packet.stream_index)
                if not going:
                    return
        except av.FFmpegError as error:
            raise self._damage(words(error)) from None

    def _read(self) -> Iterator[av.VideoFrame | av.Packet]:
        stream, damage = self._stream, ""
        try:
            for packet in self._container.demux(stream, *self.sound):
                if packet.stream_index != stream.index:
                    if packet.dts is not None:
                        yield packet
                    continue
                if packet.is_corrupt:
                    damage = "part of it is missing"
                    break
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise self._damage("pixels are missing")
                    yield self._timed(frame)
        except av.FFmpegError as error:
            damage = words(error)
        if damage:
            # Good frames from before it are still in the decoder.
            with contextlib.suppress(av.FFmpegError):
                for frame in stream.decode(None):
                    if frame.is_corrupt:
                        break
                    yield self._timed(frame)
            raise self._damage(damage)
        self._require_whole()

    def _timed(self, frame: av.VideoFrame) -> av.VideoFrame:
        if self.read == 0:
            self._begin(frame)
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._kind:
            was, found = ("{} x {} {}".format(*k) for k in (self._kind, kind))
            message = f"frame {self.read + 1} is {found}, those before are {was}"
            raise FileError(self.path, message, "cut the file there")
        if frame.time_base is None:
            # Frames that the decoder held back to the end.
            frame.time_base = self._stream.time_base
        if self._counted:
            frame.time_base, frame.pts, frame.duration = 1 / self.rate, self.read, 1
        elif self.read and frame.pts is None:
            frame.pts = self._last + max(1, round(1 / (self.rate * self._ticks)))
        elif self.read and frame.pts <= self._last:
            frame.pts = self._last + 1
            self.unmoved += 1
        if self.read:
            self.widest = max(self.widest, (frame.pts - self._last) * frame.time_base)
        else:
            self.start = frame.pts * frame.time_base
            if self.seconds is None:
                self.seconds = self._tagged_seconds()
        self._last, self._ticks, self._lasts = frame.pts, frame.time_base, frame.duration or 0
        self.read += 1
        return frame

    def _begin(self, frame: av.VideoFrame) -> None:
        self._first = frame
        self._kind = (frame.width, frame.height, frame.format.name)
        # AVI numbers frames as they are stored, not as they are shown.
        self._counted = frame.pts is None or self._container.format.name == "avi"
        self.pixel_format = planes.pixel_format_of(self.path, frame.format)
        self.matrix = planes.display_matrix(frame)

    def _tagged_seconds(self) -> Fraction | None:
        """Matroska states the end of each stream, counted from time 0."""
        said = self._stream.metadata.get("DURATION", "")
        found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", said)
        if not found:
            return None
        return 3600 * int(found[1]) + 60 * int(found[2]) + Fraction(found[3]) - self.start

    def _require_whole(self) -> None:
        """Of frames that are missing at the end FFmpeg says nothing."""
        if self.seconds is None or not self.read:
            return
        reached = self.last_time + self._lasts * self._ticks
        # Some files state the last frame's time and not its end.
        if self.seconds - reached > Fraction(5, 2) * self.widest:
            stated, end = float(self.seconds), float(reached)
            raise self._damage(f"the file states {stated:.2f} s, it ends at {end:.2f} s")

    def _damage(self, what: str) -> FileError:
        return FileError(self.path, f"damaged at frame {self.read + 1} ({what})", COPY_AGAIN)

    def close(self) -> None:
        """Nothing is read any more."""
        self._container.close()


def infrared_range(
    path: Path, how: Stretch, stop: threading.Event
) -> tuple[tuple[float, float], UserError | None]:
    """Luma levels of a whole infrared video: its "minmax", or its 0.5 and 99.5 % "percentile".

    Once `stop` is set, those of what was read. Where the video is damaged, those of the frames
    before, and the damage; raises it where there are none.
    """
    reader, damage = VideoReader(path), None
    counts = np.zeros(2**reader.pixel_format.bits, np.int64)
    try:
        for number, frame in enumerate(reader.items(), 1):
            luma, _ = planes.infrared(path, frame, reader.pixel_format, number)
            counts += np.bincount(luma.ravel(), minlength=counts.size)
            if stop.is_set():
                break
    except UserError as error:
        if not counts.any():
            raise
        damage = error
    finally:
        reader.close()
    if how == "minmax":
        found = np.flatnonzero(counts)
        return (float(found[0]), float(found[-1])), damage
    share = np.cumsum(counts) / counts.sum()
    low, high = (float(np.searchsorted(share, quantile)) for quantile in (0.005, 0.995))
    return (low, high), damage
