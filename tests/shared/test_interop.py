"""A dataset written through the contract opens in the tools that people have."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alignshared import Reason, Reject
from alignshared.demo import further_path, held_out_path, pairs_path
from alignshared.schema import (
    CONVERSATIONS_TYPE,
    embedding_type,
    scored_schema,
    with_features,
)
from tests.curation.datasets import (
    picture,
    replace_rows,
    write_levelled_dataset,
    write_scored_dataset,
)

SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`datasets`, offline and with its caches in this test's folder."""
    datasets = import_module("datasets")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    cache = tmp_path / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", cache / "extracted")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    yield datasets


def load(hugging_face: Any, files: str, cache: Path) -> Any:
    return hugging_face.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(cache / "hf")
    )


def test_hugging_face_shows_the_pictures(tmp_path: Path, hugging_face: Any) -> None:
    write_levelled_dataset(tmp_path / "bucket", SCORES, levels=2)
    loaded = load(hugging_face, f"{tmp_path}/bucket/shard-*.parquet", tmp_path)
    features = loaded.features
    assert isinstance(features["image"], hugging_face.Image)
    assert features["score"].dtype == "float32"
    assert features["level"].dtype == "int8"
    row = loaded[4]
    assert row["image"].size == (48, 32)
    expected = np.asarray(Image.open(io.BytesIO(picture(4))))
    assert np.array_equal(np.asarray(row["image"]), expected)
    assert (row["id"], row["level"], row["conversations"]) == ("pair-0004", 2, None)
    assert row["score"] == pytest.approx(0.5)


def test_hugging_face_reads_conversations_embeddings_and_extras(
    tmp_path: Path, hugging_face: Any
) -> None:
    extra = pa.schema(
        [
            ("url", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("seen", pa.timestamp("us", tz="UTC")),
            ("weight", pa.float64()),
        ]
    )
    schema = scored_schema(extra, embedding_dim=3)
    source = write_scored_dataset(tmp_path / "score", SCORES[:2])
    embedding = pa.array([[0.0, 0.6, 0.8]] * 2, embedding_type(3))
    columns: dict[str, Any] = {
        "conversations": pa.array([TURNS, None], CONVERSATIONS_TYPE),
        "image_embedding": embedding,
        "text_embedding": embedding,
        "url": ["https://example.org", None],
        "tags": [["a", "b"], []],
        "seen": [datetime(2025, 1, 2, tzinfo=UTC)] * 2,
        "weight": [0.1, 0.2],
    }
    table = source.open_shard(source.manifest.shards[1]).read()
    table = pa.concat_tables([table] * 2).slice(0, 2)
    table = pa.table(
        {n: columns.get(n, table[n] if n in table.schema.names else None) for n in schema.names},
        schema,
    )
    replace_rows(source, table)
    loaded = load(hugging_face, f"{tmp_path}/score/shard-*.parquet", tmp_path)
    assert loaded.features["image_embedding"].length == 3
    assert loaded[0]["conversations"] == TURNS
    assert loaded[0]["image_embedding"] == pytest.approx([0.0, 0.6, 0.8], abs=1e-3)
    assert loaded[0]["tags"] == ["a", "b"]
    assert loaded[1]["url"] is None
    assert loaded[0]["seen"] == datetime(2025, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("path", "least"), [(pairs_path(), 1000), (further_path(), 500), (held_out_path(), 100)]
)
def test_hugging_face_shows_the_demo(
    tmp_path: Path, hugging_face: Any, path: Path, least: int
) -> None:
    loaded = load(hugging_face, str(path), tmp_path)
    assert len(loaded) >= least
    assert isinstance(loaded.features["image"], hugging_face.Image)
    assert loaded[0]["image"].size[0] > 0


def test_duckdb_reads_it(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path / "bucket", SCORES, levels=2)
    rows = duckdb.connect().execute(
        "SELECT level, count(*), min(score), max(octet_length(image.bytes)) > 0, "
        "count(conversations), first(image.path ORDER BY id) "
        f"FROM read_parquet('{tmp_path}/bucket/shard-*.parquet') GROUP BY level ORDER BY level"
    )
    low, high = rows.fetchall()
    assert low == (1, 3, pytest.approx(0.1), True, 0, "0000.png")
    assert high == (2, 3, pytest.approx(0.4), True, 0, "0003.png")


def test_pandas_reads_it(tmp_path: Path) -> None:
    dataset = write_levelled_dataset(tmp_path / "bucket", SCORES, levels=2)
    frames = [pd.read_parquet(tmp_path / "bucket" / s.file) for s in dataset.manifest.shards]
    frame = pd.concat(frames, ignore_index=True)
    assert frame["level"].tolist() == [1, 1, 1, 2, 2, 2]
    assert frame["score"].dtype == np.float32
    assert frame["level"].dtype == np.int8
    means: Any = frame.groupby("level")["score"].mean()
    assert list(means) == pytest.approx([0.2, 0.5])
    first: Any = frame["image"][0]
    assert Image.open(io.BytesIO(first["bytes"])).size == (48, 32)


def test_rejects_beside_the_shards_are_not_read_with_them(tmp_path: Path) -> None:
    rejects = [Reject("x", "x.png", Reason.EMPTY_FILE, "no bytes")]
    dataset = write_scored_dataset(tmp_path / "score", SCORES, rejects=rejects)
    query = f"SELECT count(*) FROM read_parquet('{tmp_path}/score/*.parquet')"
    assert duckdb.connect().execute(query).fetchone() == (6,)
    kept = pd.read_parquet(tmp_path / "score" / dataset.manifest.reject_shards[0].file)
    assert kept["reason"].tolist() == ["empty_file"]


def test_types_that_hugging_face_names_differently(tmp_path: Path, hugging_face: Any) -> None:
    table = pa.table(
        {
            "half": pa.array([0.5], pa.float16()),
            "double": pa.array([0.5], pa.float64()),
            "day": pa.array([20_000], pa.date32()),
            "large": pa.array(["text"], pa.large_string()),
            "flag": pa.array([True]),
        }
    )
    table = table.cast(with_features(table.schema))
    pq.write_table(table, tmp_path / "types.parquet")
    loaded = load(hugging_face, str(tmp_path / "types.parquet"), tmp_path)
    assert loaded[0] | {"day": None} == {
        "half": 0.5, "double": 0.5, "day": None, "large": "text", "flag": True,
    }  # fmt: skip
