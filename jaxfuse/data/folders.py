"""Pairs from two folders of image files with equal stems, as people keep them.

    ROOT/ir/a.png  ROOT/vi/a.jpg  [ROOT/labels/a.png]  [ROOT/boxes/a.txt]

Folder names are matched without regard to case, see INFRARED_NAMES and VISIBLE_NAMES. Hidden files,
subfolders and what file managers leave behind are passed over.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxfuse.config import SourceConfig, counted
from jaxfuse.data.builders.classes import read_classes
from jaxfuse.data.images import (
    EXTENSIONS,
    FileError,
    Stretch,
    read_infrared,
    read_visible,
    size,
)
from jaxfuse.data.pairs import Pair

INFRARED_NAMES = ("ir", "infrared", "thermal", "lwir")
VISIBLE_NAMES = ("vi", "vis", "visible", "rgb")
"""Folder names looked for under a root, in lower case."""

_LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_COMMENT = re.compile(r"(^|\s)#.*")
_NAMED = 5


class Listing(NamedTuple):
    """The files of one folder by stem; of duplicates the first in the order of names."""

    folder: Path | None
    files: dict[str, Path]
    duplicates: dict[str, tuple[Path, ...]]
    """Stems that more than one file has."""
    unknown: tuple[Path, ...]
    """Files whose ending is not one of those asked for."""
    subfolders: int


_NOTHING = Listing(None, {}, {}, (), 0)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        found = f"cannot be listed ({error.strerror})"
        raise FileError(folder, found, "check the path and its permissions") from None


def list_files(folder: Path, endings: Iterable[str]) -> Listing:
    """The files directly in `folder`, by name. Raises FileError where it cannot be listed."""
    groups: dict[str, list[Path]] = {}
    unknown, subfolders = [], 0
    for path in _entries(folder):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            subfolders += 1
        elif path.suffix.lower() in endings:
            groups.setdefault(path.stem, []).append(path)
        elif path.name.lower() not in _LITTER:
            unknown.append(path)
    duplicates = {stem: tuple(paths) for stem, paths in groups.items() if len(paths) > 1}
    files = {stem: groups[stem][0] for stem in sorted(groups)}
    return Listing(folder, files, duplicates, tuple(unknown), subfolders)


def parse_split(path: str | Path) -> tuple[tuple[str, ...], list[FileError]]:
    """The stems a split file names, sorted, and everything wrong with the file.

    One stem a line, with or without an image ending; blank lines do not count, nor does
    what follows a # at the start of a line or after a space.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
        return (), [FileError(path, found, "give a text file with one stem a line")]
    except UnicodeDecodeError:
        return (), [FileError(path, "not a UTF-8 text", "give a text file with one stem a line")]
    problems: list[FileError] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = _COMMENT.sub("", line).strip()
        if not name:
            continue
        stem = Path(name).stem if Path(name).suffix.lower() in EXTENSIONS else name
        if "/" in name or "\\" in name:
            problems.append(FileError(path, f"line {number}: {name!r}", "give stems, no folders"))
        elif stem in seen:
            found = f"line {number}: {stem!r} again, first in line {seen[stem]}"
            problems.append(FileError(path, found, "name each stem once"))
        else:
            seen[stem] = number
    if not seen and not problems:
        problems.append(FileError(path, "names no stem", "write one stem a line"))
    return tuple(sorted(seen)), problems


@dataclasses.dataclass(frozen=True)
class Scan:
    """What folders and a split file hold, judged by names alone: no image is opened."""

    infrared: Listing
    visible: Listing
    labels: Listing
    boxes: Listing
    stems: tuple[str, ...]
    """The pairs, sorted: stems with both files, of those that the split chooses if there is one."""
    unpaired: tuple[Path, ...]
    """Files without a partner."""
    missing: tuple[str, ...]
    """Stems that the split chooses and that lack a file."""
    errors: tuple[FileError, ...]
    """What makes the set unusable besides unpaired files, missing stems and duplicates."""


def _find(root: Path, names: tuple[str, ...], role: str) -> Path:
    folders = [path for path in _entries(root) if path.is_dir()]
    found = [path for path in folders if path.name.lower() in names]
    if len(found) == 1:
        return found[0]
    remedy = f"name one of them {names[0]}, or give the {role} and the other folder by themselves"
    if found:
        both = " and ".join(path.name for path in found)
        raise FileError(root, f"{both} could both be the {role} folder", remedy)
    there = ", ".join(path.name for path in folders[:_NAMED]) or "no folder"
    looked = "/, ".join(names)
    found_text = f"no {role} folder (looked for {looked}/ in any case; there is {there})"
    raise FileError(root, found_text, remedy.replace("one of them", "it"))


