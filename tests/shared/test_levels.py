"""Levels, their edges and statistics, and the words of rejects."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alignshared import InputError, LevelEdges, Reason, Reject
from alignshared.levels import (
    LevelAccumulator,
    check_level_count,
    edges_from_json,
    levels_to_json,
)
from alignshared.rejects import REJECT_SCHEMA, rejects_table

EDGES = LevelEdges((0.25, 0.5), "quantile")


def levels_of(scores: list[float], edges: LevelEdges = EDGES) -> list[int]:
    return edges.assign(np.array(scores, dtype=np.float32)).tolist()


def test_a_score_on_an_edge_goes_up() -> None:
    below = float(np.nextafter(np.float32(0.25), np.float32(0)))
    assert levels_of([-1, below, 0.25, 0.3, 0.5, 1]) == [1, 1, 2, 2, 3, 3]
    assert EDGES.levels == 3
    assert levels_of([]) == []


def test_zeros_of_either_sign_share_a_level() -> None:
    for edge in (0.0, -0.0):
        assert levels_of([-0.0, 0.0, -1e-45], LevelEdges((edge,), "quantile")) == [2, 2, 1]


def test_edges_may_be_equal() -> None:
    assert levels_of([0.1, 0.2, 0.3], LevelEdges((0.2, 0.2, 0.3), "quantile")) == [1, 3, 4]


def test_all_levels_that_int8_holds() -> None:
    edges = LevelEdges(tuple(float(k) for k in range(126)), "equal-width")
    assert levels_of([-1, 0, 124, 125, 1e9], edges) == [1, 2, 126, 127, 127]


@pytest.mark.parametrize("edges", [(0.2, 0.1), (float("nan"),), (0.1, float("inf"))])
def test_edges_that_cannot_be(edges: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="edges must be finite and ascending"):
        LevelEdges(edges, "quantile")


@pytest.mark.parametrize("levels", [-3, 0, 1, 128])
def test_a_number_of_levels_that_cannot_be(levels: int) -> None:
    with pytest.raises(InputError, match=f"--levels {levels} cannot be: give a number from 2"):
        check_level_count(levels)


def test_edges_come_back_from_json_to_the_bit() -> None:
    awkward = np.sort(np.array([0.1, 1 / 3, 1e-45, -3.4e38, 3.4e38], dtype=np.float32))
    edges = LevelEdges(tuple(awkward.tolist()), "equal-width")
    told = json.loads(json.dumps(levels_to_json(edges, LevelAccumulator(6).statistics())))
    again = edges_from_json(told, "levels.json")
    assert again == edges
    assert np.array(again.edges, np.float32).tobytes() == awkward.tobytes()


def test_the_column_is_told_where_it_is_not_the_score() -> None:
    edges = LevelEdges((0.5, 2.0), "quantile", "rating")
    told = levels_to_json(edges, LevelAccumulator(3).statistics())
    assert told["by"] == "rating"
    assert edges_from_json(told, "levels.json") == edges
    assert "by" not in levels_to_json(EDGES, LevelAccumulator(3).statistics())


def test_edges_written_by_hand_are_read_as_float32() -> None:
    assert edges_from_json({"edges": [0, 0.1]}, "mine.json") == LevelEdges(
        (0.0, float(np.float32(0.1))), "quantile"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([0.1], "mine.json holds no edges; give a levels.json that a bucket run wrote"),
        (None, "holds no edges"),
        ({}, "holds no edges"),
        ({"edges": 0.1}, "holds no edges"),
        ({"edges": []}, "holds no edges"),
        ({"edges": [0.1], "scheme": "tertile"}, "unknown scheme 'tertile'"),
        ({"edges": [0.1], "by": 3}, "names no column of the levels but 3"),
        ({"edges": ["high"]}, "the edges in mine.json are not 1 to 126 finite, ascending"),
        ({"edges": [None]}, "finite, ascending"),
        ({"edges": [{}]}, "finite, ascending"),
        ({"edges": [0.2, 0.1]}, "finite, ascending"),
        ({"edges": [1e39]}, "finite, ascending"),
        ({"edges": [10**400]}, "finite, ascending"),
        ({"edges": [0.5] * 127}, "1 to 126"),
    ],
)
def test_what_holds_no_edges(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        edges_from_json(data, "mine.json")


def test_statistics_tell_of_each_level() -> None:
    scores = np.array([0.3, 0.25, 0.1], dtype=np.float32)
    accumulator = LevelAccumulator(3)
    accumulator.add(scores, EDGES.assign(scores))
    low, middle, high = accumulator.statistics()
    assert (low.level, low.count, low.share) == (1, 1, 1 / 3)
    assert (middle.count, middle.min, middle.max) == (2, 0.25, np.float32(0.3))
    assert middle.mean == pytest.approx(0.275)
    assert (high.count, high.share, high.mean, high.min, high.max) == (0, 0.0, None, None, None)


def test_statistics_of_nothing() -> None:
    assert [s.share for s in LevelAccumulator(2).statistics()] == [0.0, 0.0]


def test_parts_add_up() -> None:
    scores = np.array([0.1, 0.6, 0.3, 0.9, -0.5], dtype=np.float32)
    whole, parts = LevelAccumulator(3), LevelAccumulator(3)
    whole.add(scores, EDGES.assign(scores))
    for part in np.split(scores, [0, 2, 3]):
        one = LevelAccumulator(3)
        one.add(part, EDGES.assign(part))
        parts.merge(one)
    for ours, theirs in zip(parts.statistics(), whole.statistics(), strict=True):
        assert (ours.count, ours.share, ours.min, ours.max) == (
            theirs.count,
            theirs.share,
            theirs.min,
            theirs.max,
        )
        assert ours.mean == pytest.approx(theirs.mean)


def test_rejects_become_rows_of_the_contract() -> None:
    rejects = [
        Reject("a", "images/a.jpg", Reason.CORRUPT_IMAGE, "image file is truncated"),
        Reject("b", None, Reason.NO_CAPTION, "caption is null"),
    ]
    table = rejects_table(rejects)
    assert table.schema.equals(REJECT_SCHEMA)
    assert table.to_pylist() == [
        {
            "id": "a",
            "path": "images/a.jpg",
            "reason": "corrupt_image",
            "detail": "image file is truncated",
        },
        {"id": "b", "path": None, "reason": "no_caption", "detail": "caption is null"},
    ]
    assert rejects_table([]).equals(pa.table({n: [] for n in REJECT_SCHEMA.names}, REJECT_SCHEMA))
