"""The kernels in C++ against what XLA makes of the same blocks, how they are compiled, and where
they are used. test_layers_numpy.py and test_crossfuse.py compare them with NumPy and golden files.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxfuse import distributed, kernels, models
from jaxfuse.infer import predict
from jaxfuse.infer.strips import fuse_strips
from jaxfuse.kernels import KernelsError, build
from jaxfuse.models import crossfuse, local
from jaxfuse.models.base import functional
from jaxfuse.models.layers import Compute

XLA, NATIVE = (Compute(remat="none", kernels=way) for way in ("xla", "native"))
BLOCKS: dict[str, Callable[[Compute], Any]] = {
    "restormer": functools.partial(crossfuse.Block, False),
    "long-scale": functools.partial(crossfuse.Block, True),
    "node": crossfuse.CouplingNode,
}
SIZES = [(2, 5, 7), (1, 1, 1), (2, 2, 1), (1, 65, 3), (1, 66, 130), (40, 65, 2)]
"""Examples, height, width: smaller than a tile of 64x64, one pixel beyond it, several, and several
that are added up together."""
CLOSE = 2e-5
"""Largest difference, relative to the largest value: of sums over thousands of pixels in another
order; measured 5e-6."""


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def moved(params: Any) -> Any:
    """Random parameters away from where some of them start, at 0 and 1."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * np.abs(leaf).max() * rng.normal(size=leaf.shape), params
    )


def assert_close(actual: Any, expected: Any, close: float = CLOSE) -> None:
    pairs = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True)
    for (path, one), other in pairs:
        assert one.shape == other.shape and one.dtype == other.dtype
        error = np.abs(np.asarray(one) - other).max() / np.abs(one).max()
        assert error < close, (jax.tree_util.keystr(path), error)


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_values_and_gradients_are_xlas(kind: str, size: tuple[int, int, int]) -> None:
    x, pull = (jnp.asarray(random(i, *size, crossfuse.CHANNELS)) for i in (1, 2))
    found = []
    for compute in (XLA, NATIVE):
        init, bind = functional(BLOCKS[kind](compute))
        params = moved(init(jax.random.key(0)))

        @jax.jit
        def run(params: Any, x: Any, bind=bind) -> Any:
            value, back = jax.vjp(lambda params, x: bind(params)(x), params, x)
            return value, back(pull)

        found.append(run(params, x))
    # The attention over one pixel has no gradient but rounding, divided by the length of q.
    assert_close(found[1], found[0], 50 * CLOSE if size == (1, 1, 1) else CLOSE)


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("low", [False, True], ids=["restormer", "long-scale"])
def test_sums_count_what_the_mask_says(low: bool) -> None:
    """Outside of it anything may stand, as in windows beyond what they answer for."""
    x = jnp.asarray(random(0, 2, 9, 70, crossfuse.CHANNELS))
    mask = np.zeros((9, 70), np.float32)
    mask[2:7, 3:68] = 1.0
    mask = jnp.asarray(mask)
    sums = []
    for compute in (XLA, NATIVE):
        init, bind = functional(crossfuse.Block(low, compute))
        params = init(jax.random.key(0))
        sums.append(jax.jit(lambda p, x, bind=bind: bind(p).sums(x, mask))(params, x))
    assert_close(sums[1], sums[0])
    beyond = x.at[:, 8:].set(jnp.nan).at[:, :, 69:].set(jnp.nan)
    again = jax.jit(lambda p, x: bind(p).sums(x, mask))(params, beyond)
    assert_close(again, sums[1])


@pytest.mark.usefixtures("cxx")
def test_what_is_not_finite_shows() -> None:
    """A training step sees that it went wrong."""
    init, bind = functional(crossfuse.CouplingNode(NATIVE))
    x = jnp.asarray(random(0, 1, 6, 6, crossfuse.CHANNELS)).at[0, 3, 3, 5].set(jnp.nan)
    value, back = jax.vjp(lambda p: bind(p)(x), init(jax.random.key(0)))
    assert np.isnan(value[0, 3, 3]).all() and np.isfinite(value[0, 0, 0]).all()
    assert np.isnan(back(jnp.ones_like(value))[0]["phi"]["project"]).any()
    init, bind = functional(crossfuse.Block(False, NATIVE))
    assert np.isnan(bind(init(jax.random.key(0)))(x)).all()


@pytest.mark.usefixtures("cxx")
def test_activations_by_themselves() -> None:
    """GELU over the range that float32 has any use for: gate and value are the same."""
    x = jnp.linspace(-12.0, 12.0, 16 * 64).reshape(1, 1, 64, 16)
    expand = jnp.concatenate([jnp.eye(16), jnp.eye(16)], axis=1)
    spatial = jnp.zeros((3, 3, 32)).at[1, 1].set(1.0)
    gate = local.Local(None, expand, spatial)
    run = jax.jit(lambda x: local.bottleneck(x, gate, jnp.eye(16), "gated_gelu"))
    wide = np.asarray(x, np.float64)
    exact = wide * special.ndtr(wide) * wide
    np.testing.assert_allclose(run(x), exact, rtol=2e-6, atol=4e-6)


