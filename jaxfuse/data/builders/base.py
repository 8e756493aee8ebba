"""What a download is to the rest: pairs of files with their annotations, by split; reading one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxfuse.config import counted
from jaxfuse.data.builders.boxes import read_voc
from jaxfuse.data.builders.classes import ClassList, Coding, read_classes
from jaxfuse.data.folders import read_boxes, require_equal_sizes
from jaxfuse.data.headers import FileError
from jaxfuse.data.images import (
    Decoded,
    Stretch,
    infrared_from,
    read_four_channels,
    read_infrared,
    read_visible,
    size,
    visible_from,
)
from jaxfuse.data.pairs import DataError, Pair, Pairs

Time = Literal["unknown", "day", "night"]
TIMES: tuple[Time, ...] = ("unknown", "day", "night")

NAMED = 5
"""How many names a message lists."""


class Entry(NamedTuple):
    """One pair as files."""

    stem: str
    visible: Path
    infrared: Path | None
    """None: the fourth channel of the visible file."""
    labels: Path | None = None
    boxes: Path | None = None
    """.txt as YOLO writes them, .xml as VOC does."""
    time: Time = "unknown"

    def files(self) -> tuple[Path, ...]:
        """Every file of the pair, always in this order."""
        found = (self.visible, self.infrared, self.labels, self.boxes)
        return tuple(path for path in found if path is not None)


class Lack(NamedTuple):
    """A stem that some files carry and others should."""

    stem: str
    what: str
    """The missing file, for people: "no infrared file" and the like."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a download holds, judged by names alone."""

    root: Path
    """The folder in which the layout begins; it may lie below the one that was given."""
    splits: Mapping[str, tuple[Entry, ...]]
    """Whole pairs, sorted by stem."""
    lacking: Mapping[str, tuple[Lack, ...]] = dataclasses.field(default_factory=dict)
    errors: tuple[FileError, ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out, and why: nothing is passed over in silence."""
    expected: Mapping[str, int] | None = None
    """Pairs in each split where lists in the download say it; None: as `Dataset.splits`."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A public set: what it is, and how its files are found."""

    name: str
    title: str
    find: Callable[[Path], Found]
    splits: Mapping[str, int]
    """Pairs in each split of the whole download; 0 where any number is right."""
    layout: str
    """The folders under the root, for people."""
    source: str
    """Where to get it: publication and repository or site."""
    licence: str
    size: tuple[int, int] | None = None
    """Height and width of every image, where they are equal."""
    classes: ClassList | None = None
    """Of label maps; None where the set has none (or any)."""
    box_classes: tuple[str, ...] = ()
    """Names of the classes of boxes, in order."""
    labelled: bool = False
    """Whether every pair has a label map."""
    boxed: bool = False
    """Whether every pair has boxes."""
    any_extras: bool = False
    """Whether label maps and boxes are taken as they come: a set of one's own."""


def time_of(stem: str) -> Time:
    """Day or night where the stem says so as MFNet and MSRS do: digits, then D or N."""
    if len(stem) > 1 and stem[:-1].isdigit():
        return {"D": "day", "N": "night"}.get(stem[-1], "unknown")  # type: ignore[return-value]
    return "unknown"


def time_at(pairs: Pairs, index: int) -> Time:
    """When a pair of any set was taken: as the set tells, else as the stem does."""
    told = getattr(pairs, "time", None)
    return told(index) if told is not None else time_of(pairs.stem(index))


def choose(times: Mapping[str, Sequence[Time]], split: str, where: str) -> tuple[str, list[int]]:
    """A split by name: the part that holds it, and which of the part's pairs, in order.

    times: of each pair of each part. NAME_day and NAME_night choose the pairs of that time of day.
    Without a name the only part there is. Raises DataError for a name that is not there, and where
    nothing is left.
    """
    names = ", ".join(times)
    if not split and len(times) == 1:
        split = next(iter(times))
    if not split:
        raise DataError(f"{where}: has the splits {names}: name one of them as split")
    if split in times:
        return split, list(range(len(times[split])))
    base, _, time = split.rpartition("_")
    if base in times and time in ("day", "night"):
        chosen = [index for index, known in enumerate(times[base]) if known == time]
        if chosen:
            return base, chosen
        raise DataError(
            f"{where}: split {split!r}: no pair of {base!r} is known to be of the {time}: "
            "the names of this set do not tell day from night; name a split without it"
        )
    raise DataError(f"{where}: no split {split!r}: choose one of {names}")


def overlaps(
    lists: Mapping[str, Collection[str]], files: Mapping[str, str | Path]
) -> list[FileError]:
    """An error for any two lists that share stems: what was learned from would be judged.

    lists: stems by split. files: where each list stands.
    """
    found = []
    for (first, stems), (second, others) in itertools.combinations(lists.items(), 2):
        both = sorted(set(stems) & set(others))
        if both:
            more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
            value = (
                f"{counted(len(both), 'stem')} in {files[first]} as well: {', '.join(both[:NAMED])}"
            )
            remedy = "keep each stem in one list: a pair is learned from or judged, not both"
            found.append(FileError(files[second], value + more, remedy))
    return found


def sizes(entry: Entry) -> tuple[int, int]:
    """(height, width) of a pair from headers alone. Raises FileError where the files differ."""
    shape = size(entry.visible)
    if entry.infrared is not None:
        require_equal_sizes(entry.infrared, size(entry.infrared), entry.visible, shape)
    return shape


def read_entry_boxes(entry: Entry, shape: tuple[int, int], dataset: Dataset) -> np.ndarray | None:
    """float32 (n, 5): x0, y0, x1, y1 in pixels, class; None without a file."""
    if entry.boxes is None:
        return None
    if entry.boxes.suffix.lower() == ".xml":
        return read_voc(entry.boxes, dataset.box_classes)
    boxes = read_boxes(entry.boxes, *shape)
    names = dataset.box_classes
    wrong = sorted({int(kind) for kind in boxes[:, 4] if names and kind >= len(names)})
    if wrong:
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        found = f"class {', '.join(map(str, wrong))}"
        raise FileError(entry.boxes, found, f"classes of {dataset.name} are {listed}")
    return boxes


def split_channels(path: Path) -> tuple[Decoded, Decoded]:
    """Visible (h, w, 3) and infrared (h, w) of a file that holds both."""
    pixels = read_four_channels(path)
    bits = 8 * pixels.itemsize
    colours = np.ascontiguousarray(pixels[..., :3])
    return Decoded(colours, bits), Decoded(np.ascontiguousarray(pixels[..., 3]), bits)


def read_entry(
    entry: Entry, dataset: Dataset, coding: Coding = "index", stretch: Stretch = "none"
) -> Pair:
    """Reads one pair. Raises FileError for a bad file, unequal sizes and labels out of the list."""
    if entry.infrared is None:
        colours, heat = split_channels(entry.visible)
        visible = visible_from(colours)
        infrared = infrared_from(heat, entry.visible, stretch)
    else:
        visible = read_visible(entry.visible)
        infrared = read_infrared(entry.infrared, stretch)
        require_equal_sizes(entry.infrared, infrared.shape[:2], entry.visible, visible.shape[:2])
    height, width = visible.shape[:2]
    labels = None
    if entry.labels is not None:
        labels = read_classes(entry.labels, dataset.classes, (height, width), coding)
    boxes = read_entry_boxes(entry, (height, width), dataset)
    return Pair(entry.stem, visible, infrared, labels, boxes)


def require_whole(found: Found, where: str) -> None:
    """Raises where files lack their partners: an unpacked archive that is not all there."""
    if found.errors:
        raise found.errors[0]
    for split, lacks in found.lacking.items():
        if lacks:
            named = ", ".join(f"{lack.stem} ({lack.what})" for lack in lacks[:NAMED])
            more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
            raise FileError(
                where,
                f"{counted(len(lacks), 'pair')} of {split} not whole: {named}{more}",
                "unpack the download again, or remove what is left of these pairs",
            )
