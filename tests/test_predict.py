"""Fusing arrays: shapes, types, colours, sizes, ways, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfuse
import tiny_network
from jaxfuse import models, weights
from jaxfuse.infer import predict, tiles
from jaxfuse.infer.predict import Fuser, ImageError, fuse, load
from jaxfuse.infer.tiles import fuse_tiles
from jaxfuse.models import Compute, Pass
from jaxfuse.ops import color
from jaxfuse.weights import WeightsError, save_weights

HEIGHT, WIDTH = 13, 17
LEVELS = {"uint8": 255, "uint16": 65535}


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    model = tiny_network.create(Compute())
    return Fuser(tiny_network.NAME, model.init(jax.random.key(0)), {}, model)


def scene(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Colours that stay colours at any luma near their own, and an infrared image."""
    rng = np.random.default_rng(seed)
    rgb = 0.4 + 0.2 * rng.random((height, width, 3), np.float32)
    return rgb, rng.random((height, width), np.float32)


def network_says(fuser: Fuser, luma: np.ndarray, infrared: np.ndarray) -> np.ndarray:
    """The fused luma, straight from the model."""
    images = (jnp.asarray(x, jnp.float32)[None, :, :, None] for x in (luma, infrared))
    return np.asarray(fuser.model.apply(fuser.params, *images).image)[0, :, :, 0]


def stored(image: np.ndarray, dtype: str) -> np.ndarray:
    if dtype in LEVELS:
        return np.rint(image * LEVELS[dtype]).astype(dtype)
    return image.astype(dtype)


# Shapes, types, colours


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16"])
@pytest.mark.parametrize("infrared_dtype", ["uint8", "uint16", "float32"])
def test_levels(fuser, dtype, infrared_dtype):
    rgb, heat = scene()
    visible, infrared = stored(rgb[..., 0], dtype), stored(heat, infrared_dtype)
    fused = fuse(visible, infrared, fuser)
    assert fused.shape == (HEIGHT, WIDTH) and fused.dtype == visible.dtype
    unit = [
        image.astype(np.float32) / np.float32(LEVELS.get(str(image.dtype), 1))
        for image in (visible, infrared)
    ]
    expected = network_says(fuser, *unit)
    if dtype in LEVELS:
        # Rounded, not cut off: half a level at most.
        expected = expected * LEVELS[dtype]
        assert np.abs(fused - expected.astype(np.float64)).max() <= 0.5 + 0.01
        assert np.abs(fused - np.floor(expected)).max() == 1
    else:
        np.testing.assert_allclose(fused, expected, atol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("visible_axes", [(), (1,), (3,), (4,)])
@pytest.mark.parametrize("infrared_axes", [(), (1,), (3,), (4,)])
def test_channels(fuser, visible_axes, infrared_axes):
    rgb, heat = scene()
    alpha = np.linspace(0.0, 1.0, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH, 1)
    visible = {(): rgb[..., 0], (1,): rgb[..., :1], (3,): rgb}.get(visible_axes)
    if visible is None:
        visible = np.concatenate([rgb, alpha], axis=2)
    infrared = np.broadcast_to(heat[..., None], (HEIGHT, WIDTH, max(sum(infrared_axes), 1))).copy()
    if infrared_axes == (4,):
        infrared[..., 3:] = alpha
    if infrared_axes == ():
        infrared = heat
    fused = fuse(visible, infrared, fuser)
    colour = visible_axes in ((3,), (4,))
    assert fused.shape == ((HEIGHT, WIDTH, 3) if colour else (HEIGHT, WIDTH))
    luma = np.asarray(color.luma(rgb))[..., 0] if colour else rgb[..., 0]
    expected = network_says(fuser, luma, heat)
    found = np.asarray(color.luma(fused))[..., 0] if colour else fused
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_colours_are_those_of_the_visible_image(fuser):
    rgb, heat = scene()
    before, after = (
        np.asarray(color.rgb_to_ycbcr(x)) for x in (rgb, fuse(rgb, heat, fuser, method="whole"))
    )
    assert np.abs(after[..., 0] - before[..., 0]).max() > 0.05
    np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=1e-5)


