"""A vectorised 64-bit hash of ids, for sampling and finding duplicates.

Python's and hashlib's hashes take one string at a time, which for hundreds of millions of ids is
slower than reading them. A polynomial over the bytes, computed for all ids from one running sum,
costs a few nanoseconds per byte. It depends only on the id's bytes, not on the machine or shard
layout. It does not resist deliberate collisions.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignshared.hashing import GOLDEN_GAMMA, scramble

_CHUNK_BYTES = 1 << 20
"""Bytes hashed at a time; temporary arrays take some 40 bytes each."""

_IN_MEMORY = 1 << 22
"""Hashes buffered before writing: 32 MB."""

_PARTS = 256
_PART_SHIFT = np.uint64(64 - 8)

_BASE = GOLDEN_GAMMA
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_BYTE_VALUES = np.random.default_rng(20240523).integers(0, 1 << 64, 256, dtype=np.uint64)


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Hashes [n] uint64 of a string array [n]; null hashes as the empty string."""
    plain = ids.cast(pa.large_binary())
    if plain.null_count:
        plain = plain.fill_null(b"")
    _, offset_buffer, data_buffer = plain.buffers()
    if offset_buffer is None or not len(plain):
        return np.zeros(len(plain), dtype=np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int64)[plain.offset : plain.offset + len(plain) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    parts = [
        _hash_chunk(data[offsets[a] : offsets[b]], offsets[a : b + 1] - offsets[a])
        for a, b in _chunks(offsets)
    ]
    return np.concatenate(parts)


def rows_among(
    ascending: npt.NDArray[np.uint64], hashes: npt.NDArray[np.uint64]
) -> npt.NDArray[np.intp]:
    """Rows of `hashes` [n] that are among `ascending` [m], m at least 1."""
    at = np.searchsorted(ascending, hashes).clip(max=len(ascending) - 1)
    return np.flatnonzero(ascending[at] == hashes)


def _chunks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about _CHUNK_BYTES, at least one row each."""
    rows, begin = len(offsets) - 1, 0
    while begin < rows:
        fits = int(np.searchsorted(offsets, offsets[begin] + _CHUNK_BYTES, side="right")) - 1
        end = min(max(fits, begin + 1), rows)
        yield begin, end
        begin = end


def _hash_chunk(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    # With S the running sum of value[j] * base^j, the bytes from s to e sum to (S[e] - S[s]) and
    # dividing by base^s makes that independent of the id's position. Arithmetic is modulo 2^64.
    powers, inverses = _powers(_BASE, len(data)), _powers(_BASE_INVERSE, len(data) + 1)
    running = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(_BYTE_VALUES[data] * powers, out=running[1:])
    starts, ends = offsets[:-1], offsets[1:]
    sums = (running[ends] - running[starts]) * inverses[starts]
    return scramble(sums + (ends - starts).astype(np.uint64))


def _powers(base: int, count: int) -> npt.NDArray[np.uint64]:
    """base^0 .. base^(count-1) modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


class RepeatFinder:
    """Finds hashes added more than once, in constant memory.

    Beyond `in_memory`, hashes go to a temporary folder, 8 bytes each, partitioned by leading
    bits and sorted part by part. Closing deletes the folder.
    """

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._waiting: list[npt.NDArray[np.uint64]] = []
        self._waiting_count = 0
        self._folder: TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Drop all hashes and delete the temporary folder."""
        self._waiting, self._waiting_count = [], 0
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def add(self, hashes: npt.NDArray[np.uint64]) -> None:
        """Add `hashes` [n]."""
        self._waiting.append(hashes)
        self._waiting_count += len(hashes)
        if self._waiting_count > self._in_memory:
            self._write_out()

    def repeated(self, at_most: int) -> npt.NDArray[np.uint64]:
        """Return the hashes added more than once, ascending: the least `at_most` of them."""
        repeated: list[npt.NDArray[np.uint64]] = []
        missing = at_most
        for part in self._parts():
            part.sort()
            some = np.unique(part[1:][part[1:] == part[:-1]])[:missing]
            repeated.append(some)
            missing -= len(some)
            if not missing:
                break
        return np.concatenate(repeated) if repeated else np.empty(0, dtype=np.uint64)

    def _parts(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield disjoint, ascending parts of all hashes; equal hashes share a part."""
        if self._folder is None:
            yield np.concatenate([np.empty(0, dtype=np.uint64), *self._waiting])
            return
        self._write_out()
        for part in range(_PARTS):
            path = Path(self._folder.name, str(part))
            if path.exists():
                yield np.fromfile(path, dtype=np.uint64)

    def _write_out(self) -> None:
        if not self._waiting:
            return
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="aligncurate-ids-")
        hashes = np.concatenate(self._waiting)
        self._waiting, self._waiting_count = [], 0
        hashes.sort()
        ends = np.searchsorted(hashes, np.arange(1, _PARTS, dtype=np.uint64) << _PART_SHIFT)
        for part, some in enumerate(np.split(hashes, ends)):
            if len(some):
                with open(Path(self._folder.name, str(part)), "ab") as stream:
                    some.tofile(stream)
