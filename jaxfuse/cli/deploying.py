"""The command that makes networks into files other programs run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxfuse.cli.words import DONE, parse, progress
from jaxfuse.config import ConfigError


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """A fusion network with its weights as one file that runs without jaxfuse: StableHLO, which JAX
    runs, or ONNX. It takes any sizes where none are given, and is run and compared before it is
    written; docs/guides/deployment.md says how to run it."""

    weights: Annotated[str, tyro.conf.Positional]
    """Weights file, run folder, or the name of weights in the package."""
    out: Path
    """File to write: .stablehlo or .onnx."""
    batch: int | None = None
    """Images at a time (default: any)."""
    height: int | None = None
    """Pixels (default: any)."""
    width: int | None = None
    """Pixels (default: any)."""
    platforms: str = "cpu,cuda,tpu"
    """StableHLO: where the file can be run, of cpu, cuda, rocm and tpu. One alone gets the
    formulation that is best there."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic inside; bfloat16 for StableHLO only."""
    opset: int = 18
    """ONNX: version of its operators, 18 to 23."""
    check: bool = True
    """Run the result and compare it with jaxfuse, on made-up pairs and those of ROOT: 1e-5 is
    allowed for StableHLO, 1e-4 for ONNX, 0.02 in bfloat16."""
    root: str = ""
    """Folder of pairs to compare on too: ir/ and vi/."""
    split: str = ""
    """Text file with one stem a line: only these pairs."""
    limit: int = 4
    """At most so many pairs, evenly chosen; 0 takes all."""
    overwrite: bool = False
    """Replace a file that exists."""


def export(arguments: Sequence[str]) -> int:
    """Export a network as StableHLO or ONNX, for other programs."""
    given = parse(ExportArguments, arguments, "export")
    if given.split and not given.root:
        raise ConfigError(f"--split {given.split}: give --root DIR too")
    if given.root and not given.check:
        raise ConfigError(f"--root {given.root}: leave --no-check out to compare on its pairs")
    if given.limit < 0:
        raise ConfigError(f"--limit {given.limit}: use 1 or more, or 0 for all")
    from jaxfuse import distributed
    from jaxfuse.config import SourceConfig
    from jaxfuse.data.sources import open_source
    from jaxfuse.export import Settings, write

    distributed.compilation_cache()
    settings = Settings(
        given.batch,
        given.height,
        given.width,
        tuple(name.strip() for name in given.platforms.split(",") if name.strip()),
        given.dtype,
        given.opset,
    )
    pairs = None
    if given.root:
        pairs = open_source(SourceConfig("folders", root=given.root, split=given.split))
    done = write(
        given.weights,
        given.out,
        settings,
        check=given.check,
        pairs=pairs,
        most=given.limit,
        overwrite=given.overwrite,
        progress=progress("comparing"),
    )
    print("\n".join(done.lines()))
    return DONE
