"""Random views of examples, each from its own key: equal however a batch is split over devices.

The internal view of CrossFuse (arXiv 2502.14493, sec. III-B) is `weak_aggressive`: a weak crop of
the fused image, and an aggressively blurred version of that crop that must stay close to it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Integer

from jaxfuse.ops.filters import gaussian_blur
from jaxfuse.shapes import Array, Float, Key, PRNGKey


def example_keys(key: PRNGKey, indices: Integer[Array | np.ndarray, " b"]) -> Key[Array, " b"]:
    """One key per example: `fold_in(key, index)` with the example's index in the GLOBAL batch.

    indices: 0 or more, below 2^32. The same index gives the same key on any device or host.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(indices))


def _check_keys(keys: Array, images: tuple[Array, ...], name: str) -> None:
    for image in images:
        if image.shape[0] != keys.shape[0]:
            raise ValueError(
                f"{name}: {keys.shape[0]} keys for {image.shape[0]} images: give one per image"
            )


def random_crop(
    keys: Key[Array, " b"], images: Float[Array, "b h w c"], size: int
) -> Float[Array, "b {size} {size} c"]:
    """A `size` x `size` window of each image, its place drawn from that example's key."""
    _check_keys(keys, (images,), "random_crop")
    _, height, width, channels = images.shape
    if not 0 < size <= min(height, width):
        raise ValueError(
            f"random_crop: size {size} from images of {height} x {width}: "
            f"use 1 to {min(height, width)} pixels"
        )

    def crop(key: Array, image: Array) -> Array:
        last = jnp.array([height - size, width - size])
        top, left = jax.random.randint(key, (2,), 0, last + 1)
        return lax.dynamic_slice(image, (top, left, 0), (size, size, channels))

    return jax.vmap(crop)(keys, images)


def weak_aggressive(
    keys: Key[Array, " b"],
    fused: Float[Array, "b h w c"],
    crop: int = 32,
    kernel: tuple[int, int] = (21, 9),
    sigma_range: tuple[float, float] = (0.1, 5.0),
) -> tuple[Float[Array, "b {crop} {crop} c"], Float[Array, "b {crop} {crop} c"]]:
    """A random crop of each image (weak) and a Gaussian blur of that crop (aggressive).

    kernel: height and width of the blur's window, odd. sigma_range: its standard deviation in
    pixels is uniform in this range, one draw per example. Reflect padding. Gradients pass both.
    """
    low, high = sigma_range
    if not 0 < low <= high:
        raise ValueError(f"weak_aggressive: sigma_range {sigma_range}: use 0 < low <= high")
    _check_keys(keys, (fused,), "weak_aggressive")
    crop_keys, blur_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    weak = random_crop(crop_keys, fused, crop)

    def blur(key: Array, image: Array) -> Array:
        return gaussian_blur(image, kernel, jax.random.uniform(key, (), minval=low, maxval=high))

    return weak, jax.vmap(blur)(blur_keys, weak)


def paired_flips(
    keys: Key[Array, " b"], *images: Array, vertical: bool = True
) -> tuple[Array, ...]:
    """Mirrors each example left-right and up-down, each with probability 1/2, all images alike.

    images: arrays (b, h, w, ...) of any type, such as visible and infrared images and label maps.
    vertical: whether up-down is one of the two; a street upside down is no street.
    """
    _check_keys(keys, images, "paired_flips")
    flips = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(2,)))(keys)

    def mirror(image: Array) -> Array:
        for axis in (1, 2) if vertical else (2,):
            flip = flips[:, axis - 1].reshape((-1,) + (1,) * (image.ndim - 1))
            image = jnp.where(flip, jnp.flip(image, axis), image)
        return image

    return tuple(mirror(jnp.asarray(image)) for image in images)
