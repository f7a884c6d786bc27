"""Rows by number, and what is refused before anything is trained."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignshared import ContractError, InputError
from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.index import read_index
from tests.trainer.rows import pair_rows, picture, talk_rows, write_rows


def change_manifest(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_rows_come_by_number_from_any_shard_and_row_group(tmp_path: Path) -> None:
    rows = pair_rows(50)
    write_rows(tmp_path, rows, levels=4, shards=3, group_rows=7)
    shards = ShardedDataset(tmp_path, levels=4)
    assert len(shards) == 50
    assert len(shards.row_groups) == 9
    for number in np.random.default_rng(0).permutation(50).tolist():
        row = shards.row(number)
        assert (row.id, row.image, row.caption, row.level) == (
            f"pair-{number:04d}", picture(number), rows[number]["caption"], rows[number]["level"]
        )  # fmt: skip
    with pytest.raises(IndexError):
        shards.row(50)


def test_text_only_rows_have_no_image(tmp_path: Path) -> None:
    write_rows(tmp_path, talk_rows(6))
    shards = ShardedDataset(tmp_path, conversations=True)
    text, talk = shards.row(0), shards.row(1)
    assert (text.image, text.level) == (None, None)
    assert talk.image == picture(1)
    assert [turn.text for turn in talk.turns] == ["<image>\nquestion 1", "answer 1 word"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    write_rows(tmp_path, pair_rows(60), levels=4, group_rows=5)
    small = ShardedDataset(tmp_path, levels=4, cache_bytes=4000)
    for number in range(60):
        small.row(number)
        kept = list(small._cache.values())
        assert sum(table.nbytes for table in kept) <= 4000 or len(kept) == 1
    assert len(small._cache) < 12
    assert small.row(0).id == "pair-0000"


def test_shards_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_rows(tmp_path, pair_rows(20), levels=4)
    shards = ShardedDataset(tmp_path, levels=4)
    before = shards.row(3)
    sent = pickle.loads(pickle.dumps(shards))
    assert not sent._cache
    assert sent.row(3) == before


def test_index_knows_length_and_modality_of_every_row(tmp_path: Path) -> None:
    rows = talk_rows(40)
    rows[5]["conversations"] = None
    write_rows(tmp_path, rows)
    index = read_index(ShardedDataset(tmp_path, conversations=True), conversations=True)
    said = [sum(len(turn["value"]) for turn in row["conversations"] or ()) for row in rows]
    said[5] = len(rows[5]["caption"])
    assert index.lengths.tolist() == said
    assert index.has_image.tolist() == [row["image"] is not None for row in rows]
    assert index.conversations == 39


def test_split_is_by_id_alone(tmp_path: Path) -> None:
    rows = pair_rows(400)
    write_rows(tmp_path / "a", rows, levels=4)
    write_rows(tmp_path / "b", list(reversed(rows))[:300], levels=4, shards=3)
    whole = read_index(ShardedDataset(tmp_path / "a", levels=4))
    held_out = whole.validation_rows(0.2)
    train = whole.train_rows(0.2)
    assert sorted([*held_out.tolist(), *train.tolist()]) == list(range(400))
    assert 50 < len(held_out) < 110
    assert set(whole.validation_rows(0.1).tolist()) < set(held_out.tolist())
    part = ShardedDataset(tmp_path / "b", levels=4)
    there = {part.row(number).id for number in read_index(part).validation_rows(0.2).tolist()}
    assert there == {f"pair-{n:04d}" for n in held_out.tolist() if n >= 100}
    assert not len(whole.validation_rows(0))
    with pytest.raises(InputError, match=r"data\.validation_share 1 cannot be"):
        whole.train_rows(1)


def test_unlevelled_data_are_refused_for_pretraining(tmp_path: Path) -> None:
    write_rows(tmp_path, talk_rows(4))
    with pytest.raises(ContractError, match=r"is not sorted into levels .*aligncurate bucket"):
        ShardedDataset(tmp_path, levels=8)


def test_another_number_of_levels_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, pair_rows(20), levels=4)
    with pytest.raises(
        ContractError, match="has 4 levels and the recipe 8; run aligncurate bucket --levels 8"
    ):
        ShardedDataset(tmp_path, levels=8)


@pytest.mark.parametrize(("level", "said"), [(5, "level 5"), (0, "level 0"), (None, "level None")])
def test_a_level_out_of_range_is_refused(tmp_path: Path, level: Any, said: str) -> None:
    rows = pair_rows(20)
    rows[13]["level"] = level
    write_rows(tmp_path, rows, levels=4)
    with pytest.raises(
        ContractError, match=rf"pair-0013 in shard-00001\.parquet .*{said}, which is not in 1\.\.4"
    ):
        read_index(ShardedDataset(tmp_path, levels=4))


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, pair_rows(20), levels=4)
    change_manifest(tmp_path, schema_version=99)
    with pytest.raises(ContractError, match="has schema version 99, this version reads 1; upgrade"):
        ShardedDataset(tmp_path, levels=4)


def test_changed_bytes_are_found_by_their_checksum(tmp_path: Path) -> None:
    write_rows(tmp_path, pair_rows(20), levels=4)
    shards = ShardedDataset(tmp_path, levels=4)
    shards.verify()
    file = tmp_path / "shard-00001.parquet"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    with pytest.raises(ContractError, match=r"shard-00001\.parquet .* is not what its manifest"):
        shards.verify()


def test_a_missing_or_shorter_shard_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", pair_rows(20), levels=4)
    write_rows(tmp_path / "b", pair_rows(10), levels=4)
    shorter = (tmp_path / "b/shard-00001.parquet").read_bytes()
    (tmp_path / "a/shard-00001.parquet").write_bytes(shorter)
    with pytest.raises(ContractError, match=r"shard-00001\.parquet .* has 5 rows, unlike"):
        ShardedDataset(tmp_path / "a", levels=4)
    (tmp_path / "a/shard-00001.parquet").unlink()
    with pytest.raises(ContractError, match=r"lacks shard-00001\.parquet"):
        ShardedDataset(tmp_path / "a", levels=4)


def test_pairs_are_refused_where_conversations_are_needed(tmp_path: Path) -> None:
    write_rows(tmp_path, pair_rows(20), levels=4)
    with pytest.raises(InputError, match="captions and no conversations; give data that aligncur"):
        read_index(ShardedDataset(tmp_path, conversations=True), conversations=True)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, [])
    with pytest.raises(InputError, match="is empty; its rejects tell why"):
        ShardedDataset(tmp_path)
