"""Every training loss against a slow float64 version, and its gradients, flat inputs included."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse import metrics
from jaxfuse.losses import decomposition, fusion, structure
from jaxfuse.ops import filters

SHAPE = (2, 9, 8, 1)
SOBEL = np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE, np.float32)


def features(seed: int, channels: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 2.0, (3, 5, 4, channels)).astype(np.float32)


# The oracles: float64, one pixel or one channel at a time.


def oracle_correlation(x: np.ndarray, y: np.ndarray) -> float:
    rows = [
        np.corrcoef(x[b, ..., c].ravel(), y[b, ..., c].ravel())[0, 1]
        for b in range(x.shape[0])
        for c in range(x.shape[-1])
    ]
    return float(np.mean(rows))


def oracle_decomposition(lv, li, hv, hi) -> float:
    return oracle_correlation(hv, hi) ** 2 / (1.01 + oracle_correlation(lv, li))


def oracle_sobel(x: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)), mode=mode)
    gx, gy = np.zeros((2, *x.shape[:3]))
    for row, column in np.ndindex(*x.shape[1:3]):
        window = padded[:, row : row + 3, column : column + 3]
        gx[:, row, column] = np.sum(window * SOBEL, axis=(1, 2))
        gy[:, row, column] = np.sum(window * SOBEL.T, axis=(1, 2))
    return gx, gy


def oracle_maximum_intensity(visible, infrared, fused) -> float:
    return float(np.mean(np.abs(np.maximum(visible, infrared) - fused)))


def oracle_maximum_gradient(visible, infrared, fused) -> float:
    sizes = [
        np.abs(gx) + np.abs(gy)
        for gx, gy in (oracle_sobel(x, "constant") for x in (visible, infrared, fused))
    ]
    return float(np.mean(np.abs(np.maximum(sizes[0], sizes[1]) - sizes[2])))


def oracle_strongest_difference(visible, infrared, fused) -> float:
    total = 0.0
    for axis in (1, 2):
        v, i, f = (np.diff(x, axis=axis) for x in (visible, infrared, fused))
        found = [
            abs((a if abs(a) >= abs(b) else b) - c)
            for a, b, c in zip(v.ravel(), i.ravel(), f.ravel(), strict=True)
        ]
        total += float(np.mean(found))
    return total


def oracle_unexplained_differences(visible, infrared, fused) -> float:
    found = []
    for v, i, f in zip(visible, infrared, fused, strict=True):
        correlations = []
        for x, y in ((f - i, v), (f - v, i)):
            covariance = np.mean((x - x.mean()) * (y - y.mean()))
            correlations.append(covariance / np.sqrt((x.var() + 1e-4) * (y.var() + 1e-4)))
        found.append(2.0 - sum(correlations))
    return float(np.mean(found))


def oracle_imitation(teacher, fused) -> float:
    sizes = [
        np.abs(gx) + np.abs(gy)
        for gx, gy in (oracle_sobel(x, "constant") for x in (teacher, fused))
    ]
    return float(np.mean(np.abs(teacher - fused)) + np.mean(np.abs(sizes[0] - sizes[1])))


def oracle_mean_square(x, y) -> float:
    return float(np.mean((x - y) ** 2))


def oracle_dissimilarity(x, y) -> float:
    steps = np.arange(11) - 5
    window = np.exp(-(steps[:, None] ** 2 + steps[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    widths = ((0, 0), (5, 5), (5, 5))
    px, py = (np.pad(z[..., 0], widths, mode="reflect") for z in (x, y))
    similar = []
    for row, column in np.ndindex(*x.shape[1:3]):
        a, b = (p[:, row : row + 11, column : column + 11] for p in (px, py))
        mean_a, mean_b = (np.sum(z * window, axis=(1, 2)) for z in (a, b))
        da, db = a - mean_a[:, None, None], b - mean_b[:, None, None]
        covariance = np.sum(da * db * window, axis=(1, 2))
        variances = np.sum((da**2 + db**2) * window, axis=(1, 2))
        top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        similar.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (variances + 9e-4)))
    return float((1 - np.mean(similar)) / 2)


def oracle_both_dissimilarities(visible, infrared, fused) -> float:
    return 2 * (oracle_dissimilarity(visible, fused) + oracle_dissimilarity(infrared, fused))


def oracle_reconstruction(x, x_hat) -> float:
    return 5.0 * oracle_dissimilarity(x, x_hat) + oracle_mean_square(x, x_hat)


def oracle_gradient_difference(x, x_hat) -> float:
    pairs = zip(oracle_sobel(x, "edge"), oracle_sobel(x_hat, "edge"), strict=True)
    return float(np.mean([np.abs(a - b).mean() / 8.0 for a, b in pairs]))


def ratio(*parts: jax.Array) -> jax.Array:
    return decomposition.decomposition(*parts)[0]


class Loss(NamedTuple):
    function: Callable
    oracle: Callable
    arguments: list[np.ndarray]
    agreed: float
    """Its value where all arguments are equal."""


def of_images(function: Callable, oracle: Callable, count: int, agreed: float = 0.0) -> Loss:
    return Loss(function, oracle, [image(seed) for seed in range(count)], agreed)


def of_features(function: Callable, oracle: Callable, count: int, agreed: float) -> Loss:
    return Loss(function, oracle, [features(seed) for seed in range(count)], agreed)


LOSSES = {
    "maximum_intensity": of_images(fusion.maximum_intensity, oracle_maximum_intensity, 3),
    "maximum_gradient": of_images(fusion.maximum_gradient, oracle_maximum_gradient, 3),
    "strongest_difference": of_images(fusion.strongest_difference, oracle_strongest_difference, 3),
    "unexplained_differences": of_images(
        fusion.unexplained_differences, oracle_unexplained_differences, 3, 2.0
    ),
    "imitation": of_images(fusion.imitation, oracle_imitation, 2),
    "both_dissimilarities": of_images(
        structure.both_dissimilarities, oracle_both_dissimilarities, 3
    ),
    "mean_square": of_images(structure.mean_square, oracle_mean_square, 2),
    "dissimilarity": of_images(structure.dissimilarity, oracle_dissimilarity, 2),
    "reconstruction": of_images(structure.reconstruction, oracle_reconstruction, 2),
    "gradient_difference": of_images(structure.gradient_difference, oracle_gradient_difference, 2),
    "correlation": of_features(decomposition.correlation, oracle_correlation, 2, 1.0),
    "decomposition": of_features(ratio, oracle_decomposition, 4, 1 / 2.01),
}


@pytest.fixture(scope="module", params=LOSSES)
def loss(request) -> Loss:
    """Its function gives the value and the gradients of all arguments, and compiles once."""
    loss = LOSSES[request.param]
    everything = tuple(range(len(loss.arguments)))
    run = jax.jit(
        jax.value_and_grad(loss.function, everything),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return loss._replace(function=run)


def test_value_and_slope(loss):
    value, gradients = loss.function(*loss.arguments)
    wide = [a.astype(np.float64) for a in loss.arguments]
    assert value.shape == ()
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss.oracle(*wide), rtol=3e-6)
    for i, gradient in enumerate(gradients):
        direction = np.random.default_rng(20 + i).normal(size=wide[i].shape)
        ends = [
            loss.oracle(*wide[:i], wide[i] + step * direction, *wide[i + 1 :])
            for step in (1e-7, -1e-7)
        ]
        slope, length = (ends[0] - ends[1]) / 2e-7, np.linalg.norm(gradient)
        assert length > 0
        assert abs(np.sum(np.asarray(gradient, np.float64) * direction) - slope) < 1e-4 * length


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_inputs(loss, level):
    """Roots of 0 and quotients of 0 must keep a finite gradient."""
    flat = [np.full_like(a, level) for a in loss.arguments]
    for mixed in (flat, [flat[0], *loss.arguments[1:]], [*loss.arguments[:-1], flat[-1]]):
        value, gradients = loss.function(*mixed)
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_equal_inputs(loss):
    value, gradients = loss.function(*[loss.arguments[0]] * len(loss.arguments))
    assert float(value) == pytest.approx(loss.agreed, abs=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_a_checkerboard_satisfies_magnitudes_but_not_differences():
    """What Sobel's kernels do not see is no way to look as if there were edges."""
    infrared = jnp.asarray(image(0))
    visible = jnp.ones_like(infrared)
    rows, columns = np.indices(infrared.shape[1:3])
    board = 0.2 * ((rows + columns) % 2 - 0.5)[None, :, :, None]
    inside = (slice(None), slice(1, -1), slice(1, -1))
    plain, dithered = (filters.sobel_magnitude(x) for x in (infrared, infrared + board))
    np.testing.assert_allclose(plain[inside], dithered[inside], atol=1e-5)
    smooth = fusion.strongest_difference(visible, infrared, infrared)
    assert float(fusion.strongest_difference(visible, infrared, infrared + board)) > smooth + 0.3


