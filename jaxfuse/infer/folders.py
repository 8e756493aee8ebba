"""Fusing files: one pair, or two folders of pairs matched by stem."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from jaxfuse.config import UserError
from jaxfuse.data import images
from jaxfuse.data.folders import list_files, open_folders, require_equal_sizes
from jaxfuse.data.images import FileError
from jaxfuse.infer.predict import Fuser, Stretch, Way, fuse

_DEEP = (".png", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class FuseSummary:
    """What a job wrote and what it could not."""

    written: list[Path]
    failed: list[tuple[Path, str]]
    """Output that is missing, and why."""
    doubts: list[str] = dataclasses.field(default_factory=list)
    """What was done and is probably not meant."""


class _Job(NamedTuple):
    infrared: Path
    visible: Path
    target: Path


def _jobs(infrared: Path, visible: Path, out: Path, suffix: str) -> list[_Job]:
    for path in (infrared, visible):
        if not path.exists():
            raise FileError(path, "no such file or folder", "check the path")
    if infrared.is_dir() != visible.is_dir():
        folder, file = (infrared, visible) if infrared.is_dir() else (visible, infrared)
        raise FileError(folder, f"is a folder, but {file} a file", "give two files or two folders")
    if not infrared.is_dir():
        return [_Job(infrared, visible, out / f"{visible.stem}{suffix}" if out.is_dir() else out)]
    if out.exists() and not out.is_dir():
        raise FileError(out, "is a file, but folders are to be fused", "name a folder")
    pairs = open_folders(infrared=str(infrared), visible=str(visible))
    return [
        _Job(pairs.infrared[i], pairs.visible[i], out / f"{pairs.stem(i)}{suffix}")
        for i in range(len(pairs))
    ]


def _left_out(*places: Path) -> list[str]:
    """What is said of files that may be pictures, but by another name."""
    said = []
    for place in places:
        unknown = list_files(place, images.EXTENSIONS).unknown if place.is_dir() else ()
        if unknown:
            said.append(
                f"{unknown[0]}: left out, with all {len(unknown)} of its folder that have no "
                "ending of a picture; if it is one, rename it"
            )
    return said


def _check_targets(jobs: list[_Job], bits: int, overwrite: bool) -> None:
    """Raises FileError for what would fail, or lose something, after the work."""
    ending = jobs[0].target.suffix.lower()
    if ending not in images.EXTENSIONS:
        endings = ", ".join(sorted(images.EXTENSIONS))
        raise FileError(jobs[0].target, f"ending {ending!r}", f"use one of {endings}")
    if bits == 16 and ending not in _DEEP:
        raise FileError(jobs[0].target, f"bits = {bits}", f"use {', '.join(_DEEP)}, or bits = 8")
    sources = {path.resolve() for job in jobs for path in (job.infrared, job.visible)}
    for job in jobs:
        if job.target.resolve() in sources:
            raise FileError(job.target, "is one of the images to fuse", "name another place")
    existing = [job.target for job in jobs if job.target.exists()]
    if existing and not overwrite:
        found = f"exists already, as {len(existing)} of {len(jobs)} results do"
        raise FileError(existing[0], found, "add --overwrite, or name another place")
    check_place(jobs[0].target)


def check_place(target: Path) -> None:
    """Raises FileError where nothing could be written to `target`, whose folders may be missing."""
    made = next(p for p in (target.parent, *target.parent.parents) if p.exists())
    if not made.is_dir():
        raise FileError(made, "is a file, but results are to lie below it", "name another place")
    try:
        # Not asked for but tried: permissions do not tell what network and special folders allow.
        with tempfile.TemporaryFile(dir=made):
            pass
    except OSError as error:
        found = f"takes no files ({error.strerror})"
        raise FileError(made, found, "choose a place that you may write to") from error


def make_folder(folder: Path) -> None:
    """Makes a folder for results, only once there is something to put in. Raises FileError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "choose a place that you may write to"
        raise FileError(folder, f"cannot be made ({error.strerror})", remedy) from error


def fuse_paths(
    infrared: str | Path,
    visible: str | Path,
    out: str | Path,
    fuser: Fuser,
    *,
    bits: Literal[8, 16] = 8,
    method: Way = "auto",
    stretch: Stretch = "none",
    infrared_stretch: images.Stretch = "none",
    suffix: str = ".png",
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> FuseSummary:
    """Fuses two files into a file, or two folders into a folder (`STEM.png` each).

    out: a file or a folder; folders are made. progress: called with (done, total, name).
    Unpaired stems, results that exist (unless `overwrite`) or that would replace an input are
    errors before anything is computed. Within a folder a bad pair does not stop the others: it is
    in `failed`. A picture is written whole or not at all.
    """
    jobs = _jobs(Path(infrared), Path(visible), Path(out), suffix)
    _check_targets(jobs, bits, overwrite)
    summary = FuseSummary([], [], _left_out(Path(infrared), Path(visible)))
    for number, job in enumerate(jobs):
        try:
            heat = images.read_infrared(job.infrared, infrared_stretch, allow_black=False)
            rgb = images.read_visible(job.visible, allow_black=False)
            require_equal_sizes(job.infrared, heat.shape[:2], job.visible, rgb.shape[:2])
            if infrared_stretch == "none" and images.spans_little(job.infrared, heat):
                summary.doubts.append(
                    f"{job.infrared}: its 16-bit values reach from {heat.min():.3f} to "
                    f"{heat.max():.3f} of 1: it looks black; add --infrared-stretch minmax or "
                    "percentile to spread them"
                )
            fused = fuse(rgb, heat, fuser, method=method, stretch=stretch)
            make_folder(job.target.parent)
            images.write(job.target, fused, bits)
            summary.written.append(job.target)
        except UserError as error:
            if not Path(infrared).is_dir():
                raise
            summary.failed.append((job.target, str(error)))
        if progress:
            progress(number + 1, len(jobs), job.visible.name)
    return summary
