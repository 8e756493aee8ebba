"""Endless training batches and fixed validation batches, as NumPy arrays.

The examples are ONE global sequence, numbered g = 0, 1, 2 ...: example g is a function of the seed,
the epoch g // items_per_epoch and its place in that epoch, never of workers, threads or processes.
Batch `step` is the examples from step * batch_size on, and process p of P holds the p-th of P
equal, contiguous parts of it. So the position of a run is its step number and nothing else:
whatever the number of processes, `batches(step)` continues with the very next example.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxfuse.config import ConfigError, DataConfig
from jaxfuse.data.pairs import IGNORE, DataError, Pairs
from jaxfuse.data.patches import (
    DEFAULT_CACHE_BYTES,
    ImageCache,
    Patches,
    PatchIndex,
    read_patches,
)

INDEX_MODULUS = 1 << 30
"""`index` in a batch is the example number modulo this, so that it fits every integer type."""

_STEPS = 1 << 40
"""Length of a stream in batches: endless for any run, yet a length that Python can count."""

_ORDER, _CROP = 0, 1
"""What random words are for; keeps the two uses apart."""


SECONDS = "seconds"
"""What a batch says beside its arrays until `Batches` takes it out: how long it took to read."""


class Batches(Iterator[dict[str, np.ndarray]]):
    """Batches in order. Close it: else its threads and processes live on until it is collected."""

    def __init__(self, batches: Any, at_once: int) -> None:
        """at_once: how many batches can be read at the same time."""
        self._batches, self._at_once = batches, at_once
        self._read, self._count, self._waited = 0.0, 0, 0.0

    def __next__(self) -> dict[str, np.ndarray]:
        since = time.perf_counter()
        batch = dict(next(self._batches))
        self._waited += time.perf_counter() - since
        self._read += float(batch.pop(SECONDS))
        self._count += 1
        return batch

    def close(self) -> None:
        self._batches.close()

    def pace(self) -> tuple[float, float]:
        """(batches a second that reading can give, seconds waited for a batch), since last asked.

        The first is an estimate: what reading a batch took, times how many are read at once. Both
        are nan before the first batch.
        """
        if not self._count:
            return math.nan, math.nan
        rate = self._at_once * self._count / max(self._read, 1e-9)
        waited = self._waited / self._count
        self._read, self._count, self._waited = 0.0, 0, 0.0
        return rate, waited


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What a run learns from.

    target: pairs of the sensor to train for.
    extra: external patches that offline alignment chose, float32 (k, s, s, 3) and (k, s, s, 1) in
    [0, 1]; items of an epoch like the target's own.
    pool: the external set from which online alignment is offered fresh patches each step.
    """

    target: Pairs
    extra: tuple[np.ndarray, np.ndarray] | None = None
    pool: Pairs | None = None

    def check(self, size: int) -> None:
        """Raises DataError unless `extra` holds equally many patches of `size` in [0, 1]."""
        if self.extra is None:
            return
        extra = Patches(*self.extra)
        count = len(extra.visible)
        kinds = (("visible", extra.visible, 3), ("infrared", extra.infrared, 1))
        for what, pixels, channels in kinds:
            expected = (count, size, size, channels)
            if pixels.shape != expected or pixels.dtype != np.float32:
                raise DataError(
                    f"extra {what} patches are {pixels.dtype} {pixels.shape}, expected float32 "
                    f"{expected}: cut them with the patch size of the training"
                )
            if count and not (pixels.min() >= 0 and pixels.max() <= 1):
                raise DataError(
                    f"extra {what} patches span {pixels.min()} to {pixels.max()}, expected 0 to 1: "
                    "scale their levels to [0, 1]"
                )


def _random_words(count: int, *key: int) -> np.ndarray:
    """uint64 (count,), a function of the key. NumPy keeps these fixed between its versions."""
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


@functools.lru_cache(maxsize=8)
def _epoch_order(which: int, seed: int, epoch: int, items: int) -> np.ndarray:
    """The items 0 .. items - 1 in the order of one epoch of one stream: int64 (items,)."""
    order = np.argsort(_random_words(items, _ORDER, which, seed, epoch), kind="stable")
    order.setflags(write=False)
    return order


