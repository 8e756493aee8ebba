"""Pairs read from a prepared set by index, through TFDS, without TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxfuse.config import SourceConfig
from jaxfuse.data.builders.base import Time, choose
from jaxfuse.data.builders.classes import CLASS_LISTS, ClassList, plain_list
from jaxfuse.data.builders.marks import COMPLETE, mark_of, read_json, resolve
from jaxfuse.data.headers import FileError
from jaxfuse.data.images import Stretch, decode_bytes, infrared_from, mask_bytes, visible_from
from jaxfuse.data.pairs import Pair

_PICTURES = ("visible", "infrared", "labels")


class RecordPairs:
    """A split of a prepared set; see `jaxfuse.data.pairs.Pairs`.

    Stems, sizes and times stand beside the shards, so that asking for them reads no record. The
    shards are opened at the first read, once a process; pickling leaves them behind.
    """

    def __init__(self, root: str | Path, split: str = "", stretch: Stretch = "none") -> None:
        """Raises DataError for a set that is not prepared to the end, and for an unknown split."""
        self.folder = resolve(root)
        self.stretch: Stretch = stretch
        complete = read_json(self.folder / COMPLETE)
        self.name: str = complete["name"]
        self.form: dict[str, Any] = complete["form"]
        index: dict[str, list[list[Any]]] = {}
        for name, part in complete["splits"].items():
            index[name] = []
            for shard in part["shards"]:
                mark = read_json(mark_of(self.folder / shard["file"]))
                if mark["sha256"] != shard["sha256"]:
                    value = "does not belong to the shard of this name"
                    raise FileError(mark_of(self.folder / shard["file"]), value, "prepare it again")
                index[name] += mark["records"]
        times = {name: [record[3] for record in records] for name, records in index.items()}
        self.split, self.numbers = choose(times, split, str(self.folder))
        self._records = [tuple(index[self.split][number]) for number in self.numbers]
        self._opened: Any = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, source: SourceConfig) -> RecordPairs:
        """The pairs of a source of kind "records"."""
        return cls(source.root, source.split, source.infrared_stretch)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_opened", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opened, self._lock = None, threading.Lock()

    @property
    def classes(self) -> ClassList | None:
        """What the labels mean, where the set was prepared with a class list."""
        names = tuple(self.form["classes"])
        alike = [known for known in CLASS_LISTS.values() if known.names == names]
        own = [known for known in alike if known.name == self.name]
        return next(iter(own + alike), plain_list(self.name, names) if names else None)

    @property
    def box_classes(self) -> tuple[str, ...]:
        """Names of the classes of boxes, in order."""
        return tuple(self.form["box_classes"])

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    def stem(self, index: int) -> str:
        """The stem of the pair's files in the download."""
        return self._records[index][0]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), from the index beside the shards."""
        _, height, width, _ = self._records[index]
        return height, width

    def time(self, index: int) -> Time:
        """When the pair was taken, where the set tells."""
        return self._records[index][3]

    def _source(self) -> Any:
        with self._lock:
            if self._opened is None:
                import tensorflow_datasets as tfds

                builder = tfds.builder_from_directory(str(self.folder))
                skip = {
                    name: tfds.decode.SkipDecoding()
                    for name in _PICTURES
                    if name in builder.info.features
                }
                self._opened = builder.as_data_source(self.split, decoders=skip)
            return self._opened

    def __getitem__(self, index: int) -> Pair:
        """Reads one pair. Raises FileError for a shard that is damaged or gone."""
        stem = self.stem(index)
        place = self.folder / self.split / stem
        remedy = f"look at all of them: jaxfuse data check {self.folder}"
        try:
            record = self._source()[self.numbers[index]]
        except Exception as error:  # ArrayRecord tells damage by RuntimeError, TFDS by others.
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileError(place, f"cannot be read ({first})", remedy) from error
        if record["stem"].decode() != stem:
            found = f"the record is that of {record['stem'].decode()!r}"
            raise FileError(place, found, remedy)
        visible = visible_from(decode_bytes(place, record["visible"]))
        infrared = infrared_from(decode_bytes(place, record["infrared"]), place, self.stretch)
        labels = None
        if "labels" in record:
            labels = mask_bytes(place, record["labels"])
        boxes = None
        if "boxes" in record:
            boxes = np.asarray(record["boxes"], np.float32)
        return Pair(stem, visible, infrared, labels, boxes)
