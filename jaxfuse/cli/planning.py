"""The command that plans training on machines that are not here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxfuse import experiments
from jaxfuse.cli.words import DONE, FAILED, parse, take, usage
from jaxfuse.config import ConfigError, Experiment

HELP = """usage: jaxfuse plan PRESET|FILE [--topology v5e:2x2] [--batch-per-chip N] [--stage NAME]
                    [--no-search] [--json PATH|-] [--field value ...]

Compiles each stage's training step for TPU chips that are not here, with the TPU compiler of the
extra `tpu`, and prints per chip: memory, FLOPs, HBM traffic, collectives, the predicted time of a
step and what bounds it, and the largest batch that fits. Opens no data.

  --topology KIND:SHAPE   v5e:2x2 (default), v5e:16x16, v6e:16x16, v5p:2x2x1 ...
  --batch-per-chip N      target pairs on EACH chip; default: the config's train.batch_size, as if
                          each chip trained by itself. External patches that online alignment
                          offers and keeps grow with the batch
  --stage NAME            this stage only
  --no-search             do not look for the largest batch (up to 8 more compilations a stage)
  --json PATH|-           the plan as JSON too, into a file; - prints it instead of the text

Compiling takes from ten seconds to minutes a time; each is announced on stderr. Any field of the
config can be overridden, as in `jaxfuse train`: `jaxfuse plan PRESET --help` lists them. Exit code
1: a stage does not fit."""


def plan(arguments: Sequence[str]) -> int:
    """Compile for TPUs that are not here: memory, time of a step, largest batch."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return usage(HELP, asked=bool(arguments))
    source, rest = arguments[0], list(arguments[1:])
    if source.startswith("-"):
        raise ConfigError(f"plan {source}: name a preset, a file or a run folder first")
    topology, rest = take("--topology", rest, "a slice, such as v5e:2x2")
    batch, rest = take("--batch-per-chip", rest, "a number of pairs")
    stage, rest = take("--stage", rest, "a stage")
    out, rest = take("--json", rest, "a file, or - for the screen")
    search = "--no-search" not in rest
    experiment = parse(
        tyro.conf.AvoidSubcommands[Experiment],
        [word for word in rest if word != "--no-search"],
        f"plan {source}",
        default=experiments.find(source),
        description="Overrides of the preset's fields. `jaxfuse plan --help` has the options.",
    )
    if out not in ("", "-"):
        _check_writable(out)
    from jaxfuse.plan import chips

    where = chips.parse(topology or "v5e:2x2")
    if batch and not (batch.isascii() and batch.isdigit() and int(batch)):
        raise ConfigError(f"--batch-per-chip {batch}: give a number of pairs, 1 or more")
    from jaxfuse import distributed

    distributed.compute_on_cpu()
    from jaxfuse.plan import report

    rows = int(batch) if batch else experiment.train.batch_size
    found = report.make(experiment, where, rows, [stage] if stage else [], search)
    text = json.dumps(found, indent=1) + "\n"
    if out == "-":
        sys.stdout.write(text)
    else:
        print("\n".join(report.lines(found)))
        if out:
            Path(out).write_text(text, encoding="utf8")
            print(out)
    return DONE if all(row["fits"] for row in found["stages"]) else FAILED


def _check_writable(path: str) -> None:
    """Raises ConfigError now for a file that cannot be written when the plan is made."""
    new = not Path(path).exists()
    try:
        Path(path).open("a").close()
    except OSError as error:
        raise ConfigError(
            f"--json {path}: cannot be written ({error.strerror}): name a file in a folder that "
            "is there and may be written to"
        ) from error
    if new:
        Path(path).unlink()
