"""Segmentation against labels: confusion, intersection over union, per image and over sets."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxfuse.shapes import IGNORE_LABEL


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by true class (rows) and predicted class (columns), int64 (classes, classes).

    predicted, labels: integers (h, w); label 255 counts in nothing. Raises ValueError for other
    sizes and for labels or predictions outside 0..classes - 1.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"prediction {predicted.shape}, labels {labels.shape}: sizes differ")
    counted = labels != IGNORE_LABEL
    true, found = labels[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for what, values in (("labels", true), ("predictions", found)):
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(
                f"{what} from {values.min()} to {values.max()}: there are {classes} classes"
            )
    counts = np.bincount(classes * true + found, minlength=classes * classes)
    return counts.reshape(classes, classes)


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of each class, (..., classes); NaN for a class that the labels do not
    have. counts: (..., classes, classes).

    A class predicted where the labels do not have it costs the classes that are there. So what is
    averaged depends on the labels alone, and is the same for all that is judged on them.
    """
    hit = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(-1) + counts.sum(-2) - hit
    with np.errstate(invalid="ignore"):
        return np.where(counts.sum(-1) > 0, hit / np.maximum(union, 1), np.nan)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Mean over the classes that the labels have, (...,); NaN where there is none."""
    each = intersection_over_union(counts)
    known = ~np.isnan(each)
    count = known.sum(-1)
    total = np.where(known, each, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class Interval(NamedTuple):
    """An estimate with its confidence interval; NaN where there is none."""

    value: float
    low: float
    high: float


MOST_BYTES = 1 << 26
"""Of resampled confusions held at once."""


def _check(counts: np.ndarray, other: np.ndarray | None) -> None:
    if counts.ndim != 4 or (other is not None and other.shape != counts.shape):
        raise ValueError(
            f"counts {counts.shape}"
            + ("" if other is None else f" and {other.shape}")
            + ": give (seeds, images, classes, classes), of the same images and seeds"
        )
    if 0 in counts.shape:
        raise ValueError(f"counts {counts.shape}: there is nothing to score")


def set_iou(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU of each class (seeds, classes) and mIoU (seeds,) of a whole set, from the sum of its
    images' confusions. counts: (seeds, images, classes, classes).
    """
    _check(counts, None)
    total = counts.sum(1)
    return intersection_over_union(total), mean_iou(total)


class Estimates(NamedTuple):
    """mIoU and then each class's IoU, (1 + classes,); or differences of these."""

    values: np.ndarray
    errors: np.ndarray
    """Standard errors; NaN of one image."""
    freedom: np.ndarray
    """Degrees of freedom of the errors."""

    def intervals(self, confidence: float, least: float) -> tuple[Interval, tuple[Interval, ...]]:
        """Student intervals of the mean and of each class, within least..1."""
        reach = stats.t.ppf((1 + confidence) / 2, self.freedom) * self.errors
        low, high = self.values - reach, self.values + reach
        rows = zip(self.values, np.maximum(low, least), np.minimum(high, 1.0), strict=True)
        first, *rest = (Interval(*map(float, row)) for row in rows)
        return first, tuple(rest)


def _estimates(
    counts: np.ndarray, other: np.ndarray | None, resamples: int, seed: int
) -> Estimates:
    """Variance over images (bootstrap, the same images for all seeds and both methods) plus that
    over seeds (of their means); Satterthwaite's degrees of freedom.
    """
    if resamples < 2:
        raise ValueError(f"resamples {resamples}: draw at least two")
    seeds, images, classes = counts.shape[:3]
    flat = [
        x.astype(np.float64).transpose(1, 0, 2, 3).reshape(images, -1)
        for x in ([counts] if other is None else [counts, other])
    ]

    def of_seeds(weights: np.ndarray) -> np.ndarray:
        """(rows, seeds, 1 + classes) for rows of weights of the images."""
        found = []
        for rows in flat:
            summed = (weights @ rows).reshape(len(weights), seeds, classes, classes)
            found.append(
                np.concatenate(
                    [mean_iou(summed)[..., None], intersection_over_union(summed)], axis=-1
                )
            )
        return found[0] if other is None else found[0] - found[1]

    single = of_seeds(np.ones((1, images)))[0]
    values = single.mean(0)
    if images == 1:
        nothing = np.full_like(values, math.nan)
        return Estimates(values, nothing, nothing)
    draws = np.random.default_rng(seed).multinomial(
        images, np.full(images, 1.0 / images), resamples
    )
    at_once = max(1, MOST_BYTES // (8 * flat[0].shape[1]))
    drawn = np.concatenate(
        [
            of_seeds(draws[first : first + at_once].astype(np.float64)).mean(1)
            for first in range(0, resamples, at_once)
        ]
    )
    over_images = _variance(drawn)
    over_seeds = single.var(0, ddof=1) / seeds if seeds > 1 else np.zeros_like(values)
    whole = over_images + over_seeds
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = over_images**2 / (images - 1) + over_seeds**2 / max(seeds - 1, 1)
        freedom = np.where(parts > 0, whole**2 / parts, images - 1.0)
    return Estimates(values, np.sqrt(whole), freedom)


def _variance(drawn: np.ndarray) -> np.ndarray:
    """Of each column without NaN (draws whose labels lack a class); NaN where fewer than two are
    left.
    """
    known = ~np.isnan(drawn)
    count = known.sum(0)
    mean = np.where(known, drawn, 0.0).sum(0) / np.maximum(count, 1)
    square = np.where(known, (drawn - mean) ** 2, 0.0).sum(0)
    return np.where(count > 1, square / np.maximum(count - 1, 1), math.nan)


def _require(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: use a number between 0 and 1, such as 0.95")


def set_scores(
    counts: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Interval, tuple[Interval, ...]]:
    """mIoU of a set and IoU of each class: means over seeds, with intervals.

    counts: (seeds, images, classes, classes). A set's IoU is of the sum of its images' confusions.
    The interval is Student's, its variance that over images (bootstrap) plus that over seeds: it is
    meant to cover other test images and other trainings alike. NaN of one image; of one seed
    it covers images only.
    """
    _check(counts, None)
    _require(confidence)
    return _estimates(counts, None, resamples, seed).intervals(confidence, 0.0)


def set_differences(
    counts: np.ndarray,
    other: np.ndarray,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Interval, tuple[Interval, ...], float]:
    """`set_scores` of one method less those of another, paired by image and seed, and p.

    counts, other: (seeds, images, classes, classes). p: two-sided, of equal mIoU, by the Student
    distribution of the interval, so that p < 1 - confidence where the interval leaves out 0. NaN of
    one image; 1 where nothing differs.
    """
    _check(counts, other)
    _require(confidence)
    found = _estimates(counts, other, resamples, seed)
    mean, classes = found.intervals(confidence, -1.0)
    value, error, freedom = found.values[0], found.errors[0], found.freedom[0]
    if error == 0:
        return mean, classes, float(value == 0)
    return mean, classes, float(2 * stats.t.sf(abs(value) / error, freedom))
