"""Filter options as SQL conditions, run by the evaluator of --where.

Nulls and NaN scores pass no condition.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from aligncurate.levels import find_top_cut
from aligncurate.selection.sql import Predicate
from aligncurate.settings import Conditions
from alignshared import Dataset, InputError
from alignshared.schema import LEVEL_COLUMN, require_columns

_SIDES = ("width", "height")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: its label in the manifest and its SQL."""

    label: str
    predicate: Predicate


def conditions_over(conditions: Conditions, dataset: Dataset, workers: int) -> list[Condition]:
    """Return `conditions` one by one, checked against the columns of `dataset`.

    `top` reads all scores, twice, on `workers` threads.

    Raises:
        InputError: a condition names something the dataset lacks.
    """
    schema, location = dataset.schema, dataset.location
    bounds = list(_bounds(conditions, dataset))
    for _, columns, _ in bounds:
        require_columns(schema, columns, location)
    tests = [
        Condition(label, Predicate(sql, schema, location, columns))
        for label, columns, sql in bounds
    ]
    if conditions.where is not None:
        tests.append(Condition(conditions.where, Predicate(conditions.where, schema, location)))
    if conditions.top is not None:
        require_columns(schema, ("score",), location)
        label, score = _top(conditions.top, dataset, workers)
        sql = _score_sql(">=", score)
        tests.insert(0, Condition(label, Predicate(sql, schema, location, ("score",))))
    return tests


def _bounds(c: Conditions, dataset: Dataset) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Label, columns and SQL of every option except `top` and `where`."""
    if c.min_score is not None:
        yield f"score >= {c.min_score}", ("score",), _score_sql(">=", c.min_score)
    if c.max_score is not None:
        yield f"score <= {c.max_score}", ("score",), _score_sql("<=", c.max_score)
    if c.levels is not None:
        levels = ", ".join(map(str, _levels(c.levels, dataset)))
        yield f"level in {c.levels}", (LEVEL_COLUMN,), f"{LEVEL_COLUMN} IN ({levels})"
    if c.min_size is not None:
        sql = f"width >= {c.min_size} AND height >= {c.min_size}"
        yield f"shorter side >= {c.min_size} px", _SIDES, sql
    if c.max_aspect is not None:
        # Quotient and limit are both rounded to float64: an image of exactly 1.1 : 1
        # is not above 1.1.
        ratio = "greatest(width, height)::DOUBLE / least(width, height)::DOUBLE"
        sql = f"width > 0 AND height > 0 AND {ratio} <= {_number(c.max_aspect, 'DOUBLE')}"
        yield f"aspect ratio <= {c.max_aspect}", _SIDES, sql
    for sign, length in ((">=", c.min_caption), ("<=", c.max_caption)):
        if length is not None:
            label = f"caption {sign} {length} characters"
            yield label, ("caption",), f"length(caption) {sign} {length}"
    if c.language is not None:
        column, values = _language(c.language, dataset)
        name = '"' + column.replace('"', '""') + '"'
        texts = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
        label = f"{column} in {', '.join(values)}"
        yield label, (column,), f"{name}::VARCHAR IN ({texts})"


def _score_sql(sign: str, bound: float) -> str:
    # DuckDB orders NaN above all numbers.
    score = "score::FLOAT"
    return f"{score} {sign} {_number(float(np.float32(bound)), 'FLOAT')} AND NOT isnan({score})"


def _number(value: float, kind: str) -> str:
    """Return `value` as SQL, exact when read back: a decimal literal would be rounded twice."""
    return f"'{float(value)!r}'::{kind}"


def _top(share: float, dataset: Dataset, workers: int) -> tuple[str, float]:
    """Label and minimum score of the top `share`."""
    # The share as written: 0.1 is exactly a tenth, which no float is.
    least, wanted, kept = find_top_cut(dataset, Fraction(str(share)), workers)
    ties = f", {kept:,} with equal scores" if kept > wanted else ""
    return f"top {share}: score >= {float(least):.6g} ({wanted:,} wanted{ties})", float(least)


def _levels(text: str, dataset: Dataset) -> list[int]:
    """Parse levels of `dataset` from `3-8` or `1,5-8`."""
    edges = dataset.manifest.level_edges
    if edges is None:
        raise InputError(
            f"--levels {text} asks for levels and {dataset.location} has none; run "
            "aligncurate bucket on it first."
        )
    levels: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part.strip(), re.ASCII)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if not 1 <= first <= last <= edges.levels:
            raise InputError(
                f"--levels {text}: {part.strip()!r} is no level or range of levels of 1 "
                f"to {edges.levels}; write 2-{edges.levels} or 1,{edges.levels}."
            )
        levels |= set(range(first, last + 1))
    return sorted(levels)


def _language(text: str, dataset: Dataset) -> tuple[str, list[str]]:
    """Parse a text column of `dataset` and values from `COLUMN=en,de`."""
    column, _, names = text.rpartition("=")
    values = [name.strip() for name in names.split(",") if name.strip()]
    if not column or not values:
        raise InputError(
            f"--language {text} names no column and values; write COLUMN=en,de with a column of "
            f"{dataset.location} and one value or more."
        )
    require_columns(dataset.schema, (column,), dataset.location)
    kind = dataset.schema.field(column).type
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type)):
        raise InputError(
            f"column {column} of {dataset.location} is {kind}, not text; write --where with a "
            "condition on it."
        )
    return column, values
