"""The conditions of a filter: what each reads, and which rows pass it.

A null passes none of them, nor does a score that is NaN.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aligncurate.core.vectors import column_values
from aligncurate.levels.edges import find_top_cut
from aligncurate.reporting.summary import score_values
from aligncurate.selection.sql import Predicate
from alignshared import Dataset, InputError
from alignshared.levels import MAX_LEVELS
from alignshared.schema import LEVEL_COLUMN, require_columns

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a pair must fulfil to be kept: all of those that are given.

    Bounds are inclusive and those of scores are taken as float32, as scores are. `levels` is
    written `3-8` or `1,5-8`, `language` is written `COLUMN=en,de`, `where` is SQL. `top` is a
    share: the greatest ceil(top * n) of the n finite scores of the whole input, and all others that
    equal the least of them. Captions are measured in characters (Unicode code points), `min_size`
    is the shorter side in pixels, `max_aspect` the longer over the shorter.
    """

    min_score: float | None = None
    max_score: float | None = None
    levels: str | None = None
    top: float | None = None
    min_size: int | None = None
    max_aspect: float | None = None
    min_caption: int | None = None
    max_caption: int | None = None
    language: str | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        if not self.given():
            options = ", ".join(_option(name) for name in asdict(self))
            raise InputError(f"no condition was given; give at least one of {options}.")
        for name in ("min_score", "max_score"):
            _require(name, getattr(self, name), lambda value: not math.isnan(value), "a number")
        _require("top", self.top, lambda value: 0 < value <= 1, "a share above 0, at most 1")
        _require("max_aspect", self.max_aspect, lambda value: value >= 1, "1 or more")
        for name in ("min_size", "min_caption", "max_caption"):
            _require(name, getattr(self, name), lambda value: value >= 0, "0 or more")
        for what in ("score", "caption"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least is not None and most is not None and least > most:
                raise InputError(
                    f"--min-{what} {least} is above --max-{what} {most}, so no pair would be kept."
                )

    def given(self) -> dict[str, Any]:
        """Those that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _require(name: str, value: Any, test: Callable[[Any], bool], wanted: str) -> None:
    if value is not None and not test(value):
        raise InputError(f"{_option(name)} {value} cannot be; give {wanted}.")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: in words, the columns it reads, and which rows [n] of a batch pass it."""

    text: str
    columns: tuple[str, ...]
    passes: Callable[[pa.RecordBatch], Bools]


def conditions_over(wanted: Conditions, dataset: Dataset, workers: int) -> list[Condition]:
    """`wanted` one by one, checked against the columns of `dataset`; `top` reads all scores.

    Raises:
        InputError: one of them names what the dataset does not have.
    """
    schema = dataset.schema
    found = [
        *_of_scores(wanted),
        *_of_levels(wanted, dataset),
        *_of_pictures(wanted),
        *_of_captions(wanted),
        *_of_language(wanted, schema, dataset.location),
    ]
    for condition in found:
        require_columns(schema, condition.columns, dataset.location)
    if wanted.where is not None:
        predicate = Predicate(wanted.where, schema, dataset.location)
        found.append(Condition(wanted.where, predicate.columns, predicate))
    if wanted.top is not None:
        require_columns(schema, ("score",), dataset.location)
        found.insert(0, _top(wanted.top, dataset, workers))
    return found


def _of_scores(wanted: Conditions) -> Iterator[Condition]:
    if wanted.min_score is not None:
        yield _at_least(wanted.min_score, f"score >= {wanted.min_score}")
    if wanted.max_score is not None:
        most = np.float32(wanted.max_score)
        yield Condition(
            f"score <= {wanted.max_score}", ("score",), lambda batch: score_values(batch) <= most
        )


def _at_least(least: float, text: str) -> Condition:
    bound = np.float32(least)
    return Condition(text, ("score",), lambda batch: score_values(batch) >= bound)


def _top(share: float, dataset: Dataset, workers: int) -> Condition:
    # As it is written: 0.1 is a tenth, though no float is.
    cut = find_top_cut(dataset, Fraction(str(share)), workers)
    ties = f", {cut.kept:,} with equal scores" if cut.kept > cut.wanted else ""
    text = f"top {share}: score >= {float(cut.score):.6g} ({cut.wanted:,} wanted{ties})"
    return _at_least(float(cut.score), text)


def _of_levels(wanted: Conditions, dataset: Dataset) -> Iterator[Condition]:
    if wanted.levels is None:
        return
    edges = dataset.manifest.level_edges
    if edges is None:
        raise InputError(
            f"--levels {wanted.levels} asks for levels and {dataset.location} has none; run "
            "aligncurate bucket on it first."
        )
    levels = parse_levels(wanted.levels, edges.levels)
    among = np.zeros(MAX_LEVELS + 1, dtype=np.bool_)
    among[list(levels)] = True
    yield Condition(
        f"level in {wanted.levels}",
        (LEVEL_COLUMN,),
        lambda batch: among[np.maximum(column_values(batch.column(LEVEL_COLUMN), 0), 0)],
    )


def parse_levels(text: str, most: int) -> Collection[int]:
    """The levels that `3-8` or `1,5-8` names.

    Raises:
        InputError: it is not written so, or names none of 1..`most`.
    """
    found: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part.strip(), re.ASCII)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if not 1 <= first <= last <= most:
            raise InputError(
                f"--levels {text} cannot be: {part.strip()!r} is no level or range of levels of 1 "
                f"to {most}; write 2-{most} or 1,{most}."
            )
        found |= set(range(first, last + 1))
    return found


