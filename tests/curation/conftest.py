"""What the tests of curation share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignshared import use_storage_options
from alignshared.stores.options import StorageOptions, parse_storage_options
from tests.curation.clips import write_tiny_clip
from tests.curation.stores import Store, running_store


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random CLIP, for `--model`."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny"))


@pytest.fixture(scope="session")
def object_store() -> Iterator[Store]:
    """A server that speaks S3 on this machine, with a bucket."""
    with running_store() as store:
        yield store


@pytest.fixture
def s3(object_store: Store, tmp_path: Path) -> Iterator[Store]:
    """The object store with an empty bucket of this test's own, and this process told of it."""
    use_storage_options(parse_storage_options(object_store.options))
    yield object_store.with_bucket(tmp_path.name)
    use_storage_options(StorageOptions())
