"""The kinds of image sets a config can name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jaxfuse.config import SourceConfig
from jaxfuse.data.builders.downloads import DownloadPairs
from jaxfuse.data.builders.records import RecordPairs
from jaxfuse.data.folders import FolderPairs
from jaxfuse.data.images import FileError, size
from jaxfuse.data.joined import JoinedPairs
from jaxfuse.data.pairs import DataError, Pairs
from jaxfuse.data.synthetic import SyntheticPairs

DATASETS: dict[str, Callable[[SourceConfig], Pairs]] = {
    "folders": FolderPairs.open,
    "dataset": DownloadPairs.open,
    "records": RecordPairs.open,
    "synthetic": SyntheticPairs.open,
}

_NAMED = 5


def open_source(source: SourceConfig) -> Pairs:
    """The pairs a source names. Raises DataError where they cannot be had."""
    if source.kind not in DATASETS:
        raise DataError(
            f"no data set of kind {source.kind!r}: choose one of {', '.join(sorted(DATASETS))}"
        )
    return DATASETS[source.kind](source)


def files_of(pairs: Pairs, i: int) -> tuple[Path, ...]:
    """The files a pair is read from: visible, infrared, labels; none where it is none."""
    if isinstance(pairs, JoinedPairs):
        return files_of(*pairs.at(i))
    if isinstance(pairs, FolderPairs):
        found = (pairs.visible[i], pairs.infrared[i], pairs.labels[i])
        return tuple(path for path in found if path is not None)
    if isinstance(pairs, DownloadPairs):
        entry = pairs.entries[i]
        found = (entry.visible, entry.infrared or entry.visible, entry.labels)
        return tuple(path for path in found if path is not None)
    return ()


def require_labels(name: str, pairs: Pairs) -> None:
    """Raises FileError where pairs of files have no label map, or one whose header tells another
    size, and DataError for records that were prepared without. name: what errors call the pairs.
    """
    if isinstance(pairs, JoinedPairs):
        require_labels(name, pairs.first)
        require_labels("data.beside", pairs.second)
        return
    if isinstance(pairs, RecordPairs) and not pairs.form["labels"]:
        raise DataError(
            f"{pairs.folder}: prepared from pairs without label maps, which {name} needs: prepare "
            "it again from a download that has them"
        )
    if not isinstance(pairs, (FolderPairs, DownloadPairs)):
        return
    files = [files_of(pairs, i) for i in range(len(pairs))]
    missing = [i for i, found in enumerate(files) if len(found) < 3]
    if missing:
        stems = ", ".join(pairs.stem(i) for i in missing[:_NAMED])
        more = " ..." if len(missing) > _NAMED else ""
        raise FileError(
            files[missing[0]][0].parent,
            f"no label map for {len(missing)} of {len(pairs)} pairs of {name}: {stems}{more}",
            "put index PNG files into labels/ beside the pictures, or leave these pairs out by a "
            "split",
        )
    for i, (_, _, labels) in enumerate(files):
        (h, w), (height, width) = size(labels), pairs.size(i)
        if (h, w) != (height, width):
            raise FileError(
                labels,
                f"{h} x {w} pixels (height x width), but its image has {height} x {width}",
                "save the label map at the image's size, without interpolation",
            )


def without_labels(pairs: Pairs) -> Pairs:
    """The same pairs, their label maps not read: what is not needed cannot be wrong."""
    if isinstance(pairs, JoinedPairs):
        return JoinedPairs(without_labels(pairs.first), without_labels(pairs.second))
    if isinstance(pairs, FolderPairs):
        return dataclasses.replace(pairs, labels=(None,) * len(pairs))
    if isinstance(pairs, DownloadPairs):
        entries = tuple(entry._replace(labels=None) for entry in pairs.entries)
        return dataclasses.replace(pairs, entries=entries)
    return pairs
