"""What names the version of a release: all of it names the same one."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECTS = (".", "shared", "curation", "trainer")


def project(repository: Path, folder: str) -> dict[str, Any]:
    """The table `project` of a folder's pyproject.toml."""
    return tomllib.loads((repository / folder / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture
def version(repository: Path) -> str:
    """The version of the workspace."""
    return project(repository, ".")["version"]


def test_packages_and_citation_have_the_version_of_the_workspace(
    repository: Path, version: str
) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text("utf-8"))
    assert {project(repository, folder)["version"] for folder in PROJECTS} == {version}
    assert str(citation["version"]) == version


@pytest.mark.parametrize("folder", ["curation", "trainer"])
def test_packages_need_the_contract_of_their_own_minor_version(
    repository: Path, version: str, folder: str
) -> None:
    major, minor = map(int, version.split(".")[:2])
    bound = f"alignshared>={major}.{minor},<{major}.{minor + 1}"
    assert bound in project(repository, folder)["dependencies"]


def test_newest_notes_are_those_of_the_version(repository: Path, version: str) -> None:
    notes = re.findall(
        r"^## \[(.+)\](?: - \d{4}-\d\d-\d\d)?$",
        (repository / "CHANGELOG.md").read_text("utf-8"),
        re.MULTILINE,
    )
    released = [name for name in notes if name != "Unreleased"]
    assert notes[0] in ("Unreleased", version)
    assert released[:1] in ([], [version])