def test_unexplained_differences_are_what_scd_lacks():
    """Of an average and a maximum, each of images whose contrast is far above `fusion.FLAT`."""
    visible, infrared = (jnp.asarray(image(seed)[:1]) for seed in (0, 1))
    for fused in ((visible + infrared) / 2, jnp.maximum(visible, infrared)):
        gray = [255.0 * np.asarray(x[..., 0]) for x in (fused, visible, infrared)]
        scd = float(metrics.score(*gray, "zoo", ["SCD"])["SCD"][0])
        found = float(fusion.unexplained_differences(visible, infrared, fused))
        assert found == pytest.approx(2.0 - scd, abs=5e-3)


def test_correlation_of_known_features():
    x = jnp.asarray(features(0))
    assert float(decomposition.correlation(x, 3.0 * x + 1.0)) == pytest.approx(1.0, abs=1e-6)
    assert float(decomposition.correlation(x, -x)) == pytest.approx(-1.0, abs=1e-6)
    assert float(decomposition.correlation(x, jnp.full_like(x, 2.5))) == 0.0
    # One channel of six flat: it counts as 0 in the mean.
    partly = x.at[..., 0].set(7.0)
    assert float(decomposition.correlation(partly, partly)) == pytest.approx(5 / 6, abs=1e-6)


