"""One pass over a dataset's rows: scores, levels, sizes, and examples to show.

The result is cached beside the manifest as `statistics.json`, so that later readers need only
one file. It names its manifest; an unreadable file or one for another manifest is ignored.
"""

from contextlib import suppress
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aligncurate.core.histogram import Histogram, LogHistogram
from aligncurate.core.moments import Moments
from aligncurate.core.vectors import column_values
from aligncurate.output.shards import scores_of
from aligncurate.reporting.shortlist import Pick, Shortlist
from aligncurate.settings import OnProgress, silent
from aligncurate.threads import available_cores, map_ordered
from alignshared import AlignError, ContractError, Dataset, LevelStatistics, Manifest, ShardInfo
from alignshared.manifest import STATISTICS_FILE
from alignshared.schema import LEVEL_COLUMN, SCORE_COLUMN, require_columns

_BATCH_ROWS = 1 << 16
_VERSION = 1
_SHORTLIST = 32
"""Examples of each kind to store, more than reports usually show."""

_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


class ScoreSummary:
    """Summary of a dataset from one pass, in constant memory. The scores of a levelled dataset are
    the numbers that its levels part.

    `sizes` counts `caption` (characters), `width` and `height` (pixels), where available;
    `truncated` captions exceeded the text tower's context.
    """

    def __init__(self, manifest: Manifest, capacity: int = _SHORTLIST) -> None:
        self._edges = edges = manifest.level_edges
        self.by = by = edges.by if edges else SCORE_COLUMN
        self.histogram = (
            Histogram() if by == SCORE_COLUMN else Histogram.around(_greatest(manifest))
        )
        self.sizes = {name: LogHistogram() for name in ("caption", "width", "height")}
        self.truncated = 0
        self.shortlist = Shortlist(manifest, capacity)
        self._level_moments = Moments(edges.levels if edges else 0)

    def add(
        self, batch: pa.RecordBatch, where: str, shard: int, row: int, bounds: list[Pick | None]
    ) -> None:
        """Add rows of `shard`, starting at its row `row`; `where` names it in errors."""
        scores = scores_of(batch, self.by)
        self.histogram.add(scores)
        levels = np.zeros(len(scores), dtype=np.int8)
        if self._edges:
            levels = level_values(batch, self._edges.levels, where)
            finite = np.isfinite(scores)
            self._level_moments.add(scores[finite], levels[finite].astype(np.intp) - 1)
        for name, counts in self.sizes.items():
            if name in batch.schema.names:
                column = batch.column(name).drop_null()
                if name == "caption":
                    column = pc.call_function("utf8_length", [column])
                counts.add(column_values(column, 0))
        if "caption_truncated" in batch.schema.names:
            self.truncated += batch.column("caption_truncated").true_count
        self.shortlist.add(batch.column("id"), scores, levels, shard, row, bounds)

    def merge(self, other: Self) -> None:
        """Add the summary of another part."""
        self.histogram.merge(other.histogram)
        self._level_moments.merge(other._level_moments)
        for name, counts in self.sizes.items():
            counts.merge(other.sizes[name])
        self.truncated += other.truncated
        self.shortlist.merge(other.shortlist)

    def close(self) -> None:
        """Finish the summary; no rows can be added afterwards."""
        self.shortlist.close(self.histogram.quantile(0.5) if self.histogram.count else 0.0)

    @property
    def levels(self) -> list[LevelStatistics]:
        """Statistics of each level, from level 1 upwards; empty without levels."""
        moments = [self._level_moments[i] for i in range(len(self._level_moments))]
        total = max(sum(moment.count for moment in moments), 1)
        return [
            LevelStatistics(level, m.count, m.count / total, m.mean, m.min, m.max)
            for level, m in enumerate(moments, start=1)
        ]

    def to_json(self, digest: str) -> dict[str, Any]:
        """Content of `statistics.json` for the dataset whose manifest has the SHA-256 `digest`.

        `about` is for people; the rest is exact when read back.
        """
        moment = asdict(self.histogram.moment)
        return {
            "statistics_version": _VERSION,
            "manifest_sha256": digest,
            "about": {"scores": moment.pop("count"), **moment},
            "score": self.histogram.to_json(),
            "levels": self._level_moments.to_json(),
            "sizes": {name: counts.to_json() for name, counts in self.sizes.items()},
            "captions_truncated": self.truncated,
            "examples": self.shortlist.to_json(),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], manifest: Manifest, digest: str) -> Self:
        """Restore from the output of `to_json` for this dataset.

        Raises:
            KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError: invalid.
        """
        if (fields["statistics_version"], fields["manifest_sha256"]) != (_VERSION, digest):
            raise ValueError("it describes another dataset")
        summary = cls(manifest)
        summary.histogram = Histogram.from_json(fields["score"])
        summary._level_moments = Moments.from_json(fields["levels"])
        edges = summary._edges
        if len(summary._level_moments) != (edges.levels if edges else 0):
            raise ValueError("it has other levels")
        summary.sizes = {
            name: LogHistogram.from_json(fields["sizes"][name]) for name in summary.sizes
        }
        summary.truncated = int(fields["captions_truncated"])
        summary.shortlist = Shortlist.from_json(fields["examples"], manifest)
        return summary


