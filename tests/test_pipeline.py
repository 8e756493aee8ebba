"""Patches and batches: which examples come when, on whatever processes, threads and workers."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest

from jaxfuse.config import ConfigError, DataConfig, SourceConfig
from jaxfuse.data.pairs import DataError, Pair
from jaxfuse.data.patches import (
    ImageCache,
    PatchIndex,
    grid,
    grid_means,
    read_grid,
    read_pair,
    read_patches,
)
from jaxfuse.data.pipeline import (
    INDEX_MODULUS,
    SECONDS,
    Pipeline,
    TrainingSet,
    validation_batches,
)

SIZE, STRIDE = 16, 20
SIZES = ((40, 61), (36, 16), (57, 40))
"""Give 2 * 3, 2 * 1 and 3 * 2 grid patches: 14 in all."""
ITEMS = 14

Batch = dict[str, np.ndarray]


class Coded:
    """Pairs whose every pixel tells where it is from: base + number of the image, y and x."""

    def __init__(
        self, sizes: tuple[tuple[int, int], ...] = SIZES, base: int = 0, fine: bool = False
    ) -> None:
        self.sizes, self.base, self.fine = sizes, base, fine
        self.reads = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def stem(self, index: int) -> str:
        return f"scene{self.base + index}"

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def __getitem__(self, index: int) -> Pair:
        self.reads += 1
        y, x = np.mgrid[: self.sizes[index][0], : self.sizes[index][1]]
        visible = np.stack([np.full_like(y, self.base + index), y, x], -1).astype(np.float32)
        if self.fine:
            visible += np.float32(0.25)
        infrared = ((7 * y + 3 * x + 50 * (self.base + index)) % 256).astype(np.float32)
        return Pair(self.stem(index), visible / 255, infrared[..., None] / 255)


class Broken(Coded):
    """One pair of it cannot be read, or is not what it says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def __getitem__(self, index: int) -> Pair:
        pair = super().__getitem__(index)
        if index != 1:
            return pair
        match self.how:
            case "crash":
                raise OSError("truncated")
            case "nameless":
                raise DataError("no pixels: copy the file again")
            case "named":
                raise DataError(f"folder/{self.stem(index)}.png: no pixels: copy it again")
            case "shape":
                return pair._replace(infrared=pair.infrared[:-1])
            case "dtype":
                return pair._replace(visible=pair.visible.astype(np.float64))
            case "range":
                return pair._replace(infrared=pair.infrared * 255)
            case "nan":
                return pair._replace(visible=pair.visible * np.float32("nan"))
        raise AssertionError(self.how)


def data_config(crops: str = "random", **more: object) -> DataConfig:
    target = SourceConfig(kind="synthetic")
    return DataConfig(target=target, patch_size=SIZE, stride=STRIDE, crops=crops, **more)


def make(crops: str = "random", *, threads: int = 2, workers: int = 0, **more: object) -> Pipeline:
    settings = {"target": Coded(), "batch_size": 4, "seed": 3, **more}
    config = data_config(crops, threads=threads, workers=workers)
    return Pipeline(settings.pop("target"), config=config, **settings)


def take(pipeline: Pipeline, count: int, start: int = 0) -> list[Batch]:
    batches = pipeline.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def places(visible: np.ndarray) -> list[tuple[int, int, int]]:
    """(image, y, x) that the first pixel of each patch tells."""
    return [tuple(map(int, np.rint(patch[0, 0] * 255))) for patch in visible]


