"""Mix Transformer, the encoder of SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203).

Four stages, each an overlapping patch embedding that shrinks the map (by 4, then 2, 2, 2), blocks
of attention and Mix-FFN, and a normalisation. Keys and values are read from a map that a strided
convolution has shrunk further; positions are known from the zero padding of the Mix-FFN's depthwise
3x3 alone, so any size will do. Dropout and stochastic depth of the published training are left out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfuse.models.layers import (
    Chain,
    Compute,
    LayerNorm,
    constant,
    conv1x1,
    depthwise3x3,
    strided,
    weight,
)
from jaxfuse.shapes import Array, Features, Float

STAGES = 4
STRIDES = (4, 2, 2, 2)
KERNELS = (7, 3, 3, 3)
"""Of the patch embeddings; each is padded by half its kernel."""

KEEP = 3.0**0.5
"""Gain of fresh weights: the variance of the input is that of the output."""
SMALL = 0.3 * KEEP
"""Gain of fresh weights at the end of a branch: a block starts near the identity.

Not the published start (a deviation of 0.02 everywhere), which leans on batch statistics in the
head's BatchNorm: without them it learns more slowly.
"""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes of a SegFormer, stage by stage."""

    widths: tuple[int, int, int, int]
    """Channels."""
    depths: tuple[int, int, int, int]
    """Blocks."""
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    """Attention heads."""
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    """How much smaller the map of keys and values is, along each side."""
    expansions: tuple[int, int, int, int] = (4, 4, 4, 4)
    """Channels inside the Mix-FFN, as a multiple of the stage's."""
    decoder: int = 256
    """Channels of the all-MLP head."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = (value,) if field.name == "decoder" else tuple(value)
            wanted = 1 if field.name == "decoder" else STAGES
            if len(numbers) != wanted or not all(type(n) is int and n >= 1 for n in numbers):
                raise ValueError(
                    f"SegFormer with {field.name} = {value!r}: needs {wanted} whole numbers from 1"
                )
        for stage, (width, heads) in enumerate(zip(self.widths, self.heads, strict=True)):
            if width % heads:
                raise ValueError(
                    f"SegFormer with {width} channels and {heads} heads in stage {stage}: the "
                    "heads must divide the channels"
                )

    @property
    def smallest(self) -> int:
        """The fewest pixels along a side for which every map of keys and values has one at least.

        29 for the published networks.
        """
        side, total = 1, 1
        for stride, reduction in zip(STRIDES, self.reductions, strict=True):
            total *= stride
            # ceil(side / total) >= reduction
            side = max(side, (reduction - 1) * total + 1)
        return side


class Linear(nnx.Module):
    """A 1x1 convolution with bias."""

    def __init__(self, inputs: int, outputs: int, gain: float = KEEP):
        self.weight = weight(inputs, outputs, fan_in=inputs, gain=gain)
        self.bias = constant(outputs, value=0.0)

    def __call__(self, x: Features) -> Features:
        return add_bias(conv1x1(x, self.weight[...]), self.bias[...])


class Strided(nnx.Module):
    """A dense convolution with stride and bias."""

    def __init__(self, kernel: int, inputs: int, outputs: int, stride: int, padding: int):
        self.stride = stride
        self.padding = padding
        fan_in = kernel * kernel * inputs
        self.weight = weight(kernel, kernel, inputs, outputs, fan_in=fan_in, gain=KEEP)
        self.bias = constant(outputs, value=0.0)

    def __call__(self, x: Features) -> Features:
        return add_bias(strided(x, self.weight[...], self.stride, self.padding), self.bias[...])


def add_bias(x: Features, bias: Array) -> Features:
    """One number added to each channel."""
    return x + bias.astype(x.dtype)[None, None, None, :]


class Attention(nnx.Module):
    """Every pixel attends to the pixels of a map `reduction` times smaller along each side."""

    def __init__(self, width: int, heads: int, reduction: int):
        self.heads = heads
        self.reduction = reduction
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        if reduction > 1:
            self.reduce = Strided(reduction, width, width, reduction, 0)
            self.reduce_norm = LayerNorm(width)
        self.project = Linear(width, width, SMALL)

    def _heads(self, x: Features) -> Float[Array, "b n heads d"]:
        return x.reshape(x.shape[0], -1, self.heads, x.shape[-1] // self.heads)

    def __call__(self, x: Features) -> Features:
        small = self.reduce_norm(self.reduce(x)) if self.reduction > 1 else x
        query, key, value = (
            self._heads(y) for y in (self.query(x), self.key(small), self.value(small))
        )
        scale = query.shape[-1] ** -0.5
        logits = jnp.einsum(
            "bnhd,bmhd->bhnm", query * scale, key, preferred_element_type=jnp.float32
        )
        attention = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", attention, value)
        return self.project(mixed.reshape(x.shape))


class MixFeedForward(nnx.Module):
    """1x1, 3x3 depthwise, erf-GELU, 1x1, all with bias."""

    def __init__(self, width: int, expansion: int, compute: Compute):
        self.compute = compute
        self.expand = Linear(width, expansion * width)
        self.spatial = weight(3, 3, expansion * width, fan_in=9, gain=KEEP)
        self.spatial_bias = constant(expansion * width, value=0.0)
        self.project = Linear(expansion * width, width, SMALL)

    def __call__(self, x: Features) -> Features:
        y = depthwise3x3(self.expand(x), self.spatial[...], self.compute)
        y = jax.nn.gelu(add_bias(y, self.spatial_bias[...]), approximate=False)
        return self.project(y)


class Block(nnx.Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x))."""

    def __init__(self, width: int, heads: int, reduction: int, expansion: int, compute: Compute):
        self.norm1 = LayerNorm(width)
        self.attention = Attention(width, heads, reduction)
        self.norm2 = LayerNorm(width)
        self.feed_forward = MixFeedForward(width, expansion, compute)

    def __call__(self, x: Features) -> Features:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Stage(nnx.Module):
    """Patch embedding, blocks, normalisation."""

    def __init__(self, index: int, inputs: int, sizes: Architecture, compute: Compute):
        width, kernel = sizes.widths[index], KERNELS[index]
        if sizes.depths[index] == 1 and compute.remat == "auto":
            # A loop of one block takes longer than the block and saves no memory.
            compute = dataclasses.replace(compute, remat="none")
        self.embed = Strided(kernel, inputs, width, STRIDES[index], kernel // 2)
        self.embed_norm = LayerNorm(width)
        self.blocks = Chain(
            [
                Block(
                    width,
                    sizes.heads[index],
                    sizes.reductions[index],
                    sizes.expansions[index],
                    compute,
                )
                for _ in range(sizes.depths[index])
            ],
            compute,
        )
        self.norm = LayerNorm(width)

    def __call__(self, x: Features) -> Features:
        return self.norm(self.blocks(self.embed_norm(self.embed(x))))


class Encoder(nnx.Module):
    """(b, h, w, 3) -> four maps, at a quarter, an eighth, a 16th and a 32nd of the size, rounded
    up.
    """

    def __init__(self, sizes: Architecture, compute: Compute):
        inputs = (3, *sizes.widths[:-1])
        for index in range(STAGES):
            setattr(self, f"at{index}", Stage(index, inputs[index], sizes, compute))

    def __call__(self, x: Features) -> tuple[Features, ...]:
        states = []
        for index in range(STAGES):
            x = getattr(self, f"at{index}")(x)
            states.append(x)
        return tuple(states)
