"""LLaVA's JSON, with the level in the field `similarity` for the AlignGPT authors' trainer.

    {"id": ..., "image": "images/00000/000000000.jpg", "conversations": [...], "similarity": 7}

`similarity` is the level counted from 0, as in their trainer, which ignores `score`. Image paths
are relative to the folder of the JSON.
"""

from typing import Any

from aligncurate.exports.spans import (
    Span,
    WrittenSpan,
    image_suffix,
    json_line,
    row_dicts,
    row_name,
)
from alignshared import Dataset, ShardInfo, Storage
from alignshared.manifest import RUN_FOLDER
from alignshared.schema import LEVEL_COLUMN

PAIRS_FILE = "pairs.json"
IMAGES_FOLDER = "images"
PAIRS_PER_FOLDER = 1_000

_COLUMNS = ("id", "image", "caption", "conversations", "score", LEVEL_COLUMN)
_REQUEST = "Provide a brief description of the given image."
"""A prompt of LLaVA-Pretrain; the pre-training template discards it."""


class LlavaExporter:
    """`pairs.json` plus images in `images/`, one folder per span."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._columns = [name for name in _COLUMNS if name in dataset.schema.names]

    def write(self, span: Span, output: Storage) -> WrittenSpan:
        """Write the images of `span`, and its records to a partial list."""
        images = rows = 0
        with output.writing(_part(span.index)) as part:
            for number, row in row_dicts(self._dataset, span, self._columns):
                image = None
                content = (row.pop("image", None) or {}).get("bytes")
                if content is not None:
                    name = f"{row_name(number)}.{image_suffix(content)}"
                    image = f"{IMAGES_FOLDER}/{span.index:05d}/{name}"
                    # Syncing every image to disk would dominate the run time.
                    output.write_bytes(image, content, durable=False)
                    images += 1
                part.write(json_line(_record(row, image)) + b"\n")
                rows += 1
        return WrittenSpan(span.index, rows, [], images, rows - images)

    def finish(self, output: Storage, spans: list[WrittenSpan]) -> list[ShardInfo]:
        """Merge the partial lists into `pairs.json`, record by record."""
        with output.writing(PAIRS_FILE) as whole:
            separator = b"[\n"
            for span in spans:
                for line in output.read_bytes(_part(span.index)).splitlines():
                    whole.write(separator + line)
                    separator = b",\n"
            whole.write(b"\n]\n")
        rows = sum(span.rows for span in spans)
        return [ShardInfo(PAIRS_FILE, rows, whole.bytes_written, whole.sha256)]


def _part(index: int) -> str:
    return f"{RUN_FOLDER}/parts/{index:07d}.jsonl"


def _record(row: dict[str, Any], image: str | None) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row["id"]}
    if image is not None:
        record["image"] = image
    turns = row.get("conversations")
    record["conversations"] = _turns(row, image) if turns is None else turns
    if row.get(LEVEL_COLUMN) is not None:
        record["similarity"] = row[LEVEL_COLUMN] - 1
    if row.get("score") is not None:
        record["score"] = row["score"]
    return record


def _turns(row: dict[str, Any], image: str | None) -> list[dict[str, str]]:
    """Conversation of a plain pair, as in LLaVA-Pretrain."""
    request = _REQUEST if image is None else f"{_REQUEST}\n<image>"
    return [{"from": "human", "value": request}, {"from": "gpt", "value": row.get("caption") or ""}]
