"""What every network in MODELS promises. A new one is tested by being in the table."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse import models
from jaxfuse.models import MODELS, Fused, Model
from jaxfuse.shapes import Params

SIZE = (6, 5)
ODD_SIZES = [(1, 1), (1, 5), (33, 47)]
FAST = {"xla_backend_optimization_level": 0}
"""Compiles in half the time; the arithmetic is the same."""

BFLOAT16 = {"crossfuse": 2e-3, "lite": 3e-3}
"""Largest change of the fused image by computing in bfloat16, fresh parameters; measured: 5e-4
and 7e-4."""

HAVE = {"depthwise": ["crossfuse"], "remat": ["crossfuse"]}
"""Networks that a setting of `Compute` changes."""

compiled = functools.partial(jax.jit, compiler_options=FAST)


def images(batch: int, height: int, width: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """A visible luma and an infrared image, noise in [0, 1]."""
    shape = (2, batch, height, width, 1)
    visible, infrared = np.random.default_rng(seed).random(shape, np.float32)
    return jnp.asarray(visible), jnp.asarray(infrared)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


class Built(NamedTuple):
    """A network with what the tests compile once."""

    name: str
    model: Model
    params: Params
    apply: Callable[..., Fused]
    fused: Fused
    """Of two images of SIZE."""


@pytest.fixture(scope="module", params=sorted(MODELS))
def built(request) -> Built:
    model = models.create(request.param, remat="none", depthwise="shift")
    params = model.init(jax.random.key(0))
    apply = compiled(model.apply)
    return Built(request.param, model, params, apply, apply(params, *images(2, *SIZE)))


def slopes(model: Model) -> Callable[..., Params]:
    """Gradient of a random weighting of the fused image."""
    weights = np.random.default_rng(1).normal(size=(2, *SIZE, 1)).astype(np.float32)

    def weighted(params: Params, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        return jnp.sum(model.apply(params, visible, infrared).image * weights)

    return compiled(jax.grad(weighted))


@pytest.fixture(scope="module")
def gradient(built) -> Callable[..., Params]:
    return slopes(built.model)


def check_shapes(fused: Fused, shape: tuple[int, ...]) -> None:
    assert fused.image.shape == shape
    assert fused.image.dtype == jnp.float32
    assert 0.0 <= float(fused.image.min()) <= float(fused.image.max()) <= 1.0
    for name, features in {"features": fused.features, **fused.parts}.items():
        assert features.shape[:3] == shape[:3], name
        assert np.isfinite(np.asarray(features, np.float32)).all(), name


def test_init(built):
    found = leaves(built.params)
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in found.values())
    abstract = leaves(jax.eval_shape(built.model.init, jax.random.key(0)))
    assert {n: leaf.shape for n, leaf in abstract.items()} == {
        n: leaf.shape for n, leaf in found.items()
    }
    again, other = (leaves(built.model.init(jax.random.key(seed))) for seed in (0, 1))
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, again[name])
        drawn = leaf.min() < leaf.max()
        assert drawn != np.array_equal(leaf, other[name]), name


def test_shapes_and_range(built):
    check_shapes(built.fused, (2, *SIZE, 1))
    assert built.model.name == built.name


@pytest.mark.parametrize("size", ODD_SIZES)
def test_any_size(built, size):
    visible, infrared = images(2, *size)
    fused = built.apply(built.params, visible, infrared)
    check_shapes(fused, (2, *size, 1))
    swapped = built.apply(built.params, visible[::-1], infrared[::-1])
    np.testing.assert_allclose(swapped.image[::-1], fused.image, atol=1e-6)


def test_images_of_a_batch_do_not_mix(built):
    visible, infrared = images(2, *SIZE)
    other, _ = images(2, *SIZE, seed=2)
    changed = built.apply(built.params, jnp.stack([visible[0], other[1]]), infrared)
    np.testing.assert_allclose(changed.image[0], built.fused.image[0], atol=1e-6)
    assert np.abs(changed.image[1] - built.fused.image[1]).max() > 1e-3


def test_both_inputs_matter(built):
    visible, infrared = images(2, *SIZE)
    other_visible, other_infrared = images(2, *SIZE, seed=2)
    for pair in ((other_visible, infrared), (visible, other_infrared)):
        changed = built.apply(built.params, *pair)
        assert np.abs(changed.image - built.fused.image).max() > 1e-4


def test_reconstruct(built):
    if built.model.reconstruct is None:
        assert built.fused.parts == {}  # what other objectives would need is not there either
        return
    rebuilt = compiled(built.model.reconstruct)(built.params, *images(2, *SIZE))
    assert rebuilt.image.shape == (2, 2, *SIZE, 1)
    assert 0.0 <= float(rebuilt.image.min()) <= float(rebuilt.image.max()) <= 1.0
    for name, features in rebuilt.parts.items():
        np.testing.assert_allclose(features, built.fused.parts[name], atol=1e-4, err_msg=name)


def test_every_parameter_has_a_gradient(built, gradient):
    for name, leaf in leaves(gradient(built.params, *images(2, *SIZE))).items():
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, name


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_images_have_finite_gradients(built, gradient, level):
    """A black patch is common at night; with fresh parameters all its features are 0."""
    flat = jnp.full((2, *SIZE, 1), level, jnp.float32)
    for name, leaf in leaves(gradient(built.params, flat, flat)).items():
        assert np.isfinite(leaf).all(), name


@pytest.mark.parametrize(
    ("setting", "choices"), [("depthwise", ("shift", "lax")), ("remat", ("none", "blocks"))]
)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_who_has_a_setting_is_stated(name, setting, choices):
    """The two tests below run for networks in `HAVE` only: elsewhere they could not fail."""
    fixed = {"depthwise": "shift", "remat": "none"}

    def program(choice: str) -> str:
        model = models.create(name, **{**fixed, setting: choice})
        params = jax.eval_shape(model.init, jax.random.key(0))
        text = str(jax.make_jaxpr(model.apply)(params, *images(1, *SIZE)))
        return re.sub(r"0x[0-9a-f]+", "", text)

    assert (len({program(choice) for choice in choices}) == 2) == (name in HAVE[setting])


@pytest.mark.slow
@pytest.mark.parametrize("built", HAVE["remat"], indirect=True)
def test_rematerialisation_changes_no_gradient(built, gradient):
    pair = images(2, *SIZE)
    blocks = slopes(models.create(built.name, remat="blocks", depthwise="shift"))
    expected = leaves(gradient(built.params, *pair))
    for name, leaf in leaves(blocks(built.params, *pair)).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(leaf, expected[name], atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("built", HAVE["depthwise"], indirect=True)
def test_depthwise_formulations_agree(built):
    model = models.create(built.name, remat="none", depthwise="lax")
    fused = compiled(model.apply)(built.params, *images(2, *SIZE))
    np.testing.assert_allclose(fused.image, built.fused.image, atol=1e-6)


def test_bfloat16_is_close(built):
    model = models.create(built.name, "bfloat16", remat="none", depthwise="shift")
    fused = compiled(model.apply)(built.params, *images(2, *SIZE))
    assert fused.features.dtype == jnp.bfloat16
    assert fused.image.dtype == jnp.float32
    difference = np.abs(fused.image - built.fused.image).max()
    assert 0 < difference < BFLOAT16[built.name]


@pytest.mark.slow
def test_jit_is_eager(built):
    fused = built.model.apply(built.params, *images(2, *SIZE))
    np.testing.assert_allclose(fused.image, built.fused.image, atol=1e-6)


@pytest.mark.parametrize(
    ("visible", "infrared", "message"),
    [
        ((1, 4, 4, 3), (1, 4, 4, 1), r"visible has shape \(1, 4, 4, 3\).*luma"),
        ((1, 4, 4, 1), (4, 4, 1), r"infrared has shape \(4, 4, 1\)"),
        ((1, 4, 4, 1), (1, 4, 5, 1), r"differ in shape"),
        ((2, 4, 4, 1), (1, 4, 4, 1), r"differ in shape"),
    ],
)
def test_wrong_shapes(built, unchecked, visible, infrared, message):
    arrays = jnp.zeros(visible), jnp.zeros(infrared)
    for function in (built.model.apply, built.model.reconstruct or built.model.apply):
        with pytest.raises(ValueError, match=f"{built.name}: .*{message}|{message}"):
            function(built.params, *arrays)


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"'crossfuze'.*choose one of .*crossfuse"):
        models.create("crossfuze")
