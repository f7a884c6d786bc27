"""SQL predicates over a dataset's rows, evaluated by DuckDB batch by batch.

A predicate is one expression in a WHERE clause, where DuckDB refuses statements, aggregates and
window functions. Its database is empty, accesses no files and loads no extensions. Volatile
functions are refused as well, since resumed or repeated runs must keep the same rows.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignshared import InputError

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "lock_configuration": "true",
    "python_enable_replacements": "false",  # else subqueries could read this process's variables
    "threads": "1",  # each shard already has a thread
}
_ROW = f"row {uuid4()}"
"""Row number column added to each batch, under an unguessable name."""
_CLOCKS = {"current_time", "current_timestamp", "localtime", "localtimestamp"}


class Predicate:
    """`sql` over the columns of `schema`; rows where it is NULL do not pass.

    `columns` are the columns it reads: all of `image` only if more than `image.path` is used. If
    not given, `sql` is a user's, which is checked and searched for columns. Thread-safe.

    Raises:
        InputError: `sql` is not a predicate over these columns; includes DuckDB's message.
    """

    def __init__(
        self, sql: str, schema: pa.Schema, where: str, columns: Sequence[str] | None = None
    ) -> None:
        import duckdb

        self.sql = sql
        self._where = where
        self._error = duckdb.Error
        self._database = duckdb.connect(":memory:", config=_LOCKED)
        self.columns = self._checked(schema) if columns is None else tuple(columns)
        self._tops = ["image" if name == "image.path" else name for name in self.columns]

    def _checked(self, schema: pa.Schema) -> tuple[str, ...]:
        """Return the columns read by a user's SQL, after checking that it is a predicate over
        `schema`.
        """
        if not self.sql.strip():
            raise InputError('--where is empty; give a condition such as "score > 0.2".')
        empty = _readable(schema.empty_table())
        self._rows(empty.select([c.name for c in empty.schema if self._is_known(c)]))
        names = _Names(self._parsed())
        columns = {name.lower() for name in schema.names}
        if unstable := sorted(names.called & self._unstable() - columns):
            raise InputError(
                f"--where {self.sql} uses {unstable[0]}, which answers differently each time; "
                "write the value itself, or draw pairs with aligncurate sample."
            )
        return names.columns(schema)

    def __call__(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Return a mask [n] bool of the rows of `batch`, with at least `columns`, that pass.

        Raises:
            InputError: a value cannot be computed, such as a non-numeric text cast to a number.
        """
        keep = np.zeros(batch.num_rows, dtype=np.bool_)
        keep[self._rows(_readable(pa.Table.from_batches([batch]).select(self._tops)))] = True
        return keep

    def _rows(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Row numbers of `table` for which the predicate is true."""
        numbers = np.arange(table.num_rows, dtype=np.int64)
        column = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
        try:
            with self._database.cursor() as cursor:
                rows = cursor.from_arrow(table.append_column(_ROW, column))
                passing = rows.filter(f"{self.sql}\n").project(f'"{_ROW}"').fetchnumpy()
        except self._error as error:
            raise InputError(
                f"--where {self.sql} cannot be evaluated over {self._where}: {_sentence(error)}."
            ) from error
        return np.asarray(passing[_ROW])

    def _is_known(self, field: pa.Field) -> bool:
        """Whether DuckDB supports the type of `field`."""
        try:
            with self._database.cursor() as cursor:
                cursor.from_arrow(pa.schema([field]).empty_table()).fetchall()
        except self._error:
            return False
        return True

    def _parsed(self) -> Any:
        query = "SELECT json_serialize_sql(?)"
        statement = f"SELECT 1 FROM pairs WHERE (\n{self.sql}\n)"
        return json.loads(self._fetch(query, [statement])[0][0])

    def _unstable(self) -> set[str]:
        """Names of volatile functions."""
        query = (
            "SELECT DISTINCT function_name FROM duckdb_functions() "
            "WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
        )
        return {name for (name,) in self._fetch(query, [])} | _CLOCKS

    def _fetch(self, query: str, values: list[str]) -> list[Any]:
        with self._database.cursor() as cursor:
            return cursor.execute(query, values).fetchall()


class _Names:
    """Names in a parsed statement: words that may be columns, and called functions."""

    def __init__(self, parsed: Any) -> None:
        self.words: set[str] = set()
        self.called: set[str] = set()
        self._only_path = True
        for node in _nodes(parsed):
            self._add(node)

    def _add(self, node: dict[str, Any]) -> None:
        names = [name.lower() for name in node.get("column_names", ())]
        if names == ["image", "path"]:
            self.words.add("image")
            return
        # Method calls parse their column as a schema (`tags.len()`), so all words count.
        words = {name for value in node.values() for name in _strings(value)} | set(names)
        self.words |= words
        self._only_path &= "image" not in words
        if node.get("class") == "STAR":
            self.words.add("*")
        if "function_name" in node:
            self.called.add(str(node["function_name"]).lower())
        elif len(names) == 1:  # current_date has no parentheses
            self.called.add(names[0])

    def columns(self, schema: pa.Schema) -> tuple[str, ...]:
        """Columns of `schema` to read; a star means all but the images."""
        columns = [
            name
            for name in schema.names
            if name.lower() in self.words or ("*" in self.words and name != "image")
        ]
        if self._only_path:
            columns = ["image.path" if name == "image" else name for name in columns]
        return tuple(columns)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("class") == "CONSTANT":  # a string that looks like a column
            return
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from _nodes(child)


def _strings(value: Any) -> Iterator[str]:
    """Lower-case strings in `value`, a string or a list of them."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item.lower()


def _readable(table: pa.Table) -> pa.Table:
    """Return `table` with float16, which DuckDB lacks, converted to float32."""
    for index, field in enumerate(table.schema):
        wider = _wider(field.type)
        if wider != field.type:
            table = table.set_column(index, field.name, table.column(index).cast(wider))
    return table


def _wider(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_wider(kind.value_type), kind.list_size)
    return pa.list_(_wider(kind.value_type)) if pa.types.is_list(kind) else kind


def _sentence(error: Exception) -> str:
    """DuckDB's message without its rendering of the error position."""
    return " ".join(str(error).partition("\n\nLINE ")[0].split()).rstrip(".!")
