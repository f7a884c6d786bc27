"""The histogram counts as numpy does, whatever the batches and their order."""

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aligncurate.core.histogram import Histogram

Scores = npt.NDArray[np.float32]

cosines = arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.floats(-1, 1, width=32, allow_nan=False),
)
on_bin_ends = st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=50).map(
    lambda ends: (np.array(ends) / 10_000).astype(np.float32)
)


def filled(*batches: Scores) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


@given(cosines | on_bin_ends, st.integers(1, 200))
def test_counts_are_those_of_numpy_on_the_same_bins(scores: Scores, at_most: int) -> None:
    bins = filled(scores).bins(at_most)
    expected, _ = np.histogram(scores.astype(np.float64), bins.ends)
    assert bins.counts.tolist() == expected.tolist()
    assert bins.counts.sum() == len(scores)


@given(cosines, st.integers(2, 200))
def test_bins_are_equally_wide_and_no_more_than_asked(scores: Scores, at_most: int) -> None:
    bins = filled(scores).bins(at_most)
    assert len(bins.counts) <= at_most
    assert np.diff(bins.ends) == pytest.approx(bins.width)
    assert bins.ends[0] <= scores.min()
    assert scores.max() <= bins.ends[-1]


@given(st.lists(cosines, min_size=1, max_size=6), st.randoms())
def test_merging_in_any_order_gives_the_same_counts(parts: list[Scores], order: Random) -> None:
    shuffled = list(parts)
    order.shuffle(shuffled)
    merged = Histogram()
    for part in shuffled:
        merged.merge(filled(part))
    whole = filled(np.concatenate(parts))
    assert merged.bins().counts.tolist() == whole.bins().counts.tolist()
    assert merged.bins().ends.tolist() == whole.bins().ends.tolist()
    assert merged.count == whole.count
    assert (merged.moment.min, merged.moment.max) == (whole.moment.min, whole.moment.max)
    assert merged.mean == pytest.approx(whole.mean, abs=1e-12)


def test_mean_deviation_and_quantiles_are_those_of_the_scores() -> None:
    scores = np.random.default_rng(7).normal(0.2, 0.05, 5_000).astype(np.float32)
    histogram = filled(*np.array_split(scores, 7))
    assert histogram.mean == pytest.approx(scores.mean(dtype=np.float64), abs=1e-9)
    assert histogram.moment.std == pytest.approx(scores.std(dtype=np.float64), abs=1e-9)
    for share in (0.01, 0.5, 0.99):
        assert histogram.quantile(share) == pytest.approx(
            np.quantile(scores, share, method="inverted_cdf"), abs=1e-4
        )


def test_what_is_not_finite_is_not_counted() -> None:
    histogram = filled(np.array([np.nan, np.inf, -np.inf, 0.5], dtype=np.float32))
    assert histogram.count == 1
    assert (histogram.moment.min, histogram.moment.max) == (0.5, 0.5)


def test_a_tiny_negative_score_is_below_zero() -> None:
    bins = filled(np.array([-1e-30, 1e-30], dtype=np.float32)).bins()
    assert bins.ends.tolist() == [-0.0001, 0.0, 0.0001]
    assert bins.counts.tolist() == [1, 1]


def test_an_empty_histogram_has_neither_bins_nor_quantiles() -> None:
    with pytest.raises(ValueError, match="no bins"):
        Histogram().bins()
    with pytest.raises(ValueError, match="no quantiles"):
        Histogram().quantile(0.5)
    assert np.isnan(Histogram().mean)


@pytest.mark.parametrize("greatest", [0.003, 0.99, 1.0, 7.0, 10.0, 250.0, 3e7, 3e38])
def test_other_numbers_have_bins_of_their_size(greatest: float) -> None:
    numbers = (np.random.default_rng(1).uniform(-1, 1, 1000) * greatest).astype(np.float32)
    histogram = Histogram.around(float(np.abs(numbers).max()))
    histogram.add(numbers)
    bins = histogram.bins()
    expected, _ = np.histogram(numbers.astype(np.float64), bins.ends)
    assert bins.counts.tolist() == expected.tolist()
    assert bins.counts.sum() == 1000
    assert len(bins.counts) > 15
    assert histogram.quantile(0.5) == pytest.approx(np.median(numbers), abs=bins.width)
    again = Histogram.from_json(histogram.to_json())
    assert again.bins().ends.tolist() == bins.ends.tolist()
    wide = again.widened(histogram.power + 1)
    expected, _ = np.histogram(numbers.astype(np.float64), wide.bins().ends)
    assert wide.bins().counts.tolist() == expected.tolist()
    assert wide.moment == histogram.moment
