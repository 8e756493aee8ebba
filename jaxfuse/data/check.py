"""Everything that is wrong with a set of pairs, at once: every file is opened and looked at.

Errors are what reading the set stops at; warnings are what can be read and is probably not meant.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfuse.config import counted
from jaxfuse.data.builders.classes import ClassList, check_labels
from jaxfuse.data.folders import Listing, Scan, read_boxes, require_equal_sizes, scan
from jaxfuse.data.images import (
    SMALL_RANGE,
    FileError,
    black,
    decode,
    infrared_from,
    read_mask,
)

FLAT_LEVELS = 2
"""An 8-bit image that spans no more levels than this shows nothing; compression adds that much."""
_FULL = {8: 255, 16: 65535, 32: 1}


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """One thing to mend: the file, what was found in it, what to do."""

    file: str
    value: str
    remedy: str

    @classmethod
    def of(cls, error: FileError) -> Problem:
        """What an error says of its file."""
        return cls(error.file, error.value, error.remedy)

    def __str__(self) -> str:
        return f"{self.file}: {self.value}: {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check_folders` found."""

    pairs: int
    """Stems with an infrared and a visible file; with a split, those that it chooses."""
    errors: list[Problem]
    warnings: list[Problem]
    summary: dict[str, Any]
    """JSON-ready. sizes: "HxW" -> pairs. infrared, visible: files, bits, channels, mean (level).
    labels, boxes (where the folders exist): files, values or count and classes."""

    @property
    def ok(self) -> bool:
        """Whether the set can be read from end to end."""
        return not self.errors

    def text(self, limit: int = 0) -> str:
        """For people, a problem a line. limit: lines with the same remedy; 0 shows all."""
        lines = [
            f"{counted(self.pairs, 'pair')}, {counted(len(self.errors), 'error')}, "
            f"{counted(len(self.warnings), 'warning')}"
        ]
        sizes = self.summary["sizes"]
        if sizes:
            most = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
            shown = ", ".join(f"{name} ({count})" for name, count in most[:5])
            more = f" and {len(most) - 5} more sizes" if len(most) > 5 else ""
            lines.append(f"  sizes (height x width): {shown}{more}")
        for band in ("infrared", "visible"):
            facts = self.summary[band]
            if facts["files"]:
                bits = [f"{bit} bit ({count})" for bit, count in facts["bits"].items()]
                channels = facts["channels"].items()
                channels = [f"{counted(n, 'channel')} ({count})" for n, count in channels]
                line = f"  {band} ({counted(facts['files'], 'file')}): "
                if facts["mean"] is None:
                    lines.append(line + "none can be read")
                else:
                    mean = f"mean level {facts['mean']:.1f} of 255"
                    lines.append(line + ", ".join([*bits, *channels, mean]))
        if "labels" in self.summary:
            labels = self.summary["labels"]
            values = ", ".join(map(str, labels["values"]))
            lines.append(f"  labels ({counted(labels['files'], 'file')}): values {values}")
        if "boxes" in self.summary:
            boxes = self.summary["boxes"]
            classes = [f"class {kind} ({count})" for kind, count in boxes["classes"].items()]
            line = f"  boxes ({counted(boxes['files'], 'file')}): {boxes['count']} boxes"
            lines.append(", ".join([line, *classes]))
        for kind, problems in (("error", self.errors), ("warning", self.warnings)):
            lines += problem_lines(kind, problems, limit)
        return "\n".join(lines)


def problem_lines(kind: str, problems: Iterable[Problem], limit: int) -> list[str]:
    """A line each; of those with one remedy at most `limit` (0: all), and how many more."""
    lines, shown_of = [], Counter[str]()
    for problem in problems:
        shown_of[problem.remedy] += 1
        if not limit or shown_of[problem.remedy] <= limit:
            lines.append(f"{kind}: {problem}")
    for remedy, count in shown_of.items():
        if limit and count > limit:
            lines.append(f"{kind}: ... and {counted(count - limit, 'more file')}: {remedy}")
    return lines


class _Facts(NamedTuple):
    """What one file showed; problems apart, None where it could not be read."""

    shape: tuple[int, ...] | None
    bits: int
    mean: float
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def _unreadable(error: FileError) -> _Facts:
    return _Facts(None, 0, 0.0, (Problem.of(error),), ())


