"""The command line: one function per job, each parses, calls and prints. Only jobs import JAX."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from jaxfuse import __version__, experiments
from jaxfuse.config import ConfigError, Experiment, SourceConfig, UserError

AnySource = TypeVar("AnySource", bound=SourceConfig)
DONE, FAILED, BAD_USAGE = 0, 1, 2
"""Exit codes; 75 is that of a run which was asked to stop and has saved everything."""


def train(arguments: Sequence[str]) -> int:
    """Train a preset, a config file, or continue a run folder."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [
            "usage: jaxfuse train PRESET|FILE|RUN [--run DIR] [--field value ...]",
            "",
            "Trains in the folder DIR (default runs/NAME, or RUN); a folder that holds the run is",
            "continued. `jaxfuse train PRESET --help` lists every field. Presets:",
            *(f"  {name:18}{line}" for name, line in experiments.describe_presets().items()),
        ]
        return _usage("\n".join(lines), asked=bool(arguments))
    source = arguments[0]
    if source.startswith("-"):
        raise ConfigError(f"train {source}: name a preset, a file or a run folder first")
    run, rest = _take("--run", arguments[1:])
    experiment = experiments.find(source)
    experiment = _parse(
        tyro.conf.AvoidSubcommands[Experiment],
        rest,
        f"train {source}",
        default=experiment,
        description="Overrides of the preset's fields. Also --run DIR: the run folder.",
    )
    is_run = (Path(source) / "config.json").exists()
    default = Path(source) if is_run else Path("runs") / experiment.name
    from jaxfuse import distributed

    distributed.compilation_cache()
    from jaxfuse.train import loop

    outcome = loop.run(experiment, run or default)
    if outcome.loss is not None:
        print(f"{outcome.folder}: {outcome.steps} steps, loss {outcome.loss:.4f}")
    print(outcome.folder / "weights.safetensors")
    return DONE


