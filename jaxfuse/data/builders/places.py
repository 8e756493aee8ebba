"""Finding the folders of a layout below a root, and pairing the files in them by stem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxfuse.config import counted
from jaxfuse.data.builders.base import Entry, Found, Lack, time_of
from jaxfuse.data.folders import Listing, list_files
from jaxfuse.data.headers import FileError
from jaxfuse.data.images import EXTENSIONS

WHOLE = "whole"
"""The one split of a set without parts (TFDS keeps the name "all" for itself)."""

_DEPTH = 2
"""How many folders below the given one a layout may begin."""


class Part(NamedTuple):
    """The folders of one split, each as the paths it may have below the layout's beginning."""

    visible: Sequence[str]
    infrared: Sequence[str]
    labels: Sequence[str] = ()
    boxes: Sequence[str] = ()
    needs: frozenset[str] = frozenset()
    """"labels", "boxes": what every pair must have."""


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name. Raises FileError where it cannot be listed."""
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        found = f"cannot be listed ({error.strerror})"
        raise FileError(folder, found, "check the path and its permissions") from None


def below(folder: Path, path: str) -> Path | None:
    """`path` below `folder` whatever its case, if it is a folder."""
    for name in path.split("/"):
        if not folder.is_dir():
            return None
        exact = folder / name
        if exact.is_dir():
            folder = exact
            continue
        alike = [child for child in subfolders(folder) if child.name.lower() == name.lower()]
        if not alike:
            return None
        folder = alike[0]
    return folder


def first_below(folder: Path, paths: Sequence[str]) -> Path | None:
    """The first of several paths that is there."""
    return next((there for path in paths if (there := below(folder, path)) is not None), None)


def beginnings(root: Path) -> Iterator[list[Path]]:
    """The folders in which a layout may begin: the root, then those in it, then those in these."""
    level = [root]
    for _ in range(_DEPTH + 1):
        yield level
        level = [child for folder in level for child in subfolders(folder)]


def require_folder(root: Path, layout: str) -> None:
    """Raises FileError unless the root is a folder."""
    if not root.is_dir():
        raise FileError(root, "no such folder", f"give the folder that holds {layout}")


def unrecognised(root: Path, layout: str) -> FileError:
    """What to say where nothing of a layout is found."""
    there = ", ".join(path.name for path in subfolders(root)[:8]) or "no folder"
    return FileError(root, f"not this set's layout (there is {there})", f"expected {layout}")


def _either(paths: Sequence[str]) -> str:
    return " or ".join(f"{path}/" for path in paths)


def _absent(start: Path, part: Part) -> list[str]:
    """The image folders that a split lacks, for people."""
    return [
        _either(paths)
        for paths in (part.visible, part.infrared)
        if first_below(start, paths) is None
    ]


def _there(start: Path, parts: Mapping[str, Part]) -> list[str]:
    """The folders of a layout that are there, for people."""
    found = [
        first_below(start, paths)
        for part in parts.values()
        for paths in (part.visible, part.infrared, part.labels, part.boxes)
    ]
    return list(dict.fromkeys(f"{path.relative_to(start)}/" for path in found if path is not None))


def partly(root: Path, parts: Mapping[str, Part], layout: str) -> FileError | None:
    """What to say where image folders are there and no split has both of its own: what is absent,
    and what was found, in the place where most was. None where there is no such folder.
    """
    best: tuple[int, Path, list[str]] | None = None
    for level in beginnings(root):
        for start in level:
            absent = [name for part in parts.values() for name in _absent(start, part)]
            count = 2 * len(parts) - len(absent)
            if absent and count > (best[0] if best else 0):
                best = count, start, absent
    if best is None:
        return None
    _, start, absent = best
    value = f"no {' and no '.join(absent)} (there is {', '.join(_there(start, parts))})"
    return FileError(start, value, f"unpack the whole download again: expected {layout}")


def _files(folder: Path | None, endings: frozenset[str] = EXTENSIONS) -> Listing | None:
    return None if folder is None else list_files(folder, endings)


def pair_files(
    visible: Listing,
    infrared: Listing,
    labels: Listing | None,
    boxes: Listing | None,
    needs: frozenset[str],
) -> tuple[tuple[Entry, ...], tuple[Lack, ...], list[FileError]]:
    """Whole pairs, stems that lack a file, and stems that two files have."""
    entries, lacking = [], []
    label_files = labels.files if labels else {}
    box_files = boxes.files if boxes else {}
    stems = sorted({*visible.files, *infrared.files, *label_files, *box_files})
    for stem in stems:
        absent = [
            name
            for name, files, needed in (
                ("visible", visible.files, True),
                ("infrared", infrared.files, True),
                ("labels", label_files, "labels" in needs),
                ("boxes", box_files, "boxes" in needs),
            )
            if needed and stem not in files
        ]
        if absent:
            lacking.append(Lack(stem, "no " + " and no ".join(absent) + " file"))
            continue
        entries.append(
            Entry(
                stem,
                visible.files[stem],
                infrared.files[stem],
                label_files.get(stem),
                box_files.get(stem),
                time_of(stem),
            )
        )
    doubled = [
        FileError(
            paths[0],
            f"stem {stem!r} also has {', '.join(path.name for path in paths[1:])}",
            "keep one file per stem",
        )
        for listing in (visible, infrared, labels, boxes)
        if listing is not None
        for stem, paths in listing.duplicates.items()
    ]
    return tuple(entries), tuple(lacking), doubled


_BOXES = frozenset({".txt", ".xml"})


def _places(start: Path, part: Part) -> tuple[Path, Path] | None:
    visible, infrared = first_below(start, part.visible), first_below(start, part.infrared)
    return None if visible is None or infrared is None else (visible, infrared)


def _annotated(start: Path, parts: Mapping[str, Part]) -> bool:
    """Whether the annotations that a set needs are there for one of its splits."""
    return any(
        bool(part.needs)
        and ("labels" not in part.needs or first_below(start, part.labels) is not None)
        and ("boxes" not in part.needs or first_below(start, part.boxes) is not None)
        for part in parts.values()
    )


def find_parts(root: Path, parts: Mapping[str, Part], layout: str) -> Found:
    """The splits of a layout that keeps each kind of file in a folder of its own.

    A split without one of its image folders is empty, and a note names the folder. Boxes may lie
    in one folder for all splits: those of other splits do not matter there. Raises FileError where
    no split has both its image folders, or in two places.
    """
    require_folder(root, layout)
    for level in beginnings(root):
        starts = [start for start in level if any(_places(start, p) for p in parts.values())]
        if len(starts) > 1:  # As M3FD's two parts, of which one has boxes.
            starts = [start for start in starts if _annotated(start, parts)] or starts
        if len(starts) > 1:
            both = " and ".join(str(start.relative_to(root)) for start in starts[:2])
            found = f"{both} both hold this set's layout"
            raise FileError(root, found, "give the one that is meant")
        if starts:
            return _collect(starts[0], parts)
    raise partly(root, parts, layout) or unrecognised(root, layout)


def _collect(start: Path, parts: Mapping[str, Part]) -> Found:
    splits, lacking, errors, notes = {}, {}, [], []
    for split, part in parts.items():
        places = _places(start, part)
        if places is None:
            there = ", ".join(_there(start, {split: part}))
            also = f" (there is {there})" if there else ""
            notes.append(f"{split}: no {' and no '.join(_absent(start, part))} in {start}{also}")
            splits[split], lacking[split] = (), ()
            continue
        visible, infrared = (list_files(place, EXTENSIONS) for place in places)
        label_place = first_below(start, part.labels)
        box_place = first_below(start, part.boxes)
        labels, boxes = _files(label_place, frozenset({".png"})), _files(box_place, _BOXES)
        if boxes is not None and any("/" not in path for path in part.boxes) and len(parts) > 1:
            shared = visible.files.keys() | infrared.files.keys()
            files = {stem: path for stem, path in boxes.files.items() if stem in shared}
            boxes = boxes._replace(files=files)
        for kind, place, paths in (
            ("labels", label_place, part.labels),
            ("boxes", box_place, part.boxes),
        ):
            if kind in part.needs and place is None:
                value = f"no {paths[0]}/"
                errors.append(FileError(start, value, f"add the {kind} of {split}: unpack them"))
        needs = part.needs - {
            kind
            for kind, place in (("labels", label_place), ("boxes", box_place))
            if place is None  # One error for the folder, not one for each file.
        }
        splits[split], lacking[split], doubled = pair_files(visible, infrared, labels, boxes, needs)
        errors += doubled
        for listing in (visible, infrared, labels, boxes):
            if listing is not None and listing.unknown:
                others = counted(len(listing.unknown), "file")
                first = listing.unknown[0].name
                notes.append(f"{listing.folder}: not read: {others} of other kinds, e.g. {first}")
    return Found(start, splits, lacking, tuple(errors), tuple(notes))