def test_colours_are_put_back_strip_by_strip(fuser, monkeypatch):
    rgb, heat = scene()
    at_once = fuse(rgb, heat, fuser)
    monkeypatch.setattr(predict, "RECOLOUR_PIXELS", 3 * WIDTH + 1)
    np.testing.assert_allclose(fuse(rgb, heat, fuser), at_once, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (31, 33)])
@pytest.mark.parametrize("method", ["auto", "whole", "tiles"])
def test_any_size(fuser, size, method):
    rgb, heat = scene(*size)
    fused = fuse(stored(rgb, "uint8"), heat, fuser, method=method)
    assert fused.shape == (*size, 3) and fused.dtype == np.uint8


@pytest.mark.parametrize("level", [0, 255])
def test_flat_images(fuser, level):
    flat = np.full((8, 9), level, np.uint8)
    for stretch in ("none", "minmax"):
        assert fuse(flat, flat, fuser, stretch=stretch).shape == (8, 9)


def test_the_arguments_are_left_alone(fuser):
    rgb, heat = scene()
    copies = rgb.copy(), heat.copy()
    rgb.setflags(write=False)
    heat.setflags(write=False)
    fuse(rgb[:, ::-1], heat[:, ::-1], fuser, stretch="minmax")
    np.testing.assert_array_equal(rgb, copies[0])
    np.testing.assert_array_equal(heat, copies[1])


def test_stretch(fuser):
    rgb, heat = scene()
    plain = fuse(rgb[..., 0], heat, fuser)
    stretched = fuse(rgb[..., 0], heat, fuser, stretch="minmax")
    assert plain.min() > 0.0 and plain.max() < 1.0
    expected = (plain - plain.min()) / (plain.max() - plain.min())
    np.testing.assert_allclose(stretched, expected, atol=1e-5)
    as_bytes = fuse(stored(rgb[..., 0], "uint8"), heat, fuser, stretch="minmax")
    assert as_bytes.min() == 0 and as_bytes.max() == 255


def test_a_fuser_is_called_like_fuse(fuser):
    rgb, heat = scene()
    np.testing.assert_array_equal(
        fuser(rgb, heat, stretch="minmax"), fuse(rgb, heat, fuser, stretch="minmax")
    )
    assert jaxfuse.fuse is fuse and jaxfuse.load is load
    with pytest.raises(dataclasses.FrozenInstanceError):
        fuser.name = "other"


# Which way


def ways(monkeypatch) -> list[str]:
    """Names of the ways that are taken from now on."""
    taken = []
    for name in ("fuse_strips", "fuse_tiles"):

        def spy(*args, name=name):
            taken.append(name)
            return np.zeros(args[2].shape, np.float32)

        monkeypatch.setattr(predict, name, spy)
    return taken


def test_auto(fuser, monkeypatch):
    taken = ways(monkeypatch)
    exact = dataclasses.replace(fuser.model, passes=(Pass("all", print, dict, (), (), {}, (), 0),))
    exact = dataclasses.replace(fuser, model=exact)
    monkeypatch.setitem(predict.WHOLE_PIXELS, "cpu", HEIGHT * WIDTH)
    rgb, heat = scene()
    fuse(rgb, heat, exact)
    assert taken == []
    rgb, heat = scene(HEIGHT + 1, WIDTH)
    fuse(rgb, heat, fuser)
    assert taken == []
    fuse(rgb, heat, exact)
    assert taken == ["fuse_strips"]
    for method in ("strips", "tiles", "whole"):
        fuse(rgb, heat, exact, method=method)
    assert taken == ["fuse_strips", "fuse_strips", "fuse_tiles"]


def test_strips_of_a_network_that_has_none(fuser):
    with pytest.raises(ImageError, match='"strips": tiny has no exact windows: use "whole"'):
        fuse(*scene(), fuser, method="strips")


