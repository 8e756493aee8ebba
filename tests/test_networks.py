"""Every network of both tables: forward, backward, odd sizes, bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse import models
from jaxfuse.models import MODELS, SEGMENTERS
from jaxfuse.shapes import Params, PRNGKey

CLASSES = 5
LARGE = sorted(SEGMENTERS.keys() - {"segformer_tiny"})
"""Too large to run each time: their shapes are computed, and the smallest one is run among the slow
tests. They are one network of several widths and depths."""

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Network(NamedTuple):
    """What networks of both tables have in common: images in, one map out."""

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    """(params, (b, h, w, 3) in [0, 1]) -> (b, ...)."""
    size: tuple[int, int]
    """An odd one, so small that every map of keys has more than one still."""
    shape: tuple[int, ...]
    """Of its map at that size."""


def network(name: str, dtype: str) -> Network:
    if name in MODELS:
        model = models.create(name, dtype, depthwise="shift", remat="none")

        def fuse(params: Params, image: jax.Array) -> jax.Array:
            return model.apply(params, image[..., :1], image[..., 1:2]).image

        return Network(model.init, fuse, (3, 5), (3, 5, 1))
    segmenter = models.create_segmenter(name, CLASSES, dtype, depthwise="shift", remat="none")
    return Network(segmenter.init, segmenter.apply, (61, 67), (16, 17, CLASSES))


def forward_and_backward(found: Network) -> Callable[..., Any]:
    """(params, image) -> gradients of both, and the map."""

    def weighted(params: Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        result = found.apply(params, image)
        noise = np.random.default_rng(1).normal(size=result.shape).astype(np.float32)
        return jnp.sum(result * noise), result

    return jax.grad(weighted, (0, 1), has_aux=True)


def leaves(tree: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def zero(name: str) -> bool:
    """Whether a gradient is zero: of constants, and of what is added to every key, which softmax
    takes out again.
    """
    return name.rsplit("/", 1)[-1] in ("mean", "var") or name.endswith("key/bias")


@pytest.mark.parametrize(
    "name",
    [
        *sorted(MODELS.keys() - {"crossfuse"}),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("crossfuse", *sorted(SEGMENTERS.keys() - set(LARGE)), LARGE[0])
        ),
    ],
)
def test_every_network(name):
    """Runs forward in float32 and forward and backward in bfloat16, on an odd size.

    The gradient in float32 has tests of its own for each published network.
    """
    found, narrow = (network(name, dtype) for dtype in ("float32", "bfloat16"))
    params = found.init(jax.random.key(0))
    image = jnp.asarray(np.random.default_rng(0).random((2, *found.size, 3)), jnp.float32)
    expected = np.asarray(compiled(found.apply)(params, image))
    (to_params, to_image), result = compiled(forward_and_backward(narrow))(params, image)
    for value in (expected, result):
        assert value.shape == (2, *found.shape)
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
    assert 0 < np.abs(result - expected).max() < 0.05 * (1 + np.abs(expected).max())
    learned = leaves(models.trainable(params))
    for where, leaf in leaves(jax.device_get(to_params)).items():
        assert leaf.dtype == np.float32, where
        assert np.isfinite(leaf).all(), where
        assert np.any(leaf) or zero(where), where
        assert learned[where] or not np.any(leaf), where
    assert np.isfinite(to_image).all() and np.any(to_image)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LARGE)
def test_shapes_of_large_networks(name, dtype):
    found = network(name, dtype)
    params = jax.eval_shape(found.init, jax.random.key(0))
    for size, shape in (((33, 47), (9, 12)), ((64, 96), (16, 24))):
        image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        (to_params, to_image), result = jax.eval_shape(forward_and_backward(found), params, image)
        assert (result.shape, result.dtype) == ((2, *shape, CLASSES), jnp.float32)
        assert to_image.shape == image.shape
        assert leaves(to_params) == leaves(params)


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
def test_fresh_parameters_of_segmenters(name):
    """Plain nested dicts of float32; other keys give other kernels and the same constants."""
    segmenter = models.create_segmenter(name, CLASSES)
    assert (segmenter.name, segmenter.classes) == (name, CLASSES)
    params = leaves(jax.eval_shape(segmenter.init, jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in params.values())
    assert params["head/classifier/weight"].shape[-1] == CLASSES
    if name in LARGE:
        return
    one, same, other = (leaves(segmenter.init(jax.random.key(seed))) for seed in (0, 0, 1))
    for where, leaf in one.items():
        np.testing.assert_array_equal(leaf, same[where])
        constant = leaf.min() == leaf.max()
        assert constant == np.array_equal(leaf, other[where]), where
        assert constant == (leaf.ndim == 1), where
