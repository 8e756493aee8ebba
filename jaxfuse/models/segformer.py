"""SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203): MiT-B0 to B5 with the all-MLP head.

`segformer_tiny` is ours, for training on a CPU, and so is the light head, which reads fused
features. Both heads give logits on the same grid, a quarter of the image's size, rounded up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxfuse.models.base import Head, Segmented, Segmenter, functional
from jaxfuse.models.layers import Compute, LayerNorm, constant, conv1x1, weight
from jaxfuse.models.mit import (
    KEEP,
    SMALL,
    STAGES,
    Architecture,
    Encoder,
    Linear,
    Strided,
    add_bias,
)
from jaxfuse.models.platform import platform
from jaxfuse.ops.resize import bilinear
from jaxfuse.shapes import Array, Features, Image, Params, Rgb

ARCHITECTURES = {
    "segformer_tiny": Architecture(
        (32, 64, 96, 128), (1, 1, 1, 1), heads=(1, 2, 3, 4), decoder=128
    ),
    "segformer_b0": Architecture((32, 64, 160, 256), (2, 2, 2, 2)),
    "segformer_b1": Architecture((64, 128, 320, 512), (2, 2, 2, 2)),
    "segformer_b2": Architecture((64, 128, 320, 512), (3, 4, 6, 3), decoder=768),
    "segformer_b3": Architecture((64, 128, 320, 512), (3, 4, 18, 3), decoder=768),
    "segformer_b4": Architecture((64, 128, 320, 512), (3, 8, 27, 3), decoder=768),
    "segformer_b5": Architecture((64, 128, 320, 512), (3, 6, 40, 3), decoder=768),
}

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
"""Of ImageNet's red, green and blue in [0, 1]; published weights expect images normalised so."""

BATCH_NORM_EPS = 1e-5
LIGHT_WIDTHS = (32, 64)


def normalise(image: Image) -> Rgb:
    """(b, h, w, 3) or gray (b, h, w, 1) in [0, 1] -> (b, h, w, 3) with ImageNet's mean and
    deviation taken out. Gray is repeated.
    """
    return (image - MEAN[None, None, None, :]) / DEVIATION[None, None, None, :]


class BatchNorm(nnx.Module):
    """Normalisation of each channel by statistics that stay what they are.

    `mean` and `var` are parameters so that published weights convert exactly, but constants: their
    gradient is zero. Fresh ones are 0 and 1, which leaves a factor and an offset to be learned.
    """

    def __init__(self, channels: int):
        self.weight = constant(channels, value=1.0)
        self.bias = constant(channels, value=0.0)
        self.mean = constant(channels, value=0.0)
        self.var = constant(channels, value=1.0)

    def factor_and_offset(self) -> tuple[Array, Array]:
        mean, var = lax.stop_gradient((self.mean[...], self.var[...]))
        factor = self.weight[...] * lax.rsqrt(var + BATCH_NORM_EPS)
        return factor, self.bias[...] - mean * factor


class MlpHead(nnx.Module):
    """Each state through a 1x1 to one width, resized to the first's size; all of them through a
    1x1, BatchNorm and ReLU; a 1x1 to the classes.

    All before the ReLU is linear, and resizing acts on pixels only: the products up to there are
    taken of the weights, once, and the maps are resized after them. The large maps then meet one
    narrow product instead of one from four times the width.
    """

    def __init__(self, sizes: Architecture, classes: int):
        self.width = sizes.decoder
        for index, width in enumerate(sizes.widths):
            setattr(self, f"at{index}", Linear(width, sizes.decoder))
        wide = STAGES * sizes.decoder
        self.fuse = weight(wide, sizes.decoder, fan_in=wide, gain=KEEP)
        self.norm = BatchNorm(sizes.decoder)
        self.classifier = Linear(sizes.decoder, classes, SMALL)

    def __call__(self, states: tuple[Features, ...]) -> Features:
        height, width = states[0].shape[1:3]
        factor, offset = self.norm.factor_and_offset()
        total = 0.0
        for index, state in enumerate(states):
            # The published order is the last state first.
            start = (STAGES - 1 - index) * self.width
            fuse = self.fuse[...][start : start + self.width] * factor[None, :]
            linear = getattr(self, f"at{index}")
            both = jnp.matmul(linear.weight[...], fuse, precision=lax.Precision.HIGHEST)
            offset = offset + jnp.matmul(linear.bias[...], fuse, precision=lax.Precision.HIGHEST)
            total = total + bilinear(conv1x1(state, both), height, width)
        fused = jax.nn.relu(add_bias(total, offset))
        return logits(fused, self.classifier)


