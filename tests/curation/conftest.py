"""What the tests of curation share."""

import pytest

from tests.curation.clips import write_tiny_clip


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random CLIP, for `--model`."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny"))
