"""Fusing files: one pair, or two folders of pairs matched by stem."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jaxfuse.config import UserError
from jaxfuse.data import images
from jaxfuse.data.folders import open_folders
from jaxfuse.data.pairs import DataError
from jaxfuse.infer.predict import Fuser, Stretch, Way, fuse


@dataclasses.dataclass(frozen=True)
class FuseSummary:
    """What a job wrote and what it could not."""

    written: list[Path]
    failed: list[tuple[Path, str]]
    """Output that is missing, and why."""


def _jobs(infrared: Path, visible: Path, out: Path, suffix: str) -> list[tuple[Path, Path, Path]]:
    for path in (infrared, visible):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    if infrared.is_dir() != visible.is_dir():
        raise DataError(
            f"{infrared} and {visible}: one is a folder, the other a file: give two files or two "
            "folders"
        )
    if not infrared.is_dir():
        if out.is_dir():
            out = out / f"{visible.stem}{suffix}"
        elif out.suffix.lower() not in images.EXTENSIONS:
            raise DataError(
                f"{out}: not an image file name: end it in {', '.join(sorted(images.EXTENSIONS))}"
            )
        return [(infrared, visible, out)]
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file, but folders are to be fused: name a folder")
    pairs = open_folders(infrared=str(infrared), visible=str(visible))
    return [
        (Path(pairs.infrared[i]), Path(pairs.visible[i]), out / f"{pairs.stem(i)}{suffix}")
        for i in range(len(pairs))
    ]


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

    Unpaired stems and outputs that exist (unless `overwrite`) are errors before anything is
    computed. Within a folder a
    bad pair does not stop the others: it is in `failed`. A picture is written whole or not at all.
    """
    jobs = _jobs(Path(infrared), Path(visible), Path(out), suffix)
    existing = [target for _, _, target in jobs if target.exists()]
    if existing and not overwrite:
        raise DataError(
            f"{existing[0]}: exists already ({len(existing)} of {len(jobs)} outputs do): add "
            "--overwrite or name another place"
        )
    single = len(jobs) == 1 and not Path(infrared).is_dir()
    written: list[Path] = []
    failed: list[tuple[Path, str]] = []
    for number, (infrared_file, visible_file, target) in enumerate(jobs):
        try:
            heat = images.read_infrared(infrared_file, infrared_stretch)
            rgb = images.read_visible(visible_file)
            if heat.shape[:2] != rgb.shape[:2]:
                raise DataError(
                    f"{infrared_file} is {heat.shape[1]}x{heat.shape[0]} and {visible_file} "
                    f"{rgb.shape[1]}x{rgb.shape[0]} "
                    "pixels: register the pair first, nothing is resized"
                )
            fused = fuse(rgb, heat, fuser, method=method, stretch=stretch)
            target.parent.mkdir(parents=True, exist_ok=True)
            images.write(target, fused, bits)
            written.append(target)
        except UserError as error:
            if single:
                raise
            failed.append((target, str(error)))
        if progress:
            progress(number + 1, len(jobs), visible_file.name)
    return FuseSummary(written, failed)
