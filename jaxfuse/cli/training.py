"""Commands that train, and that show what training will see."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from jaxfuse import experiments
from jaxfuse.cli.words import DONE, FAILED, parse, take, usage
from jaxfuse.config import ConfigError, Experiment, SourceConfig, counted

AnySource = TypeVar("AnySource", bound=SourceConfig)


def train(arguments: Sequence[str]) -> int:
    """Train a preset, a config file, or continue a run folder."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [
            "usage: jaxfuse train PRESET|FILE|RUN [--run DIR] [--field value ...]",
            "",
            "Trains in the folder DIR (default runs/NAME, or RUN); a folder that holds the run is",
            "continued. `jaxfuse train PRESET --help` lists every field. Presets:",
            *(f"  {name:29}{line}" for name, line in experiments.describe_presets().items()),
        ]
        return usage("\n".join(lines), asked=bool(arguments))
    source = arguments[0]
    if source.startswith("-"):
        raise ConfigError(f"train {source}: name a preset, a file or a run folder first")
    run, rest = take("--run", arguments[1:])
    experiment = experiments.find(source)
    experiment = parse(
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
    with distributed.joined():
        from jaxfuse.train import loop

        outcome = loop.run(experiment, run or default)
        chief = distributed.is_chief()
    if not chief:
        return FAILED if outcome.doubts else DONE
    if outcome.loss is not None:
        print(f"{outcome.folder}: {counted(outcome.steps, 'step')}, loss {outcome.loss:.4f}")
    print(outcome.folder / "weights.safetensors")
    for doubt in outcome.doubts:
        print(f"{outcome.folder}: {doubt}", file=sys.stderr)
    return FAILED if outcome.doubts else DONE


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
    given = parse(AlignArguments, arguments, "align")
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
    if split and own.kind not in ("folders", "dataset", "records"):
        raise ConfigError(f"--{name}-split {split}: give its folder too: --{name} DIR")
    return dataclasses.replace(own, split=split) if split else own


@dataclasses.dataclass(frozen=True)
class DemoArguments:
    """Train briefly on generated scenes of two sensors, align, fuse, and show the pictures."""

    out: Path = Path("demo")
    """Folder for everything the demo makes; must be new, empty, or an earlier demo."""
    steps: int = 0
    """Steps per epoch; 0 takes the preset's."""


def demo(arguments: Sequence[str]) -> int:
    """Train, align and fuse on generated scenes in a few minutes."""
    given = parse(DemoArguments, arguments, "demo")
    from jaxfuse import distributed

    distributed.compilation_cache()
    from jaxfuse import demo as job

    job.run(given.out, steps_per_epoch=given.steps)
    return DONE
