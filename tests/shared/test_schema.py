"""Columns are what the contract says, whoever wrote the file."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignshared import ContractError
from alignshared.schema import (
    CONVERSATIONS_TYPE,
    SCORE_COLUMNS,
    SOURCE_COLUMNS,
    STAGE_COLUMNS,
    embedding_type,
    require_columns,
    scored_schema,
    with_level,
)

CONTRACT = [*SOURCE_COLUMNS, *SCORE_COLUMNS]


def test_a_scored_dataset_has_all_columns_of_the_contract() -> None:
    schema = scored_schema()
    assert schema.names == CONTRACT
    require_columns(schema, CONTRACT, "here")
    require_columns(with_level(schema), [*CONTRACT, "level"], "here")


def test_what_is_missing_is_named_with_what_is_there() -> None:
    message = r"/data/score has no column score, level \(it has id, caption\); run the stage"
    with pytest.raises(ContractError, match=message):
        require_columns(
            pa.schema([("id", pa.string()), ("caption", pa.string())]),
            ["id", "score", "level"],
            "/data/score",
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("id", pa.int64()),
        ("score", pa.float64()),
        ("level", pa.int64()),
        ("image", pa.binary()),
        ("image", pa.struct([("bytes", pa.binary())])),
        ("conversations", pa.list_(pa.string())),
        ("conversations", pa.list_(pa.struct([("role", pa.string()), ("value", pa.string())]))),
    ],
)
def test_a_wrong_type_is_named(name: str, kind: pa.DataType) -> None:
    with pytest.raises(ContractError, match=f"column {name} of here has type .*, the contract"):
        require_columns(pa.schema([(name, kind)]), [name], "here")


def test_columns_of_the_sources_own_may_have_any_type() -> None:
    require_columns(pa.schema([("url", pa.int64())]), ["url"], "here")


@pytest.mark.parametrize("name", ["item", "element", "array_element"])
def test_what_a_reader_calls_the_items_of_a_list_does_not_matter(name: str) -> None:
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    schema = pa.schema([("conversations", pa.list_(pa.field(name, turn)))])
    require_columns(schema, ["conversations"], "here")


@pytest.mark.parametrize("compliant", [True, False])
def test_lists_read_back_from_parquet_keep_the_contract(tmp_path: Path, compliant: bool) -> None:
    turns = [
        [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
        None,
    ]
    table = pa.table({"conversations": pa.array(turns, CONVERSATIONS_TYPE)})
    file = tmp_path / "pairs.parquet"
    # Without pyarrow's own schema in it, as from other writers; both names of items are in use.
    pq.write_table(table, file, store_schema=False, use_compliant_nested_type=compliant)
    require_columns(pq.read_schema(file), ["conversations"], "here")
    assert pq.read_table(file).column("conversations").to_pylist() == turns


def test_extra_columns_come_last_and_level_after_them() -> None:
    extra = pa.schema([pa.field("url", pa.string(), metadata={"a": "b"}), ("lang", pa.string())])
    schema = with_level(scored_schema(extra))
    assert schema.names == [*CONTRACT, "url", "lang", "level"]
    assert with_level(schema).equals(schema, check_metadata=True)


def test_embeddings_stand_between_scores_and_extras() -> None:
    schema = scored_schema(pa.schema([("url", pa.string())]), embedding_dim=4)
    assert schema.names == [*CONTRACT, "image_embedding", "text_embedding", "url"]
    assert schema.field("image_embedding").type == embedding_type(4) == pa.list_(pa.float16(), 4)
    assert {"score", "level", "image_embedding"} <= set(STAGE_COLUMNS)


def test_hugging_face_is_told_that_images_are_images() -> None:
    schema = with_level(scored_schema(embedding_dim=4))
    assert schema.metadata is not None
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["score"] == {"dtype": "float32", "_type": "Value"}
    assert features["level"] == {"dtype": "int8", "_type": "Value"}
    assert features["image_embedding"]["length"] == 4
