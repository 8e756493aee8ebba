"""Layers shared by the networks, channels last, each in a formulation that XLA on CPU runs well.

A 1x1 convolution is a matrix product and a depthwise 3x3 is nine shifted products: XLA on CPU runs
its own grouped convolution 8 to 18 times slower. Weights are stored (height, width, in, out),
depthwise (height, width, channels).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import core, lax
from jax.export import is_symbolic_dim

from jaxfuse.models.platform import platform
from jaxfuse.shapes import Array, Features, Float

BAND_PIXELS = 4096
"""Pixels of a batch in one band of a dense kernel's gradient: 4 MB at 64 -> 192 channels."""
Side: TypeAlias = Any
"""The size of an axis: an int, or what stands for one in an export of any size."""
LANES = 8
"""Columns added up at a time in a depthwise kernel's gradient."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network computes; never what it computes."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    depthwise: Literal["auto", "shift", "lax"] = "auto"
    remat: Literal["auto", "none", "blocks"] = "auto"
    kernels: Literal["auto", "xla", "native"] = "auto"

    def __post_init__(self) -> None:
        for field in ("dtype", "depthwise", "remat", "kernels"):
            choices = get_args(get_type_hints(Compute)[field])
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} = {getattr(self, field)!r}: choose one of {', '.join(choices)}"
                )

    @property
    def rematerialise(self) -> bool:
        """Whether the backward pass recomputes the inside of blocks."""
        return self.remat == "blocks" or (self.remat == "auto" and platform() == "cpu")

    def cast(self, x: Array) -> Array:
        return x.astype(self.dtype)


def weight(*shape: int, fan_in: int, gain: float = 1.0) -> nnx.Param:
    """A parameter drawn from U(-b, b), b = gain/sqrt(fan_in). Convolutions start so in the code
    published with CrossFuse; with a gain of sqrt(3) the variance passes through unchanged.
    """
    return nnx.Param(np.zeros(shape, np.float32), bound=gain * float(fan_in) ** -0.5)


def constant(*shape: int, value: float) -> nnx.Param:
    """A parameter that starts at a value."""
    return nnx.Param(np.full(shape, value, np.float32))


def conv1x1(x: Features, kernel: Float[Array, "i o"]) -> Features:
    """A 1x1 convolution: a matrix product over the channels."""
    # All pixels in one axis: the kernel's gradient, a sum over several axes otherwise, would begin
    # with transposed copies of both maps.
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], -1)


def plain3x3(x: Features, kernel: Float[Array, "3 3 i o"]) -> Features:
    """A dense 3x3 convolution with zero padding and the derivative that XLA gives it."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _dense_in_bands(x: Features, kernel: Float[Array, "3 3 i o"]) -> Features:
    return plain3x3(x, kernel)


def _dense_in_bands_forward(x: Features, kernel: Array) -> tuple[Features, tuple[Features, Array]]:
    return plain3x3(x, kernel), (x, kernel)


