"""Sources: what each kind of input gives, whichever way its pictures and captions are kept."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligncurate.sources import RawBatch, Source, open_source
from aligncurate.sources.duplicates import repeated_rows
from aligncurate.sources.source import cut_into_units
from alignshared import AlignError, InputError, Reject, Storage
from alignshared.schema import SOURCE_COLUMNS
from tests.curation.datasets import write_scored_dataset
from tests.curation.inputs import good_pairs, record, write_llava, write_parquet
from tests.curation.pictures import photo

PHOTOS = [photo(i) for i in range(4)]
CAPTIONS = [f"caption {i}" for i in range(4)]


def read(source: Source, work: Path, shard_rows: int | None = None) -> list[RawBatch]:
    units = source.plan(Storage(work / ".run"), shard_rows)
    return [batch for unit in units for batch in source.read(unit, 3)]


def rows(source: Source, work: Path) -> list[dict[str, Any]]:
    return [row for batch in read(source, work) for row in batch.table.to_pylist()]


def rejects(source: Source, work: Path) -> list[Reject]:
    return [reject for batch in read(source, work) for reject in batch.rejects]


# LLaVA


def test_llava_json_and_jsonl_give_the_same_pairs(tmp_path: Path):
    path = good_pairs(tmp_path, 5)
    lines = tmp_path / "pairs.jsonl"
    records = json.loads(path.read_text())
    lines.write_text("\n\n".join(json.dumps(record) for record in records))
    images = str(tmp_path / "images")
    listed = rows(open_source(str(path), images), tmp_path / "a")
    assert listed == rows(open_source(str(lines), images), tmp_path / "b")
    assert listed[1] == {
        "id": "good1",
        "image": {"bytes": None, "path": "good1.jpg"},
        "caption": "a picture of good1",
        "conversations": [
            {"from": "human", "value": "Describe the picture.\n<image>"},
            {"from": "gpt", "value": "a picture of good1"},
        ],
    }


def test_the_caption_is_the_first_answer_and_the_whole_conversation_is_kept(tmp_path: Path):
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": None},
        {"from": "gpt", "value": "Black."},
    ]
    path = write_llava(tmp_path, [{"id": "a", "image": "a.jpg", "conversations": turns}], {})
    (row,) = rows(open_source(str(path)), tmp_path)
    assert row["caption"] == "A cat."
    assert row["conversations"] == turns


def test_a_byte_order_mark_is_no_damage(tmp_path: Path):
    path = good_pairs(tmp_path, 2)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(rows(open_source(str(path)), tmp_path)) == 2


def test_a_line_that_is_not_json_costs_itself(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(record("good"))
    lone_surrogate = json.dumps(record("half a smile", caption="\ud83d"))
    path.write_text("\n".join([good, '{"id": ', "[]", lone_surrogate]))
    source = open_source(str(path))
    assert [row["id"] for row in rows(source, tmp_path)] == ["good"]
    found = rejects(source, tmp_path)
    assert [reject.reason for reject in found] == [
        "malformed_record",
        "malformed_record",
        "invalid_utf8",
    ]
    assert "line 2" in found[0].detail


def test_a_long_file_is_cut_into_units_that_together_are_the_file(tmp_path: Path):
    records = [record(f"r{i}") for i in range(10_000)]
    path = write_llava(tmp_path, records, {})
    source = open_source(str(path))
    units = source.plan(Storage(tmp_path / "work"), 300)
    assert [unit.rows for unit in units] == [300] * 33 + [100]
    ids = [
        id_
        for unit in units[10:12]
        for batch in source.read(unit, 64)
        for id_ in batch.table["id"].to_pylist()
    ]
    assert ids == [f"r{i}" for i in range(3000, 3600)]


# Parquet


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
    path = write_parquet(
        tmp_path / "in.parquet", {"id": ids, "image": PHOTOS, "caption": CAPTIONS}
    )
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
    reject = Reject("bad", "bad.png", "missing_file", "gone")  # type: ignore[arg-type]
    dataset = write_scored_dataset(tmp_path / "out", [0.1, 0.2, 0.3], rejects=_rejects(reject))
    write_parquet(tmp_path / "out" / "stray.parquet", {"image": PHOTOS, "caption": CAPTIONS})
    source = open_source(str(tmp_path / "out"))
    found = rows(source, tmp_path / "work")
    assert [row["id"] for row in found] == ["pair-0000", "pair-0001", "pair-0002"]
    assert source.own_columns().names == []
    assert source.identity()["digest"] == dataset.digest


def _rejects(reject: Any) -> list[Reject]:
    from alignshared import Reason

    return [Reject(reject.id, reject.path, Reason(reject.reason), reject.detail)]


def test_a_folder_above_datasets_or_unfinished_runs_is_refused(tmp_path: Path):
    write_scored_dataset(tmp_path / "data" / "score", [0.1, 0.2])
    with pytest.raises(InputError, match="takes in files of the dataset .*score"):
        open_source(str(tmp_path / "data"))
    with pytest.raises(InputError, match="takes in files of the dataset .*score"):
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
        ({"caption": CAPTIONS}, "no column of pictures or paths: it has caption"),
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
        write_page_checksum=True, use_dictionary=False,
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


# laion-cc-sbu


def test_laion_cc_sbu_without_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="laion-cc-sbu .*cannot be downloaded") as caught:
        open_source("laion-cc-sbu")
    assert "--image-root" in str(caught.value)
    assert "blip_laion_cc_sbu_558k.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_laion_cc_sbu_from_a_folder(tmp_path: Path):
    with pytest.raises(InputError, match=r"blip_laion_cc_sbu_558k\.json is not there"):
        open_source("laion-cc-sbu", str(tmp_path))
    records = [record("004539375", "00453/004539375.jpg", "select luxury furniture")]
    (tmp_path / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))
    source = open_source("laion-cc-sbu", str(tmp_path))
    assert (source.name, source.image_root) == ("laion-cc-sbu", str(tmp_path))
    assert [row["caption"] for row in rows(source, tmp_path)] == ["select luxury furniture"]


# What all share


def test_the_demo_pairs_are_a_source():
    source = open_source("demo")
    assert source.name == "demo"
    assert "caption" not in source.own_columns().names


def test_units_cover_every_row_once():
    units = cut_into_units([("a", 5), ("b", 0), ("c", 3)], 2)
    assert [(u.index, u.file, u.first, u.rows) for u in units] == [
        (0, "a", 0, 2), (1, "a", 2, 2), (2, "a", 4, 1), (3, "c", 0, 2), (4, "c", 2, 1),
    ]  # fmt: skip


def test_units_suit_the_total_within_bounds():
    assert {u.rows for u in cut_into_units([("a", 256)], None)} == {256}
    assert max(u.rows for u in cut_into_units([("a", 40_000)], None)) == 625
    assert max(u.rows for u in cut_into_units([("a", 1_000_000)], None)) == 1024


def test_repeated_rows_are_all_but_the_first():
    assert list(repeated_rows([["a", "b"], ["a", None], [None, "b", "a"]])) == [2, 5, 6]
    assert list(repeated_rows([])) == []
