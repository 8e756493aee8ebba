"""What stands beside the shards of a prepared set: checksums, an index, and that all is there.

    SET/1.0.0/SET-train.array_record-00000-of-00007         the records
    SET/1.0.0/SET-train.array_record-00000-of-00007.json    its checksum, its pairs' stems and sizes
    SET/1.0.0/features.json, dataset_info.json              what TFDS reads
    SET/1.0.0/complete.json                                 every shard's checksum; written last

While a set is written its folder is called 1.0.0.unfinished: what has its own name is complete.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxfuse.config import counted
from jaxfuse.data.builders.places import subfolders
from jaxfuse.data.headers import FileError
from jaxfuse.data.images import write_bytes
from jaxfuse.data.pairs import DataError

COMPLETE = "complete.json"
UNFINISHED = ".unfinished"
AGAIN = "run the same `jaxfuse data prepare` again"
_CHUNK = 1 << 22


def write_json(path: Path, tree: Any) -> None:
    """Puts JSON at `path` whole or not at all. Raises FileError where the disk refuses."""
    write_bytes(path, (json.dumps(tree, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises FileError for a file that is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", AGAIN) from None
    except ValueError as error:
        raise FileError(path, f"no JSON ({error})", AGAIN) from None


def checksum(path: Path) -> str:
    """sha256 of a file, in hex. Raises FileError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", AGAIN) from None
    return digest.hexdigest()


def mark_of(shard: Path) -> Path:
    """The file beside a shard that describes it."""
    return shard.with_name(shard.name + ".json")


def finished(shard: Path, source: str) -> dict[str, Any] | None:
    """The mark of a shard that was made of just these files and is as it was written, else None."""
    try:
        mark = read_json(mark_of(shard))
        whole = mark["source"] == source and mark["sha256"] == checksum(shard)
    except (FileError, KeyError, TypeError):
        return None
    return mark if whole else None


def resolve(root: str | Path) -> Path:
    """The folder of a prepared set at `root` or up to two folders below it.

    Raises DataError where there is none, several, or only one whose preparation has not ended.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileError(root, "no such folder", "give a folder that `jaxfuse data prepare` wrote")
    level, unfinished = [root], []
    for _ in range(3):
        complete = _complete(level)
        unfinished += [folder for folder in level if folder.name.endswith(UNFINISHED)]
        if len(complete) > 1:
            names = ", ".join(str(folder.relative_to(root)) for folder in complete[:5])
            raise FileError(root, f"holds several prepared sets: {names}", "give one of them")
        if complete:
            return complete[0]
        level = [child for folder in level for child in subfolders(folder)]
    if unfinished:
        raise FileError(unfinished[0], "a preparation that has not ended", AGAIN)
    raise FileError(
        root, "holds no prepared set", "give a folder that `jaxfuse data prepare` wrote"
    )


def all_prepared(root: Path) -> list[Path]:
    """The folders of the prepared sets at `root` or up to two folders below it, on the first level
    that has any; `root` itself where none is whole, of which `resolve` says why.
    """
    level = [root]
    for _ in range(3):
        complete = _complete(level)
        if complete:
            return complete
        level = [child for folder in level for child in subfolders(folder)]
    return [root]


def _complete(level: list[Path]) -> list[Path]:
    """Those that hold a set which is prepared to its end."""
    return [x for x in level if not x.name.endswith(UNFINISHED) and (x / COMPLETE).is_file()]


def is_prepared(root: Path) -> bool:
    """Whether `root` is, or holds, a prepared set, whole or not: what `resolve` could speak of."""
    try:
        resolve(root)
    except FileError as error:
        return "holds no prepared set" not in error.value
    except DataError:
        return False
    return True


def verify(root: Path, threads: int = 4) -> tuple[list[str], list[FileError]]:
    """Every shard of a prepared set against its checksum: (what was looked at, what is wrong)."""
    folder = resolve(root)
    complete = read_json(folder / COMPLETE)
    said = [f"{complete['name']} {complete['version']} in {folder}"]
    wrong: list[FileError] = []
    shards = [
        (split, shard) for split, part in complete["splits"].items() for shard in part["shards"]
    ]

    def look(shard: dict[str, Any]) -> FileError | None:
        path = folder / shard["file"]
        remedy = f"remove {folder}, then {AGAIN}"
        if not path.is_file():
            return FileError(path, "is missing", remedy)
        if (size := path.stat().st_size) != shard["bytes"]:
            return FileError(path, f"{size} bytes, {shard['bytes']} were written", remedy)
        if (found := checksum(path)) != shard["sha256"]:
            return FileError(path, f"sha256 {found[:12]}..., not {shard['sha256'][:12]}...", remedy)
        if not mark_of(path).is_file():
            return FileError(mark_of(path), "is missing", remedy)
        return None

    with ThreadPoolExecutor(threads) as pool:
        wrong += [error for error in pool.map(look, [shard for _, shard in shards]) if error]
    for name in ("features.json", "dataset_info.json"):
        path = folder / name
        if not path.is_file() or checksum(path) != complete["metadata"].get(name):
            remedy = f"remove {folder}, then {AGAIN}"
            wrong.append(FileError(path, "is missing or not as it was written", remedy))
    for split, part in complete["splits"].items():
        count = len(part["shards"])
        said.append(f"  {split}: {counted(part['pairs'], 'pair')} in {counted(count, 'shard')}")
    return said, wrong
