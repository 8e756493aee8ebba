"""From a download to ArrayRecord shards: checked first, then written in parallel, continuable.

A shard is a function of the files it is made of, so that a killed run continues: shards that are
finished, made of the same files and as they were written are kept. The number of workers changes
speed only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from jaxfuse.config import ConfigError, counted
from jaxfuse.data.builders.base import Dataset
from jaxfuse.data.builders.classes import ClassList, Coding
from jaxfuse.data.builders.examples import Form
from jaxfuse.data.builders.marks import (
    COMPLETE,
    UNFINISHED,
    checksum,
    finished,
    read_json,
    write_json,
)
from jaxfuse.data.builders.shards import Shard, digest, plan, refused, write_shard
from jaxfuse.data.builders.soundness import Soundness, check_download
from jaxfuse.data.headers import FileError
from jaxfuse.data.pairs import DataError

DEFAULT_SHARD_MIB = 128
_LOCK = ".lock"


class UnsoundError(DataError):
    """A download that cannot be prepared; `report` says all that is wrong with it."""

    def __init__(self, report: Soundness) -> None:
        first = (report.errors + report.incomplete)[0]
        count = len(report.errors) + len(report.incomplete)
        more = f" (and {count - 1} more, see above)" if count > 1 else ""
        super().__init__(f"{first}{more}")
        self.report = report


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` did."""

    folder: Path
    pairs: dict[str, int]
    written: int
    kept: int
    """Shards written now, and finished ones of an earlier run."""
    bytes: int
    rounded: int
    """Pairs whose infrared had three unequal channels and was rounded."""
    already: bool = False
    """Whether the set was complete before."""

    def text(self) -> str:
        """For people."""
        counts = ", ".join(f"{name} {count}" for name, count in self.pairs.items())
        if self.already:
            return f"{self.folder}: complete already ({counts} pairs); nothing was written"
        lines = [
            f"{self.folder}: {counts} pairs, {self.bytes / 2**20:.1f} MiB in "
            f"{counted(self.written + self.kept, 'shard')} "
            f"({self.written} written, {self.kept} kept)"
        ]
        if self.rounded:
            lines.append(
                f"  note: {self.rounded} infrared pictures have three unequal channels; their mean "
                "was rounded to whole levels"
            )
        return "\n".join(lines)


Progress = Callable[[int, int, str], None]


def prepare(
    dataset: Dataset,
    root: Path,
    out: Path,
    *,
    workers: int = 0,
    shard_mib: int = DEFAULT_SHARD_MIB,
    lists: Mapping[str, str] | None = None,
    coding: Coding = "index",
    classes: ClassList | None = None,
    allow_incomplete: bool = False,
    progress: Progress | None = None,
    checking: Progress | None = None,
    report: Callable[[Soundness], None] | None = None,
) -> Prepared:
    """Writes OUT/NAME/VERSION, from which `RecordPairs` and TFDS read.

    workers: threads, 0 for one a core. lists: splits of one's own, name -> file with one stem a
    line. classes: for a set of one's own. checking, progress: counters of pairs looked at and of
    shards written. Raises UnsoundError for a download with errors (or,
    without allow_incomplete, one that is not all there), and FileError for what cannot be written
    and where OUT holds the set made of other files.
    """
    from jaxfuse.data.builders.tfds_builders import VERSION

    if shard_mib < 1:
        raise ConfigError(f"shard_mib = {shard_mib}: use at least 1")
    if workers < 0:
        raise ConfigError(f"workers = {workers}: use 0 (one a core) or more")
    for name in lists or ():
        if not name.isidentifier() or name == "all":
            raise ConfigError(f"split {name!r}: name it by letters, digits and _, and not all")
    if classes is not None:
        dataset = dataclasses.replace(dataset, classes=classes)
    threads = workers or min(8, os.cpu_count() or 1)
    soundness = check_download(dataset, root, lists, coding, threads, checking)
    if report is not None:
        report(soundness)
    if soundness.errors or (soundness.incomplete and not allow_incomplete):
        raise UnsoundError(soundness)
    form = soundness.form
    shards = plan(soundness, form, shard_mib << 20)
    folder = out / dataset.name / VERSION
    whole = digest([shard.source for shard in shards])
    if (done := _complete(folder, whole)) is not None:
        return done
    work = folder.with_name(folder.name + UNFINISHED)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(work, error) from None
    with _alone(work):
        marks, kept = _write_all(work, shards, dataset, form, threads, progress)
        _clear(work, shards)
        _describe(work, dataset, form, shards, marks, whole)
        (work / _LOCK).unlink(missing_ok=True)
        try:
            os.rename(work, folder)
        except OSError as error:
            raise refused(folder, error) from None
    return _outcome(folder, read_json(folder / COMPLETE), kept, already=False)


