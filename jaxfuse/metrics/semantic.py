"""Segmentation against labels: confusion, intersection over union, per image and over sets."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

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
    """TP / (TP + FP + FN) of each class, (..., classes); NaN for a class that is neither in the
    labels nor predicted. counts: (..., classes, classes).
    """
    hit = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(-1) + counts.sum(-2) - hit
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur, (...,); NaN where none does."""
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


def _mean(values: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Mean over axis 1 without NaN, (rows, ...); weight: (rows, n), how often each counts."""
    known = ~np.isnan(values)
    if weight is not None:
        known = known * weight.reshape(*weight.shape, *[1] * (values.ndim - 2))
    count = known.sum(1)
    total = (np.where(np.isnan(values), 0.0, values) * known).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def set_iou(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU of each class (seeds, classes) and mIoU (seeds,) of a whole set, from the sum of its
    images' confusions. counts: (seeds, images, classes, classes).
    """
    _check(counts, None)
    total = counts.sum(1)
    return intersection_over_union(total), mean_iou(total)


def set_scores(
    counts: np.ndarray,
    other: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Interval, tuple[Interval, ...]]:
    """mIoU of a set and IoU of each class, means over seeds; or the differences to `other`, paired.

    counts: (seeds, images, classes, classes); other: the same images and seeds of another method.
    A set's IoU is of the sum of its images' confusions. The interval is a percentile bootstrap that
    draws images and seeds with replacement, the same ones for both methods: it covers other test
    images and other trainings alike. It is NaN of one image; of one seed it covers images only.
    """
    _check(counts, other)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: use a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples {resamples}: draw at least one")
    seeds, images, classes = counts.shape[:3]
    flat = [
        x.astype(np.float64).transpose(1, 0, 2, 3).reshape(images, -1)
        for x in ([counts] if other is None else [counts, other])
    ]

    def values(of_images: np.ndarray, of_seeds: np.ndarray) -> np.ndarray:
        """(rows, 1 + classes): mIoU, then each class, for rows of weights."""
        found = []
        for rows in flat:
            summed = (of_images @ rows).reshape(len(of_images), seeds, classes, classes)
            each = np.concatenate(
                [mean_iou(summed)[..., None], intersection_over_union(summed)], axis=-1
            )
            found.append(_mean(each, of_seeds))
        return found[0] if other is None else found[0] - found[1]

    point = values(np.ones((1, images)), np.ones((1, seeds)))[0]
    low = high = np.full_like(point, math.nan)
    if images > 1:
        rng = np.random.default_rng(seed)
        drawn, at_once = [], max(1, MOST_BYTES // (8 * flat[0].shape[1]))
        for first in range(0, resamples, at_once):
            rows = min(at_once, resamples - first)
            weights = [
                rng.multinomial(n, np.full(n, 1.0 / n), rows).astype(np.float64)
                for n in (images, seeds)
            ]
            drawn.append(values(*weights))
        low, high = _quantiles(np.concatenate(drawn), (1 - confidence) / 2)
    found = [Interval(*map(float, x)) for x in zip(point, low, high, strict=True)]
    return found[0], tuple(found[1:])


def _quantiles(drawn: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each column without NaN; NaN of a column that has nothing else."""
    columns = [column[~np.isnan(column)] for column in drawn.T]
    pairs = [
        np.quantile(column, [tail, 1 - tail]) if len(column) else np.full(2, math.nan)
        for column in columns
    ]
    low, high = np.array(pairs).T
    return low, high


def image_scores(counts: np.ndarray) -> np.ndarray:
    """mIoU of each image over the classes in it, mean over seeds, (images,): what a paired test
    compares. counts: (seeds, images, classes, classes).
    """
    _check(counts, None)
    return _mean(mean_iou(counts).T)
