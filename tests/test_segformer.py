"""SegFormer against Hugging Face's: states, logits, loss and gradients of a random network."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfuse import models
from jaxfuse.convert import segformer as hugging
from jaxfuse.models import Compute, Segmenter, mit, segformer
from jaxfuse.models.mit import Architecture
from jaxfuse.ops.resize import bilinear
from jaxfuse.shapes import Params

FAST = {"xla_backend_optimization_level": 0}
compiled = functools.partial(jax.jit, compiler_options=FAST)

SMALL = Architecture((8, 8, 12, 16), (1, 2, 1, 1), heads=(1, 2, 3, 4), decoder=8)


def noise(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of the pixels that are not ignored, at the size of the labels."""
    wide = jax.nn.log_softmax(models.resize_logits(logits, *labels.shape[1:]))
    known = labels != 255
    chosen = jnp.take_along_axis(wide, jnp.where(known, labels, 0)[..., None], -1)[..., 0]
    return -jnp.sum(chosen * known) / jnp.sum(known)


class Reference(NamedTuple):
    """The golden file and the same network here."""

    stored: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    params: Params
    segmenter: Segmenter
    image: jax.Array
    found: Any
    """(loss, Segmented), (gradient of the parameters, gradient of the image)."""


@pytest.fixture(scope="module")
def reference(golden: Path) -> Reference:
    with np.load(golden / "segformer_reference.npz") as file:
        stored = {name: file[name] for name in file.files}
    state = {n.removeprefix("param/"): a for n, a in stored.items() if n.startswith("param/")}
    sizes, params = hugging.from_huggingface(state, json.loads(str(stored["config_json"])))
    segmenter = hugging.segmenter(sizes, 9, Compute(depthwise="shift"))
    image = jnp.asarray(stored["input"].transpose(0, 2, 3, 1))

    def loss(params: Params, image: jax.Array) -> Any:
        found = segmenter.network(params, image)
        return losses(found.logits, stored["labels"]), found

    run = compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))
    return Reference(stored, state, params, segmenter, image, run(params, image))


