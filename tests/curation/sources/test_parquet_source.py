"""Parquet as a source: pictures and captions kept in any of the usual ways, and files that are not
what they should be.
"""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligncurate.sources import open_source
from alignshared import AlignError, InputError, Reason, Reject, Storage
from alignshared.schema import SOURCE_COLUMNS
from tests.curation.datasets import write_scored_dataset
from tests.curation.inputs import read, rejects, rows, write_parquet
from tests.curation.pictures import photo

PHOTOS = [photo(i) for i in range(4)]
CAPTIONS = [f"caption {i}" for i in range(4)]


def as_struct(with_bytes: bool) -> pa.Array:
    paths = [f"{i}.jpg" for i in range(4)]
    return pa.array(
        [
            {"bytes": data if with_bytes else None, "path": path}
            for data, path in zip(PHOTOS, paths, strict=True)
        ]
    )


PATHS = [f"{i}.jpg" for i in range(4)]
KINDS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "struct with bytes": ({"image": as_struct(True)}, True, True),
    "struct with paths": ({"image": as_struct(False)}, False, True),
    "struct of large binary": (
        {
            "image": pa.StructArray.from_arrays(
                [pa.array(PATHS, pa.large_string()), pa.array(PHOTOS, pa.large_binary())],
                names=["path", "bytes"],
            )
        },
        True,
        True,
    ),
    "bytes": ({"image": PHOTOS}, True, False),
    "large bytes": ({"image": pa.array(PHOTOS, pa.large_binary())}, True, False),
    "image_path": ({"image_path": PATHS}, False, True),
    "path": ({"path": PATHS}, False, True),
    "paths as categories": ({"image": pa.array(PATHS).dictionary_encode()}, False, True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("caption", ["caption", "text", "TEXT"])
def test_pictures_and_captions_may_be_kept_in_many_ways(tmp_path: Path, kind: str, caption: str):
    image, has_bytes, has_path = KINDS[kind]
    path = write_parquet(tmp_path / "in.parquet", {**image, caption: CAPTIONS})
    batch = read(open_source(str(path)), tmp_path)[0]
    assert {f.name: f.type for f in batch.table.schema} == SOURCE_COLUMNS
    for i, row in enumerate(batch.table.to_pylist()):
        assert row == {
            "id": f"in-{i:09d}",
            "image": {
                "bytes": PHOTOS[i] if has_bytes else None,
                "path": f"{i}.jpg" if has_path else None,
            },
            "caption": CAPTIONS[i],
            "conversations": None,
        }


def test_paths_are_relative_to_the_file_unless_a_root_is_given(tmp_path: Path):
    path = write_parquet(tmp_path / "in.parquet", {"path": PATHS, "caption": CAPTIONS})
    assert open_source(str(path)).image_root == str(tmp_path)
    (tmp_path / "pics").mkdir()
    assert open_source(str(path), str(tmp_path / "pics")).image_root == str(tmp_path / "pics")
    with pytest.raises(InputError, match="no folder"):
        open_source(str(path), str(tmp_path / "nowhere"))


def test_own_columns_of_any_type_pass_through(tmp_path: Path):
    own: dict[str, Any] = {
        "url": ["https://a", None, "https://c", "https://d"],
        "nsfw": [0.1, 0.2, None, 0.4],
        "tags": [["a"], [], None, ["b", "c"]],
        "meta": [{"w": 1, "h": 2}] * 4,
        "language": pa.array(["de", "en", "de", None]).dictionary_encode(),
        "path": PATHS,
    }
    path = write_parquet(tmp_path / "in.parquet", {"image": PHOTOS, "caption": CAPTIONS, **own})
    source = open_source(str(path))
    assert source.own_columns().names == list(own)
    table = pa.concat_tables(batch.table for batch in read(source, tmp_path))
    assert table.select(list(own)).to_pydict() == pa.table(own).to_pydict()
    assert table.schema.field("language").type == pa.dictionary(pa.int32(), pa.string())


def test_ids_are_kept_made_where_there_is_none_and_counted_once(tmp_path: Path):
    ids = ["x", None, "x", ""]
    path = write_parquet(tmp_path / "in.parquet", {"id": ids, "image": PHOTOS, "caption": CAPTIONS})
    source = open_source(str(path))
    assert [r["id"] for r in rows(source, tmp_path)] == ["x", "in-000000001", "in-000000003"]
    assert [(r.id, r.reason) for r in rejects(source, tmp_path)] == [("x", "duplicate_id")]


def test_numbers_for_ids_become_text(tmp_path: Path):
    columns = {"id": [7, 8, 7, None], "image": PHOTOS, "caption": CAPTIONS}
    source = open_source(str(write_parquet(tmp_path / "in.parquet", columns)))
    assert [r["id"] for r in rows(source, tmp_path)] == ["7", "8", "in-000000003"]
    assert [r.id for r in rejects(source, tmp_path)] == ["7"]


def test_duplicates_are_found_across_files_and_units(tmp_path: Path):
    for name, ids in (("a", ["1", "2", "3", "4"]), ("b", ["5", "2", "6", "1"])):
        columns = {"id": ids, "image": PHOTOS, "caption": CAPTIONS}
        write_parquet(tmp_path / "in" / f"{name}.parquet", columns)
    source = open_source(str(tmp_path / "in"))
    batches = read(source, tmp_path, shard_rows=1)
    assert [r.id for batch in batches for r in batch.rejects] == ["2", "1"]
    assert sum(batch.rows_in for batch in batches) == 8


def test_made_ids_differ_between_files_of_one_name_in_two_folders(tmp_path: Path):
    for folder in ("a", "b"):
        columns = {"image": PHOTOS[:1], "caption": CAPTIONS[:1]}
        write_parquet(tmp_path / "in" / folder / "part-0.parquet", columns)
    found = rows(open_source(str(tmp_path / "in")), tmp_path)
    assert [row["id"] for row in found] == ["a/part-0-000000000", "b/part-0-000000000"]


@pytest.mark.parametrize("where", ["in", "in/*.parquet", "in/**/*.parquet", "in/a.parquet"])
def test_folders_globs_and_files(tmp_path: Path, where: str):
    for name in ("a", "b", "deep/c"):
        columns = {"id": [name], "image": PHOTOS[:1], "caption": CAPTIONS[:1]}
        write_parquet(tmp_path / "in" / f"{name}.parquet", columns)
    (tmp_path / "in" / "notes.txt").write_text("not Parquet")
    found = [row["id"] for row in rows(open_source(str(tmp_path / where)), tmp_path)]
    expected = {
        "in": ["a", "b", "deep/c"],
        "in/*.parquet": ["a", "b"],
        "in/**/*.parquet": ["a", "b", "deep/c"],
        "in/a.parquet": ["a"],
    }
    assert found == expected[where]


def test_a_dataset_is_read_by_its_manifest(tmp_path: Path):
    reject = Reject("bad", "bad.png", Reason.MISSING_FILE, "gone")
    dataset = write_scored_dataset(tmp_path / "out", [0.1, 0.2, 0.3], rejects=[reject])
    write_parquet(tmp_path / "out" / "stray.parquet", {"image": PHOTOS, "caption": CAPTIONS})
    source = open_source(str(tmp_path / "out"))
    found = rows(source, tmp_path / "work")
    assert [row["id"] for row in found] == ["pair-0000", "pair-0001", "pair-0002"]
    assert source.own_columns().names == []
    assert source.identity()["digest"] == dataset.digest


def test_a_folder_above_datasets_or_unfinished_runs_is_refused(tmp_path: Path):
    write_scored_dataset(tmp_path / "data" / "score", [0.1, 0.2])
    with pytest.raises(InputError, match=r"takes in files of the dataset .*score"):
        open_source(str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"takes in files of the dataset .*score"):
        open_source(str(tmp_path / "data" / "score" / "*.parquet"))
    (tmp_path / "data" / "score" / "manifest.json").unlink()
    (tmp_path / "data" / "score" / ".run").mkdir()
    with pytest.raises(InputError, match="holds an unfinished run"):
        open_source(str(tmp_path / "data" / "score"))


def test_an_empty_dataset_is_one_sentence(tmp_path: Path):
    write_scored_dataset(tmp_path / "out", [], shards=1)
    with pytest.raises(InputError, match="is empty: its manifest lists no pairs"):
        open_source(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"caption": CAPTIONS}, "no column of images or paths: it has caption"),
        ({"image": PHOTOS}, "no column of captions: it has image"),
        ({"image": PHOTOS, "caption": CAPTIONS, "score": [0.1] * 4}, "column score of"),
        ({"image": [1, 2, 3, 4], "caption": CAPTIONS}, "column image of .* is int64"),
        ({"image": [[1]] * 4, "caption": CAPTIONS}, "column image of .* is list"),
        ({"image": PHOTOS, "caption": CAPTIONS, "id": [0.5] * 4}, "column id of .* is double"),
        (
            {"image": PHOTOS, "caption": CAPTIONS, "conversations": CAPTIONS},
            "column conversations of .* is string",
        ),
    ],
)
def test_columns_that_cannot_be_read_are_one_sentence(
    tmp_path: Path, columns: dict[str, Any], says: str
):
    path = write_parquet(tmp_path / "in.parquet", columns)
    with pytest.raises(InputError, match=says) as caught:
        open_source(str(path))
    assert str(path) in str(caught.value)