def _images(given: str, root: str, names: tuple[str, ...], role: str) -> Listing:
    if given:
        folder = Path(given)
    elif not root:
        raise FileError("", f"no {role} folder given", "give a root, or both folders")
    elif not Path(root).is_dir():
        raise FileError(root, "no such folder", "give a folder that holds ir/ and vi/")
    else:
        folder = _find(Path(root), names, role)
    if not folder.is_dir():
        raise FileError(folder, f"no such folder ({role})", "check the path")
    listing = list_files(folder, EXTENSIONS)
    if not listing.files:
        there = f"{len(listing.unknown)} other files, {listing.subfolders} subfolders"
        endings = " ".join(sorted(EXTENSIONS))
        remedy = f"put the {role} images directly into it ({endings})"
        raise FileError(folder, f"no images ({there})", remedy)
    return listing


def _extras(root: str, name: str, ending: str) -> Listing:
    if not root or not Path(root).is_dir():
        return _NOTHING
    for path in _entries(Path(root)):
        if path.name.lower() == name and path.is_dir():
            return list_files(path, {ending})
    return _NOTHING


def _label_maps(given: str, root: str) -> Listing:
    if not given:
        return _extras(root, "labels", ".png")
    if not Path(given).is_dir():
        raise FileError(given, "no such folder (labels)", "check the path")
    return list_files(Path(given), {".png"})


def scan(
    root: str = "", infrared: str = "", visible: str = "", split: str = "", labels: str = ""
) -> Scan:
    """Lists everything and raises nothing: the problems are in the result."""
    errors: list[FileError] = []
    listings = []
    for given, names, role in (
        (infrared, INFRARED_NAMES, "infrared"),
        (visible, VISIBLE_NAMES, "visible"),
    ):
        try:
            listings.append(_images(given, root, names, role))
        except FileError as error:
            listings.append(_NOTHING)
            if str(error) not in map(str, errors):
                errors.append(error)
    ir, vi = listings
    if ir.folder and vi.folder and ir.folder.resolve() == vi.folder.resolve():
        errors.append(FileError(ir.folder, "is both infrared and visible", "give two folders"))
    extras = []
    for find in (lambda: _label_maps(labels, root), lambda: _extras(root, "boxes", ".txt")):
        try:
            extras.append(find())
        except FileError as error:
            extras.append(_NOTHING)
            errors.append(error)
    both = ir.files.keys() & vi.files.keys()
    unpaired = [path for stem, path in (*ir.files.items(), *vi.files.items()) if stem not in both]
    stems, missing = tuple(sorted(both)), ()
    if split:
        chosen, problems = parse_split(split)
        errors += problems
        stems = tuple(stem for stem in chosen if stem in both)
        missing = tuple(stem for stem in chosen if stem not in both)
    if ir is _NOTHING or vi is _NOTHING:
        unpaired, missing = [], ()  # All of them would be: the missing folder says it.
    return Scan(ir, vi, *extras, stems, tuple(unpaired), missing, tuple(errors))


def _some(names: Iterable[str], count: int) -> str:
    first = [name for name, _ in zip(names, range(_NAMED), strict=False)]
    return ", ".join(first) + (f" and {count - _NAMED} more" if count > _NAMED else "")


