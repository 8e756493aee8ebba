"""The network `lite` against a float64 NumPy version written from its docstrings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse import models
from jaxfuse.models import lite
from jaxfuse.models.base import functional
from jaxfuse.shapes import Params
from test_layers_numpy import assert_agrees, compiled, conv, double, point, random

SIZES = [(37, 53), (32, 48), (8, 8), (1, 1), (3, 17)]
"""Odd ones, multiples of 8, and those that are mostly repeated edge."""
CLOSE = 1e-5
"""Largest error of a level, and of a feature relative to the largest; float32 gives 1e-6."""


def drawn(shapes: Any, seed: int = 0) -> Params:
    """Random parameters, biases too, that keep features near 1."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = float(np.prod(leaf.shape[:-1])) ** -0.5 if len(leaf.shape) > 1 else 0.3
        return rng.normal(0.0, scale, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


def parameters(init: Any) -> Params:
    return drawn(jax.eval_shape(init, jax.random.key(0)))


# The oracles.


def unshuffled(x: np.ndarray, side: int) -> np.ndarray:
    corners = [(i, j) for i in range(side) for j in range(side)]
    return np.concatenate([x[:, i::side, j::side] for i, j in corners], axis=-1)


def shuffled(x: np.ndarray, side: int) -> np.ndarray:
    b, h, w, c = x.shape
    c //= side * side
    pixels = np.zeros((b, h * side, w * side, c))
    for i in range(side):
        for j in range(side):
            first = (i * side + j) * c
            pixels[:, i::side, j::side] = x[..., first : first + c]
    return pixels


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.1 * x)


def biased(x: np.ndarray, p: Params) -> np.ndarray:
    return conv(x, p["weight"]) + p["bias"]


def context(x: np.ndarray, p: Params) -> np.ndarray:
    mean = sum(x[:, i::4, j::4] for i in range(4) for j in range(4)) / 16
    y = leaky(point(mean, p["enter"]))
    for block in ("block0", "block1", "block2"):
        y = y + leaky(biased(y, p[block]))
    return shuffled(point(y, p["leave"]), 4)


def encoder(x: np.ndarray, p: Params) -> np.ndarray:
    x = leaky(biased(x, p["embed"]))
    x = x + leaky(biased(x, p["block0"]))
    x = x + context(x, p["around"])
    x = x + leaky(biased(x, p["block1"]))
    return x + leaky(biased(x, p["block2"]))


def decoder(
    features: np.ndarray, visible: np.ndarray, infrared: np.ndarray, p: Params
) -> np.ndarray:
    y = biased(features, p["out"])
    share = 1 / (1 + np.exp(-y[..., :4]))
    mixed = share * visible + (1 - share) * infrared
    return np.clip(mixed + 0.5 * np.tanh(y[..., 4:]), 0, 1)


def network(
    params: Params, visible: np.ndarray, infrared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Image and features."""
    _, h, w, _ = visible.shape
    more = ((0, 0), (0, -h % 8), (0, -w % 8), (0, 0))
    visible, infrared = (unshuffled(np.pad(x, more, mode="edge"), 2) for x in (visible, infrared))
    features = encoder(np.concatenate([visible, infrared], axis=-1), params["encoder"])
    image = decoder(features, visible, infrared, params["decoder"])
    return shuffled(image, 2)[:, :h, :w], shuffled(features, 2)[:, :h, :w]


# The layers.


@pytest.mark.parametrize(("side", "channels"), [(2, 1), (2, 3), (4, 2)])
def test_pixel_shuffles(side, channels):
    x = random(0, 2, 3 * side, 2 * side, channels)
    found = np.asarray(lite.pixel_unshuffle(jnp.asarray(x), side))
    np.testing.assert_array_equal(found, unshuffled(x, side))
    np.testing.assert_array_equal(lite.pixel_shuffle(jnp.asarray(found), side), x)
    np.testing.assert_array_equal(shuffled(found, side), x)


def test_leaky():
    assert_agrees(lite.leaky, leaky, random(0, 1, 3, 5, 2))


def test_conv():
    init, bind = functional(lite.Conv(3, 5))
    assert_agrees(lambda x, p: bind(p)(x), biased, random(0, 2, 5, 7, 3), parameters(init))


@pytest.mark.parametrize("size", [(4, 4), (8, 12)])
def test_context(size):
    init, bind = functional(lite.Context())
    assert_agrees(lambda x, p: bind(p)(x), context, random(0, 2, *size, 16), parameters(init))


def test_encoder():
    init, bind = functional(lite.Encoder())
    assert_agrees(lambda x, p: bind(p)(x), encoder, random(0, 2, 8, 4, 8), parameters(init))


def test_decoder():
    init, bind = functional(lite.Decoder())
    images = np.random.default_rng(1).random((2, 2, 3, 5, 4), np.float32)
    assert_agrees(
        lambda x, v, i, p: bind(p)(x, v, i),
        decoder,
        random(0, 2, 3, 5, 16),
        *images,
        parameters(init),
    )


# The whole.


@pytest.mark.parametrize("size", SIZES)
def test_the_network(size):
    model = models.create("lite")
    params = parameters(model.init)
    visible, infrared = np.random.default_rng(1).random((2, 2, *size, 1), np.float32)
    fused = compiled(model.apply)(params, visible, infrared)
    image, features = network(*double((params, visible, infrared)))
    np.testing.assert_allclose(fused.image, image, rtol=0, atol=CLOSE)
    largest = np.abs(features).max()
    np.testing.assert_allclose(fused.features, features, rtol=0, atol=CLOSE * largest)
    assert np.mean((image > 0) & (image < 1)) >= 0.5  # most of it is not clipped
    assert fused.image.shape == (2, *size, 1)
    assert fused.features.shape == (2, *size, 4)
    assert fused.parts == {}


def test_the_number_of_parameters():
    shapes = jax.eval_shape(models.create("lite").init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 137_480
