"""The command line: one function per job, each parses, calls and prints. JAX is imported by the jobs only."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxfuse import __version__, experiments
from jaxfuse.config import ConfigError, Experiment, UserError

DONE, FAILED, BAD_USAGE, PREEMPTED = 0, 1, 2, 75


def train(arguments: Sequence[str]) -> int:
    """Train a preset, a config file, or continue a run folder."""
    parser_help = arguments[:1] in (["-h"], ["--help"]) or not arguments
    if parser_help:
        print("usage: jaxfuse train PRESET|FILE|RUN [--run DIR] [--field value ...]\n")
        print("Trains in the folder DIR (default runs/NAME); a folder that holds the run is continued.")
        print("`jaxfuse train PRESET --help` lists every field. Presets:")
        for name, line in experiments.describe_presets().items():
            print(f"  {name:18}{line}")
        return DONE if arguments else BAD_USAGE
    source, rest = arguments[0], list(arguments[1:])
    experiment = experiments.find(source)
    folder = Path(source) if Path(source).is_dir() else Path("runs") / experiment.name
    if "--run" in rest:
        at = rest.index("--run")
        if at + 1 >= len(rest):
            raise ConfigError("--run: name a folder")
        folder = Path(rest[at + 1])
        del rest[at : at + 2]
    experiment = tyro.cli(
        tyro.conf.AvoidSubcommands[Experiment],
        default=experiment,
        args=rest,
        prog=f"jaxfuse train {source}",
        description="Overrides of the preset's fields. Also --run DIR: the run folder.",
    )
    from jaxfuse import distributed

    distributed.compilation_cache()
    from jaxfuse.train import loop

    try:
        outcome = loop.run(experiment, folder)
    except loop.Preempted as stopped:
        print(stopped, file=sys.stderr)
        return PREEMPTED
    print(f"{outcome.folder}: {outcome.steps} steps, loss {outcome.loss:.4f}; weights in weights.safetensors")
    return DONE


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
    """Weights file, run folder, or the name of weights that come with the package (default: those)."""
    bits: Literal[8, 16] = 8
    """Bits per channel of the result."""
    method: Literal["auto", "whole", "strips", "tiles"] = "auto"
    """How large images are processed. auto, whole and strips give the same picture; tiles is approximate."""
    stretch: Literal["none", "minmax"] = "none"
    """minmax spreads each picture over the whole range, as the published test script does."""
    infrared_stretch: Literal["none", "minmax", "percentile"] = "none"
    """Spread the infrared levels first: for 16-bit files that look black."""
    overwrite: bool = False
    """Replace pictures that exist."""


def fuse(arguments: Sequence[str]) -> int:
    """Fuse infrared and visible images, files or folders."""
    given = _parse(FuseArguments, arguments, "fuse")
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
        progress=_progress("fusing"),
    )
    for name, error in summary.failed:
        print(f"jaxfuse: {name}: {error}", file=sys.stderr)
    written = summary.written
    print(f"{written[0]}" if len(written) == 1 else f"{len(written)} pictures in {given.out}")
    return FAILED if summary.failed else DONE


@dataclasses.dataclass(frozen=True)
class AlignArguments:
    """Show what Top-K alignment selects for an experiment: a picture and the numbers as JSON."""

    experiment: Annotated[str, tyro.conf.Positional]
    """Preset, config file or run folder."""
    out: Path = Path("alignment.png")
    """Where the picture goes; the numbers go beside it as .json."""
    target: str = ""
    """Another target folder than the experiment's."""
    target_split: str = ""
    """Its split file."""
    external: str = ""
    """Another external folder than the experiment's."""
    external_split: str = ""
    """Its split file."""
    k: int = 0
    """Patches to keep; 0 takes the experiment's."""


def align(arguments: Sequence[str]) -> int:
    """Show which external patches Top-K alignment selects, before and after."""
    given = _parse(AlignArguments, arguments, "align")
    experiment = experiments.find(given.experiment)
    from jaxfuse.config import SourceConfig

    data = experiment.data
    if given.target:
        source = SourceConfig(kind="folders", root=given.target, split=given.target_split)
        data = dataclasses.replace(data, target=source)
    if given.external:
        source = SourceConfig(kind="folders", root=given.external, split=given.external_split)
        data = dataclasses.replace(data, external=source)
    if data.external.kind == "none":
        raise ConfigError(f"{given.experiment}: has no external set: give --external DIR")
    from jaxfuse.data.sources import open_source
    from jaxfuse.methods import external
    from jaxfuse.report import pictures

    k = given.k or experiment.method.top_k
    selection = external.select(open_source(data.target), open_source(data.external), data, k)
    pictures.save_selection(selection, given.out)
    numbers = given.out.with_suffix(".json")
    numbers.write_text(json.dumps(selection.summary(), indent=1), encoding="utf8")
    print(
        f"kept {len(selection.stems)} of {selection.candidates} patches; gamma "
        f"{', '.join(f'{g:.3f}' for g in selection.gamma)}; means "
        f"{', '.join(f'{m:.1f}' for m in selection.before)} -> {', '.join(f'{m:.1f}' for m in selection.after)}, target "
        f"{', '.join(f'{m:.1f}' for m in selection.target_means)} (sum of errors {selection.error:.4f} grey levels)"
    )
    for name, reached in zip(("red", "green", "blue"), selection.reached, strict=True):
        if not reached:
            print(f"{name}: no gamma reaches the target mean, left as it was", file=sys.stderr)
    print(f"{given.out} and {numbers}")
    return DONE


