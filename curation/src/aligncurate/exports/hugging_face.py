"""A folder for `datasets.load_dataset` and the Hub: Parquet of a split `train` and a card."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from aligncurate.exports.spans import Span, WrittenSpan, batches_of
from aligncurate.reporting.format import count_text, printable, score_text, share_text
from aligncurate.reporting.lineage import ancestors
from alignshared import Dataset, ShardInfo, Storage
from alignshared.schema import SCORE_COLUMN, type_name, with_features
from alignshared.shards import writing_shard

PAIRS_PER_FILE = 10_000

CARD_FILE = "README.md"


class HuggingFaceExporter:
    """`data/train-00000-of-00004.parquet` etc., one for each of `spans` spans; `README.md`."""

    def __init__(self, dataset: Dataset, spans: int) -> None:
        self._dataset = dataset
        self._schema = with_features(dataset.schema)
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
        card = _card(self._dataset, self._schema, files)
        sha256 = output.write_bytes(CARD_FILE, card)
        return [*files, ShardInfo(CARD_FILE, 0, len(card), sha256)]


def _card(dataset: Dataset, schema: pa.Schema, files: list[ShardInfo]) -> bytes:
    from huggingface_hub import DatasetCardData

    rows, size = sum(file.rows for file in files), sum(file.bytes for file in files)
    split = {"name": "train", "num_bytes": size, "num_examples": rows}
    data_files = [{"split": "train", "path": "data/train-*"}]
    data = DatasetCardData(
        configs=[{"config_name": "default", "data_files": data_files}],
        dataset_info={
            "features": [{"name": field.name} | feature_of(field) for field in schema],
            "splits": [split],
            "download_size": size,
            "dataset_size": size,
        },
    )
    text = "\n".join(_text(dataset, rows))
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n".encode()


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


def _text(dataset: Dataset, rows: int) -> Iterator[str]:
    manifest, model = dataset.manifest, dataset.manifest.model
    yield from (f"# {count_text(rows, 'image-text pair')}", "")
    if model:
        yield (
            f"`score` is the cosine of image and caption by CLIP {_cell(model.name)} (weights "
            f"{_cell(model.weights)}, {model.precision}, {model.image_size} px, SHA-256 "
            f"`{_cell(model.weights_sha256)}`)."
        )
        yield ""
    if manifest.level_statistics and manifest.edges:
        yield from ("## Levels", "")
        by = _cell(manifest.by or SCORE_COLUMN)
        yield from (f"`level` is 1 plus the number of edges that are not above `{by}`.", "")
        yield f"| level | from {by} | pairs | share | mean {by} |"
        yield "|--:|--:|--:|--:|--:|"
        for level, edge in zip(manifest.level_statistics, (None, *manifest.edges), strict=True):
            yield (
                f"| {level.level} | {score_text(edge)} | {level.count:,} | "
                f"{share_text(level.share)} | {score_text(level.mean)} |"
            )
        yield ""
    yield from ("## Lineage", "")
    yield "| stage | pairs | rejects | left out | SHA-256 of its manifest |"
    yield "|---|--:|--:|--:|---|"
    yield _lineage_row(dataset.digest, dataset)
    # Locations are left out: they are local to the machine that wrote the card.
    for ancestor in ancestors(dataset):
        yield _lineage_row(ancestor.parent.sha256, ancestor.dataset)
    yield from ("", f"Written by {_cell(manifest.package)}.", "", "## Licence", "")
    yield (
        "Images and captions keep the licences of where they come from. Whoever publishes this "
        "names them here, and as `license` in the header."
    )


def _lineage_row(digest: str | None, dataset: Dataset | None) -> str:
    known = f"`{_cell(digest)}`" if digest else ""
    if dataset is None:
        return f"| source or not at hand | | | | {known} |"
    manifest = dataset.manifest
    return (
        f"| {_cell(manifest.stage)} | {manifest.rows:,} | {manifest.reject_count:,} | "
        f"{manifest.left_out:,} | {known} |"
    )


def _cell(text: str) -> str:
    """Escape `text` for a Markdown table cell."""
    return "".join("_" if c in "|`<>[]&\\" else c for c in printable(text))