def _look_at_image(path: Path, band: str) -> _Facts:
    try:
        decoded = decode(path)
    except FileError as error:
        return _unreadable(error)
    pixels, bits = decoded
    errors: list[Problem] = []
    warnings: list[Problem] = []
    if band == "infrared":
        try:
            infrared_from(decoded, path)
        except FileError as error:
            errors.append(Problem.of(error))
    low, high, full = pixels.min(), pixels.max(), _FULL[bits]
    if high == low or (bits == 8 and int(high) - int(low) <= FLAT_LEVELS):
        dark = black(decoded)
        found = f"every pixel lies in {low}..{high} of 0..{full}{' (all black)' if dark else ''}"
        remedy = "record it again, or leave the pair out by a split"
        (errors if dark else warnings).append(Problem(str(path), found, remedy))
    elif bits == 16 and int(high) - int(low) < SMALL_RANGE:
        found = f"16-bit values span only {low}..{high} of 0..{full}: it looks black"
        remedy = "rescale the files, the whole set alike"
        if band == "infrared":
            remedy += ", or spread each by itself with --infrared-stretch minmax or percentile"
        warnings.append(Problem(str(path), found, remedy))
    mean = float(pixels.mean(dtype=np.float64)) * 255 / full
    return _Facts(pixels.shape, bits, mean, tuple(errors), tuple(warnings))


def _look_at_labels(
    path: Path, shape: tuple[int, ...] | None, classes: ClassList | None
) -> tuple[set[int], list[Problem]]:
    """(values that occur in the file, errors)."""
    try:
        stored = read_mask(path)
    except FileError as error:
        return set(), [Problem.of(error)]
    errors: list[Problem] = []
    # One after the other: a map of another size may hold wrong values too.
    for size, known in ((stored.shape[:2], classes), (shape[:2] if shape else None, None)):
        try:
            check_labels(stored, known, path, size)
        except FileError as error:
            if Problem.of(error) not in errors:
                errors.append(Problem.of(error))
    return set(np.unique(stored).tolist()) if stored.ndim == 2 else set(), errors


def _look_at_boxes(
    path: Path, shape: tuple[int, ...] | None, classes: ClassList | None
) -> tuple[list[int], list[Problem]]:
    """(class of each box, errors). Without the image's size the boxes are read in units of it."""
    try:
        boxes = read_boxes(path, *(shape[:2] if shape else (1, 1)))
    except FileError as error:
        return [], [Problem.of(error)]
    kinds = boxes[:, 4].astype(int).tolist()
    count = len(classes) if classes is not None else 0
    wrong = sorted({kind for kind in kinds if count and kind >= count})
    if not wrong:
        return kinds, []
    remedy = f"with {count} classes they are 0..{count - 1}"
    return kinds, [Problem(str(path), f"class {', '.join(map(str, wrong))}", remedy)]


def _by_name(found: Scan, split: str) -> tuple[list[Problem], list[Problem]]:
    """The errors and warnings that the names alone show."""
    errors = [Problem.of(error) for error in found.errors]
    warnings: list[Problem] = []
    for stem in found.missing:
        lacks = [
            band
            for band, listing in (("infrared", found.infrared), ("visible", found.visible))
            if stem not in listing.files
        ]
        remedy = "remove it from the split, or add the file"
        errors.append(Problem(split, f"stem {stem!r} has no {' and no '.join(lacks)} file", remedy))
    # A split chooses: what it leaves out may be incomplete.
    chosen = set(found.stems)
    for path in found.unpaired:
        remedy = "stems must be equal in both folders: rename, add or remove files"
        (warnings if split else errors).append(Problem(str(path), "has no partner", remedy))
    for listing in (found.infrared, found.visible, found.labels, found.boxes):
        for stem, paths in listing.duplicates.items():
            value = f"stem {stem!r} also has {', '.join(path.name for path in paths[1:])}"
            problem = Problem(str(paths[0]), value, "keep one file per stem")
            (errors if stem in chosen or not split else warnings).append(problem)
        for path in listing.unknown:
            value = f"ending {path.suffix!r} is not read in {path.parent.name}/"
            warnings.append(Problem(str(path), value, "convert it, or remove it"))
        if listing.subfolders:
            value = f"{listing.subfolders} subfolders are not looked into"
            warnings.append(Problem(str(listing.folder), value, "put the files directly into it"))
    for what, listing in (("labels", found.labels), ("boxes", found.boxes)):
        if listing.folder is None:
            continue
        lacking = [stem for stem in found.stems if stem not in listing.files]
        if lacking:
            value = f"no {what} for {len(lacking)} of {len(found.stems)} pairs, e.g. {lacking[0]!r}"
            warnings.append(Problem(str(listing.folder), value, "add them if they are to be used"))
        both = found.infrared.files.keys() | found.visible.files.keys()
        warnings += [
            Problem(str(path), "belongs to no image", "rename it to an image's stem, or remove it")
            for stem, path in listing.files.items()
            if stem not in both
        ]
    return errors, warnings