class _Place(NamedTuple):
    """Where an example comes from: a patch of a pair or, with image = -1, extra patch `y`."""

    image: int
    y: int
    x: int


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One endless shuffled sequence of patches: example numbers to places, places to pixels."""

    which: int
    """Number of its set in the cache; also keeps its random numbers apart from other streams'."""
    name: str
    """What its examples are called in messages."""
    prefix: str
    """What the keys of its arrays in a batch begin with."""
    rows: int
    """Its examples in a batch of ONE process."""
    index: PatchIndex
    extra: Patches | None
    cache: ImageCache
    seed: int
    random: bool
    classes: int

    @property
    def items(self) -> int:
        return len(self.index) + (0 if self.extra is None else len(self.extra.visible))

    def place(self, number: int) -> _Place:
        """The place of example `number`."""
        epoch, position = divmod(number, self.items)
        item = int(_epoch_order(self.which, self.seed, epoch, self.items)[position])
        if item >= len(self.index):
            return _Place(-1, item - len(self.index), 0)
        image, y, x = self.index[item]
        if self.random:
            words = _random_words(2, _CROP, self.which, self.seed, number)
            room = self.index.extent[image] - self.index.size + 1
            y, x = (
                int(word) * int(choices) >> 64 for word, choices in zip(words, room, strict=True)
            )
        return _Place(image, y, x)

    def read(self, start: int) -> Patches:
        """Pixels of the examples start .. start + rows - 1."""
        size = self.index.size
        patches = Patches(
            np.empty((self.rows, size, size, 3), np.float32),
            np.empty((self.rows, size, size, 1), np.float32),
            np.empty((self.rows, size, size), np.uint8) if self.classes else None,
        )
        for row in range(self.rows):
            image, y, x = self.place(start + row)
            if image < 0 and self.extra is not None:
                patch = Patches(self.extra.visible[y], self.extra.infrared[y])
            else:
                patch = self.cache.crop(self.which, image, y, x, size)
            patches.visible[row], patches.infrared[row] = patch.visible, patch.infrared
            if patches.labels is not None:
                # External patches have none that mean anything here.
                patches.labels[row] = IGNORE if patch.labels is None else patch.labels
        return patches

    def describe(self, number: int) -> str:
        image, y, x = self.place(number)
        stem = self.cache.sets[self.which].stem
        where = f"{stem(image)} at y={y}, x={x}" if image >= 0 else f"extra patch {y}"
        return f"{self.name} {number}: {where}"


@dataclasses.dataclass(frozen=True)
class _Read:
    """The map step -> batch of one process. Picklable: reading processes receive it."""

    streams: list[_Stream]
    process: int
    processes: int

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        since = time.perf_counter()
        batch: dict[str, np.ndarray] = {}
        for stream in self.streams:
            start = (step * self.processes + self.process) * stream.rows
            patches = stream.read(start)
            batch[f"{stream.prefix}visible"] = patches.visible
            batch[f"{stream.prefix}infrared"] = patches.infrared
            if patches.labels is not None:
                batch["labels"] = patches.labels.astype(np.int32)
            if not stream.prefix:
                batch["index"] = _numbers(start, stream.rows)
        batch[SECONDS] = np.float64(time.perf_counter() - since)
        return batch


def _numbers(start: int, count: int) -> np.ndarray:
    return np.array([(start + row) % INDEX_MODULUS for row in range(count)], np.uint32)


