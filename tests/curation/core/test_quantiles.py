"""The edges between levels are numpy's order statistics to the bit, however the scores are cut."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aligncurate.core.quantiles import (
    CoarseCounts,
    FineCounts,
    OrderedScores,
    equal_width_edges,
    level_sizes,
    quantile_edges,
    sortable_keys,
)
from alignshared import LevelEdges
from alignshared.levels import LevelAccumulator, edge_ranks

quickly = settings(max_examples=50, deadline=None, database=None)

Scores = npt.NDArray[np.float32]

FLOAT32 = np.finfo(np.float32)
EXTREMES = [
    0.0,
    -0.0,
    *(sign * float(size) for sign in (1, -1) for size in (FLOAT32.max, FLOAT32.tiny)),
    *(sign * float(FLOAT32.smallest_subnormal) for sign in (1, -1)),
]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]

any_finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
subnormal = st.integers(1, 0x7F_FFFF).map(lambda bits: float(np.uint32(bits).view(np.float32)))
kinds = {
    "any": any_finite,
    "cosines": st.floats(-1, 1, width=32),
    "negative": any_finite.map(lambda score: -abs(score)),
    "tied": st.sampled_from([0.25, 0.5, -0.5, 0.0, -0.0]),
    "subnormal": subnormal | subnormal.map(lambda score: -score),
    "extreme": st.sampled_from(EXTREMES),
    "neighbours": st.integers(0, 300).map(
        lambda step: float((np.float32(0.25).view(np.uint32) + np.uint32(step)).view(np.float32))
    ),
}
"""Scores of one kind each; those of the last kind all lie in one coarse bin."""


def scores_of(values: st.SearchStrategy[float], least: int = 1) -> st.SearchStrategy[Scores]:
    """Arrays of `values`; fill=nothing, for numpy's own fill would make most of them equal."""
    size = st.integers(least, 200)
    return arrays(np.float32, size, elements=values, fill=st.nothing())


finite_scores = st.one_of([scores_of(values) for values in kinds.values()])
level_counts = st.integers(2, 127)


def counted(parts: Sequence[Scores], levels: int) -> OrderedScores:
    """Both passes over `parts`, counted apart and added up, as workers do."""
    coarse = CoarseCounts()
    for part in parts:
        counts = CoarseCounts()
        counts.add(part)
        coarse.merge(counts)
    bins = coarse.bins_to_resolve(levels)
    fine = FineCounts(bins)
    for part in parts:
        counts = FineCounts(bins)
        counts.add(part)
        fine.merge(counts)
    return OrderedScores(coarse, fine)


