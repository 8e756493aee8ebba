"""From values of single images to statements about methods: means, intervals, tests, ranks.

Values are NumPy float64 arrays. NaN (undefined) and infinite values (a PSNR without error) are left
out of every figure and counted in it: a mean says of how many images it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxfuse.metrics.table import Direction

EXACT = 50
"""Up to this many differences without ties or zeros, the test's p is exact."""
CHUNK = 1 << 22
"""Numbers drawn at once for the bootstrap."""


class Summary(NamedTuple):
    """Mean of a metric over images with a bootstrap confidence interval."""

    mean: float
    low: float
    high: float
    count: int
    """Images with a finite value; the mean is of these."""
    undefined: int
    """Images whose value is NaN."""
    infinite: int


class Wilcoxon(NamedTuple):
    """Paired signed-rank test of a method against the reference."""

    statistic: float
    """The smaller of the two sums of ranks."""
    p: float
    """Two-sided; NaN without a pair."""
    adjusted: float
    """After Holm's correction over all tests made together."""
    median: float
    """Of the differences, method minus reference."""
    count: int
    """Pairs of finite values."""
    zeros: int
    """Pairs without a difference, which the test leaves out."""


def _values(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what}: values of shape {array.shape}: give one number per image")
    return array


def _normal_quantile(p: np.ndarray) -> np.ndarray:
    """Inverse of the normal distribution, by bisection; p in (0, 1)."""
    low, high = np.full_like(p, -40.0), np.full_like(p, 40.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = _normal(middle) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _normal(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in np.atleast_1d(x)])


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n, means = len(values), []
    while (left := resamples - sum(map(len, means))) > 0:
        rows = min(left, max(1, CHUNK // n))
        means.append(values[rng.integers(0, n, (rows, n))].mean(axis=1))
    return np.concatenate(means)


def summarise(
    values: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "bca",
) -> Summary:
    """Mean over images and an interval that covers the true mean with the given confidence.

    method: "percentile", or "bca", which also corrects bias and skewness (Efron, 1987). Both draw
    images with replacement, `resamples` times, from `seed`. One image has no interval: NaN.
    """
    array = _values(values, "summarise")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: use a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples {resamples}: draw at least one")
    if method not in ("percentile", "bca"):
        raise ValueError(f"method {method!r}: use 'percentile' or 'bca'")
    finite = array[np.isfinite(array)]
    counts = len(finite), int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if not len(finite):
        return Summary(math.nan, math.nan, math.nan, *counts)
    mean = float(finite.mean())
    if len(finite) == 1:
        return Summary(mean, math.nan, math.nan, *counts)
    if np.ptp(finite) == 0:
        return Summary(mean, mean, mean, *counts)
    means = _resampled_means(finite, resamples, seed)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        tails = _corrected(tails, means, finite)
    low, high = np.quantile(means, tails)
    return Summary(mean, float(low), float(high), *counts)


def _corrected(tails: np.ndarray, means: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Quantiles to take in place of `tails`. Efron, 1987, eq. 2.3 and 6.6."""
    n, mean = len(values), values.mean()
    share = (np.sum(means < mean) + np.sum(means == mean) / 2) / len(means)
    half = 0.5 / len(means)
    bias = _normal_quantile(np.clip(np.array([share]), half, 1 - half))[0]
    # Means without one image, relative to their own mean.
    left_out = (mean - values) / (n - 1)
    squares = np.sum(left_out**2)
    acceleration = np.sum((-left_out) ** 3) / (6 * squares**1.5) if squares > 0 else 0.0
    z = bias + _normal_quantile(tails)
    return _normal(bias + z / (1 - acceleration * z))


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[position.reshape(-1)]


def _exact_p(statistic: float, n: int) -> float:
    """Share of the 2^n ways to sign the ranks 1..n whose smaller sum is at most `statistic`."""
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, n + 1):
        ways[rank:] = ways[rank:] + ways[:-rank]
    return float(min(1.0, 2.0 * ways[: int(statistic) + 1].sum() / 2.0**n))


def _signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """(statistic, two-sided p) of differences that are not zero."""
    n = len(differences)
    if n == 0:
        return 0.0, 1.0
    rank = ranks(np.abs(differences))
    rising = float(rank[differences > 0].sum())
    statistic = min(rising, n * (n + 1) / 2 - rising)
    _, ties = np.unique(np.abs(differences), return_counts=True)
    if n <= EXACT and ties.max() == 1:
        return statistic, _exact_p(statistic, n)
    variance = n * (n + 1) * (2 * n + 1) / 24 - np.sum(ties**3 - ties) / 48
    z = (statistic - n * (n + 1) / 4) / math.sqrt(variance)
    return statistic, min(1.0, math.erfc(-z / math.sqrt(2.0)))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p values: each times the number of hypotheses not yet rejected, never decreasing.

    NaN stays NaN and does not count as a hypothesis. Holm, 1979.
    """
    array = _values(p, "holm")
    adjusted = np.full_like(array, math.nan)
    known = np.flatnonzero(~np.isnan(array))
    order = known[np.argsort(array[known], kind="stable")]
    scaled = array[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled)) if len(order) else scaled
    return adjusted


def compare(
    values: Mapping[str, Sequence[float] | np.ndarray], reference: str
) -> dict[str, Wilcoxon]:
    """Every other method against `reference` on one metric, paired by image.

    values: {method: one number per image}, the same images in the same order. Exact p up to 50
    differences without ties; otherwise the normal approximation, corrected for ties, without a
    continuity correction. Pairs without a difference are left out (Wilcoxon's own rule).
    """
    if reference not in values:
        raise ValueError(f"reference {reference!r}: use one of {', '.join(values)}")
    base = _values(values[reference], reference)
    found: dict[str, Wilcoxon] = {}
    for name, given in values.items():
        if name == reference:
            continue
        array = _values(given, name)
        if array.shape != base.shape:
            raise ValueError(
                f"{name} has {len(array)} values, {reference} has {len(base)}: "
                "compare the same images"
            )
        both = np.isfinite(array) & np.isfinite(base)
        differences = array[both] - base[both]
        moved = differences[differences != 0]
        statistic, p = _signed_rank(moved) if len(differences) else (math.nan, math.nan)
        median = float(np.median(differences)) if len(differences) else math.nan
        counts = len(differences), len(differences) - len(moved)
        found[name] = Wilcoxon(statistic, p, math.nan, median, *counts)
    adjusted = holm([test.p for test in found.values()])
    return {
        name: test._replace(adjusted=float(p))
        for (name, test), p in zip(found.items(), adjusted, strict=True)
    }


class MeanRanks(NamedTuple):
    """Mean rank of each method; 1 is best."""

    ranks: dict[str, float]
    used: tuple[str, ...]
    """Metrics that count."""
    left_out: dict[str, str]
    """Metrics that do not, and why."""
    last: dict[str, tuple[str, ...]]
    """Of metrics that count: methods ranked last there for want of a value."""


def mean_ranks(
    means: Mapping[str, Mapping[str, float]], directions: Mapping[str, Direction]
) -> MeanRanks:
    """Ranks methods on every metric, then averages over metrics; equal values share their ranks.

    means: {metric: {method: value}}. directions: {metric: direction}; a metric whose direction is
    unclear, or on which no method has a value, is left out and named. Methods without a value where
    others have one share the last ranks and are named: nothing is gained by being undefined.
    """
    methods = list(dict.fromkeys(name for row in means.values() for name in row))
    used, left_out, last, rows = [], {}, {}, []
    for metric, row in means.items():
        if metric not in directions:
            raise ValueError(f"{metric}: no direction given: 'higher', 'lower' or 'unclear'")
        known = {name: row[name] for name in methods if not math.isnan(row.get(name, math.nan))}
        if directions[metric] not in ("higher", "lower"):
            left_out[metric] = "its direction is unclear"
        elif not known:
            left_out[metric] = "no method has a value"
        else:
            sign = -1.0 if directions[metric] == "higher" else 1.0
            used.append(metric)
            order = ranks(np.array([sign * value for value in known.values()]))
            place = dict(zip(known, order.tolist(), strict=True))
            without = tuple(name for name in methods if name not in known)
            if without:
                last[metric] = without
            shared = (len(known) + 1 + len(methods)) / 2
            rows.append([place.get(name, shared) for name in methods])
    average = np.mean(rows, axis=0) if rows else np.full(len(methods), math.nan)
    mean = dict(zip(methods, average.tolist(), strict=True))
    return MeanRanks(mean, tuple(used), left_out, last)
