"""IoU against sets of pixels counted one by one, and intervals against a slow bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

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
    # Predicted but not there counts as a miss, and there but not predicted too.
    wrong = semantic.confusion(np.array([[2, 0, 1, 0]]), labels, 3)
    np.testing.assert_allclose(semantic.intersection_over_union(wrong), [0.5, 1.0, 0.0])


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


def slow_bootstrap(counts: np.ndarray, other: np.ndarray, draws: int) -> np.ndarray:
    """Differences in mIoU of resampled images and seeds, drawn one index at a time."""
    rng = np.random.default_rng(7)
    seeds, images = counts.shape[:2]
    found = []
    for _ in range(draws):
        chosen = [int(rng.integers(images)) for _ in range(images)]
        trained = [int(rng.integers(seeds)) for _ in range(seeds)]
        means = []
        for each in (counts, other):
            of_seeds = []
            for s in trained:
                total = sum(each[s, i] for i in chosen)
                of_seeds.append(
                    np.mean(
                        [
                            total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k])
                            for k in range(3)
                        ]
                    )
                )
            means.append(np.mean(of_seeds))
        found.append(means[0] - means[1])
    return np.array(found)


def test_intervals_are_those_of_a_slow_bootstrap() -> None:
    counts, other = stack(3, 12, 0.7), stack(3, 12, 0.6, seed=1)
    whole, each = semantic.set_scores(counts, other, resamples=4000)
    slow = slow_bootstrap(counts, other, 2000)
    assert whole.value == pytest.approx(
        np.mean(semantic.set_iou(counts)[1]) - np.mean(semantic.set_iou(other)[1])
    )
    low, high = np.quantile(slow, [0.025, 0.975])
    width = high - low
    assert whole.low == pytest.approx(low, abs=0.1 * width)
    assert whole.high == pytest.approx(high, abs=0.1 * width)
    for kind in range(3):
        gap = np.mean(semantic.set_iou(counts)[0][:, kind]) - np.mean(
            semantic.set_iou(other)[0][:, kind]
        )
        assert each[kind].value == pytest.approx(gap)
        assert each[kind].low < gap < each[kind].high


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    counts = stack(3, 20, 0.7)
    # The other is the same but for one more wrong pixel an image.
    other = counts.copy()
    other[..., 0, 0] -= 1
    other[..., 0, 1] += 1
    alone, _ = semantic.set_scores(counts)
    difference, _ = semantic.set_scores(counts, other)
    assert 0 < difference.low <= difference.value <= difference.high
    assert difference.high - difference.low < 0.2 * (alone.high - alone.low)
    same, _ = semantic.set_scores(counts, counts)
    assert same == (0.0, 0.0, 0.0)


def test_one_image_has_no_interval_and_one_seed_a_narrower_one() -> None:
    single, _ = semantic.set_scores(stack(2, 1, 0.7))
    assert math.isfinite(single.value) and math.isnan(single.low) and math.isnan(single.high)
    counts = stack(3, 10, 0.5)
    one, _ = semantic.set_scores(counts[:1])
    assert one.low < one.value < one.high


def test_intervals_do_not_depend_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = stack(2, 5, 0.7)
    counts[:, :, 2] = 0  # a class that is not in the labels
    counts[:, :, :, 2] = 0
    whole, each = semantic.set_scores(counts, resamples=50)
    assert all(math.isnan(x) for x in each[2]) and not any(map(math.isnan, whole))
    monkeypatch.setattr(semantic, "MOST_BYTES", 1)
    again, _ = semantic.set_scores(counts, resamples=50)
    assert again.value == whole.value and abs(again.low - whole.low) < 0.1


def test_image_scores_are_means_over_seeds() -> None:
    counts = stack(3, 4, 0.7)
    found = semantic.image_scores(counts)
    slow = [np.mean([float(semantic.mean_iou(counts[s, i])) for s in range(3)]) for i in range(4)]
    np.testing.assert_allclose(found, slow)


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
        semantic.set_scores(np.zeros(shape), None if other is None else np.zeros(other))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence 1"):
        semantic.set_scores(stack(1, 2, 0.5), confidence=1)
    with pytest.raises(ValueError, match="resamples 0"):
        semantic.set_scores(stack(1, 2, 0.5), resamples=0)