def test_states_and_logits(reference):
    (_, found), _ = reference.found
    for i, state in enumerate(found.states):
        expected = reference.stored[f"hidden/{i}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(state, expected, atol=1e-5, err_msg=str(i))
    assert len(found.states) == 4
    assert found.logits.dtype == jnp.float32
    # Tight enough to tell an eps of 1e-5 in the normalisations from one of 1e-6.
    expected = reference.stored["logits_f64"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found.logits, expected, atol=4e-6)


def test_loss(reference):
    (loss, _), _ = reference.found
    np.testing.assert_allclose(loss, reference.stored["loss_f64"], rtol=1e-6)


def test_gradients(reference):
    """Norms, and sums against stored noise: these also tell a transposed kernel."""
    _, (to_params, to_image) = reference.found
    gradients = hugging.to_huggingface(jax.device_get(to_params))
    named = {n.removeprefix("grad_norm_f64/") for n in reference.stored if "grad_norm_f64/" in n}
    assert named and named < gradients.keys()
    for name in sorted(named):
        gradient = gradients[name].astype(np.float64)
        norm = reference.stored[f"grad_norm_f64/{name}"]
        np.testing.assert_allclose(np.linalg.norm(gradient), norm, 1e-4, 1e-8, err_msg=name)
        weights = np.random.RandomState(0).standard_normal(gradient.shape)
        projected = reference.stored[f"grad_proj_f64/{name}"]
        found = np.sum(gradient * weights)
        np.testing.assert_allclose(found, projected, atol=1e-4 * norm + 1e-8, err_msg=name)
    expected = reference.stored["input_grad"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(to_image, expected, atol=1e-5 * np.abs(expected).max())


def test_statistics_are_constants(reference):
    """Their gradient is zero to the bit, so a step of Adam leaves them; decay needs the mask."""
    _, (gradient, _) = reference.found
    learned = models.trainable(reference.params)
    assert jax.tree.structure(learned) == jax.tree.structure(reference.params)
    norm = gradient["head"]["norm"]
    assert not np.any(norm["mean"]) and not np.any(norm["var"])
    assert np.all(norm["weight"]) and np.all(norm["bias"])
    assert learned["head"]["norm"] == {"weight": True, "bias": True, "mean": False, "var": False}
    assert jax.tree.leaves(learned).count(False) == 2
    head, slopes = ({"norm": tree["head"]["norm"]} for tree in (reference.params, gradient))
    for tx in (optax.adam(0.1), optax.adamw(0.1, weight_decay=0.1, mask=models.trainable)):
        updates, _ = tx.update(slopes, tx.init(head), head)
        moved = optax.apply_updates(head, updates)
        for name, value in head["norm"].items():
            assert np.array_equal(moved["norm"][name], value) == (name in ("mean", "var"))


def oracle(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resizing pixel by pixel, in float64."""
    b, h, w, c = x.shape
    result = np.zeros((b, height, width, c))
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * h / height - 0.5, 0.0)
            z = max((j + 0.5) * w / width - 0.5, 0.0)
            for row, of_row in ((int(y), 1 - y % 1), (min(int(y) + 1, h - 1), y % 1)):
                for column, of_column in ((int(z), 1 - z % 1), (min(int(z) + 1, w - 1), z % 1)):
                    result[:, i, j] += of_row * of_column * x[:, row, column]
    return result


@pytest.mark.parametrize(
    ("before", "after"),
    [((3, 4), (12, 16)), ((9, 12), (33, 47)), ((1, 1), (3, 2)), ((7, 5), (3, 4)), ((2, 6), (2, 5))],
)
def test_resize(before, after):
    x = noise(2, *before, 3)
    np.testing.assert_allclose(bilinear(x, *after), oracle(x, *after), atol=1e-6)
    np.testing.assert_array_equal(bilinear(x, *before), x)
    narrow = models.resize_logits(x.astype(jnp.bfloat16), *after)
    assert narrow.dtype == jnp.float32 and narrow.shape == (2, *after, 3)


def test_resize_as_torch():
    torch = pytest.importorskip("torch")
    x = noise(2, 9, 12, 3)
    for size in ((33, 47), (36, 48), (5, 4), (1, 30)):
        maps = torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))
        expected = torch.nn.functional.interpolate(
            maps, size=size, mode="bilinear", align_corners=False
        )
        found = bilinear(x, *size)
        np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), atol=3e-6)


def test_resize_to_nothing(unchecked):
    with pytest.raises(ValueError, match="map of 0x4"):
        bilinear(jnp.zeros((1, 2, 2, 1)), 0, 4)


@pytest.fixture(scope="module")
def small() -> tuple[Segmenter, Params]:
    segmenter = segformer.create("small", SMALL, 3, Compute(depthwise="shift"))
    return segmenter, segmenter.init(jax.random.key(0))


def test_images_are_normalised(small):
    segmenter, params = small
    image = np.array(noise(1, 32, 40, 3))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normal = jnp.asarray(((image - mean) / deviation).astype(np.float32))
    apply = compiled(segmenter.apply)
    expected = compiled(segmenter.network)(params, normal).logits
    np.testing.assert_allclose(apply(params, jnp.asarray(image)), expected, atol=1e-5)
    gray = jnp.asarray(image[..., :1])
    expected = apply(params, gray.repeat(3, -1))
    np.testing.assert_allclose(apply(params, gray), expected, atol=1e-6)


@pytest.mark.slow
def test_depthwise_and_rematerialisation_change_nothing(small):
    segmenter, params = small
    image = noise(1, 32, 40, 3)

    def slopes(segmenter: Segmenter) -> Params:
        return compiled(jax.grad(lambda p: jnp.sum(jnp.sin(segmenter.apply(p, image)))))(params)

    expected = slopes(segmenter)
    found = slopes(segformer.create("small", SMALL, 3, Compute(depthwise="lax", remat="blocks")))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max()))


def test_smallest(small):
    segmenter, params = small
    assert segmenter.smallest == 29
    found = jax.eval_shape(segmenter.apply, params, jnp.zeros((1, 29, 29, 3)))
    assert found.shape == (1, 8, 8, 3)
    for size in ((28, 64), (64, 28)):
        with pytest.raises(ValueError, match=f"small: the image is {size[1]}x{size[0]}.* 29 pixel"):
            segmenter.apply(params, jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("shape", [(1, 32, 32, 4), (1, 32, 32, 2), (32, 32, 3)])
def test_wrong_shapes(small, unchecked, shape):
    segmenter, params = small
    for function in (segmenter.apply, segmenter.network):
        with pytest.raises(ValueError, match=r"small: the image has shape \(.*height, width, 3\)"):
            function(params, jnp.zeros(shape))


@pytest.mark.parametrize("classes", [0, 1, 256])
def test_wrong_class_counts(classes):
    with pytest.raises(ValueError, match=f"segformer_b0: {classes} classes: needs 2 to 255"):
        models.create_segmenter("segformer_b0", classes)
    with pytest.raises(ValueError, match=f"light head: {classes} classes"):
        models.light_head(8, classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (8, 8, 12)}, "widths = .*needs 4 whole numbers"),
        ({"depths": (1, 0, 1, 1)}, "depths = .*needs 4 whole numbers from 1"),
        ({"heads": (1, 3, 3, 4)}, "8 channels and 3 heads in stage 1"),
        ({"decoder": 0}, "decoder = 0"),
    ],
)
def test_impossible_sizes(unchecked, change, message):
    sizes = {"widths": (8, 8, 12, 16), "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 4)}
    with pytest.raises(ValueError, match=message):
        mit.Architecture(**{**sizes, **change})


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"'segformer_b6'.*segformer_b0, .*segformer_tiny"):
        models.create_segmenter("segformer_b6", 9)


PUBLISHED = {
    "segformer_b0": (3.4, 0.4),
    "segformer_b1": (13.1, 0.6),
    "segformer_b2": (24.2, 3.3),
    "segformer_b3": (44.0, 3.3),
    "segformer_b4": (60.8, 3.3),
    "segformer_b5": (81.4, 3.3),
}
"""Millions of parameters of encoder and head, table 1a of the paper, on 150 classes."""


def counted(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    params = jax.eval_shape(models.create_segmenter(name, 150).init, jax.random.key(0))
    encoder, head = (counted(params[part]) / 1e6 for part in ("encoder", "head"))
    assert (round(encoder, 1), round(head, 1)) == pytest.approx(PUBLISHED[name], abs=0.11)
    if name == "segformer_b0":
        # What the published checkpoint on ADE20K counts, and the two statistics it does not.
        assert counted(params) == 3_752_694 + 2 * 256


@pytest.mark.slow
def test_the_tiny_network_learns():
    """Fresh statistics are no statistics: the network must learn without. Two classes, told apart
    by colour and by texture.
    """
    segmenter = models.create_segmenter("segformer_tiny", 2, depthwise="shift")
    params = segmenter.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 32, 32), np.int32)
    for label, (row, column) in zip(labels, rng.integers(0, 20, (2, 2)), strict=True):
        label[row : row + 12, column : column + 12] = 1
    image = rng.random((2, 32, 32, 3), np.float32) * (0.3 + 0.7 * labels[..., None])
    image = jnp.asarray(image, jnp.float32)
    tx = optax.adam(3e-3)

    @compiled
    def step(params: Params, state: Any) -> tuple[Params, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(lambda p: losses(segmenter.apply(p, image), labels))(
            params
        )
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, seen = tx.init(params), []
    for _ in range(50):
        params, state, loss = step(params, state)
        seen.append(float(loss))
    assert seen[0] < 1.0
    assert seen[-1] < 0.1 * seen[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_light_head(dtype):
    head = models.light_head(5, 3, dtype)
    assert (head.channels, head.classes) == (5, 3)
    params = head.init(jax.random.key(0))
    for size in ((1, 1), (5, 6), (32, 47)):
        shape = jax.ShapeDtypeStruct((2, *size, 5), dtype)
        logits = jax.eval_shape(head.apply, params, shape)
        assert logits.dtype == jnp.float32
        assert logits.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 3)
    features = noise(2, 9, 14, 5)
    run = compiled(
        jax.value_and_grad(lambda p, f: jnp.sum(jnp.sin(head.apply(p, f))), argnums=(0, 1))
    )
    value, slopes = run(params, features)
    for leaf in jax.tree.leaves(slopes):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all() and np.any(leaf)
    # The same for features of any scale.
    np.testing.assert_allclose(run(params, 8 * features)[0], value, rtol=1e-2)


def test_the_light_head_on_a_tpu_is_the_same_with_a_barrier() -> None:
    """Without the barrier the compiler for v6e crashes."""
    head = models.light_head(5, 3)
    params = head.init(jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (2, 16, 16, 5))

    def loss(params, x):
        return jnp.sum(jnp.sin(head.apply(params, x)))

    usual = jax.make_jaxpr(loss)(params, x)
    expected = jax.grad(loss, argnums=(0, 1))(params, x)
    with models.traced_for("tpu"):
        assert "optimization_barrier" in str(jax.make_jaxpr(lambda p, x: loss(p, x))(params, x))
        found = jax.grad(lambda p, x: loss(p, x), argnums=(0, 1))(params, x)
    assert "optimization_barrier" not in str(usual)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_light_head_is_centred_on_every_fourth_pixel():
    """As the patch embedding of the other network is: their logits belong to the same places."""
    head = models.light_head(1, 3)
    params = head.init(jax.random.key(0))
    slopes = jax.grad(lambda f: jnp.sum(head.apply(params, f)[0, 2, 3]))(noise(1, 24, 28, 1))
    rows, columns = np.nonzero(np.asarray(slopes)[0, :, :, 0])
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (2 * 8, 2 * 12)


def test_light_head_on_other_features(unchecked):
    with pytest.raises(ValueError, match="light head: 0 channels"):
        models.light_head(0, 3)
    head = models.light_head(5, 3)
    for shape in ((1, 8, 8, 6), (8, 8, 5)):
        with pytest.raises(ValueError, match=r"light head: the features have shape .*width, 5\)"):
            head.apply(head.init(jax.random.key(0)), jnp.zeros(shape))