def whole(model: models.Model, params: Any, size: tuple[int, int]) -> np.ndarray:
    visible, infrared = np.random.default_rng(0).random((2, 1, *size, 1), np.float32)
    return np.asarray(jax.jit(model.apply)(params, visible, infrared).image)


@pytest.mark.usefixtures("cxx")
@pytest.mark.slow
def test_strips_of_native_windows_are_the_whole_image() -> None:
    model = models.create("crossfuse", kernels="native")
    assert model.native()
    params = model.init(jax.random.key(0))
    visible, infrared = np.random.default_rng(0).random((2, 1, 50, 70, 1), np.float32)
    expected = whole(model, params, (50, 70))
    strips = fuse_strips(model, params, visible, infrared, window=(32, 48))
    np.testing.assert_allclose(strips, expected[0, :, :, 0], atol=2e-6)
    np.testing.assert_allclose(
        expected, whole(models.create("crossfuse", kernels="xla"), params, (50, 70)), atol=2e-6
    )
    assert predict.chosen(model, 480 * 640, "auto") == "whole"
    assert predict.chosen(model, 4000 * 3000, "auto") == "strips"


@pytest.mark.usefixtures("cxx")
def test_where_they_are_used(monkeypatch) -> None:
    x = jnp.zeros((1, 4, 4, 64))
    auto = Compute()
    assert jax.device_count() > 1 and not local.native(auto, x)
    assert local.native(Compute(kernels="native"), x)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert local.native(auto, x) and not local.native(Compute(kernels="xla"), x)
    assert not local.native(Compute(dtype="bfloat16"), x)
    assert not local.native(auto, x.astype(jnp.bfloat16))
    with models.traced_for("cpu"):  # what is exported runs without them
        assert not local.native(auto, x)
    found = []
    (n,) = jax.export.symbolic_shape("n")
    jax.eval_shape(
        lambda x: found.append(local.native(auto, x)),
        jax.ShapeDtypeStruct((n, 4, 4, 64), jnp.float32),
    )
    assert found == [False]


PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jaxfuse import models
from jaxfuse.kernels import build
from jaxfuse.models import local
build.TUNED = {tuned!r} or build.TUNED
model = models.create("crossfuse", kernels="native")
rng = np.random.default_rng(0)
visible, infrared = rng.random((2, 2, 70, 67, 1), np.float32)
params = model.init(jax.random.key(0))
@jax.jit
def network(params):
    def loss(params):
        image = model.apply(params, visible, infrared).image
        return (image ** 2).sum(), image
    return jax.value_and_grad(loss, has_aux=True)(params)
(_, image), gradients = network(params)
block = params["encoder"]["blocks"]["at0"]["feed_forward"]
x = jnp.asarray(rng.normal(size=(3, 140, 67, 64)), jnp.float32)
part = local.Local((jnp.ones(64), jnp.zeros(64)), block["expand"], block["spatial"])
@jax.jit
def kernels(x, part, project):
    value, back = jax.vjp(lambda *a: local.bottleneck(*a, "gated_gelu"), x, part, project)
    sums, back_of_sums = jax.vjp(local.channel_sums, x, part._replace(
        expand=part.expand[:, :128], spatial=part.spatial[..., :128]))
    return value, back(value), sums, back_of_sums(sums)
found = {{"kernels": kernels(x, part, block["project"]), "image": image, "gradients": gradients}}
np.savez(sys.argv[1], **{{jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(found)}})
"""


def in_process(tmp_path: Path, tuned: str = "", **environment: str) -> dict[str, np.ndarray]:
    """Image and gradients of a small pair, and results of kernels, by a process of its own."""
    result = tmp_path / "result.npz"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM.format(tuned=tuned)), str(result)],
        # Fake devices are threads as well.
        env={**os.environ, "XLA_FLAGS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(result) as file:
        return dict(file)


@pytest.mark.usefixtures("cxx")
@pytest.mark.slow
def test_other_processors_and_thread_counts(tmp_path) -> None:
    """Vectors of 4, 8 and as many numbers as there are; threads change no bit of a kernel's."""
    if build.TUNED != "-march=native":
        pytest.skip("built for other processors on x86 only")
    here = in_process(tmp_path)
    for threads in ("1", "3"):
        again = in_process(tmp_path, NPROC=threads)
        for name, value in here.items():
            if name.startswith("['kernels']"):  # XLA's own products do depend on them
                np.testing.assert_array_equal(again[name], value, err_msg=name)
    for tuned in ("-march=x86-64", "-march=x86-64-v3"):
        other = in_process(tmp_path, tuned)
        for name, value in here.items():
            np.testing.assert_allclose(
                other[name], value, rtol=0, atol=2e-4 * np.abs(value).max(), err_msg=name
            )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "jaxfuse" / "kernels"


