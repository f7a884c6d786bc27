"""Reading a finished dataset, and saying what is wrong with one that is not."""

from pathlib import Path

import pyarrow as pa
import pytest

from alignshared import ContractError, Dataset, Storage
from tests.curation.datasets import replace_rows, write_scored_dataset

SCORES = [k / 10 for k in range(10)]


def test_rows_come_in_order_over_all_shards(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "score", SCORES, shards=3, images=False)
    dataset = Dataset(tmp_path / "score")
    assert dataset.location == str(tmp_path / "score")
    assert [shard.rows for shard in dataset.manifest.shards] == [3, 3, 4]
    batches = list(dataset.batches(["id", "score"], batch_size=2))
    assert max(batch.num_rows for batch in batches) == 2
    table = pa.Table.from_batches(batches)
    assert table.schema.names == ["id", "score"]
    assert table.column("id").to_pylist() == [f"pair-{i:04d}" for i in range(10)]
    assert table.column("score").to_pylist() == pytest.approx(SCORES)
    assert next(dataset.batches()).schema.equals(dataset.schema)


def test_relative_locations_are_those_of_where_it_runs(workdir: Path) -> None:
    write_scored_dataset(workdir / "data" / "score", SCORES, images=False)
    assert Dataset("data/score").location == str(workdir / "data" / "score")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="nowhere is not a dataset: there is no such folder"):
        Dataset(tmp_path / "nowhere")


def test_a_folder_without_manifest_is_an_unfinished_run(tmp_path: Path) -> None:
    Storage(tmp_path).write_json(".run/config.json", {})
    with pytest.raises(ContractError, match=r"it has no manifest\.json; .* again to finish it"):
        Dataset(tmp_path)


def test_a_dataset_without_shards_has_no_columns(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path, SCORES, images=False)
    dataset.manifest.shards.clear()
    with pytest.raises(ContractError, match="is empty: it has no shards"):
        _ = dataset.schema
    assert list(dataset.batches()) == []


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path, SCORES, images=False)
    (tmp_path / "shard-00001.parquet").unlink()
    with pytest.raises(ContractError, match=r"lacks shard-00001\.parquet, .* copy it there or"):
        list(dataset.batches())


def test_a_damaged_shard_is_named_wherever_the_damage_is(tmp_path: Path) -> None:
    captions = pa.array([f"caption {i}" * 50 for i in range(1000)])
    dataset = replace_rows(
        write_scored_dataset(tmp_path, SCORES, images=False), pa.table({"caption": captions})
    )
    file = tmp_path / "shard-00000.parquet"
    whole = file.read_bytes()
    footer = len(whole) - 60
    damages = {
        "empty": b"",
        "text": b"this is not Parquet" * 10,
        "cut": whole[: len(whole) // 2],
        "footer": whole[:footer] + b"\xff" * 40 + whole[footer + 40 :],
        "page header": whole[:4] + b"\xff" * 40 + whole[44:],
        "page": whole[:100] + b"\x55" * 500 + whole[600:],
    }
    for damage, content in damages.items():
        file.write_bytes(content)
        with pytest.raises(ContractError, match=r"shard-00000\.parquet in .*") as found:
            pytest.fail(f"{damage}: {len(list(dataset.batches()))} batches were read")
        assert str(found.value).endswith("; copy it again or write the dataset again.")
        assert str(found.value).isprintable()
    file.write_bytes(whole)
    assert sum(batch.num_rows for batch in dataset.batches()) == 1000


def test_an_error_in_the_work_on_a_batch_is_not_blamed_on_the_shard(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path, SCORES, images=False)
    with pytest.raises(OSError, match="no space"):
        for _ in dataset.batches():
            raise OSError("no space")
