"""The guide to captions, command by command, on pairs of the demo and a model that says `A`."""

import re
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import aligncurate.cli
import aligntrain.cli
from alignshared import Dataset
from tests.trainer.evaluate.fixtures import run_that_says_a

APPS = {"aligncurate": aligncurate.cli.app, "aligntrain": aligntrain.cli.app}
PAIRS = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guide(repository: Path) -> str:
    return (repository / "docs/captions.md").read_text(encoding="utf-8")


def command(line: str) -> str:
    """What the command `line` prints."""
    name, *arguments = shlex.split(line, comments=True)
    said = CliRunner().invoke(APPS[name], arguments)
    assert said.exit_code == 0, said.output
    return said.output


def commands(guide: str, section: str, name: str) -> list[str]:
    """The commands of the program `name` in a section of the guide."""
    text = re.split(r"^## ", guide, flags=re.MULTILINE)
    (body,) = (part for part in text if part.startswith(section))
    (block,) = re.findall(r"```sh\n(.*?)```", body, re.DOTALL)
    lines = [line.removeprefix("uv run ") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith(name)]


def rows(location: str) -> dict[str, dict[str, Any]]:
    """The rows of a dataset by id."""
    every = (row for batch in Dataset(location).batches() for row in batch.to_pylist())
    return {row["id"]: row for row in every}


@pytest.fixture(scope="module")
def bootstrapped(guide: str, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the guide's commands ran, and what they printed."""
    workdir = tmp_path_factory.mktemp("bootstrapped")
    demo = pq.read_table(repository / "shared/src/alignshared/demo/pairs.parquet")
    pq.write_table(demo.slice(0, PAIRS), workdir / "pairs.parquet")
    run_that_says_a(workdir / "runs/demo-pretrain")
    run_that_says_a(workdir / "runs/recaptioned-plain")
    (workdir / "pipelines").symlink_to(repository / "pipelines")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workdir)
        patch.setattr(sys, "path", list(sys.path))
        command("aligncurate score --input pairs.parquet --model demo --output data/demo/score")
        command("aligncurate bucket --input data/demo/score --levels 8")
        (caption,) = re.findall(r"^uv run (aligntrain caption .*)$", guide, re.MULTILINE)
        said = [command(caption.replace("--level 8", "--level 4 --max-new-tokens 1"))]
        said += map(command, commands(guide, "Keep the better", "aligncurate"))
        for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
            with redirect_stdout(printed := StringIO()):
                exec(block, {})
            said.append(printed.getvalue())
        said += map(command, commands(guide, "Train again", "aligncurate"))
        yield workdir, said


def test_each_pair_has_the_better_of_its_captions(bootstrapped: Any) -> None:
    old, new, kept = (
        rows(f"data/{name}") for name in ("demo/score", "caption/score", "recaptioned/score")
    )
    assert list(kept) == list(old)
    chosen = {id_: row["caption"] == "A" for id_, row in kept.items()}
    assert 0 < sum(chosen.values()) < PAIRS
    for id_, row in kept.items():
        best = max((old[id_], new[id_]), key=lambda pair: pair["score"])
        assert row["caption"] == best["caption"]
        assert row["score"] == pytest.approx(best["score"], abs=1e-5)
        assert row["recaptioned"] == chosen[id_]
        for name in ("image", "concept", "tags", "caption_kind"):  # the source's own
            assert row[name] == old[id_][name]


def test_filter_counts_the_better_ones(bootstrapped: Any) -> None:
    said = " ".join("\n".join(bootstrapped[1]).split())
    better = rows("data/caption/better")
    assert f"{PAIRS} pairs in = {len(better)} kept" in said
    levels = [row["level_original"] for row in better.values()]
    assert sum(level <= 2 for level in levels) > sum(level >= 7 for level in levels)


def test_what_is_trained_on_next_keeps_the_contract(bootstrapped: Any) -> None:
    for name in ("demo/caption", "caption/better", "recaptioned/bucket"):
        assert "keeps the contract" in command(f"aligncurate validate --input data/{name}")
    assert (bootstrapped[0] / "data/recaptioned/bucket").is_dir()
    assert (bootstrapped[0] / "data/recaptioned/report/drift.png").is_file()


def test_the_guide_counts_what_a_model_says_of_the_test_images(bootstrapped: Any) -> None:
    assert "Counter({'other': 100})" in "".join(bootstrapped[1])
