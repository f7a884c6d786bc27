"""Statistics of a dataset: taken in one pass over its shards, left beside the manifest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligncurate import inspect, report, validate
from aligncurate.core.histogram import LogHistogram
from aligncurate.core.moments import Moments
from aligncurate.reporting import shortlist
from aligncurate.reporting.inspection import facts
from aligncurate.reporting.summary import ScoreSummary, known_summary, summarise, summary_of
from alignshared import Dataset
from tests.curation.datasets import (
    cosines,
    files_in,
    replace_rows,
    write_levelled_dataset,
    write_scored_dataset,
)

FILE = "statistics.json"
SCORES = cosines(90)

numbers = st.lists(st.floats(-1, 1, width=32), max_size=50)


def moments_of(values: Any) -> Moments:
    moments = Moments()
    moments.add(np.asarray(values, dtype=np.float32))
    return moments


@given(st.lists(numbers, max_size=6))
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    merged = Moments()
    for part in parts:
        merged.merge(moments_of(part))
    whole = np.array([value for part in parts for value in part], dtype=np.float32)
    found = merged[0]
    assert found.count == len(whole)
    if not len(whole):
        assert (found.mean, found.std, found.min, found.max) == (None, None, None, None)
        return
    assert found.mean == pytest.approx(whole.mean(dtype=np.float64), abs=1e-12)
    assert found.std == pytest.approx(whole.std(dtype=np.float64), abs=1e-9)
    assert (found.min, found.max) == (whole.min(), whole.max())


def test_a_spread_that_is_small_beside_the_mean_keeps_its_digits() -> None:
    # Sums of squares would give 0 here, or the root of a negative number.
    values = 1e8 + np.arange(1000) / 1000
    moments = Moments()
    for part in np.split(values, 10):
        moments.add(part)
    assert moments[0].std == pytest.approx(values.std(), rel=1e-6)


def test_moments_are_kept_by_group() -> None:
    moments = Moments(3)
    moments.add(np.array([1.0, 2.0, 5.0]), np.array([0, 0, 2]))
    assert (moments[0].count, moments[0].mean, moments[0].std) == (2, 1.5, 0.5)
    assert moments[1].count == 0
    assert (moments[2].min, moments[2].max) == (5, 5)
    again = Moments.from_json(json.loads(json.dumps(moments.to_json())))
    assert [again[i] for i in range(3)] == [moments[i] for i in range(3)]


@given(st.lists(st.integers(0, 2**32), min_size=1), st.integers(0, 50))
def test_sizes_are_counted_in_bins_of_a_sixteenth(values: list[int], cut: int) -> None:
    one, two = LogHistogram(), LogHistogram()
    one.add(np.array(values[:cut], dtype=np.int64))
    two.add(np.array(values[cut:], dtype=np.int64))
    one.merge(two)
    assert int(one.counts.sum()) == len(values)
    assert (one.moment.min, one.moment.max) == (min(values), max(values))
    middle = sorted(values)[(len(values) - 1) // 2]
    assert one.median is not None
    assert one.median <= middle <= one.median * 17 / 16 + 1


def test_small_sizes_have_bins_of_their_own() -> None:
    for size in range(32):
        counts = LogHistogram()
        counts.add(np.array([size, size]))
        assert counts.median == size


def as_json(summary: ScoreSummary) -> str:
    return json.dumps(summary.to_json("d"))


def test_the_summary_is_the_same_to_the_bit_for_any_number_of_workers(tmp_path: Path) -> None:
    dataset = write_levelled_dataset(tmp_path / "bucket", SCORES, shards=7)
    assert as_json(summarise(dataset, workers=1)) == as_json(summarise(dataset, workers=5))


@pytest.mark.parametrize("levelled", [True, False])
def test_the_layout_of_shards_changes_nothing_but_rounding(tmp_path: Path, levelled: bool) -> None:
    write = write_levelled_dataset if levelled else write_scored_dataset
    one = summarise(write(tmp_path / "one", SCORES, shards=1))
    nine = summarise(write(tmp_path / "nine", SCORES, shards=9))
    assert one.histogram.counts.tolist() == nine.histogram.counts.tolist()
    assert one.histogram.mean == pytest.approx(nine.histogram.mean, abs=1e-12)
    assert one.histogram.moment.std == pytest.approx(nine.histogram.moment.std, abs=1e-12)
    picks = [[[p.id for p in kind] for kind in s.shortlist.picks] for s in (one, nine)]
    assert picks[0] == picks[1]


def test_levels_and_sizes_are_those_of_the_rows(tmp_path: Path) -> None:
    captions = ["x" * (i % 40 + 1) for i in range(90)]
    dataset = write_levelled_dataset(tmp_path / "bucket", SCORES, captions=captions)
    summary = summarise(dataset)
    assert dataset.manifest.level_statistics
    for found, told in zip(summary.levels, dataset.manifest.level_statistics, strict=True):
        assert (found.level, found.count, found.min) == (told.level, told.count, told.min)
        assert found.mean == pytest.approx(told.mean)
    lengths = [len(caption) for caption in captions]
    assert summary.sizes["caption"].moment.mean == pytest.approx(np.mean(lengths))
    assert summary.sizes["width"].moment.min == summary.sizes["width"].moment.max == 48
    assert summary.truncated == 0


def test_it_is_written_once_and_read_again_to_the_bit(tmp_path: Path) -> None:
    dataset = write_levelled_dataset(tmp_path / "bucket", SCORES)
    assert known_summary(dataset) is None
    first = summary_of(dataset)
    read: list[int] = []
    again = summary_of(dataset, on_progress=lambda done, rejects=0: read.append(done))
    assert as_json(first) == as_json(again)
    assert read == [len(SCORES)]
    assert validate(dataset.location).problems == []


def test_a_second_report_reads_no_shard_but_for_its_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scored_dataset(tmp_path / "score", SCORES, shards=9)
    report(tmp_path / "score", tmp_path / "one", examples=1)
    opened: list[str] = []
    original = Dataset.open_shard

    def counting(self: Dataset, shard: Any) -> Any:
        opened.append(shard.file)
        return original(self, shard)

    monkeypatch.setattr(Dataset, "open_shard", counting)
    report(tmp_path / "score", tmp_path / "two", examples=1)
    assert len(set(opened) - {"shard-00000.parquet"}) <= 3
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_inspect_tells_the_scores_without_reading_them(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path / "bucket", SCORES)
    assert "scores" not in dict(facts(inspect(tmp_path / "bucket")))
    report(tmp_path / "bucket", examples=1)
    told = dict(facts(inspect(tmp_path / "bucket")))["scores"]
    assert f"mean {np.mean(SCORES):.4f}, standard deviation {np.std(SCORES):.4f}, from" in told


def test_more_examples_than_are_written_down_take_another_pass(tmp_path: Path) -> None:
    dataset = write_levelled_dataset(tmp_path / "bucket", SCORES, levels=2)
    assert [len(picks) for picks in summary_of(dataset).shortlist.picks] == [32, 32]
    assert [len(picks) for picks in summary_of(dataset, 40).shortlist.picks] == [40, 40]
    known = known_summary(dataset)
    assert known
    assert known.shortlist.capacity == 40


def test_statistics_of_another_manifest_are_not_believed(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path / "score", SCORES)
    summary_of(dataset)
    rows = dataset.storage.open("shard-00000.parquet")
    import pyarrow.parquet as pq

    changed = replace_rows(dataset, pq.read_table(rows))
    assert known_summary(changed) is None
    assert summary_of(changed).histogram.count == 30


@pytest.mark.parametrize(
    "change",
    [
        {"statistics_version": 2},
        {"score": {}},
        {"score": {"moments": [[1, 0.5, 0, 0.5, 0.5]], "bins": [-1], "counts": [1]}},
        {"levels": [[1, 0.5, 0, 0.5, 0.5]]},
        {"sizes": None},
        {"examples": {"capacity": 32, "picks": [[["id", 0.5, 9, 0]], [], []]}},
        {"examples": {"capacity": 32, "picks": [[["id", 0.5, 0, 10_000]], [], []]}},
        {"examples": {"capacity": "many", "picks": []}},
    ],
)
def test_damaged_statistics_are_taken_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    dataset = write_scored_dataset(tmp_path / "score", SCORES)
    summary_of(dataset)
    good = (tmp_path / "score" / FILE).read_text()
    (tmp_path / "score" / FILE).write_text(json.dumps(json.loads(good) | change))
    assert known_summary(dataset) is None
    summary_of(dataset)
    assert (tmp_path / "score" / FILE).read_text() == good


def test_statistics_that_are_no_json_are_taken_anew(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path / "score", SCORES)
    (tmp_path / "score" / FILE).write_bytes(b"\xff{")
    assert summary_of(dataset).histogram.count == 90


def test_a_dataset_that_cannot_be_written_to_is_summed_up_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_scored_dataset(tmp_path / "score", SCORES)

    def refuse(*_: Any) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(type(dataset.storage), "write_json", refuse)
    assert summary_of(dataset).histogram.count == 90
    assert not (tmp_path / "score" / FILE).exists()


def test_of_many_pairs_those_near_the_median_come_from_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortlist, "_SAMPLE", 30)
    scores = np.linspace(0, 1, 300, dtype=np.float32).tolist()
    dataset = write_scored_dataset(tmp_path / "score", scores, shards=4, images=False)
    median = summarise(dataset, 5).shortlist.picks[1]
    assert len(median) == 5
    assert all(abs(pick.score - 0.5) < 0.2 for pick in median)
    distances = [abs(pick.score - 0.5) for pick in median]
    assert distances == sorted(distances)
