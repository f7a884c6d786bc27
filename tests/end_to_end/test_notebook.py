"""The notebook of the quickstart: its commands are the quickstart's, and its cells run."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

SHORT = "--set max_steps=4 --set log.validate_samples=8"
"""Training as short as it may be: the commands are tried, not what is learned."""


@pytest.fixture
def notebook(repository: Path) -> Any:
    """The notebook, read."""
    return nbformat.read(repository / "pipelines/quickstart.ipynb", as_version=4)


def commands(notebook: Any) -> list[str]:
    """The shell commands of the cells of `notebook`, in order."""
    cells = [cell.source for cell in notebook.cells if cell.source.startswith("%%sh\n")]
    return [line for cell in cells for line in cell.splitlines()[1:]]


def test_its_commands_are_those_of_the_quickstart(notebook: Any, repository: Path) -> None:
    source = (repository / "pipelines/quickstart.py").read_text("utf-8")
    quickstart: dict[str, Any] = {"__name__": "quickstart"}
    exec(compile(source, "quickstart.py", "exec"), quickstart)
    expected = {
        step.removesuffix(" --open") for step in quickstart["LEVELS"] + quickstart["TRAINING"]
    }
    given = {
        line.replace(" $SHORT", "")
        .replace("$SCRIPTS", "pipelines/demo_data")
        .replace(" --picture runs/demo/show.png", "")
        for line in commands(notebook)
    }
    assert expected < given
    assert [line.split()[:2] for line in given - expected] == [["aligntrain", "chat"]]


def test_it_holds_no_outputs(notebook: Any) -> None:
    """They would make the repository heavy, and differ with every run."""
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_cells_run(
    notebook: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([bin_folder, os.environ["PATH"]]))
    chosen = {"short": SHORT, "folder": str(tmp_path)}
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in chosen.items():
        cell.source, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", cell.source)
        assert count == 1
    folder = {"metadata": {"path": str(repository / "pipelines")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert len(images) == 3
    assert "4,000 pairs in = 4,000 scored + 0 rejects" in printed
    assert (tmp_path / "runs/demo/show.html").is_file()
