"""Two servers that a folder of tests asks: one of a random model, one that goes on for long."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aligntrain.serve.settings import Limits
from tests.trainer.serve.serving import Running, running, saved_run, talkative


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def server(run: Path) -> Iterator[Running]:
    with running(run, limits=Limits(new_tokens=600)) as one:
        yield one


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes until it is stopped."""
    return talkative(tmp_path_factory.mktemp("talkative"))
