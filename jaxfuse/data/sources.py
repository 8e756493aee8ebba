"""The kinds of image sets a config can name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxfuse.config import SourceConfig
from jaxfuse.data.builders.downloads import DownloadPairs
from jaxfuse.data.builders.records import RecordPairs
from jaxfuse.data.folders import FolderPairs
from jaxfuse.data.images import FileError
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
    if isinstance(pairs, FolderPairs):
        found = (pairs.visible[i], pairs.infrared[i], pairs.labels[i])
        return tuple(path for path in found if path is not None)
    if isinstance(pairs, DownloadPairs):
        entry = pairs.entries[i]
        found = (entry.visible, entry.infrared or entry.visible, entry.labels)
        return tuple(path for path in found if path is not None)
    return ()


def require_labels(name: str, pairs: Pairs) -> None:
    """Raises FileError where pairs of files have no label map. name: what the error calls them."""
    if isinstance(pairs, FolderPairs):
        missing = [(pairs.stem(i), pairs.visible[i]) for i, x in enumerate(pairs.labels) if not x]
    elif isinstance(pairs, DownloadPairs):
        missing = [(entry.stem, entry.visible) for entry in pairs.entries if entry.labels is None]
    else:
        return
    if missing:
        stems = ", ".join(stem for stem, _ in missing[:_NAMED])
        more = " ..." if len(missing) > _NAMED else ""
        raise FileError(
            missing[0][1].parent,
            f"no label map for {len(missing)} of {len(pairs)} pairs of {name}: {stems}{more}",
            "put index PNG files into labels/ beside the pictures, or leave these pairs out by a "
            "split",
        )
