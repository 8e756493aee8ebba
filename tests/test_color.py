"""Luma, chroma and colour carry-over against a float64 matrix."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfuse.ops import color

TO_YCC = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772],
        [0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402],
    ]
)
OFFSET = np.array([0.0, 0.5, 0.5])
CORNERS = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T.astype(np.float32)


@pytest.fixture
def rgb() -> np.ndarray:
    """Random colours, and the corners of the RGB cube."""
    colours = np.random.default_rng(0).random((2, 6, 4, 3)).astype(np.float32)
    colours[0, :2] = CORNERS.reshape(2, 4, 3)
    return colours


@pytest.fixture
def fused(rgb) -> np.ndarray:
    y = np.random.default_rng(1).random((*rgb.shape[:-1], 1)).astype(np.float32)
    y[1, 0, :2] = [[0.0], [1.0]]
    return y


def hue(colours: np.ndarray) -> np.ndarray:
    cb, cr = (np.moveaxis(colours.astype(np.float64) @ TO_YCC.T, -1, 0))[1:]
    return np.arctan2(cr, cb)


def test_forward_and_back_match_the_matrix(rgb):
    ycc = color.rgb_to_ycbcr(jnp.asarray(rgb))
    np.testing.assert_allclose(ycc, rgb.astype(np.float64) @ TO_YCC.T + OFFSET, atol=3e-7)
    np.testing.assert_allclose(color.luma(jnp.asarray(rgb)), ycc[..., :1], atol=1e-7)
    np.testing.assert_allclose(color.ycbcr_to_rgb(ycc), rgb, atol=6e-7)


def test_every_8_bit_colour_channel_survives_the_round_trip():
    levels = np.arange(256, dtype=np.float32) / 255
    rgb = np.stack(np.meshgrid(levels, levels[::15], levels[::17], indexing="ij"), -1)
    back = color.ycbcr_to_rgb(color.rgb_to_ycbcr(jnp.asarray(rgb)))
    np.testing.assert_array_equal(np.round(np.asarray(back) * 255), np.round(rgb * 255))


def test_ycbcr_lies_in_the_unit_range_and_gray_has_no_chroma(rgb):
    corners = np.asarray(color.rgb_to_ycbcr(CORNERS))
    assert corners.min() >= -1e-7
    assert corners.max() <= 1 + 1e-7
    grays = np.repeat(rgb[..., :1], 3, axis=-1)
    np.testing.assert_allclose(color.rgb_to_ycbcr(grays)[..., 1:], 0.5, atol=1e-6)


@pytest.mark.parametrize("gamut", ["desaturate", "clip"])
def test_replacing_luma_by_itself_changes_nothing(rgb, gamut):
    result = color.replace_luma(jnp.asarray(rgb), color.luma(jnp.asarray(rgb)), gamut)
    np.testing.assert_allclose(result, rgb, atol=2e-7)


@pytest.mark.parametrize("gamut", ["desaturate", "clip"])
def test_chroma_is_carried_over_exactly_where_the_colour_exists(gamut):
    rng = np.random.default_rng(2)
    rgb = (0.4 + 0.2 * rng.random((1, 5, 5, 3))).astype(np.float32)
    y = (0.3 + 0.4 * rng.random((1, 5, 5, 1))).astype(np.float32)
    result = color.replace_luma(jnp.asarray(rgb), jnp.asarray(y), gamut)
    wanted = np.concatenate([y, color.rgb_to_ycbcr(rgb)[..., 1:]], axis=-1)
    np.testing.assert_allclose(color.rgb_to_ycbcr(result), wanted, atol=5e-7)


def test_desaturation_keeps_luma_and_hue_and_is_as_small_as_possible(rgb, fused):
    result = np.asarray(jax.jit(color.replace_luma)(jnp.asarray(rgb), jnp.asarray(fused)))
    assert result.min() >= 0.0
    assert result.max() <= 1.0
    np.testing.assert_allclose(color.luma(result), fused, atol=5e-7)
    before = rgb - rgb.astype(np.float64) @ TO_YCC[0][:, None]
    after = result - result.astype(np.float64) @ TO_YCC[0][:, None]
    strong = np.abs(after).max(-1) > 1e-2
    assert strong.mean() > 0.8
    np.testing.assert_allclose(hue(result)[strong], hue(rgb)[strong], atol=1e-3)
    scale = (after * before).sum(-1) / np.maximum((before**2).sum(-1), 1e-12)
    reduced = (scale < 1 - 1e-4) & (np.abs(before).max(-1) > 1e-3)
    assert 0.2 < reduced.mean() < 0.8
    on_the_border = np.minimum(result, 1 - result).min(-1) < 1e-6
    assert on_the_border[reduced].all()


def test_clipping_is_per_channel_and_moves_luma(rgb, fused):
    result = np.asarray(color.replace_luma(jnp.asarray(rgb), jnp.asarray(fused), "clip"))
    old = rgb.astype(np.float64) @ TO_YCC[0][:, None]
    np.testing.assert_allclose(result, np.clip(rgb + fused - old, 0, 1), atol=5e-7)
    assert np.abs(np.asarray(color.luma(result)) - fused).max() > 0.05


def test_luma_outside_the_range_is_clipped():
    rgb = jnp.array([[[[0.9, 0.2, 0.1], [0.1, 0.3, 0.9]]]])
    result = color.replace_luma(rgb, jnp.array([[[[1.5], [-0.5]]]]))
    np.testing.assert_array_equal(result, [[[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]])


def test_gray_passes_through():
    gray = np.random.default_rng(3).random((1, 4, 4, 1)).astype(np.float32)
    for function in (color.luma, color.rgb_to_ycbcr, color.ycbcr_to_rgb):
        np.testing.assert_array_equal(function(gray), gray)
    np.testing.assert_array_equal(color.replace_luma(gray, 1 - gray), 1 - gray)


def test_gradients_are_finite_on_gray_black_white_and_out_of_gamut(rgb):
    colours = np.concatenate([rgb[0, :2].reshape(-1, 3), np.full((1, 3), 0.5), rgb[1, 0]])
    colours = jnp.asarray(colours[None, None], jnp.float32)
    for level in (0.0, 0.5, 1.0):
        y = jnp.full((*colours.shape[:-1], 1), level)
        slopes = jax.grad(lambda c, v: color.replace_luma(c, v).sum(), argnums=(0, 1))(colours, y)
        assert all(np.isfinite(slope).all() for slope in slopes)


def test_vmap_equals_a_batch(rgb, fused):
    single = jax.vmap(color.replace_luma)(jnp.asarray(rgb), jnp.asarray(fused))
    np.testing.assert_allclose(
        single, color.replace_luma(jnp.asarray(rgb), jnp.asarray(fused)), atol=2e-7
    )


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (color.luma, (np.zeros((2, 2, 3), np.uint8),), "luma: dtype uint8.*divide by 255"),
        (color.rgb_to_ycbcr, (np.zeros((2, 2, 4), np.float32),), r"\(2, 2, 4\).*3 colours"),
        (
            color.replace_luma,
            (np.zeros((2, 2, 3), np.float32), np.zeros((2, 3, 1), np.float32)),
            r"\(2, 3, 1\).*expected \(2, 2, 1\)",
        ),
        (
            color.replace_luma,
            (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 1), np.float32), "wrap"),
            "'wrap'.*'desaturate' or 'clip'",
        ),
    ],
)
def test_errors_name_the_value_and_the_remedy(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*arguments)
