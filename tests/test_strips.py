"""Windows over a large image against one program over all of it, and the store behind them."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse import models
from jaxfuse.infer import maps, sharded, strips
from jaxfuse.infer.maps import MapStore, ScratchError
from jaxfuse.infer.strips import choose_window, cuts, fuse_strips
from jaxfuse.models import Model, Pass
from jaxfuse.models.base import Fused
from jaxfuse.models.layers import conv3x3
from jaxfuse.shapes import Params

CHANNELS = 4


def pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    visible, infrared = np.random.default_rng(seed).random((2, height, width), np.float32)
    return visible, infrared


def small_model(dtype: str = "float32", halo: int = 2) -> Model:
    """Two rounds of a 3x3 convolution scaled by a sum over all pixels, `x` rewritten in place.

    halo: what its middle pass claims; 2 is right, the tests also see what less does.
    """
    kind = jnp.dtype(dtype)

    def init(key: jax.Array) -> Params:
        a, b, c = jax.random.split(key, 3)
        return {
            "enter": jax.random.normal(a, (3, 3, 1, CHANNELS)),
            "mix": {"at0": 0.3 * jax.random.normal(b, (3, 3, CHANNELS, CHANNELS))},
            "leave": 0.3 * jax.random.normal(c, (3, 3, CHANNELS, 1)),
        }

    def enter(params, maps, sums, mask):
        x = conv3x3(maps[0].astype(kind), params["enter"])
        return (x,), (total(x, mask),)

    def total(x, mask):
        return {
            "squares": jnp.sum(jnp.square(x.astype(jnp.float32)) * mask[None, :, :, None], (1, 2))
        }

    def scaled(x, sums, pixels):
        return x * jax.lax.rsqrt(1e-3 + sums["squares"])[:, None, None, :].astype(x.dtype) * pixels

    def mix(params, maps, sums, mask):
        x = maps[0] + conv3x3(jnp.tanh(scaled(maps[0], sums[0], 30.0)), params["mix"])
        x = x + conv3x3(jnp.cos(x), params["mix"])
        return (x,), (total(x, mask),)

    def leave(params, maps, sums, mask):
        y = conv3x3(scaled(maps[0], sums[0], 30.0), params["leave"]).astype(jnp.float32)
        return (jax.nn.sigmoid(4.0 * y + maps[1] - 0.5),), ()

    def step(name, program, select, reads, needs, writes, gives, halo) -> Pass:
        return Pass(name, program, select, reads, needs, writes, gives, halo)

    def mix_of(params):
        return {"mix": params["mix"]["at0"]}

    x = {"x": (CHANNELS, kind)}
    image = {"image": (1, jnp.dtype("float32"))}
    passes = (
        step("enter", enter, lambda p: {"enter": p["enter"]}, ("visible",), (), x, ("a",), 1),
        step("mix 0", mix, mix_of, ("x",), ("a",), x, ("b",), halo),
        step("mix 1", mix, mix_of, ("x",), ("b",), x, ("c",), halo),
        step(
            "leave", leave, lambda p: {"leave": p["leave"]}, ("x", "infrared"), ("c",), image, (), 1
        ),
    )

    def apply(params, visible, infrared):
        """The passes with one window, the whole image."""
        everything = jnp.ones(visible.shape[1:3])
        (x,), (s,) = enter(params, (visible,), (), everything)
        for _ in range(2):
            (x,), (s,) = mix(mix_of(params), (x,), (s,), everything)
        (fused,), _ = leave(params, (x, infrared), (s,), everything)
        return Fused(fused, x, {})

    return Model("small", init, apply, None, passes)


def whole(model: Model, params: Params, visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
    apply = jax.jit(lambda *args: model.apply(*args).image)
    return np.asarray(apply(params, visible[None, :, :, None], infrared[None, :, :, None]))[
        0, :, :, 0
    ]


@pytest.fixture(scope="module")
def small() -> tuple[Model, Params]:
    model = small_model()
    return model, model.init(jax.random.key(0))


# Windows


@pytest.mark.parametrize("halo", [0, 1, 3, 6])
def test_cuts_answer_for_each_pixel_once(halo):
    for length in range(1, 60):
        for size in range(2 * halo + 1, 70):
            windows = cuts(length, size, halo)
            assert [w.first for w in windows] == [0, *[w.last for w in windows[:-1]]]
            assert windows[-1].last == length
            for w in windows:
                assert w.first < w.last
                stop = w.start + min(size, length)
                assert 0 <= w.start <= w.first and w.last <= stop <= length
                assert w.start == 0 or w.first - w.start >= halo
                assert stop == length or stop - w.last >= halo
            fewest = (
                math.ceil(max(length - 2 * halo, 1) / (size - 2 * halo)) if size < length else 1
            )
            assert len(windows) == fewest


def test_a_window_smaller_than_its_halos_is_refused():
    with pytest.raises(ValueError, match=r"windows of 6 pixels .* halos of 3: use 7 or more"):
        cuts(100, 6, 3)


@pytest.mark.parametrize(
    "size", [(480, 640), (1, 1), (1, 5000), (3000, 4000), (97, 61), (65, 4001)]
)
@pytest.mark.parametrize("halo", [2, 6])
def test_chosen_windows_fit_and_waste_little(size, halo):
    window = choose_window(*size, halo, 9216)
    assert window[0] * window[1] <= 9216
    count = math.prod(len(cuts(n, w, halo)) for n, w in zip(size, window, strict=True))
    assert count * window[0] * window[1] <= 1.4 * size[0] * size[1]
    for n, w in zip(size, window, strict=True):
        assert w == n or (w < n and w % strips.GRAIN == 0)


# Equality with the whole image


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((23, 31), (5, 5)),
        ((23, 31), (6, 40)),
        ((23, 31), (23, 7)),
        ((24, 17), (23, 16)),
        ((40, 1), (9, 1)),
        ((1, 40), (1, 9)),
        ((1, 1), (5, 5)),
        ((120, 130), None),
    ],
)
@pytest.mark.parametrize("budget", [0, 10**9])
def test_equal_to_the_whole_image(small, tmp_path, size, window, budget):
    visible, infrared = pair(*size)
    fused = fuse_strips(
        *small, visible, infrared, window=window, memory_budget=budget, scratch=tmp_path
    )
    assert fused.shape == size and fused.dtype == np.float32
    np.testing.assert_allclose(fused, whole(*small, visible, infrared), atol=2e-6)
    assert list(tmp_path.iterdir()) == []


def test_a_halo_too_small_would_show():
    model = small_model(halo=1)
    params = model.init(jax.random.key(0))
    visible, infrared = pair(40, 40)
    fused = fuse_strips(model, params, visible, infrared, window=(9, 9))
    assert np.abs(fused - whole(model, params, visible, infrared)).max() > 1e-4


def test_sums_over_all_pixels_matter(small):
    """One bright corner changes the far side, which only a sum can tell it."""
    visible, infrared = pair(40, 40)
    brighter = visible.copy()
    brighter[:8, :8] += 3.0
    before, after = (fuse_strips(*small, v, infrared, window=(9, 9)) for v in (visible, brighter))
    assert np.abs(after - before)[30:, 30:].max() > 1e-3


def test_maps_keep_the_computing_dtype(tmp_path):
    model = small_model("bfloat16")
    params = model.init(jax.random.key(0))
    visible, infrared = pair(23, 31)
    fused = [
        fuse_strips(
            model, params, visible, infrared, window=(9, 11), memory_budget=budget, scratch=tmp_path
        )
        for budget in (0, 10**9)
    ]
    np.testing.assert_array_equal(*fused)
    np.testing.assert_allclose(fused[0], whole(model, params, visible, infrared), atol=0.03)


def test_inputs_may_have_batch_and_channel_axes(small):
    visible, infrared = pair(12, 13)
    np.testing.assert_array_equal(
        fuse_strips(*small, visible[None, :, :, None], infrared[None, :, :, None]),
        fuse_strips(*small, visible, infrared),
    )


def test_passes_with_one_program_share_its_compilation():
    model = small_model()
    params = model.init(jax.random.key(0))
    assert model.passes[1].program is model.passes[2].program
    fuse_strips(model, params, *pair(30, 30), window=(9, 9))
    fuse_strips(model, params, *pair(51, 44), window=(9, 9))
    for step in model.passes:
        assert strips._compiled(step.program)._cache_size() == 1


def test_a_model_without_passes_is_refused(small):
    model = Model("plain", small[0].init, small[0].apply)
    with pytest.raises(ValueError, match='plain has no exact windows: use method="whole"'):
        fuse_strips(model, small[1], *pair(8, 8))


def crossfuse() -> tuple[Model, Params]:
    """Weights larger than fresh ones, so that the blocks do something; 1.6 would saturate all."""
    model = models.create("crossfuse", remat="none", depthwise="shift")
    return model, jax.tree.map(lambda leaf: 1.4 * leaf, model.init(jax.random.key(3)))


def test_crossfuse_shares_programs():
    model = models.create("crossfuse")
    assert len({step.program for step in model.passes}) == 8 < len(model.passes) == 17
    known = {"visible", "infrared"}
    for step in model.passes:
        assert set(step.reads) <= known, step.name
        known |= set(step.writes)
    assert "image" in known


@pytest.mark.slow
def test_crossfuse_is_equal_to_the_whole_image(monkeypatch, tmp_path):
    options = {"xla_backend_optimization_level": 0}
    compiled = {}

    def compile_quickly(program: Callable) -> Callable:
        return compiled.setdefault(program, jax.jit(program, compiler_options=options))

    monkeypatch.setattr(strips, "_compiled", compile_quickly)
    model, params = crossfuse()
    visible, infrared = pair(97, 61)
    visible *= np.linspace(0.0, 1.0, 61, dtype=np.float32)
    fused = fuse_strips(
        model, params, visible, infrared, window=(29, 27), memory_budget=0, scratch=tmp_path
    )
    apply = jax.jit(lambda *args: model.apply(*args).image, compiler_options=options)
    expected = apply(params, visible[None, :, :, None], infrared[None, :, :, None])[0, :, :, 0]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    assert len(compiled) == 8


# The store


def layout(**channels: int) -> dict[str, tuple[int, np.dtype]]:
    return {name: (count, np.dtype(np.float32)) for name, count in channels.items()}


@pytest.mark.parametrize("budget", [0, 4 * 7 * 5 * 3, 10**6])
def test_store_reads_what_was_written(tmp_path, budget):
    values = np.arange(7 * 5 * 5, dtype=np.float32).reshape(7, 5, 5)
    with MapStore(7, 5, layout(a=3, b=2), budget, tmp_path) as store:
        # The first maps are the ones used most: memory is theirs first.
        assert store.in_files == {0: 700, 420: 280, 10**6: 0}[budget]
        assert list(tmp_path.iterdir()) == []
        for start, stop in ((4, 7), (0, 2), (2, 4)):
            store.write("a", start, values[start:stop, :, :3])
            store.write("b", start, values[start:stop, :, 3:])
        np.testing.assert_array_equal(store.read("a", 1, 6), values[1:6, :, :3])
        np.testing.assert_array_equal(store.read("b", 0, 7), values[:, :, 3:])


def test_files_are_read_and_written_in_pieces(small, tmp_path, monkeypatch):
    """The system may do less than it was asked for."""
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: read(fd, [into[0][:777]], at))
    visible, infrared = pair(40, 40)
    fused = fuse_strips(
        *small, visible, infrared, window=(11, 12), memory_budget=0, scratch=tmp_path
    )
    np.testing.assert_allclose(fused, whole(*small, visible, infrared), atol=2e-6)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def full_at_start(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))


def full_when_reserving(monkeypatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)


def full_midway(monkeypatch) -> None:
    write, calls = os.pwrite, []

    def refuse(*args) -> int:
        calls.append(args)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    monkeypatch.setattr(os, "pwrite", refuse)


@pytest.mark.parametrize("full", [full_at_start, full_when_reserving, full_midway])
def test_a_full_disk(small, tmp_path, monkeypatch, full):
    full(monkeypatch)
    before = open_files()
    with pytest.raises(ScratchError) as error:
        fuse_strips(*small, *pair(40, 50), window=(9, 9), memory_budget=0, scratch=tmp_path)
    text = str(error.value)
    assert str(tmp_path) in text and "No space left" in text and "40 x 50" in text
    assert f"{40 * 50 * CHANNELS * 4:,} bytes" in text and "memory_budget" in text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == [] and open_files() == before


def test_a_scratch_folder_that_does_not_exist(small, tmp_path):
    with pytest.raises(ScratchError, match="nowhere: No such file or directory"):
        fuse_strips(*small, *pair(9, 9), memory_budget=0, scratch=tmp_path / "nowhere")


def test_an_error_in_a_pass_leaves_nothing_behind(small, tmp_path):
    def broken(*_):
        raise FloatingPointError("broken")

    model, params = small
    passes = (*model.passes[:2], model.passes[2]._replace(program=broken), model.passes[3])
    before = open_files()
    with pytest.raises(FloatingPointError):
        fuse_strips(
            Model("small", model.init, model.apply, None, passes),
            params,
            *pair(40, 40),
            window=(9, 9),
            memory_budget=0,
            scratch=tmp_path,
        )
    assert list(tmp_path.iterdir()) == [] and open_files() == before


def test_the_default_scratch_folder_is_the_system_one(monkeypatch, tmp_path):
    monkeypatch.setattr(maps.tempfile, "gettempdir", lambda: str(tmp_path))
    with MapStore(2, 2, layout(a=1), 0) as store:
        assert store.scratch == tmp_path


MEMORY = """
import json, sys
from pathlib import Path
import jax, numpy as np
from jaxfuse import models
from jaxfuse.infer.strips import fuse_strips

