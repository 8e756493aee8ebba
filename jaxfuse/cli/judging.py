"""Commands that score fused pictures and show the scores."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxfuse.cli.words import DONE, gather, parse, progress

REMARKS = 5
"""Pictures named before the rest is counted."""


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Score fused pictures, or weights, beside visible only, infrared only, average and maximum."""

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


def evaluate(arguments: Sequence[str]) -> int:
    """Score fused pictures by every metric the field uses."""
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
        print(f"and {more} more such pictures (evaluation.json)", file=sys.stderr)
    for dataset, method, metric, count, first in found.undefined:
        print(
            f"{dataset}: {metric} of {method}: undefined for {count} images, first {first}",
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
    """Folder that `jaxfuse evaluate` wrote."""
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