@pytest.mark.slow
def test_whole_and_strips_are_one_picture(tmp_path):
    model = models.create("crossfuse", remat="none")
    params = model.init(jax.random.key(0))
    trained = Fuser("crossfuse", params, {}, model)
    rgb, heat = (stored(image, "uint8") for image in scene(24, 20))
    whole, strips = (fuse(rgb, heat, trained, method=way) for way in ("whole", "strips"))
    assert (
        np.abs(whole.astype(int) - strips).max() <= 1
    )  # a value at half a level may go either way
    assert (whole == strips).mean() > 0.999


def test_tiles_are_close_and_show_no_seam(fuser):
    """Only a pixel or two at a tile's edge are wrong in a network without global operations."""
    rgb, heat = scene(70, 90)
    luma = rgb[..., 0]
    whole = network_says(fuser, luma, heat)
    for batch in (1, 3):
        fused = fuse_tiles(fuser.model, fuser.params, luma, heat, tile=32, overlap=16, batch=batch)
        assert fused.shape == luma.shape and fused.dtype == np.float32
        np.testing.assert_allclose(fused, whole, atol=0.01)
        assert np.abs(fused - whole).max() > 0


def test_tiles_compile_once(fuser):
    model = tiny_network.create(Compute())
    for size in ((5, 5), (40, 33), (16, 100), (1, 1)):
        fused = fuse_tiles(
            model, fuser.params, *scene(*size)[1][None].repeat(2, 0), tile=16, overlap=4
        )
        assert fused.shape == size
    assert tiles.compiled(model)._cache_size() == 1


def test_tile_sizes_that_cannot_be(fuser):
    with pytest.raises(ValueError, match=r"overlap = 16 must lie in 0..tile - 1"):
        fuse_tiles(fuser.model, fuser.params, *np.zeros((2, 4, 4), np.float32), tile=16, overlap=16)


# What is refused


@pytest.mark.parametrize(
    ("visible", "infrared", "message"),
    [
        (np.zeros((4, 5)), np.zeros((5, 4)), r"visible is 4 x 5 and infrared 5 x 4 .*register"),
        (np.zeros((4, 5, 2)), np.zeros((4, 5)), r"visible has shape \(4, 5, 2\): give"),
        (np.zeros((1, 4, 5, 3)), np.zeros((4, 5)), r"visible has shape \(1, 4, 5, 3\): give"),
        (np.zeros((0, 5)), np.zeros((0, 5)), r"visible has shape \(0, 5, 1\): give"),
        (np.zeros((4, 5)), np.zeros((4, 5, 2)), r"infrared has shape \(4, 5, 2\): give"),
        (np.zeros((4, 5), int), np.zeros((4, 5)), r"visible has dtype int64: give uint8"),
        (np.zeros((4, 5)), np.zeros((4, 5), bool), r"infrared has dtype bool: give uint8"),
        (np.full((4, 5), np.nan), np.zeros((4, 5)), r"visible holds 20 values that are NaN"),
        (
            np.zeros((4, 5)),
            np.full((4, 5), np.inf),
            r"infrared holds 20 values that are NaN or inf",
        ),
        (np.full((4, 5), 255.0), np.zeros((4, 5)), r"visible spans 255 to 255: .*divide"),
        (np.zeros((4, 5)), np.full((4, 5), -0.1), r"infrared spans -0.1 to -0.1: floats must"),
        (
            np.zeros((4, 5)),
            np.stack([np.zeros((4, 5)), np.ones((4, 5)), np.zeros((4, 5))], axis=2),
            r"infrared has three channels that differ by up to 255 grey levels: a pseudo-colour",
        ),
    ],
)
def test_images_that_cannot_be_fused(fuser, visible, infrared, message):
    with pytest.raises(ImageError, match=message) as error:
        fuse(visible, infrared, fuser)
    assert "\n" not in str(error.value)


def test_rounding_beyond_the_bounds_is_no_error(fuser):
    image = np.array([[-5e-7, 1.0 + 5e-7]])
    assert np.isfinite(fuse(image, image, fuser)).all()