def logits(x: Features, classifier: Linear) -> Features:
    """A 1x1 to the classes that gives float32 whatever the arithmetic."""
    kernel = classifier.weight[...].astype(x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    flat = jnp.matmul(flat, kernel, preferred_element_type=jnp.float32)
    return add_bias(flat.reshape(*x.shape[:3], -1), classifier.bias[...])


class SegFormer(nnx.Module):
    """Mix Transformer and all-MLP head."""

    def __init__(self, sizes: Architecture, classes: int, compute: Compute):
        self.compute = compute
        self.encoder = Encoder(sizes, compute)
        self.head = MlpHead(sizes, classes)

    def __call__(self, image: Rgb) -> Segmented:
        states = self.encoder(self.compute.cast(image))
        return Segmented(self.head(states), states)


def create(name: str, sizes: Architecture, classes: int, compute: Compute) -> Segmenter:
    """A SegFormer as pure functions."""
    _check_classes(name, classes)
    init, bind = functional(SegFormer(sizes, classes, compute))

    def check(image: Array) -> None:
        if image.ndim != 4 or image.shape[-1] not in (1, 3):
            raise ValueError(
                f"{name}: the image has shape {image.shape}, needs (batch, height, width, 3) or "
                "(batch, height, width, 1)"
            )
        if min(image.shape[1:3]) < sizes.smallest:
            raise ValueError(
                f"{name}: the image is {image.shape[2]}x{image.shape[1]}: its keys and values need "
                f"{sizes.smallest} pixels along each side at least; pad it, or take larger patches"
            )

    def network(params: Params, image: Image) -> Segmented:
        check(image)
        return bind(params)(jnp.broadcast_to(image, (*image.shape[:3], 3)))

    def apply(params: Params, image: Image) -> Features:
        check(image)
        return bind(params)(normalise(image)).logits

    return Segmenter(name, classes, init, apply, network, sizes.smallest)


class LightHead(nnx.Module):
    """Two 3x3 convolutions of stride 2 and a 1x1; a normalisation after the first makes it the same
    for features of any scale.
    """

    def __init__(self, channels: int, classes: int, compute: Compute):
        first, second = LIGHT_WIDTHS
        self.compute = compute
        self.first = Strided(3, channels, first, 2, 1)
        self.norm = LayerNorm(first)
        self.second = Strided(3, first, second, 2, 1)
        self.classifier = Linear(second, classes, SMALL)

    def __call__(self, features: Features) -> Features:
        x = self.norm(self.first(self.compute.cast(features)))
        if platform() == "tpu":
            # Fused with the next convolution, its gradient overflows the stack of the compiler for
            # v6e (libtpu 0.0.42).
            x = lax.optimization_barrier(x)
        return logits(jax.nn.relu(self.second(jax.nn.relu(x))), self.classifier)


def light_head(channels: int, classes: int, compute: Compute) -> Head:
    """The head on fused features. Ours: the paper says that it is light and no more."""
    _check_classes("light head", classes)
    if channels < 1:
        raise ValueError(f"light head: {channels} channels of features: needs 1 at least")
    init, bind = functional(LightHead(channels, classes, compute))

    def apply(params: Params, features: Features) -> Features:
        if features.ndim != 4 or features.shape[-1] != channels:
            raise ValueError(
                f"light head: the features have shape {features.shape}, needs (batch, height, "
                f"width, {channels})"
            )
        return bind(params)(features)

    return Head(channels, classes, init, apply)


def _check_classes(name: str, classes: int) -> None:
    if not 2 <= classes <= 255:
        raise ValueError(f"{name}: {classes} classes: needs 2 to 255 (label 255 means ignore)")
