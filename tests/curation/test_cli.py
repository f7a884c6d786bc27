"""What a user of the commands sees: sums, tables, one-line errors, exit codes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from aligncurate.cli import app
from alignshared import AlignError, Dataset
from tests.curation.datasets import write_scored_dataset

SCORES = np.linspace(0.1, 0.3, 40, dtype=np.float32).tolist()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    log = logging.getLogger("aligncurate")
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_bucket_takes_the_newest_scored_dataset_and_says_which(workdir: Path) -> None:
    write_scored_dataset(workdir / "data/mine/score", SCORES)
    done = run("bucket", "--levels", "4")
    assert done.exit_code == 0, done.output
    assert "reading data/mine/score." in done.stderr
    assert "data/mine/bucket: 40 pairs in 4 levels" in done.stdout
    assert Dataset(workdir / "data/mine/bucket").manifest.rows == 40
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[2], row[3]) for row in rows] == [(n, "10", "25.0") for n in "4321"]
    assert "next: aligncurate report\n" in done.stderr


def test_next_command_names_a_dataset_that_would_not_be_found(workdir: Path) -> None:
    write_scored_dataset(workdir / "elsewhere", SCORES)
    done = run("bucket", "--input", "elsewhere", "--output", "sorted")
    assert "next: aligncurate report --input sorted\n" in done.stderr


def test_report_prints_the_files_it_wrote(workdir: Path) -> None:
    write_scored_dataset(workdir / "data/mine/score", SCORES)
    done = run("report", "--examples", "2")
    assert done.exit_code == 0, done.output
    files = done.stdout.splitlines()
    assert files[0] == "data/mine/report/report.html"
    assert all((workdir / file).stat().st_size for file in files)


def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(workdir: Path) -> None:
    done = run("score", "--input", "nothing-here")
    assert done.exit_code == 2
    assert not done.stdout
    assert done.stderr.startswith("error: --input nothing-here is not known: give demo,")
    assert done.stderr.count("\n") == 1


def test_no_dataset_to_take_is_a_sentence(workdir: Path) -> None:
    done = run("bucket")
    assert done.exit_code == 2
    assert "name one with --input, or run aligncurate score first." in done.stderr


def test_debug_shows_where_it_went_wrong(workdir: Path) -> None:
    done = run("--debug", "bucket")
    assert isinstance(done.exception, AlignError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["score"],
        ["score", "--input", "demo", "--precision", "int4"],
        ["bucket", "--levels", "many"],
        ["report", "--examples", "0"],
        ["score", "--input", "demo", "--workers", "0"],
    ],
    ids=" ".join,
)
def test_bad_arguments_are_exit_code_2(workdir: Path, arguments: list[str]) -> None:
    write_scored_dataset(workdir / "data/mine/score", SCORES)
    assert run(*arguments).exit_code == 2


def test_validate_answers_by_exit_code(workdir: Path) -> None:
    dataset = write_scored_dataset(workdir / "data/mine/score", SCORES)
    sound = run("validate")
    assert sound.exit_code == 0, sound.output
    assert "40 pairs" in sound.stdout
    shard = workdir / "data/mine/score" / dataset.manifest.shards[1].file
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    damaged = run("validate")
    assert damaged.exit_code == 2
    assert dataset.manifest.shards[1].file in damaged.stdout


def test_inspect_tells_what_is_there(workdir: Path) -> None:
    write_scored_dataset(workdir / "data/mine/score", SCORES)
    done = run("inspect")
    assert done.exit_code == 0, done.output
    for fact in ("score", "40", "ViT-L-14-336", "openai", "caption_truncated"):
        assert fact in done.stdout


def test_version() -> None:
    done = run("--version")
    assert done.exit_code == 0
    assert done.stdout.startswith("aligncurate ")
