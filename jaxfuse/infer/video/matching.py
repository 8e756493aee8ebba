"""Which infrared frame belongs to a visible one."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

import av
import numpy as np

from jaxfuse.config import UserError
from jaxfuse.data.images import FileError
from jaxfuse.infer.levels import Levels
from jaxfuse.infer.video import planes
from jaxfuse.infer.video.reading import VideoReader

Match = Literal["time", "number"]


class Infrared:
    """The infrared frame that belongs to a time, of a video that is read once."""

    def __init__(self, reader: VideoReader, match: Match, visible_rate: Fraction) -> None:
        self._reader, self._match, self._visible_rate = reader, match, visible_rate
        self._items = reader.items()
        self._packets: list[av.Packet] = []
        self._number, self._ended = 0, False
        self._error: BaseException | None = None
        self._now = self._pull()
        if self._now is None:
            raise self._error or FileError(reader.path, "holds no frames", "name another file")
        self._next = self._pull() if match == "time" else None
        self._asked = 0

    @property
    def visible_frames(self) -> int:
        """Visible frames that it lasts for, as far as it says; 0 where it does not."""
        if self._match == "number":
            return self._reader.total
        return round(self._reader.total / self._reader.rate * self._visible_rate)

    def sound(self) -> Iterator[av.Packet]:
        """Packets that came along."""
        while self._packets:
            yield self._packets.pop(0)

    def at(self, moment: Fraction) -> tuple[np.ndarray, Levels] | None:
        """Luma, black and white of the frame; None after the last one. Raises what ended the video
        too early.
        """
        self._asked += 1
        if self._match == "number":
            if self._asked > 1:
                self._now = self._pull()
            beyond = self._now is None
        else:
            # Equally near, the earlier one: it has been seen by then.
            while self._next and self._next[0] - moment < moment - self._now[0]:
                self._now, self._next = self._next, self._pull()
            beyond = self._next is None and moment > self._now[0] + self._lasts
        if not beyond:
            return self._now[1], self._now[2]
        if self._error is not None:
            raise self._error
        return None

    def goes_on(self, end: Fraction) -> bool:
        """Whether there are frames that show nothing before `end`."""
        if self._match == "number":
            return self._pull() is not None
        while self._next and self._next[0] < end:
            self._now, self._next = self._next, self._pull()
        return self._next is not None

    @property
    def _lasts(self) -> Fraction:
        # A quarter of the shorter step allows for times that were rounded.
        return 1 / self._reader.rate - min(1 / self._reader.rate, 1 / self._visible_rate) / 4

    def _pull(self) -> tuple[Fraction, np.ndarray, Levels] | None:
        if self._ended:
            return None
        try:
            for item in self._items:
                if isinstance(item, av.Packet):
                    self._packets.append(item)
                    continue
                self._number += 1
                reader = self._reader
                luma, levels = planes.infrared(reader.path, item, reader.pixel_format, self._number)
                return reader.time(item), luma, levels
        except UserError as error:
            self._error = error
        self._ended = True
        return None


def doubts(visible: VideoReader, infrared: VideoReader, match: Match) -> list[str]:
    """What of two videos may not be meant."""
    notes = []
    rates = float(visible.rate), float(infrared.rate)
    if match == "time" and abs(rates[0] - rates[1]) > 0.01 * max(rates):
        notes.append(
            f"{visible.path} has {rates[0]:.4g} frames a second, {infrared.path} {rates[1]:.4g}: "
            "matched by time; if frame belongs to frame, add --match number"
        )
    if abs(visible.start - infrared.start) > 1 / (2 * visible.rate):
        notes.append(
            f"{visible.path} begins at {float(visible.start):.2f} s, {infrared.path} at "
            f"{float(infrared.start):.2f} s: their first frames were taken to belong together"
        )
    if visible.first.interlaced_frame:
        notes.append(f"{visible.path} is interlaced: fused as whole frames; deinterlace it first")
    return notes
