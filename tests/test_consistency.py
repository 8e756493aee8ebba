"""Agreement of two segmentations: balanced targets, distances, signs of collapse, and the losses
over labels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxfuse.config import SSVIFConfig
from jaxfuse.losses import consistency, segmentation
from jaxfuse.methods import ssvif

CLASSES = 5
AXIS = "data"


def random_logits(seed: int, spread: float = 1.0, shape: tuple[int, ...] = (8, 4, 6)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (spread * rng.normal(size=(*shape, CLASSES))).astype(np.float32)


def sinkhorn(logits: np.ndarray, epsilon: float, rounds: int) -> np.ndarray:
    """The plain algorithm on a matrix, in float64."""
    q = np.exp((logits - logits.max()).astype(np.float64).reshape(-1, CLASSES) / epsilon)
    for _ in range(rounds):
        q /= q.sum(axis=1, keepdims=True)
        q /= q.sum(axis=0, keepdims=True)
    q /= q.sum(axis=1, keepdims=True)
    return q.reshape(logits.shape)


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_balanced_targets_are_those_of_sinkhorn_and_knopp(rounds: int) -> None:
    logits = random_logits(0)
    found = consistency.balanced(jnp.asarray(logits), 0.5, rounds)
    np.testing.assert_allclose(found, sinkhorn(logits, 0.5, rounds), rtol=2e-4, atol=1e-6)


def test_balanced_targets_use_every_class_alike() -> None:
    """Also where the prediction is one class nearly everywhere."""
    logits = random_logits(1, 0.3) + np.array([4.0, 0, 0, 0, 0], np.float32)
    assert softmax(logits, -1).mean((0, 1, 2))[0] > 0.9
    share = np.asarray(consistency.balanced(jnp.asarray(logits), 1.0, 50)).mean((0, 1, 2))
    np.testing.assert_allclose(share, 1 / CLASSES, atol=1e-3)


def on_devices(function, *arrays: np.ndarray):
    """Mean over 8 devices of a function that gets an eighth of the rows and the axis' name."""
    split = [x.reshape(8, len(x) // 8, *x.shape[1:]) for x in arrays]

    def one(*parts):
        return jax.lax.pmean(function(*parts, axis_name=AXIS), AXIS)

    return jax.tree.map(lambda x: x[0], jax.pmap(one, axis_name=AXIS)(*split))


@pytest.mark.parametrize("anchor", ["balanced", "none"])
def test_many_devices_give_the_loss_of_one(anchor: str) -> None:
    config = SSVIFConfig(classes=CLASSES, anchor=anchor)  # type: ignore[arg-type]
    loss = functools.partial(ssvif.cross_loss, config)
    a, b = random_logits(2), random_logits(3)
    one = jax.jit(loss)(a, b)

    def split(a, b, axis_name):
        return loss(a, b, axis_name=axis_name)

    assert float(on_devices(split, a, b)) == pytest.approx(float(one), rel=1e-5)


def test_signs_on_many_devices_are_those_of_one() -> None:
    a, b = random_logits(4), random_logits(5)
    a[:4, ..., 0] += 5.0  # the devices differ in what they see
    one = jax.jit(consistency.signs)(a, b)
    many = on_devices(consistency.signs, a, b)
    for name, value in one.items():
        assert float(many[name]) == pytest.approx(float(value), rel=1e-5), name


def test_signs() -> None:
    flat = np.zeros((1, 2, 2, 4), np.float32)
    sure = np.zeros((1, 2, 2, 4), np.float32)
    sure[..., 1] = 50.0
    different = np.zeros((1, 2, 2, 4), np.float32)
    for pixel in range(4):
        different[0, pixel // 2, pixel % 2, pixel] = 50.0
    found = consistency.signs(jnp.asarray(different), jnp.asarray(different))
    assert {k: round(float(v), 5) for k, v in found.items()} == {
        "classes_in_use": 4.0,
        "classes_told_apart": 4.0,
        "confidence": 1.0,
        "agreement": 1.0,
    }
    found = consistency.signs(jnp.asarray(different), jnp.asarray(sure))  # the worse of the two
    assert float(found["classes_in_use"]) == pytest.approx(1.0, abs=1e-5)
    assert float(found["agreement"]) == pytest.approx(0.25)
    # A map of places, the same in every image, uses all classes and tells nothing apart.
    places = jnp.asarray(np.repeat(different, 3, axis=0))
    found = consistency.signs(places, places)
    assert float(found["classes_in_use"]) == pytest.approx(4.0, rel=1e-5)
    assert float(found["classes_told_apart"]) == pytest.approx(1.0, rel=1e-5)
    turned = jnp.stack([places[0], places[0, ::-1], places[0, :, ::-1], places[0, ::-1, ::-1]])
    found = consistency.signs(turned, turned)
    assert float(found["classes_told_apart"]) == pytest.approx(4.0, rel=1e-5)
    # The same everywhere and unsure.
    found = consistency.signs(jnp.asarray(flat), jnp.asarray(flat))
    assert {k: round(float(v), 5) for k, v in found.items()} == {
        "classes_in_use": 4.0,
        "classes_told_apart": 1.0,
        "confidence": 0.25,
        "agreement": 1.0,
    }


def test_distances() -> None:
    logits, target = jnp.asarray(random_logits(6)), jnp.asarray(softmax(random_logits(7), -1))
    p, entropy = softmax(logits, -1), -(target * jnp.log(target)).sum(-1)
    cross = -(target * log_softmax(logits, -1)).sum(-1)
    found = consistency.distance(logits, target, "cross_entropy")
    np.testing.assert_allclose(found, cross, rtol=1e-5)
    np.testing.assert_allclose(
        consistency.distance(logits, target, "kl"), cross - entropy, atol=1e-5
    )
    cosine = (p * target).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(target, axis=-1)
    np.testing.assert_allclose(
        consistency.distance(logits, target, "cosine"), 1 - cosine, atol=1e-6
    )
    same = consistency.distance(logits, jnp.asarray(p), "kl")
    np.testing.assert_allclose(same, 0.0, atol=1e-5)


def test_sure_pixels_weigh_more_and_none_pulls_on_the_target() -> None:
    logits, other = jnp.asarray(random_logits(8)), jnp.asarray(random_logits(9, 3.0))
    target = jnp.asarray(softmax(other, -1))
    each = np.asarray(consistency.distance(logits, target, "cross_entropy"))
    sure = 1 + np.asarray(target * jnp.log(target)).sum(-1) / np.log(CLASSES)
    weight = 0.1 + 0.9 * sure
    wanted = (weight * each).mean() / weight.mean()
    found = consistency.towards(logits, jnp.asarray(target), "cross_entropy", True)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted - each.mean()) > 0.001

    def loss(a, b):
        return consistency.towards(a, jax.nn.softmax(b, -1), "cross_entropy", True)

    pull, none = jax.grad(loss, argnums=(0, 1))(logits, other)
    assert float(jnp.abs(pull).max()) > 0
    assert float(jnp.abs(none).max()) == 0


def test_a_constant_map_is_a_minimum_only_without_an_anchor() -> None:
    """The solution that "A = B" alone has, and what an anchor makes of it."""
    one = np.zeros((2, 4, 4, CLASSES), np.float32)
    one[..., 2] = 12.0
    one = jnp.asarray(one)
    none = SSVIFConfig(classes=CLASSES, anchor="none", region=1)
    balanced = SSVIFConfig(classes=CLASSES, anchor="balanced", region=1)
    assert float(ssvif.cross_loss(none, one, one)) < 1e-3
    constant = float(ssvif.cross_loss(balanced, one, one))
    spread = 12.0 * np.eye(CLASSES, dtype=np.float32)[np.arange(2 * 4 * 5) % CLASSES]
    spread = jnp.asarray(spread.reshape(2, 4, 5, CLASSES))
    assert float(ssvif.cross_loss(balanced, spread, spread)) < 0.1 < 1.0 < constant


@pytest.mark.parametrize("side", [1, 2, 4, 9])
def test_regions_are_means_over_squares_and_over_what_is_left_of_them(side: int) -> None:
    logits = np.random.default_rng(3).normal(size=(2, 6, 7, 3)).astype(np.float32)
    found = np.asarray(consistency.regions(jnp.asarray(logits), side))
    rows, columns = -(-6 // side), -(-7 // side)
    assert found.shape == (2, rows, columns, 3)
    for i in range(rows):
        for j in range(columns):
            square = logits[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            np.testing.assert_allclose(found[:, i, j], square.mean((1, 2)), atol=1e-6)


def test_with_regions_only_their_means_have_to_agree() -> None:
    rng = np.random.default_rng(4)
    means = 3.0 * rng.normal(size=(2, 2, 2, CLASSES)).astype(np.float32)
    coarse = np.repeat(np.repeat(means, 4, 1), 4, 2)
    fine = rng.normal(size=coarse.shape).astype(np.float32)
    squares = fine.reshape(2, 2, 4, 2, 4, CLASSES)
    fine -= np.broadcast_to(squares.mean((2, 4), keepdims=True), squares.shape).reshape(fine.shape)
    a, b = jnp.asarray(coarse), jnp.asarray(coarse + fine)
    config = SSVIFConfig(classes=CLASSES, anchor="none", region=4)
    same = float(ssvif.cross_loss(config, a, a))
    assert float(ssvif.cross_loss(config, a, b)) == pytest.approx(same, rel=1e-5)
    config = SSVIFConfig(classes=CLASSES, anchor="none", region=1)
    assert float(ssvif.cross_loss(config, a, b)) > same + 1e-2


def test_labels_loss() -> None:
    rng = np.random.default_rng(10)
    logits, labels = random_logits(11), rng.integers(0, CLASSES, (8, 4, 6)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.3] = 255
    labels[5:] = 255  # devices without any label
    counted = labels != 255
    each = -np.take_along_axis(
        log_softmax(logits, -1), np.where(counted, labels, 0)[..., None], -1
    )[..., 0]
    right = (logits.argmax(-1) == labels)[counted].mean()
    loss, accuracy = segmentation.labels_loss(jnp.asarray(logits), jnp.asarray(labels))
    assert float(loss) == pytest.approx(each[counted].mean(), rel=1e-5)
    assert float(accuracy) == pytest.approx(right, rel=1e-5)
    many = on_devices(segmentation.labels_loss, logits, labels)
    assert [float(x) for x in many] == pytest.approx([float(loss), float(accuracy)], rel=1e-5)
    nothing, _ = segmentation.labels_loss(
        jnp.asarray(logits), jnp.full(labels.shape, 255, jnp.int32)
    )
    assert float(nothing) == 0.0


def test_labels_loss_is_taken_at_the_size_of_the_labels() -> None:
    logits = np.zeros((1, 2, 2, 2), np.float32)
    logits[0, :, 1, 1], logits[0, :, 0, 0] = 9.0, 9.0
    labels = np.zeros((1, 8, 8), np.int32)
    labels[:, :, 4:] = 1
    loss, accuracy = segmentation.labels_loss(jnp.asarray(logits), jnp.asarray(labels))
    assert float(accuracy) == 1.0 and 0.005 < float(loss) < 0.3
