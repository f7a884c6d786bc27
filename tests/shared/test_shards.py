"""A shard is whole or not there, and its description is that of the file."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignshared import Storage
from alignshared.schema import scored_schema, with_level
from alignshared.shards import IMAGE_ROW_GROUP, PLAIN_ROW_GROUP, writing_shard
from tests.curation.datasets import scored_rows

PLAIN = pa.schema([("id", pa.string()), ("score", pa.float32())])


def plain(count: int) -> pa.Table:
    scores = np.linspace(0, 1, count, dtype=np.float32)
    return pa.table({"id": [f"{i:07d}" for i in range(count)], "score": scores}, schema=PLAIN)


def test_the_description_is_that_of_the_file(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(scored_rows([0.1, 0.2, None]), scored_schema())
    with writing_shard(Storage(tmp_path), "shard-00000.parquet", table.schema) as (writer, result):
        writer.write(table.slice(0, 1))
        writer.write(table.slice(1))
    info = result.info
    content = (tmp_path / "shard-00000.parquet").read_bytes()
    assert (info.file, info.rows) == ("shard-00000.parquet", 3)
    assert info.bytes == len(content)
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert pq.read_table(tmp_path / info.file).equals(table)


def test_the_same_rows_are_the_same_bytes_however_they_come(tmp_path: Path) -> None:
    storage, table = Storage(tmp_path), plain(1000)
    digests: set[str] = set()
    for step in (1000, 300, 7):
        with writing_shard(storage, f"by-{step}.parquet", PLAIN) as (writer, result):
            for begin in range(0, 1000, step):
                writer.write(table.slice(begin, step))
        digests.add(result.info.sha256)
    assert len(digests) == 1


def test_nothing_is_left_when_the_writer_fails(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with (
        pytest.raises(ZeroDivisionError),
        writing_shard(storage, "shard.parquet", PLAIN) as (writer, result),
    ):
        writer.write(plain(10))
        raise ZeroDivisionError
    assert storage.names() == []
    assert not hasattr(result, "info")


def test_a_table_of_other_columns_leaves_nothing(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with (
        pytest.raises(ValueError, match="schema"),
        writing_shard(storage, "shard.parquet", PLAIN) as (writer, _),
    ):
        writer.write(pa.table({"other": [1]}))
    assert storage.names() == []


def test_a_shard_without_rows(tmp_path: Path) -> None:
    with writing_shard(Storage(tmp_path), "shard.parquet", PLAIN) as (_, result):
        pass
    assert result.info.rows == 0
    assert pq.read_table(tmp_path / "shard.parquet").equals(plain(0))


def test_a_few_pictures_can_be_read_without_the_shard(tmp_path: Path) -> None:
    rows = scored_rows([0.5] * (2 * IMAGE_ROW_GROUP + 10), images=False)
    table = pa.Table.from_pylist(rows, scored_schema())
    with writing_shard(Storage(tmp_path), "shard.parquet", table.schema) as (writer, _):
        for begin in range(0, len(rows), 100):
            writer.write(table.slice(begin, 100))
    metadata = pq.read_metadata(tmp_path / "shard.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [IMAGE_ROW_GROUP, IMAGE_ROW_GROUP, 10]


def test_rows_without_pictures_lie_in_large_groups(tmp_path: Path) -> None:
    scores = pa.table({"score": np.zeros(PLAIN_ROW_GROUP // 2 + 5, dtype=np.float32)})
    with writing_shard(Storage(tmp_path), "shard.parquet", scores.schema) as (writer, _):
        writer.write(scores)
        writer.write(scores)
    metadata = pq.read_metadata(tmp_path / "shard.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [PLAIN_ROW_GROUP, 10]


def test_pictures_are_stored_as_they_are_and_never_in_statistics(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(scored_rows([0.1, 0.2]), scored_schema())
    table = table.append_column("level", pa.array([1, 2], pa.int8()))
    schema = with_level(table.schema)
    with writing_shard(Storage(tmp_path), "shard.parquet", schema) as (writer, _):
        writer.write(table.cast(schema))
    group = pq.read_metadata(tmp_path / "shard.parquet").row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["image.bytes"].compression == "UNCOMPRESSED"
    assert not columns["image.bytes"].is_stats_set
    assert columns["caption"].compression == "ZSTD"
    assert columns["score"].statistics.max == np.float32(0.2)
    assert columns["level"].statistics.min == 1