def _complete(folder: Path, whole: str) -> Prepared | None:
    """The outcome where this very set is complete already; raises where another is in its place."""
    if not folder.exists():
        return None
    if not (folder / COMPLETE).is_file():
        raise FileError(
            folder, "is there and is no prepared set", "remove it, or name another --out"
        )
    complete = read_json(folder / COMPLETE)
    if complete["plan"] != whole:
        value = f"holds records of {complete['name']} made of other files or with other options"
        raise FileError(folder, value, "remove the folder, or name another --out")
    shards = sum(len(part["shards"]) for part in complete["splits"].values())
    return _outcome(folder, complete, shards, already=True)


def _outcome(folder: Path, complete: dict[str, Any], kept: int, already: bool) -> Prepared:
    shards = [shard for part in complete["splits"].values() for shard in part["shards"]]
    return Prepared(
        folder,
        {name: part["pairs"] for name, part in complete["splits"].items()},
        len(shards) - kept,
        kept,
        sum(shard["bytes"] for shard in shards),
        complete["rounded"],
        already,
    )


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keeps a second preparation out of the folder; the lock ends with the process."""
    try:
        stream = (work / _LOCK).open("w")
    except OSError as error:
        raise refused(work, error) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "wait for it, or name another --out"
            raise FileError(work, "another preparation is writing here", remedy) from None
        except OSError as error:  # Some network file systems have no locks: go on without.
            if not (work / _LOCK).exists():
                raise refused(work, error) from None
        yield


def _write_all(
    work: Path,
    shards: list[Shard],
    dataset: Dataset,
    form: Form,
    threads: int,
    progress: Progress | None,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Marks by file name, and how many shards were kept. All shards are tried before it raises."""
    from jaxfuse.data.builders.tfds_builders import serialize

    to_bytes = serialize(form)
    marks: dict[str, dict[str, Any]] = {}
    errors: list[FileError] = []
    kept = done = 0

    def one(shard: Shard) -> tuple[dict[str, Any], bool]:
        mark = finished(work / shard.file, shard.source)
        if mark is not None:
            return mark, True
        return write_shard(work, shard, dataset, form, to_bytes), False

    pool = ThreadPoolExecutor(threads)
    try:
        futures = {pool.submit(one, shard): shard for shard in shards}
        for future in as_completed(futures):
            shard = futures[future]
            done += 1
            try:
                marks[shard.file], was_there = future.result()
                kept += was_there
            except FileError as error:
                errors.append(error)
            if progress is not None:
                progress(done, len(shards), shard.file)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if errors:
        first = min(errors, key=str)
        more = f" (and {counted(len(errors) - 1, 'more shard')} failed)" if len(errors) > 1 else ""
        raise FileError(first.file, first.value, first.remedy + more)
    return marks, kept


def _clear(work: Path, shards: list[Shard]) -> None:
    """Removes what an earlier run with other files left in the folder."""
    ours = {_LOCK} | {name for shard in shards for name in (shard.file, f"{shard.file}.json")}
    for path in work.iterdir():
        if path.name not in ours:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _describe(
    work: Path,
    dataset: Dataset,
    form: Form,
    shards: list[Shard],
    marks: dict[str, dict[str, Any]],
    whole: str,
) -> None:
    """What TFDS reads, then what says that all is there."""
    import tensorflow_datasets as tfds

    from jaxfuse.data.builders.tfds_builders import VERSION, facts, features

    splits: dict[str, dict[str, Any]] = {}
    for shard in shards:
        mark = marks[shard.file]
        split = splits.setdefault(shard.split, {"pairs": 0, "shards": []})
        split["pairs"] += mark["pairs"]
        split["shards"].append({key: mark[key] for key in ("file", "bytes", "sha256", "pairs")})
    template = tfds.core.ShardedFileTemplate(
        data_dir=work, dataset_name=dataset.name, filetype_suffix="array_record"
    )
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=[shard["pairs"] for shard in split["shards"]],
            num_bytes=sum(shard["bytes"] for shard in split["shards"]),
            filename_template=template.replace(split=name),
        )
        for name, split in splits.items()
    ]
    try:
        tfds.folder_dataset.write_metadata(
            data_dir=str(work),
            features=features(form),
            split_infos=infos,
            version=VERSION,
            filename_template=template,
            check_data=False,  # It would read through TensorFlow.
            **facts(dataset),
        )
    except OSError as error:
        raise refused(work, error) from None
    names = ("features.json", "dataset_info.json")
    write_json(
        work / COMPLETE,
        {
            "name": dataset.name,
            "version": VERSION,
            "plan": whole,
            "form": dataclasses.asdict(form),
            "splits": splits,
            "metadata": {name: checksum(work / name) for name in names},
            "rounded": sum(mark["rounded"] for mark in marks.values()),
        },
    )
