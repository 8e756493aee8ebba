"""The local parts of CrossFuse's blocks as single operations, for processors: LayerNorm, 1x1, 3x3,
then a projection or sums over all pixels.

Each is what `crossfuse` does by JAX's own operations, to rounding (tests/test_kernels.py), in C++
(`jaxfuse.kernels`), and differentiable. Backward passes compute everything but the input again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from jaxfuse import kernels
from jaxfuse.models.layers import Compute, conv1x1
from jaxfuse.models.platform import at_home
from jaxfuse.shapes import Array, Features, Float

ACTIVATIONS = {"none": 0, "gated_gelu": 1, "relu6": 2}
HEAD = 8
"""Channels of an attention head."""


class Local(NamedTuple):
    """What the features of a pixel's neighbourhood are made by."""

    norm: tuple[Float[Array, " i"], Float[Array, " i"]] | None
    """Weight and bias of a LayerNorm of the input."""
    expand: Float[Array, "i m"] | None
    """The 1x1; None where the 3x3 is dense."""
    spatial: Float[Array, "3 3 *c"]
    """Depthwise (3, 3, c); dense (3, 3, i, c); or paired (3, 3, 2, c), whose channels are gates of
    the even outputs, gates of the odd, values of the even, values of the odd, and which takes a
    channel from the first and one from the second half of the expanded ones."""

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        weight, bias = self.norm or (None, None)
        return weight, bias, self.expand, self.spatial


def in_use(compute: Compute) -> bool:
    """Whether the kernels in C++ are used here.

    kernels = auto: on a processor, in float32, by a process with one device (XLA does not know how
    to split them over several), if they can be compiled. Never in what is traced for other
    machines. native: as well with several devices, and KernelsError where they cannot be compiled.
    """
    # What does not fit goes by XLA whatever was asked for.
    if compute.kernels == "xla" or compute.dtype != "float32" or not at_home():
        return False
    if jax.default_backend() != "cpu":
        return False
    return compute.kernels == "native" or (jax.device_count() == 1 and kernels.available())


def native(compute: Compute, x: Features) -> bool:
    """Whether this map goes through the kernels: not with a symbolic size."""
    return x.dtype == jnp.float32 and not any(map(is_symbolic_dim, x.shape)) and in_use(compute)


def bottleneck(
    x: Features,
    local: Local,
    project: Float[Array, "*b m o"],
    activation: str = "none",
    reflect: bool = False,
    add: Features | None = None,
) -> Features:
    """project(activation(3x3(1x1(LayerNorm(x))))) (+ add), (b, h, w, o).

    project: one matrix, or one for each image. activation: gated_gelu halves the channels; relu6
    stands after the 1x1 as well. reflect: padding of the 3x3, else zeros.
    """
    local, project = _in_float32((local, project))
    matrices = project if project.ndim == 3 else project[None]
    settings = (("activation", ACTIVATIONS[activation]), ("reflect", int(reflect)))
    if add is x:
        return _with_itself(settings, x, local, matrices)
    made = _alone(settings, x, local, matrices)
    return made if add is None else made + add


def _in_float32(weights: Any) -> Any:
    return jax.tree.map(lambda array: array.astype(jnp.float32), weights)


Settings = tuple[tuple[str, int], ...]


def _like(*arrays: Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)


