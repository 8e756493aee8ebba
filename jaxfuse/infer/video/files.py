"""Fusing two video files into one: decoded, fused and encoded side by side, in constant memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, get_args

import av
import numpy as np

from jaxfuse.config import UserError, counted
from jaxfuse.config.errors import require
from jaxfuse.data import images
from jaxfuse.data.images import FileError
from jaxfuse.infer.folders import check_place, make_folder
from jaxfuse.infer.levels import Levels
from jaxfuse.infer.predict import Fuser, Stretch, Way
from jaxfuse.infer.video import planes
from jaxfuse.infer.video.frames import look_ahead, start
from jaxfuse.infer.video.lanes import Halted, Lane, Worker
from jaxfuse.infer.video.matching import Infrared, Match, doubts
from jaxfuse.infer.video.reading import VideoReader, infrared_range
from jaxfuse.infer.video.writing import VideoWriter, encoder_for

WAITING = 3
"""Frames that wait between two of the three threads."""
AHEAD = 1
"""Frames that are handed to the device before the one that is waited for."""


class VideoError(UserError):
    """A video that was not finished; the message says why, and what there is of it."""


@dataclasses.dataclass(frozen=True)
class VideoSummary:
    """What a job wrote."""

    target: Path
    frames: int
    seconds: float
    """That fusing took."""
    notes: list[str]
    """What was done that may not be meant."""


class _Pair(NamedTuple):
    frame: av.VideoFrame
    """Visible, in the pixel format that is written."""
    visible: np.ndarray
    visible_levels: Levels
    infrared: np.ndarray
    infrared_levels: Levels


def fuse_videos(
    infrared: str | Path,
    visible: str | Path,
    out: str | Path,
    fuser: Fuser,
    *,
    codec: str = "auto",
    crf: int | None = None,
    preset: str = "veryfast",
    match: Match = "time",
    method: Way = "auto",
    stretch: Stretch = "none",
    infrared_stretch: images.Stretch = "none",
    audio: bool = True,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> VideoSummary:
    """Fuses two video files into a third, which has the visible one's size, times, colours and
    sound.

    match: to each visible frame the infrared frame nearest in "time", counted from each file's
    first frame, or that of the same "number". The result ends where either video does.
    infrared_stretch: "minmax" or "percentile" of the whole infrared file, or of what comes before
    damage in it; it is then read twice, the first time without `progress`, which counts fused
    frames.
    codec, crf, preset: see `writing.ENCODERS`; audio: copied from the visible file, or from the
    infrared one where that has none. progress: called with (done, total, 0 where not known). stop:
    once set, no further frame is fused.
    Until it is whole the result is called NAME.partial.ENDING, beside `out`; it stays there,
    playable, where the job stops early. Raises UserErrors: VideoError where frames were written,
    FileError and ConfigError otherwise, or where the file cannot be ended, on a full disk say; then
    nothing is left. What `progress` raises comes as it is, with a note of the frames that are kept.
    """
    infrared, visible, out = Path(infrared), Path(visible), Path(out)
    require(match in get_args(Match), "match", match, f"use {' or '.join(get_args(Match))}")
    known = get_args(images.Stretch)
    remedy = f"use one of {', '.join(known)}"
    require(infrared_stretch in known, "infrared_stretch", infrared_stretch, remedy)
    _refuse_flicker(stretch)
    out = out / visible.name if out.is_dir() else out
    encoder = encoder_for(out, codec, crf, preset)
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    _check_places(infrared, visible, out, partial, overwrite)
    stop = stop or threading.Event()
    with contextlib.ExitStack() as stack:
        visible_video = VideoReader(visible, sound=audio)
        stack.callback(visible_video.close)
        infrared_video = VideoReader(infrared, sound=audio and not visible_video.sound)
        stack.callback(infrared_video.close)
        _require_alike(visible_video, infrared_video)
        sound = next((video for video in (visible_video, infrared_video) if video.sound), None)
        writer = VideoWriter(partial, out, visible_video, sound, encoder, crf, preset)
        infrared_levels, damage = None, None
        if infrared_stretch != "none":
            infrared_levels, damage = infrared_range(infrared, infrared_stretch, stop)
        job = _Job(visible_video, infrared_video, writer, fuser, method, match, infrared_levels)
        if damage is not None:
            job.notes.append(f"{damage}; its range is that of the frames before")
        make_folder(out.parent)
        partial.unlink(missing_ok=True)
        began = time.monotonic()
        failure = job.run(progress or (lambda done, total: None), stop)
    return _finish(job, failure, out, partial, overwrite, time.monotonic() - began)


def _refuse_flicker(stretch: Stretch) -> None:
    require(
        stretch == "none",
        "stretch",
        stretch,
        "each frame would be spread by what it holds, and the video flicker: leave it away",
    )


def _check_places(infrared: Path, visible: Path, out: Path, partial: Path, overwrite: bool) -> None:
    for path in (infrared, visible):
        if not path.exists():
            raise FileError(path, "no such file", "check the path")
        if path.is_dir():
            raise FileError(path, "is a folder, but a video is to be made", "give two videos")
        if not path.is_file():
            remedy = "record it to a file, or give its frames to jaxfuse.infer.video.fuse_frames"
            raise FileError(path, "is not a file", remedy)
        if path.suffix.lower() in images.EXTENSIONS:
            raise FileError(path, "is a picture, but a video is to be made", "give two videos")
    for path in (infrared, visible):
        for target in (out, partial):
            if target.exists() and target.samefile(path):
                raise FileError(target, "is one of the videos to fuse", "name another place")
    if out.exists() and not overwrite:
        raise FileError(out, "exists already", "add --overwrite, or name another place")
    if partial.is_dir():
        raise FileError(partial, "is a folder", "name another place")
    check_place(out)


def _require_alike(visible: VideoReader, infrared: VideoReader) -> None:
    if visible.size != infrared.size:
        (height, width), (other_height, other_width) = visible.size, infrared.size
        other = f"{infrared.path} is {other_width} x {other_height}"
        found = f"is {width} x {height} pixels (width x height), but {other}"
        remedy = "register the two, both must show the same scene in the same pixels"
        raise FileError(visible.path, found, remedy)
    if not np.array_equal(_quarters(visible.matrix), _quarters(infrared.matrix)):
        try:
            planes.turned(np.zeros((1, 1)), infrared.matrix, visible.matrix)
        except ValueError:
            found = "is turned by an angle that is not a right one"
            raise FileError(infrared.path, found, "turn its pixels first") from None


def _quarters(matrix: np.ndarray | None) -> np.ndarray:
    return np.eye(2, dtype=np.int32) << 16 if matrix is None else matrix[:2, :2]


class _Job:
    """One pair of videos on its way through three threads."""

    def __init__(
        self,
        visible: VideoReader,
        infrared: VideoReader,
        writer: VideoWriter,
        fuser: Fuser,
        method: Way,
        match: Match,
        infrared_levels: Levels | None,
    ) -> None:
        self._visible, self._infrared, self._writer = visible, infrared, writer
        self._fuser, self._method, self._infrared_levels = fuser, method, infrared_levels
        self._nearest = Infrared(infrared, match, visible.rate)
        self._turn = not np.array_equal(_quarters(visible.matrix), _quarters(infrared.matrix))
        self.notes = writer.notes + doubts(visible, infrared, match)
        self.done, self.stopped, self.lost = 0, False, False
        """Frames written; whether it was asked to stop; whether the file could not be ended."""
        self._span = [np.inf, -np.inf]

    @property
    def total(self) -> int:
        """Frames of the result, as far as the files say; 0 where they do not."""
        both = self._visible.total, self._nearest.visible_frames
        return min(both) if all(both) else 0

    def run(
        self, progress: Callable[[int, int], None], stop: threading.Event
    ) -> BaseException | None:
        """Fuses to the end of either video, or to whatever ends it before; gives that."""
        read, fused = Lane(WAITING), Lane(WAITING)
        decoder = Worker("decode", lambda: read.feed(self._pairs()))
        encoder = Worker("encode", lambda: self._encode(fused, progress))
        failure: BaseException | None = None
        try:
            for label, luma in look_ahead(self._started(read, stop), AHEAD):
                fused.put((label, luma))
        except Halted:
            pass
        except BaseException as error:
            failure = error
        read.halt()
        with contextlib.suppress(Halted):
            fused.end()
        encoder.join()
        decoder.join()
        if encoder.error is not None:
            failure = encoder.error
        self._conclude()
        return failure

    def _pairs(self) -> Iterator[_Pair | av.Packet]:
        """In the thread that decodes."""
        writer, visible = self._writer, self._visible
        for item in visible.items():
            if isinstance(item, av.Packet):
                yield item
                continue
            found = self._nearest.at(visible.time(item))
            yield from self._nearest.sound()
            if found is None:
                self.notes.append(_goes_on(visible, visible.time(item), self._infrared))
                yield from visible.sound_until(visible.time(item))
                return
            infrared, infrared_levels = found
            if self._turn:
                infrared = planes.turned(infrared, self._infrared.matrix, visible.matrix)
            visible_levels = planes.levels(item, writer.pixel_format.bits)
            frame = planes.convert(item, writer.pixel_format)
            luma = planes.plane(frame, writer.pixel_format).copy()
            infrared_levels = self._infrared_levels or infrared_levels
            yield _Pair(frame, luma, visible_levels, infrared, infrared_levels)
        end = visible.last_time + 1 / visible.rate
        if self._nearest.goes_on(end):
            self.notes.append(_goes_on(self._infrared, end, visible))
        yield from self._nearest.sound()
        yield from self._infrared.sound_until(end)

    def _started(self, read: Lane, stop: threading.Event) -> Iterator[tuple[Any, Any]]:
        for item in read:
            if stop.is_set():
                self.stopped = True
                return
            if isinstance(item, av.Packet):
                yield item, None
                continue
            if item.infrared.dtype != np.uint8:
                low, high = int(item.infrared.min()), int(item.infrared.max())
                self._span = [min(self._span[0], low), max(self._span[1], high)]
            _, visible, visible_levels, infrared, infrared_levels = item
            begun = start(
                self._fuser, visible, infrared, self._method, visible_levels, infrared_levels
            )
            yield item.frame, begun

    def _encode(self, fused: Lane, progress: Callable[[int, int], None]) -> None:
        """In the thread that encodes."""
        writer, total = self._writer, self.total
        try:
            for label, luma in fused:
                if luma is None:
                    writer.packet(label)
                    continue
                writer.frame(planes.with_luma(label, writer.pixel_format, luma))
                self.done += 1
                progress(self.done, max(total, self.done) if total else 0)
            writer.close()
        except BaseException:
            fused.halt()
            self.lost = not writer.rescue()
            self.done = writer.frames
            raise

    def _conclude(self) -> None:
        for reader in (self._visible, self._infrared):
            if reader.unmoved:
                self.notes.append(
                    f"{reader.path}: {counted(reader.unmoved, 'frame')} no later than the one "
                    "before: each was moved by a tick"
                )
            if reader.widest > max(1, 10 / reader.rate):
                self.notes.append(
                    f"{reader.path}: no frame for {float(reader.widest):.1f} s in one place: is "
                    "something missing there?"
                )
        low, high = self._span
        bits = self._infrared.pixel_format.bits
        if self._infrared_levels is None and 0 <= high - low < 2**bits / 4:
            full = 2.0**bits - 1
            self.notes.append(
                f"{self._infrared.path}: its {bits}-bit values reach from {low / full:.3f} to "
                f"{high / full:.3f} of 1: it looks black; add --infrared-stretch minmax or "
                "percentile to spread them"
            )


def _goes_on(longer: VideoReader, end: Fraction, shorter: VideoReader) -> str:
    return (
        f"{longer.path} goes on after {float(end):.2f} s, where {shorter.path} ends: the "
        "result ends there too"
    )


def _finish(
    job: _Job,
    failure: BaseException | None,
    out: Path,
    partial: Path,
    overwrite: bool,
    seconds: float,
) -> VideoSummary:
    """Gives the result its name, or says what there is of it."""
    if job.lost or not job.done:
        partial.unlink(missing_ok=True)
        if failure is not None:
            raise failure
        raise VideoError(f"{out}: stopped before the first frame")
    frames = counted(job.done, "frame")
    kept = f"fused until then: {frames}, in {partial}"
    if isinstance(failure, UserError):
        raise VideoError(f"{failure}; {kept}") from failure
    if failure is not None:
        failure.add_note(kept)
        raise failure
    if job.stopped:
        done = f"{job.done} of {job.total} frames" if job.total else counted(job.done, "frame")
        raise VideoError(f"{out}: stopped after {done}, kept in {partial}")
    if out.exists() and not overwrite:
        raise VideoError(f"{out}: exists by now; {kept}: rename it")
    try:
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, out)
    except OSError as error:
        raise VideoError(f"{out}: cannot be written ({error.strerror}); {kept}") from None
    return VideoSummary(out, job.done, seconds, job.notes)