def test_correlation_of_bfloat16_features_is_computed_in_float32():
    x, y = (jnp.asarray(features(seed), jnp.bfloat16) for seed in (0, 1))
    value = decomposition.correlation(x, y)
    assert value.dtype == jnp.float32
    expected = oracle_correlation(*(np.asarray(z, np.float64) for z in (x, y)))
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_decomposition_gives_the_correlations_it_is_made_of():
    parts = [jnp.asarray(features(seed)) for seed in range(4)]
    value, low, high = decomposition.decomposition(*parts)
    np.testing.assert_allclose(low, oracle_correlation(parts[0], parts[1]), atol=1e-6)
    np.testing.assert_allclose(high, oracle_correlation(parts[2], parts[3]), atol=1e-6)
    np.testing.assert_allclose(value, high**2 / (1.01 + low), rtol=1e-6)
    same, opposite = parts[0], -parts[0]
    best = decomposition.decomposition(same, same, same, jnp.ones_like(same))[0]
    worst = decomposition.decomposition(same, opposite, same, same)[0]
    assert float(best) == 0.0
    assert float(worst) == pytest.approx(100.0, rel=1e-3)


def test_decomposition_over_devices_is_that_of_the_whole_batch():
    """A ratio of means is not the mean of ratios, so parts must meet before it."""
    parts = [jnp.asarray(features(seed)) for seed in range(4)]
    whole = decomposition.decomposition(*parts)
    split = [p[:, None] for p in parts]
    shared = jax.vmap(
        lambda *args: decomposition.decomposition(*args, axis_name="data"), axis_name="data"
    )(*split)
    for everywhere, expected in zip(shared, whole, strict=True):
        np.testing.assert_allclose(everywhere, np.full(3, expected), rtol=1e-5)
    alone = jax.vmap(decomposition.decomposition)(*split)
    assert abs(float(alone[0].mean()) - float(whole[0])) > 1e-3
