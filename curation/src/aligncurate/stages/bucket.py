"""bucket: sort scored pairs into alignment levels."""

import logging
import os
from typing import Any, get_args

from aligncurate.levels.edges import EdgesFile, count_scores, find_edges, read_edges
from aligncurate.levels.label import Labelled, label
from aligncurate.output.folder import OutputState, add_reasons, finish, open_output, provenance
from aligncurate.output.locations import newest_dataset, refuse_to_write_over, sibling_output
from aligncurate.progress import OnProgress, silent
from aligncurate.selection.copy import finished_already
from aligncurate.threads import available_cores
from aligncurate.units.records import released_if_empty
from alignshared import Dataset, InputError, LevelEdges, Manifest, Parent, Storage
from alignshared.levels import Scheme, check_level_count, levels_to_json
from alignshared.manifest import LEVELS_FILE, REJECTS_FOLDER
from alignshared.schema import require_columns

DEFAULT_LEVELS = 8

_log = logging.getLogger("aligncurate")

Location = str | os.PathLike[str]


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

    The edges between levels are exact quantiles of all finite scores (`aligncurate.core.quantiles`
    defines them), equal intervals of their range with `scheme` "equal-width", or those of an
    earlier run. Equal scores share a level. Memory does not grow with the number of rows. Pairs
    without a finite score become rejects. A finished `output` of the same configuration is left as
    it is.

    Args:
        input: a scored dataset; by default the newest one under `data/`.
        output: a new folder; by default `bucket` beside `input`.
        levels: N, from 2 to 127; 8 if neither `levels` nor `edges` is given.
        edges: `levels.json` or `manifest.json` of an earlier run, to put new data on its edges.
        scheme: how to find edges; not looked at with `edges`.
        workers: threads; by default one per core.
        overwrite: replace a dataset or unfinished run in `output`.
        on_progress: called with the number of pairs read and how many of them were rejected.

    Returns:
        The levelled dataset.

    Raises:
        InputError: the arguments, the scores or the folders cannot be used as they are.
    """
    edges_file = _check_arguments(levels, edges, scheme, workers)
    dataset = newest_dataset("score") if input is None else Dataset(input)
    storage = Storage(sibling_output(dataset, "bucket") if output is None else output)
    _check_dataset(dataset, storage)
    threads = workers or available_cores()
    config = _config(dataset, levels or DEFAULT_LEVELS, edges_file, scheme, threads)
    if not overwrite and (finished := finished_already(storage, config)):
        return finished

    # Scores that cannot be parted are refused before the output folder is claimed or replaced.
    coarse = count_scores(dataset, threads)
    if edges_file is None:
        found = find_edges(dataset, coarse, config["levels"], scheme, threads)
    else:
        found = edges_file.edges
        _warn_of_other_scores(edges_file, dataset)
    if open_output(storage, config, overwrite=overwrite) is OutputState.FINISHED:
        return Dataset(storage.location)
    with released_if_empty(storage):
        labelled = label(dataset, storage, found, threads, on_progress)
        storage.write_json(LEVELS_FILE, levels_to_json(found, labelled.statistics))
        _warn_of_gaps(labelled, dataset, storage)
        return finish(storage, _manifest(labelled, dataset, found, config))


def _check_arguments(
    levels: int | None, edges: Location | None, scheme: str, workers: int | None
) -> EdgesFile | None:
    if levels is not None and edges is not None:
        raise InputError(
            "--levels and --edges were both given; give --levels to find edges in the data, or "
            "--edges to use those of an earlier run."
        )
    if levels is not None:
        check_level_count(levels)
    if scheme not in get_args(Scheme):
        raise InputError(f"--scheme {scheme} is unknown; give {' or '.join(get_args(Scheme))}.")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} cannot be: give 1 or more.")
    return None if edges is None else read_edges(edges)


def _check_dataset(dataset: Dataset, storage: Storage) -> None:
    refuse_to_write_over(storage.location, dataset.location)
    if dataset.manifest.rows == 0:
        raise InputError(
            f"{dataset.location} is empty, so there is nothing to sort into levels; "
            "its rejects tell why."
        )
    require_columns(dataset.schema, ("id", "score"), dataset.location)


def _config(
    dataset: Dataset, levels: int, edges_file: EdgesFile | None, scheme: Scheme, workers: int
) -> dict[str, Any]:
    execution: dict[str, Any] = {"workers": workers}
    given = None
    if edges_file is not None:
        given, scheme = edges_file.edges, edges_file.edges.scheme
        execution["edges_file"] = edges_file.location
    return {
        "input": dataset.location,
        "input_sha256": dataset.digest,
        "levels": levels if given is None else given.levels,
        "scheme": scheme,
        "edges": None if given is None else list(given.edges),
        "execution": execution,
    }


def _warn_of_other_scores(edges_file: EdgesFile, dataset: Dataset) -> None:
    model, there = dataset.manifest.model, edges_file.model
    if model is None or not there:
        return
    differences = [
        what
        for name, what in (
            ("weights_sha256", "other weights"),
            ("view", "another view of pictures"),
            ("long_captions", "another treatment of long captions"),
        )
        if there.get(name) != getattr(model, name)
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
    made = provenance()
    return Manifest(
        stage="bucket",
        rows=sum(shard.rows for shard in labelled.shards),
        rejects=add_reasons(part.reasons for part in labelled.rejects),
        shards=labelled.shards,
        reject_shards=[part.info for part in labelled.rejects if part.info],
        config=config,
        parents=[Parent(config["input"], config["input_sha256"])],
        model=dataset.manifest.model,
        models=dataset.manifest.models,
        scheme=edges.scheme,
        edges=list(edges.edges),
        level_statistics=labelled.statistics,
        package=made["package"],
        created=made["created"],
    )


def _warn_of_gaps(labelled: Labelled, dataset: Dataset, storage: Storage) -> None:
    rejected = sum(add_reasons(part.reasons for part in labelled.rejects).values())
    if rejected:
        _log.warning(
            "%d of the %d pairs of %s have no finite score; they are kept in %s.",
            rejected,
            dataset.manifest.rows,
            dataset.location,
            storage.child(REJECTS_FOLDER).location,
        )
    empty = [str(s.level) for s in labelled.statistics if s.count == 0]
    if empty:
        _log.warning("no pair of %s is in level %s.", dataset.location, ", ".join(empty))
