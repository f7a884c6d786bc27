"""WebDataset tars as written by img2dataset: images, captions in `.txt`, metadata in `.json`.

Planning reads each tar's headers once, on any machine, into an index in the run's folder; workers
read sample parts by offset. A unit is a range of samples of one tar. Nothing is unpacked.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.sources.duplicates import IdColumn, marked_duplicates
from aligncurate.sources.index import write_index
from aligncurate.sources.listing import (
    FoundFile,
    dataset_name,
    find_files,
    listing_digest,
    names_below,
    opened,
)
from aligncurate.sources.metadata import (
    Kinds,
    added_kinds,
    as_text,
    caption_problem,
    column_of,
    own_columns,
    parsed_metadata,
)
from aligncurate.sources.source import RawBatch, Unit, cut_into_units, parquet_rows
from aligncurate.sources.tar_index import TAR_INDEX_SCHEMA, index_tar
from aligncurate.threads import available_cores, map_ordered
from alignshared import InputError, Reason, Reject, Storage
from alignshared.schema import CONVERSATIONS_TYPE, IMAGE_TYPE, SOURCE_COLUMNS
from alignshared.stores.filesystems import is_remote, normal_location

_SUFFIX = ".tar"
_INDEX_FOLDER = "index"
_KINDS, _DAMAGE = b"kinds", b"damage"
_REMOTE_THREADS = 16
_GAP = 1 << 16
_MAX_READ = 1 << 26

log = logging.getLogger("aligncurate")


class WebDatasetSource:
    """Tars at `location`: a file, a folder (recursive), a glob or `{00000..00010}`.

    An id is the text `id` of the `.json`, or the tar's name without suffix, `/` and the sample's
    key; repeats are duplicates. Scalar fields of the `.json` pass through; its caption is used if
    there is no `.txt`.

    Raises:
        InputError: there is no tar at `location`.
    """

    def __init__(self, location: str, name: str = "", files: list[FoundFile] | None = None) -> None:
        self.location = normal_location(location)
        listed = find_files(location) if files is None else files
        listed = [file for file in listed if file.location.endswith(_SUFFIX)]
        if not listed:
            raise InputError(f"there is no .tar at {location}; name a file, a folder or a glob.")
        self.name = name or dataset_name(location, _SUFFIX)
        self.image_root = None
        self._tars = [file.location for file in listed]
        self._prefixes = names_below(listed, _SUFFIX)
        self._digest = listing_digest(listed)
        self._own: pa.Schema | None = None

    def identity(self) -> dict[str, Any]:
        """The location and a digest of tar names, sizes and times."""
        return {"kind": "webdataset", "location": self.location, "digest": self._digest}

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Index the tars not yet indexed in `work`, and cut them into units.

        Raises:
            InputError: a tar is compressed, or cannot be read.
        """
        folder = work.child(_INDEX_FOLDER)
        missing = frozenset(self.parts(work))
        threads = _REMOTE_THREADS if is_remote(self.location) else available_cores()

        def indexed(number: int) -> tuple[str, _Summary]:
            if number in missing:
                self.prepare(work, number)
            file = _index_file(number)
            return f"{folder.location}/{file}", _summary(folder, file)

        summaries = list(map_ordered(indexed, range(len(self._tars)), threads))
        self._warn_of_damage([summary for _, summary in summaries])
        kinds = added_kinds(summary.kinds for _, summary in summaries)
        self._own = own_columns(kinds)
        sizes = [(location, summary.rows) for location, summary in summaries]
        units = cut_into_units(sizes, shard_rows)
        if "str" not in kinds.get("id", ()):  # keys are already unique
            return units
        return marked_duplicates(units, sizes, IdColumn([file for file, _ in sizes], "id"))

    def parts(self, work: Storage) -> list[int]:
        """Numbers of the tars not yet indexed in `work`."""
        indexed_files = frozenset(work.child(_INDEX_FOLDER).names())
        return [n for n in range(len(self._tars)) if _index_file(n) not in indexed_files]

    def prepare(self, work: Storage, part: int) -> None:
        """Index one tar in `work`.

        Raises:
            InputError: it is compressed, or cannot be read.
        """
        index = index_tar(self._tars[part], self._prefixes[part])
        kinds = json.dumps({name: dict(counts) for name, counts in index.kinds.items()})
        about = {_KINDS: kinds, _DAMAGE: index.damage or ""}
        schema = TAR_INDEX_SCHEMA.with_metadata(about)
        write_index(work.child(_INDEX_FOLDER), _index_file(part), schema, index.rows)

    def own_columns(self) -> pa.Schema:
        """Scalar metadata fields; known after `plan` has indexed the tars."""
        if self._own is None:
            raise RuntimeError("own_columns was asked for before plan")
        return self._own

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """Read the samples of `unit` with their image bytes."""
        duplicates = frozenset(unit.duplicates)
        for first, batch in parquet_rows(unit, TAR_INDEX_SCHEMA.names, batch_rows):
            rows = batch.to_pylist()
            for number, row in enumerate(rows, start=first):
                if number in duplicates and row["reason"] is None:
                    row["reason"] = Reason.DUPLICATE_ID.value
                    row["detail"] = f"the id {row['id']!r} occurs in an earlier row"
            yield self._batch(rows)

    def _warn_of_damage(self, summaries: list["_Summary"]) -> None:
        for tar, summary in zip(self._tars, summaries, strict=True):
            if summary.damage:
                log.warning(
                    "%s is damaged (%s); its samples before that are used, the rest is one reject.",
                    tar, summary.damage,
                )  # fmt: skip

    def _batch(self, rows: list[dict[str, Any]]) -> RawBatch:
        rejects = [
            Reject(row["id"], row["path"], Reason(row["reason"]), row["detail"])
            for row in rows
            if row["reason"] is not None
        ]
        samples: list[_Sample] = []
        for sample in _read_samples([row for row in rows if row["reason"] is None]):
            problem = caption_problem(sample.caption)
            if problem is None:
                samples.append(sample)
            else:
                rejects.append(Reject(sample.id, sample.path, *problem))
        return RawBatch(self._table(samples), rejects)

    def _table(self, samples: list["_Sample"]) -> pa.Table:
        images = [{"bytes": sample.image, "path": sample.path} for sample in samples]
        source = [
            pa.array([sample.id for sample in samples], pa.string()),
            pa.array(images, IMAGE_TYPE),
            pa.array([sample.caption for sample in samples], pa.string()),
            pa.nulls(len(samples), CONVERSATIONS_TYPE),
        ]
        own = self.own_columns()
        columns = [
            column_of([sample.fields.get(field.name) for sample in samples], field.type)
            for field in own
        ]
        return pa.table(source + columns, names=[*SOURCE_COLUMNS, *own.names])