@dataclasses.dataclass(frozen=True)
class CheckArguments:
    """Report every problem of a folder of pairs at once."""

    root: Annotated[Path, tyro.conf.Positional]
    """Folder with ir/ and vi/ (or infrared/ and visible/)."""
    split: str = ""
    """File with one stem a line; only these are checked."""


def data(arguments: Sequence[str]) -> int:
    """Check folders of pairs: `jaxfuse data check ROOT`."""
    if arguments[:1] != ["check"]:
        print("usage: jaxfuse data check ROOT [--split FILE]", file=sys.stderr if arguments[:1] != ["--help"] else None)
        return DONE if arguments[:1] == ["--help"] else BAD_USAGE
    given = _parse(CheckArguments, arguments[1:], "data check")
    from jaxfuse.data.check import check_folders

    report = check_folders(root=str(given.root), split=given.split)
    print(report.text())
    return FAILED if report.errors else DONE


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    """Published weights (.pth, .npz, .safetensors) into ours, or back."""

    source: Annotated[Path, tyro.conf.Positional]
    """File or run folder to read."""
    target: Annotated[Path, tyro.conf.Positional]
    """File to write: .safetensors, .npz or .pth."""
    layout: Literal["jaxfuse", "torch"] = "jaxfuse"
    """Names and axes of the written file: ours, or the published PyTorch code's."""


def convert(arguments: Sequence[str]) -> int:
    """Convert weights between the published PyTorch layout and ours."""
    given = _parse(ConvertArguments, arguments, "convert")
    from jaxfuse import weights

    print(weights.convert_file(given.source, given.target, given.layout))
    return DONE


@dataclasses.dataclass(frozen=True)
class DemoArguments:
    """Train briefly on generated scenes of two sensors, align, fuse, and show the pictures."""

    out: Path = Path("demo")
    """Folder for everything the demo makes; must be new, empty, or an earlier demo."""
    steps: int = 0
    """Steps per epoch; 0 takes the preset's."""


def demo(arguments: Sequence[str]) -> int:
    """Train, align and fuse on generated scenes in a few minutes."""
    given = _parse(DemoArguments, arguments, "demo")
    from jaxfuse import distributed

    distributed.compilation_cache()
    from jaxfuse import demo as job

    job.run(given.out, steps_per_epoch=given.steps)
    return DONE


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "fuse": fuse,
    "align": align,
    "data": data,
    "convert": convert,
    "demo": demo,
}


def _parse(kind: type, arguments: Sequence[str], name: str) -> Any:
    return tyro.cli(kind, args=list(arguments), prog=f"jaxfuse {name}")


def _progress(doing: str) -> Callable[[int, int, str], None]:
    """(done, total, name) -> a progress bar on a terminal, a plain line now and then elsewhere."""
    import time

    terminal = sys.stderr.isatty()
    last = [0.0]

    def report(done: int, total: int, name: str) -> None:
        if total < 2:
            return
        if terminal:
            print(f"\r{doing} {done}/{total} {name[:40]:40}", end="\n" if done == total else "", file=sys.stderr)
        elif done == total or time.monotonic() - last[0] > 10.0:
            last[0] = time.monotonic()
            print(f"{doing} {done}/{total} {name}", file=sys.stderr)

    return report


def _help() -> str:
    lines = ["usage: jaxfuse COMMAND ...", "", "Infrared-visible image fusion in JAX.", ""]
    lines += [f"  {name:10}{(job.__doc__ or '').splitlines()[0]}" for name, job in COMMANDS.items()]
    return "\n".join([*lines, "", "`jaxfuse COMMAND --help` says more. `jaxfuse --version` prints the version."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 done, 1 failed, 2 bad usage, 75 preempted and safely saved."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(_help())
        return DONE if arguments else BAD_USAGE
    if arguments[0] == "--version":
        print(__version__)
        return DONE
    if arguments[0] not in COMMANDS:
        print(f"jaxfuse: no command {arguments[0]!r}: choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return BAD_USAGE
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except ConfigError as error:
        print(f"jaxfuse: {error}", file=sys.stderr)
        return BAD_USAGE
    except UserError as error:
        print(f"jaxfuse: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"jaxfuse: {name}{error.strerror or error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("jaxfuse: interrupted", file=sys.stderr)
        return FAILED
