"""Pairs of near rows: all of them on few rows, a stated share on many; components without pairs in
memory; and which row of a component stays.
"""

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from aligncurate.core.vectors import TopK, Units, Vectors, unit_rows
from aligncurate.duplicates.duplicates import (
    Components,
    Verdict,
    exact_duplicates,
    lead,
    near_duplicates,
)
from aligncurate.duplicates.neighbours import NeighbourSearch, nearest_pairs
from aligncurate.duplicates.recall import sample_pairs

DIM = 64
Pairs = set[tuple[int, int]]


def random_rows(count: int, seed: int = 0) -> npt.NDArray[np.float16]:
    """Crowds of rows that are alike, and for every tenth row another that is nearly the same."""
    rng = np.random.default_rng(seed)
    crowds = rng.standard_normal((max(count // 40, 1), DIM))
    rows = crowds[rng.integers(0, len(crowds), count)] + 0.6 * rng.standard_normal((count, DIM))
    tenth = count // 10
    rows[-tenth:] = rows[:tenth] + 0.15 * rng.standard_normal((tenth, DIM))
    return unit_rows(rows).astype(np.float16)


def pairs_of(search: NeighbourSearch) -> Pairs:
    found: Pairs = set()
    for block in search.pairs():
        pairs = np.sort(np.stack([block.first, block.second]), axis=0)
        found |= set(zip(*pairs.tolist(), strict=True))
    return found


def all_pairs(rows: npt.NDArray[np.float16], threshold: float) -> Pairs:
    units = unit_rows(rows)
    first, second = np.nonzero(np.triu(units @ units.T >= threshold, 1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


@pytest.fixture(scope="module")
def rows() -> npt.NDArray[np.float16]:
    return random_rows(3000)


def test_an_exact_search_finds_every_pair(rows: npt.NDArray[np.float16]) -> None:
    search = NeighbourSearch(Vectors(rows), 0.93)
    expected = all_pairs(rows, 0.93)
    assert len(expected) > 250
    assert pairs_of(search) == expected
    assert (search.facts.method, search.facts.recall) == ("exact", 1.0)


def test_a_search_in_cells_finds_the_share_that_it_tells(rows: npt.NDArray[np.float16]) -> None:
    search = NeighbourSearch(Vectors(rows), 0.93, target=0.98, exact_max=100)
    expected, facts = all_pairs(rows, 0.93), search.facts
    found = pairs_of(search)
    assert found <= expected
    assert facts.method == "ivf"
    assert facts.recall >= 0.98
    assert len(found) / len(expected) >= facts.recall - 0.02
    assert facts.cells is not None
    assert facts.probes is not None
    assert facts.probes < facts.cells


def test_recall_falls_with_the_target() -> None:
    rows = random_rows(4000, 3)
    low = NeighbourSearch(Vectors(rows), 0.85, target=0.5, exact_max=100).facts
    high = NeighbourSearch(Vectors(rows), 0.85, target=1.0, exact_max=100).facts
    assert low.probes is not None
    assert high.probes is not None
    assert low.probes < high.probes
    assert low.recall < high.recall


def test_where_there_are_no_pairs_recall_is_measured_on_planted_ones() -> None:
    rng = np.random.default_rng(1)
    rows = unit_rows(rng.standard_normal((1500, DIM))).astype(np.float16)
    sample = sample_pairs(Vectors(rows), 0.9, np.random.default_rng(0))
    assert sample.planted
    cosines = (sample.queries[sample.first] * sample.others[sample.first]).sum(1)
    np.testing.assert_allclose(cosines, 0.901, atol=1e-5)
    facts = NeighbourSearch(Vectors(rows), 0.9, exact_max=100).facts
    assert facts.planted
    assert facts.recall >= 0.99


def test_the_same_seed_gives_the_same_pairs(rows: npt.NDArray[np.float16]) -> None:
    once, twice = (NeighbourSearch(Vectors(rows), 0.93, exact_max=100, seed=5) for _ in range(2))
    assert once.facts == twice.facts
    assert pairs_of(once) == pairs_of(twice)


def test_chosen_rows_are_numbered_among_themselves(rows: npt.NDArray[np.float16]) -> None:
    chosen = np.arange(0, 3000, 2)
    search = NeighbourSearch(Vectors(rows, chosen), 0.93)
    assert pairs_of(search) == all_pairs(rows[chosen], 0.93)


def test_nearest_pairs_widens_until_crowds_are_covered() -> None:
    # What a GPU can do, k nearest, on an index of the CPU.
    rows = random_rows(3000, 7)
    rows[:2500] = rows[0]
    units = unit_rows(rows)
    index = faiss.IndexFlatIP(DIM)
    index.add(units)
    queries = units[[0, 100, 2600, 2999]]
    first, second = nearest_pairs(index, queries, 0.93, Vectors(rows))
    expected = np.nonzero(queries @ units.T >= 0.93)
    assert set(zip(first, second, strict=True)) == set(zip(*expected, strict=True))
    assert (first == 0).sum() >= 2500


def test_rows_without_a_direction_are_like_nothing() -> None:
    rows = random_rows(50)
    rows[3] = 0
    rows[4] = np.nan
    assert np.isfinite(unit_rows(rows)).all()
    assert not any({3, 4} & set(pair) for pair in pairs_of(NeighbourSearch(Vectors(rows), 0.1)))


def test_components_are_those_of_plain_search_in_the_graph() -> None:
    rng = np.random.default_rng(4)
    count = 400
    edges = rng.integers(0, count, (260, 2))
    components = Components(count)
    for part in np.array_split(edges, 7):
        components.join(part[:, 0], part[:, 1])
    near: dict[int, set[int]] = {node: set() for node in range(count)}
    for a, b in edges.tolist():
        near[a].add(b)
        near[b].add(a)
    expected: dict[int, int] = {}
    for node in range(count):
        waiting = [node] if node not in expected else []
        while waiting:
            at = waiting.pop()
            if at not in expected:
                expected[at] = node
                waiting += near[at]
    assert components.labels().tolist() == [expected[node] for node in range(count)]
    groups = components.groups()
    assert all(len(group) > 1 for group in groups)
    assert sum(map(len, groups)) == sum(
        list(expected.values()).count(label) > 1 for label in expected.values()
    )


def test_a_chain_as_long_as_the_rows_is_one_component() -> None:
    components = Components(5000)
    order = np.random.default_rng(0).permutation(4999)
    for part in np.array_split(order, 9):
        components.join(part, part + 1)
    assert not components.labels().any()
    assert [len(group) for group in components.groups()] == [5000]


def test_no_edges_make_no_groups() -> None:
    assert Components(5).groups() == []
    assert Components(0).groups() == []


def on_a_circle(degrees: list[float]) -> Units:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def led(units: Units, threshold: float) -> tuple[list[int], list[float]]:
    vectors = Vectors(units.astype(np.float16))
    leader, cosine = lead(np.arange(len(units)), vectors, threshold)
    return leader.tolist(), cosine.tolist()


def test_a_row_follows_the_nearest_leader_before_it() -> None:
    # 0 and 30 lead; 12 is nearer to 0, 25 to 30; 60 leads, though 30 has followers at 45.
    leader, cosine = led(on_a_circle([0, 30, 12, 25, 45, 60.5]), float(np.cos(np.radians(20))))
    assert leader == [0, 1, 0, 1, 1, 5]
    np.testing.assert_allclose(cosine, np.cos(np.radians([0, 0, 12, 5, 15, 0])), atol=2e-3)


def test_leaders_of_many_rows_are_those_of_one_row_at_a_time() -> None:
    units = unit_rows(random_rows(2600, 9))
    leader, cosine = led(units, 0.7)
    leaders: list[int] = []
    for row in range(len(units)):
        alike = units[leaders] @ units[row]
        best = int(alike.argmax()) if leaders else -1
        if leaders and alike[best] >= 0.7:
            assert cosine[row] == pytest.approx(float(alike[best]), abs=1e-5)
            assert leader[row] == leaders[best] or float(
                units[leader[row]] @ units[row]
            ) == pytest.approx(float(alike[best]), abs=1e-5)
        else:
            assert leader[row] == row
            leaders.append(row)
    assert 20 < len(leaders) < 2600


def digests(*words: int) -> npt.NDArray[np.uint8]:
    return np.array([[word, 7 if word else 0] for word in words], np.uint8)


def test_of_equal_digests_the_preferred_row_stays() -> None:
    found = exact_duplicates(digests(1, 2, 1, 0, 0, 2, 1), np.array([5, 1, 0, 2, 3, 4, 6]))
    assert found.kept.tolist() == [2, 1, 2, 3, 4, 1, 2]
    assert found.count(Verdict.EXACT) == 3


def test_chains_are_split_unless_whole_ones_are_asked_for() -> None:
    vectors = Vectors(on_a_circle([0, 10, 20, 30, 40, 90]).astype(np.float16))
    nodes, rank = np.arange(6), np.array([5, 4, 0, 3, 2, 1])  # 20 degrees is preferred
    threshold = float(np.cos(np.radians(12)))
    exact = exact_duplicates(digests(1, 2, 3, 4, 5, 6), rank)
    components = Components(6)
    components.join(nodes[:4], nodes[1:5])
    split = near_duplicates(exact, components, nodes, rank, vectors, threshold)
    assert split.kept.tolist() == [0, 2, 2, 2, 4, 5]
    assert (split.components, split.largest) == (1, 5)
    whole = near_duplicates(exact, components, nodes, rank, vectors, threshold, whole_chains=True)
    assert whole.kept.tolist() == [2, 2, 2, 2, 2, 5]
    np.testing.assert_allclose(whole.cosine, np.cos(np.radians([20, 10, 0, 10, 20, 0])), atol=2e-3)


def test_what_equals_a_row_that_went_for_a_near_one_went_for_that_too() -> None:
    vectors = Vectors(on_a_circle([0, 5, 5]).astype(np.float16), np.array([0, 1]))
    rank = np.array([0, 1, 2])
    exact = exact_duplicates(digests(1, 2, 2), rank)
    components = Components(2)
    components.join(np.array([0]), np.array([1]))
    found = near_duplicates(exact, components, np.array([0, 1]), rank, vectors, 0.99)
    assert found.kept.tolist() == [0, 0, 0]
    assert found.verdict.tolist() == [Verdict.KEPT, Verdict.NEAR, Verdict.NEAR]
    assert found.cosine[2] == found.cosine[1] < 1


def test_the_best_of_a_stream_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).integers(0, 50, 1000).astype(np.float32)
    values[17] = np.nan
    whole, parts = TopK(60), TopK(60)
    whole.add(values, 0)
    for begin in (700, 0, 300):
        part = TopK(60)
        part.add(values[begin : begin + 300 + 100 * (begin == 300)], begin)
        parts.merge(part)
    expected = np.lexsort((np.arange(1000), -np.nan_to_num(values, nan=-1)))[:60]
    assert whole.places.tolist() == parts.places.tolist() == expected.tolist()
    assert 17 not in whole.places
