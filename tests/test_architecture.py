"""The walls of the house: who may import whom, how long things may be, what documents may name."""

import ast
import gc
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PACKAGES = ("alignshared", "aligncurate", "aligntrain")
SOURCES = ("shared/src", "curation/src", "trainer/src")
MAX_FILE_LINES = 500
MIN_FILE_LINES = 40
MAX_FOLDER_FILES = 15
MAX_FUNCTION_LINES = 50
FORMER_NAME = "aligntrain.worker"
"""An alias for one release: nothing imports it."""
HEAVY = {
    "datasets", "deepspeed", "faiss", "jinja2", "matplotlib", "numpy", "open_clip", "pandas",
    "pyarrow", "ray", "torch", "transformers",
}  # fmt: skip
"""What a command line must not wait for before it answers `--help`."""

TOP_LEVEL = (".ci", "benchmarks", "curation", "docs", "pipelines", "shared", "tests", "trainer")
PATH_IN_REPOSITORY = re.compile(
    rf"(?<![\w./:{{}}<>*-])(?:{'|'.join(map(re.escape, TOP_LEVEL))})/[\w./-]*"
)
ROOT_FILE = re.compile(r"(?:[A-Z]{4,}(?:\.md)?|pyproject\.toml|uv\.lock|\.pre-commit-config\.yaml)")
CODE = re.compile(r"```.*?```|`([^`\n]+)`", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def python_files(repository: Path) -> Iterator[Path]:
    for source in SOURCES:
        yield from sorted((repository / source).rglob("*.py"))


def parsed(file: Path) -> ast.Module:
    """The syntax tree of `file`; Python 3.11's parser may fail if the collector runs within it."""
    gc.disable()
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def documents(repository: Path) -> list[Path]:
    named = [repository / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return named + sorted((repository / "docs").rglob("*.md"))


def test_import_contracts_hold(repository: Path) -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [lint, "--no-cache"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_files_can_be_read_in_one_sitting(repository: Path) -> None:
    lengths = {
        str(file.relative_to(repository)): len(file.read_text(encoding="utf-8").splitlines())
        for file in python_files(repository)
    }
    assert not {file: lines for file, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_folders_can_be_taken_in_at_a_glance(repository: Path) -> None:
    counts = Counter(file.parent for file in python_files(repository))
    assert not {str(folder): count for folder, count in counts.items() if count > MAX_FOLDER_FILES}


def test_a_small_file_has_several_users(repository: Path) -> None:
    """A small file with a single importer belongs into that importer."""
    modules = {module_name(file): file for file in python_files(repository)}
    importers: dict[str, set[str]] = {module: set() for module in modules}
    for module, file in modules.items():
        for name in imported_names(parsed(file)):
            if name in importers and name != module:
                importers[name].add(module)
    alone = [
        module
        for module, file in modules.items()
        if len(file.read_text(encoding="utf-8").splitlines()) < MIN_FILE_LINES
        and file.name not in ("__init__.py", "__main__.py")
        and ".commands." not in module
        and module != FORMER_NAME
        and len(importers[module]) < 2
    ]
    assert not alone


def module_name(file: Path) -> str:
    """The dotted name of a source file."""
    parts = file.with_suffix("").parts
    return ".".join(parts[parts.index("src") + 1 :])


def imported_names(tree: ast.Module) -> set[str]:
    """Modules, and names in modules, that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of what the function does: neither its parameters nor its docstring."""
    documented = ast.get_docstring(function) is not None
    body = function.body[1:] if documented else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_fit_on_a_screen(repository: Path) -> None:
    too_long = [
        f"{file.relative_to(repository)}:{node.lineno} {node.name}"
        for file in python_files(repository)
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > MAX_FUNCTION_LINES
    ]
    assert not too_long


@pytest.mark.parametrize("module", [*PACKAGES, "aligncurate.cli", "aligntrain.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert module in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_are_public_names(package: str) -> None:
    module = importlib.import_module(package)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    listed: list[str] = module.__all__
    assert len(set(listed)) == len(listed)
    assert public <= set(listed)
    for name in listed:  # some are loaded only when they are asked for
        assert hasattr(module, name), name


def paths_named_in(text: str) -> set[str]:
    """Paths of this repository that stand in code, inline or fenced, and relative links."""
    paths: set[str] = set()
    for code in CODE.finditer(text):
        paths |= {path.rstrip(".") for path in PATH_IN_REPOSITORY.findall(code[0])}
        if code[1] and ROOT_FILE.fullmatch(code[1]):
            paths.add(code[1])
    return paths


def test_documents_name_paths_that_exist(repository: Path) -> None:
    missing: list[str] = []
    for document in documents(repository):
        text = document.read_text(encoding="utf-8")
        links = {link.partition("#")[0] for link in LINK.findall(text) if "://" not in link}
        there = [(repository, path) for path in paths_named_in(text)]
        there += [(document.parent, link) for link in links if link]
        missing += [
            f"{document.name}: {path}" for folder, path in there if not (folder / path).exists()
        ]
    assert not missing


def test_paths_in_documents_are_found() -> None:
    text = """Run `pipelines/quickstart.py`, see `docs/x.md`;
    `data/demo/score` and `s3://tests/x` are not ours.
    ```sh
    uv run python benchmarks/speed.py --input tests/pairs.json
    ```
    The `LICENSE` and `pyproject.toml` are."""
    assert paths_named_in(text) == {
        "pipelines/quickstart.py",
        "docs/x.md",
        "benchmarks/speed.py",
        "tests/pairs.json",
        "LICENSE",
        "pyproject.toml",
    }
