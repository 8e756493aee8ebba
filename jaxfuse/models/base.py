"""What a network is to the rest of the package: a pair of pure functions, and what they give back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfuse.shapes import Array, Features, Gray, Params, PRNGKey


class Fused(NamedTuple):
    """The result of a fusion network."""

    image: Gray
    """The fused luma, (b, h, w, 1) in [0, 1]."""
    features: Features
    """The fused features the image was made from, (b, h, w, c)."""
    parts: dict[str, Array]
    """Named intermediates that losses need; their names are stated by the network."""


class Pass(NamedTuple):
    """One sweep over a large image: local work between two sums over all pixels.

    A sweep cuts its input maps into windows of whole rows, `halo` rows of which overlap the neighbours on either
    side, calls `run` on each, keeps the rows a window is responsible for and adds up the sums. Running every pass
    over windows gives what `Model.apply` gives on the whole image, because every operation that is not local
    is a sum over pixels. `docs/adr/0007` says why.
    """

    name: str
    reads: tuple[str, ...]
    """Maps read; "visible" and "infrared" are the inputs, (b, h, w, 1)."""
    writes: dict[str, int]
    """Maps written, with their channels. A map may be read and written in the same pass."""
    halo: int
    """Rows on either side that influence a row: the number of 3x3 convolutions in the pass."""
    run: Callable[[Params, dict[str, Array], dict[str, Array], Array], tuple[dict, dict]]
    """(params, windows, sums, row_mask (h,)) -> (windows written, partial sums by name)."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A fusion network as pure functions. Parameters are a plain nested dict of float32 arrays."""

    name: str
    init: Callable[[PRNGKey], Params]
    """Fresh parameters from a key."""
    apply: Callable[[Params, Gray, Gray], Fused]
    """(params, visible luma, infrared) -> Fused. Both (b, h, w, 1) in [0, 1], any h and w."""
    reconstruct: Callable[[Params, Gray, Gray], Fused] | None = None
    """(params, visible luma, infrared) -> both inputs again, stacked (2, b, h, w, 1), for networks that learn by it."""
    passes: tuple[Pass, ...] = ()
    """The network as sweeps for images larger than memory. Empty where there is no exact way."""


def functional(module: nnx.Module) -> tuple[Callable[[PRNGKey], Params], Callable[[Params], nnx.Module]]:
    """Splits a module into `init(key) -> params` and `bind(params) -> module`.

    Each parameter says how it starts: `bound` b draws from U(-b, b), without it the value given at construction
    stays. All draws come from one call, since XLA compiles one random generator per shape otherwise (seconds).
    """
    graph, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    leaves = [(path, variable[...], variable.get_metadata().get("bound")) for path, variable in flat]
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