def read_boxes(path: str | Path, height: int, width: int) -> np.ndarray:
    """float32 (n, 5): x0, y0, x1, y1 in pixels, class; n may be 0.

    Each line is `class cx cy w h`, relative to the image size, as YOLO writes them. Raises
    FileError for anything else, an empty box, and a box that leaves the image by more than one
    pixel; up to there the numbers are kept as they are.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text"
        raise FileError(path, f"cannot be read ({why})", "check the file") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        shown = f"line {number}: {' '.join(line.split())!r}"
        try:
            kind, cx, cy, w, h = (float(word) for word in line.split())
        except ValueError:
            remedy = "write five numbers: class cx cy w h, relative to the image size"
            raise FileError(path, shown, remedy) from None
        if not (kind >= 0 and kind.is_integer()):
            raise FileError(path, shown, "the class must be 0, 1, 2 ...")
        if not all(map(math.isfinite, (cx, cy, w, h))) or w <= 0 or h <= 0:
            raise FileError(path, shown, "width and height must be positive numbers")
        x0, y0 = (cx - w / 2) * width, (cy - h / 2) * height
        x1, y1 = (cx + w / 2) * width, (cy + h / 2) * height
        if x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
            edges = f"{x0:.1f} {y0:.1f} {x1:.1f} {y1:.1f}"
            found = f"{shown} is pixels {edges} of {width} x {height}"
            raise FileError(path, found, "keep boxes inside the image, relative to its size")
        rows.append((x0, y0, x1, y1, kind))
    return np.array(rows, np.float32).reshape(-1, 5)


@dataclasses.dataclass(frozen=True)
class FolderPairs:
    """Pairs of files, by stem; see `jaxfuse.data.pairs.Pairs`. Files are opened when read."""

    stems: tuple[str, ...]
    infrared: tuple[Path, ...]
    visible: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    boxes: tuple[Path | None, ...]
    stretch: Stretch = "none"
    """How infrared values are spread, see `jaxfuse.data.images.read_infrared`."""

    @classmethod
    def open(cls, source: SourceConfig) -> FolderPairs:
        """The pairs of a source of kind "folders". Raises DataError, also where the headers of a
        pair's files tell different sizes.
        """
        pairs = open_folders(
            source.root,
            source.infrared,
            source.visible,
            source.split,
            source.infrared_stretch,
            source.labels,
        )
        for infrared, visible in zip(pairs.infrared, pairs.visible, strict=True):
            require_equal_sizes(infrared, size(infrared), visible, size(visible))
        return pairs

    def __len__(self) -> int:
        return len(self.stems)

    def stem(self, index: int) -> str:
        """The common stem of the pair's files."""
        return self.stems[index]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the visible file, from its header."""
        return size(self.visible[index])

    def __getitem__(self, index: int) -> Pair:
        """Reads one pair. Raises DataError for a bad file and for unequal sizes."""
        infrared_file, visible_file = self.infrared[index], self.visible[index]
        infrared = read_infrared(infrared_file, self.stretch, allow_black=False)
        visible = read_visible(visible_file, allow_black=False)
        h, w = visible.shape[:2]
        require_equal_sizes(infrared_file, infrared.shape[:2], visible_file, (h, w))
        labels = boxes = None
        if (labels_file := self.labels[index]) is not None:
            labels = read_classes(labels_file, None, (h, w))
        if (boxes_file := self.boxes[index]) is not None:
            boxes = read_boxes(boxes_file, h, w)
        return Pair(self.stems[index], visible, infrared, labels, boxes)


def require_equal_sizes(
    file: Path, shape: tuple[int, ...], visible_file: Path, visible_shape: tuple[int, ...]
) -> None:
    """Raises FileError unless both (height, width) are equal."""
    if tuple(shape) != tuple(visible_shape):
        (h, w), (vh, vw) = shape, visible_shape
        found = f"{h} x {w} pixels (height x width), but {visible_file} has {vh} x {vw}"
        raise FileError(file, found, "register the pair: both images must cover the same pixels")


def open_folders(
    root: str = "",
    infrared: str = "",
    visible: str = "",
    split: str = "",
    stretch: Stretch = "none",
    labels: str = "",
) -> FolderPairs:
    """Pairs from ROOT/{ir,vi}, or from two given folders, by equal stem, sorted by stem.

    split: a text file with one stem a line; only these are taken, and files of other stems do not
    matter. Labels (ROOT/labels/*.png, or LABELS/*.png) and boxes (ROOT/boxes/*.txt) are read where
    they exist.
    Raises DataError for a missing or empty folder, stems without partner, stems that two files
    have, and a split that names what is not there. Files are opened later, at reading.
    """
    found = scan(root, infrared, visible, split, labels)
    if found.errors:
        raise found.errors[0]
    if found.missing:
        count = len(found.missing)
        value = f"{counted(count, 'stem')} without an infrared and a visible file: "
        remedy = "remove them from the split, or add the files"
        raise FileError(split, value + _some(found.missing, count), remedy)
    if found.unpaired and not split:
        count = len(found.unpaired)
        value = f"{counted(count, 'file')} without a partner: "
        value += _some(map(str, found.unpaired), count)
        remedy = "stems must be equal in both folders: rename, add or remove files"
        raise FileError(root or f"{infrared}, {visible}", value, remedy)
    for listing in (found.infrared, found.visible, found.labels, found.boxes):
        for stem, paths in listing.duplicates.items():
            if stem in found.stems:
                value = f"stem {stem!r} twice: {', '.join(path.name for path in paths)}"
                raise FileError(listing.folder or "", value, "keep one file per stem")
    stems = found.stems
    return FolderPairs(
        stems,
        tuple(found.infrared.files[stem] for stem in stems),
        tuple(found.visible.files[stem] for stem in stems),
        tuple(found.labels.files.get(stem) for stem in stems),
        tuple(found.boxes.files.get(stem) for stem in stems),
        stretch,
    )
