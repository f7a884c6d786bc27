"""The manifest is read as it was written; what cannot be read is said, with what to do."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignshared import (
    ContractError,
    Dataset,
    LevelStatistics,
    Manifest,
    ModelInfo,
    Parent,
    ShardInfo,
    Storage,
)
from alignshared.manifest import MANIFEST_FILE, manifest_digest, read_manifest, write_manifest
from alignshared.schema import SCHEMA_VERSION

SCORED = Manifest(
    stage="score",
    rows=2,
    rejects={"corrupt_image": 2, "no_caption": 1},
    shards=[ShardInfo("shard-00000.parquet", 2, 1234, "ab" * 32)],
    reject_shards=[ShardInfo("rejects/shard-00000.parquet", 3, 99, "cd" * 32)],
    config={"input": "demo", "precision": "fp32", "execution": {"workers": 2}},
    parents=[Parent("/data/pairs.parquet", None)],
    package="aligncurate 0.1.0",
    created="2025-01-02T03:04:05+00:00",
    model=ModelInfo("ViT-L-14-336", "openai", "ef" * 32, 336, "fp32"),
)
LEVELLED = replace(
    SCORED,
    stage="bucket",
    scheme="quantile",
    edges=[0.20000000298023224],
    level_statistics=[
        LevelStatistics(1, 2, 1.0, 0.1, 0.05, 0.15),
        LevelStatistics(2, 0, 0.0, None, None, None),
    ],
)


PADDED = ModelInfo("demo", "w", "ab" * 32, 48, "fp32", view="pad", decode="fast")
SEVERAL = replace(
    SCORED, model=PADDED, models={"a": PADDED, "b": replace(PADDED, long_captions="mean")}
)


@pytest.mark.parametrize(
    "manifest",
    [SCORED, LEVELLED, SEVERAL, replace(LEVELLED, by="rating")],
    ids=["scored", "levelled", "several", "by"],
)
def test_it_is_read_as_it_was_written(tmp_path: Path, manifest: Manifest) -> None:
    storage = Storage(tmp_path)
    digest = write_manifest(storage, manifest)
    assert read_manifest(storage) == manifest
    assert digest == manifest_digest(storage) == Dataset(tmp_path).digest
    assert digest == hashlib.sha256((tmp_path / MANIFEST_FILE).read_bytes()).hexdigest()


def test_what_is_not_used_is_not_written(tmp_path: Path) -> None:
    # So a reader from before these fields goes on reading what does not use them.
    write_manifest(Storage(tmp_path), SCORED)
    fields = Storage(tmp_path).read_json(MANIFEST_FILE)
    assert "models" not in fields
    assert not {"view", "long_captions", "decode"} & fields["model"].keys()
    write_manifest(Storage(tmp_path), SEVERAL)
    fields = Storage(tmp_path).read_json(MANIFEST_FILE)
    assert fields["models"]["a"] == fields["model"]
    assert fields["model"].keys() - {"view", "decode"} == set(ModelInfo.__slots__) - {
        "view", "long_captions", "decode",
    }  # fmt: skip


def test_the_same_manifest_has_the_same_digest(tmp_path: Path) -> None:
    first = write_manifest(Storage(tmp_path / "a"), LEVELLED)
    second = write_manifest(Storage(tmp_path / "b"), replace(LEVELLED))
    # Moving a dataset does not change what its children call it.
    (tmp_path / "a").rename(tmp_path / "moved")
    assert first == second == manifest_digest(Storage(tmp_path / "moved"))
    assert write_manifest(Storage(tmp_path / "c"), replace(LEVELLED, rows=3)) != first


def test_it_counts_rejects_and_holds_edges() -> None:
    assert SCORED.reject_count == 3
    assert SCORED.level_edges is None
    edges = LEVELLED.level_edges
    assert edges is not None
    assert (edges.edges, edges.levels, edges.scheme) == ((0.20000000298023224,), 2, "quantile")


def rewritten(folder: Path, changes: dict[str, Any], drop: str | None = None) -> Storage:
    """A folder with SCORED as its manifest, but for some fields."""
    storage = Storage(folder)
    write_manifest(storage, SCORED)
    fields = storage.read_json(MANIFEST_FILE) | changes
    fields.pop(drop, None)
    storage.write_json(MANIFEST_FILE, fields)
    return storage


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (SCHEMA_VERSION + 1, "upgrade this package"),
        (SCHEMA_VERSION - 1, "write the dataset again"),
        ("2.0", "write the dataset again"),
        (None, "write the dataset again"),
    ],
)
def test_another_schema_version(tmp_path: Path, version: Any, remedy: str) -> None:
    storage = rewritten(tmp_path, {"schema_version": version, "new_field": 1})
    message = f"{tmp_path} has schema version {version}, this version reads 1; {remedy}"
    with pytest.raises(ContractError, match=message):
        read_manifest(storage)


@pytest.mark.parametrize("field", ["stage", "rows", "shards", "config", "model", "parents"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(ContractError, match=f"lacks or adds a field .*{field}.* write the dataset"):
        read_manifest(rewritten(tmp_path, {}, drop=field))


def test_a_field_too_many_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"lacks or adds a field .*colour"):
        read_manifest(rewritten(tmp_path, {"colour": "red"}))
    with pytest.raises(ContractError, match=r"lacks or adds a field .*crc"):
        read_manifest(rewritten(tmp_path, {"shards": [{"file": "x", "crc": 1}]}))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"rows": 3}'])
def test_what_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ContractError, match=r"manifest\.json in .* is not a manifest; write the"):
        read_manifest(Storage(tmp_path))


def test_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    write_manifest(Storage(tmp_path), LEVELLED)
    told = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert told["edges"] == [0.20000000298023224]
    assert told["schema_version"] == SCHEMA_VERSION


def test_edges_part_the_score_or_the_column_that_is_named() -> None:
    for by, column in ((None, "score"), ("rating", "rating")):
        edges = replace(LEVELLED, by=by).level_edges
        assert edges is not None
        assert edges.by == column


def test_the_model_behind_a_column() -> None:
    assert SEVERAL.scorer("score") == PADDED
    assert SEVERAL.scorer("score_b") == replace(PADDED, long_captions="mean")
    assert SEVERAL.scorer("rating") is None
    assert SCORED.scorer("score_b") is None