def summary_of(
    dataset: Dataset, examples: int = _SHORTLIST, on_progress: OnProgress = silent
) -> ScoreSummary:
    """Return the cached summary of `dataset`, or compute it in one pass over all rows and cache
    it beside the manifest if the folder is writable.

    The shortlist holds at least `examples` of each kind. `on_progress` is called once with all
    rows if none needs reading.

    Raises:
        ContractError: a shard lacks a column, or has an invalid level.
    """
    known = known_summary(dataset)
    if known and known.shortlist.capacity >= examples:
        on_progress(dataset.manifest.rows)
        return known
    summary = summarise(dataset, max(examples, _SHORTLIST), on_progress)
    with suppress(AlignError, OSError):  # the folder may be read-only
        dataset.storage.write_json(STATISTICS_FILE, summary.to_json(dataset.digest))
    return summary


def known_summary(dataset: Dataset) -> ScoreSummary | None:
    """Return the summary cached beside the manifest of `dataset`, if it fits."""
    try:
        if not dataset.storage.exists(STATISTICS_FILE):
            return None
        fields = dataset.storage.read_json(STATISTICS_FILE)
        return ScoreSummary.from_json(fields, dataset.manifest, dataset.digest)
    except (AlignError, OSError, *_MALFORMED):
        return None


def summarise(
    dataset: Dataset,
    examples: int = _SHORTLIST,
    on_progress: OnProgress = silent,
    workers: int | None = None,
) -> ScoreSummary:
    """Read the rows of all shards once, on `workers` threads (by default one per core); the
    result is identical for any number of threads.

    Raises:
        ContractError: a shard lacks a column, or has an invalid level.
    """
    summary = ScoreSummary(dataset.manifest, examples)
    bounds = summary.shortlist.bounds()

    def read(numbered: tuple[int, ShardInfo]) -> ScoreSummary:
        # Bounds known by now only skip rows that would be dropped later.
        return _summarise_shard(dataset, *numbered, examples, bounds)

    shards = dataset.manifest.shards
    parts = map_ordered(read, enumerate(shards), workers or available_cores())
    for shard, part in zip(shards, parts, strict=True):
        summary.merge(part)
        bounds = summary.shortlist.bounds()
        on_progress(shard.rows)
    summary.close()
    return summary


def _summarise_shard(
    dataset: Dataset, index: int, shard: ShardInfo, examples: int, bounds: list[Pick | None]
) -> ScoreSummary:
    summary = ScoreSummary(dataset.manifest, examples)
    where = f"{shard.file} in {dataset.location}"
    needed = ["id", summary.by, *([LEVEL_COLUMN] if dataset.manifest.level_edges else [])]
    with dataset.open_shard(shard) as parquet:
        names = parquet.schema_arrow.names
        require_columns(parquet.schema_arrow, needed, where)
        optional = [n for n in (*summary.sizes, "caption_truncated") if n in names]
        columns = list(dict.fromkeys(needed + optional))
        row = 0
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            summary.add(batch, where, index, row, bounds)
            row += batch.num_rows
    return summary


def _greatest(manifest: Manifest) -> float:
    """The greatest distance from 0 of a number that the levels part."""
    ends = [(s.min, s.max) for s in manifest.level_statistics or ()]
    return max((abs(end) for pair in ends for end in pair if end is not None), default=1.0)


def level_values(batch: pa.RecordBatch, levels: int, where: str) -> npt.NDArray[np.int8]:
    """Levels [n] int8 of `batch`.

    Raises:
        ContractError: a level is null or not in 1..`levels`.
    """
    values = column_values(batch.column(LEVEL_COLUMN), 0)
    if len(values) and not (values.min() >= 1 and values.max() <= levels):
        raise ContractError(
            f"{where} has levels outside 1..{levels}; see what else is wrong with aligncurate "
            "validate."
        )
    return values
