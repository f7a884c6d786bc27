"""What evaluations are of, made once: data, two models, and one evaluation of everything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.evaluate import fixtures

ALL_LOCAL = "pope,mme,textvqa,vqav2-val,vizwiz-val,gqa,scienceqa,seed,mmbench,mmbench-cn"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written outside of the tests' own folders."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("datasets")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", place)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.everything(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def says_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.run_that_says_a(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def chatters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.random_run(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="session")
def evaluated(
    cache: None, says_a: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """What the command says of all benchmarks that are scored here, and where."""
    output = tmp_path_factory.mktemp("eval")
    said = fixtures.command(
        says_a, "--benchmarks", f"{ALL_LOCAL},vqav2,vizwiz,llava-bench,mm-vet", "--data", data,
        "--output", output, "--max-new-tokens", 1, "--batch-size", 3,
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    return said.output, output
