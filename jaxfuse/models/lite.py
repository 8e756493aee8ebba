"""A fusion network for real time on a CPU. Ours; CrossFuse and SSVIF name one as future work.

Works on squares of 2 x 2 pixels, where a few 3x3 convolutions decide for every pixel how much of
either image it shows and what is added; on squares of 8 x 8 pixels wider ones see what is around,
about 40 pixels to either side. About 4,300 products a pixel, 137,480 parameters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfuse.models.base import Fused, Model, check_shapes, functional
from jaxfuse.models.layers import (
    Compute,
    constant,
    conv1x1,
    conv3x3,
    weight,
    whole_sides,
    window,
)
from jaxfuse.shapes import Features, Gray, Params

FINE, COARSE = 2, 4
"""Sides of the squares: of pixels, and of those squares."""
CELL = FINE * FINE
SIDE = FINE * COARSE
WIDTH, WIDE = 16, 64
DEPTH, DEEP = 3, 3
"""Convolutions on either grid besides the first and the last."""
ADDED = 0.5
"""Most that is added to or taken from the mixture."""
LEAK = 0.1


def pixel_unshuffle(x: Features, side: int = FINE) -> Features:
    """(b, h, w, c) -> (b, h / side, w / side, side^2 c): the pixels of each square become channels,
    row by row, the c of a pixel together. Both sides must be multiples of `side`.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // side, w // side, side * side * c)


def pixel_shuffle(x: Features, side: int = FINE) -> Features:
    """(b, h, w, side^2 c) -> (b, side h, side w, c): the inverse of `pixel_unshuffle`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, side, side, c // (side * side))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * side, w * side, c // (side * side))


def leaky(x: Features) -> Features:
    """max(x, 0.1 x), any shape and range."""
    return jnp.maximum(x, LEAK * x)


class Conv(nnx.Module):
    """3x3 with zero padding and a bias: (b, h, w, channels) -> (b, h, w, out), any range."""

    def __init__(self, channels: int, out: int):
        self.weight = weight(3, 3, channels, out, fan_in=9 * channels)
        self.bias = constant(out, value=0.0)

    def __call__(self, x: Features) -> Features:
        return conv3x3(x, self.weight[...]) + self.bias[...].astype(x.dtype)[None, None, None, :]


class Context(nnx.Module):
    """What larger squares show, for every small one: (b, h, w, 16) -> (b, h, w, 16), any range.

    The mean of 4 x 4, 1x1 to 64 channels, residual 3x3s, 1x1 to 4 x 4 times 16 channels. h and w,
    in squares of 2 x 2 pixels, must be multiples of 4.
    """

    def __init__(self) -> None:
        self.enter = weight(WIDTH, WIDE, fan_in=WIDTH)
        for index in range(DEEP):
            setattr(self, f"block{index}", Conv(WIDE, WIDE))
        self.leave = weight(WIDE, COARSE * COARSE * WIDTH, fan_in=WIDE)

    def __call__(self, x: Features) -> Features:
        b, h, w, c = x.shape
        squares = x.reshape(b, h // COARSE, COARSE, w // COARSE, COARSE, c)
        y = leaky(conv1x1(jnp.mean(squares, axis=(2, 4)), self.enter[...]))
        for index in range(DEEP):
            y = y + leaky(getattr(self, f"block{index}")(y))
        return pixel_shuffle(conv1x1(y, self.leave[...]), COARSE)


class Encoder(nnx.Module):
    """Features of both images together, on squares of 2 x 2 pixels: (b, h / 2, w / 2, 8), the
    pixels of the visible image first, in [0, 1] -> (b, h / 2, w / 2, 16), any range. h and w are
    multiples of 8.
    """

    def __init__(self) -> None:
        self.embed = Conv(2 * CELL, WIDTH)
        self.around = Context()
        for index in range(DEPTH):
            setattr(self, f"block{index}", Conv(WIDTH, WIDTH))

    def __call__(self, x: Features) -> Features:
        x = leaky(self.embed(x))
        for index in range(DEPTH):
            x = x + leaky(getattr(self, f"block{index}")(x))
            if index == 0:
                x = x + self.around(x)
        return x


class Decoder(nnx.Module):
    """s V + (1 - s) I + a for every pixel, with s = sigmoid(x) and a = 0.5 tanh(y) of a 3x3 of the
    features, clipped to [0, 1].
    """

    def __init__(self) -> None:
        self.out = Conv(WIDTH, 2 * CELL)

    def __call__(self, features: Features, visible: Features, infrared: Features) -> Features:
        """Features (b, h / 2, w / 2, 16) and both images, (b, h / 2, w / 2, 4) in [0, 1] -> the
        fused image, (b, h / 2, w / 2, 4) in [0, 1], float32.
        """
        share, added = jnp.split(self.out(features).astype(jnp.float32), 2, axis=-1)
        share, added = jax.nn.sigmoid(share), ADDED * jnp.tanh(added)
        return jnp.clip(share * visible + (1.0 - share) * infrared + added, 0.0, 1.0)


class Lite(nnx.Module):
    """Luma and infrared, (b, h, w, 1) in [0, 1] of any h and w -> `Fused`. Whole squares of 8 x 8
    are made by repeating the last row and column.
    """

    def __init__(self, compute: Compute):
        self.compute = compute
        self.encoder = Encoder()
        self.decoder = Decoder()

    def __call__(self, visible: Gray, infrared: Gray) -> Fused:
        height, width = visible.shape[1:3]
        visible, infrared = (pixel_unshuffle(whole_sides(x, SIDE)) for x in (visible, infrared))
        both = jnp.concatenate([visible, infrared], axis=-1)
        features = self.encoder(self.compute.cast(both))
        image = self.decoder(features, visible, infrared)
        image, features = (window(pixel_shuffle(x), 0, 0, height, width) for x in (image, features))
        return Fused(image, features, {})


def create(compute: Compute) -> Model:
    """The network as pure functions.

    `Fused.features`: (b, h, w, 4), the 16 channels of each square of 2 x 2 pixels laid out as
    pixels. `Fused.parts` is empty. Of `compute` only the dtype matters.
    """
    init, bind = functional(Lite(compute))

    def apply(params: Params, visible: Gray, infrared: Gray) -> Fused:
        check_shapes("lite", visible, infrared)
        return bind(params)(visible, infrared)

    return Model("lite", init, apply)
