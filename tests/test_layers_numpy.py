"""Every layer and block against a float64 NumPy version written from the published description.

The oracles keep the published form (unfused convolutions, heads one by one, channels where they
are); the layers compute the same in a faster one. Derivatives are checked against central
differences of the oracle, which in float64 are good to eight digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxfuse.models import crossfuse, layers
from jaxfuse.models.base import functional
from jaxfuse.models.layers import Compute

SHIFT, LAX = Compute(remat="none", depthwise="shift"), Compute(remat="none", depthwise="lax")
NATIVE = Compute(remat="none", kernels="native")
SIZES = [(5, 7), (1, 1), (1, 4), (3, 2)]
CHANNELS = crossfuse.CHANNELS
FAST = {"xla_backend_optimization_level": 0}
"""Compiles in half the time; the arithmetic is the same."""

VALUE = 3e-6
"""Largest error of a value, relative to the largest value."""
SLOPE = 1e-5
"""Largest error of a derivative along a random direction, relative to the gradient's length."""

Tree = dict[str, Any]


@pytest.fixture(params=[SHIFT, NATIVE], ids=["xla", "native"])
def compute(request) -> Compute:
    """Both ways that a processor goes."""
    if request.param is NATIVE:
        request.getfixturevalue("cxx")
    return request.param


def random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)


