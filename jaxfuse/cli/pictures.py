"""Commands that fuse pictures and convert the weights it takes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxfuse.cli.words import DONE, FAILED, parse, progress


@dataclasses.dataclass(frozen=True)
class FuseArguments:
    """Fuse an infrared and a visible image, or two folders of them matched by file stem."""

    ir: Path
    """Infrared image or folder."""
    vi: Path
    """Visible image or folder."""
    out: Path
    """Fused image or folder."""
    weights: str = ""
    """Weights file, run folder, or the name of weights in the package (default: those)."""
    bits: Literal[8, 16] = 8
    """Bits per channel of the result."""
    method: Literal["auto", "whole", "strips", "devices", "tiles"] = "auto"
    """How large images are processed. All but tiles, which is approximate, give the same picture;
    strips and devices (rows split over all devices) need exact windows (crossfuse)."""
    stretch: Literal["none", "minmax"] = "none"
    """minmax spreads each picture over the whole range, as the published test script does."""
    infrared_stretch: Literal["none", "minmax", "percentile"] = "none"
    """Spread the infrared levels first: for 16-bit files that look black."""
    overwrite: bool = False
    """Replace pictures that exist."""


def fuse(arguments: Sequence[str]) -> int:
    """Fuse infrared and visible images, files or folders."""
    given = parse(FuseArguments, arguments, "fuse")
    from jaxfuse import distributed

    distributed.compilation_cache()
    from jaxfuse.infer import folders, predict

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
        progress=progress("fusing"),
    )
    for doubt in summary.doubts:
        print(f"jaxfuse: warning: {doubt}", file=sys.stderr)
    for name, error in summary.failed:
        print(f"jaxfuse: {name}: {error}", file=sys.stderr)
    written = summary.written
    print(f"{written[0]}" if len(written) == 1 else f"{len(written)} pictures in {given.out}")
    return FAILED if summary.failed else DONE


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
