"""A fusion network for real time on a CPU. Ours; CrossFuse and SSVIF name one as future work.

Works on squares of 2 x 2 pixels: a few 3x3 convolutions decide for every pixel how much of either
image it shows and what is added. About 6,000 products a pixel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfuse.models.base import Fused, Model, check_shapes, functional
from jaxfuse.models.layers import Compute, constant, conv3x3, even_sides, weight, window
from jaxfuse.shapes import Features, Gray, Params

SIDE = 2
CELL = SIDE * SIDE
WIDTH = 24
DEPTH = 4
ADDED = 0.5
"""Most that is added to or taken from the mixture."""
LEAK = 0.1


def to_cells(x: Features) -> Features:
    """(b, h, w, c) -> (b, h / 2, w / 2, 4 c): the pixels of each square become channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // SIDE, SIDE, w // SIDE, SIDE, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // SIDE, w // SIDE, CELL * c)


def to_pixels(x: Features) -> Features:
    """The inverse of `to_cells`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, SIDE, SIDE, c // CELL)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * SIDE, w * SIDE, c // CELL)


class Conv(nnx.Module):
    """3x3 with zero padding and a bias."""

    def __init__(self, channels: int, out: int):
        self.weight = weight(3, 3, channels, out, fan_in=9 * channels)
        self.bias = constant(out, value=0.0)

    def __call__(self, x: Features) -> Features:
        return conv3x3(x, self.weight[...]) + self.bias[...].astype(x.dtype)[None, None, None, :]


class Encoder(nnx.Module):
    """Features of both images together, on squares of pixels."""

    def __init__(self) -> None:
        self.embed = Conv(2 * CELL, WIDTH)
        for index in range(DEPTH):
            setattr(self, f"block{index}", Conv(WIDTH, WIDTH))

    def __call__(self, x: Features) -> Features:
        x = jax.nn.leaky_relu(self.embed(x), LEAK)
        for index in range(DEPTH):
            x = x + jax.nn.leaky_relu(getattr(self, f"block{index}")(x), LEAK)
        return x


class Decoder(nnx.Module):
    """Mixture and addition of every pixel."""

    def __init__(self) -> None:
        self.out = Conv(WIDTH, 2 * CELL)

    def __call__(self, features: Features, visible: Gray, infrared: Gray) -> Gray:
        share, added = jnp.split(to_pixels(self.out(features)).astype(jnp.float32), 2, axis=-1)
        share, added = jax.nn.sigmoid(share), ADDED * jnp.tanh(added)
        return jnp.clip(share * visible + (1.0 - share) * infrared + added, 0.0, 1.0)


class Lite(nnx.Module):
    """Encoder and decoder around the two images."""

    def __init__(self, compute: Compute):
        self.compute = compute
        self.encoder = Encoder()
        self.decoder = Decoder()

    def __call__(self, visible: Gray, infrared: Gray) -> Fused:
        height, width = visible.shape[1:3]
        visible, infrared = even_sides(visible), even_sides(infrared)
        both = to_cells(jnp.concatenate([visible, infrared], axis=-1))
        features = self.encoder(self.compute.cast(both))
        image = self.decoder(features, visible, infrared)
        image, features = (window(x, 0, 0, height, width) for x in (image, to_pixels(features)))
        return Fused(image, features, {})


def create(compute: Compute) -> Model:
    """The network as pure functions."""
    init, bind = functional(Lite(compute))

    def apply(params: Params, visible: Gray, infrared: Gray) -> Fused:
        check_shapes("lite", visible, infrared)
        return bind(params)(visible, infrared)

    return Model("lite", init, apply)