def double(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def compiled(function: Callable) -> Callable:
    return jax.jit(function, compiler_options=FAST)


def module(build: Callable, seed: int = 0) -> tuple[Tree, Callable]:
    """Random parameters of a module, factors near 1, and the function that binds them."""
    init, bind = functional(build())
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        noise = rng.normal(0.0, 0.7 * fan_in**-0.5 if leaf.ndim > 1 else 0.3, leaf.shape)
        return (noise + (name in ("weight", "temperature"))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes), bind


# The oracles: float64, channels last, one image at a time or a batch.


def conv(x: np.ndarray, kernel: np.ndarray, groups: int = 1, pad: str = "constant") -> np.ndarray:
    """Correlation with kernel (height, width, in / groups, out), same size."""
    b, h, w, c = x.shape
    rows, columns = kernel.shape[:2]
    widths = ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0))
    padded = np.pad(x, widths, mode=pad).reshape(b, h + rows - 1, w + columns - 1, groups, -1)
    out = np.zeros((b, h, w, groups, kernel.shape[-1] // groups))
    for i in range(rows):
        for j in range(columns):
            taps = kernel[i, j].reshape(c // groups, groups, -1)
            out += np.einsum("bhwgi,igo->bhwgo", padded[:, i : i + h, j : j + w], taps)
    return out.reshape(b, h, w, -1)


def point(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return conv(x, kernel[None, None])


def depthwise(x: np.ndarray, kernel: np.ndarray, pad: str = "constant") -> np.ndarray:
    return conv(x, kernel[:, :, None, :], groups=x.shape[-1], pad=pad)


def layer_norm(x: np.ndarray, p: Tree) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p["weight"] + p["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1.0 + special.erf(x / np.sqrt(2.0)))


def attention(x: np.ndarray, p: Tree, dense: bool) -> np.ndarray:
    expanded = point(x, p["expand"])
    qkv = conv(expanded, p["spatial"]) if dense else depthwise(expanded, p["spatial"])
    b, h, w, _ = x.shape
    q, k, v = (part.reshape(b, h * w, 8, 8) for part in np.split(qkv, 3, axis=-1))
    out = np.zeros((b, h * w, 8, 8))
    for image in range(b):
        for head in range(8):
            queries, keys = q[image, :, head], k[image, :, head]
            queries = queries / np.maximum(np.linalg.norm(queries, axis=0), 1e-12)
            keys = keys / np.maximum(np.linalg.norm(keys, axis=0), 1e-12)
            logits = queries.T @ keys * p["temperature"][head]
            out[image, :, head] = v[image, :, head] @ special.softmax(logits, axis=1).T
    return point(out.reshape(b, h, w, CHANNELS), p["project"])


def gated(x: np.ndarray, p: Tree, groups: int) -> np.ndarray:
    """The feed-forwards of both blocks, which differ in the groups of their 3x3."""
    kernel = p["spatial"][:, :, None] if p["spatial"].ndim == 3 else p["spatial"]
    gate, value = np.split(conv(point(x, p["expand"]), kernel, groups), 2, axis=-1)
    return point(gelu(gate) * value, p["project"])


def block(x: np.ndarray, p: Tree, long_scale: bool) -> np.ndarray:
    x = x + attention(layer_norm(x, p["norm1"]), p["attention"], long_scale)
    return x + gated(layer_norm(x, p["norm2"]), p["feed_forward"], 64 if long_scale else 256)


def bottleneck(x: np.ndarray, p: Tree) -> np.ndarray:
    y = np.clip(point(x, p["expand"]), 0.0, 6.0)
    return point(np.clip(depthwise(y, p["spatial"], "reflect"), 0.0, 6.0), p["project"])


def node(x: np.ndarray, p: Tree) -> np.ndarray:
    z1, z2 = np.split(point(x, p["mix"]) + p["mix_bias"], 2, axis=-1)
    z2 = z2 + bottleneck(z1, p["phi"])
    z1 = z1 * np.exp(bottleneck(z2, p["rho"])) + bottleneck(z2, p["eta"])
    return np.concatenate([z1, z2], axis=-1)


def assert_agrees(layer: Callable, oracle: Callable, *arguments: Any, slopes: bool = True) -> None:
    """Values, and with `slopes` the derivative along a random direction of each argument."""
    expected = oracle(*double(arguments))
    weights = random(9, *expected.shape)

    def weighted(arguments: tuple) -> tuple[jax.Array, jax.Array]:
        result = layer(*arguments)
        return jnp.sum(result * weights), result

    if not slopes:
        _, result = compiled(weighted)(arguments)
    else:
        (_, result), gradients = compiled(jax.value_and_grad(weighted, has_aux=True))(arguments)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=VALUE * np.abs(expected).max())
    if not slopes:
        return
    leaves, structure = jax.tree.flatten(double(arguments))
    for i, gradient in enumerate(jax.tree.leaves(double(gradients))):
        direction = random(10 + i, *gradient.shape).astype(np.float64)

        def along(step: float, i: int = i, direction: np.ndarray = direction) -> float:
            moved = [*leaves[:i], leaves[i] + step * direction, *leaves[i + 1 :]]
            return float(np.sum(oracle(*jax.tree.unflatten(structure, moved)) * weights))

        slope = (along(1e-6) - along(-1e-6)) / 2e-6
        error = abs(np.sum(gradient * direction) - slope)
        assert error <= SLOPE * np.linalg.norm(gradient), f"argument {i}, {gradient.shape}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reflect", [False, True])
def test_depthwise_by_shifts(size, reflect):
    assert_agrees(
        lambda x, k: layers.depthwise3x3(x, k, SHIFT, reflect),
        lambda x, k: depthwise(x, k, "reflect" if reflect else "constant"),
        random(0, 2, *size, 3),
        random(1, 3, 3, 3),
    )


@pytest.mark.parametrize("reflect", [False, True])
def test_depthwise_by_grouped_convolution(reflect):
    assert_agrees(
        lambda x, k: layers.depthwise3x3(x, k, LAX, reflect),
        lambda x, k: depthwise(x, k, "reflect" if reflect else "constant"),
        random(0, 2, 3, 4, 3),
        random(1, 3, 3, 3),
    )


def test_dense_convolutions():
    x, kernel = random(0, 2, 5, 4, 3), random(1, 3, 3, 3, 6)
    assert_agrees(layers.conv3x3, conv, x, kernel)
    assert_agrees(layers.conv1x1, point, x, kernel[0, 0])


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [((2, 9, 7), "float32", 1e-5), ((1, 1, 5), "float32", 1e-5), ((2, 8, 8), "bfloat16", 0.02)],
)
def test_the_kernel_gradient_is_the_same_in_bands(shape, dtype, tolerance, monkeypatch):
    """Several bands, the last one filled up with rows of nothing."""
    monkeypatch.setattr(layers, "BAND_PIXELS", 2 * shape[0] * shape[2])
    x, pull = (jnp.asarray(random(i, *shape, c), dtype) for i, c in ((0, 16), (1, 24)))
    kernel = jnp.asarray(random(2, 3, 3, 16, 24), dtype)
    value, back = jax.vjp(layers.conv3x3, x, kernel)
    plain, plain_back = jax.vjp(layers.plain3x3, x, kernel)
    np.testing.assert_array_equal(value, plain)
    for ours, derived in zip(back(pull), plain_back(pull), strict=True):
        assert ours.dtype == derived.dtype == dtype
        ours, derived = np.asarray(ours, np.float64), np.asarray(derived, np.float64)
        np.testing.assert_allclose(ours, derived, rtol=0, atol=tolerance * np.abs(derived).max())


def test_products_and_squares():
    def both(x: np.ndarray) -> np.ndarray:
        products = np.einsum("bnc,bnd->bcd", x[..., :3], x[..., 3:])
        return np.concatenate([products.reshape(2, -1), np.square(x).sum(1)], axis=1)

    def ours(x: jax.Array) -> jax.Array:
        products, squares = layers.products_and_squares(x)
        return jnp.concatenate([products.reshape(2, -1), squares], axis=1)

    assert_agrees(ours, both, random(0, 2, 7, 6))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 17])
