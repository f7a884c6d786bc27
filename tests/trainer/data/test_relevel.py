"""Levels made anew for a run, without writing the dataset again."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aligncurate import bucket
from alignshared import ContractError, Dataset, InputError
from aligntrain.data.dataset import ShardedDataset, random_levels, relevel_of
from aligntrain.data.index import read_index
from aligntrain.recipes import load_recipe
from tests.trainer import rows


def scored(count: int) -> list[dict[str, Any]]:
    """Pairs whose scores are in no order, some of them equal."""
    drawn = np.random.default_rng(3).normal(size=count).astype(np.float32)
    drawn[5:9] = drawn[5]
    return [row | {"score": float(drawn[i])} for i, row in enumerate(rows.pair_rows(count))]


def levels_of(shards: ShardedDataset) -> list[int]:
    return [shards.row(number).level or 0 for number in range(len(shards))]


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_quantiles_are_those_that_bucket_assigns(tmp_path: Path, levels: int) -> None:
    data = rows.write_rows(tmp_path / "pairs", scored(101), levels=4)
    done = bucket(data.location, output=str(tmp_path / "again"), levels=levels)
    expected = levels_of(ShardedDataset(done.location, levels=levels))
    remade = ShardedDataset(data.location, levels=levels, relevel=relevel_of("quantile", 0))
    assert levels_of(remade) == expected
    assert levels_of(ShardedDataset(data.location, levels=4)) != expected
    read_index(remade)  # the column's own levels, which are others, are not held against it


def test_random_levels_are_equal_in_number_and_follow_the_seed(tmp_path: Path) -> None:
    data = rows.write_rows(tmp_path, rows.pair_rows(48), levels=4)
    first, again, other = (
        levels_of(ShardedDataset(data.location, levels=4, relevel=relevel_of("random", seed)))
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert np.bincount(first).tolist() == [0, 12, 12, 12, 12]
    own = levels_of(ShardedDataset(data.location, levels=4))
    assert abs(np.corrcoef(first, own)[0, 1]) < 0.5
    assert set(random_levels(10, 3, 0).tolist()) == {1, 2, 3}


def test_levels_go_with_the_shards_to_other_processes(tmp_path: Path) -> None:
    data = rows.write_rows(tmp_path, rows.pair_rows(20), levels=4)
    shards = ShardedDataset(data.location, levels=5, relevel=relevel_of("random", 2))
    assert levels_of(pickle.loads(pickle.dumps(shards))) == levels_of(shards)


def test_quantiles_need_scores(tmp_path: Path) -> None:
    data = rows.write_rows(tmp_path, rows.talk_rows(10))
    with pytest.raises(ContractError, match="needs scores, and"):
        ShardedDataset(data.location, levels=3, relevel=relevel_of("quantile", 0))


def with_quality(folder: Path, values: list[Any], kind: pa.DataType) -> Dataset:
    """Pairs without levels of their own, with the column `quality`; the last one has no image."""
    found = [row | {"quality": value} for row, value in zip(rows.pair_rows(8), values, strict=True)]
    found[-1]["image"] = None
    return rows.write_rows(folder, found, extra={"quality": kind})


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64()], ids=str)
def test_levels_may_stand_in_another_column(tmp_path: Path, kind: pa.DataType) -> None:
    data = with_quality(tmp_path, [3, 1, 2, 3, 1, 1, 2, None], kind)
    shards = ShardedDataset(data.location, levels=3, relevel=relevel_of("column:quality", 0))
    assert levels_of(shards) == [3, 1, 2, 3, 1, 1, 2, 0]
    read_index(shards)
    assert levels_of(pickle.loads(pickle.dumps(shards))) == levels_of(shards)


def test_levels_that_bucket_made_by_another_column_are_read(tmp_path: Path) -> None:
    data = with_quality(tmp_path / "pairs", [7, 1, 2, 30, 4, 15, 6, 8], pa.int32())
    done = bucket(data.location, output=str(tmp_path / "sorted"), levels=2, by="quality")
    assert levels_of(ShardedDataset(done.location, levels=2)) == [2, 1, 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (4, pa.int64(), r"pair-0005 has the quality 4 in shard-00001\..* is no level in 1\.\.3"),
        (0, pa.int8(), "has the quality 0 in"),
        (2**40, pa.int64(), "has the quality 1099511627776 in"),
        (None, pa.int64(), "has the quality null in"),
        (2.0, pa.float64(), "needs integers, and the column quality of .* is of type double"),
        ("2", pa.string(), "is of type string; name another column"),
    ],
)  # fmt: skip
def test_columns_that_hold_no_levels(
    tmp_path: Path, value: Any, kind: pa.DataType, said: str
) -> None:
    one = "1" if kind == pa.string() else 1
    data = with_quality(tmp_path, [one] * 5 + [value, one, None], kind)
    with pytest.raises(ContractError, match=said):
        ShardedDataset(data.location, levels=3, relevel=relevel_of("column:quality", 0))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    data = rows.write_rows(tmp_path, rows.pair_rows(8), levels=4)
    with pytest.raises(ContractError, match=r"has no column quality \(it has id, image, "):
        ShardedDataset(data.location, levels=3, relevel=relevel_of("column:quality", 0))


@pytest.mark.parametrize("value", ["column:", "column", "quantiles", "[1, 2]", "Column:a"])
def test_other_values_of_the_key(value: str) -> None:
    with pytest.raises(InputError, match=r"^data\.levels in --set data\.levels=.* should be "):
        load_recipe("demo", "pretrain", [f"data.levels={value}"])


def test_the_key_is_null_where_nobody_sets_it() -> None:
    """So that checkpoints of before it go on."""
    assert load_recipe("demo", "pretrain").settings["data"]["levels"] is None
    chosen = load_recipe("demo", "pretrain", ["data.levels=random"])
    assert chosen.data.levels == "random"
    chosen = load_recipe("demo", "pretrain", ["data.levels=column:how good"])
    assert chosen.data.levels == "column:how good"
