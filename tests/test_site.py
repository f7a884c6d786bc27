"""The Python reference of the guides' site, which `.ci/run` builds."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("alignshared", "aligncurate", "aligntrain")
SHOWN = re.compile(r"^::: (\S+)$", re.MULTILINE)


@pytest.mark.parametrize("package", PACKAGES)
def test_reference_has_all_public_names(repository: Path, package: str) -> None:
    page = (repository / f"docs/api/{package}.md").read_text(encoding="utf-8")
    public = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    assert set(SHOWN.findall(page)) == public


def test_reference_shows_the_arguments_that_a_stage_is_called_with(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    griffe = pytest.importorskip("griffe", reason="needs uv sync --group docs")
    monkeypatch.chdir(repository)
    site = tomllib.loads(Path("zensical.toml").read_text("utf-8"))["project"]["plugins"]
    python = site["mkdocstrings"]["handlers"]["python"]
    package = griffe.load(
        "aligncurate",
        search_paths=python["paths"],
        docstring_parser="google",
        extensions=griffe.load_extensions(*python["options"]["extensions"]),
    )
    bucket = package["bucket"]
    levels = bucket.parameters["levels"]
    assert (str(levels.annotation), levels.default) == ("int | None", "None")
    assert "settings" not in bucket.parameters
    sections = {section.kind.value: section.value for section in bucket.docstring.parsed}
    told = {parameter.name: parameter.description for parameter in sections["parameters"]}
    assert told["levels"] == "Number of levels; 8 by default."
    assert told.keys() == {parameter.name for parameter in bucket.parameters}
