"""A labelled part as files: pictures and label maps that any training can read, checked on the way.

FOLDER/vi/STEM.png  FOLDER/ir/STEM.png  FOLDER/labels/STEM.png  FOLDER/stems.txt
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxfuse.config import counted
from jaxfuse.data import images
from jaxfuse.data.builders.base import Time, time_at
from jaxfuse.data.builders.classes import (
    ClassList,
    check_labels,
    numbered,
    plain_list,
    read_class_list,
)
from jaxfuse.data.builders.downloads import DownloadPairs
from jaxfuse.data.builders.marks import COMPLETE, read_json
from jaxfuse.data.builders.records import RecordPairs
from jaxfuse.data.builders.shards import digest
from jaxfuse.data.images import FileError
from jaxfuse.data.pairs import IGNORE, Pairs
from jaxfuse.data.sources import files_of
from jaxfuse.data.synthetic import SyntheticPairs
from jaxfuse.evaluate.plan import PlanError
from jaxfuse.evaluate.results import make_folder

KINDS = ("vi", "ir", "labels")
THREADS = 2

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Part:
    """The pairs of one part, all written and checked."""

    name: str
    folder: Path
    stems: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each pair."""
    times: tuple[Time, ...]
    pixels: np.ndarray
    """Labelled pixels of each class, int64 (classes,)."""

    def __len__(self) -> int:
        return len(self.stems)

    def files(self, kind: str) -> tuple[Path, ...]:
        """The pictures of one of `KINDS`, in order."""
        return tuple(self.folder / kind / f"{stem}.png" for stem in self.stems)


def class_list(given: int | str, train: Pairs, test: Pairs) -> ClassList:
    """The classes of both parts: those asked for, or those of the sets. Raises PlanError where the
    sets have others or none.
    """
    if isinstance(given, int):
        return numbered(given)
    known = [getattr(pairs, "classes", None) for pairs in (train, test)]
    names = [classes.names for classes in known if classes is not None]
    if len(set(names)) > 1:
        raise PlanError(
            f"the parts have other classes: {', '.join(names[0])} in train, "
            f"{', '.join(names[1])} in test: take both from one set"
        )
    if given:
        chosen = read_class_list(given)
        if names and len(names[0]) != len(chosen):
            raise PlanError(
                f"classes = {given!r} has {len(chosen)} classes, the set has {len(names[0])}: "
                "leave out classes"
            )
        return chosen
    for classes in known:
        if classes is not None:
            return classes
    raise PlanError(
        "classes: these sets do not say what their labels mean: give how many classes there are, "
        "or a class list (a name such as msrs, or a file with one name a line)"
    )


def check_apart(train: Pairs, test: Pairs) -> None:
    """Raises PlanError where a pair is in both parts: that would be judging what was learned.

    Records do not tell which files they were made of: where one has the stem of a pair in the other
    part, in whatever set and split, the pictures themselves are compared.
    """
    learned = {_origin(train, i) for i in range(len(train))}
    both = [i for i in range(len(test)) if _origin(test, i) in learned]
    if not both and any(isinstance(pairs, RecordPairs) for pairs in (train, test)):
        stems = {train.stem(i): i for i in range(len(train))}
        both = [
            i
            for i in range(len(test))
            if (k := stems.get(test.stem(i))) is not None and _alike(train, k, test, i)
        ]
    if both:
        first = (*files_of(test, both[0])[:1], test.stem(both[0]))[0]
        raise PlanError(
            f"{first}: is in both parts ({counted(len(both), 'pair')} in all): a network is judged "
            "on pictures it has not learned from; give other splits, or another seed of made-up "
            "scenes"
        )


def _alike(ours: Pairs, i: int, theirs: Pairs, k: int) -> bool:
    if ours.size(i) != theirs.size(k):
        return False
    a, b = ours[i], theirs[k]
    return np.array_equal(a.visible, b.visible) and np.array_equal(a.infrared, b.infrared)