def _of_pictures(wanted: Conditions) -> Iterator[Condition]:
    columns = ("width", "height")

    def sides(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        width, height = (column_values(batch.column(name), -1) for name in columns)
        return np.minimum(width, height), np.maximum(width, height)

    if (least := wanted.min_size) is not None:
        yield Condition(
            f"shorter side >= {least} px", columns, lambda batch: sides(batch)[0] >= least
        )
    if (most := wanted.max_aspect) is not None:

        def not_too_long(batch: pa.RecordBatch) -> Bools:
            shorter, longer = sides(batch)
            # Of whole numbers the quotient is the float nearest to it, as is the limit: no
            # picture of exactly 1.1 : 1 is above 1.1.
            return (shorter > 0) & (longer / np.maximum(shorter, 1) <= most)

        yield Condition(f"aspect ratio <= {most}", columns, not_too_long)


def _of_captions(wanted: Conditions) -> Iterator[Condition]:
    def lengths(batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
        return column_values(pc.call_function("utf8_length", [batch.column("caption")]), -1)

    if (least := wanted.min_caption) is not None:
        text = f"caption >= {least} characters"
        yield Condition(text, ("caption",), lambda batch: lengths(batch) >= least)
    if (most := wanted.max_caption) is not None:

        def not_too_long(batch: pa.RecordBatch) -> Bools:
            found = lengths(batch)
            return (found >= 0) & (found <= most)

        yield Condition(f"caption <= {most} characters", ("caption",), not_too_long)


def _of_language(wanted: Conditions, schema: pa.Schema, where: str) -> Iterator[Condition]:
    if wanted.language is None:
        return
    column, _, names = wanted.language.rpartition("=")
    values = [name.strip() for name in names.split(",") if name.strip()]
    if not column or not values:
        raise InputError(
            f"--language {wanted.language} cannot be; write COLUMN=en,de with a column of "
            f"{where} and one value or more."
        )
    require_columns(schema, (column,), where)
    kind = schema.field(column).type
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type)):
        raise InputError(
            f"column {column} of {where} is {kind}, not text; write --where with a condition on it."
        )
    among = pc.SetLookupOptions(pa.array(values, pa.string()))

    def is_among(batch: pa.RecordBatch) -> Bools:
        found = pc.call_function("is_in", [batch.column(column).cast(pa.string())], among)
        return column_values(found.cast(pa.uint8()), 0) == 1

    yield Condition(f"{column} in {', '.join(values)}", (column,), is_among)
