"""The demo's scripts, as Python runs them: what lies beside one can be imported."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def scripts(repository: Path) -> Iterator[Any]:
    """Imports a script of `pipelines/demo_data` by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "pipelines/demo_data"))
        yield import_module
