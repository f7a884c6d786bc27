"""Sources other than Parquet, and what all sources share."""

import json
from pathlib import Path

import pytest

from aligncurate.sources import open_source
from aligncurate.sources.source import cut_into_units, repeated_rows
from alignshared import InputError, Storage
from tests.curation.inputs import good_pairs, record, rejects, rows, write_llava

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


# laion-cc-sbu


def test_laion_cc_sbu_without_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"laion-cc-sbu .*cannot be downloaded") as caught:
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
