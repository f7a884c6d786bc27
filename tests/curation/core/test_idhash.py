"""Hashes of ids: the same for every layout, different for different ids, repeats found."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligncurate.core import idhash
from aligncurate.core.idhash import RepeatFinder, hash_ids

ids = st.lists(st.text(max_size=40), max_size=40)


@given(ids, st.data())
def test_a_hash_depends_on_its_id_alone(values: list[str], data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(values)))
    whole = hash_ids(pa.array(values, pa.string()))
    one_by_one = [int(hash_ids(pa.array([value], pa.string()))[0]) for value in values]
    assert whole.tolist() == one_by_one
    assert hash_ids(pa.array(values, pa.string()).slice(begin)).tolist() == one_by_one[begin:]
    assert hash_ids(pa.array(values, pa.large_string())).tolist() == one_by_one


@given(st.lists(st.text(max_size=12), unique=True, max_size=60))
def test_different_ids_have_different_hashes(values: list[str]) -> None:
    assert len(set(hash_ids(pa.array(values, pa.string())).tolist())) == len(values)


def test_a_hundred_thousand_numbered_ids_do_not_collide() -> None:
    hashes = hash_ids(pa.array([f"{i // 1000:05d}/{i:09d}.jpg" for i in range(100_000)]))
    assert len(np.unique(hashes)) == 100_000
    halves = np.bincount((hashes >> np.uint64(63)).astype(np.intp))
    assert abs(int(halves[0]) - 50_000) < 1_000


def test_ids_longer_than_a_chunk_hash_as_short_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    values = pa.array(["a" * 50, "", "b", "c" * 7, "a" * 50])
    usual = hash_ids(values).tolist()
    monkeypatch.setattr(idhash, "_CHUNK_BYTES", 4)
    assert hash_ids(values).tolist() == usual
    assert usual[0] == usual[4]


def test_hashes_stay_what_they_were() -> None:
    """Galleries are chosen by them: another hash would show other examples of the same data."""
    assert [f"{h:016x}" for h in hash_ids(pa.array(["", "a", "pair-0001"])).tolist()] == [
        "0000000000000000",
        "3579280a36707693",
        "f265d74e520fd3c3",
    ]


@given(st.lists(st.integers(0, 30), max_size=80), st.integers(1, 5), st.integers(1, 40))
def test_repeats_are_found_in_memory_and_on_disk(
    values: list[int], batches: int, in_memory: int
) -> None:
    spread = np.array(values, dtype=np.uint64) * np.uint64(0x0800_0000_0000_0001)
    found, counts = np.unique(spread, return_counts=True)
    expected = found[counts > 1].tolist()
    for limit in (in_memory, 10**6):
        with closing(RepeatFinder(limit)) as finder:
            for batch in np.array_split(spread, batches):
                finder.add(batch)
            assert finder.repeated(1_000).tolist() == expected
            assert finder.repeated(2).tolist() == expected[:2]


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with closing(RepeatFinder(in_memory=10)) as finder:
        finder.add(np.arange(100, dtype=np.uint64))
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
