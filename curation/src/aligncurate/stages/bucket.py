"""bucket: sort pairs into alignment levels by their scores, or by another column of numbers."""

import logging
from dataclasses import replace
from typing import Any

from aligncurate.levels import EdgesFile, count_scores, find_edges, label, read_edges
from aligncurate.output.folder import config_of, finished_already, input_and_output
from aligncurate.output.shards import require_scores
from aligncurate.settings import called_with
from aligncurate.stages.settings import BucketSettings
from aligncurate.threads import thread_count
from aligncurate.units.run import derived_manifest, write_dataset
from alignshared import Dataset, Manifest, Storage
from alignshared.levels import check_level_count
from alignshared.manifest import REJECTS_FOLDER
from alignshared.schema import SCORE_COLUMN, require_columns

DEFAULT_LEVELS = 8

_log = logging.getLogger("aligncurate")


@called_with(BucketSettings)
def bucket(settings: BucketSettings) -> Dataset:
    """Write the scored dataset `input` to `output` with a `level` for every pair.

    Edges are exact quantiles of all finite scores (see `aligncurate.core.quantiles`), equal
    intervals of their range with `scheme` "equal-width", or those of an earlier run. Equal
    scores share a level. The scores are the numbers, as float32, in the column `by`. Memory is
    constant. Pairs without a finite score become rejects. A finished `output` of the same
    configuration is left as it is.

    Arguments are the fields of `BucketSettings`, which are also the command's options;
    `on_progress` is called with the numbers of pairs read and rejected.

    Raises:
        InputError: invalid arguments or unusable scores or folders.
    """
    threads = thread_count(settings.workers)
    if settings.levels is not None:
        check_level_count(settings.levels)
    edges_file = None if settings.edges is None else read_edges(settings.edges)
    dataset, storage = input_and_output(
        "bucket", settings, "there is nothing to sort into levels; its rejects tell why"
    )
    by = settings.by
    if by is None:
        by = edges_file.edges.by if edges_file else SCORE_COLUMN
    require_columns(dataset.schema, ("id",), dataset.location)
    require_scores(dataset.schema, by, dataset.location)
    config = _config(dataset, settings, edges_file, threads)
    config |= {} if by == SCORE_COLUMN else {"by": by}
    if finished := finished_already(storage, config, overwrite=settings.overwrite):
        return finished

    # Indivisible scores are refused before the output folder is claimed or replaced.
    coarse = count_scores(dataset, threads, by)
    if edges_file is None:
        edges = find_edges(dataset, by, coarse, config["levels"], settings.scheme, threads)
    else:
        edges = replace(edges_file.edges, by=by)
        _warn_of_other_scores(edges_file, dataset, by)

    def write() -> Manifest:
        records, statistics = label(dataset, storage, edges, threads, settings.on_progress)
        manifest = derived_manifest("bucket", dataset, storage, config, records, edges, statistics)
        _warn_of_gaps(manifest, dataset, storage)
        return manifest

    return write_dataset(storage, config, write, overwrite=settings.overwrite)


def _config(
    dataset: Dataset, settings: BucketSettings, edges_file: EdgesFile | None, workers: int
) -> dict[str, Any]:
    if edges_file is None:
        levels = settings.levels or DEFAULT_LEVELS
        return config_of(dataset, workers, levels=levels, scheme=settings.scheme, edges=None)
    edges = edges_file.edges
    config = config_of(
        dataset, workers, levels=edges.levels, scheme=edges.scheme, edges=list(edges.edges)
    )
    config["execution"]["edges_file"] = edges_file.location
    return config


def _warn_of_other_scores(edges_file: EdgesFile, dataset: Dataset, by: str) -> None:
    model, edges_model = dataset.manifest.scorer(by), edges_file.model
    if model is None or not edges_model:
        if edges_file.edges.by != by:
            _log.warning(
                "the edges in %s part %s, and here %s of %s, so the levels of the two may not be "
                "comparable.",
                edges_file.location, edges_file.edges.by, by, dataset.location,
            )  # fmt: skip
        return
    meanings = {
        "weights_sha256": "other weights",
        "view": "another view of images",
        "long_captions": "another treatment of long captions",
    }
    if differences := [
        meaning
        for name, meaning in meanings.items()
        if edges_model.get(name) != getattr(model, name)
    ]:
        _log.warning(
            "the edges in %s part scores of %s than those of %s, so the levels of the two "
            "are not comparable.",
            edges_file.location,
            " and ".join(differences),
            dataset.location,
        )


def _warn_of_gaps(manifest: Manifest, dataset: Dataset, storage: Storage) -> None:
    if manifest.rejects:
        _log.warning(
            "%d of the %d pairs of %s have no finite %s; they are kept in %s.",
            manifest.reject_count,
            dataset.manifest.rows,
            dataset.location,
            manifest.by or SCORE_COLUMN,
            storage.child(REJECTS_FOLDER).location,
        )
    empty = [str(s.level) for s in manifest.level_statistics or () if s.count == 0]
    if empty:
        _log.warning("no pair of %s is in level %s.", dataset.location, ", ".join(empty))