def compiler(tmp_path: Path, does: str) -> str:
    """A program that stands for a C++ compiler."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\nif [ $1 = --version ]; then echo one; exit; fi\n{does}\n")
    path.chmod(0o755)
    return str(path)


def test_compiled_once_and_again_for_another_compiler(cache, tmp_path, monkeypatch) -> None:
    count = 'echo . >> "$0.calls"; while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    program = compiler(tmp_path, count)
    monkeypatch.setenv("CXX", program)
    first = build.library()
    assert build.library() == first and first.read_text() == "made\n"
    assert Path(f"{program}.calls").read_text().count(".") == 1
    assert list(cache.iterdir()) == [first]
    Path(program).write_text(Path(program).read_text().replace("echo one", "echo two"))
    second = build.library()
    monkeypatch.setenv("CXX", f"{program} -more")
    assert len({first, second, build.library(), *cache.iterdir()}) == 3
    # Without any compiler, what one left is taken, but not what is for other processors.
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert build.library() in (first, second, *cache.iterdir())
    monkeypatch.setattr(build, "TUNED", "-march=other")
    with pytest.raises(KernelsError, match=r"no C\+\+ compiler is installed: install one"):
        build.library()


def test_what_stands_in_the_way_is_named(cache, tmp_path, monkeypatch) -> None:
    said = "echo 'In file included from a.h:1' >&2; echo 'a.h:2: error: bad option' >&2; exit 1"
    monkeypatch.setenv("CXX", compiler(tmp_path, said))
    with pytest.raises(KernelsError, match=r"could not compile.*: a\.h:2: error: bad.* by CXX"):
        build.library()
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsError, match="CXX = 'no-such-compiler': no such program"):
        build.library()
    monkeypatch.setenv("CXX", compiler(tmp_path, "sleep 5"))
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.1)
    with pytest.raises(KernelsError, match=r"compiler took more than 0 s: try again"):
        build.library()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        KernelsError, match=r"file/jaxfuse/kernels: Not a directory: .*must be writ"
    ):
        build.library()


@pytest.fixture
def forgotten():
    """Whether there are kernels is asked anew, here and afterwards."""
    for function in (kernels._usable, kernels._registered):
        function.cache_clear()
    yield
    for function in (kernels._usable, kernels._registered):
        function.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("cxx", "forgotten")
def test_a_library_that_is_damaged_is_made_again(cache, monkeypatch) -> None:
    # XLA takes a name once in a process; those of this test are others.
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    path = build.library()
    whole = path.read_bytes()
    path.write_bytes(b"damage")
    assert kernels.available() and path.read_bytes() == whole


@pytest.mark.usefixtures("forgotten")
def test_a_library_that_cannot_be_loaded_is_named(cache, tmp_path, monkeypatch, caplog) -> None:
    made = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    monkeypatch.setenv("CXX", compiler(tmp_path, made))
    with caplog.at_level(logging.WARNING, "jaxfuse"):
        assert not kernels.available()
    assert "cannot be loaded" in caplog.text and "set XDG_CACHE_HOME" in caplog.text


@pytest.mark.usefixtures("forgotten")
def test_without_a_compiler_xla_does_it_and_says_so_once(monkeypatch, caplog) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    model = models.create("crossfuse")
    with caplog.at_level(logging.WARNING, "jaxfuse"):
        params = model.init(jax.random.key(0))
        text = str(jax.make_jaxpr(model.apply)(params, *jnp.zeros((2, 1, 4, 4, 1))))
    assert "ffi_call" not in text
    (record,) = caplog.records
    assert "slower than it could" in record.message and "no-such-compiler" in record.message
    native = models.create("crossfuse", kernels="native")
    with pytest.raises(KernelsError, match="no such program"):
        native.apply(params, *jnp.zeros((2, 1, 4, 4, 1)))


def test_a_step_is_compiled_once_and_gives_memory_back(monkeypatch) -> None:
    given = []
    monkeypatch.setattr(distributed.compilers, "_give_back", lambda: given.append(True))
    traced = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return 2.0 * x

    ahead = distributed.Ahead(double)
    assert [float(ahead(jnp.float32(x))) for x in (1.0, 2.0)] == [2.0, 4.0]
    assert len(traced) == len(given) == 1
    np.testing.assert_array_equal(ahead(jnp.arange(3.0)), [0.0, 2.0, 4.0])
    assert float(ahead(jnp.float32(3.0))) == 6.0 and len(traced) == 2
    assert "multiply" in ahead.lower(jnp.float32(1.0)).as_text()
