"""Square patches of image pairs: where they lie, reading them, and a cache of decoded images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxfuse.data.pairs import IGNORE, DataError, Pairs
from jaxfuse.data.sources import files_of

DEFAULT_CACHE_BYTES = 1 << 30
"""Decoded images one reading process keeps: 1 GiB, about 870 lossless pairs of 480x640 pixels."""

_NAMED = 5
_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)


class Patches(NamedTuple):
    """Registered patches; row i of all arrays is the same place of the same pair."""

    visible: np.ndarray
    """float32 (n, s, s, 3) in [0, 1]."""
    infrared: np.ndarray
    """float32 (n, s, s, 1) in [0, 1]."""
    labels: np.ndarray | None = None
    """uint8 (n, s, s), 255 = ignore; only where they were asked for."""


class Grid(NamedTuple):
    """Every grid patch of a set, with where it comes from; images in order, then y, then x."""

    visible: np.ndarray
    """float32 (n, s, s, 3) in [0, 1]."""
    infrared: np.ndarray
    """float32 (n, s, s, 1) in [0, 1]."""
    image: np.ndarray
    """int32 (n,): index of the pair."""
    position: np.ndarray
    """int32 (n, 2): y, x of the upper left corner, pixels."""


def grid(
    height: int, width: int, size: int, stride: int, name: str = "image"
) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of the published grid: y outer, x inner, from the upper left.

    Only whole patches count, so up to stride - 1 pixels at the right and bottom are in none.
    Raises DataError, naming `name`, for an image smaller than one patch. CrossFuse, sec. III-B.
    """
    if size < 1 or stride < 1:
        raise DataError(f"patch size {size}, stride {stride}: both must be at least 1 pixel")
    if height < size or width < size:
        raise DataError(
            f"{name}: {height}x{width} pixels is smaller than a {size}x{size} patch: "
            f"use a patch size (--data.patch-size, in evaluate --patch-size) of at most "
            f"{min(height, width)}, or leave this image out"
        )
    rows, columns = range(0, height - size + 1, stride), range(0, width - size + 1, stride)
    return [(y, x) for y in rows for x in columns]