def _dense_in_bands_backward(
    kept: tuple[Features, Array], cotangent: Features
) -> tuple[Features, Array]:
    # The kernel's gradient as nine matrix products over bands of rows that stay in cache: faster
    # on a CPU than the convolution that differentiation gives (bench/results, "depthwise").
    x, kernel = kept
    b, h, w, channels = x.shape
    to_x = plain3x3(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))
    rows = min(h, max(1, BAND_PIXELS // (b * w)))
    bands = -(-h // rows)
    below = bands * rows - h
    padded = jnp.pad(x, ((0, 0), (1, 1 + below), (1, 1), (0, 0)))
    cotangent = jnp.pad(cotangent, ((0, 0), (0, below), (0, 0), (0, 0)))

    def band(total: Array, start: Array) -> tuple[Array, None]:
        near = lax.dynamic_slice_in_dim(padded, start, rows + 2, axis=1)
        pull = lax.dynamic_slice_in_dim(cotangent, start, rows, axis=1)
        pull = pull.reshape(-1, pull.shape[-1])
        taps = [
            jnp.matmul(
                near[:, i : i + rows, j : j + w].reshape(-1, channels).T,
                pull,
                preferred_element_type=jnp.float32,
            )
            for i in range(3)
            for j in range(3)
        ]
        return total + jnp.stack(taps).reshape(kernel.shape), None

    start = jnp.zeros(kernel.shape, jnp.float32)
    to_kernel, _ = lax.scan(band, start, rows * jnp.arange(bands))
    return to_x, to_kernel.astype(kernel.dtype)


_dense_in_bands.defvjp(_dense_in_bands_forward, _dense_in_bands_backward)


def conv3x3(x: Features, kernel: Float[Array, "3 3 i o"]) -> Features:
    """A dense 3x3 convolution with zero padding."""
    wide = min(kernel.shape[2:]) >= 16
    convolve = _dense_in_bands if wide and platform() == "cpu" else plain3x3
    return convolve(x, kernel.astype(x.dtype))


def strided(
    x: Features, kernel: Float[Array, "k k i o"], stride: int, padding: int
) -> Float[Array, "b _ _ o"]:
    """A dense convolution with a stride and zero padding on every side."""
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def reflect1(x: Features) -> Features:
    """Pads one pixel on each side by reflection; an axis of one pixel repeats it."""
    for axis in (1, 2):
        n = x.shape[axis]
        # Python's min and max cannot compare the symbolic sizes of an export.
        after, before = core.min_dim(1, n - 1), core.max_dim(n - 2, 0)
        first = lax.slice_in_dim(x, after, after + 1, axis=axis)
        last = lax.slice_in_dim(x, before, before + 1, axis=axis)
        x = jnp.concatenate([first, x, last], axis=axis)
    return x


def whole_sides(x: Features, side: int) -> Features:
    """The map, its last row and column repeated up to multiples of `side`.

    Nothing is padded by a symbolic number of pixels, which may be 0: to ONNX a size of 0 means
    something else.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        more = side - 1 if is_symbolic_dim(n) else -n % side
        if not is_symbolic_dim(n) and more == 0:
            continue
        last = lax.slice_in_dim(x, n - 1, n, axis=axis)
        x = jnp.concatenate([x, *[last] * more], axis=axis)
        x = lax.slice_in_dim(x, 0, side * ((n + side - 1) // side), axis=axis)
    return x


def zero1(x: Features) -> Features:
    """Pads one pixel of zeros on each side."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def window(x: Features, top: int, left: int, height: Side, width: Side) -> Features:
    """Those rows and columns of a map: `x[:, top : top + height, left : left + width]`, which is a
    gather where sizes are symbolic.
    """
    b, _, _, channels = x.shape
    return lax.slice(x, (0, top, left, 0), (b, top + height, left + width, channels))


def _taps(x: Features, kernel: Float[Array, "3 3 c"]) -> Features:
    # Summed in float32: rounding each of nine products to bfloat16 costs accuracy, and on a CPU
    # more than the products themselves.
    h, w = x.shape[1:3]
    padded, k = zero1(x), kernel.astype(x.dtype).astype(jnp.float32)
    total = sum(
        window(padded, i, j, h, w).astype(jnp.float32) * k[i, j][None, None, None, :]
        for i in range(3)
        for j in range(3)
    )
    return total.astype(x.dtype)


@jax.custom_vjp
def _shifted(x: Features, kernel: Float[Array, "3 3 c"]) -> Features:
    return _taps(x, kernel)


def _shifted_forward(x: Features, kernel: Array) -> tuple[Features, tuple[Features, Array]]:
    return _taps(x, kernel), (x, kernel)


def _shifted_backward(kept: tuple[Features, Array], cotangent: Features) -> tuple[Features, Array]:
    # Written out because the derivative of nine slices is nine padded copies, and because nine
    # separate sums over all pixels write nine products to memory. One reduction of nine operands
    # writes none; over 8 columns at a time XLA unrolls it and works on whole vectors of channels
    # (bench/results, "depthwise").
    x, kernel = kept
    b, h, w, channels = x.shape
    more = -w % LANES
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1 + more), (0, 0)))
    pull = jnp.pad(cotangent, ((0, 0), (0, 0), (0, more), (0, 0)))
    products = [
        (padded[:, i : i + h, j : j + w + more, :] * pull)
        .astype(jnp.float32)
        .reshape(b, h, -1, LANES, channels)
        for i in range(3)
        for j in range(3)
    ]
    zeros = [jnp.zeros((), jnp.float32)] * 9
    parts = lax.reduce(
        products, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (3,)
    )
    to_kernel = jnp.stack([part.sum((0, 1, 2)) for part in parts]).reshape(kernel.shape)
    return _taps(cotangent, kernel[::-1, ::-1]), to_kernel.astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _grouped(x: Features, kernel: Float[Array, "3 3 c"]) -> Features:
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype)[:, :, None, :],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def depthwise3x3(
    x: Features, kernel: Float[Array, "3 3 c"], compute: Compute = Compute(), reflect: bool = False
) -> Features:
    """Each channel convolved with its own 3x3 kernel; zero padding, or reflection of one pixel."""
    lax_path = compute.depthwise == "lax" or (
        compute.depthwise == "auto" and platform() in ("gpu", "onnx")
    )
    convolve = _grouped if lax_path else _shifted
    if reflect:
        return window(convolve(reflect1(x), kernel), 1, 1, *x.shape[1:3])
    return convolve(x, kernel)


