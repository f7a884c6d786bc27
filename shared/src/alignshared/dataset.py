"""Reading a finished dataset: its manifest and its shards."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from alignshared.errors import ContractError
from alignshared.manifest import Manifest, manifest_digest, read_manifest
from alignshared.shards import ShardInfo
from alignshared.stores.storage import Storage


class Dataset:
    """A finished dataset at `location`, a local folder or an object store URI.

    Raises:
        ContractError: the folder holds no dataset readable by this version.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.storage = Storage(location)
        self.manifest: Manifest = read_manifest(self.storage)

    @property
    def location(self) -> str:
        """Absolute path or URI."""
        return self.storage.location

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which identifies this dataset in its children."""
        return manifest_digest(self.storage)

    @property
    def schema(self) -> pa.Schema:
        """Columns of the shards.

        Raises:
            ContractError: there is no shard.
        """
        if not self.manifest.shards:
            raise ContractError(f"{self.location} is empty: it has no shards.")
        with self.open_shard(self.manifest.shards[0]) as parquet:
            return parquet.schema_arrow

    def open_shard(self, shard: ShardInfo) -> pq.ParquetFile:
        """The shard as an open Parquet file.

        Raises:
            ContractError: the file is missing or not Parquet.
        """
        if not self.storage.exists(shard.file):
            raise ContractError(
                f"{self.location} lacks {shard.file}, which its manifest lists; "
                "copy it there or write the dataset again."
            )
        with self._naming_damage(shard):
            return pq.ParquetFile(self.storage.open(shard.file))

    def shard_batches(
        self,
        shard: ShardInfo,
        parquet: pq.ParquetFile,
        columns: Sequence[str] | None = None,
        batch_size: int = 65_536,
        row_groups: list[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches of `columns` of `shard`, open as `parquet`; only of `row_groups` if
        given.

        Raises:
            ContractError: the file is damaged or unreadable.
        """
        with self._naming_damage(shard):
            batches = parquet.iter_batches(
                batch_size=batch_size, row_groups=row_groups, columns=columns
            )
        while True:
            with self._naming_damage(shard):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def batches(
        self, columns: Sequence[str] | None = None, batch_size: int = 65_536
    ) -> Iterator[pa.RecordBatch]:
        """All rows in order, as record batches of `columns` (all by default), one at a time."""
        for shard in self.manifest.shards:
            with self.open_shard(shard) as parquet:
                yield from self.shard_batches(shard, parquet, columns, batch_size)

    @contextmanager
    def _naming_damage(self, shard: ShardInfo) -> Iterator[None]:
        # pyarrow raises either for a damaged file, without its name.
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            # The message may quote damaged bytes, including control characters.
            reason = " ".join(word for word in str(error).split() if word.isprintable()).rstrip(".")
            raise ContractError(
                f"{shard.file} in {self.location} is not a whole Parquet file or cannot be read "
                f"({reason}); copy it again or write the dataset again."
            ) from error