def expected_edges(scores: Scores, levels: int) -> Scores:
    """The order statistics that the edges are defined as; 0.0 stands for -0.0 too."""
    ordered = np.sort(scores[np.isfinite(scores)])
    return ordered[[k * len(ordered) // levels for k in range(1, levels)]] + np.float32(0)


def bits(scores: Scores) -> list[int]:
    return scores.view(np.uint32).tolist()


@pytest.mark.parametrize("kind", kinds)
@quickly
@given(data=st.data(), levels=level_counts)
def test_edges_are_numpys_order_statistics(kind: str, data: st.DataObject, levels: int) -> None:
    scores = data.draw(scores_of(kinds[kind]))
    edges = quantile_edges(counted([scores], levels), levels)
    assert edges.dtype == np.float32
    assert bits(edges) == bits(expected_edges(scores, levels))


@quickly
@given(scores=scores_of(any_finite | st.sampled_from(NOT_FINITE), least=2), levels=level_counts)
@example(scores=np.array([*NOT_FINITE, 0.5], dtype=np.float32), levels=2)
def test_nan_and_infinities_are_not_counted(scores: Scores, levels: int) -> None:
    finite = int(np.isfinite(scores).sum())
    assume(finite > 0)
    coarse = CoarseCounts()
    coarse.add(scores)
    assert (coarse.finite, coarse.non_finite) == (finite, len(scores) - finite)
    edges = quantile_edges(counted([scores], levels), levels)
    assert bits(edges) == bits(expected_edges(scores, levels))


@quickly
@given(
    scores=finite_scores,
    levels=level_counts,
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_edges_are_the_same_for_any_cut_and_order(
    scores: Scores, levels: int, seed: int, cuts: list[int]
) -> None:
    shuffled = np.random.default_rng(seed).permutation(scores)
    parts = np.split(shuffled, sorted(min(cut, len(scores)) for cut in cuts))
    assert bits(quantile_edges(counted(parts, levels), levels)) == bits(
        quantile_edges(counted([scores], levels), levels)
    )


def test_more_scores_than_fit_in_one_chunk() -> None:
    rng = np.random.default_rng(7)
    scores = rng.normal(0.25, 0.04, 300_001).astype(np.float32)
    for levels in (2, 8, 127):
        edges = quantile_edges(counted([scores[:99_999], scores[99_999:]], levels), levels)
        assert bits(edges) == bits(expected_edges(scores, levels))


@quickly
@given(scores=finite_scores, levels=level_counts)
def test_level_sizes_are_told_before_labelling(scores: Scores, levels: int) -> None:
    ordered = counted([scores], levels)
    edges = quantile_edges(ordered, levels)
    assigned = LevelEdges(tuple(edges.tolist()), "quantile").assign(scores)
    counts = np.bincount(assigned, minlength=levels + 1)[1:].tolist()
    assert level_sizes(ordered, list(edges)) == counts


@quickly
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(200, 600), levels=level_counts)
def test_sizes_of_untied_levels_differ_by_at_most_one(seed: int, count: int, levels: int) -> None:
    patterns = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    scores = np.unique(patterns.view(np.float32))
    scores = scores[np.isfinite(scores)]
    ordered = counted([scores], levels)
    sizes = level_sizes(ordered, list(quantile_edges(ordered, levels)))
    assert sum(sizes) == len(scores)
    assert max(sizes) - min(sizes) <= 1


@quickly
@given(scores=finite_scores, levels=level_counts)
def test_sizes_differ_by_no_more_than_ties_explain(scores: Scores, levels: int) -> None:
    ordered = counted([scores], levels)
    sizes = level_sizes(ordered, list(quantile_edges(ordered, levels)))
    most_tied = int(np.unique(scores + np.float32(0), return_counts=True)[1].max())
    # Each of a level's two bounds moves down by fewer ranks than there are equal scores.
    fair = len(scores) / levels
    assert all(abs(size - fair) < 1 + most_tied for size in sizes)


@quickly
@given(scores=finite_scores, levels=level_counts)
def test_distinct_scores_are_told_from_too_few(scores: Scores, levels: int) -> None:
    distinct = len(np.unique(scores + np.float32(0)))
    told = counted([scores], levels).distinct_at_least
    assert told <= distinct
    assert (told < levels) == (distinct < levels)
    if told < levels:
        assert told == distinct


@quickly
@given(scores=finite_scores, levels=level_counts)
def test_equal_width_edges_part_the_range_evenly(scores: Scores, levels: int) -> None:
    ordered = counted([scores], levels)
    least, greatest = ordered.at_rank(0), ordered.at_rank(ordered.count - 1)
    assert (least, greatest) == (scores.min(), scores.max())
    edges = equal_width_edges(least, greatest, levels)
    width = (np.float64(greatest) - np.float64(least)) / levels
    exact = np.float64(least) + width * np.arange(1, levels)
    largest = max(abs(float(least)), abs(float(greatest)))
    rounding = FLOAT32.eps * np.abs(exact) + float(FLOAT32.smallest_subnormal) + 1e-15 * largest
    assert (np.abs(edges.astype(np.float64) - exact) <= rounding).all()
    assert len(LevelEdges(tuple(edges.tolist()), "equal-width").edges) == levels - 1


@quickly
@given(a=any_finite | st.sampled_from(EXTREMES), b=any_finite | st.sampled_from(EXTREMES))
def test_keys_sort_as_their_scores(a: float, b: float) -> None:
    first, second = sortable_keys(np.array([a, b], dtype=np.float32)).tolist()
    assert (first < second) == (np.float32(a) < np.float32(b))
    assert (first == second) == (np.float32(a) == np.float32(b))


@quickly
@given(
    scores=finite_scores,
    edges=st.lists(any_finite, min_size=1, max_size=126).map(sorted),
)
def test_level_is_one_more_than_the_edges_reached(scores: Scores, edges: list[float]) -> None:
    assigned = LevelEdges(tuple(edges), "quantile").assign(scores)
    assert assigned.dtype == np.int8
    reached = [1 + sum(edge <= score for edge in edges) for score in scores.tolist()]
    assert assigned.tolist() == reached


@quickly
@given(parts=st.lists(scores_of(kinds["cosines"]), min_size=1, max_size=4))
def test_statistics_of_parts_add_up(parts: list[Scores]) -> None:
    edges = LevelEdges((-0.5, 0.0, 0.25), "quantile")
    merged, whole = LevelAccumulator(4), LevelAccumulator(4)
    for part in parts:
        one = LevelAccumulator(4)
        one.add(part, edges.assign(part))
        merged.merge(one)
    scores = np.concatenate(parts)
    whole.add(scores, edges.assign(scores))
    for ours, theirs in itertools.zip_longest(merged.statistics(), whole.statistics()):
        held = scores[edges.assign(scores) == ours.level]
        assert (ours.count, ours.min, ours.max) == (theirs.count, theirs.min, theirs.max)
        assert ours.count == len(held)
        assert ours.share == pytest.approx(len(held) / len(scores))
        if len(held):
            assert (ours.min, ours.max) == (held.min(), held.max())
            assert ours.mean == pytest.approx(held.astype(np.float64).mean(), abs=1e-12)
        else:
            assert (ours.mean, ours.min, ours.max) == (None, None, None)


def test_ranks_are_the_floor_of_kn_over_n() -> None:
    assert edge_ranks(4, 10) == [2, 5, 7]
    assert edge_ranks(3, 2) == [0, 1]


def test_only_float32_is_counted() -> None:
    with pytest.raises(TypeError, match="float64"):
        CoarseCounts().add(np.array([0.5]))  # pyright: ignore[reportArgumentType]


def test_a_rank_that_was_not_resolved_is_refused() -> None:
    scores = np.array([-1.0, 0.125, 0.5, 1.0], dtype=np.float32)
    coarse = CoarseCounts()
    coarse.add(scores)
    unresolved = OrderedScores(coarse, FineCounts(np.array([], dtype=np.intp)))
    with pytest.raises(KeyError, match="second pass"):
        unresolved.at_rank(1)