height, width, budget = map(int, sys.argv[1:4])
model = models.create("crossfuse")
params = model.init(jax.random.key(0))
visible, infrared = np.random.default_rng(0).random((2, height, width), np.float32)
fused = fuse_strips(model, params, visible, infrared, memory_budget=budget, scratch=sys.argv[4])
# Not getrusage: what it counts begins with what the process that started this one held.
status = Path("/proc/self/status").read_text().split()
peak = 1024 * int(status[status.index("VmHWM:") + 1])
print(json.dumps({"peak": peak, "finite": bool(np.isfinite(fused).all()), "shape": fused.shape}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_stays_small(fresh_python, tmp_path):
    """Its maps are 0.9 GB, one program over this image would take 10 GB."""
    script = tmp_path / "memory.py"
    script.write_text(MEMORY, encoding="utf8")
    height, width = 1000, 1200
    words = (str(script), str(height), str(width), "100000000", str(tmp_path))
    # As for users: programs that are not optimized take other memory, and three times as long.
    ran = fresh_python(*words, timeout=900, env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"})
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["finite"] and found["shape"] == [height, width]
    assert found["peak"] < 1.2e9


# Rows over devices


@pytest.mark.parametrize("halo", [0, 1, 2, 6])
def test_a_layout_answers_for_each_row_once(halo):
    for height in range(1, 90):
        for devices in range(1, 9):
            plan = sharded.layout(height, devices, halo)
            count = len(plan.starts)
            assert 1 <= count <= devices and plan.firsts[0] == plan.starts[0] == 0
            assert plan.starts[-1] + plan.size == height
            lasts = (*plan.firsts[1:], height)
            for start, first, last in zip(plan.starts, plan.firsts, lasts, strict=True):
                assert start <= first < last <= start + plan.size
                # What a window lacks lies with its next neighbours, and is as much as a halo.
                assert start == 0 or first - start == halo
                assert last == height or start + plan.size - last >= halo
            for here, below in zip(range(count - 1), range(1, count), strict=True):
                assert plan.firsts[here] <= plan.starts[below]
                assert plan.starts[here] + plan.size <= lasts[below]


@pytest.mark.parametrize(("height", "devices"), [(61, 8), (64, 4), (45, 2), (9, 8), (17, 3)])
def test_rows_over_devices_give_the_whole_image(small, height, devices):
    model, params = small
    visible, infrared = pair(height, 24)
    expected = whole(model, params, visible, infrared)
    found = sharded.fuse_sharded(model, params, visible, infrared, devices)
    assert found.shape == (height, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_rows_over_devices_need_the_halo_that_the_passes_claim(small):
    """The test above can fail: with a halo too small by one it does."""
    model, params = small_model(halo=1), small[1]
    visible, infrared = pair(64, 24)
    expected = whole(model, params, visible, infrared)
    found = sharded.fuse_sharded(model, params, visible, infrared, 8)
    assert np.abs(found - expected).max() > 1e-4


@pytest.mark.slow
def test_crossfuse_on_eight_devices_gives_the_whole_image():
    model = models.create("crossfuse")
    params = model.init(jax.random.key(1))
    visible, infrared = pair(203, 32)
    expected = whole(model, params, visible, infrared)
    found = sharded.fuse_sharded(model, params, visible, infrared)
    assert len(sharded.layout(203, 8, max(p.halo for p in model.passes)).starts) == 8
    np.testing.assert_allclose(found, expected, atol=1e-5)
