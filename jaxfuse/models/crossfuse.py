"""The CrossFuse network (IEEE T-CSVT 2025, arXiv 2502.14493), 1,188,272 parameters.

One encoder serves both modalities: an embedding, four Restormer blocks (Zamir et al., CVPR 2022),
then a low-frequency branch (channel attention) and a high-frequency branch (affine coupling nodes).
Each branch's features are added over the modalities and fused by one more block of its kind; a
decoder of four Restormer blocks adds the visible luma and ends in a sigmoid.

The attention is over channels: its 8x8 matrices are sums over pixels. Every block therefore has two
halves, `sums` (over all pixels) and `finish` (local, given the sums), which is what lets `passes`
sweep over an image of any size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxfuse.models.base import Fused, Model, check_shapes, functional
from jaxfuse.models.layers import (
    Chain,
    Compute,
    LayerNorm,
    constant,
    conv1x1,
    conv3x3,
    depthwise3x3,
    gated_gelu,
    products_and_squares,
    relu6,
    weight,
)
from jaxfuse.models.local import Local, Node, bottleneck, channel_sums, coupling, in_use, native
from jaxfuse.shapes import Array, Features, Float, Gray, Params

CHANNELS = 64
HEADS = 8
ENCODER_BLOCKS = 4
DECODER_BLOCKS = 4
ENCODER_NODES = 3


class Sums(NamedTuple):
    """What the channel attention needs to know of all pixels; sums of windows add up."""

    products: Float[Array, "b 8 8 8"]
    """q k^T of each head."""
    q_squares: Float[Array, "b 64"]
    k_squares: Float[Array, "b 64"]


class ChannelAttention(nnx.Module):
    """Attention between the 8 channels of each head, q and k normalised over the pixels (eps
    1e-12).

    The first 1x1 has no bias, so it and the 3x3 after it are one linear map: `dense` folds them
    into a 3x3 from 64 to 192 channels instead of 192 to 192 (the low-frequency branch); otherwise
    the 3x3 is depthwise.
    """

    def __init__(self, dense: bool, compute: Compute):
        self.dense = dense
        self.compute = compute
        self.temperature = constant(HEADS, value=1.0)
        self.expand = weight(CHANNELS, 3 * CHANNELS, fan_in=CHANNELS)
        if dense:
            self.spatial = weight(3, 3, 3 * CHANNELS, 3 * CHANNELS, fan_in=9 * 3 * CHANNELS)
        else:
            self.spatial = weight(3, 3, 3 * CHANNELS, fan_in=9)
        self.project = weight(CHANNELS, CHANNELS, fan_in=CHANNELS)

    def local(self, norm: LayerNorm | None, start: int, stop: int) -> Local:
        """What makes channels start..stop of (q, k, v)."""
        weights = None if norm is None else norm.weights
        spatial = self.spatial[...][..., start:stop]
        if not self.dense:
            return Local(weights, self.expand[...][:, start:stop], spatial)
        folded = jnp.einsum(
            "im,hwmo->hwio", self.expand[...], spatial, precision=lax.Precision.HIGHEST
        )
        return Local(weights, None, folded)

    def _features(self, x: Features, start: int, stop: int) -> Features:
        """Channels start..stop of (q, k, v)."""
        _, expand, spatial = self.local(None, start, stop)
        if expand is None:
            return conv3x3(x, spatial)
        return depthwise3x3(conv1x1(x, expand), spatial, self.compute)

    def sums(self, x: Features, mask: Float[Array, "h w"] | None = None) -> Sums:
        qk = self._features(x, 0, 2 * CHANNELS)
        if mask is not None:
            qk = qk * mask.astype(qk.dtype)[None, :, :, None]
        flat = qk.reshape(qk.shape[0], -1, 2 * CHANNELS)
        # One product of all heads with all, of which 8 blocks on the diagonal are wanted: faster
        # than eight thin products.
        cross, squares = products_and_squares(flat)
        q_squares, k_squares = jnp.split(squares, 2, axis=1)
        blocks = cross.reshape(-1, HEADS, CHANNELS // HEADS, HEADS, CHANNELS // HEADS)
        products = jnp.einsum("bhchd->bhcd", blocks)
        return Sums(products, q_squares, k_squares)

    def mix(self, sums: Sums) -> Float[Array, "b 64 64"]:
        """Attention and output projection, both linear in v: one matrix for each image."""
        b = sums.products.shape[0]
        shape = (b, HEADS, CHANNELS // HEADS)
        # max(norm, 1e-12) as published, taken before the root so that its gradient is finite at
        # zero.
        q_norm = jnp.sqrt(jnp.maximum(sums.q_squares, 1e-24)).reshape(shape)
        k_norm = jnp.sqrt(jnp.maximum(sums.k_squares, 1e-24)).reshape(shape)
        # One after the other: the product of two norms of a black image underflows in the gradient.
        logits = sums.products / q_norm[..., :, None] / k_norm[..., None, :]
        attention = jax.nn.softmax(logits * self.temperature[...][None, :, None, None], axis=-1)
        project = self.project[...].reshape(HEADS, CHANNELS // HEADS, CHANNELS)
        return jnp.einsum("bhce,hcd->bhed", attention, project).reshape(b, CHANNELS, CHANNELS)

    def finish(self, x: Features, sums: Sums) -> Features:
        v = self._features(x, 2 * CHANNELS, 3 * CHANNELS)
        flat = v.reshape(v.shape[0], -1, CHANNELS)
        return jnp.matmul(flat, self.mix(sums).astype(v.dtype)).reshape(v.shape)


class GatedFeedForward(nnx.Module):
    """1x1, 3x3 depthwise, erf-GELU of one half times the other half, 1x1."""

    def __init__(self, hidden: int, compute: Compute):
        self.compute = compute
        self.expand = weight(CHANNELS, 2 * hidden, fan_in=CHANNELS)
        self.spatial = weight(3, 3, 2 * hidden, fan_in=9)
        self.project = weight(hidden, CHANNELS, fan_in=hidden)

    def local(self, norm: LayerNorm) -> tuple[Local, Float[Array, "m 64"]]:
        """What makes the features before GELU, and the projection after."""
        return Local(norm.weights, self.expand[...], self.spatial[...]), self.project[...]

    def __call__(self, x: Features) -> Features:
        y = depthwise3x3(conv1x1(x, self.expand[...]), self.spatial[...], self.compute)
        gate, value = jnp.split(y, 2, axis=-1)
        return conv1x1(gated_gelu(gate, value), self.project[...])


class PairedFeedForward(nnx.Module):
    """As above with a 3x3 of 64 groups of two channels.

    A group's outputs mix its even and its odd channel. Putting all even channels before all odd
    ones, by permuting the weights, makes that four depthwise convolutions of whole halves and moves
    no pixels.
    """

    def __init__(self, compute: Compute):
        self.compute = compute
        self.expand = weight(CHANNELS, 2 * CHANNELS, fan_in=CHANNELS)
        self.spatial = weight(3, 3, 2, 2 * CHANNELS, fan_in=18)
        self.project = weight(CHANNELS, CHANNELS, fan_in=CHANNELS)

    def local(self, norm: LayerNorm) -> tuple[Local, Float[Array, "64 64"]]:
        """What makes the features before GELU, and the projection after."""

        def sorted_by_parity(x: Array, axis: int) -> Array:
            stride = [slice(None)] * x.ndim
            halves = [(*stride[:axis], slice(parity, None, 2)) for parity in (0, 1)]
            return jnp.concatenate([x[half] for half in halves], axis=axis)

        gates, values = (
            sorted_by_parity(half, 3) for half in jnp.split(self.spatial[...], 2, axis=3)
        )
        spatial = jnp.concatenate([gates, values], axis=3)
        local = Local(norm.weights, sorted_by_parity(self.expand[...], 1), spatial)
        return local, sorted_by_parity(self.project[...], 0)

    def __call__(self, x: Features) -> Features:
        expand, spatial, project = self.expand[...], self.spatial[...], self.project[...]
        even = conv1x1(x, expand[:, 0::2])
        odd = conv1x1(x, expand[:, 1::2])
        result = 0.0
        for parity in (0, 1):
            y = depthwise3x3(even, spatial[:, :, 0, parity::2], self.compute)
            y = y + depthwise3x3(odd, spatial[:, :, 1, parity::2], self.compute)
            gate, value = jnp.split(y, 2, axis=-1)
            result = result + conv1x1(gated_gelu(gate, value), project[parity::2])
        return result


class Block(nnx.Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x)).

    `long_scale` gives the low-frequency block (dense attention convolution, paired feed-forward),
    otherwise it is a Restormer block.
    """

    def __init__(self, long_scale: bool, compute: Compute):
        self.compute = compute
        self.norm1 = LayerNorm(CHANNELS)
        self.attention = ChannelAttention(long_scale, compute)
        self.norm2 = LayerNorm(CHANNELS)
        self.feed_forward = (
            PairedFeedForward(compute) if long_scale else GatedFeedForward(2 * CHANNELS, compute)
        )

    def sums(self, x: Features, mask: Float[Array, "h w"] | None = None) -> Sums:
        if native(self.compute, x):
            local = self.attention.local(self.norm1, 0, 2 * CHANNELS)
            products, squares = channel_sums(x, local, mask)
            return Sums(products, *jnp.split(squares, 2, axis=1))
        return self.attention.sums(self.norm1(x), mask)

    def finish(self, x: Features, sums: Sums) -> Features:
        if native(self.compute, x):
            local = self.attention.local(self.norm1, 2 * CHANNELS, 3 * CHANNELS)
            x = bottleneck(x, local, self.attention.mix(sums), add=x)
            local, project = self.feed_forward.local(self.norm2)
            return bottleneck(x, local, project, "gated_gelu", add=x)
        x = x + self.attention.finish(self.norm1(x), sums)
        return x + self.feed_forward(self.norm2(x))

    def __call__(self, x: Features) -> Features:
        return self.finish(x, self.sums(x))


