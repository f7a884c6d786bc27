"""Intervals and coefficients against published and hand-computed values."""

import math

import numpy as np
import pytest

from aligntrain.evaluate.intervals import (
    mean_interval,
    pearson,
    ranks,
    share_interval,
    spearman,
    t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "published"),
    [(1, 12.706), (2, 4.303), (10, 2.228), (20, 2.086), (25, 2.0595), (60, 2.000), (120, 1.980)],
)
def test_quantiles_of_t_are_those_of_the_tables(degrees: int, published: float) -> None:
    assert t_quantile(degrees) == pytest.approx(published, abs=6e-4)


def test_the_interval_of_a_mean() -> None:
    # Of 1, 2, 3: standard error 1 / sqrt(3), and t with 2 degrees 4.3027.
    found = mean_interval([1.0, 2.0, 3.0])
    half = 4.3027 / math.sqrt(3)
    assert (found.mean, found.count) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert found.holds_zero
    assert mean_interval([5.0, 5.1, 5.2]).holds_zero is False


def test_of_one_value_there_is_no_interval() -> None:
    found = mean_interval([4.0])
    assert (found.mean, found.low, found.high, found.holds_zero) == (4.0, None, None, None)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # 8 of 10: R's prop.test(8, 10, correct=FALSE) gives 0.4902 to 0.9433.
    found = share_interval(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share_interval(0, 5).low == pytest.approx(0, abs=1e-12)


def test_ties_share_a_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_coefficients() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert pearson(x, 2 * x + 1).r == pytest.approx(1)
    assert spearman(x, np.exp(x)).r == pytest.approx(1)
    assert pearson(x, np.exp(x)).r < 0.9
    # By hand: 2 of 3 neighbours exchanged, rho = 1 - 6 * 4 / (6 * 35).
    y = np.array([2.0, 1.0, 4.0, 3.0, 5.0, 6.0])
    found = spearman(x, y)
    assert found.r == pytest.approx(1 - 24 / 210)
    # Fisher's z of r = 0.5 with n = 28: atanh(0.5) -+ 1.96 / 5.
    noise = np.random.default_rng(0).normal(size=28)
    other = np.random.default_rng(1).normal(size=28)
    r = pearson(noise, other)
    assert math.atanh(r.high) - math.atanh(r.low) == pytest.approx(2 * 1.959964 / 5)


def test_what_does_not_vary_has_no_coefficient() -> None:
    same = np.ones(5)
    assert pearson(same, np.arange(5.0)).r is None
    assert pearson(np.arange(3.0), np.arange(3.0)).low is None
