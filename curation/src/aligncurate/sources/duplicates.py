"""Ids that occur more than once."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def repeated_rows(ids: Iterable[Sequence[str | None]]) -> Iterator[int]:
    """Row numbers, ascending, whose id occurred in an earlier row; null ids never count.

    `ids` is read twice and must be re-iterable. Holds 8 bytes per row: rows are first told apart by
    a 64-bit hash, and only ids whose hash repeats are then compared themselves.
    """
    hashes = np.concatenate(
        [np.empty(0, np.int64), *(np.fromiter(map(hash, chunk), np.int64) for chunk in ids)]
    )
    ordered = np.sort(hashes)
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    seen: set[str] = set()
    row = -1
    for chunk in ids:
        for value in chunk:
            row += 1
            if value is None or hash(value) not in suspects:
                continue
            if value in seen:
                yield row
            seen.add(value)