class LayerNorm(nnx.Module):
    """Normalisation over the channels with weight and bias; statistics in float32."""

    def __init__(self, channels: int, eps: float = 1e-5):
        self.eps = eps
        self.weight = constant(channels, value=1.0)
        self.bias = constant(channels, value=0.0)

    @property
    def weights(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        return self.weight[...], self.bias[...]

    def __call__(self, x: Features) -> Features:
        f = x.astype(jnp.float32)
        centred = f - f.mean(-1, keepdims=True)
        scale = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        line = (None,) * (x.ndim - 1) + (slice(None),)
        return (centred * scale * self.weight[...][line] + self.bias[...][line]).astype(x.dtype)


class Chain(nnx.Module):
    """Equal submodules run one after the other.

    They run as one scan over their stacked weights: XLA then compiles one of them, not all, and
    rematerialisation holds on every backend (unrolled, XLA on CPU merges the recomputation away).
    An ONNX runtime compiles nothing, and a loop keeps it from optimising across modules.
    """

    def __init__(self, modules: list[nnx.Module], compute: Compute):
        self.length = len(modules)
        self.compute = compute
        for i, module in enumerate(modules):
            setattr(self, f"at{i}", module)

    def __getitem__(self, index: int) -> nnx.Module:
        return getattr(self, f"at{index}")

    def __call__(self, x: Features) -> Features:
        if platform() == "onnx" or (self.length == 1 and not self.compute.rematerialise):
            for i in range(self.length):
                x = self[i](x)
            return x
        split = [nnx.split(self[i]) for i in range(self.length)]
        graph = split[0][0]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for _, state in split))

        def body(x: Features, state: nnx.State) -> tuple[Features, None]:
            return nnx.merge(graph, state)(x), None

        if self.compute.rematerialise:
            body = jax.checkpoint(body, prevent_cse=False)
        return lax.scan(body, x, stacked)[0]


@jax.custom_vjp
def gated_gelu(gate: Features, value: Features) -> Features:
    """GELU(gate) * value, the exact GELU by the error function; computed in float32."""
    wide = jax.nn.gelu(gate.astype(jnp.float32), approximate=False) * value.astype(jnp.float32)
    return wide.astype(gate.dtype)


def _gated_forward(gate: Features, value: Features) -> tuple[Features, tuple[Features, Features]]:
    return gated_gelu(gate, value), (gate, value)


def _gated_backward(
    kept: tuple[Features, Features], cotangent: Features
) -> tuple[Features, Features]:
    # Keeps the two inputs only; plain differentiation would also keep the distribution function and
    # its density.
    gate, value = kept
    g = gate.astype(jnp.float32)
    below = 0.5 * (1.0 + lax.erf(g * np.float32(np.sqrt(0.5))))
    density = jnp.exp(-0.5 * g * g) * np.float32(1.0 / np.sqrt(2.0 * np.pi))
    c, v = cotangent.astype(jnp.float32), value.astype(jnp.float32)
    return (c * v * (below + g * density)).astype(gate.dtype), (c * g * below).astype(value.dtype)


gated_gelu.defvjp(_gated_forward, _gated_backward)


@jax.custom_vjp
def products_and_squares(
    x: Float[Array, "b n c"],
) -> tuple[Float[Array, "b d d"], Float[Array, "b c"]]:
    """q^T k and the squares of every channel, summed over n in float32; q and k are the first and
    the second half of the channels.
    """
    q, k = jnp.split(x, 2, axis=-1)
    products = jnp.einsum("bnc,bnd->bcd", q, k, preferred_element_type=jnp.float32)
    return products, jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)


def _products_forward(x: Array) -> tuple[tuple[Array, Array], Array]:
    return products_and_squares(x), x


def _products_backward(x: Array, cotangents: tuple[Array, Array]) -> tuple[Array]:
    # One product for both halves and the squares; plain differentiation makes two and a sum.
    products, squares = cotangents
    d = products.shape[-1]
    corner = jnp.pad(products, ((0, 0), (0, d), (d, 0)))
    both = corner + corner.swapaxes(1, 2) + 2.0 * squares[:, :, None] * jnp.eye(2 * d)[None]
    return (jnp.matmul(x, both.astype(x.dtype)),)


products_and_squares.defvjp(_products_forward, _products_backward)


@jax.custom_vjp
def relu6(x: Features) -> Features:
    """min(max(x, 0), 6)."""
    return jnp.clip(x, 0.0, 6.0)


def _relu6_forward(x: Features) -> tuple[Features, Features]:
    y = jnp.clip(x, 0.0, 6.0)
    return y, y


def _relu6_backward(y: Features, cotangent: Features) -> tuple[Features]:
    # The result alone says where the slope is 1, so the input need not be kept.
    return (jnp.where((y > 0.0) & (y < 6.0), cotangent, 0.0),)


relu6.defvjp(_relu6_forward, _relu6_backward)
