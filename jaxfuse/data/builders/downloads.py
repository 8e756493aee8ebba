"""Pairs read straight from a public set's download, without preparing anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jaxfuse.config import SourceConfig
from jaxfuse.data.builders.base import Dataset, Entry, Time, choose, read_entry, require_whole
from jaxfuse.data.builders.classes import ClassList, Coding
from jaxfuse.data.builders.layouts import PUBLIC, named
from jaxfuse.data.images import Stretch, size
from jaxfuse.data.pairs import DataError, Pair


@dataclasses.dataclass(frozen=True)
class DownloadPairs:
    """A split of a download as it lies on disk; see `jaxfuse.data.pairs.Pairs`."""

    dataset_name: str
    entries: tuple[Entry, ...]
    coding: Coding = "index"
    stretch: Stretch = "none"

    @classmethod
    def open(cls, source: SourceConfig) -> DownloadPairs:
        """The pairs of a source of kind "dataset". Raises ConfigError for an unknown set, DataError
        for a download of another layout, files without partners, and an unknown split. Whether the
        download is all there `jaxfuse data check` tells.
        """
        found = named(source.name).find(Path(source.root))
        require_whole(found, str(found.root))
        times = {name: [entry.time for entry in part] for name, part in found.splits.items()}
        part, numbers = choose(times, source.split, str(found.root))
        entries = tuple(found.splits[part][number] for number in numbers)
        if not entries:
            raise DataError(f"{found.root}: no pair in {part!r}: unpack the download again")
        return cls(source.name, entries, source.label_coding, source.infrared_stretch)

    @property
    def dataset(self) -> Dataset:
        """What is known of the set; looked up, so that pickles stay small."""
        return PUBLIC[self.dataset_name]

    @property
    def classes(self) -> ClassList | None:
        """What the labels mean."""
        return self.dataset.classes

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    def stem(self, index: int) -> str:
        """The stem of the pair's files."""
        return self.entries[index].stem

    def time(self, index: int) -> Time:
        """When the pair was taken, where the set tells."""
        return self.entries[index].time

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the visible file, from its header."""
        return size(self.entries[index].visible)

    def __getitem__(self, index: int) -> Pair:
        """Reads one pair; raises as `read_entry`."""
        return read_entry(self.entries[index], self.dataset, self.coding, self.stretch)
