"""Random views: equal for any split of the batch, inside the image, and differentiable."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxfuse.ops import augment

SEED = jax.random.key(7)


def random_images(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


def numbered(batch: int, height: int, width: int) -> jax.Array:
    """Images in which every pixel's value says where it is."""
    image = np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)
    return jnp.asarray(np.repeat(image, batch, axis=0))


def test_keys_depend_on_the_global_index_only():
    keys = augment.example_keys(SEED, jnp.arange(8))
    second = augment.example_keys(SEED, np.arange(4, 8, dtype=np.uint32))
    np.testing.assert_array_equal(jax.random.key_data(keys[4:]), jax.random.key_data(second))
    np.testing.assert_array_equal(
        jax.random.key_data(keys[3]), jax.random.key_data(jax.random.fold_in(SEED, 3))
    )
    assert len(np.unique(np.asarray(jax.random.key_data(keys)), axis=0)) == 8


def test_crops_are_windows_that_cover_every_place():
    keys = augment.example_keys(SEED, jnp.arange(200))
    crops = np.asarray(augment.random_crop(keys, numbered(200, 6, 5), 4))
    corners = crops[:, 0, 0, 0].astype(int)
    window = np.arange(4)[:, None] * 5 + np.arange(4)[None, :]
    np.testing.assert_array_equal(crops[..., 0], corners[:, None, None] + window)
    assert {(c // 5, c % 5) for c in corners} == {(y, x) for y in range(3) for x in range(2)}


def test_a_crop_of_the_whole_image_is_the_image():
    images = random_images((2, 5, 5, 3))
    keys = augment.example_keys(SEED, jnp.arange(2))
    np.testing.assert_array_equal(augment.random_crop(keys, images, 5), images)


def test_two_halves_of_a_batch_give_the_whole():
    images = random_images((8, 40, 36, 1))
    labels = jnp.arange(8 * 40 * 36).reshape(8, 40, 36)

    @jax.jit
    def views(indices, images, labels):
        keys = augment.example_keys(SEED, indices)
        return (
            *augment.weak_aggressive(keys, images),
            *augment.paired_flips(keys, images, labels),
        )

    whole = views(jnp.arange(8), images, labels)
    first = views(jnp.arange(4), images[:4], labels[:4])
    second = views(jnp.arange(4, 8), images[4:], labels[4:])
    for all_at_once, a, b in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(all_at_once, jnp.concatenate([a, b]))


def test_aggressive_is_the_blurred_weak_view_with_its_own_sigma():
    images = random_images((6, 48, 48, 1))
    keys = augment.example_keys(SEED, jnp.arange(6))
    weak, aggressive = jax.jit(augment.weak_aggressive)(keys, images)
    assert weak.shape == aggressive.shape == (6, 32, 32, 1)

    def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
        for axis, radius in ((0, 10), (1, 4)):
            taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
            image = ndimage.correlate1d(image, taps / taps.sum(), axis=axis, mode="mirror")
        return image

    sigmas = np.linspace(0.1, 5.0, 491)
    found = []
    for w, a in zip(np.asarray(weak, np.float64), np.asarray(aggressive, np.float64), strict=True):
        errors = [np.abs(blurred(w[..., 0], sigma) - a[..., 0]).max() for sigma in sigmas]
        assert min(errors) < 1e-2
        found.append(sigmas[int(np.argmin(errors))])
    assert len(set(found)) == 6
    assert max(found) - min(found) > 0.5


def test_a_narrow_sigma_range_is_kept():
    images = random_images((2, 32, 32, 1))
    keys = augment.example_keys(SEED, jnp.arange(2))
    sharp, same = augment.weak_aggressive(keys, images, sigma_range=(0.1, 0.1))
    np.testing.assert_allclose(sharp, same, atol=1e-6)
    np.testing.assert_allclose(sharp, images, atol=0)


def test_gradients_pass_both_views():
    images = random_images((2, 20, 20, 1))
    keys = augment.example_keys(SEED, jnp.arange(2))

    def total(x, which):
        return augment.weak_aggressive(keys, x, crop=16, kernel=(5, 3))[which].sum()

    weak = jax.grad(total)(images, 0)
    np.testing.assert_allclose(weak.sum(axis=(1, 2, 3)), 16 * 16)
    assert set(np.unique(weak)) == {0.0, 1.0}
    # The window's weights sum to one, and mirroring moves weight without losing any.
    aggressive = jax.grad(total)(images, 1)
    np.testing.assert_allclose(aggressive.sum(axis=(1, 2, 3)), 16 * 16, rtol=1e-5)


def test_flips_are_shared_and_all_four_occur():
    images = numbered(64, 4, 3)
    keys = augment.example_keys(SEED, jnp.arange(64))
    flipped, labels = augment.paired_flips(keys, images, images[..., 0].astype(jnp.int32))
    np.testing.assert_array_equal(flipped[..., 0], labels)
    assert labels.dtype == jnp.int32
    original = np.arange(12).reshape(4, 3)
    kinds = [original, original[::-1], original[:, ::-1], original[::-1, ::-1]]
    which = [[np.array_equal(label, kind) for kind in kinds] for label in np.asarray(labels)]
    assert np.array(which).sum(axis=1).tolist() == [1] * 64
    assert (np.array(which).sum(axis=0) > 6).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, x: inspect.unwrap(augment.random_crop)(k, x, 9), "size 9.*8 x 8.*1 to 8"),
        (lambda k, x: inspect.unwrap(augment.random_crop)(k[:1], x, 4), "1 keys for 2 images"),
        (lambda k, x: inspect.unwrap(augment.paired_flips)(k[:1], x), "1 keys for 2 images"),
        (lambda k, x: augment.weak_aggressive(k, x, 4, sigma_range=(0.0, 1.0)), "0 < low"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call(augment.example_keys(SEED, jnp.arange(2)), jnp.zeros((2, 8, 8, 1)))
