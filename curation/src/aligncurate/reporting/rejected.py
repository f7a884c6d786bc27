"""Rejects of a dataset and its ancestors by reason, with examples."""

from collections import defaultdict
from dataclasses import dataclass

import pyarrow as pa

from alignshared import Dataset

_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class RejectedFor:
    """Rejects of one stage for one reason; `examples` are rows of REJECT_SCHEMA."""

    stage: str
    reason: str
    count: int
    examples: list[dict[str, str | None]]


def rejected(dataset: Dataset, examples: int) -> list[RejectedFor]:
    """Rejects of `dataset`, most frequent reason first, with up to `examples` of each."""
    manifest = dataset.manifest
    examples_of = _first_of_each(dataset, examples)
    return [
        RejectedFor(manifest.stage, reason, count, examples_of.get(reason, []))
        for reason, count in sorted(manifest.rejects.items(), key=lambda item: (-item[1], item[0]))
    ]


def _first_of_each(dataset: Dataset, limit: int) -> dict[str, list[dict[str, str | None]]]:
    """The first `limit` rejects of each reason, read only as far as needed."""
    examples_of: dict[str, list[dict[str, str | None]]] = defaultdict(list)
    missing = {reason: min(limit, n) for reason, n in dataset.manifest.rejects.items()}
    for shard in dataset.manifest.reject_shards:
        with dataset.open_shard(shard) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                _take(batch, missing, examples_of)
                if not any(missing.values()):
                    return examples_of
    return examples_of


def _take(
    batch: pa.RecordBatch,
    missing: dict[str, int],
    examples_of: dict[str, list[dict[str, str | None]]],
) -> None:
    for row in batch.to_pylist():
        if missing.get(row["reason"], 0) > 0:
            missing[row["reason"]] -= 1
            examples_of[row["reason"]].append(row)