def stream(batches: list[Batch], key: str = "visible") -> list[tuple[int, int, int]]:
    return [place for batch in batches for place in places(batch[key])]


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def joined(parts: list[list[Batch]]) -> list[Batch]:
    """The batches of several processes put together, process after process."""
    return [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


def extra_patches(count: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Patches that tell image 200, y = their number."""
    visible = np.zeros((count, size, size, 3), np.float32)
    visible[..., 0] = np.float32(200) / 255
    visible[..., 1] = np.arange(count, dtype=np.float32)[:, None, None] / 255
    infrared = np.full((count, size, size, 1), 0.5, np.float32)
    return visible, infrared


# Patches


def test_grid_is_the_published_order() -> None:
    expected = []
    for y in range(0, 40 - 16 + 1, 20):
        for x in range(0, 61 - 16 + 1, 20):
            expected.append((y, x))
    assert grid(40, 61, 16, 20) == expected
    assert expected[:4] == [(0, 0), (0, 20), (0, 40), (20, 0)]
    assert grid(264, 265, 64, 200) == [(0, 0), (0, 200), (200, 0), (200, 200)]
    assert grid(263, 264, 64, 200) == [(0, 0), (0, 200)]
    assert grid(64, 64, 64, 200) == [(0, 0)]


def test_an_image_smaller_than_a_patch_is_named() -> None:
    with pytest.raises(DataError, match=r"scene1: 36x16 pixels .* 17x17 .* at most 16"):
        PatchIndex(Coded(), 17, STRIDE)
    with pytest.raises(DataError, match="stride 0"):
        grid(64, 64, 16, 0)
    with pytest.raises(DataError, match="without any pair"):
        PatchIndex(Coded(()), SIZE, STRIDE)


def test_patch_index_lists_every_patch_without_decoding() -> None:
    pairs = Coded()
    index = PatchIndex(pairs, SIZE, STRIDE)
    expected = [(i, y, x) for i, (h, w) in enumerate(SIZES) for y, x in grid(h, w, SIZE, STRIDE)]
    assert list(index) == expected == index[:]
    assert len(index) == ITEMS
    assert index[-1] == expected[-1]
    assert pairs.reads == 0


def test_read_grid_and_its_means_against_a_loop() -> None:
    pairs = Coded(fine=True)
    found = read_grid(pairs, SIZE, STRIDE, threads=3)
    assert pairs.reads == len(pairs)
    means = grid_means(pairs, SIZE, STRIDE, threads=3)
    assert found.visible.dtype == found.infrared.dtype == np.float32
    assert means.dtype == np.float64 and means.shape == (ITEMS, 3)
    for row, (image, y, x) in enumerate(PatchIndex(pairs, SIZE, STRIDE)):
        pair = pairs[image]
        visible = pair.visible[y : y + SIZE, x : x + SIZE]
        assert (found.image[row], *found.position[row]) == (image, y, x)
        np.testing.assert_array_equal(found.visible[row], visible)
        np.testing.assert_array_equal(
            found.infrared[row], pair.infrared[y : y + SIZE, x : x + SIZE]
        )
        # Levels are the image's number, y and x, and a quarter: the means are known exactly.
        known = [image + 0.25, y + (SIZE - 1) / 2 + 0.25, x + (SIZE - 1) / 2 + 0.25]
        np.testing.assert_allclose(means[row], known, atol=1e-5)


def test_read_patches_keeps_the_order_and_decodes_each_image_once() -> None:
    pairs = Coded()
    image, position = (
        np.array([2, 0, 2, 2, 0]),
        np.array([[41, 24], [0, 1], [3, 2], [3, 2], [9, 9]]),
    )
    found = read_patches(pairs, image, position, SIZE)
    assert pairs.reads == 2
    assert places(found.visible) == [(2, 41, 24), (0, 0, 1), (2, 3, 2), (2, 3, 2), (0, 9, 9)]
    np.testing.assert_array_equal(found.infrared[1], pairs[0].infrared[:16, 1:17])
    assert read_patches(pairs, np.array([], int), np.empty((0, 2), int), SIZE).visible.shape[0] == 0


def test_read_patches_refuses_a_patch_over_the_border() -> None:
    with pytest.raises(DataError, match=r"scene0: a 16x16 patch at y=25, x=0 .* 40x61"):
        read_patches(Coded(), np.array([0]), np.array([[25, 0]]), SIZE)
    with pytest.raises(DataError, match="2 images but 1 positions"):
        read_patches(Coded(), np.array([0, 1]), np.array([[0, 0]]), SIZE)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash", r"^scene1: cannot be read \(OSError: truncated\): replace the file"),
        ("nameless", r"^scene1: no pixels: copy the file again$"),
        ("named", r"^folder/scene1\.png: no pixels: copy it again$"),
        ("shape", r"^scene1: infrared pixels are float32 \(35, 16, 1\), expected .*\(36, 16, 1\)"),
        ("dtype", r"^scene1: visible pixels are float64"),
        ("range", r"^scene1: infrared levels span .* to .*, expected 0 to 1"),
        ("nan", r"^scene1: visible levels span nan to nan"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named(how: str, message: str) -> None:
    pairs = Broken(how)
    assert read_pair(pairs, 0).visible.shape == (40, 61, 3)
    for read in (lambda: read_pair(pairs, 1), lambda: grid_means(pairs, SIZE, STRIDE)):
        with pytest.raises(DataError, match=message) as direct:
            read()
    batches = make(target=pairs, batch_size=ITEMS).batches()
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == str(direct.value)
    batches.close()


# The cache


@pytest.mark.parametrize("fine", [False, True], ids=["8-bit", "finer"])
def test_the_cache_returns_what_was_decoded_bit_for_bit(fine: bool) -> None:
    pairs = Coded(fine=fine)
    cache = ImageCache([pairs])
    for image, y, x in itertools.chain(PatchIndex(pairs, SIZE, STRIDE), [(2, 41, 24)]):
        whole = pairs[image]
        found = cache.crop(0, image, y, x, SIZE)
        assert found.visible.dtype == found.infrared.dtype == np.float32
        np.testing.assert_array_equal(found.visible, whole.visible[y : y + SIZE, x : x + SIZE])
        np.testing.assert_array_equal(found.infrared, whole.infrared[y : y + SIZE, x : x + SIZE])
    assert cache.decoded == 3
    pixels = sum(h * w for h, w in SIZES)
    assert cache.used == pixels * (3 * 4 + 1 if fine else 3 + 1)


def test_all_256_levels_survive_the_cache() -> None:
    class Ramp(Coded):
        def __getitem__(self, index: int) -> Pair:
            levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
            gray = levels.astype(np.float32) / 255
            return Pair("ramp", np.repeat(gray, 3, -1), gray)

    cache = ImageCache([Ramp(((16, 16),))])
    found = cache.crop(0, 0, 0, 0, 16)
    assert cache.used == 4 * 256
    np.testing.assert_array_equal(found.infrared.ravel(), np.arange(256, dtype=np.float32) / 255)


def test_the_cache_drops_the_least_recently_used() -> None:
    sizes = ((16, 16),) * 4
    pairs, one = Coded(sizes), 16 * 16 * 4
    cache = ImageCache([pairs], limit=2 * one + 1)
    for image in (0, 1, 0, 2):  # drops 1, which was used before 0 was used again
        cache.crop(0, image, 0, 0, SIZE)
        assert cache.used <= cache.limit
    assert cache.decoded == 3
    cache.crop(0, 0, 0, 0, SIZE)
    assert cache.decoded == 3
    cache.crop(0, 1, 0, 0, SIZE)
    assert cache.decoded == 4
    nothing = ImageCache([pairs], limit=0)
    assert places(nothing.crop(0, 3, 0, 0, SIZE).visible[None]) == [(3, 0, 0)]
    assert nothing.used == 0
    with pytest.raises(ValueError, match="cache limit -1"):
        ImageCache([pairs], limit=-1)


def test_the_cache_keeps_sets_apart_and_stays_behind_when_pickled() -> None:
    cache = ImageCache([Coded(), Coded(base=100)])
    assert places(cache.crop(0, 1, 0, 0, SIZE).visible[None]) == [(1, 0, 0)]
    assert places(cache.crop(1, 1, 0, 0, SIZE).visible[None]) == [(101, 0, 0)]
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.used, copy.decoded, copy.limit) == (0, 0, cache.limit)
    assert places(copy.crop(1, 2, 5, 4, SIZE).visible[None]) == [(102, 5, 4)]


def test_threads_that_want_the_same_image_decode_it_once() -> None:
    class Slow(Coded):
        def __getitem__(self, index: int) -> Pair:
            time.sleep(0.05)
            return super().__getitem__(index)

    pairs, threads = Slow(), 8
    cache, ready = ImageCache([pairs]), threading.Barrier(threads)

    def ask(_: int) -> tuple[int, int, int]:
        ready.wait()
        return places(cache.crop(0, 2, 1, 1, SIZE).visible[None])[0]

    with ThreadPoolExecutor(threads) as pool:
        assert set(pool.map(ask, range(threads))) == {(2, 1, 1)}
    assert pairs.reads == cache.decoded == 1


def test_an_error_is_not_kept() -> None:
    pairs = Broken("crash")
    cache = ImageCache([pairs])
    for _ in range(2):
        with pytest.raises(DataError, match="scene1"):
            cache.crop(0, 1, 0, 0, SIZE)
    assert pairs.reads == 2
    assert cache.decoded == 0


def test_the_cache_changes_nothing_but_reading() -> None:
    kept, unkept = Coded(), Coded()
    with_cache = take(make(target=kept), 14)
    without = take(make(target=unkept, cache_bytes=0), 14)
    assert_same(with_cache, without)
    assert kept.reads == len(kept)
    # Threads may share a decoding, and may read ahead of what was taken.
    assert unkept.reads > 2 * len(kept)


# The order of training examples


def test_a_batch_is_what_it_says() -> None:
    batch = take(make(pool=Coded(base=100), pool_size=6), 1)[0]
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "visible": ("float32", (4, SIZE, SIZE, 3)),
        "infrared": ("float32", (4, SIZE, SIZE, 1)),
        "index": ("uint32", (4,)),
        "pool_visible": ("float32", (6, SIZE, SIZE, 3)),
        "pool_infrared": ("float32", (6, SIZE, SIZE, 1)),
    }
    for key in ("visible", "infrared", "pool_visible", "pool_infrared"):
        assert 0 <= batch[key].min() <= batch[key].max() <= 1
    np.testing.assert_array_equal(batch["index"], [0, 1, 2, 3])


def test_every_item_comes_once_an_epoch_and_epochs_differ() -> None:
    pipeline = make("grid")
    assert (pipeline.items_per_epoch, pipeline.steps_per_epoch) == (ITEMS, 3)
    epochs = 4
    found = stream(take(pipeline, epochs * ITEMS // 4))  # 14 batches of 4: batches straddle epochs
    all_places = sorted(PatchIndex(Coded(), SIZE, STRIDE))
    orders = [tuple(found[e * ITEMS : (e + 1) * ITEMS]) for e in range(epochs)]
    for order in orders:
        assert sorted(order) == all_places
        assert list(order) != all_places
    assert len(set(orders)) == epochs


def test_the_order_follows_from_the_seed_and_from_nothing_else() -> None:
    once, again = take(make("grid"), 7), take(make("grid"), 7)
    assert_same(once, again)
    # The same sequence, cut in batches of another size.
    assert stream(take(make("grid", batch_size=7), 4)) == stream(once)
    assert stream(take(make("grid", seed=4), 7)) != stream(once)


def test_the_order_stays_what_it_was() -> None:
    """Runs begun with an older version must continue with the very next example."""
    grid_order, random_order = (stream(take(make(crops), 2, 3)) for crops in ("grid", "random"))
    # Examples 12 to 19, across the end of the first epoch.
    assert grid_order == [
        *((2, 0, 20), (0, 20, 0), (0, 0, 20), (1, 20, 0)),
        *((0, 0, 0), (0, 0, 40), (2, 20, 0), (2, 40, 0)),
    ]
    assert random_order == [
        *((2, 1, 23), (0, 14, 1), (0, 19, 36), (1, 5, 0)),
        *((0, 23, 6), (0, 20, 44), (2, 18, 1), (2, 18, 2)),
    ]


def test_neighbouring_seeds_share_no_epoch() -> None:
    orders = set()
    for seed in range(6):
        found = stream(take(make("grid", seed=seed, batch_size=14), 4))
        orders |= {tuple(found[e * ITEMS : (e + 1) * ITEMS]) for e in range(4)}
    assert len(orders) == 24


@pytest.mark.parametrize("crops", ["grid", "random"])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_give_the_batches_of_one(crops: str, processes: int) -> None:
    more = {"batch_size": 8, "pool": Coded(base=100), "pool_size": 4, "extra": extra_patches(3)}
    alone = take(make(crops, **more), 5)
    parts = [
        take(make(crops, process_index=p, process_count=processes, **more), 5)
        for p in range(processes)
    ]
    assert parts[0][0]["visible"].shape[0] == 8 // processes
    assert parts[0][0]["pool_visible"].shape[0] == 4 // processes
    assert_same(joined(parts), alone)


@pytest.mark.parametrize("start", [1, 3, 5, 1000])
def test_a_run_resumed_at_a_step_continues_with_the_next_example(start: int) -> None:
    more = {"pool": Coded(base=100), "pool_size": 4}
    if start < 10:
        assert_same(take(make(**more), 2, start), take(make(**more), start + 2)[start:])
    resumed = take(make(**more), 2, start)
    np.testing.assert_array_equal(resumed[0]["index"], np.arange(4 * start, 4 * start + 4))
    np.testing.assert_array_equal(resumed[1]["index"], make(**more).indices(start + 1))
    # A run may go on with another number of processes.
    parts = [take(make(process_index=p, process_count=2, **more), 2, start) for p in range(2)]
    assert_same(joined(parts), resumed)


def test_threads_and_prefetching_change_nothing() -> None:
    more = {"pool": Coded(base=100), "pool_size": 4}
    one = take(make(threads=1, **more), 9)
    assert_same(take(make(threads=7, **more), 9), one)
    assert_same(take(make(threads=7, **more), 9), one)


def test_indices_wrap_at_the_modulus_but_the_sequence_goes_on() -> None:
    pipeline = make()
    step = INDEX_MODULUS // 4 - 1
    last, first = take(pipeline, 2, step)
    assert last["index"].tolist() == [INDEX_MODULUS - 4 + row for row in range(4)]
    assert first["index"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(pipeline.indices(step), last["index"])
    assert places(first["visible"]) != places(take(pipeline, 1)[0]["visible"])


# Random crops


def test_random_crops_are_paired_drawn_anew_and_as_many_as_the_grid() -> None:
    pairs = Coded()
    batches = take(make(target=pairs), 4 * ITEMS // 4)
    found = stream(batches)
    per_image = Counter({0: 6, 1: 2, 2: 6})
    for epoch in range(4):
        part = found[epoch * ITEMS : (epoch + 1) * ITEMS]
        assert Counter(image for image, _, _ in part) == per_image
    # 24 crops of image 0, which has 25 * 46 places: repeats are rare.
    assert len({place for place in found if place[0] == 0}) >= 22
    images = [pairs[i] for i in range(3)]
    for batch in batches:
        for row, (image, y, x) in enumerate(places(batch["visible"])):
            square = (slice(y, y + SIZE), slice(x, x + SIZE))
            np.testing.assert_array_equal(batch["visible"][row], images[image].visible[square])
            np.testing.assert_array_equal(batch["infrared"][row], images[image].infrared[square])


def test_random_crops_reach_every_place_alike() -> None:
    pairs = Coded(((18, 17),) * 8)  # 3 * 2 places each
    found = Counter((y, x) for _, y, x in stream(take(make(target=pairs, batch_size=8), 150)))
    assert set(found) == {(y, x) for y in range(3) for x in range(2)}
    expected = 1200 / 6
    chi_squared = sum((count - expected) ** 2 / expected for count in found.values())
    assert chi_squared < 20.5  # 0.1 % with 5 degrees of freedom; the draw is fixed by the seed


# Extra patches and the pool


def test_extra_patches_are_items_like_any_other() -> None:
    visible, infrared = extra_patches(6)
    pipeline = make("grid", extra=(visible, infrared), batch_size=5)
    assert (pipeline.items_per_epoch, pipeline.steps_per_epoch) == (ITEMS + 6, 4)
    batches = take(pipeline, 8)
    expected = [*PatchIndex(Coded(), SIZE, STRIDE), *((200, k, 0) for k in range(6))]
    for epoch in range(2):
        assert Counter(stream(batches[4 * epoch : 4 * epoch + 4])) == Counter(expected)
    for batch in batches:
        extra = np.array([image == 200 for image, _, _ in places(batch["visible"])])
        assert np.all(batch["infrared"][extra] == 0.5)


def test_the_pool_is_fresh_each_step_and_a_stream_of_its_own() -> None:
    pool = Coded(base=100)
    batches = take(make("grid", pool=pool, pool_size=7), 4)
    found = stream(batches, "pool_visible")
    all_places = sorted((100 + i, y, x) for i, y, x in PatchIndex(pool, SIZE, STRIDE))
    assert sorted(found[:ITEMS]) == sorted(found[ITEMS:]) == all_places
    assert found[:ITEMS] != found[ITEMS:]
    # Neither changes the other's order.
    assert_same(
        [{k: b[k] for k in ("visible", "index")} for b in batches],
        [{k: b[k] for k in ("visible", "index")} for b in take(make("grid"), 4)],
    )
    ours = [(100 + i, y, x) for i, y, x in stream(batches)]
    assert ours[:7] != found[:7]
    # pool row j of step t is number t * pool_size + j, whatever pool_size is.
    assert stream(take(make("grid", pool=pool, pool_size=4), 7), "pool_visible") == found


def test_random_pool_crops_are_paired_and_not_the_targets() -> None:
    pool = Coded(base=100)
    batches = take(make(pool=pool, pool_size=4, batch_size=4), 14)
    images = [pool[i] for i in range(3)]
    for batch in batches:
        for row, (image, y, x) in enumerate(places(batch["pool_visible"])):
            square = (slice(y, y + SIZE), slice(x, x + SIZE))
            np.testing.assert_array_equal(
                batch["pool_infrared"][row], images[image - 100].infrared[square]
            )
    found = stream(batches, "pool_visible")
    assert len(set(found)) > 0.9 * len(found)
    assert not {(i - 100, y, x) for i, y, x in found[:14]} <= set(stream(batches)[:14])


# Errors and messages


def test_describe_names_the_examples_of_a_step() -> None:
    more = {"pool": Coded(base=100), "pool_size": 4, "extra": extra_patches(4)}
    pipeline = make(**more)
    step = 5
    batch = take(pipeline, 1, step)[0]

    def line(name: str, number: int, place: tuple[int, int, int]) -> str:
        image, y, x = place
        where = f"extra patch {y}" if image == 200 else f"scene{image} at y={y}, x={x}"
        return f"{name} {number}: {where}"

    examples = [line("training", 20 + r, p) for r, p in enumerate(places(batch["visible"]))]
    pool = [line("external", 20 + r, p) for r, p in enumerate(places(batch["pool_visible"]))]
    assert pipeline.describe(step) == examples
    assert pipeline.describe(step, pool=True) == examples + pool
    # Each process can tell the whole batch.
    assert make(process_index=1, process_count=2, **more).describe(step) == examples
    every = [text for step in range(9) for text in pipeline.describe(step)]
    assert any("extra patch" in text for text in every)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch_size": 15}, r"14 training patches are fewer than train\.batch_size = 15: lower"),
        ({"pool": Coded(), "pool_size": 20}, r"14 external patches .* data\.external\.pool = 20"),
        ({"target": Coded(())}, "without any pair"),
        ({"target": Coded(((40, 40), (12, 90)))}, r"scene1: 12x90 pixels .* 16x16 .* at most 12"),
        ({"extra": extra_patches(2, 15)}, r"extra visible .*\(2, 15, 15, 3\), expected .*16, 16"),
        (
            {"extra": (extra_patches(2)[0], extra_patches(3)[1])},
            r"extra infrared patches are float32 \(3, .*expected float32 \(2, ",
        ),
        (
            {"extra": tuple(255 * a for a in extra_patches(2))},
            r"extra visible .* to 200\.0, expected",
        ),
    ],
)
def test_data_that_cannot_work_is_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, r"train\.batch_size = 6: .* by the 4 processes"),
        ({"batch_size": 0}, r"train\.batch_size = 0"),
        (
            {"pool": Coded(), "pool_size": 3, "process_count": 2},
            r"data\.external\.pool = 3: .* 2 processes",
        ),
        ({"pool": Coded()}, r"data\.external\.pool = 0: use at least 1"),
        ({"process_index": 2, "process_count": 2}, r"process_index = 2: must lie in 0\.\.1"),
        ({"seed": -1}, r"seed = -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**more)


def test_start_and_end_of_reading() -> None:
    pipeline = make(pool_size=64)  # without a pool its size means nothing
    with pytest.raises(ConfigError, match="start_step = -1"):
        pipeline.batches(-1)
    before = set(threading.enumerate())
    batches = pipeline.batches()
    next(batches)
    reading = set(threading.enumerate()) - before
    assert reading
    batches.close()
    batches.close()
    for thread in reading:
        thread.join(10)
    assert not any(thread.is_alive() for thread in reading)
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_reading_says_how_fast_it_is() -> None:
    batches = make(threads=1).batches()
    try:
        assert all(math.isnan(x) for x in batches.pace())
        for _ in range(3):
            assert SECONDS not in next(batches)
        rate, waited = batches.pace()
        assert rate > 0 and waited > 0
        assert all(math.isnan(x) for x in batches.pace())
    finally:
        batches.close()


def test_training_set_checks_its_extra_patches() -> None:
    TrainingSet(Coded()).check(SIZE)
    TrainingSet(Coded(), extra_patches(0)).check(SIZE)
    visible, infrared = extra_patches(2)
    with pytest.raises(DataError, match="float64"):
        TrainingSet(Coded(), (visible.astype(np.float64), infrared)).check(SIZE)
    visible[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="extra visible patches span nan"):
        TrainingSet(Coded(), (visible, infrared)).check(SIZE)


# Validation


@pytest.mark.parametrize("processes", [1, 2])
def test_validation_batches_hold_every_patch_once(processes: int) -> None:
    parts = [
        validation_batches(Coded(), SIZE, STRIDE, 4, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    batches = joined(parts)
    assert len(batches) == 4
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, [1] * ITEMS + [0] * 2)
    expected = list(PatchIndex(Coded(), SIZE, STRIDE))
    assert stream(batches) == expected + expected[:2]
    numbers = np.concatenate([batch["index"] for batch in batches])
    assert numbers.dtype == np.uint32
    np.testing.assert_array_equal(numbers, [*range(ITEMS), 0, 1])


def test_validation_wraps_more_than_once_where_the_batch_is_large() -> None:
    (batch,) = validation_batches(Coded(((16, 16),)), SIZE, STRIDE, 3)
    assert places(batch["visible"]) == [(0, 0, 0)] * 3
    np.testing.assert_array_equal(batch["weight"], [1, 0, 0])
    with pytest.raises(ConfigError, match="by the 2 processes"):
        validation_batches(Coded(), SIZE, STRIDE, 3, process_count=2)
    with pytest.raises(DataError, match="without any pair"):
        validation_batches(Coded(()), SIZE, STRIDE, 3)


# Processes of their own


@pytest.mark.parametrize("workers", [1, 2])
def test_reading_processes_change_nothing(workers: int) -> None:
    more = {"pool": Coded(base=100), "pool_size": 4, "extra": extra_patches(3)}
    assert_same(take(make(workers=workers, **more), 5, 2), take(make(**more), 5, 2))


def test_an_error_in_a_reading_process_is_the_same_error() -> None:
    batches = make(target=Broken("crash"), batch_size=ITEMS, workers=1).batches()
    try:
        with pytest.raises(DataError, match=r"^scene1: cannot be read \(OSError: truncated\)"):
            next(batches)
    finally:
        batches.close()


def test_importing_the_data_package_imports_neither_grain_nor_jax(
    fresh_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    code = (
        "import sys, jaxfuse.data.pipeline, jaxfuse.data.patches\n"
        "print([name for name in ('grain', 'jax', 'absl') if name in sys.modules])"
    )
    done = fresh_python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


# Labels.


class Labelled(Coded):
    """The label of every pixel follows from its infrared level."""

    def __getitem__(self, index: int) -> Pair:
        pair = super().__getitem__(index)
        return pair._replace(labels=labels_of(pair.infrared))


def labels_of(infrared: np.ndarray) -> np.ndarray:
    """Classes 0 to 6 of (..., 1) levels, int32 (...)."""
    return np.rint(infrared[..., 0] * 255).astype(np.int32) % 7


@pytest.mark.parametrize("crops", ["grid", "random"])
def test_labels_are_cut_with_their_images(crops: Literal["grid", "random"]) -> None:
    config = DataConfig(patch_size=SIZE, stride=STRIDE, crops=crops)
    extra = read_grid(Coded(base=100), SIZE, STRIDE)
    pipeline = Pipeline(
        Labelled(),
        config=config,
        batch_size=7,
        seed=3,
        extra=(extra.visible, extra.infrared),
        classes=7,
    )
    batches = list(itertools.islice(pipeline.batches(), 8))
    unknown = 0
    for batch in batches:
        assert batch["labels"].dtype == np.int32
        foreign = batch["visible"][:, 0, 0, 0] * 255 > 50  # external patches have no labels
        own = batch["labels"][~foreign]
        np.testing.assert_array_equal(own, labels_of(batch["infrared"][~foreign]))
        assert (batch["labels"][foreign] == 255).all()
        unknown += int(foreign.sum())
    assert 0 < unknown < 56
    for batch in validation_batches(Labelled(), SIZE, STRIDE, 4, classes=7):
        np.testing.assert_array_equal(batch["labels"], labels_of(batch["infrared"]))
    assert "labels" not in next(Pipeline(Labelled(), config=config, batch_size=7, seed=3).batches())


def test_labels_are_flipped_with_their_images_and_unknown_online() -> None:
    import jax
    import jax.numpy as jnp

    from jaxfuse.methods.examples import prepare_examples

    config = DataConfig(patch_size=SIZE, stride=STRIDE)
    pipeline = Pipeline(
        Labelled(),
        config=config,
        batch_size=8,
        seed=4,
        pool=Coded(base=100),
        pool_size=8,
        classes=7,
    )
    batch = next(pipeline.batches())
    prepare = prepare_examples(True, 4, (30.0, 30.0, 30.0), colors=True)
    given = jax.tree.map(jnp.asarray, batch)
    examples, _ = prepare(given, jax.random.key(0), None)
    found = jax.device_get(examples)
    assert found["labels"].shape == (12, SIZE, SIZE)
    np.testing.assert_array_equal(found["labels"][:8], labels_of(found["infrared"][:8]))
    assert (found["labels"][8:] == 255).all()
    flipped = [
        not np.array_equal(a, b) for a, b in zip(found["labels"], batch["labels"], strict=False)
    ]
    assert any(flipped) and not all(flipped)
    # The colours are those of the same pixels: row and column stand in green and blue.
    rows = np.rint(found["color"][:8, ..., 1] * 255).astype(int)
    columns = np.rint(found["color"][:8, ..., 2] * 255).astype(int)
    image = np.rint(found["color"][:8, ..., 0] * 255).astype(int)
    expected = (7 * rows + 3 * columns + 50 * image) % 256 % 7
    np.testing.assert_array_equal(found["labels"][:8], expected)
