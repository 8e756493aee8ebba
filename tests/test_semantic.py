"""IoU against pixels counted one by one, intervals against slow loops, tests against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from jaxfuse.metrics import semantic

CLASSES = 4


def maps(seed: int, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Predictions without class 3 and labels with ignored pixels, int32 (count, 9, 7)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (count, 9, 7)).astype(np.int32)
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, 0).astype(np.int32)
    predicted[predicted == 3] = 1
    labels[rng.random(labels.shape) < 0.2] = 255
    return predicted, labels


def slow_iou(predicted: np.ndarray, labels: np.ndarray, kind: int) -> float:
    """Of sets of pixels, one by one."""
    true = {i for i, x in enumerate(labels.ravel()) if x == kind}
    found = {
        i
        for i, (x, y) in enumerate(zip(predicted.ravel(), labels.ravel(), strict=True))
        if x == kind and y != 255
    }
    return len(true & found) / len(true | found) if true | found else math.nan


def stack(seeds: int, images: int, share: float, seed: int = 0) -> np.ndarray:
    """Confusions (seeds, images, 3, 3) of predictions that are right with this probability."""
    rng = np.random.default_rng(seed)
    found = np.zeros((seeds, images, 3, 3), np.int64)
    for s in range(seeds):
        for i in range(images):
            labels = rng.integers(0, 3, 40)
            predicted = np.where(rng.random(40) < share + 0.05 * s, labels, (labels + 1) % 3)
            found[s, i] = semantic.confusion(predicted, labels, 3)
    return found


def test_confusion_and_iou_are_those_of_sets_of_pixels() -> None:
    predicted, labels = maps(0)
    counts = np.stack(
        [semantic.confusion(p, x, CLASSES) for p, x in zip(predicted, labels, strict=True)]
    )
    assert counts.sum() == (labels != 255).sum()
    for i in range(len(labels)):
        slow = [slow_iou(predicted[i], labels[i], kind) for kind in range(CLASSES)]
        np.testing.assert_allclose(semantic.intersection_over_union(counts[i]), slow)
        assert semantic.mean_iou(counts[i]) == pytest.approx(np.nanmean(slow))
    each, mean = semantic.set_iou(counts[None])
    whole = [slow_iou(predicted, labels, kind) for kind in range(CLASSES)]
    np.testing.assert_allclose(each[0], whole)
    assert mean[0] == pytest.approx(np.mean(whole))


def test_a_class_that_nowhere_occurs_is_in_no_mean() -> None:
    labels = np.array([[0, 0, 1, 255]])
    found = semantic.confusion(np.array([[0, 1, 1, 2]]), labels, 3)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(semantic.intersection_over_union(found), [0.5, 0.5, np.nan])
    assert semantic.mean_iou(found) == 0.5
    assert np.isnan(semantic.mean_iou(np.zeros((3, 3), int)))
    # Predicted but not there costs the class that is there, and makes no class of its own.
    wrong = semantic.confusion(np.array([[2, 0, 1, 0]]), labels, 3)
    np.testing.assert_allclose(semantic.intersection_over_union(wrong), [0.5, 1.0, np.nan])
    assert semantic.mean_iou(wrong) == 0.75
    # There but not predicted is a miss.
    missed = semantic.confusion(np.array([[0, 0, 0, 0]]), labels, 3)
    np.testing.assert_allclose(semantic.intersection_over_union(missed), [2 / 3, 0.0, np.nan])


@pytest.mark.parametrize(
    ("predicted", "labels", "words"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "sizes differ"),
        (np.zeros((2, 2), int), np.full((2, 2), 9), "labels from 9 to 9: there are 3 classes"),
        (np.full((2, 2), -1), np.zeros((2, 2), int), "predictions from -1 to -1"),
    ],
)
def test_what_does_not_fit_is_refused(predicted: np.ndarray, labels: np.ndarray, words: str):
    with pytest.raises(ValueError, match=words):
        semantic.confusion(predicted, labels, 3)


def slow_mean(counts: np.ndarray, chosen: list[int]) -> list[float]:
    """mIoU of each seed over the chosen images, class by class."""
    found = []
    for of_seed in counts:
        total = sum(of_seed[i] for i in chosen)
        found.append(
            float(
                np.mean(
                    [
                        total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k])
                        for k in range(3)
                    ]
                )
            )
        )
    return found


def slow_difference(
    counts: np.ndarray, other: np.ndarray, draws: int
) -> tuple[float, float, float]:
    """Difference in mIoU, its standard error and the degrees of freedom, by loops."""
    rng = np.random.default_rng(7)
    seeds, images = counts.shape[:2]

    def gaps(chosen: list[int]) -> np.ndarray:
        return np.subtract(slow_mean(counts, chosen), slow_mean(other, chosen))

    drawn = [gaps([int(rng.integers(images)) for _ in range(images)]).mean() for _ in range(draws)]
    single = gaps(list(range(images)))
    over_images, over_seeds = np.var(drawn, ddof=1), np.var(single, ddof=1) / seeds
    whole = over_images + over_seeds
    freedom = whole**2 / (over_images**2 / (images - 1) + over_seeds**2 / (seeds - 1))
    return float(single.mean()), float(np.sqrt(whole)), float(freedom)


def test_intervals_and_p_are_those_of_slow_loops() -> None:
    counts, other = stack(3, 12, 0.7), stack(3, 12, 0.6, seed=1)
    whole, each, p = semantic.set_differences(counts, other, resamples=4000)
    value, error, freedom = slow_difference(counts, other, 3000)
    reach = error * stats.t.ppf(0.975, freedom)
    assert whole.value == pytest.approx(value)
    assert whole.low == pytest.approx(value - reach, abs=0.06 * reach)
    assert whole.high == pytest.approx(value + reach, abs=0.06 * reach)
    assert p == pytest.approx(2 * stats.t.cdf(-value / error, freedom), rel=0.3)
    for kind in range(3):
        gap = np.mean(semantic.set_iou(counts)[0][:, kind]) - np.mean(
            semantic.set_iou(other)[0][:, kind]
        )
        assert each[kind].value == pytest.approx(gap)
        assert each[kind].low < gap < each[kind].high


def methods(rng: np.random.Generator, images: int = 40) -> np.ndarray:
    """Confusions (3, images, 2, 2) of three trainings of one method: each training is better or
    worse by a point or two, and images differ more than that.
    """
    hard = np.random.default_rng(5).uniform(0.5, 0.9, images)
    share = np.clip(hard + 0.02 * rng.normal(size=(3, 1)), 0, 1)
    right = rng.binomial(50, np.stack([share, share], -1))
    return np.stack(
        [[right[..., 0], 50 - right[..., 0]], [50 - right[..., 1], right[..., 1]]]
    ).transpose(2, 3, 0, 1)


def test_equal_methods_seldom_seem_to_differ() -> None:
    rng = np.random.default_rng(3)
    p = np.array(
        [semantic.set_differences(methods(rng), methods(rng), resamples=60)[2] for _ in range(400)]
    )
    # 5 % of them are to lie below 0.05: three seeds are few, and 400 draws of it make one point.
    assert 0.01 < np.mean(p < 0.05) < 0.085
    assert 0.3 < np.mean(p < 0.5) < 0.65


def test_p_and_interval_say_the_same() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        found, _, p = semantic.set_differences(methods(rng), methods(rng), resamples=50)
        assert (p < 0.05) == (found.low > 0 or found.high < 0)


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    counts = stack(3, 20, 0.7)
    # The other is the same but for one more wrong pixel an image.
    other = counts.copy()
    other[..., 0, 0] -= 1
    other[..., 0, 1] += 1
    alone, _ = semantic.set_scores(counts)
    difference, _, p = semantic.set_differences(counts, other)
    assert 0 < difference.low <= difference.value <= difference.high and p < 0.01
    assert difference.high - difference.low < 0.2 * (alone.high - alone.low)
    same, _, p = semantic.set_differences(counts, counts)
    assert same == (0.0, 0.0, 0.0) and p == 1.0


def test_one_image_has_no_interval_and_one_seed_that_of_images() -> None:
    single, _ = semantic.set_scores(stack(2, 1, 0.7))
    assert math.isfinite(single.value) and math.isnan(single.low) and math.isnan(single.high)
    *_, p = semantic.set_differences(stack(2, 1, 0.7), stack(2, 1, 0.5))
    assert math.isnan(p)
    counts = stack(3, 10, 0.5)
    one, _ = semantic.set_scores(counts[:1])
    assert one.low < one.value < one.high
    perfect, _ = semantic.set_scores(stack(2, 5, 2.0))
    assert perfect == (1.0, 1.0, 1.0)


def test_what_is_averaged_depends_on_the_labels_alone() -> None:
    # Equal networks but for one pixel, of a class that the labels do not have.
    one = np.zeros((1, 2, 3, 3), np.int64)
    one[:, :, 0, 0] = one[:, :, 1, 1] = 100
    two = one.copy()
    two[0, 0, 0, 0] -= 1
    two[0, 0, 0, 2] += 1
    found, each, _ = semantic.set_differences(one, two)
    assert found.value == pytest.approx(0.5 * (1 - 199 / 200))
    assert math.isnan(each[2].value)


def test_intervals_do_not_depend_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = stack(2, 5, 0.7)
    counts[:, :, 2] = 0  # a class that is not in the labels
    whole, each = semantic.set_scores(counts, resamples=50)
    assert all(math.isnan(x) for x in each[2]) and not any(map(math.isnan, whole))
    monkeypatch.setattr(semantic, "MOST_BYTES", 1)
    again, _ = semantic.set_scores(counts, resamples=50)
    assert again == pytest.approx(whole)


@pytest.mark.parametrize(
    ("shape", "other", "words"),
    [
        ((2, 3, 3), None, "give \\(seeds, images"),
        ((2, 3, 3, 3), (2, 4, 3, 3), "of the same images and seeds"),
        ((2, 0, 3, 3), None, "nothing to score"),
    ],
)
def test_other_shapes_are_refused(shape: tuple, other: tuple | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        if other is None:
            semantic.set_scores(np.zeros(shape))
        else:
            semantic.set_differences(np.zeros(shape), np.zeros(other))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence 1"):
        semantic.set_scores(stack(1, 2, 0.5), confidence=1)
    with pytest.raises(ValueError, match="resamples 1"):
        semantic.set_scores(stack(1, 2, 0.5), resamples=1)