class PatchIndex(Sequence[tuple[int, int, int]]):
    """Grid patches of a whole set as one flat list of (image, y, x). Reads sizes, decodes nothing.

    Attributes: size, stride (pixels); image int32 (n,); position int32 (n, 2), y and x;
    extent int32 (images, 2), height and width. Raises DataError for an empty set or an image
    smaller than a patch.
    """

    def __init__(self, pairs: Pairs, size: int, stride: int) -> None:
        if len(pairs) == 0:
            raise DataError(
                "a set without any pair gives no patches: check its folder and its split"
            )
        self.size, self.stride = size, stride
        self.extent = np.array([pairs.size(i) for i in range(len(pairs))], np.int32)
        corners = [
            grid(int(h), int(w), size, stride, pairs.stem(i))
            for i, (h, w) in enumerate(self.extent)
        ]
        self.image = np.repeat(np.arange(len(corners), dtype=np.int32), [len(c) for c in corners])
        self.position = np.array([corner for c in corners for corner in c], np.int32)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: Any) -> Any:
        """(image, y, x) of one patch, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        y, x = self.position[index]
        return int(self.image[index]), int(y), int(x)


def read_pair(pairs: Pairs, index: int, classes: int = 0) -> Patches:
    """One pair, checked: visible float32 (h, w, 3) and infrared float32 (h, w, 1), both in [0, 1].

    classes: above 0, with its labels, uint8 (h, w): 0 to classes - 1, and 255 = ignore. Any failure
    becomes a DataError that names the pair's stem.
    """
    stem = pairs.stem(index)
    try:
        pair = pairs[index]
    except DataError as error:
        if stem in str(error):
            raise
        raise DataError(f"{stem}: {error}") from error
    except Exception as error:
        raise DataError(
            f"{stem}: cannot be read ({type(error).__name__}: {error}): "
            "replace the file, or leave it out of the split"
        ) from error
    height, width = pairs.size(index)
    for what, pixels, channels in (("visible", pair.visible, 3), ("infrared", pair.infrared, 1)):
        expected = (height, width, channels)
        if pixels.shape != expected or pixels.dtype != np.float32:
            raise DataError(
                f"{stem}: {what} pixels are {pixels.dtype} {pixels.shape}, expected float32 "
                f"{expected}: the file does not fit its header, or changed while it was read"
            )
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{stem}: {what} levels span {low} to {high}, expected 0 to 1: "
                "scale the file by its bit depth"
            )
    labels = None
    if classes:
        files = files_of(pairs, index)
        where = str(files[2]) if len(files) > 2 else stem
        labels = _labels(where, pair.labels, (height, width), classes)
    return Patches(pair.visible, pair.infrared, labels)


def _labels(
    where: str, labels: np.ndarray | None, size: tuple[int, int], classes: int
) -> np.ndarray:
    if labels is None:
        raise DataError(
            f"{where}: has no label map, and this training learns from labels: put one into the "
            "folder labels/ beside ir/ and vi/, or leave this pair out of the split"
        )
    if labels.shape != size:
        raise DataError(
            f"{where}: its label map is {labels.shape[0]}x{labels.shape[1]}, the pair "
            f"{size[0]}x{size[1]}: label maps are never resized; mend the file"
        )
    found = np.unique(labels)
    wrong = found[(found < 0) | ((found >= classes) & (found != IGNORE))]
    if len(wrong):
        raise DataError(
            f"{where}: labels {', '.join(map(str, wrong[:_NAMED]))}"
            f"{' ...' if len(wrong) > _NAMED else ''} in {int(np.isin(labels, wrong).sum())} "
            f"pixels, but there are {classes} classes, 0 to {classes - 1}, and {IGNORE} to "
            "ignore: set method.classes, or mend the file"
        )
    if found[0] == IGNORE:
        raise DataError(
            f"{where}: every pixel of its label map is {IGNORE} (ignore): label it, or leave "
            "this pair out of the split"
        )
    return labels.astype(np.uint8)


def _pack(pixels: np.ndarray) -> np.ndarray:
    """The same pixels: uint8 where each is exactly a multiple of 1/255, else a float32 copy."""
    levels = np.rint(pixels * np.float32(255)).astype(np.uint8)
    return levels if np.array_equal(_LEVELS[levels], pixels) else np.array(pixels, np.float32)


def _unpack(pixels: np.ndarray) -> np.ndarray:
    return _LEVELS[pixels] if pixels.dtype == np.uint8 else pixels


class ImageCache:
    """Decoded images of one or more sets, the least recently used dropped first. Thread-safe.

    Random patches of one image lie far apart in a shuffled epoch, so without a cache every patch
    decodes its whole image. Images whose levels are all multiples of 1/255 (8-bit files) are kept
    as uint8, others as float32; what comes out is bit for bit what was decoded. Threads that ask
    for the same image at once decode it once. `limit` counts bytes of pixels in this process: every
    reading process has a cache of its own, and pickling leaves the content behind.

    Attributes: used, bytes kept now; decoded, images decoded so far.
    """

    def __init__(
        self, sets: Sequence[Pairs], limit: int = DEFAULT_CACHE_BYTES, classes: int = 0
    ) -> None:
        if limit < 0:
            raise ValueError(f"cache limit {limit}: use 0 (keep nothing) or a number of bytes")
        self.sets, self.limit, self.classes = tuple(sets), limit, classes
        self._reset()

    def _reset(self) -> None:
        self.used, self.decoded = 0, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Patches] = OrderedDict()
        self._pending: dict[tuple[int, int], Future[Patches]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"sets": self.sets, "limit": self.limit, "classes": self.classes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def crop(self, which: int, image: int, y: int, x: int, size: int) -> Patches:
        """One patch of pair `image` of set `which`: float32 (size, size, 3) and (size, size, 1)."""
        whole = self._get((which, image))
        place = (slice(y, y + size), slice(x, x + size))
        labels = None if whole.labels is None else whole.labels[place]
        return Patches(_unpack(whole.visible[place]), _unpack(whole.infrared[place]), labels)

    def _get(self, key: tuple[int, int]) -> Patches:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
            other = self._pending.get(key)
            if other is None:
                mine = self._pending[key] = Future()
        if other is not None:
            return other.result()
        try:
            # Only the first set, the target, has labels to learn from.
            read = read_pair(self.sets[key[0]], key[1], self.classes if key[0] == 0 else 0)
            image = Patches(_pack(read.visible), _pack(read.infrared), read.labels)
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self.decoded += 1
            self._kept[key] = image
            self.used += _nbytes(image)
            while self.used > self.limit:
                self.used -= _nbytes(self._kept.popitem(last=False)[1])
        mine.set_result(image)
        return image


def _nbytes(image: Patches) -> int:
    return sum(pixels.nbytes for pixels in image if pixels is not None)


def _each_image(count: int, visit: Callable[[int], None], threads: int) -> None:
    """Calls visit(0..count-1) from `threads` threads; the first error in order is raised."""
    with ThreadPoolExecutor(threads) as pool:
        results = [pool.submit(visit, i) for i in range(count)]
        try:
            for result in results:
                result.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_patches(
    pairs: Pairs,
    image: np.ndarray,
    position: np.ndarray,
    size: int,
    threads: int = 4,
    classes: int = 0,
) -> Patches:
    """Chosen patches, in the order asked for; each image is decoded once, `threads` at a time.

    image: int (n,). position: int (n, 2), y and x. Returns float32 (n, size, size, 3 and 1).
    classes: above 0, uint8 labels (n, size, size) too.
    Raises DataError where a patch reaches over its image's border.
    """
    image, position = np.asarray(image, np.int64), np.asarray(position, np.int64).reshape(-1, 2)
    if len(image) != len(position):
        raise DataError(f"{len(image)} images but {len(position)} positions: give one each")
    patches = Patches(
        np.empty((len(image), size, size, 3), np.float32),
        np.empty((len(image), size, size, 1), np.float32),
        np.empty((len(image), size, size), np.uint8) if classes else None,
    )
    numbers, inverse = np.unique(image, return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])

    def visit(i: int) -> None:
        pair = read_pair(pairs, int(numbers[i]), classes)
        height, width = pair.infrared.shape[:2]
        for row in rows[i]:
            y, x = map(int, position[row])
            if not (0 <= y <= height - size and 0 <= x <= width - size):
                raise DataError(
                    f"{pairs.stem(int(numbers[i]))}: a {size}x{size} patch at y={y}, x={x} "
                    f"does not lie in {height}x{width} pixels: take positions from its grid"
                )
            patches.visible[row] = pair.visible[y : y + size, x : x + size]
            patches.infrared[row] = pair.infrared[y : y + size, x : x + size]
            if patches.labels is not None and pair.labels is not None:
                patches.labels[row] = pair.labels[y : y + size, x : x + size]

    _each_image(len(numbers), visit, threads)
    return patches


def read_grid(pairs: Pairs, size: int, stride: int, threads: int = 4) -> Grid:
    """Every grid patch of the set in memory: 16 * size**2 bytes each (64 KiB at 64 pixels)."""
    index = PatchIndex(pairs, size, stride)
    patches = read_patches(pairs, index.image, index.position, size, threads)
    return Grid(patches.visible, patches.infrared, index.image, index.position)


def grid_means(pairs: Pairs, size: int, stride: int, threads: int = 4) -> np.ndarray:
    """Mean grey level of each channel of every grid patch: float64 (n, 3), 0..255, red first.

    The order is `PatchIndex`'s. Patches are averaged while their image is in memory, so no more
    than `threads` images are held. CrossFuse, the means behind mu and d, sec. III-B.
    """
    index = PatchIndex(pairs, size, stride)
    means = np.empty((len(index), 3), np.float64)
    starts = np.searchsorted(index.image, np.arange(len(pairs) + 1))

    def visit(i: int) -> None:
        visible = read_pair(pairs, i).visible
        for row in range(starts[i], starts[i + 1]):
            y, x = index.position[row]
            patch = visible[y : y + size, x : x + size]
            means[row] = 255 * patch.mean(axis=(0, 1), dtype=np.float64)

    _each_image(len(pairs), visit, threads)
    return means
