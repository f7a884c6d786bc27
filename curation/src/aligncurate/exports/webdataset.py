"""WebDataset tars: of each pair the image, the caption as `.txt`, other columns as `.json`."""

import io
import tarfile
from typing import Any

import pyarrow as pa

from aligncurate.exports.card import write_card
from aligncurate.exports.spans import (
    Span,
    WrittenSpan,
    image_suffix,
    json_line,
    row_dicts,
    row_name,
)
from alignshared import Dataset, ShardInfo, Storage
from alignshared.schema import EMBEDDING_COLUMNS

PAIRS_PER_TAR = 10_000


class WebdatasetExporter:
    """`00000.tar` etc., one for each of `spans` spans; keys are row numbers."""

    def __init__(self, dataset: Dataset, spans: int) -> None:
        self._dataset = dataset
        self._columns = [field.name for field in dataset.schema if _is_written(field)]
        self._digits = max(5, len(str(spans - 1)))

    def write(self, span: Span, output: Storage) -> WrittenSpan:
        """Write the tar of `span`."""
        file = f"{span.index:0{self._digits}d}.tar"
        rows = images = 0
        with output.writing(file) as sink, _tar_into(sink) as tar:
            for number, row in row_dicts(self._dataset, span, self._columns):
                images += _add_pair(tar, row_name(number), row)
                rows += 1
        written = ShardInfo(file, rows, sink.bytes_written, sink.sha256)
        return WrittenSpan(span.index, rows, [written], 0, rows - images)

    def finish(self, output: Storage, spans: list[WrittenSpan]) -> list[ShardInfo]:
        """Write the card; return the tars and the card."""
        files = [file for span in spans for file in span.files]
        return [*files, write_card(output, self._dataset, "*.tar")]


def _tar_into(sink: Any) -> tarfile.TarFile:
    # A ustar stream without seeking, times or users, so that the bytes are reproducible.
    return tarfile.open(fileobj=sink, mode="w|", format=tarfile.USTAR_FORMAT)


def _is_written(field: pa.Field) -> bool:
    """Whether a column is written to the tars: embeddings and bytes do not suit JSON."""
    return field.name == "image" or (
        field.name not in EMBEDDING_COLUMNS and "binary" not in str(field.type)
    )


def _add_pair(tar: tarfile.TarFile, key: str, row: dict[str, Any]) -> bool:
    """Add the files of one pair; return whether it has an image."""
    content = (row.pop("image", None) or {}).get("bytes")
    if content is not None:
        _add(tar, f"{key}.{image_suffix(content)}", content)
    if row.get("caption") is not None:
        _add(tar, f"{key}.txt", row["caption"].encode())
    _add(tar, f"{key}.json", json_line({"key": key} | row))
    return content is not None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