class _Sample:
    """One sample as read."""

    def __init__(self, row: dict[str, Any], parts: dict[int, bytes]) -> None:
        self.id: str = row["id"]
        self.path: str = row["path"]
        self.image = parts[row["image_at"]]
        at = row["metadata_at"]
        self.fields = {} if at is None else parsed_metadata(parts[at])
        at = row["caption_at"]
        self.caption = self.fields.get("caption") if at is None else as_text(parts[at])


@dataclass(frozen=True, slots=True)
class _Summary:
    """Summary of an indexed tar: samples, metadata kinds, damage or ""."""

    rows: int
    kinds: Kinds
    damage: str


def _index_file(number: int) -> str:
    return f"{number:07d}.parquet"


def _summary(folder: Storage, file: str) -> _Summary:
    with folder.open(file) as stream:
        metadata = pq.read_metadata(stream)
    about = metadata.metadata
    kinds = json.loads(about[_KINDS])
    return _Summary(
        metadata.num_rows,
        {name: Counter(counts) for name, counts in kinds.items()},
        about.get(_DAMAGE, b"").decode(),
    )


def _read_samples(rows: list[dict[str, Any]]) -> list[_Sample]:
    """Read the samples of `rows`, all of one tar, merging nearby reads."""
    if not rows:
        return []
    spans = sorted(
        (row[f"{role}_at"], row[f"{role}_size"])
        for row in rows
        for role in ("image", "caption", "metadata")
        if row[f"{role}_at"] is not None
    )
    parts: dict[int, bytes] = {}
    with opened(rows[0]["tar"]) as stream:
        for run in _runs(spans):
            begin, end = run[0][0], run[-1][0] + run[-1][1]
            data = stream.read_at(end - begin, begin)
            if len(data) < end - begin:
                raise InputError(f"{rows[0]['tar']} has changed since the run began; begin anew.")
            parts |= {at: data[at - begin : at - begin + size] for at, size in run}
    return [_Sample(row, parts) for row in rows]


def _runs(spans: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Group sorted `spans` (first byte, size) into runs read at once."""
    run = spans[:1]
    for (before, size), span in pairwise(spans):
        far = span[0] - before - size > _GAP
        if far or sum(span) - run[0][0] > _MAX_READ:
            yield run
            run = []
        run.append(span)
    yield run
