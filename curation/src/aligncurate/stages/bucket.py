"""bucket: sort scored pairs into alignment levels."""

import logging
from typing import Any, get_args

from aligncurate.levels.edges import EdgesFile, count_scores, find_edges, read_edges
from aligncurate.levels.label import Labelled, label
from aligncurate.output.folder import config_of, finished_already, input_and_output
from aligncurate.progress import OnProgress, silent
from aligncurate.settings import Location, require_one_of
from aligncurate.threads import thread_count
from aligncurate.units.records import manifest_fields
from aligncurate.units.run import write_dataset
from alignshared import Dataset, InputError, LevelEdges, Manifest, Parent, Storage
from alignshared.levels import Scheme, check_level_count, levels_to_json
from alignshared.manifest import LEVELS_FILE, REJECTS_FOLDER
from alignshared.schema import require_columns

DEFAULT_LEVELS = 8

_log = logging.getLogger("aligncurate")


def bucket(
    input: Location | None = None,
    output: Location | None = None,
    *,
    levels: int | None = None,
    edges: Location | None = None,
    scheme: Scheme = "quantile",
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Write the scored dataset `input` to `output` with a `level` for every pair.

    Edges are exact quantiles of all finite scores (see `aligncurate.core.quantiles`), equal
    intervals of their range with `scheme` "equal-width", or those of an earlier run. Equal
    scores share a level. Memory is constant. Pairs without a finite score become rejects. A
    finished `output` of the same configuration is left as it is.

    Args:
        input: a scored dataset; by default the newest one under `data/`.
        output: a new folder; by default `bucket` beside `input`.
        levels: N, from 2 to 127; 8 if neither `levels` nor `edges` is given.
        edges: `levels.json` or `manifest.json` of an earlier run, to reuse its edges.
        scheme: method for finding edges; ignored with `edges`.
        workers: threads; by default one per core.
        overwrite: replace a dataset or unfinished run in `output`.
        on_progress: called with the number of pairs read and how many of them were rejected.

    Returns:
        The levelled dataset.

    Raises:
        InputError: invalid arguments or unusable scores or folders.
    """
    threads = thread_count(workers)
    edges_file = _check_arguments(levels, edges, scheme)
    dataset, storage = input_and_output("bucket", input, output, ("score",))
    if dataset.manifest.rows == 0:
        raise InputError(
            f"{dataset.location} is empty, so there is nothing to sort into levels; "
            "its rejects tell why."
        )
    require_columns(dataset.schema, ("id", "score"), dataset.location)
    config = _config(dataset, levels or DEFAULT_LEVELS, edges_file, scheme, threads)
    if finished := finished_already(storage, config, overwrite=overwrite):
        return finished

    # Indivisible scores are refused before the output folder is claimed or replaced.
    coarse = count_scores(dataset, threads)
    if edges_file is None:
        level_edges = find_edges(dataset, coarse, config["levels"], scheme, threads)
    else:
        level_edges = edges_file.edges
        _warn_of_other_scores(edges_file, dataset)

    def write() -> Manifest:
        labelled = label(dataset, storage, level_edges, threads, on_progress)
        storage.write_json(LEVELS_FILE, levels_to_json(level_edges, labelled.statistics))
        manifest = _manifest(labelled, dataset, level_edges, config)
        _warn_of_gaps(manifest, dataset, storage)
        return manifest

    return write_dataset(storage, config, write, overwrite=overwrite)


def _check_arguments(levels: int | None, edges: Location | None, scheme: str) -> EdgesFile | None:
    if levels is not None and edges is not None:
        raise InputError(
            "--levels and --edges were both given; give --levels to find edges in the data, or "
            "--edges to use those of an earlier run."
        )
    if levels is not None:
        check_level_count(levels)
    require_one_of("--scheme", scheme, get_args(Scheme))
    return None if edges is None else read_edges(edges)


def _config(
    dataset: Dataset, levels: int, edges_file: EdgesFile | None, scheme: Scheme, workers: int
) -> dict[str, Any]:
    if edges_file is None:
        return config_of(dataset, workers, levels=levels, scheme=scheme, edges=None)
    edges = edges_file.edges
    config = config_of(
        dataset, workers, levels=edges.levels, scheme=edges.scheme, edges=list(edges.edges)
    )
    config["execution"]["edges_file"] = edges_file.location
    return config


def _warn_of_other_scores(edges_file: EdgesFile, dataset: Dataset) -> None:
    model, edges_model = dataset.manifest.model, edges_file.model
    if model is None or not edges_model:
        return
    differences = [
        difference
        for name, difference in (
            ("weights_sha256", "other weights"),
            ("view", "another view of images"),
            ("long_captions", "another treatment of long captions"),
        )
        if edges_model.get(name) != getattr(model, name)
    ]
    if differences:
        _log.warning(
            "the edges in %s part scores of %s than those of %s, so the levels of the two "
            "are not comparable.",
            edges_file.location,
            " and ".join(differences),
            dataset.location,
        )


def _manifest(
    labelled: Labelled, dataset: Dataset, edges: LevelEdges, config: dict[str, Any]
) -> Manifest:
    return Manifest(
        stage="bucket",
        config=config,
        parents=[Parent(config["input"], config["input_sha256"])],
        model=dataset.manifest.model,
        models=dataset.manifest.models,
        scheme=edges.scheme,
        edges=list(edges.edges),
        level_statistics=labelled.statistics,
        **manifest_fields(labelled.records),
    )


def _warn_of_gaps(manifest: Manifest, dataset: Dataset, storage: Storage) -> None:
    if manifest.rejects:
        _log.warning(
            "%d of the %d pairs of %s have no finite score; they are kept in %s.",
            manifest.reject_count,
            dataset.manifest.rows,
            dataset.location,
            storage.child(REJECTS_FOLDER).location,
        )
    empty = [str(s.level) for s in manifest.level_statistics or () if s.count == 0]
    if empty:
        _log.warning("no pair of %s is in level %s.", dataset.location, ", ".join(empty))