def _files(listing: Listing, stems: Iterable[str] | None) -> list[Path]:
    """All files of the stems, duplicates too; of every stem for None."""
    chosen = listing.files.keys() if stems is None else stems
    return [
        path for stem in chosen for path in listing.duplicates.get(stem, (listing.files[stem],))
    ]


def _band(facts: Iterable[_Facts]) -> dict[str, Any]:
    facts = list(facts)
    read = [fact for fact in facts if fact.shape is not None]
    channels = Counter(str(fact.shape[2] if len(fact.shape) == 3 else 1) for fact in read)
    return {
        "files": len(facts),
        "bits": dict(sorted(Counter(str(fact.bits) for fact in read).items())),
        "channels": dict(sorted(channels.items())),
        "mean": float(np.mean([fact.mean for fact in read])) if read else None,
    }


def check_folders(
    root: str = "",
    infrared: str = "",
    visible: str = "",
    split: str = "",
    classes: ClassList | None = None,
    threads: int = 0,
) -> Report:
    """Opens every file of a set of pairs and reports all problems; arguments as in `open_folders`.

    With a split only the pairs that it chooses are opened, and unpaired files are warnings.
    classes: what label files may hold, as the list has it in files, and boxes, which count from 0;
    None takes any. threads: 0 takes one a core, at most eight. Nothing in the files raises: it
    stands in the report.
    """
    found = scan(root, infrared, visible, split)
    errors, warnings = _by_name(found, split)
    stems = found.stems if split else None
    ir_files, vi_files = _files(found.infrared, stems), _files(found.visible, stems)
    ir, vi = found.infrared.files, found.visible.files
    summary: dict[str, Any] = {"pairs": len(found.stems)}
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        bands = ["infrared"] * len(ir_files) + ["visible"] * len(vi_files)
        paths = ir_files + vi_files
        facts = dict(zip(paths, pool.map(_look_at_image, paths, bands), strict=True))
        shapes = {path: fact.shape for path, fact in facts.items()}
        labelled = [stem for stem in found.stems if stem in found.labels.files]
        boxed = [stem for stem in found.stems if stem in found.boxes.files]
        labels = pool.map(
            lambda stem: _look_at_labels(found.labels.files[stem], shapes[vi[stem]], classes),
            labelled,
        )
        boxes = pool.map(
            lambda stem: _look_at_boxes(found.boxes.files[stem], shapes[vi[stem]], classes), boxed
        )
        labels, boxes = list(labels), list(boxes)
    for fact in facts.values():
        errors += fact.errors
        warnings += fact.warnings
    sizes: Counter[str] = Counter()
    for stem in found.stems:
        first, second = shapes[ir[stem]], shapes[vi[stem]]
        if first is None or second is None:
            continue
        try:
            require_equal_sizes(ir[stem], first[:2], vi[stem], second[:2])
            sizes[f"{first[0]}x{first[1]}"] += 1
        except FileError as error:
            errors.append(Problem.of(error))
    summary["sizes"] = dict(sizes)
    summary["infrared"] = _band(facts[path] for path in ir_files)
    summary["visible"] = _band(facts[path] for path in vi_files)
    for _, found_errors in labels + boxes:
        errors += found_errors
    if found.labels.folder:
        values = sorted(set().union(*(values for values, _ in labels)))
        summary["labels"] = {"files": len(labels), "values": values}
    if found.boxes.folder:
        kinds = Counter(kind for kinds, _ in boxes for kind in kinds)
        by_class = {str(kind): kinds[kind] for kind in sorted(kinds)}
        summary["boxes"] = {"files": len(boxes), "count": kinds.total(), "classes": by_class}
    return Report(len(found.stems), sorted(errors), sorted(warnings), summary)
