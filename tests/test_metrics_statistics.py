"""Means, intervals, tests and ranks, against SciPy where it is installed and stored values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxfuse.metrics import statistics
from jaxfuse.metrics.statistics import compare, holm, mean_ranks, ranks, summarise

VALUES = np.random.default_rng(0).gamma(2.0, 1.0, 60)


def test_a_summary_counts_what_it_leaves_out() -> None:
    found = summarise([1.0, 2.0, 3.0, math.nan, math.inf, -math.inf, math.nan], resamples=200)
    assert (found.mean, found.count, found.undefined, found.infinite) == (2.0, 3, 2, 2)
    assert 1.0 <= found.low <= 2.0 <= found.high <= 3.0


def test_intervals_of_few_values() -> None:
    assert math.isnan(summarise([]).mean)
    assert summarise([math.nan]).count == 0
    alone = summarise([4.0])
    assert alone.mean == 4.0 and math.isnan(alone.low)
    assert summarise([4.0, 4.0])[:3] == (4.0, 4.0, 4.0)


@pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_intervals_agree_with_scipy(method: str, name: str) -> None:
    scipy = pytest.importorskip("scipy.stats")
    found = summarise(VALUES, method=method, resamples=20_000)
    wanted = scipy.bootstrap((VALUES,), np.mean, n_resamples=20_000, method=name, rng=1)
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    # Two draws of the resamples differ by a hundredth or two of the width.
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.04 * width)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.04 * width)


def test_intervals_are_a_function_of_the_seed() -> None:
    assert summarise(VALUES, resamples=500) == summarise(VALUES, resamples=500)
    assert summarise(VALUES, resamples=500) != summarise(VALUES, resamples=500, seed=1)


def test_resampling_in_parts_draws_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 130)
    assert len(statistics._resampled_means(VALUES, 7, 0)) == 7


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    found = [summarise(rng.exponential(1.0, 30), resamples=400, seed=i) for i in range(200)]
    covered = np.mean([s.low <= 1.0 <= s.high for s in found])
    assert 0.86 < covered < 0.99


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"confidence": 95}, "between 0 and 1"),
        ({"method": "normal"}, "percentile"),
        ({"resamples": 0}, "at least one"),
    ],
)
def test_wrong_requests_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        summarise([1.0, 2.0], **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one number per image"):
        summarise(np.ones((2, 2)))


STORED = [
    # Differences, smaller sum of ranks, two-sided p; from SciPy 1.17.
    ([1.5, -0.5, 2.5, 3.0, 0.1], 2.0, 0.1875),
    ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.0, 0.03125),
    ([1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -2.0, 4.0], 7.0, 0.11979493042591834),
]


@pytest.mark.parametrize(("differences", "statistic", "p"), STORED)
def test_the_signed_rank_test_gives_known_values(
    differences: list[float], statistic: float, p: float
) -> None:
    zero = np.zeros(len(differences))
    found = compare({"a": np.array(differences), "zero": zero}, "zero")["a"]
    assert found.statistic == statistic
    assert found.p == pytest.approx(p, rel=1e-9)
    assert found.median == np.median(differences)


@pytest.mark.parametrize(
    ("n", "ties"), [(7, False), (30, False), (50, False), (90, False), (60, True)]
)
def test_the_signed_rank_test_agrees_with_scipy(n: int, ties: bool) -> None:
    scipy = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(n).normal(0.2, 1.0, n)
    x = np.round(x, 1) if ties else x
    found = compare({"a": x, "b": np.zeros(n)}, "b")["a"]
    exact = n <= 50 and not ties
    moved = x[x != 0]
    wanted = scipy.wilcoxon(moved, method="exact" if exact else "approx", correction=False)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert found.statistic == wanted.statistic
    assert found.zeros == n - len(moved)


def test_pairs_without_a_finite_value_are_left_out_and_counted() -> None:
    a = np.array([1.0, math.nan, 3.0, math.inf, 5.0, 2.0])
    b = np.array([1.0, 2.0, 1.0, 1.0, math.nan, 1.0])
    found = compare({"a": a, "b": b, "c": np.full(6, math.nan)}, "b")
    assert (found["a"].count, found["a"].zeros) == (3, 1)
    assert found["c"].count == 0 and math.isnan(found["c"].p) and math.isnan(found["c"].adjusted)
    same = compare({"a": b[:4], "b": b[:4]}, "b")["a"]
    assert same.p == 1.0 and same.zeros == 4


def test_comparisons_refuse_other_images() -> None:
    with pytest.raises(ValueError, match="compare the same images"):
        compare({"a": [1.0], "b": [1.0, 2.0]}, "b")
    with pytest.raises(ValueError, match="use one of a"):
        compare({"a": [1.0]}, "b")


def test_holm() -> None:
    """Holm, 1979: ordered p times 4, 3, 2, 1, never falling; NaN is no hypothesis."""
    found = holm([0.01, 0.04, 0.03, math.nan, 0.005])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, math.nan, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_is_applied_over_all_comparisons() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=40)
    values = {"base": base, **{f"m{k}": base + rng.normal(0.1 * k, 0.5, 40) for k in range(4)}}
    found = compare(values, "base")
    np.testing.assert_allclose(
        [t.adjusted for t in found.values()], holm([t.p for t in found.values()])
    )
    assert "base" not in found


def test_equal_values_share_their_ranks() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_mean_ranks_respect_direction_and_name_what_they_leave_out() -> None:
    means = {
        "SSIM": {"a": 0.9, "b": 0.8, "c": 0.7},
        "MSE": {"a": 5.0, "b": 5.0, "c": 1.0},
        "TE": {"a": 1.0, "b": 2.0, "c": 3.0},
        "VIF": {"a": 1.0, "b": math.nan, "c": 3.0},
        "CC": {"a": math.nan, "b": math.nan, "c": math.nan},
        "PSNR": {"a": math.inf, "b": 30.0, "c": 20.0},
    }
    directions = dict.fromkeys(means, "higher") | {"MSE": "lower", "TE": "unclear"}
    found = mean_ranks(means, directions)  # type: ignore[arg-type]
    assert found.used == ("SSIM", "MSE", "VIF", "PSNR")
    assert found.ranks == pytest.approx({"a": 6.5 / 4, "b": 9.5 / 4, "c": 8 / 4})
    assert found.left_out == {"TE": "its direction is unclear", "CC": "no method has a value"}
    assert found.last == {"VIF": ("b",)}
    shared = mean_ranks({"VIF": {"a": math.nan, "b": 1.0, "c": math.nan}}, {"VIF": "higher"})
    assert shared.ranks == {"a": 2.5, "b": 1.0, "c": 2.5}
    with pytest.raises(ValueError, match="no direction"):
        mean_ranks(means, {})
    assert math.isnan(mean_ranks({"TE": {"a": 1.0}}, {"TE": "unclear"}).ranks["a"])