def test_wrong_words(fuser, unchecked):
    with pytest.raises(ImageError, match=r"visible = 'a\.png': give an array; files are read by"):
        fuse("a.png", "b.png", fuser)
    with pytest.raises(ImageError, match=r"method = 'strip': choose one of auto, whole, strips, d"):
        fuse(*scene(), fuser, method="strip")
    with pytest.raises(ImageError, match=r"stretch = 'max': choose one of none, minmax"):
        fuse(*scene(), fuser, stretch="max")


# Weights


@pytest.fixture
def tiny_in_the_table(monkeypatch):
    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
    yield
    predict._model.cache_clear()
    predict._load_cached.cache_clear()


def test_load(fuser, tmp_path, tiny_in_the_table):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_network.NAME, fuser.params, {"step": "7"})
    expected = fuse(*scene(), fuser)
    for source in (path, str(path), tmp_path):
        read = load(source)
        assert read.name == tiny_network.NAME and read.metadata["step"] == "7"
        np.testing.assert_allclose(read(*scene()), expected, atol=1e-6)
        np.testing.assert_allclose(fuse(*scene(), source), expected, atol=1e-6)
    # Two of one network share what is compiled.
    assert load(path).model is load(path).model
    assert load(path, "bfloat16").model is not load(path).model


def test_weights_that_changed_are_read_again(fuser, tmp_path, tiny_in_the_table):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_network.NAME, fuser.params)
    before = fuse(*scene(), path)
    save_weights(path, tiny_network.NAME, jax.tree.map(lambda leaf: 2.0 * leaf, fuser.params))
    os.utime(path, ns=(1, 1))
    assert np.abs(fuse(*scene(), path) - before).max() > 1e-3


def test_default_weights(fuser, tmp_path, monkeypatch, tiny_in_the_table):
    monkeypatch.setattr(weights, "_PRETRAINED", tmp_path / "pretrained")
    # A folder of that name is not what is meant where nothing is named.
    (tmp_path / predict.DEFAULT_WEIGHTS).mkdir()
    monkeypatch.chdir(tmp_path)
    for nothing in (None, ""):
        with pytest.raises(WeightsError, match=r"no such weights in the package .*give a file"):
            load(nothing)
        with pytest.raises(WeightsError, match=r"no such weights in the package .*give a file"):
            fuse(*scene(), nothing)
    file = tmp_path / "pretrained" / f"{predict.DEFAULT_WEIGHTS}.safetensors"
    save_weights(file, tiny_network.NAME, fuser.params)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (file.parent / weights.SUMS).write_text(f"{digest}  {file.name}\n", encoding="utf8")
    np.testing.assert_allclose(fuse(*scene()), fuse(*scene(), fuser), atol=1e-6)
    assert load().name == tiny_network.NAME


def test_fusing_needs_no_training_code(fresh_python):
    """Where pictures are only fused, nothing that trains need be there."""
    ran = fresh_python(
        "-c",
        "import sys; from jaxfuse.infer import folders, predict, strips, tiles; "
        "print(*{m.split('.')[0] for m in sys.modules} & {'orbax', 'grain', 'torch'}, "
        "*{m for m in sys.modules if m.startswith(('jaxfuse.train', 'jaxfuse.methods'))})",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ""


def test_gray_coded_as_a_lossy_colour_picture_is_infrared() -> None:
    """What `read_infrared` takes from a JPEG file is taken from an array too."""
    rng = np.random.default_rng(0)
    gray = rng.integers(20, 200, (8, 9, 1)).repeat(3, -1)
    lossy = gray + np.where(rng.random((8, 9, 1)) < 0.1, [0, 7, -3], 0)
    assert predict._one_channel(lossy.astype(np.float32) / 255).shape == (8, 9, 1)
    coloured = gray + np.array([0, 40, 0])
    with pytest.raises(predict.ImageError, match="differ by up to 40 grey levels"):
        predict._one_channel(coloured.astype(np.float32) / 255)