def _take(option: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The value of `option VALUE` or `option=VALUE`, "" where absent, and the other arguments."""
    value, rest = "", list(arguments)
    for at, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == option:
            if not equals:
                value = rest.pop(at + 1) if at + 1 < len(rest) else ""
            if not value:
                raise ConfigError(f"{option}: name a folder")
            del rest[at]
            return value, rest
    return "", rest


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
    method: Literal["auto", "whole", "strips", "tiles"] = "auto"
    """How large images are processed. All but tiles, which is approximate, give the same picture.
    """
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
    for doubt in summary.doubts:
        print(f"jaxfuse: warning: {doubt}", file=sys.stderr)
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
    if given.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {given.out}: the picture is a PNG: end the name in .png")
    experiment = experiments.find(given.experiment)
    data = dataclasses.replace(
        experiment.data,
        target=_source("target", experiment.data.target, given.target, given.target_split),
        external=_source(
            "external", experiment.data.external, given.external, given.external_split
        ),
    )
    if data.external.kind == "none":
        raise ConfigError(f"{given.experiment}: has no external set: give --external DIR")
    k = given.k or experiment.data.external.top_k
    if k < 1:
        raise ConfigError(f"--k {k}: keep at least one patch")
    from jaxfuse.data.sources import open_source
    from jaxfuse.methods import external
    from jaxfuse.report import pictures
    from jaxfuse.train.setup import write_text

    field = "--k" if given.k else "data.external.top_k"
    selection = external.select(
        open_source(data.target), open_source(data.external), data, k, field
    )
    pictures.save_selection(selection, given.out)
    numbers = given.out.with_suffix(".json")
    write_text(numbers, json.dumps(selection.summary(), indent=1))
    before, after, target = (
        ", ".join(f"{mean:.1f}" for mean in means)
        for means in (selection.before, selection.after, selection.target_means)
    )
    print(
        f"kept {len(selection.stems)} of {selection.candidates} patches; "
        f"gamma {', '.join(f'{g:.3f}' for g in selection.gamma)}; means {before} -> {after}, "
        f"target {target} (sum of errors {selection.error:.4f} grey levels)"
    )
    for doubt in selection.doubts():
        print(doubt, file=sys.stderr)
    print(f"{given.out} and {numbers}")
    return DONE


def _source(name: str, own: AnySource, root: str, split: str) -> AnySource:
    """The experiment's own set, or the folder given instead of it; with the split given."""
    if root:
        folders = SourceConfig(kind="folders", root=root, split=split)
        changed = {f.name: getattr(folders, f.name) for f in dataclasses.fields(folders)}
        return dataclasses.replace(own, **changed)
    if split and own.kind != "folders":
        raise ConfigError(f"--{name}-split {split}: give its folder too: --{name} DIR")
    return dataclasses.replace(own, split=split) if split else own


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
        asked = arguments[:1] in (["-h"], ["--help"])
        return _usage("usage: jaxfuse data check ROOT [--split FILE]", asked)
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
    overwrite: bool = False
    """Replace a file that exists."""


def convert(arguments: Sequence[str]) -> int:
    """Convert weights between the published PyTorch layout and ours."""
    given = _parse(ConvertArguments, arguments, "convert")
    from jaxfuse import weights

    print(weights.convert_file(given.source, given.target, given.layout, given.overwrite))
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


def _parse(kind: Any, arguments: Sequence[str], name: str, **more: Any) -> Any:
    """tyro's reading of the arguments; what a config itself finds wrong is raised as it is."""
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return tyro.cli(kind, args=list(arguments), prog=f"jaxfuse {name}", **more)
    except SystemExit as stopped:
        error: BaseException | None = stopped
        while error is not None:
            error = error.__context__
            if isinstance(error, UserError):
                raise error from None
        sys.stderr.write(words.getvalue())
        raise


def _progress(doing: str) -> Callable[[int, int, str], None]:
    """(done, total, name) -> a counter on a terminal, a plain line now and then elsewhere."""
    terminal = sys.stderr.isatty()
    last = [0.0]

    def report(done: int, total: int, name: str) -> None:
        if total < 2:
            return
        if terminal:
            end = "\n" if done == total else ""
            print(f"\r{doing} {done}/{total} {name[:40]:40}", end=end, file=sys.stderr, flush=True)
        elif done == total or time.monotonic() - last[0] > 10.0:
            last[0] = time.monotonic()
            print(f"{doing} {done}/{total} {name}", file=sys.stderr)

    return report


def _usage(text: str, asked: bool) -> int:
    """Prints how to use something: to stdout where it was asked for, else as a complaint."""
    print(text, file=sys.stdout if asked else sys.stderr)
    return DONE if asked else BAD_USAGE


def _help() -> str:
    lines = ["usage: jaxfuse COMMAND ...", "", "Infrared-visible image fusion in JAX.", ""]
    lines += [f"  {name:10}{(job.__doc__ or '').splitlines()[0]}" for name, job in COMMANDS.items()]
    lines += ["", "`jaxfuse COMMAND --help` says more. `jaxfuse --version` prints the version."]
    return "\n".join(lines)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        return _usage(_help(), asked=bool(arguments))
    if arguments[0] == "--version":
        return _usage(__version__, asked=True)
    if arguments[0] not in COMMANDS:
        raise ConfigError(f"no command {arguments[0]!r}: choose one of {', '.join(COMMANDS)}")
    return COMMANDS[arguments[0]](arguments[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 done, 1 failed, 2 bad usage, 75 preempted and safely saved."""
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except SystemExit as stopped:  # tyro, after printing help or what is wrong with an option
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            return stopped.code if isinstance(stopped.code, int) else DONE
    except BrokenPipeError:
        pass
    except ConfigError as error:
        return _complain(str(error), BAD_USAGE)
    except UserError as error:
        return _complain(str(error), getattr(error, "exit_code", FAILED))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILED)
    # Whoever read our output has left, as `| head` does: nothing to complain of, now or at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _complain(text: str, code: int) -> int:
    print(f"jaxfuse: {text}", file=sys.stderr)
    return code
