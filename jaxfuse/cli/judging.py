"""Commands that score fused pictures and show the scores."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxfuse.cli.words import DONE, gather, parse, progress
from jaxfuse.config import ConfigError, counted

REMARKS = 5
"""Pictures named before the rest is counted."""


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Score fused pictures, or weights, beside visible only, infrared only, average and maximum."""

    task: Literal["fusion", "segmentation"] = "fusion"
    """segmentation: what networks learn from the pictures; `--task segmentation --help` says more.
    """
    out: Path = Path("evaluation")
    """Folder for evaluation.json, scores.csv, summary.csv and the pictures that weights make."""
    root: str = ""
    """Folder of pairs that holds ir/ and vi/ (or infrared/ and visible/)."""
    ir: str = ""
    """Infrared folder, where there is no common root."""
    vi: str = ""
    """Visible folder, where there is no common root."""
    split: str = ""
    """File with one stem a line: only these pairs are scored."""
    fused: tuple[str, ...] = ()
    """[NAME=]FOLDER of fused pictures, anybody's, named as the pairs; several may follow."""
    weights: tuple[str, ...] = ()
    """[NAME=]WEIGHTS: a file, a run folder or packaged weights to fuse with; several may follow."""
    protocol: str = ""
    """TOML file that names sets, methods and all else; see docs/guides/evaluation.md."""
    convention: str = ""
    """Whose definitions: jaxfuse (default), cddfuse, crossfuse, zoo, vifb or vifb_color."""
    metrics: tuple[str, ...] = ()
    """Metrics by name; none takes all that the convention defines."""
    reference: str = ""
    """Row that the others are tested against (default: the first method)."""
    dtype: Literal["", "float32", "float64"] = ""
    """Arithmetic of the metrics (default: float32)."""
    report: bool = False
    """Write report.html too."""
    overwrite: bool = False
    """Replace the results that OUT holds; pictures whose weights and pairs are the same stay."""


@dataclasses.dataclass(frozen=True)
class DownstreamArguments:
    """Judge fusion by what a segmentation network learns from its pictures: one is trained for each
    method and seed, and for visible only and infrared only, then judged on other pictures."""

    task: Literal["segmentation"] = "segmentation"
    """This task; without it fused pictures are scored."""
    out: Path = Path("downstream")
    """Folder for the results, pictures and runs; given again, what is there is not done again."""
    root: str = ""
    """Folder of the labelled pairs to judge on: ir/, vi/ and labels/."""
    split: str = ""
    """File with one stem a line: the pairs to judge on."""
    dataset: str = ""
    """ROOT is the download of this public set (`jaxfuse data list`): its own parts train and test,
    or those that --train-split and --split name."""
    train_root: str = ""
    """Folder of the labelled pairs to learn from, where it is another one."""
    train_split: str = ""
    """File with one stem a line: the pairs to learn from."""
    fused: tuple[str, ...] = ()
    """[NAME=]FOLDER of fused pictures of both parts; {part} in it stands for train or test."""
    weights: tuple[str, ...] = ()
    """[NAME=]WEIGHTS to fuse both parts with; {seed} in it stands for the seed."""
    protocol: str = ""
    """TOML file that names sets, methods and all else; see docs/guides/downstream.md."""
    classes: str = ""
    """How many classes, a class list by name (msrs, mfnet, fmb), or a file with one name a line."""
    segmenter: str = ""
    """Network to train (default: segformer_tiny)."""
    start: str = ""
    """Weights that every network starts from (default: random ones, by the seed)."""
    frozen: str = ""
    """What judges without learning from the pictures: visible (default: the networks trained on
    visible pictures), weights of a segmentation network, or none."""
    steps: int = 0
    """Length of each training."""
    epochs: float = 0.0
    """Length of each training, in passes over the patches (default: 20)."""
    batch_size: int = 0
    """Patches a step (default: 8)."""
    patch_size: int = 0
    """Side of a patch, pixels (default: 128)."""
    learning_rate: float = 0.0
    """Highest learning rate (default: 0.002)."""
    seeds: int = 0
    """Trainings of each row (default: 3)."""
    reference: str = ""
    """Row that the others are tested against (default: the first method)."""
    devices: int = 0
    """How many local devices train (default: all)."""
    report: bool = False
    """Write report.html too."""
    overwrite: bool = False
    """Replace the results that OUT holds, and runs of other settings or pictures."""


def _asks_for_downstream(arguments: Sequence[str]) -> bool:
    """By --task, or else by the protocol file."""
    given = {}
    for name, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = name.partition("=")
        if option in ("--task", "--protocol"):
            given[option] = value if equals else after
    if "--task" in given or not given.get("--protocol"):
        return given.get("--task") == "segmentation"
    from jaxfuse.evaluate import downstream_plan

    return downstream_plan.is_protocol(given["--protocol"])


