"""The scores of an evaluation, every image by itself, and the files they are kept in."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxfuse import __version__
from jaxfuse.config import UserError
from jaxfuse.data.images import FileError, write_bytes
from jaxfuse.metrics import Row

FORMAT = 1
"""Raised when files of before can no longer be read."""


class ResultsError(UserError, ValueError):
    """A results file that cannot be read; the message names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """Where a row of the tables comes from."""

    name: str
    kind: str
    """pictures, weights or baseline."""
    source: str
    """Folder, weights, or what the baseline is."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """One set's scores."""

    name: str
    role: str
    """in or out of the distribution trained on."""
    stems: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each pair."""
    files: dict[str, tuple[str, ...]]
    """Paths of the pictures by row ("visible", "infrared", methods), seen from the results file
    where they lie in its folder, else absolute."""
    values: dict[str, dict[str, np.ndarray]]
    """method -> metric -> one value a pair; NaN where the metric is undefined."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything an evaluation found."""

    metrics: tuple[Row, ...]
    methods: tuple[MethodRow, ...]
    reference: str
    datasets: tuple[Scores, ...]
    versions: dict[str, str]
    settings: dict[str, Any]
    date: str

    @property
    def undefined(self) -> list[tuple[str, str, str, int, str]]:
        """(dataset, method, metric, how many images, the first) wherever a metric is undefined for
        some image.
        """
        return [
            (
                scores.name,
                method,
                metric,
                int(np.isnan(values).sum()),
                scores.stems[int(np.isnan(values).argmax())],
            )
            for scores in self.datasets
            for method, row in scores.values.items()
            for metric, values in row.items()
            if np.isnan(values).any()
        ]


def to_json(evaluation: Evaluation) -> str:
    """The evaluation as JSON; a value that is not finite is null, "inf" or "-inf"."""
    tree = {
        "format": FORMAT,
        "jaxfuse": __version__,
        "date": evaluation.date,
        "settings": evaluation.settings,
        "versions": evaluation.versions,
        "reference": evaluation.reference,
        "metrics": msgspec.to_builtins(evaluation.metrics),
        "methods": msgspec.to_builtins(evaluation.methods),
        "datasets": [
            {
                "name": scores.name,
                "role": scores.role,
                "stems": scores.stems,
                "sizes": scores.sizes,
                "files": scores.files,
                "values": {
                    method: {
                        metric: [plain(float(x)) for x in values] for metric, values in row.items()
                    }
                    for method, row in scores.values.items()
                },
            }
            for scores in evaluation.datasets
        ],
    }
    return json.dumps(tree, indent=1) + "\n"


def plain(tree: Any) -> Any:
    """The same without numbers that JSON has no word for: null, "inf" and "-inf"."""
    if isinstance(tree, dict):
        return {key: plain(x) for key, x in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(x) for x in tree]
    if not isinstance(tree, float) or math.isfinite(tree):
        return tree
    return None if math.isnan(tree) else ("inf" if tree > 0 else "-inf")


def load(path: str | Path) -> Evaluation:
    """Reads what `save` wrote. path: the folder or its evaluation.json. Raises ResultsError."""
    path = Path(path)
    if path.is_dir():
        path = path / "evaluation.json"
    try:
        tree = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise ResultsError(
            f"{path}: cannot be read ({error.strerror}): give a folder of `jaxfuse evaluate`"
        ) from None
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON ({error}): run `jaxfuse evaluate` again") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, dict) else None
        raise ResultsError(
            f"{path}: format {found!r}, this version reads {FORMAT}: run `jaxfuse evaluate` again"
        )
    try:
        found = Evaluation(
            metrics=msgspec.convert(tree["metrics"], tuple[Row, ...]),
            methods=msgspec.convert(tree["methods"], tuple[MethodRow, ...]),
            reference=tree["reference"],
            datasets=tuple(
                Scores(
                    entry["name"],
                    entry["role"],
                    tuple(entry["stems"]),
                    tuple((int(h), int(w)) for h, w in entry["sizes"]),
                    {row: tuple(files) for row, files in entry["files"].items()},
                    {
                        method: {
                            metric: np.array([math.nan if x is None else float(x) for x in values])
                            for metric, values in row.items()
                        }
                        for method, row in entry["values"].items()
                    },
                )
                for entry in tree["datasets"]
            ),
            versions=tree["versions"],
            settings=tree["settings"],
            date=tree["date"],
        )
        _check_complete(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{path}: incomplete ({error!r}): run `jaxfuse evaluate` again"
        ) from None
    return found


def _check_complete(found: Evaluation) -> None:
    """Raises KeyError or ValueError, in a few words, where values are missing."""
    rows = [method.name for method in found.methods]
    if found.reference not in rows:
        raise ValueError(f"reference {found.reference} is no row")
    for scores in found.datasets:
        if len(scores.sizes) != len(scores.stems):
            raise ValueError(f"{scores.name}: {len(scores.sizes)} sizes")
        for row in rows:
            for about in found.metrics:
                count = len(scores.values[row][about.metric])
                if count != len(scores.stems):
                    raise ValueError(f"{scores.name}: {row} has {count} values of {about.metric}")


def long_csv(evaluation: Evaluation) -> str:
    """One line for each value: dataset, role, method, image, then the metric's row, then it."""
    about = {row.metric: row for row in evaluation.metrics}
    head = ("dataset", "role", "method", "image", "metric", "convention", "channel", "direction")
    lines = [(*head, "unit", "version", "value")]
    for scores in evaluation.datasets:
        for method, row in scores.values.items():
            for metric, values in row.items():
                a = about[metric]
                for stem, value in zip(scores.stems, values, strict=True):
                    lines.append(
                        (
                            scores.name,
                            scores.role,
                            method,
                            stem,
                            metric,
                            a.convention,
                            a.channel,
                            a.direction,
                            a.unit,
                            a.version,
                            repr(float(value)),
                        )
                    )
    return csv_text(lines)


def save(found: Evaluation, out: str | Path, more: dict[str, str]) -> list[Path]:
    """Writes evaluation.json and scores.csv, every value of every image, and the files of `more`,
    name -> text; returns their paths.
    """
    out = Path(out)
    files = {"evaluation.json": to_json(found), "scores.csv": long_csv(found), **more}
    make_folder(out)
    for name, text in files.items():
        write_bytes(out / name, text.encode("utf8"))
    return [out / name for name in files]


WRITTEN = ("evaluation.json", "scores.csv", "summary.csv", "summary.json", "table.md")
WRITTEN += ("report.html",)
"""What an evaluation may have left in its folder."""


def make_room(out: str | Path, overwrite: bool, written: Sequence[str] = WRITTEN) -> None:
    """Makes the folder, without the results `written` in it. Raises FileError where it holds some
    and may not be overwritten.
    """
    out = Path(out)
    make_folder(out)
    there = [out / name for name in written if (out / name).exists()]
    if there and not overwrite:
        raise FileError(
            there[0], "is there already", "name another --out, or add --overwrite to replace it"
        )
    for path in there:
        path.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it. Raises FileError where that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            folder, f"cannot be made ({error.strerror})", "choose a place that you may write to"
        ) from None


def csv_text(lines: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV text, first line the heads."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
