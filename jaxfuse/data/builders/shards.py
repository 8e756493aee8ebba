"""Files of records: which pairs each is to hold, and writing one so that it is there or is not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxfuse.data.builders.base import Dataset, Entry
from jaxfuse.data.builders.examples import Form, make_example
from jaxfuse.data.builders.marks import checksum, mark_of, write_json
from jaxfuse.data.builders.soundness import Soundness
from jaxfuse.data.headers import FileError

_OPTIONS = "group_size:1,uncompressed"
"""One record a group, for random access; pictures are compressed already."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one file of records is to hold."""

    split: str
    file: str
    entries: tuple[Entry, ...]
    source: str
    """sha256 over names, sizes and times of the files, and over the form of the records."""


def plan(soundness: Soundness, form: Form, shard_bytes: int) -> list[Shard]:
    """The shards of a set: about equally many pairs each, as many as their files' bytes ask for."""
    shards = []
    name, root = soundness.dataset.name, soundness.found.root
    meaning = dataclasses.asdict(form) | {"options": _OPTIONS, "name": name}
    for split, entries in soundness.found.splits.items():
        if not entries:
            continue
        stats = {path: path.stat() for entry in entries for path in entry.files()}
        total = sum(stat.st_size for stat in stats.values())
        count = min(len(entries), max(1, -(-total // shard_bytes)))
        for i in range(count):
            part = entries[len(entries) * i // count : len(entries) * (i + 1) // count]
            files = [
                (
                    entry.stem,
                    entry.time,
                    [
                        (_relative(path, root), stats[path].st_size, stats[path].st_mtime_ns)
                        for path in entry.files()
                    ],
                )
                for entry in part
            ]
            file = f"{name}-{split}.array_record-{i:05d}-of-{count:05d}"
            shards.append(Shard(split, file, part, digest([meaning, split, i, count, files])))
    return shards


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def digest(tree: Any) -> str:
    """sha256 of anything JSON can hold, in hex."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def refused(path: Path, error: OSError | RuntimeError) -> FileError:
    """What to say where the disk refuses; ArrayRecord tells it in words."""
    words = getattr(error, "strerror", None) or str(error)
    if "No space left" in words or "Disk quota" in words:
        why = "No space left on device" if "No space" in words else "Disk quota exceeded"
        remedy = "free some space and run the same command again: finished shards stay"
    else:
        why, remedy = words.split(";")[0], "choose an --out that you may write to"
    return FileError(path, f"cannot be written ({why})", remedy)


def write_shard(
    work: Path, shard: Shard, dataset: Dataset, form: Form, to_bytes: Callable[[Any], bytes]
) -> dict[str, Any]:
    """Writes one shard and, when it lies safely on disk under its name, its mark."""
    from array_record.python import array_record_module

    path = work / shard.file
    part = path.with_name(path.name + ".part")
    records, rounded = [], 0
    try:
        mark_of(path).unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        writer = array_record_module.ArrayRecordWriter(str(part), _OPTIONS)
        try:
            for entry in shard.entries:
                example = make_example(entry, dataset, form)
                writer.write(to_bytes(example.values))
                records.append([entry.stem, example.height, example.width, entry.time])
                rounded += example.rounded
        finally:
            writer.close()
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        mark = {
            "file": shard.file,
            "split": shard.split,
            "bytes": part.stat().st_size,
            "sha256": checksum(part),
            "source": shard.source,
            "pairs": len(records),
            "rounded": rounded,
            "records": records,
        }
        os.replace(part, path)
        write_json(mark_of(path), mark)
    except (OSError, RuntimeError) as error:
        raise refused(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return mark