def _origin(pairs: Pairs, i: int) -> tuple[object, ...]:
    """What a pair is made of; two sensors see the same made-up scene."""
    if isinstance(pairs, RecordPairs):
        return "record", pairs.folder.resolve(), pairs.split, pairs.numbers[i]
    if isinstance(pairs, SyntheticPairs):
        return "scene", pairs.seed, i, pairs.size(i)
    return "file", *(path.resolve() for path in files_of(pairs, i)[:1])


def identity(pairs: Pairs) -> dict[str, str]:
    """What tells pairs that are read from no files of their own from others of the same settings:
    a digest of the records, or of what the first generated scene looks like. Empty for files, whose
    times tell.
    """
    if isinstance(pairs, RecordPairs):
        shards = read_json(pairs.folder / COMPLETE)["splits"]
        return {"records_sha256": digest(shards)}
    if isinstance(pairs, SyntheticPairs):
        first = pairs[0]
        found = hashlib.sha256()
        for pixels in (first.visible, first.infrared, first.labels):
            found.update(np.rint(np.float64(255) * pixels).astype(np.int64).tobytes())
        return {"first_scene_sha256": found.hexdigest()}
    return {}


def write(
    name: str, pairs: Pairs, folder: Path, classes: ClassList, progress: Progress | None = None
) -> Part:
    """Writes a part; pictures that are newer than the files they are made of stay, and so do those
    that are made of no files: `identity` tells whether they may.

    16-bit pictures stay 16 bits deep. Raises DataError for a pair that cannot be read, sizes that
    differ, and label maps with values outside the list or nothing but ignored pixels.
    """
    for kind in KINDS:
        make_folder(folder / kind)
    # Sets that know their classes have brought labels to 0..C-1 already.
    mapped = isinstance(pairs, (DownloadPairs, RecordPairs))
    expected = plain_list(classes.name, classes.names) if mapped else classes
    stems = tuple(pairs.stem(i) for i in range(len(pairs)))
    wrong = [stem for stem in stems if Path(stem).name != stem or stem != stem.strip()]
    if wrong:
        raise PlanError(f"{name}: stem {wrong[0]!r} cannot name a file: rename the picture")

    def one(i: int) -> np.ndarray:
        files = {kind: folder / kind / f"{stems[i]}.png" for kind in KINDS}
        sources = files_of(pairs, i)
        if not _newer(list(files.values()), sources):
            pair = pairs[i]
            where = sources[2] if len(sources) > 2 else f"{name}/{stems[i]}"
            if pair.labels is None:
                raise FileError(where, "has no label map", "leave this pair out by a split")
            labels = check_labels(pair.labels, expected, where, pair.visible.shape[:2])
            _write(files["vi"], pair.visible)
            _write(files["ir"], pair.infrared)
            images.write(files["labels"], labels.astype(np.float32) / np.float32(255))
        labels = images.read_labels(files["labels"])
        counted = labels[labels != IGNORE]
        if counted.size and counted.max() >= len(classes):
            value = f"labels up to {counted.max()}, but there are {len(classes)} classes"
            raise FileError(files["labels"], value, "name another --out")
        return np.bincount(counted, minlength=len(classes)).astype(np.int64)

    pixels = np.zeros(len(classes), np.int64)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(one, i) for i in range(len(pairs))]
        try:
            for i, job in enumerate(jobs):
                pixels += job.result()
                if progress:
                    progress(i + 1, len(pairs), stems[i])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    images.write_bytes(folder / "stems.txt", "".join(f"{x}\n" for x in stems).encode("utf8"))
    sizes = tuple(pairs.size(i) for i in range(len(pairs)))
    times = tuple(time_at(pairs, i) for i in range(len(pairs)))
    return Part(name, folder, stems, sizes, times, pixels)


def _write(path: Path, pixels: np.ndarray) -> None:
    levels = np.rint(pixels * np.float32(255)) / np.float32(255)
    images.write(path, pixels, 8 if np.array_equal(levels, pixels) else 16)


def _newer(files: list[Path], sources: tuple[Path, ...]) -> bool:
    if not all(path.exists() for path in files):
        return False
    newest = max((path.stat().st_mtime_ns for path in sources), default=-1)
    return min(path.stat().st_mtime_ns for path in files) > newest
