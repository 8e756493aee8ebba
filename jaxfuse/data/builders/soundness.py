"""Whether a download is all there and can be read: counts, sizes, label values, boxes."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfuse.config import counted
from jaxfuse.data.builders.base import (
    NAMED,
    Dataset,
    Entry,
    Found,
    overlaps,
    read_entry_boxes,
    sizes,
    split_channels,
)
from jaxfuse.data.builders.boxes import odd_boxes
from jaxfuse.data.builders.classes import Coding, read_classes
from jaxfuse.data.builders.examples import Form
from jaxfuse.data.check import Problem, problem_lines
from jaxfuse.data.folders import parse_split
from jaxfuse.data.headers import FileError
from jaxfuse.data.images import decode, read_infrared, stored_bits


@dataclasses.dataclass(frozen=True)
class Soundness:
    """What `check_download` found."""

    dataset: Dataset
    found: Found
    form: Form
    errors: list[Problem]
    incomplete: list[Problem]
    """What a whole download has and this one lacks."""
    warnings: list[Problem]
    sizes: Counter[str]
    """ "HxW" -> pairs."""
    labels: Counter[str]
    """Class name (or "ignored") -> images in which it occurs."""
    boxes: Counter[str]
    """Class name -> boxes."""
    times: Counter[str]

    @property
    def ok(self) -> bool:
        """Whether the whole set can be prepared."""
        return not self.errors and not self.incomplete

    def text(self, limit: int = 5) -> str:
        """For people; limit: lines with the same remedy, 0 shows all."""
        counts = ", ".join(f"{name} {len(part)}" for name, part in self.found.splits.items())
        lines = [
            f"{self.dataset.name} in {self.found.root}: {counts or 'no'} pairs; "
            f"{counted(len(self.errors), 'error')}, {len(self.incomplete)} incomplete, "
            f"{counted(len(self.warnings), 'warning')}"
        ]
        limit_of = {"labels": 256, "boxes": 256, "time of day": 3, "sizes (height x width)": 5}
        for name, counter, unit in (
            ("sizes (height x width)", self.sizes, "pairs"),
            ("labels", self.labels, "images"),
            ("boxes", self.boxes, "boxes"),
            ("time of day", self.times, "pairs"),
        ):
            if counter and set(counter) != {"unknown"}:
                most = counter.most_common(limit_of[name])
                shown = ", ".join(f"{key} ({count} {unit})" for key, count in most)
                rest = len(counter) - limit_of[name]
                more = f" and {rest} more" if rest > 0 else ""
                lines.append(f"  {name}: {shown}{more}")
        lines += [f"  note: {note}" for note in self.found.notes]
        for kind, problems in (
            ("error", self.errors),
            ("incomplete", self.incomplete),
            ("warning", self.warnings),
        ):
            lines += problem_lines(kind, problems, limit)
        return "\n".join(lines)


def bits_of(entries: Sequence[Entry]) -> tuple[int, int]:
    """Bits per channel that hold every visible and every infrared file, from headers: 8 or 16."""
    found = {"visible": 8, "infrared": 8}
    for entry in entries:
        for band, path in (
            ("visible", entry.visible),
            ("infrared", entry.infrared or entry.visible),
        ):
            bits = stored_bits(path)
            if bits > 16:
                remedy = "save as 8 or 16 bit unsigned: records hold integers"
                raise FileError(path, f"{bits} bits per channel", remedy)
            found[band] = max(found[band], bits)
    return found["visible"], found["infrared"]


def form_of(dataset: Dataset, found: Found, coding: Coding = "index") -> Form:
    """What records of this download hold. Raises FileError for a file that cannot be opened."""
    entries = [entry for part in found.splits.values() for entry in part]
    visible, infrared = bits_of(entries)
    labels = dataset.labelled or (dataset.any_extras and any(entry.labels for entry in entries))
    boxes = dataset.boxed or (dataset.any_extras and any(entry.boxes for entry in entries))
    classes = dataset.classes.names if dataset.classes and labels else ()
    return Form(visible, infrared, labels, boxes, coding, classes, dataset.box_classes)


def chosen_by_lists(found: Found, lists: Mapping[str, str]) -> Found:
    """Other splits over the same pairs: name -> text file with one stem a line.

    Raises FileError for a stem that is not there, for one that two parts of the download carry,
    and for one that two lists name.
    """
    pool: dict[str, Entry] = {}
    for name, part in found.splits.items():
        for entry in part:
            if entry.stem in pool:
                value = f"stem {entry.stem!r} occurs in {name} and in another part"
                remedy = "lists need stems that are unique in the whole set"
                raise FileError(entry.visible, value, remedy)
            pool[entry.stem] = entry
    splits: dict[str, tuple[Entry, ...]] = {}
    named: dict[str, tuple[str, ...]] = {}
    for name, path in lists.items():
        stems, problems = parse_split(path)
        if problems:
            raise problems[0]
        absent = [stem for stem in stems if stem not in pool]
        if absent:
            value = (
                f"{counted(len(absent), 'stem')} without a whole pair: {', '.join(absent[:NAMED])}"
            )
            raise FileError(path, value, "remove them from the list, or add the files")
        splits[name], named[name] = tuple(pool[stem] for stem in stems), stems
    if shared := overlaps(named, lists):
        raise shared[0]
    return dataclasses.replace(found, splits=splits)


class _Look(NamedTuple):
    size: str | None
    classes: tuple[str, ...]
    boxes: tuple[str, ...]
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def _damage(entry: Entry) -> list[FileError]:
    """What reading the pictures of a pair stops at: headers alone do not tell."""
    found = []
    reads: list[tuple[Callable[[Path], Any], Path]] = [(split_channels, entry.visible)]
    if entry.infrared is not None:
        reads = [(decode, entry.visible), (read_infrared, entry.infrared)]
    for read, path in reads:
        try:
            read(path)
        except FileError as error:
            found.append(error)
    return found


def _look(entry: Entry, dataset: Dataset, coding: Coding) -> _Look:
    errors, warnings = [], []
    shape = None
    try:
        shape = sizes(entry)
        errors += [Problem.of(error) for error in _damage(entry)]
    except FileError as error:
        errors.append(Problem.of(error))
    if shape and dataset.size and shape != dataset.size:
        (h, w), (height, width) = shape, dataset.size
        value = f"{h} x {w} pixels (height x width); {dataset.name} is published as "
        remedy = "check that the files are as published"
        warnings.append(Problem(str(entry.visible), f"{value}{height} x {width}", remedy))
    names: tuple[str, ...] = ()
    if entry.labels is not None and (dataset.labelled or dataset.any_extras):
        try:
            labels = read_classes(entry.labels, dataset.classes, shape, coding)
            known = dataset.classes.names if dataset.classes else None
            names = tuple(
                "ignored" if value == 255 else known[value] if known else str(value)
                for value in np.unique(labels).tolist()
            )
        except FileError as error:
            errors.append(Problem.of(error))
    kinds: tuple[str, ...] = ()
    if entry.boxes is not None and shape is not None:
        try:
            boxes = read_entry_boxes(entry, shape, dataset)
            assert boxes is not None
            if odd := odd_boxes(boxes, *shape):
                value = f"{odd} boxes are empty or leave the image"
                warnings.append(Problem(str(entry.boxes), value, "they are kept as they stand"))
            known = dataset.box_classes
            kinds = tuple(known[k] if known else str(k) for k in boxes[:, 4].astype(int).tolist())
        except FileError as error:
            errors.append(Problem.of(error))
    size = f"{shape[0]}x{shape[1]}" if shape else None
    return _Look(size, names, kinds, tuple(errors), tuple(warnings))


def missing(dataset: Dataset, found: Found) -> list[Problem]:
    """What the whole set has and this download lacks: pairs without partners, and counts."""
    problems = []
    whole = dataset.splits if found.expected is None else found.expected
    splits = dict.fromkeys([*whole, *found.splits, *found.lacking])
    for split in splits:
        there = len(found.splits.get(split, ()))
        lacks = found.lacking.get(split, ())
        expected = whole.get(split, 0)
        if not lacks and (not expected or there == expected):
            continue
        named = ""
        if lacks:
            first = ", ".join(f"{lack.stem} ({lack.what})" for lack in lacks[:NAMED])
            more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
            named = f"; not whole: {first}{more}"
        wanted = (
            f"expected {counted(expected, 'pair')} in {split}, found {there}"
            if expected
            else (f"{counted(there, 'whole pair')} in {split}")
        )
        remedy = "unpack the whole download again, or prepare what is there (--allow-incomplete)"
        if expected and there > expected:
            remedy = "remove what does not belong to the set, or use --allow-incomplete"
        problems.append(Problem(str(found.root), wanted + named, remedy))
    return problems


def check_download(
    dataset: Dataset,
    root: Path,
    lists: Mapping[str, str] | None = None,
    coding: Coding = "index",
    threads: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Soundness:
    """Counts, and every picture, label map and box of a download, read as they are prepared.

    lists: splits of one's own instead of the set's, as in `chosen_by_lists`. Raises FileError where
    the layout is not found or a list is wrong; all else stands in the report.
    """
    found = dataset.find(root)
    incomplete = missing(dataset, found) if not lists else []
    if lists:
        found = chosen_by_lists(found, lists)
    pairs = [entry for part in found.splits.values() for entry in part]
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        looks = []
        for look in pool.map(lambda entry: _look(entry, dataset, coding), pairs):
            looks.append(look)
            if progress is not None:
                progress(len(looks), len(pairs), pairs[len(looks) - 1].stem)
    errors = [Problem.of(error) for error in found.errors]
    warnings: list[Problem] = []
    for look in looks:
        errors += look.errors
        warnings += look.warnings
    if not pairs and not errors and not incomplete:
        errors.append(Problem(str(found.root), "holds no pair", f"expected {dataset.layout}"))
    try:
        form = form_of(dataset, found, coding)
    except FileError as error:
        form = Form()
        if Problem.of(error) not in errors:
            errors.append(Problem.of(error))
    return Soundness(
        dataset,
        found,
        form,
        sorted(errors),
        incomplete,
        sorted(warnings),
        Counter(look.size for look in looks if look.size),
        Counter(name for look in looks for name in look.classes),
        Counter(name for look in looks for name in look.boxes),
        Counter(entry.time for entry in pairs),
    )
