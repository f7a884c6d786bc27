"""Packed datasets that go to the Hub and are read from there as they were here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from aligncurate.cli import app
from alignshared import Dataset
from tests.curation.datasets import cosines, replace_rows, write_levelled_dataset
from tests.curation.inputs import rows_of
from tests.curation.pictures import photo
from tests.hub import Hub, Repository, answering, environment, running_hub

# The client gives large files to its HTTP library in a form that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with answering(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def levelled(tmp_path: Path) -> Dataset:
    return write_levelled_dataset(tmp_path / "secret" / "mine" / "bucket", cosines(12), 4)


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)


FILES = {
    "hf": {"README.md", "data/train-00000-of-00001.parquet", "export.json"},
    "webdataset": {"00000.tar", "README.md", "export.json"},
}


@pytest.mark.parametrize("format", FILES)
def test_an_export_is_pushed_with_its_card(
    tmp_path: Path, levelled: Dataset, hub: Hub, format: str
) -> None:
    words = ["export", "--input", levelled.location, "--output", tmp_path / "out"]
    done = command(*words, "--format", format, "--push-to-hub", "group/pairs", "--private")
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{hub.url}/datasets/group/pairs: 3 files, ")
    assert last.endswith("uploaded to a new private repository")
    repository = hub.repositories["datasets", "group/pairs"]
    assert repository.private
    assert repository.files == {
        name: (tmp_path / "out" / name).read_bytes() for name in FILES[format]
    }
    card = repository.files["README.md"].decode()
    assert card.startswith("---\nconfigs:\n- config_name: default\n")
    assert "| bucket | 12 | 0 | 0 |" in card
    told = json.loads(repository.files["export.json"])
    assert (told["config"]["input"], told["parents"][0]["sha256"]) == (
        "mine/bucket", levelled.digest,
    )  # fmt: skip
    for name in ("README.md", "export.json"):
        assert b"secret" not in repository.files[name]
    again = command(*words, "--format", format, "--push-to-hub", "group/pairs")
    assert again.exit_code == 0, again.output
    assert repository.commits == 1  # nothing has changed


def test_a_smaller_export_leaves_no_pairs_of_the_larger(
    tmp_path: Path, levelled: Dataset, hub: Hub
) -> None:
    export = ["export", "--input", levelled.location, "--format", "webdataset"]
    for size in (3, 6):
        out = tmp_path / str(size)
        assert command(*export, "--output", out, "--pairs-per-file", size).exit_code == 0
        assert command("push", out, "owner/pairs").exit_code == 0
    files = hub.repositories["datasets", "owner/pairs"].files
    assert files.keys() == {"00000.tar", "00001.tar", "README.md", "export.json"}


def test_a_dry_run_lists_and_uploads_nothing(tmp_path: Path, levelled: Dataset, hub: Hub) -> None:
    out = tmp_path / "out"
    export = ["export", "--input", levelled.location, "--output", out, "--format", "hf"]
    assert command(*export).exit_code == 0
    assert not hub.asked  # nothing is asked unasked
    done = command("push", out, "owner/pairs", "--private", "--dry-run")
    assert done.exit_code == 0, done.output
    *listed, last = done.stdout.splitlines()
    assert {line.split()[-1] for line in listed} == FILES["hf"]
    assert last.endswith("would be uploaded to a new private repository")
    assert not hub.repositories


def test_what_cannot_be_pushed_is_told_before_anything_is_written(
    tmp_path: Path, levelled: Dataset, hub: Hub
) -> None:
    out = tmp_path / "out"
    export = ["export", "--input", levelled.location, "--output", out]
    hub.repositories["models", "owner/model"] = Repository()
    hub.repositories["datasets", "owner/public"] = Repository()
    for words, said in (
        (["--format", "llava", "--push-to-hub", "owner/x"], "has a file for each image"),
        (["--format", "hf", "--push-to-hub", "owner/model"], "is a model on the Hub already"),
        (["--format", "hf", "--push-to-hub", "owner/public", "--private"], "exists and is public"),
        (["--format", "hf", "--push-to-hub", "x"], "is no name of a repository"),
        (["--format", "hf", "--private"], "--private goes with --push-to-hub"),
    ):
        done = command(*export, *words)
        assert (done.exit_code, said in done.output) == (2, True), done.output
        assert not out.exists()
    for place, said in (
        (levelled.location, "is a dataset, not an export"),
        (tmp_path, "is not a finished export: it has no export.json"),
        (tmp_path / "nowhere", "is not a finished export"),
    ):
        done = command("push", place, "owner/x")
        assert (done.exit_code, said in done.output) == (2, True), done.output


def test_export_without_a_token_says_how_to_get_one(tmp_path: Path, levelled: Dataset) -> None:
    with answering(tmp_path / "cache", token=None):
        done = command(
            "export", "--input", levelled.location, "--format", "hf", "--push-to-hub", "owner/x"
        )
    assert done.exit_code == 2
    assert "run `hf auth login`, or set HF_TOKEN" in done.output


def run(folder: Path, hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("aligncurate")
    told = environment(hub, folder / "home")
    return subprocess.run(
        [program, *words], cwd=folder, env=told, capture_output=True, text=True, check=False,
        timeout=280,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("format", FILES)
def test_a_pushed_dataset_is_scored_from_the_hub(tmp_path: Path, format: str) -> None:
    """As a user does it: in processes of their own, which are told of the Hub by HF_ENDPOINT."""
    dataset = write_levelled_dataset(tmp_path / "bucket", cosines(6), 2)
    rows: list[dict[str, Any]] = rows_of(dataset)
    for number, row in enumerate(rows):
        row["image"]["bytes"] = photo(number)
    dataset = replace_rows(dataset, pa.Table.from_pylist(rows, dataset.schema))
    with running_hub() as hub:
        words = ["export", "--input", "bucket", "--output", "out", "--format", format]
        done = run(tmp_path, hub, *words, "--push-to-hub", "owner/pairs", "--private")
        assert done.returncode == 0, done.stderr
        source = ["--input", "hf://datasets/owner/pairs"]
        score = ["score", *source, "--output", "again", "--model", "demo"]
        done = run(tmp_path, hub, *score, "--engine", "local", "--gpus", "0")
        assert done.returncode == 0, done.stderr
    again = rows_of(Dataset(tmp_path / "again"))
    assert [row["caption"] for row in again] == [row["caption"] for row in rows]
    assert [row["id"] for row in again] == [row["id"] for row in rows]