def test_files_of_two_kinds_are_one_sentence(tmp_path: Path):
    first = {"image": PHOTOS, "caption": CAPTIONS, "note": ["n"] * 4}
    write_parquet(tmp_path / "in" / "a.parquet", first)
    for other, says in (
        ({"image": PHOTOS, "caption": CAPTIONS}, "has no column note"),
        (first | {"note": [1] * 4}, "column note of .* is int64"),
    ):
        write_parquet(tmp_path / "in" / "b.parquet", other)
        with pytest.raises(InputError, match=says) as caught:
            read(open_source(str(tmp_path / "in")), tmp_path)
        assert "b.parquet" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,caption\n1,a cat\n", b"PAR1" + bytes(99)])
def test_a_file_that_is_not_parquet_is_one_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "in.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"in\.parquet is not a whole Parquet file") as caught:
        open_source(str(tmp_path / "in.parquet"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ["snappy", "zstd", "none"])
def test_damage_in_the_middle_of_a_file_names_the_file(tmp_path: Path, codec: str):
    columns = {"image": [photo(i) for i in range(40)], "caption": ["c"] * 40}
    path = write_parquet(
        tmp_path / "in.parquet", columns, compression=codec, row_group_size=10,
        write_page_checksum=True, use_dictionary=False, write_statistics=False,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    middle = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    data[middle + 200 : middle + 400] = bytes(200)
    path.write_bytes(data)
    source = open_source(str(path))
    units = source.plan(Storage(tmp_path / "work"), 10)
    assert sum(b.table.num_rows for b in source.read(units[1], 64)) == 10
    with pytest.raises(AlignError, match=re.escape(f"{path} is not a whole Parquet file")):
        list(source.read(units[2], 64))


def test_a_file_that_goes_away_is_one_sentence(tmp_path: Path):
    path = write_parquet(tmp_path / "in.parquet", {"image": PHOTOS, "caption": CAPTIONS})
    source = open_source(str(path))
    units = source.plan(Storage(tmp_path / "work"), None)
    path.unlink()
    with pytest.raises(InputError, match=r"no in\.parquet in"):
        list(source.read(units[0], 64))


def test_conversations_come_out_readable(tmp_path: Path):
    turns = [[{"from": "human", "value": b"caf\xc3\xa9"}, {"from": "gpt", "value": b"bad \xff"}]]
    bytes_type = pa.list_(pa.struct([("from", pa.string()), ("value", pa.binary())]))
    raw = pa.array(turns * 4, bytes_type)
    text_type = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
    values = raw.values
    text = pa.StringArray.from_buffers(
        len(values), values.field("value").buffers()[1], values.field("value").buffers()[2]
    )
    struct = pa.StructArray.from_arrays([values.field("from"), text], names=["from", "value"])
    column = pa.ListArray.from_arrays(raw.offsets, struct, type=text_type)
    columns = {"image": PHOTOS, "caption": CAPTIONS, "conversations": column}
    found = rows(open_source(str(write_parquet(tmp_path / "in.parquet", columns))), tmp_path)
    assert found[0]["conversations"] == [
        {"from": "human", "value": "café"},
        {"from": "gpt", "value": "bad \ufffd"},
    ]
