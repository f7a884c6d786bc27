"""What the tests of training share."""

import pytest

from aligntrain.train import run as running
from tests.trainer import ranks


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made by forked ranks; `launch` and other launchers have tests of their own."""
    monkeypatch.setattr(running, "launch", ranks.launch)