def test_depthwise_kernel_gradient_of_any_width(width):
    """Columns are added up eight at a time."""
    x, kernel = random(0, 2, 3, width, 4), random(1, 3, 3, 4)
    assert_agrees(lambda *a: layers.depthwise3x3(*a), depthwise, x, kernel)


@pytest.mark.parametrize(
    "wrong", [{"depthwise": "shfit"}, {"remat": "block"}, {"dtype": "float8"}, {"kernels": "C"}]
)
def test_a_wrong_way_of_computing_is_named(wrong, unchecked):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"{name} = '{value}': choose one of "):
        Compute(**wrong)


@pytest.mark.parametrize("size", SIZES)
def test_padding(size):
    x = jnp.asarray(random(0, 2, *size, 3))
    widths = ((0, 0), (1, 1), (1, 1), (0, 0))
    np.testing.assert_array_equal(layers.reflect1(x), np.pad(x, widths, mode="reflect"))
    np.testing.assert_array_equal(layers.zero1(x), np.pad(x, widths))


def test_layer_norm():
    p, bind = module(lambda: layers.LayerNorm(16))
    x = 3.0 + random(0, 2, 3, 4, 16, scale=2.0)
    assert_agrees(lambda p, x: bind(p)(x), lambda p, x: layer_norm(x, p), p, x)
    flat = jnp.full((1, 2, 2, 16), 0.7)
    np.testing.assert_allclose(bind(p)(flat)[0, 0, 0], p["bias"], atol=1e-4)


def test_gated_gelu():
    gate, value = random(0, 1, 4, 5, 6, scale=3.0), random(1, 1, 4, 5, 6)
    assert_agrees(layers.gated_gelu, lambda a, b: gelu(a) * b, gate, value)


