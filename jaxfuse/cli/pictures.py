"""Commands that fuse pictures and videos and convert the weights it takes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxfuse.cli.words import DONE, FAILED, frame_counter, if_slow, parse, progress, stop_requests
from jaxfuse.config import ConfigError, counted


@dataclasses.dataclass(frozen=True)
class FuseArguments:
    """Fuse an infrared and a visible image, two folders of them matched by file stem, or two videos
    (mp4, mkv, mov, avi, webm and others, known by their endings)."""

    ir: Path
    """Infrared image, folder or video."""
    vi: Path
    """Visible image, folder or video."""
    out: Path
    """Fused image, folder or video."""
    weights: str = ""
    """Weights file, run folder, or the name of weights in the package; empty is lite."""
    bits: Literal[8, 16] = 8
    """Bits per channel of the result."""
    method: Literal["auto", "whole", "strips", "devices", "tiles"] = "auto"
    """How large images are processed. All but tiles, which is approximate, give the same picture;
    strips and devices (rows split over all devices) need exact windows (crossfuse)."""
    stretch: Literal["none", "minmax"] = "none"
    """minmax spreads each picture over the whole range, as the published test script does."""
    infrared_stretch: Literal["none", "minmax", "percentile"] = "none"
    """Spread the infrared levels first: for 16-bit files that look black. A picture by its own
    range; a video by the range of the whole file, which is read twice."""
    overwrite: bool = False
    """Replace results that exist."""
    codec: Literal["auto", "libx264", "libx265", "libvpx-vp9", "mpeg4", "ffv1"] = "auto"
    """Videos: the encoder. auto takes libx264, and libvpx-vp9 for webm; ffv1 loses nothing."""
    crf: int | None = None
    """Videos: quality, from 0, best, to 51, of libvpx-vp9 63; 18 where none is given."""
    preset: Literal[
        "ultrafast",
        "superfast",
        "veryfast",
        "faster",
        "fast",
        "medium",
        "slow",
        "slower",
        "veryslow",
        "placebo",
    ] = "veryfast"
    """Videos: how long libx264 and libx265 search for a smaller file of that quality."""
    match: Literal["time", "number"] = "time"
    """Videos: to each visible frame the infrared frame nearest in time, counted from each file's
    first frame, or that of the same number."""
    audio: bool = True
    """Videos: copy the sound of the visible file, or of the infrared one where that has none."""


_FIRST = "fusing: the first of a size takes longest, for programs are compiled for it"
_VIDEO_OPTIONS = ("codec", "crf", "preset", "match", "audio")


def fuse(arguments: Sequence[str]) -> int:
    """Fuse infrared and visible images or videos, files or folders."""
    given = parse(FuseArguments, arguments, "fuse")
    from jaxfuse import distributed

    distributed.compilation_cache()
    from jaxfuse.infer import video

    places = (given.ir, given.vi, given.out)
    if any(path.suffix.lower() in video.READ_EXTENSIONS for path in places):
        return _fuse_videos(given)
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in _VIDEO_OPTIONS and value != field.default:
            raise ConfigError(f"{field.name} = {value!r}: is for videos: leave it away")
    return _fuse_pictures(given)


def _fuse_pictures(given: FuseArguments) -> int:
    from jaxfuse.infer import folders, predict

    counter = progress("fusing")
    with if_slow(_FIRST) as called_off:

        def report(done: int, total: int, name: str) -> None:
            called_off()
            counter(done, total, name)

        summary = folders.fuse_paths(
            given.ir,
            given.vi,
            given.out,
            predict.load(given.weights or None),
            bits=given.bits,
            method=given.method,
            stretch=given.stretch,
            infrared_stretch=given.infrared_stretch,
            overwrite=given.overwrite,
            progress=report,
        )
    for doubt in summary.doubts:
        print(f"jaxfuse: warning: {doubt}", file=sys.stderr)
    for name, error in summary.failed:
        print(f"jaxfuse: {name}: {error}", file=sys.stderr)
    written = summary.written
    count = len(written)
    print(f"{written[0]}" if count == 1 else f"{counted(count, 'picture')} in {given.out}")
    return FAILED if summary.failed else DONE


def _fuse_videos(given: FuseArguments) -> int:
    if given.bits != 8:
        raise ConfigError(f"bits = {given.bits}: a video keeps the visible one's: leave it away")
    from jaxfuse.infer import predict
    from jaxfuse.infer.video import files

    asked = "ending the file after the frames under way; asked again, it is lost"
    with stop_requests(asked) as stop, frame_counter("fusing") as counter:
        summary = files.fuse_videos(
            given.ir,
            given.vi,
            given.out,
            predict.load(given.weights or None),
            codec=given.codec,
            crf=given.crf,
            preset=given.preset,
            match=given.match,
            method=given.method,
            stretch=given.stretch,
            infrared_stretch=given.infrared_stretch,
            audio=given.audio,
            overwrite=given.overwrite,
            progress=counter,
            stop=stop,
        )
    for note in summary.notes:
        print(f"jaxfuse: warning: {note}", file=sys.stderr)
    print(f"{summary.target}: {counted(summary.frames, 'frame')} in {summary.seconds:.1f} s")
    return DONE


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    """Published weights (.pth, .npz, .safetensors) into ours, or back."""

    source: Annotated[Path, tyro.conf.Positional]
    """File, run folder or folder of Hugging Face's (SegFormer) to read."""
    target: Annotated[Path, tyro.conf.Positional]
    """File to write: .safetensors, .npz or .pth."""
    layout: Literal["jaxfuse", "torch"] = "jaxfuse"
    """Names and axes of the written file: ours, or the published PyTorch code's."""
    overwrite: bool = False
    """Replace a file that exists."""
    classes: int | None = None
    """Classes that a segmentation network must have. An encoder alone gets a fresh head.
    """


def convert(arguments: Sequence[str]) -> int:
    """Convert weights between the published PyTorch layout and ours."""
    given = parse(ConvertArguments, arguments, "convert")
    from jaxfuse import weights

    print(
        weights.convert_file(
            given.source, given.target, given.layout, given.overwrite, given.classes
        )
    )
    return DONE
