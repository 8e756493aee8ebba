"""What a network is to the rest of the package: two pure functions, and what they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxfuse.ops.resize import bilinear
from jaxfuse.shapes import Array, Features, Gray, Image, Params, PRNGKey


class Fused(NamedTuple):
    """The result of a fusion network."""

    image: Gray
    """The fused luma, (b, h, w, 1) in [0, 1]."""
    features: Features
    """The fused features the image was made from, (b, h, w, c)."""
    parts: dict[str, Array]
    """Named intermediates that losses need; their names are stated by the network."""


def check_shapes(network: str, visible: Array, infrared: Array) -> None:
    """Raises ValueError unless both are (b, h, w, 1), of one shape."""
    for name, image in (("visible", visible), ("infrared", infrared)):
        if image.ndim != 4 or image.shape[-1] != 1:
            raise ValueError(
                f"{network}: {name} has shape {image.shape}, needs (batch, height, width, 1): "
                "pass the luma of the visible image and one infrared channel"
            )
    if visible.shape != infrared.shape:
        raise ValueError(
            f"{network}: visible {visible.shape} and infrared {infrared.shape} differ in shape"
        )


Program: TypeAlias = Callable[[Params, tuple, tuple, Array], tuple[tuple, tuple]]
"""(params, windows, sums, mask (h, w)) -> (windows written, partial sums), in the order a `Pass`
names them.

A window edge that is an edge of the image is padded as the image is. The mask is 1 where the
window's pixels count in its sums. Sums are pytrees of arrays with a leading batch axis.
"""


class Pass(NamedTuple):
    """One sweep over a large image: local work between two sums over all pixels.

    A sweep cuts its input maps into windows that overlap their neighbours by `halo` pixels on
    either side, calls `program` on each, keeps the pixels a window is responsible for and adds up
    the sums. Running every pass over windows gives what `Model.apply` gives on the whole image,
    because every operation that is not local is a sum over pixels. `docs/adr/0007` says why.
    """

    name: str
    program: Program
    """What is done to a window. Passes that differ in parameters only have the same one: it
    compiles once.
    """
    params: Callable[[Params], Params]
    """Model parameters -> the part that the program takes."""
    reads: tuple[str, ...]
    """Maps read; "visible" and "infrared" are the inputs, (b, h, w, 1)."""
    needs: tuple[str, ...]
    """Sums that passes before this one gave."""
    writes: dict[str, tuple[int, np.dtype]]
    """Maps written, with channels and dtype; the last pass writes "image". A map may be read and
    written.
    """
    gives: tuple[str, ...]
    """Sums given."""
    halo: int
    """Pixels to either side that influence a pixel: the number of 3x3 convolutions in the pass."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A fusion network as pure functions. Parameters are a plain nested dict of float32 arrays."""

    name: str
    init: Callable[[PRNGKey], Params]
    """Fresh parameters from a key."""
    apply: Callable[[Params, Gray, Gray], Fused]
    """(params, visible luma, infrared) -> Fused. Both (b, h, w, 1) in [0, 1], any h and w."""
    reconstruct: Callable[[Params, Gray, Gray], Fused] | None = None
    """(params, visible luma, infrared) -> both inputs again, stacked (2, b, h, w, 1), for networks
    that learn by it.
    """
    passes: tuple[Pass, ...] = ()
    """The network as sweeps for images larger than memory. Empty where there is no exact way."""
    native: Callable[[], bool] = lambda: False
    """Whether `jaxfuse.kernels` do most of its work here, in a third of the memory for an image."""


class Segmented(NamedTuple):
    """The result of a segmentation network."""

    logits: Features
    """(b, ceil(h / 4), ceil(w / 4), classes), float32."""
    states: tuple[Features, ...]
    """The encoder's maps, largest first."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A segmentation network as pure functions. Parameters are a plain nested dict of float32
    arrays; `trainable` tells those that are learned from those that are constants.
    """

    name: str
    classes: int
    init: Callable[[PRNGKey], Params]
    """Fresh parameters from a key."""
    apply: Callable[[Params, Image], Features]
    """(params, image) -> logits (b, ceil(h / 4), ceil(w / 4), classes), float32.

    The image is (b, h, w, 3), or gray (b, h, w, 1), in [0, 1], of any size from `smallest`;
    normalising it is the network's own business.
    """
    network: Callable[[Params, Image], Segmented]
    """The bare network, for an image that is normalised already."""
    smallest: int
    """The fewest pixels along a side."""


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A segmentation head on features, as pure functions."""

    channels: int
    """Of the features."""
    classes: int
    init: Callable[[PRNGKey], Params]
    """Fresh parameters from a key."""
    apply: Callable[[Params, Features], Features]
    """(params, features (b, h, w, channels)) -> logits on the grid of `Segmenter.apply`, float32.
    """


def resize_logits(logits: Features, height: int, width: int) -> Features:
    """Logits at the size of an image or a label map, bilinear, in float32: for losses and for the
    arg max.
    """
    return bilinear(logits.astype(jnp.float32), height, width)


CONSTANTS = ("mean", "var")
"""Names of parameters that are kept statistics: no network learns them."""


def trainable(params: Params) -> Params:
    """The same tree of bools, False for constants.

    The gradient of a constant is exactly zero, so plain Adam leaves it alone; weight decay does
    not, and is masked with this tree.
    """
    return {
        name: trainable(value) if isinstance(value, dict) else name not in CONSTANTS
        for name, value in params.items()
    }


def functional(
    module: nnx.Module,
) -> tuple[Callable[[PRNGKey], Params], Callable[[Params], nnx.Module]]:
    """Splits a module into `init(key) -> params` and `bind(params) -> module`.

    Each parameter says how it starts: `bound` b draws from U(-b, b), without it the value given at
    construction stays. All draws come from one call, since XLA compiles one random generator per
    shape otherwise (seconds).
    """
    graph, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    leaves = [
        (path, variable[...], variable.get_metadata().get("bound")) for path, variable in flat
    ]
    drawn = sum(value.size for _, value, bound in leaves if bound is not None)

    def init(key: PRNGKey) -> Params:
        noise = jax.random.uniform(key, (drawn,), jnp.float32, -1.0, 1.0)
        params: Params = {}
        start = 0
        for path, value, bound in leaves:
            node = params
            for name in path[:-1]:
                node = node.setdefault(name, {})
            if bound is None:
                node[path[-1]] = jnp.array(value)
            else:
                node[path[-1]] = noise[start : start + value.size].reshape(value.shape) * bound
                start += value.size
        return params

    def bind(params: Params) -> nnx.Module:
        return nnx.merge(graph, params)

    return init, bind
