"""Feature maps of a large image: in memory while they fit, else in unnamed temporary files.

A map is (h, w, c) of one dtype, read and written in strips of whole rows. Files are read and
written, not mapped: pages of a mapped file count as the process's own memory.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from jaxfuse.config import UserError

DEFAULT_BUDGET = 1_200_000_000
"""Bytes of maps kept in memory."""


class ScratchError(UserError, RuntimeError):
    """Maps that do not fit on the disk; the message names the folder, the bytes and the remedy."""


class _InMemory:
    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.rows[start:stop]

    def write(self, start: int, strip: np.ndarray) -> None:
        self.rows[start : start + len(strip)] = strip

    def close(self) -> None:
        self.rows = np.empty((0, 0, 0), self.rows.dtype)


class _InFile:
    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: np.dtype):
        self.shape, self.dtype = shape, dtype
        self.row_bytes = shape[1] * shape[2] * dtype.itemsize
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        try:
            # All of it now: a full disk should show before the work, not after an hour of it.
            reserve = getattr(os, "posix_fallocate", None)  # not on every system
            if reserve:
                reserve(self.file.fileno(), 0, shape[0] * self.row_bytes)
        except BaseException:
            self.file.close()
            raise

    def read(self, start: int, stop: int) -> np.ndarray:
        strip = np.empty((stop - start, *self.shape[1:]), self.dtype)
        left, at = memoryview(strip.reshape(-1).view(np.uint8)), start * self.row_bytes
        while left:
            count = os.preadv(self.file.fileno(), [left], at)
            if count == 0:
                raise OSError(f"ends at byte {at}")
            left, at = left[count:], at + count
        return strip

    def write(self, start: int, strip: np.ndarray) -> None:
        left = memoryview(np.ascontiguousarray(strip).reshape(-1).view(np.uint8))
        at = start * self.row_bytes
        while left:
            count = os.pwrite(self.file.fileno(), left, at)
            left, at = left[count:], at + count

    def close(self) -> None:
        self.file.close()


class MapStore:
    """Named maps of one height and width. A context manager: on leaving, memory and files are given
    back.

    layout: channels and dtype of each map, by name; made at once, with undefined values. budget:
    bytes kept in memory; maps beyond, later ones first, go to files. scratch: the folder of these
    files, default the system's temporary folder. Files have no name, so even a killed process
    leaves none behind. Raises ScratchError where the disk refuses.
    """

    def __init__(
        self,
        height: int,
        width: int,
        layout: dict[str, tuple[int, np.dtype]],
        budget: int,
        scratch: str | Path | None = None,
    ):
        self.scratch = Path(scratch) if scratch else Path(tempfile.gettempdir())
        self.size = f"{height} x {width}"
        self.in_files = 0
        """Bytes of the maps that are in files."""
        self._maps: dict[str, _InMemory | _InFile] = {}
        shapes = {name: (height, width, channels) for name, (channels, _) in layout.items()}
        filed = []
        for name, (_, dtype) in layout.items():
            size = math.prod(shapes[name]) * dtype.itemsize
            if size <= budget:
                budget -= size
                self._maps[name] = _InMemory(np.empty(shapes[name], dtype))
            else:
                self.in_files += size
                filed.append(name)
        if not filed:
            return
        try:
            if shutil.disk_usage(self.scratch).free < self.in_files:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for name in filed:
                self._maps[name] = _InFile(self.scratch, shapes[name], layout[name][1])
        except OSError as error:
            self.close()
            raise self._refused(error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> MapStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back everything."""
        for name in list(self._maps):
            self.drop(name)

    def add(self, name: str, rows: np.ndarray) -> None:
        """A map that exists already, (h, w, c); it is not copied and does not count."""
        self._maps[name] = _InMemory(rows)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, (rows, w, c). May be a view: valid until these rows are written."""
        try:
            return self._maps[name].read(start, stop)
        except OSError as error:
            raise self._refused(error) from error

    def write(self, name: str, start: int, strip: np.ndarray) -> None:
        """Replaces the rows from `start` on."""
        try:
            self._maps[name].write(start, strip)
        except OSError as error:
            raise self._refused(error) from error

    def drop(self, name: str) -> None:
        """Forgets a map and gives back its memory or file."""
        self._maps.pop(name).close()

    def _refused(self, error: OSError) -> ScratchError:
        return ScratchError(
            f"{self.scratch}: {error.strerror or error}: feature maps of this {self.size} image "
            "need "
            f"{self.in_files:,} bytes of scratch space: free some, point `scratch` or TMPDIR to a "
            "larger disk, or raise `memory_budget`"
        )
