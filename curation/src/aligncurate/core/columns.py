"""Numbers out of Arrow columns."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def column_values(column: pa.Array, null: float) -> npt.NDArray[Any]:
    """The values [n] of a column of numbers, with `null` in place of each null."""
    # to_numpy would import pandas where it is installed: up to a second and 70 MB for nothing.
    return np.from_dlpack(column.fill_null(null) if column.null_count else column)


def column_of(values: npt.NDArray[Any]) -> pa.Array:
    """The Arrow column of `values` [n], numbers without nulls; it shares their memory."""
    # pa.array would import pandas, as to_numpy does.
    plain = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(plain.dtype)
    return pa.Array.from_buffers(kind, len(plain), [None, pa.py_buffer(plain)])
