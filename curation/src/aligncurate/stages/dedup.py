"""dedup: remove pairs with the same or nearly the same image as another."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter

from aligncurate.checks.manifest import open_dataset
from aligncurate.core.vectors import Vectors, column_of
from aligncurate.duplicates.components import Components
from aligncurate.duplicates.duplicates import Duplicates, Verdict, exact_duplicates, near_duplicates
from aligncurate.duplicates.fingerprints import IMAGE_EMBEDDING, Fingerprints, read_fingerprints
from aligncurate.duplicates.neighbours import NeighbourSearch, SearchFacts
from aligncurate.output.folder import (
    RUN_FOLDER,
    config_of,
    finished_already,
    input_and_output,
)
from aligncurate.output.shards import as_mask
from aligncurate.progress import OnProgress, silent
from aligncurate.selection.copy import copy_chosen
from aligncurate.settings import Location, require_one_of
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
from alignshared.rejects import (
    DUPLICATE_SCHEMA,
    DUPLICATES_FOLDER,
    Likeness,
)
from alignshared.schema import require_columns
from alignshared.shards import writing_shard

DEFAULT_THRESHOLD = 0.99
"""Lowest threshold in benchmarks/dedup_planted.py, on planted copies and merely similar images,
that loses at most one in twenty images of the hardest kind, drawings.
"""

DEFAULT_RECALL = 0.99

Keep = Literal["best", "first"]
Chains = Literal["split", "whole"]

_KEPT_FILE, _FOUND_FILE = f"{RUN_FOLDER}/kept.bits", f"{RUN_FOLDER}/duplicates.json"

_log = logging.getLogger("aligncurate")


def dedup(  # noqa: PLR0913 the command's options
    input: Location | None = None,
    output: Location | None = None,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    keep: Keep = "best",
    exact_only: bool = False,
    chains: Chains = "split",
    recall: float = DEFAULT_RECALL,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Write `input` to `output` without pairs whose image another pair has.

    Exact duplicates are found by SHA-256 of the image bytes, then near ones by a cosine of image
    embeddings of at least `threshold`. Pairs linked by near-duplicate pairs, directly or
    indirectly, form a component, whose preferred pair is kept. Pairs near to it are dropped;
    with chains "split" this repeats with the rest. So every dropped pair is near to a kept one,
    and kept pairs are not near each other.

    Dropped pairs are listed in `duplicates/` beside the shards. Up to 20,000 images (10,000,000
    on GPUs) are compared exhaustively; more are compared only within the same region of the
    space, which finds at least a share of `recall` of the pairs, as measured on a sample. A
    levelled dataset stays levelled.

    Memory per row: 75 bytes, its id and, for near duplicates of many images, 24 bytes per region
    probed, usually a few; 2 bytes per embedding value in a memory-mapped temporary file under
    `$TMPDIR`.

    Args:
        input: a dataset, for near duplicates one with embeddings; by default the newest under
            `data/`.
        output: a new folder; by default `dedup` beside `input`.
        threshold: least cosine of near duplicates, above 0 and up to 1.
        keep: prefer the pair with the highest score, ties by least id; or the
            first in the dataset.
        exact_only: keep near duplicates; needs no embeddings.
        chains: "whole" keeps one pair per component, whatever its cosine with the others.
        recall: minimum share of pairs to find if not all are compared, in (0, 1].
        workers: threads; by default one per core.
        overwrite: replace a dataset or unfinished run in `output`.
        on_progress: called with the rows read, then compared (not with `exact_only`), then written.

    Returns:
        The dataset; the result is in its manifest under `duplicates`.

    Raises:
        InputError: invalid arguments or unusable input or folders.
    """
    threads = thread_count(workers)
    _check_arguments(threshold, keep, chains, recall)
    dataset, storage = input_and_output("dedup", input, output, ("bucket", "score"), open_dataset)
    _check_dataset(dataset, keep, exact_only=exact_only)
    near = {"threshold": threshold, "chains": chains, "recall": recall}
    config = config_of(dataset, threads, keep=keep, near=None if exact_only else near)
    if finished := finished_already(storage, config, overwrite=overwrite):
        return finished

    def write() -> Manifest:
        if not storage.exists(_FOUND_FILE):
            _find(dataset, storage, config, threads, on_progress)
        else:
            on_progress(dataset.manifest.rows * (1 if exact_only else 2))
        info = TypeAdapter(DuplicateInfo).validate_json(storage.read_bytes(_FOUND_FILE))
        masks = list(_masks(storage.read_bytes(_KEPT_FILE), dataset))
        manifest = copy_chosen(
            dataset, storage, "dedup", config, masks, workers=threads, on_progress=on_progress
        )
        return replace(manifest, duplicates=info)

    return write_dataset(storage, config, write, overwrite=overwrite)


def _check_arguments(threshold: float, keep: str, chains: str, recall: float) -> None:
    for option, share in (("--threshold", threshold), ("--recall", recall)):
        if not 0 < share <= 1:
            raise InputError(f"{option} must be above 0 and at most 1 (got {share}).")
    require_one_of("--keep", keep, get_args(Keep))
    require_one_of("--chains", chains, get_args(Chains))


def _check_dataset(dataset: Dataset, keep: Keep, *, exact_only: bool) -> None:
    if dataset.manifest.rows == 0:
        raise InputError(f"{dataset.location} is empty, so there are no duplicates in it.")
    schema = dataset.schema
    require_columns(schema, ("id", "image") if exact_only else ("id",), dataset.location)
    if keep == "best":
        if "score" not in schema.names:
            raise InputError(
                f"{dataset.location} has no scores to choose by; give --keep first, or run "
                "aligncurate score first."
            )
        require_columns(schema, ("score",), dataset.location)
    if not exact_only and IMAGE_EMBEDDING not in schema.names:
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


def _masks(bits: bytes, dataset: Dataset) -> Iterator[pa.BooleanArray]:
    """Return the mask of kept rows for each shard."""
    kept = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.bool_)
    for _, begin, end in _spans(dataset):
        yield as_mask(kept[begin:end])