def test_relu6():
    x = random(0, 1, 4, 5, 6, scale=6.0)
    assert_agrees(layers.relu6, lambda x: np.clip(x, 0.0, 6.0), x)
    kinks = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0]).reshape(1, 1, 1, 5)
    slopes = jax.grad(lambda x: layers.relu6(x).sum())(kinks)
    np.testing.assert_array_equal(slopes.ravel(), [0.0, 0.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("function", [layers.relu6, lambda x: layers.gated_gelu(x, x)])
def test_derivatives_keep_bfloat16(function):
    x = jnp.asarray(random(0, 1, 2, 3, 4), jnp.bfloat16)
    value, back = jax.vjp(function, x)
    assert value.dtype == jnp.bfloat16
    assert back(value)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("dense", [False, True], ids=["depthwise", "dense"])
def test_channel_attention(dense):
    p, bind = module(lambda: crossfuse.ChannelAttention(dense, SHIFT))

    def run(p, x):
        layer = bind(p)
        return layer.finish(x, layer.sums(x))

    x = random(0, 2, 3, 5, CHANNELS)
    assert_agrees(run, lambda p, x: attention(x, p, dense), p, x)


def test_attention_of_nothing_is_finite():
    """Queries and keys of length 0 are divided by the published floor, 1e-12."""
    p, bind = module(lambda: crossfuse.ChannelAttention(False, SHIFT))

    def run(p, x):
        layer = bind(p)
        return jnp.sum(layer.finish(x, layer.sums(x)))

    zeros = np.zeros((1, 2, 3, CHANNELS), np.float32)
    value, gradients = compiled(jax.value_and_grad(run, argnums=(0, 1)))(p, zeros)
    assert value == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_sums_of_windows_add_up():
    p, bind = module(lambda: crossfuse.ChannelAttention(False, SHIFT))
    x = random(0, 2, 6, 5, CHANNELS)
    run = compiled(lambda p, x, mask: bind(p).sums(x, mask))
    sums = functools.partial(run, p)
    upper = np.zeros((6, 5), np.float32)
    upper[:2] = 1.0
    whole, above, below = (sums(x, mask) for mask in (np.ones_like(upper), upper, 1.0 - upper))
    for total, first, second in zip(whole, above, below, strict=True):
        assert np.abs(first).max() > 0
        np.testing.assert_allclose(first + second, total, rtol=1e-4, atol=1e-4)
    # A window of rows 0 to 2, of which 2 is halo, knows all of rows 0 and 1.
    window = sums(x[:, :3], upper[:3])
    for part, first in zip(window, above, strict=True):
        np.testing.assert_allclose(part, first, rtol=1e-5, atol=1e-5)


def test_gated_feed_forward():
    p, bind = module(lambda: crossfuse.GatedFeedForward(2 * CHANNELS, SHIFT))
    x = random(0, 2, 3, 4, CHANNELS)
    assert_agrees(lambda p, x: bind(p)(x), lambda p, x: gated(x, p, 256), p, x)


def test_paired_feed_forward():
    p, bind = module(lambda: crossfuse.PairedFeedForward(SHIFT))
    x = random(0, 2, 3, 4, CHANNELS)
    assert_agrees(lambda p, x: bind(p)(x), lambda p, x: gated(x, p, 64), p, x)


@pytest.mark.parametrize("long_scale", [False, True], ids=["restormer", "long-scale"])
def test_block(long_scale, compute):
    p, bind = module(lambda: crossfuse.Block(long_scale, compute))
    x = random(0, 1, 4, 3, CHANNELS)
    assert_agrees(lambda p, x: bind(p)(x), lambda p, x: block(x, p, long_scale), p, x, slopes=False)


def test_coupling_node(compute):
    p, bind = module(lambda: crossfuse.CouplingNode(compute))
    x = random(0, 2, 3, 4, CHANNELS)
    assert_agrees(lambda p, x: bind(p)(x), lambda p, x: node(x, p), p, x)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_chain(remat):
    compute = Compute(remat=remat, depthwise="shift")
    p, bind = module(
        lambda: crossfuse.Chain([crossfuse.CouplingNode(compute) for _ in range(2)], compute)
    )
    x = random(0, 1, 3, 4, CHANNELS)
    assert_agrees(lambda p, x: bind(p)(x), lambda p, x: node(node(x, p["at0"]), p["at1"]), p, x)


def network(visible: np.ndarray, infrared: np.ndarray, p: Tree) -> dict[str, np.ndarray]:
    """All of CrossFuse."""

    def encode(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = conv(image, p["encoder"]["embed"])
        for i in range(4):
            x = block(x, p["encoder"]["blocks"][f"at{i}"], False)
        low, high = block(x, p["encoder"]["low"], True), x
        for i in range(3):
            high = node(high, p["encoder"]["high"][f"at{i}"])
        return low, high

    (low_visible, high_visible), (low_infrared, high_infrared) = encode(visible), encode(infrared)
    low = block(low_visible + low_infrared, p["fuse_low"], True)
    high = node(high_visible + high_infrared, p["fuse_high"]["at0"])
    x = point(np.concatenate([low, high], axis=-1), p["decoder"]["reduce"])
    for i in range(4):
        x = block(x, p["decoder"]["blocks"][f"at{i}"], False)
    y = conv(x, p["decoder"]["narrow"])
    y = conv(np.where(y > 0, y, 0.01 * y), p["decoder"]["output"])
    return {
        "image": special.expit(y + visible),
        "features": x,
        "low_visible": low_visible,
        "low_infrared": low_infrared,
        "high_visible": high_visible,
        "high_infrared": high_infrared,
        "low": low,
        "high": high,
    }


def test_whole_network(compute):
    p, bind = module(lambda: crossfuse.CrossFuse(compute))
    visible, infrared = (np.random.default_rng(i).random((2, 4, 3, 1)) for i in range(2))
    expected = network(visible, infrared, double(p))
    fused = compiled(lambda p, *images: bind(p)(*images))(
        p, visible.astype(np.float32), infrared.astype(np.float32)
    )
    assert set(fused.parts) | {"image", "features"} == set(expected)
    for name, array in {"image": fused.image, "features": fused.features, **fused.parts}.items():
        error = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert error < 5e-6, name


@pytest.mark.parametrize("depthwise", ["shift", "lax"])
def test_the_depthwise_setting_picks_the_formulation(depthwise):
    """Both give the same numbers, so what is compiled has to tell them apart."""
    compute = Compute(depthwise=depthwise)
    text = str(
        jax.make_jaxpr(lambda x, k: layers.depthwise3x3(x, k, compute))(
            np.zeros((1, 4, 4, 3), np.float32), np.zeros((3, 3, 3), np.float32)
        )
    )
    assert ("conv_general_dilated" in text) == (depthwise == "lax")
