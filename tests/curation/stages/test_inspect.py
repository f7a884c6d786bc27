"""What is in a dataset is told from its manifest and schema alone."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from aligncurate.output.folder import open_output
from aligncurate.reporting.format import flat_config
from aligncurate.reporting.inspection import (
    LEVEL_HEADINGS,
    facts,
    level_rows,
    lineage_rows,
    reject_rows,
)
from aligncurate.stages.inspect import inspect
from aligncurate.units.records import FinishedBatch, Timing, write_unit
from alignshared import InputError, Parent, Reason, Reject, Storage
from alignshared.schema import scored_schema
from tests.curation.datasets import MODEL, write_levelled_dataset, write_scored_dataset

SCORES = [i / 100 for i in range(40)]
REJECTS = [
    Reject("a", None, Reason.NO_IMAGE, "none"),
    Reject("b", "b.png", Reason.MISSING_FILE, "gone"),
    Reject("c", "c.png", Reason.MISSING_FILE, "gone"),
]


def test_a_scored_dataset(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path / "score", SCORES, rejects=REJECTS)
    found = inspect(tmp_path / "score")
    assert found.finished
    assert (found.location, found.stage, found.rows, found.shards) == (
        str(tmp_path / "score"), "score", 40, 3,
    )  # fmt: skip
    assert found.reject_count == 3
    assert reject_rows(found) == [("missing_file", "2"), ("no_image", "1")]
    files = [*(tmp_path / "score").glob("*.parquet"), *(tmp_path / "score").glob("rejects/*")]
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert {c.name: c.type for c in found.columns}["score"] == "float"
    assert [c.name for c in found.columns] == dataset.schema.names
    assert found.model == MODEL
    assert found.edges is None
    assert found.levels == []
    assert found.digest == dataset.digest
    assert found.fault is None
    assert ("execution.workers", "2") in flat_config(found.config)


def test_a_levelled_dataset_and_where_it_came_from(tmp_path: Path) -> None:
    parent = write_scored_dataset(tmp_path / "score", SCORES, parents=[Parent("demo", None)])
    write_levelled_dataset(tmp_path / "bucket", SCORES, parent=parent)
    found = inspect(tmp_path / "bucket")
    rows = level_rows(found)
    quarter = "25.0\N{NARROW NO-BREAK SPACE}%"
    assert [row[0] for row in rows] == ["4", "3", "2", "1"]
    assert rows[0] == (
        "4",
        "0.3000",
        "10",
        quarter,
        "0.3450",
        "0.3000",
        "0.3900",
    )
    assert rows[-1][1] == "–"
    assert all(len(row) == len(LEVEL_HEADINGS) for row in rows)
    assert lineage_rows(found) == [
        (str(tmp_path / "score"), "score, 40 pairs, 0 rejects; unchanged"),
        ("  demo", "source"),
    ]
    assert ("levels", "4, quantile") in facts(found)
    assert dict(facts(found))["model"] == "ViT-L-14-336, weights openai"


def test_without_input_the_newest_dataset_is_meant(workdir: Path) -> None:
    write_scored_dataset(workdir / "data" / "demo" / "score", SCORES)
    assert inspect().location == str(workdir / "data" / "demo" / "score")


def test_no_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_levelled_dataset(tmp_path, SCORES)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a row was read")

    for name in ("iter_batches", "read", "read_row_group", "read_row_groups"):
        monkeypatch.setattr(pq.ParquetFile, name, refuse)
    assert inspect(tmp_path).rows == 40


def test_an_unfinished_run_is_told_as_far_as_it_has_come(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "score")
    open_output(storage, {"input": "demo", "model": "demo"}, overwrite=False)
    empty = scored_schema().empty_table()
    write_unit(storage, 0, scored_schema(), [FinishedBatch(empty, REJECTS, Timing())])
    found = inspect(tmp_path / "score")
    assert not found.finished
    assert (found.stage, found.shards, found.rows, found.reject_count) == (None, 1, 0, 3)
    assert found.config == {"input": "demo", "model": "demo"}
    assert found.bytes > 0
    told = dict(facts(found))
    assert told["state"].startswith("an unfinished run")
    assert told["rejects"] == "3 so far"


def test_an_unfinished_run_with_spoiled_notes_is_still_one(tmp_path: Path) -> None:
    units = tmp_path / ".run" / "units"
    units.mkdir(parents=True)
    (units / "0000000.json").write_text('{"index": 0}')
    (tmp_path / ".run" / "config.json").write_text("{")
    found = inspect(tmp_path)
    assert not found.finished
    assert (found.shards, found.config) == (0, {})


def test_a_first_shard_that_is_gone_or_damaged_is_told(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path, SCORES)
    path = tmp_path / "shard-00000.parquet"
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    for damage in ("cannot be|not a whole|not whole|Parquet", "lacks shard-00000"):
        found = inspect(tmp_path)
        assert found.columns == []
        assert found.rows == 40
        assert found.fault
        assert ("fault", found.fault) in facts(found)
        assert re.search(damage, found.fault)
        path.unlink(missing_ok=True)


def test_edges_that_cannot_be_are_a_fault(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path, SCORES)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"edges": [3, 2, 1]}))
    found = inspect(tmp_path)
    assert found.edges is None
    assert found.fault
    assert "edges" in found.fault


def test_an_empty_dataset(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path, [], shards=1)
    found = inspect(tmp_path)
    assert (found.rows, found.shards, found.fault) == (0, 1, None)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shards": []}))
    found = inspect(tmp_path)
    assert (found.rows, found.shards, found.columns, found.fault) == (0, 0, [], None)


def test_sources_are_told_from_datasets_that_are_gone(tmp_path: Path) -> None:
    records = tmp_path / "pairs.json"
    records.write_text("[]")
    gone = Parent(str(tmp_path / "gone"), "ab" * 32)
    write_scored_dataset(tmp_path / "bucket", SCORES, parents=[gone])
    assert lineage_rows(inspect(tmp_path / "bucket")) == [(gone.location, "not readable from here")]
    write_scored_dataset(tmp_path / "score", SCORES, parents=[Parent(str(records), "cd" * 32)])
    path = tmp_path / "score" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["input"] = {"kind": "llava", "location": str(records)}
    path.write_text(json.dumps(manifest))
    assert lineage_rows(inspect(tmp_path / "score")) == [(str(records), "source")]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="not a dataset"):
        inspect(tmp_path)
