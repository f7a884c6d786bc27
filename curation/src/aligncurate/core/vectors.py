"""Embeddings of many rows, of which a few at a time are wanted as unit vectors."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.columns import column_values
from alignshared import ContractError

Rows = npt.NDArray[np.int64]
Units = npt.NDArray[np.float32]


def unit_rows(embeddings_ND: npt.NDArray[Any]) -> Units:
    """`embeddings_ND` [N, d] of any float type as unit vectors, float32; what has no direction
    becomes zeros, which are like nothing.
    """
    rows = embeddings_ND.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    return np.where(usable, rows / np.where(usable, norms, 1), np.float32(0))


def embedding_rows(column: pa.FixedSizeListArray, where: str) -> npt.NDArray[np.float16]:
    """The embeddings [n, d] float16 of a column.

    Raises:
        ContractError: a row has none; `where` names the place.
    """
    if column.null_count:
        raise ContractError(
            f"{where} has rows without an embedding; score the pairs again with --embeddings."
        )
    values: npt.NDArray[Any] = column_values(column.flatten(), 0)
    return values.reshape(len(column), column.type.list_size)


class Vectors:
    """The rows of `matrix` [N, d] float16, in memory or mapped, that `chosen` [n] names, or all."""

    def __init__(self, matrix: npt.NDArray[np.float16], chosen: Rows | None = None) -> None:
        self._matrix = matrix
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._matrix if self._chosen is None else self._chosen)

    @property
    def dim(self) -> int:
        """Values of a vector."""
        return self._matrix.shape[1]

    def units(self, rows: slice | Rows) -> Units:
        """Unit vectors [m, d] float32 of m of the n rows."""
        return unit_rows(self._matrix[rows if self._chosen is None else self._chosen[rows]])