class Pipeline:
    """Endless training batches of patches, cut from pairs in a fixed, resumable order.

    Items of an epoch are the grid patches of `target` (with `config.crops == "random"`: as many per
    image, each anywhere in it, drawn anew each epoch) and all of `extra`, see `TrainingSet`. Epochs
    follow each other without a gap, so a batch may hold the end of one and the beginning of the
    next. batch_size and pool_size count rows over all processes and must be divisible by
    `process_count`; pool_size has no meaning without a pool. Target and pool share a cache of
    decoded images of `cache_bytes` in each reading process. classes: above 0, batches hold the
    target's labels, which must lie in 0..classes - 1 or be 255.

    Attributes: items_per_epoch; steps_per_epoch, the whole batches in one epoch; batch_size.
    Raises ConfigError for settings and DataError for data that cannot work.
    """

    def __init__(
        self,
        target: Pairs,
        *,
        config: DataConfig,
        batch_size: int,
        seed: int,
        extra: tuple[np.ndarray, np.ndarray] | None = None,
        pool: Pairs | None = None,
        pool_size: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        classes: int = 0,
    ) -> None:
        if seed < 0:
            raise ConfigError(f"seed = {seed}: use 0 or more")
        TrainingSet(target, extra, pool).check(config.patch_size)
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.process_index, self.process_count = process_index, process_count
        sets = [target] if pool is None else [target, pool]
        cache = ImageCache(sets, cache_bytes, classes)
        patches = None if extra is None else Patches(*extra)

        def stream(
            which: int, name: str, prefix: str, field: str, rows: int, extra: Patches | None
        ) -> _Stream:
            made = _Stream(
                which=which,
                name=name,
                prefix=prefix,
                rows=_share(field, rows, process_index, process_count),
                index=PatchIndex(cache.sets[which], config.patch_size, config.stride),
                extra=extra,
                cache=cache,
                seed=seed,
                random=config.crops == "random",
                classes=classes if which == 0 else 0,
            )
            if made.items < rows:
                raise DataError(
                    f"{made.items} {name} patches are fewer than {field} = {rows}: lower {field}, "
                    f"lower data.stride ({config.stride}) to get more of an image, or add images"
                )
            return made

        self._streams = [stream(0, "training", "", "train.batch_size", batch_size, patches)]
        if pool is not None:
            self._streams.append(
                stream(1, "external", "pool_", "data.external.pool", pool_size, None)
            )
        self.items_per_epoch = self._streams[0].items
        self.steps_per_epoch = self.items_per_epoch // batch_size

    def batches(self, start_step: int = 0) -> Batches:
        """Batches of this process from `start_step` on, without end; `close()` when done.

        visible float32 (b, s, s, 3), infrared float32 (b, s, s, 1), both in [0, 1]; index uint32
        (b,), the global number of each example modulo 2**30. Given `classes` also labels int32
        (b, s, s), 255 = ignore. With a pool also pool_visible and
        pool_infrared: this process' part of the step's pool_size fresh external patches. Raises
        DataError, naming the stem, on reaching a pair that cannot be read. With config.workers the
        calling script is imported anew in each reading process, so it must guard what it runs by
        `if __name__ == "__main__"`.
        """
        import grain

        if not 0 <= start_step < _STEPS:
            raise ConfigError(f"start_step = {start_step}: use 0 or more")
        read = _Read(self._streams, self.process_index, self.process_count)
        steps = grain.MapDataset.range(start_step, _STEPS).map(read)
        workers = self.config.workers
        threads = max(1, self.config.threads // max(1, workers))
        batches = steps.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        )
        if workers:
            _parse_flags()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        at_once = min(max(1, workers) * max(1, threads), os.cpu_count() or 1)
        return Batches(iter(batches), at_once)

    def indices(self, step: int) -> np.ndarray:
        """`index` of the whole batch of `step`, over all processes: uint32 (batch_size,)."""
        return _numbers(step * self.batch_size, self.batch_size)

    def describe(self, step: int, pool: bool = False) -> list[str]:
        """A line for each example of `step`, over all processes: its number, stem and position.

        With `pool`, the lines of the step's external patches follow. Recomputed, not remembered.
        """
        return [
            stream.describe(number)
            for stream in (self._streams if pool else self._streams[:1])
            for number in range(
                step * stream.rows * self.process_count,
                (step + 1) * stream.rows * self.process_count,
            )
        ]


def _share(field: str, rows: int, process: int, processes: int) -> int:
    """Rows of one process; checks that they divide."""
    if not 0 <= process < processes:
        raise ConfigError(f"process_index = {process}: must lie in 0..{processes - 1}")
    if rows < 1:
        raise ConfigError(f"{field} = {rows}: use at least 1")
    if rows % processes:
        raise ConfigError(f"{field} = {rows}: must be divisible by the {processes} processes")
    return rows // processes


def _parse_flags() -> None:
    """Grain's reading processes read absl flags, which only programs run by absl.app parse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def validation_batches(
    pairs: Pairs,
    size: int,
    stride: int,
    batch_size: int,
    *,
    threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    classes: int = 0,
) -> list[dict[str, np.ndarray]]:
    """Every grid patch of a set once, in order, as batches held in memory.

    Keys as in training: visible, infrared, index (the patch's number in the set); and weight,
    float32 (b,), 1 for a patch and 0 for what only fills the last batch (patches from the beginning
    again). A mean over patches is the sum of weight * value over the sum of weight. Each process
    gets its contiguous part of each batch.
    """
    rows = _share("train.batch_size", batch_size, process_index, process_count)
    index = PatchIndex(pairs, size, stride)
    count = -(-len(index) // batch_size)
    numbers = np.arange(count * batch_size).reshape(count, process_count, rows)[:, process_index]
    wrapped = numbers % len(index)
    place = wrapped.reshape(-1)
    patches = read_patches(pairs, index.image[place], index.position[place], size, threads, classes)
    batches = []
    for i in range(count):
        part = slice(i * rows, (i + 1) * rows)
        batch = {
            "visible": patches.visible[part],
            "infrared": patches.infrared[part],
            "index": wrapped[i].astype(np.uint32),
            "weight": (numbers[i] < len(index)).astype(np.float32),
        }
        if patches.labels is not None:
            batch["labels"] = patches.labels[part].astype(np.int32)
        batches.append(batch)
    return batches
