"""Fusing two H.264 videos of 480x640 into one with lite: read, fused, written; sound left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from bench.realtime import work_of
from bench.record import Run
from bench.sides import Side, Work

SIZE, FRAMES = (480, 640), 150
TINY_SIZE, TINY_FRAMES = (64, 96), 4
RATE = 25
"""Frames a second of the videos, which is the speed to reach."""


def write(path: Path, picture: np.ndarray, frames: int) -> None:
    """A pan over a picture, (h, w, 3) uint8."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", RATE, options={"preset": "ultrafast"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            shown = np.ascontiguousarray(np.roll(picture, 2 * i, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())


def job(options: dict[str, Any]) -> Work:
    """The whole of `jaxfuse fuse` on two files, but for starting Python."""
    from jaxfuse.data.synthetic import SyntheticPairs
    from jaxfuse.infer.predict import load
    from jaxfuse.infer.video.files import fuse_videos

    folder = Path(options["folder"])
    folder.mkdir(exist_ok=True)
    pair = SyntheticPairs(1, *options["size"])[0]
    places = [folder / f"{name}.mp4" for name in ("infrared", "visible", "fused")]
    for path, picture in zip(places, (pair.infrared, pair.visible), strict=False):
        levels = np.rint(255 * np.broadcast_to(picture, (*picture.shape[:2], 3)))
        write(path, levels.astype(np.uint8), options["frames"])
    fuser = load("lite")
    done: list[int] = []

    def run() -> None:
        done[:] = [fuse_videos(*places, fuser, overwrite=True).frames]

    def finish() -> dict[str, Any]:
        one = work_of((1, *options["size"], 1), 3 * pair.infrared[:, :, 0].size)
        return {"frames": done[0], **{name: done[0] * x for name, x in one.items()}}

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    size, frames = (TINY_SIZE, TINY_FRAMES) if run.tiny else (SIZE, FRAMES)
    options = {"size": size, "frames": frames, "folder": str(run.scratch / "videos")}
    sides = [Side("lite", "bench.video:job", options)]
    what = f"two videos of {frames} frames of {size[0]}x{size[1]}"
    settings = {"size": size, "frames": frames, "rate": RATE}
    result = record.measure(run, "video", what, sides, run.rounds(5), settings, rates)
    pace = frames / result["sides"]["lite"]["median_seconds"]
    result["goals"].append(record.goal("frames a second", RATE, pace, True, not run.tiny))
    return [result]
