"""dedup: remove pairs with the same or nearly the same image as another."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter

from aligncurate.checks.manifest import open_dataset
from aligncurate.core.vectors import Vectors, column_of
from aligncurate.duplicates.duplicates import (
    Components,
    Duplicates,
    Verdict,
    exact_duplicates,
    near_duplicates,
)
from aligncurate.duplicates.fingerprints import IMAGE_EMBEDDING, Fingerprints, read_fingerprints
from aligncurate.duplicates.neighbours import NeighbourSearch, SearchFacts
from aligncurate.output.folder import config_of, finished_already, input_and_output
from aligncurate.output.shards import as_mask
from aligncurate.selection.copy import copy_chosen
from aligncurate.settings import OnProgress, called_with
from aligncurate.stages.settings import DedupSettings
from aligncurate.threads import thread_count
from aligncurate.units.run import write_dataset
from alignshared import (
    ContractError,
    Dataset,
    DuplicateInfo,
    InputError,
    Manifest,
    ShardInfo,
    Storage,
)
from alignshared.manifest import RUN_FOLDER
from alignshared.rejects import DUPLICATE_SCHEMA, DUPLICATES_FOLDER, Likeness
from alignshared.schema import require_columns
from alignshared.shards import writing_shard

_KEPT_FILE, _FOUND_FILE = f"{RUN_FOLDER}/kept.bits", f"{RUN_FOLDER}/duplicates.json"

_log = logging.getLogger("aligncurate")


@called_with(DedupSettings)
def dedup(settings: DedupSettings) -> Dataset:
    """Write `input` to `output` without pairs whose image another pair has.

    Exact duplicates are found by SHA-256 of the image bytes, then near ones by a cosine of image
    embeddings of at least `threshold`. Pairs linked by near-duplicate pairs, directly or
    indirectly, form a component, whose preferred pair is kept: that with the highest score, ties
    by least id, or the first in the dataset. Pairs near to it are dropped; with chains "split"
    this repeats with the rest. So every dropped pair is near to a kept one, and kept pairs are not
    near each other. "whole" keeps one pair per component.

    Dropped pairs are listed in `duplicates/` beside the shards, and the manifest has the result
    under `duplicates`. Up to 20,000 images (10,000,000 on GPUs) are compared exhaustively; more
    are compared only within the same region of the space, which finds at least a share of
    `recall` of the pairs, as measured on a sample. A levelled dataset stays levelled.

    Memory per row: 75 bytes, its id and, for near duplicates of many images, 24 bytes per region
    probed, usually a few; 2 bytes per embedding value in a memory-mapped temporary file under
    `$TMPDIR`.

    Arguments are the fields of `DedupSettings`, which are also the command's options;
    `on_progress` is called with the rows read, then compared (not with `exact_only`), then written.

    Raises:
        InputError: invalid arguments or unusable input or folders.
    """
    threads, exact_only = thread_count(settings.workers), settings.exact_only
    dataset, storage = input_and_output(
        "dedup", settings, "there are no duplicates in it", open_dataset
    )
    _check_dataset(dataset, settings)
    near = {"threshold": settings.threshold, "chains": settings.chains, "recall": settings.recall}
    config = config_of(dataset, threads, keep=settings.keep, near=None if exact_only else near)
    if finished := finished_already(storage, config, overwrite=settings.overwrite):
        return finished

    def write() -> Manifest:
        if not storage.exists(_FOUND_FILE):
            _find(dataset, storage, config, threads, settings.on_progress)
        else:
            settings.on_progress(dataset.manifest.rows * (1 if exact_only else 2))
        info = TypeAdapter(DuplicateInfo).validate_json(storage.read_bytes(_FOUND_FILE))
        bits = np.frombuffer(storage.read_bytes(_KEPT_FILE), np.uint8)
        kept = np.unpackbits(bits).astype(np.bool_)
        masks = [as_mask(kept[begin:end]) for _, begin, end in _spans(dataset)]
        manifest = copy_chosen(
            dataset, storage, "dedup", config, masks, threads, settings.on_progress
        )
        return replace(manifest, duplicates=info)

    return write_dataset(storage, config, write, overwrite=settings.overwrite)


def _check_dataset(dataset: Dataset, settings: DedupSettings) -> None:
    schema = dataset.schema
    needed = ("id", "image") if settings.exact_only else ("id",)
    require_columns(schema, needed, dataset.location)
    if settings.keep == "best":
        if "score" not in schema.names:
            raise InputError(
                f"{dataset.location} has no scores to choose by; give --keep first, or run "
                "aligncurate score first."
            )
        require_columns(schema, ("score",), dataset.location)
    if not settings.exact_only and IMAGE_EMBEDDING not in schema.names:
        raise ContractError(
            f"{dataset.location} has no image embeddings, by which near duplicates are found; "
            "score the pairs again with --embeddings, or give --exact-only."
        )


def _find(
    dataset: Dataset,
    storage: Storage,
    config: dict[str, Any],
    workers: int,
    on_progress: OnProgress,
) -> None:
    """Decide which rows are dropped, list them in `duplicates/`, and save which are kept."""
    near = config["near"]
    with TemporaryDirectory(prefix="aligncurate-dedup-") as scratch:
        prints = read_fingerprints(
            dataset,
            Path(scratch, "embeddings.f16"),
            scores=config["keep"] == "best",
            embeddings=near is not None,
            workers=workers,
            on_progress=on_progress,
        )
        rank = prints.preference(by_score=config["keep"] == "best")
        found, facts = exact_duplicates(prints.digests, rank), None
        if near is not None:
            found, facts = _find_near(prints, found, rank, near, workers, on_progress)
    # Written before the shards, so that an interrupted run keeps the slowest step.
    storage.write_bytes(_KEPT_FILE, np.packbits(found.verdict == Verdict.KEPT).tobytes())
    shards = list(_write_duplicates(dataset, storage, prints.ids, found))
    storage.write_json(_FOUND_FILE, asdict(_info(found, facts, shards)))


def _find_near(
    prints: Fingerprints,
    exact: Duplicates,
    rank: npt.NDArray[np.int64],
    near: dict[str, Any],
    workers: int,
    on_progress: OnProgress,
) -> tuple[Duplicates, SearchFacts]:
    assert prints.embeddings is not None
    rows = np.flatnonzero(exact.verdict == Verdict.KEPT)
    vectors = Vectors(prints.embeddings, rows)
    search = NeighbourSearch(vectors, near["threshold"], target=near["recall"], threads=workers)
    _tell(search.facts, len(rows))
    components = Components(len(rows))
    on_progress(len(rank) - len(rows))
    for block in search.pairs():
        components.join(block.first, block.second)
        on_progress(block.rows)
    found = near_duplicates(
        exact, components, rows, rank, vectors, near["threshold"],
        whole_chains=near["chains"] == "whole",
    )  # fmt: skip
    return found, search.facts


def _tell(facts: SearchFacts, rows: int) -> None:
    if facts.method == "exact":
        return
    _log.info(
        "comparing each of %s different images with those in the %s nearest of %s cells, which "
        "finds %.1f %% of the near pairs, as measured on %s %s.",
        f"{rows:,}", facts.probes, f"{facts.cells:,}", 100 * facts.recall, facts.recall_pairs,
        "made-up ones, as hardly any were met" if facts.planted else "of them",
    )  # fmt: skip


def _write_duplicates(
    dataset: Dataset, storage: Storage, ids: pa.ChunkedArray, found: Duplicates
) -> Iterator[ShardInfo]:
    """Write one file for each shard of `dataset` that loses rows."""
    kinds = pa.array(["", Likeness.EXACT.value, Likeness.NEAR.value])
    for shard, begin, end in _spans(dataset):
        gone = begin + np.flatnonzero(found.verdict[begin:end] != Verdict.KEPT)
        if not len(gone):
            continue
        columns = [
            ids.take(column_of(gone)),
            ids.take(column_of(found.kept[gone])),
            column_of(found.cosine[gone]),
            kinds.take(column_of(found.verdict[gone])),
        ]
        table = pa.table(columns, names=DUPLICATE_SCHEMA.names).cast(DUPLICATE_SCHEMA)
        file = f"{DUPLICATES_FOLDER}/{shard.file}"
        with writing_shard(storage, file, DUPLICATE_SCHEMA) as (writer, result):
            writer.write(table)
        yield result.info


def _spans(dataset: Dataset) -> Iterator[tuple[ShardInfo, int, int]]:
    shards = dataset.manifest.shards
    ends = list(accumulate(shard.rows for shard in shards))
    for shard, end in zip(shards, ends, strict=True):
        yield shard, end - shard.rows, end


def _info(found: Duplicates, facts: SearchFacts | None, shards: list[ShardInfo]) -> DuplicateInfo:
    gone = np.flatnonzero(found.verdict != Verdict.KEPT)
    led = np.bincount(found.kept[gone], minlength=1)
    return DuplicateInfo(
        exact=found.count(Verdict.EXACT),
        near=found.count(Verdict.NEAR),
        clusters=int(np.count_nonzero(led)),
        largest=int(led.max()) + 1 if len(gone) else 0,
        chains=found.components,
        longest=found.largest,
        search=None if facts is None else asdict(facts),
        shards=shards,
    )
