"""WebDataset tars as written by img2dataset: images, captions in `.txt`, metadata in `.json`.

Planning reads each tar's headers once, on any machine, into an index in the run's folder; workers
read sample parts by offset. A unit is a range of samples of one tar. Nothing is unpacked.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.sources.listing import FoundFile, dataset_name, listing_digest, names_below, opened
from aligncurate.sources.metadata import (
    Kinds,
    added_kinds,
    as_text,
    caption_problem,
    own_columns,
    own_value,
    parsed_metadata,
)
from aligncurate.sources.source import (
    RawBatch,
    Unit,
    cut_into_units,
    marked_duplicates,
    parquet_rows,
    reject_of,
    sorted_batch,
    write_index,
)
from aligncurate.sources.tar_index import ROLES, TAR_INDEX_SCHEMA, index_tar
from aligncurate.threads import available_cores, map_ordered
from alignshared import InputError, Reason, Reject, Storage
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
    there is no `.txt`. Other `files` that are there are left out.
    """

    def __init__(self, location: str, files: list[FoundFile]) -> None:
        self.location = normal_location(location)
        self.name = dataset_name(location, _SUFFIX)
        self.image_root = None
        tars = [file for file in files if file.location.endswith(_SUFFIX)]
        self._tars = [file.location for file in tars]
        self._prefixes = names_below(tars, _SUFFIX)
        self._digest = listing_digest(tars)
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

        def indexed(number: int) -> tuple[int, Kinds, str]:
            if number in missing:
                self.prepare(work, number)
            return _summary(folder, _index_file(number))

        summaries = list(map_ordered(indexed, range(len(self._tars)), threads))
        for tar, (_, _, damage) in zip(self._tars, summaries, strict=True):
            if damage:
                log.warning(
                    "%s is damaged (%s); its samples before that are used, the rest is one reject.",
                    tar, damage,
                )  # fmt: skip
        kinds = added_kinds(kinds for _, kinds, _ in summaries)
        self._own = own_columns(kinds)
        sizes = [
            (f"{folder.location}/{_index_file(number)}", rows)
            for number, (rows, _, _) in enumerate(summaries)
        ]
        units = cut_into_units(sizes, shard_rows)
        if "str" not in kinds.get("id", ()):  # keys are already unique
            return units
        return marked_duplicates(units, sizes, "id")

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
        schema = TAR_INDEX_SCHEMA.with_metadata({_KINDS: kinds, _DAMAGE: index.damage})
        write_index(work.child(_INDEX_FOLDER), _index_file(part), schema, index.rows())

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
            found: list[dict[str, Any] | Reject] = []
            found += [reject_of(row) for row in rows if row["reason"] is not None]
            found += self._pairs([row for row in rows if row["reason"] is None])
            yield sorted_batch(found, self.own_columns())

    def _pairs(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any] | Reject]:
        """Read the samples of `rows`, all of one tar, from their index."""
        parts = _read_parts(rows) if rows else {}
        for row in rows:
            at = row["metadata_at"]
            fields = {} if at is None else parsed_metadata(parts[at])
            at = row["caption_at"]
            caption = fields.get("caption") if at is None else as_text(parts[at])
            problem = caption_problem(caption)
            if problem is not None:
                yield Reject(row["id"], row["path"], *problem)
                continue
            image = {"bytes": parts[row["image_at"]], "path": row["path"]}
            own = {
                own.name: own_value(fields.get(own.name), own.type) for own in self.own_columns()
            }
            yield {"id": row["id"], "image": image, "caption": caption} | own


def _index_file(number: int) -> str:
    return f"{number:07d}.parquet"


def _summary(folder: Storage, file: str) -> tuple[int, Kinds, str]:
    """Return an indexed tar's number of samples, kinds of metadata, and damage or ""."""
    with folder.open(file) as stream:
        metadata = pq.read_metadata(stream)
    about = metadata.metadata
    kinds = {name: Counter(counts) for name, counts in json.loads(about[_KINDS]).items()}
    return metadata.num_rows, kinds, about.get(_DAMAGE, b"").decode()


def _read_parts(rows: list[dict[str, Any]]) -> dict[int, bytes]:
    """Return the parts of the samples of `rows` by first byte, merging nearby reads."""
    spans = sorted(
        (row[f"{role}_at"], row[f"{role}_size"])
        for row in rows
        for role in ROLES
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
    return parts


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
