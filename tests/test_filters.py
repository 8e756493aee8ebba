"""Filters against SciPy in float64 and against the published losses."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxfuse.ops import filters

SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float64)


ssim_map = jax.jit(filters.ssim_map, static_argnames=("window", "sigma", "data_range"))
ssim_slope = jax.jit(jax.grad(filters.ssim))


def random_image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def per_channel(x: np.ndarray, kernel: np.ndarray, mode: str) -> np.ndarray:
    """Correlation of (b, h, w, c) in float64, kernel (rows, columns)."""
    return ndimage.correlate(x.astype(np.float64), kernel[None, :, :, None], mode=mode, cval=0.0)


def oracle_ssim(x: np.ndarray, y: np.ndarray, data_range: float = 1.0) -> np.ndarray:
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    kernel = np.outer(g, g) / g.sum() ** 2
    mean = partial(per_channel, kernel=kernel, mode="mirror")
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


@pytest.mark.parametrize("shape", [(2, 9, 7, 3), (1, 1, 5, 1), (1, 4, 1, 2)])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("padding", "mode"), [("edge", "nearest"), ("zero", "constant")])
def test_sobel_matches_scipy(shape, normalized, padding, mode):
    x = random_image(shape)
    gx, gy = filters.sobel(jnp.asarray(x), normalized, padding)
    scale = 8.0 if normalized else 1.0
    np.testing.assert_allclose(gx, per_channel(x, SOBEL_X, mode) / scale, atol=1e-6)
    np.testing.assert_allclose(gy, per_channel(x, SOBEL_X.T, mode) / scale, atol=1e-6)


def test_sobel_of_a_ramp_is_its_slope():
    ramp = jnp.asarray(np.tile(np.arange(8, dtype=np.float32)[:, None, None] * 0.1, (1, 6, 1)))
    gx, gy = filters.sobel(ramp, normalized=True, padding="edge")
    np.testing.assert_allclose(gy[1:-1], 0.1, atol=1e-6)
    np.testing.assert_allclose(gx, 0.0, atol=1e-6)


def test_sobel_magnitude_and_its_gradient_on_a_flat_image():
    x = random_image((1, 6, 8, 2))
    expected = abs(per_channel(x, SOBEL_X, "constant")) + abs(per_channel(x, SOBEL_X.T, "constant"))
    np.testing.assert_allclose(filters.sobel_magnitude(jnp.asarray(x)), expected, atol=2e-6)
    total = jax.jit(jax.grad(lambda z: filters.sobel_magnitude(z).sum()))
    flat = total(jnp.full((1, 6, 8, 1), 0.5))
    assert np.isfinite(flat).all()


def test_gaussian_kernel():
    x = np.arange(9) - 4.0
    expected = np.exp(-(x**2) / (2 * 2.3**2))
    np.testing.assert_allclose(
        filters.gaussian_kernel(9, 2.3), expected / expected.sum(), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 32, 32, 1), (1, 12, 11, 3), (1, 6, 3, 1), (1, 1, 2, 1)])
def test_blur_matches_a_padded_float64_convolution_on_any_size(shape):
    x, (rows, columns), sigma = random_image(shape), (21, 9), 2.7
    r, c = np.arange(rows) - rows // 2, np.arange(columns) - columns // 2
    kernel = np.outer(np.exp(-0.5 * (r / sigma) ** 2), np.exp(-0.5 * (c / sigma) ** 2))
    padded = np.pad(x, ((0, 0), (10, 10), (4, 4), (0, 0)), mode="reflect")
    expected = per_channel(padded, kernel / kernel.sum(), "constant")[:, 10:-10, 4:-4]
    np.testing.assert_allclose(
        filters.gaussian_blur(jnp.asarray(x), (rows, columns), sigma), expected, atol=1e-6
    )


def test_blur_takes_one_sigma_per_example_and_compiles():
    x, sigmas = jnp.asarray(random_image((3, 16, 12, 1))), jnp.array([0.1, 1.0, 5.0])
    blur = partial(filters.gaussian_blur, size_hw=(21, 9))
    batched = jax.jit(jax.vmap(lambda image, sigma: blur(image, sigma=sigma)))(x, sigmas)
    single = [blur(image, sigma=sigma) for image, sigma in zip(x, (0.1, 1.0, 5.0), strict=True)]
    np.testing.assert_allclose(batched, jnp.stack(single), atol=1e-6)
    np.testing.assert_allclose(batched[0], x[0], atol=1e-6)  # sigma 0.1 weighs one pixel only


@pytest.mark.parametrize("shape", [(2, 24, 17, 3), (1, 11, 11, 1)])
def test_ssim_map_matches_float64(shape):
    x, noise = random_image(shape), random_image(shape, 1)
    y = np.clip(0.8 * x + 0.2 * noise, 0, 1).astype(np.float32)
    result = ssim_map(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(result, oracle_ssim(x, y), atol=1e-5)
    np.testing.assert_allclose(filters.ssim(jnp.asarray(x), jnp.asarray(y)), np.mean(result), 1e-6)
    scaled = ssim_map(jnp.asarray(x * 255), jnp.asarray(y * 255), data_range=255.0)
    np.testing.assert_allclose(scaled, result, atol=1e-4)


def test_ssim_keeps_its_digits_on_a_bright_smooth_image():
    x = (0.9 + 0.01 * random_image((1, 32, 32, 1))).astype(np.float32)
    y = (0.9 + 0.01 * random_image((1, 32, 32, 1), 1)).astype(np.float32)
    result = ssim_map(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(result, oracle_ssim(x, y), atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 4, 3, 1), (1, 1, 1, 1)])
def test_ssim_of_images_smaller_than_the_window(shape):
    x = jnp.asarray(random_image(shape))
    np.testing.assert_allclose(ssim_map(x, x), 1.0, atol=1e-6)
    assert float(filters.ssim(x, 1.0 - x)) < 1.0


def test_ssim_gradient_matches_differences_and_is_finite_on_equal_flat_images():
    x, y = jnp.asarray(random_image((1, 12, 12, 1))), jnp.asarray(random_image((1, 12, 12, 1), 1))
    direction = jnp.asarray(random_image(x.shape, 2)) - 0.5
    slope = float(jnp.sum(ssim_slope(x, y) * direction))
    step = 1e-4
    ahead, behind = (
        oracle_ssim(
            np.asarray(x, np.float64) + s * np.asarray(direction, np.float64), np.asarray(y)
        )
        for s in (step, -step)
    )
    np.testing.assert_allclose(slope, (ahead.mean() - behind.mean()) / (2 * step), rtol=1e-3)
    flat = jnp.full((1, 12, 12, 1), 0.3)
    assert np.isfinite(ssim_slope(flat, flat)).all()


def test_published_losses(golden: Path):
    stored = np.load(golden / "crossfuse_reference.npz")

    def image(name: str) -> jax.Array:
        return jnp.asarray(stored[name].transpose(0, 2, 3, 1))

    for band in ("vi", "ir"):
        x, x_hat = image(band), image(f"phase1/out/{band}_hat")
        dissimilar = jnp.clip((1 - ssim_map(x, x_hat)) / 2, 0, 1).mean()
        loss = 5 * dissimilar + jnp.square(x - x_hat).mean()
        np.testing.assert_allclose(loss, stored[f"phase1/loss/recon_{band}"], rtol=1e-5)
    a = jnp.stack(filters.sobel(image("vi"), True, "edge"))
    b = jnp.stack(filters.sobel(image("phase1/out/vi_hat"), True, "edge"))
    np.testing.assert_allclose(jnp.abs(a - b).mean(), stored["phase1/loss/gradient_vi"], rtol=1e-5)
    vi, ir, fused = image("vi"), image("ir"), image("phase2/out/fused")
    intensity = jnp.abs(jnp.maximum(vi, ir) - fused).mean()
    strongest = jnp.maximum(filters.sobel_magnitude(vi), filters.sobel_magnitude(ir))
    gradient = jnp.abs(strongest - filters.sobel_magnitude(fused)).mean()
    np.testing.assert_allclose(intensity, stored["phase2/loss/intensity"], rtol=1e-5)
    np.testing.assert_allclose(gradient, stored["phase2/loss/gradient"], rtol=1e-5)
    np.testing.assert_allclose(intensity + 10 * gradient, stored["phase2/loss/fusion"], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: inspect.unwrap(filters.sobel)(x, True, "wrap"), "'wrap'.*edge, zero"),
        (
            lambda x: inspect.unwrap(filters.sobel)(x[0, 0], True, "edge"),
            r"\(4, 1\).*height, width, channels",
        ),
        (lambda x: filters.gaussian_kernel(4, 1.0), "size 4.*odd"),
        (lambda x: inspect.unwrap(filters.ssim_map)(x, x[:, :3]), "differ"),
        (lambda x: inspect.unwrap(filters.ssim_map)(x[:, :0], x[:, :0]), "none empty"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((1, 4, 4, 1)))
