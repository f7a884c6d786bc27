"""A folder for `datasets.load_dataset` and the Hub: Parquet of a split `train` and a card."""

from typing import Any

import pyarrow as pa

from aligncurate.exports.card import write_card
from aligncurate.exports.spans import Span, WrittenSpan, batches_of
from aligncurate.sources.columns import EXPORT_MARK
from alignshared import Dataset, ShardInfo, Storage
from alignshared.schema import type_name, with_features
from alignshared.shards import writing_shard

PAIRS_PER_FILE = 10_000


class HuggingFaceExporter:
    """`data/train-00000-of-00004.parquet` etc., one for each of `spans` spans; `README.md`."""

    def __init__(self, dataset: Dataset, spans: int) -> None:
        self._dataset = dataset
        schema = with_features(dataset.schema)
        # By this `score` knows that columns such as `score` are not the user's own.
        mark = {EXPORT_MARK: b"export --format hf"}
        self._schema: pa.Schema = schema.with_metadata({**(schema.metadata or {}), **mark})
        self._spans = spans

    def write(self, span: Span, output: Storage) -> WrittenSpan:
        """Write the Parquet file of `span` with all columns."""
        file = f"data/train-{span.index:05d}-of-{self._spans:05d}.parquet"
        without = 0
        with writing_shard(output, file, self._schema) as (writer, result):
            for batch in batches_of(self._dataset, span):
                if "image" in self._schema.names:
                    without += batch.column("image").field("bytes").null_count
                writer.write(pa.Table.from_batches([batch]))
        return WrittenSpan(span.index, span.rows, [result.info], 0, without)

    def finish(self, output: Storage, spans: list[WrittenSpan]) -> list[ShardInfo]:
        """Write the card; return the Parquet files and the card."""
        files = [file for span in spans for file in span.files]
        size = sum(file.bytes for file in files)
        rows = self._dataset.manifest.rows
        info = {
            "features": [{"name": field.name} | feature_of(field) for field in self._schema],
            "splits": [{"name": "train", "num_bytes": size, "num_examples": rows}],
            "download_size": size,
            "dataset_size": size,
        }
        card = write_card(output, self._dataset, "data/train-*", dataset_info=info)
        return [*files, card]


def feature_of(field: pa.Field) -> dict[str, Any]:
    """Type of a column in the card's header."""
    return {"dtype": "image"} if field.name == "image" else _feature(field.type)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    is_fixed = pa.types.is_fixed_size_list(kind)
    if pa.types.is_struct(kind):
        return {"struct": [{"name": child.name} | _feature(child.type) for child in kind]}
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or is_fixed):
        return {"dtype": type_name(kind)}
    item = _feature(kind.value_type)
    bare = next(iter(item.values())) if item.keys() & {"dtype", "struct"} else item
    name = "large_list" if pa.types.is_large_list(kind) else "list"
    return {name: bare} | ({"length": kind.list_size} if is_fixed else {})