def _downstream(arguments: Sequence[str]) -> int:
    several = gather(("--fused", "--weights"), arguments)
    given = parse(DownstreamArguments, several, "evaluate")
    from jaxfuse import distributed

    distributed.compilation_cache()
    from rich.console import Console

    from jaxfuse.evaluate import downstream, results
    from jaxfuse.evaluate import downstream_panels as panels
    from jaxfuse.evaluate import downstream_plan as plan
    from jaxfuse.evaluate import downstream_summary as summary

    own = ("task", "out", "root", "split", "dataset", "train_root", "train_split", "fused")
    own += ("weights", "protocol", "report", "overwrite")
    names = [field.name for field in dataclasses.fields(given) if field.name not in own]
    asked = plan.from_words(
        given.protocol,
        (given.root, given.split),
        (given.train_root, given.train_split),
        given.dataset,
        given.fused,
        given.weights,
        **{name: getattr(given, name) for name in names},
    )
    results.make_room(given.out, given.overwrite, (*summary.WRITTEN, "report.html"))
    found = downstream.run(asked, given.out, given.overwrite, progress)
    said = summary.summarise(found)
    files = [*summary.save(found, said, given.out), *panels.write(found, given.out)]
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in summary.text_tables(found, said):
        console.print(table)
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    if given.report:
        from jaxfuse.report import page

        files.append(page.write(given.out / "report.html", given.out))
    print("\n".join(str(path) for path in files))
    return DONE


def evaluate(arguments: Sequence[str]) -> int:
    """Score fused pictures, or what networks learn from them."""
    if _asks_for_downstream(arguments):
        return _downstream(arguments)
    several = gather(("--fused", "--weights", "--metrics"), arguments)
    given = parse(EvaluateArguments, several, "evaluate")
    from jaxfuse import distributed

    distributed.compilation_cache()
    from rich.console import Console

    from jaxfuse.evaluate import plan, results, score, summary

    asked = plan.from_words(
        given.protocol,
        plan.Dataset("", "in", given.root, given.ir, given.vi, given.split),
        given.fused,
        given.weights,
        convention=given.convention,
        metrics=given.metrics,
        reference=given.reference,
        dtype=given.dtype,
    )
    results.make_room(given.out, given.overwrite)
    found = score.run(asked, given.out, progress("scoring"))
    said = summary.summarise(found)
    files = results.save(found, given.out, summary.files(found, said))
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in summary.text_tables(found, said):
        console.print(table)
    for remark in found.settings["remarks"][:REMARKS]:
        print(remark, file=sys.stderr)
    if (more := len(found.settings["remarks"]) - REMARKS) > 0:
        print(f"and {counted(more, 'more such picture')} (evaluation.json)", file=sys.stderr)
    for dataset, method, metric, count, first in found.undefined:
        print(
            f"{dataset}: {metric} of {method}: undefined for {counted(count, 'image')}, first "
            f"{first}",
            file=sys.stderr,
        )
    if given.report:
        from jaxfuse.report import page

        files.append(page.write(given.out / "report.html", given.out))
    print("\n".join(str(path) for path in files))
    return DONE


@dataclasses.dataclass(frozen=True)
class ReportArguments:
    """One self-contained web page of an evaluation, a run, or both."""

    evaluation: Annotated[str, tyro.conf.Positional] = ""
    """Folder that `jaxfuse evaluate` wrote, for either task."""
    run: str = ""
    """Folder that `jaxfuse train` wrote: its curves, Top-K selection and configuration."""
    out: Path = Path("report.html")
    """The page."""
    title: str = ""
    """Its title."""


def report(arguments: Sequence[str]) -> int:
    """Write one web page of an evaluation or a run."""
    given = parse(ReportArguments, arguments, "report")
    from jaxfuse.report import page

    written = page.write(given.out, given.evaluation or None, given.run or None, given.title)
    print(f"{written} ({written.stat().st_size / 1e6:.1f} MB)")
    return DONE


@dataclasses.dataclass(frozen=True)
class SegmentsArguments:
    """Look at the two segmentations of an SSVIF run and at what stage II did to the fused image.

    Without --root it is the run's validation pairs, or else those it learned from.
    """

    run: Annotated[str, tyro.conf.Positional]
    """Folder that `jaxfuse train` wrote."""
    root: str = ""
    """Folder of pairs: ir/ and vi/."""
    split: str = ""
    """Text file with one stem a line."""
    out: Path = Path("segments")
    """Folder for one picture a pair."""
    limit: int = 20
    """At most so many pairs, evenly chosen; 0 takes all."""


def segments(arguments: Sequence[str]) -> int:
    """Look at what the two segmentations of an SSVIF run see."""
    given = parse(SegmentsArguments, arguments, "segments")
    if given.split and not given.root:
        raise ConfigError(f"--split {given.split}: give --root DIR too")
    if given.limit < 0:
        raise ConfigError(f"--limit {given.limit}: use 1 or more, or 0 for all")
    from jaxfuse import distributed
    from jaxfuse.config import SourceConfig
    from jaxfuse.data.sources import open_source, without_labels
    from jaxfuse.evaluate import segments as job

    distributed.compilation_cache()
    run = job.load(given.run)
    data = run.experiment.data
    source = data.validation if data.validation.kind != "none" else data.target
    if given.root:
        source = SourceConfig("folders", root=given.root, split=given.split)
    pairs = without_labels(open_source(source))
    count = len(pairs)
    chosen = range(count)
    if given.limit and given.limit < count:
        chosen = [i * count // given.limit for i in range(given.limit)]
    means, written = job.write(run, pairs, given.out, progress("segmenting"), chosen)
    for when, signs in means.items():
        print(
            f"{when} stage II: A and B agree on {signs['agreement']:.1%} of the cells; "
            f"{signs['classes_in_use']:.1f} classes in use in an image; confidence "
            f"{signs['confidence']:.2f}"
        )
    of_all = "" if len(written) == count else f" of {count} (--limit 0 for all)"
    print(f"{given.out}: {counted(len(written), 'picture')}{of_all}")
    return DONE