class Bottleneck(nnx.Module):
    """Weights of one of a node's three maps: 1x1 32->64, ReLU6, 3x3 depthwise by reflection, ReLU6,
    1x1 64->32.
    """

    def __init__(self):
        self.expand = weight(CHANNELS // 2, CHANNELS, fan_in=CHANNELS // 2)
        self.spatial = weight(3, 3, CHANNELS, fan_in=9)
        self.project = weight(CHANNELS, CHANNELS // 2, fan_in=CHANNELS)

    @property
    def weights(self) -> tuple[Array, Array, Array]:
        return self.expand[...], self.spatial[...], self.project[...]


class CouplingNode(nnx.Module):
    """Affine coupling after a 1x1 mix: z2 += phi(z1); z1 = z1 * exp(rho(z2)) + eta(z2)."""

    def __init__(self, compute: Compute):
        self.compute = compute
        self.mix = weight(CHANNELS, CHANNELS, fan_in=CHANNELS)
        self.mix_bias = weight(CHANNELS, fan_in=CHANNELS)
        self.phi = Bottleneck()
        self.rho = Bottleneck()
        self.eta = Bottleneck()

    def _maps(self, x: Features, *maps: Bottleneck) -> list[Features]:
        # Maps of the same input share one wide matrix product and one wide depthwise convolution.
        expand = jnp.concatenate([m.expand[...] for m in maps], axis=-1)
        spatial = jnp.concatenate([m.spatial[...] for m in maps], axis=-1)
        y = relu6(conv1x1(x, expand))
        y = relu6(depthwise3x3(y, spatial, self.compute, reflect=True))
        parts = jnp.split(y, len(maps), axis=-1)
        return [conv1x1(part, m.project[...]) for part, m in zip(parts, maps, strict=True)]

    def __call__(self, x: Features) -> Features:
        if native(self.compute, x):
            maps = (m.weights for m in (self.phi, self.rho, self.eta))
            return coupling(x, Node(self.mix[...], self.mix_bias[...], *maps))
        bias = self.mix_bias[...].astype(x.dtype)[None, None, None, :]
        z1, z2 = jnp.split(conv1x1(x, self.mix[...]) + bias, 2, axis=-1)
        (phi,) = self._maps(z1, self.phi)
        z2 = z2 + phi
        rho, eta = self._maps(z2, self.rho, self.eta)
        # exp of a bfloat16 sum loses the coupling's accuracy.
        z1 = z1 * jnp.exp(rho.astype(jnp.float32)).astype(z1.dtype) + eta
        return jnp.concatenate([z1, z2], axis=-1)


class Encoder(nnx.Module):
    """Luma or infrared -> (low-frequency, high-frequency) features, 64 channels each."""

    def __init__(self, compute: Compute):
        self.compute = compute
        self.embed = weight(3, 3, 1, CHANNELS, fan_in=9)
        self.blocks = Chain([Block(False, compute) for _ in range(ENCODER_BLOCKS)], compute)
        self.low = Block(True, compute)
        self.high = Chain([CouplingNode(compute) for _ in range(ENCODER_NODES)], compute)

    def embedded(self, image: Gray) -> Features:
        return conv3x3(self.compute.cast(image), self.embed[...])

    def __call__(self, image: Gray) -> tuple[Features, Features]:
        x = self.blocks(self.embedded(image))
        return self.low(x), self.high(x)


def reduced(reduce: Float[Array, "i o"], low: Features, high: Features) -> Features:
    """The 1x1 convolution of (low, high) that the decoder starts with."""
    return conv1x1(low, reduce[:CHANNELS]) + conv1x1(high, reduce[CHANNELS:])


def to_image(
    narrow: Float[Array, "3 3 i m"], output: Float[Array, "3 3 m 1"], features: Features, base: Gray
) -> Gray:
    """The decoder's end: 3x3, LeakyReLU, 3x3, the image it belongs to added, sigmoid."""
    y = jax.nn.leaky_relu(conv3x3(features, narrow), 0.01)
    y = conv3x3(y, output).astype(jnp.float32)
    return jax.nn.sigmoid(y + base)


class Decoder(nnx.Module):
    """(low, high) features and the image they belong to -> an image in (0, 1)."""

    def __init__(self, compute: Compute):
        self.reduce = weight(2 * CHANNELS, CHANNELS, fan_in=2 * CHANNELS)
        self.blocks = Chain([Block(False, compute) for _ in range(DECODER_BLOCKS)], compute)
        self.narrow = weight(3, 3, CHANNELS, CHANNELS // 2, fan_in=9 * CHANNELS)
        self.output = weight(3, 3, CHANNELS // 2, 1, fan_in=9 * CHANNELS // 2)

    def __call__(self, base: Gray, low: Features, high: Features) -> tuple[Gray, Features]:
        features = self.blocks(reduced(self.reduce[...], low, high))
        return to_image(self.narrow[...], self.output[...], features, base), features


class CrossFuse(nnx.Module):
    """Encoder, one low-frequency and one high-frequency fusion block, decoder."""

    def __init__(self, compute: Compute):
        self.encoder = Encoder(compute)
        self.decoder = Decoder(compute)
        self.fuse_low = Block(True, compute)
        self.fuse_high = Chain([CouplingNode(compute)], compute)

    def encode(self, visible: Gray, infrared: Gray) -> dict[str, Features]:
        # Both modalities as one batch, interleaved: (b, 2) flattens without moving examples between
        # devices.
        both = jnp.stack([visible, infrared], axis=1)
        b, _, h, w, _ = both.shape
        low, high = self.encoder(both.reshape(2 * b, h, w, 1))
        low, high = (f.reshape(b, 2, h, w, CHANNELS) for f in (low, high))
        # Not `low[:, 0]`, which is a gather where sizes are symbolic.
        return {
            f"{branch}_{sensor}": lax.index_in_dim(features, i, axis=1, keepdims=False)
            for branch, features in (("low", low), ("high", high))
            for i, sensor in enumerate(("visible", "infrared"))
        }

    def __call__(self, visible: Gray, infrared: Gray) -> Fused:
        parts = self.encode(visible, infrared)
        low = self.fuse_low(parts["low_visible"] + parts["low_infrared"])
        high = self.fuse_high(parts["high_visible"] + parts["high_infrared"])
        image, features = self.decoder(visible, low, high)
        return Fused(image, features, {**parts, "low": low, "high": high})

    def reconstruct(self, visible: Gray, infrared: Gray) -> Fused:
        parts = self.encode(visible, infrared)

        def both(name: str) -> Features:
            pair = jnp.stack([parts[f"{name}_visible"], parts[f"{name}_infrared"]], axis=1)
            return pair.reshape(-1, *pair.shape[2:])

        base = jnp.stack([visible, infrared], axis=1)
        image, features = self.decoder(base.reshape(-1, *base.shape[2:]), both("low"), both("high"))
        image = image.reshape(base.shape).swapaxes(0, 1)
        return Fused(image, features, parts)


def create(compute: Compute) -> Model:
    """CrossFuse as pure functions. `Fused.parts`: {low,high}_{visible,infrared}, low, high, each
    (b, h, w, 64).
    """
    # Here, because the passes are made of this file's blocks.
    from jaxfuse.models.crossfuse_passes import passes

    init, bind = functional(CrossFuse(compute))

    def apply(params: Params, visible: Gray, infrared: Gray) -> Fused:
        check_shapes("crossfuse", visible, infrared)
        return bind(params)(visible, infrared)

    def reconstruct(params: Params, visible: Gray, infrared: Gray) -> Fused:
        check_shapes("crossfuse", visible, infrared)
        return bind(params).reconstruct(visible, infrared)

    return Model("crossfuse", init, apply, reconstruct, passes(compute), lambda: in_use(compute))
