"""The largest clusters of a dedup run: a kept pair and the pairs dropped for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aligncurate.reporting.examples import read_rows
from aligncurate.reporting.format import score_text
from aligncurate.reporting.lineage import Ancestor
from aligncurate.reporting.template import pair_card
from alignshared import Dataset, DuplicateInfo

_CLUSTERS = 6
_SHOWN_OF_EACH = 7
_BATCH_ROWS = 1 << 16

_compute: Any = pc  # generated at import, invisible to type checkers


@dataclass(frozen=True, slots=True)
class Clusters:
    """Result of the dedup run at `location`, and its largest clusters for the page.

    A cluster is its `size`, the number `hidden`, and `cards` of the others: the kept pair, then
    those dropped, least similar first.
    """

    location: str
    duplicates: DuplicateInfo
    threshold: float | None
    largest: list[dict[str, Any]]


def find_clusters(dataset: Dataset, lineage: list[Ancestor]) -> Clusters | None:
    """Return the clusters of `dataset`, or of its nearest ancestor from a dedup run; None
    without one.

    Images of dropped pairs are read from that run's input, if still there and unchanged. The ids
    of pairs kept for others are held in memory, with a count each.
    """
    readable = [dataset, *(ancestor.dataset for ancestor in lineage if ancestor.dataset)]
    deduped = next((each for each in readable if each.manifest.duplicates), None)
    if deduped is None or deduped.manifest.duplicates is None:
        return None
    parents = {parent.location: parent.sha256 for parent in deduped.manifest.parents}
    source = next((each for each in readable if parents.get(each.location) == each.digest), None)
    near = deduped.manifest.config.get("near")
    return Clusters(
        location=deduped.location,
        duplicates=deduped.manifest.duplicates,
        threshold=near.get("threshold") if isinstance(near, dict) else None,
        largest=_largest(deduped, source or deduped),
    )


def _largest(dataset: Dataset, source: Dataset) -> list[dict[str, Any]]:
    sizes: dict[str, int] = {}
    for batch in _duplicates(dataset, ["kept_id"]):
        for entry in batch.column(0).value_counts():
            id_ = entry["values"].as_py()
            sizes[id_] = sizes.get(id_, 1) + entry["counts"].as_py()
    # Ties go to the greater id: arbitrary, but reproducible.
    top = nlargest(_CLUSTERS, sizes.items(), key=lambda item: (item[1], item[0]))
    members: dict[str, list[dict[str, Any]]] = {
        id_: [{"id": id_, "cosine": None, "kind": None}] for id_, _ in top
    }
    chosen = pa.array(list(members), pa.string())
    for batch in _duplicates(dataset, None):
        some = batch.filter(_compute.is_in(batch.column("kept_id"), chosen))
        for row in some.to_pylist():
            mates = members[row["kept_id"]]
            mates.append(row)
            mates[1:] = sorted(mates[1:], key=lambda m: (m["cosine"] or 0, m["id"]))[
                :_SHOWN_OF_EACH
            ]
    rows = _rows_of(source, {mate["id"] for mates in members.values() for mate in mates})
    return [
        {
            "size": size,
            "hidden": size - len(members[id_]),
            "cards": [_card(mate, rows.get(mate["id"])) for mate in members[id_]],
        }
        for id_, size in top
    ]


def _duplicates(dataset: Dataset, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    duplicates = dataset.manifest.duplicates
    for shard in duplicates.shards if duplicates else ():
        with dataset.open_shard(shard) as parquet:
            yield from dataset.shard_batches(shard, parquet, columns, _BATCH_ROWS)


def _rows_of(source: Dataset, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Captions, scores and images, by id, of the `ids` found in `source`."""
    wanted_ids = pa.array(sorted(ids), pa.string())
    places: dict[tuple[int, int], str] = {}
    for index, shard in enumerate(source.manifest.shards):
        first = 0
        with source.open_shard(shard) as parquet:
            for batch in source.shard_batches(shard, parquet, ["id"], _BATCH_ROWS):
                inside = _compute.indices_nonzero(
                    _compute.is_in(batch.column(0), wanted_ids)
                ).to_pylist()
                for row in inside:
                    places[index, first + row] = batch.column(0)[row].as_py()
                first += batch.num_rows
    rows = read_rows(source, set(places), ("caption", "score", "image"))
    return {places[place]: row for place, row in rows}


def _card(member: dict[str, Any], row: dict[str, Any] | None) -> dict[str, Any]:
    """Card of a member; `row` is None if its row is no longer readable."""
    known = row or {}
    image = (known.get("image") or {}).get("bytes")
    card = pair_card(member["id"], known.get("caption"), known.get("score"), image)
    cosine = None if member["cosine"] is None else score_text(member["cosine"])
    card |= {"cosine": cosine, "kind": member["kind"]}
    return card | {"missing": "not readable from here"} if row is None else card
