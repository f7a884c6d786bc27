"""Embeddings of many rows, converted to unit vectors a few at a time."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignshared import ContractError

Rows = npt.NDArray[np.int64]
Units = npt.NDArray[np.float32]


def unit_rows(embeddings_ND: npt.NDArray[Any]) -> Units:
    """Normalise `embeddings_ND` [N, d] of any float type to float32; rows without direction become
    zeros and match nothing.
    """
    rows = embeddings_ND.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    return np.where(usable, rows / np.where(usable, norms, 1), np.float32(0))


def embedding_rows(column: pa.FixedSizeListArray, where: str) -> npt.NDArray[np.float16]:
    """Return the embeddings [n, d] float16 of a column.

    Raises:
        ContractError: a row has no embedding; `where` names the place.
    """
    if column.null_count:
        raise ContractError(
            f"{where} has rows without an embedding; score the pairs again with --embeddings."
        )
    values: npt.NDArray[Any] = column_values(column.flatten(), 0)
    return values.reshape(len(column), column.type.list_size)


class Vectors:
    """Rows of `matrix` [N, d] float16, in memory or mapped: those in `chosen` [n], or all."""

    def __init__(self, matrix: npt.NDArray[np.float16], chosen: Rows | None = None) -> None:
        self._matrix = matrix
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._matrix if self._chosen is None else self._chosen)

    @property
    def dim(self) -> int:
        """Dimension of a vector."""
        return self._matrix.shape[1]

    def units(self, rows: slice | Rows) -> Units:
        """Unit vectors [m, d] float32 of m of the n rows."""
        return unit_rows(self._matrix[rows if self._chosen is None else self._chosen[rows]])


class TopK:
    """The `count` greatest values so far and their positions, independent of block order.

    Ties go to the lesser position.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.values = np.empty(0, np.float32)
        self.places = np.empty(0, np.int64)

    def add(self, values: npt.NDArray[np.float32], first: int) -> None:
        """Add `values` [n] at positions from `first` on; NaN is ignored."""
        if len(self.values) == self._count:
            better = np.flatnonzero(values >= self.values[-1])
        else:
            better = np.flatnonzero(values == values)
        self._keep(values[better], better + first)

    def merge(self, other: Self) -> None:
        """Merge another part of the stream."""
        self._keep(other.values, other.places)

    def _keep(self, values: npt.NDArray[np.float32], places: npt.NDArray[np.int64]) -> None:
        values = np.concatenate([self.values, values])
        places = np.concatenate([self.places, places])
        order = np.lexsort((places, -values))[: self._count]
        self.values, self.places = values[order], places[order]


def column_values(column: pa.Array, null: float) -> npt.NDArray[Any]:
    """Values [n] of a numeric column, nulls replaced by `null`."""
    # to_numpy would import pandas if installed: up to a second and 70 MB.
    return np.from_dlpack(column.fill_null(null) if column.null_count else column)


def column_of(values: npt.NDArray[Any]) -> pa.Array:
    """Arrow column sharing the memory of `values` [n], numbers without nulls."""
    # pa.array would import pandas, as to_numpy does.
    plain = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(plain.dtype)
    return pa.Array.from_buffers(kind, len(plain), [None, pa.py_buffer(plain)])
