"""`bucket` sorts a scored dataset into levels: the same ones however it is run, nothing lost."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligncurate import bucket
from alignshared import Dataset, InputError
from tests.curation.datasets import (
    cosines,
    files_in,
    replace_rows,
    write_scored_dataset,
)


def untied(count: int) -> list[float]:
    return np.random.default_rng(2).permutation(np.arange(count, dtype=np.float32)).tolist()


def expected_edges(scores: Sequence[float], levels: int) -> list[float]:
    ordered = np.sort(np.asarray(scores, dtype=np.float32))
    return ordered[[k * len(ordered) // levels for k in range(1, levels)]].tolist()


def column(dataset: Dataset, name: str) -> list[Any]:
    return [value for batch in dataset.batches([name]) for value in batch.column(name).to_pylist()]


def counts(dataset: Dataset) -> list[int]:
    assert dataset.manifest.level_statistics is not None
    return [statistics.count for statistics in dataset.manifest.level_statistics]


def scored(folder: Path, scores: Sequence[float | None] | None = None, **options: Any) -> Dataset:
    """A dataset without pictures, which take most of the time to write."""
    options.setdefault("images", False)
    return write_scored_dataset(folder, cosines(100) if scores is None else scores, **options)


# What it writes


def test_levels_are_those_of_numpys_order_statistics(tmp_path: Path) -> None:
    scores = cosines(333)
    dataset = bucket(scored(tmp_path / "score", scores).location, levels=8)
    edges = expected_edges(scores, 8)
    assert dataset.location == str(tmp_path / "bucket")
    assert dataset.manifest.edges == edges
    levels = [1 + sum(edge <= score for edge in edges) for score in scores]
    assert column(dataset, "level") == levels
    assert dataset.schema.field("level").type == pa.int8()
    assert counts(dataset) == np.bincount(levels, minlength=9)[1:].tolist()


def test_eight_levels_unless_told(tmp_path: Path) -> None:
    dataset = bucket(scored(tmp_path / "score", untied(103)).location)
    assert len(counts(dataset)) == 8
    assert max(counts(dataset)) - min(counts(dataset)) <= 1


@pytest.mark.parametrize("levels", [2, 127])
def test_fewest_and_most_levels(tmp_path: Path, levels: int) -> None:
    dataset = bucket(scored(tmp_path / "score", untied(300)).location, levels=levels)
    assert set(column(dataset, "level")) == set(range(1, levels + 1))
    assert max(counts(dataset)) - min(counts(dataset)) <= 1


def test_equal_scores_share_a_level(tmp_path: Path) -> None:
    scores = [0.1] * 5 + [0.2] * 30 + [0.3] * 5 + [-0.0, 0.0] * 4
    dataset = bucket(scored(tmp_path / "score", scores).location, levels=2)
    levels_of: dict[float, set[int]] = {}
    for score, level in zip(column(dataset, "score"), column(dataset, "level"), strict=True):
        levels_of.setdefault(score, set()).add(level)
    assert all(len(levels) == 1 for levels in levels_of.values())
    assert counts(dataset) == [13, 35]


def test_levels_json_and_manifest_say_the_same(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", cosines(50))
    dataset = bucket(source.location, levels=5)
    told = json.loads((tmp_path / "bucket" / "levels.json").read_text())
    written = json.loads((tmp_path / "bucket" / "manifest.json").read_text())
    assert told["edges"] == written["edges"] == dataset.manifest.edges
    assert told["statistics"] == written["level_statistics"]
    assert told["levels"] == 5
    assert sum(level["share"] for level in told["statistics"]) == pytest.approx(1)
    held = np.array([s for s in column(source, "score") if s < told["edges"][0]], dtype=np.float32)
    lowest = told["statistics"][0]
    assert (lowest["min"], lowest["max"]) == (held.min(), held.max())
    assert lowest["mean"] == pytest.approx(held.mean(dtype=np.float64))


def test_manifest_tells_where_the_levels_come_from(tmp_path: Path) -> None:
    source = scored(tmp_path / "score")
    manifest = bucket(source.location, levels=4).manifest
    assert manifest.stage == "bucket"
    assert [(p.location, p.sha256) for p in manifest.parents] == [(source.location, source.digest)]
    assert manifest.model == source.manifest.model
    assert manifest.scheme == "quantile"
    assert manifest.config["levels"] == 4


def test_columns_and_images_pass_through_unchanged(tmp_path: Path) -> None:
    source = write_scored_dataset(tmp_path / "score", cosines(20))
    table = pa.concat_tables(
        source.open_shard(shard).read() for shard in source.manifest.shards
    ).append_column(
        "url", pa.array([f"https://example.org/{i}" if i % 3 else None for i in range(20)])
    )
    table = table.append_column("tags", pa.array([["a", "b"]] * 19 + [None]))
    replace_rows(source, table)
    dataset = bucket(source.location, levels=2)
    labelled = pa.concat_tables(dataset.open_shard(s).read() for s in dataset.manifest.shards)
    assert labelled.schema.names == [*table.schema.names, "level"]
    assert labelled.drop_columns(["level"]).equals(table)


def test_progress_adds_up_to_the_rows(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def on_progress(done: int, rejects: int = 0) -> None:
        seen.append((done, rejects))

    scores = [*cosines(60), None, float("nan")]
    bucket(scored(tmp_path / "score", scores).location, levels=2, on_progress=on_progress)
    assert np.sum(seen, axis=0).tolist() == [62, 2]


# However it is run


def test_workers_change_no_byte(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", [*cosines(500), None, float("inf")], shards=7)
    written: list[dict[str, bytes]] = []
    for workers in (1, 4):
        out = tmp_path / f"bucket-{workers}"
        bucket(source.location, out, levels=8, workers=workers)
        written.append(files_in(out))
    one, four = (json.loads(run.pop("manifest.json")) for run in written)
    assert written[0] == written[1]
    for manifest in (one, four):
        del manifest["created"], manifest["config"]["execution"]
    assert one == four


def test_order_and_cut_of_the_shards_change_no_edge(tmp_path: Path) -> None:
    scores = cosines(400)
    shuffled = np.random.default_rng(3).permutation(np.asarray(scores, np.float32)).tolist()
    first = bucket(scored(tmp_path / "a" / "score", scores, shards=1).location, levels=8)
    second = bucket(scored(tmp_path / "b" / "score", shuffled, shards=11).location, levels=8)
    assert first.manifest.edges == second.manifest.edges
    assert counts(first) == counts(second)


def test_shards_without_rows_are_no_obstacle(tmp_path: Path) -> None:
    dataset = bucket(scored(tmp_path / "score", [0.1, 0.2, 0.3], shards=5).location, levels=3)
    assert column(dataset, "level") == [1, 2, 3]
    assert dataset.manifest.rows == 3


# Other edges


def test_equal_width_parts_the_range_evenly(tmp_path: Path) -> None:
    scores = [0.0, 0.1, 0.2, 0.5, 1.0]
    dataset = bucket(scored(tmp_path / "s", scores).location, levels=4, scheme="equal-width")
    assert dataset.manifest.scheme == "equal-width"
    assert dataset.manifest.edges == [0.25, 0.5, 0.75]
    assert column(dataset, "level") == [1, 1, 1, 3, 4]


def test_equal_width_with_most_scores_equal(tmp_path: Path) -> None:
    # All quantiles fall on 0.25: what lies elsewhere must be counted as distinct scores too.
    scores = [0.25] * 100 + [k / 10 for k in range(-9, 10)]
    source = scored(tmp_path / "score", scores)
    dataset = bucket(source.location, levels=8, scheme="equal-width")
    assert sum(counts(dataset)) == 119
    with pytest.raises(InputError, match=r"so many pairs .* equal scores"):
        bucket(source.location, tmp_path / "other", levels=8)


def test_an_empty_equal_width_level_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = scored(tmp_path / "score", [0.0, 0.01, 0.02, 1.0])
    with caplog.at_level(logging.WARNING, "aligncurate"):
        dataset = bucket(source.location, levels=4, scheme="equal-width")
    assert counts(dataset) == [3, 0, 0, 1]
    assert "in level 2, 3" in caplog.text


@pytest.mark.parametrize("file", ["levels.json", "manifest.json", ""])
def test_new_data_goes_on_old_edges(tmp_path: Path, file: str) -> None:
    old = bucket(scored(tmp_path / "old" / "score", cosines(80, seed=4)).location, levels=4)
    scores = cosines(60, seed=5)
    new = scored(tmp_path / "new" / "score", scores)
    dataset = bucket(new.location, edges=Path(old.location) / file)
    edges = old.manifest.edges
    assert edges is not None
    assert dataset.manifest.edges == edges
    assert column(dataset, "level") == [1 + sum(e <= s for e in edges) for s in scores]


def test_old_edges_may_leave_levels_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = bucket(scored(tmp_path / "old" / "score", untied(80)).location, levels=4)
    new = scored(tmp_path / "new" / "score", [-1.0, 1e6])
    with caplog.at_level(logging.WARNING, "aligncurate"):
        assert counts(bucket(new.location, edges=old.location)) == [1, 0, 0, 1]
    assert "level 2, 3" in caplog.text


@pytest.mark.parametrize("file", ["manifest.json", ""])
def test_edges_of_other_weights_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    old = bucket(scored(tmp_path / "old" / "score").location, levels=4)
    path = Path(old.location) / "manifest.json"
    path.write_text(path.read_text().replace("ab" * 32, "cd" * 32))
    with caplog.at_level(logging.WARNING, "aligncurate"):
        bucket(scored(tmp_path / "new" / "score").location, edges=Path(old.location) / file)
    assert "other weights" in caplog.text


def test_edges_of_another_view_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = bucket(scored(tmp_path / "old" / "score").location, levels=4)
    path = Path(old.location) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["view"] = "pad"
    path.write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING, "aligncurate"):
        bucket(scored(tmp_path / "new" / "score").location, edges=path)
    assert "scores of another view of images than" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[0.1, 0.2]", "holds no edges"),
        ('{"edges": []}', "holds no edges"),
        ('{"edges": null}', "holds no edges"),
        ('{"edges": ["0.1"], "scheme": 3}', "unknown scheme"),
        ('{"edges": [[0.1]]}', "finite, ascending"),
        ('{"edges": [0.2, 0.1]}', "finite, ascending"),
        ('{"edges": [0.2, NaN]}', "finite, ascending"),
        ('{"edges": [1e40]}', "finite, ascending"),
        (json.dumps({"edges": list(range(127))}), "1 to 126"),
    ],
)
def test_edges_that_cannot_be_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "levels.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        bucket(scored(tmp_path / "score").location, edges=file)
    assert "levels.json" in str(refused.value)
    assert not (tmp_path / "bucket").exists()


def test_edges_that_are_not_there_are_named(tmp_path: Path) -> None:
    source = scored(tmp_path / "score")
    with pytest.raises(InputError, match=r"there is no nothing\.json"):
        bucket(source.location, edges=tmp_path / "nothing.json")
    with pytest.raises(InputError, match="holds no edges"):
        bucket(source.location, edges=source.location)


# Pairs without a score


def test_scores_that_are_not_finite_become_rejects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = [0.1, float("nan"), 0.2, None, 0.3, float("inf"), 0.4, float("-inf")]
    source = write_scored_dataset(tmp_path / "score", scores, shards=2)
    with caplog.at_level(logging.WARNING, "aligncurate"):
        dataset = bucket(source.location, levels=2)
    assert "4 of the 8 pairs" in caplog.text
    manifest = dataset.manifest
    assert manifest.rejects == {"non_finite_score": 4}
    assert source.manifest.rows == manifest.rows + manifest.reject_count
    assert sum(shard.rows for shard in manifest.reject_shards) == 4
    assert column(dataset, "score") == np.array([0.1, 0.2, 0.3, 0.4], np.float32).tolist()
    assert column(dataset, "level") == [1, 1, 2, 2]
    kept = pa.concat_tables(
        pq.read_table(tmp_path / "bucket" / s.file) for s in manifest.reject_shards
    )
    assert kept.to_pylist() == [
        {
            "id": f"pair-{i:04d}",
            "path": f"{i:04d}.png",
            "reason": "non_finite_score",
            "detail": text,
        }
        for i, text in [
            (1, "the score is nan"),
            (3, "the score is null"),
            (5, "the score is inf"),
            (7, "the score is -inf"),
        ]
    ]


def test_no_finite_score_at_all(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", [float("nan"), None, float("inf")])
    with pytest.raises(InputError, match=r"none of the 3 scores .* is finite"):
        bucket(source.location, levels=2)
    assert not (tmp_path / "bucket").exists()


# What is taken without --input, and datasets that have levels already


def test_the_newest_scored_dataset_is_taken(workdir: Path) -> None:
    older = scored(workdir / "data" / "older" / "score", cosines(40))
    newer = scored(workdir / "data" / "newer" / "score", cosines(41))
    scored(workdir / "data" / "newer" / "other", cosines(42))
    os.utime(workdir / "data" / "older" / "score" / "manifest.json", ns=(1, 1))
    dataset = bucket(levels=2)
    assert dataset.location == str(workdir / "data" / "newer" / "bucket")
    assert dataset.manifest.parents[0].location == newer.location
    os.utime(workdir / "data" / "newer" / "score" / "manifest.json", ns=(0, 0))
    assert bucket(levels=2).manifest.parents[0].location == older.location


def test_no_scored_dataset_to_take(workdir: Path) -> None:
    with pytest.raises(InputError, match="name one with --input, or run aligncurate score first"):
        bucket(levels=2)


def test_levels_are_assigned_anew_without_scoring(tmp_path: Path) -> None:
    scores = cosines(90)
    first = bucket(scored(tmp_path / "score", scores).location, levels=8)
    with pytest.raises(InputError, match="name another folder with --output"):
        bucket(first.location, levels=3)
    second = bucket(first.location, tmp_path / "three", levels=3)
    direct = bucket(tmp_path / "score", tmp_path / "direct", levels=3)
    assert second.schema.names.count("level") == 1
    assert [s.sha256 for s in second.manifest.shards] == [s.sha256 for s in direct.manifest.shards]


def test_duckdb_finds_the_same_levels(tmp_path: Path) -> None:
    dataset = bucket(scored(tmp_path / "score", untied(400)).location, levels=8)
    query = (
        "SELECT level, count(*), min(score), max(score) "
        f"FROM '{dataset.location}/shard-*.parquet' GROUP BY level ORDER BY level"
    )
    assert duckdb.connect().execute(query).fetchall() == [
        (k + 1, 50, 50.0 * k, 50.0 * k + 49) for k in range(8)
    ]