def _gradients(x: Features, local: Local, *more: Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    none = jax.ShapeDtypeStruct((0,), jnp.float32)
    weights = (none if array is None else _like(array)[0] for array in local.arrays)
    return (*_like(x), *weights, *_like(*more))


def _as_local(like: Local, weight: Array, bias: Array, expand: Array, spatial: Array) -> Local:
    return Local(
        None if like.norm is None else (weight, bias),
        None if like.expand is None else expand,
        spatial,
    )


def _bottleneck(residual: bool):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def run(settings: Settings, x: Features, local: Local, project: Array) -> Features:
        result = jax.ShapeDtypeStruct((*x.shape[:3], project.shape[-1]), jnp.float32)
        add = x if residual else None
        given = (x, *local.arrays, project, add)
        return kernels.call("bottleneck", (result,), *given, **dict(settings))[0]

    def forward(settings, x, local, project):
        return run(settings, x, local, project), (x, local, project)

    def backward(settings, kept, pull):
        x, local, project = kept
        results = _gradients(x, local, project)
        numbers = {**dict(settings), "residual": int(residual)}
        given = (x, *local.arrays, project, pull)
        dx, *weights, dproject = kernels.call("bottleneck_backward", results, *given, **numbers)
        return dx, _as_local(local, *weights), dproject

    run.defvjp(forward, backward)
    return run


_alone, _with_itself = _bottleneck(False), _bottleneck(True)


def channel_sums(
    x: Features, local: Local, mask: Float[Array, "h w"] | None = None
) -> tuple[Float[Array, "b heads 8 8"], Float[Array, "b c"]]:
    """Sums over all pixels of (q, k) = 3x3(1x1(LayerNorm(x))): q k^T of each head of 8 channels,
    and the squares of q and k. With a mask, which multiplies q and k, there is no derivative.
    """
    local = _in_float32(local)
    return _sums(x, local) if mask is None else _sums_run(x, local, mask)


def _sums_run(x: Features, local: Local, mask: Array | None) -> tuple[Array, Array]:
    b, c = x.shape[0], local.spatial.shape[-1]
    results = (
        jax.ShapeDtypeStruct((b, c // 2 // HEAD, HEAD, HEAD), jnp.float32),
        jax.ShapeDtypeStruct((b, c), jnp.float32),
    )
    products, squares = kernels.call("sums", results, x, *local.arrays, mask)
    return products, squares


@jax.custom_vjp
def _sums(x: Features, local: Local) -> tuple[Array, Array]:
    return _sums_run(x, local, None)


def _sums_forward(x: Features, local: Local) -> tuple[tuple[Array, Array], tuple[Array, Local]]:
    return _sums_run(x, local, None), (x, local)


def _sums_backward(
    kept: tuple[Features, Local], pulls: tuple[Array, Array]
) -> tuple[Features, Local]:
    x, local = kept
    given = (x, *local.arrays, *pulls)
    dx, *weights = kernels.call("sums_backward", _gradients(x, local), *given)
    return dx, _as_local(local, *weights)


_sums.defvjp(_sums_forward, _sums_backward)


class Node(NamedTuple):
    """Weights of a coupling node."""

    mix: Float[Array, "c c"]
    bias: Float[Array, " c"]
    phi: tuple[Float[Array, "i m"], Float[Array, "3 3 m"], Float[Array, "m i"]]
    """1x1, depthwise 3x3, 1x1; so rho and eta."""
    rho: tuple[Float[Array, "i m"], Float[Array, "3 3 m"], Float[Array, "m i"]]
    eta: tuple[Float[Array, "i m"], Float[Array, "3 3 m"], Float[Array, "m i"]]


def _in_parts(x: Features, node: Node) -> Features:
    def apply(weights: tuple[Array, Array, Array], z: Features) -> Features:
        expand, spatial, project = weights
        return bottleneck(z, Local(None, expand, spatial), project, "relu6", reflect=True)

    z1, z2 = jnp.split(conv1x1(x, node.mix) + node.bias[None, None, None, :], 2, axis=-1)
    z2 = z2 + apply(node.phi, z1)
    z1 = z1 * jnp.exp(apply(node.rho, z2)) + apply(node.eta, z2)
    return jnp.concatenate([z1, z2], axis=-1)


def coupling(x: Features, node: Node) -> Features:
    """z = x mix + bias; z2 += phi(z1); z1 = z1 exp(rho(z2)) + eta(z2), by reflection at edges."""
    return _coupling(x, _in_float32(node))


@jax.custom_vjp
def _coupling(x: Features, node: Node) -> Features:
    weights = (node.mix, node.bias, *node.phi, *node.rho, *node.eta)
    return kernels.call("coupling", _like(x), x, *weights)[0]


def _coupling_forward(x: Features, node: Node) -> tuple[Features, tuple[Features, Node]]:
    return _coupling(x, node), (x, node)


def _coupling_backward(kept: tuple[Features, Node], pull: Features) -> tuple[Features, Node]:
    return jax.vjp(_in_parts, *kept)[1](pull)


_coupling.defvjp(_coupling_forward, _coupling_backward)
