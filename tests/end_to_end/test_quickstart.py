"""The README's first command up to the levels, as a user runs it, and what must come of it."""

import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignshared import Dataset
from alignshared.demo import pairs_path
from aligntrain.runs.folder import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The folder that the quickstart fills."""
    workdir = tmp_path_factory.mktemp("quickstart")
    quickstart = [sys.executable, repository / "pipelines/quickstart.py", "--levels-only"]
    run = subprocess.run(quickstart, cwd=workdir, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    pairs = pq.read_metadata(pairs_path()).num_rows
    assert f"{pairs:,} pairs in = {pairs:,} scored + 0 rejects" in run.stdout
    return workdir / "data/demo"


def command(data: Path, line: str) -> str:
    """What the command `line` prints, run where the quickstart ran."""
    name, *arguments = shlex.split(line)
    program = Path(sys.executable).with_name(name)
    run = subprocess.run(
        [program, *arguments], cwd=data.parents[1], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def column(dataset: Dataset, name: str) -> list[Any]:
    return [value for batch in dataset.batches([name]) for value in batch[name].to_pylist()]


def test_levels_differ_by_no_more_than_ties_explain(data: Path) -> None:
    dataset = Dataset(data / "bucket")
    scores = column(dataset, "score")
    ties = max(Counter(scores).values()) - 1
    sizes = [s.count for s in dataset.manifest.level_statistics or []]
    assert len(sizes) == 8
    assert sum(sizes) == len(scores)
    assert max(sizes) - min(sizes) <= 1 + 2 * ties


def test_levels_sort_the_kinds_of_caption(data: Path) -> None:
    """No stage is told which captions are full, vague or of another image."""
    dataset = Dataset(data / "bucket")
    kinds: dict[int, Counter[str]] = {level: Counter() for level in range(1, 9)}
    marked = zip(column(dataset, "level"), column(dataset, "caption_kind"), strict=True)
    for level, kind in marked:
        kinds[level][kind] += 1
    most = [kinds[level].most_common(1)[0][0] for level in range(1, 9)]
    assert most[:2] == ["mismatch", "mismatch"]
    assert most[3:5] == ["group", "group"]
    assert most[6:] == ["full", "full"]
    wrong = [kinds[level]["mismatch"] for level in range(1, 9)]
    assert sum(wrong[:3]) > 0.85 * sum(wrong)  # three eighths of them by chance
    assert wrong[7] < 0.02 * sum(wrong)


def test_report_is_written(data: Path) -> None:
    page = (data / "report/report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/') >= 8 * 8
    for figure in ("histogram", "levels", "gallery"):
        assert (data / f"report/{figure}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(900)
def test_a_few_steps_of_training_lower_the_losses_and_the_model_answers(
    data: Path, repository: Path
) -> None:
    """What the quickstart goes on to do, cut short: its full length takes minutes."""
    subprocess.run(
        [sys.executable, repository / "pipelines/demo_data/build_instructions.py"],
        cwd=data.parents[1], check=True,
    )  # fmt: skip
    command(
        data,
        "aligncurate ingest --input data/demo/instructions/instructions.json "
        "--output data/demo/ingest",
    )
    short = "--set log.every=1 --set log.validate_samples=8 --set max_steps"
    steps = {"pretrain": 300, "finetune": 12}
    for phase, source in (("pretrain", "bucket"), ("finetune", "ingest")):
        command(data, f"aligntrain run {phase} --data data/demo/{source} {short}={steps[phase]}")
        lines = read_metrics(data.parents[1] / f"runs/demo-{phase}")
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == steps[phase]
        third = len(losses) // 3
        assert sum(losses[-third:]) < 0.95 * sum(losses[:third])
    question = json.loads((data / "instructions/questions.json").read_text("utf-8"))[0]
    image = f"data/demo/instructions/{question['image']}"
    answer = command(
        data,
        f"aligntrain chat runs/demo-finetune --image {image} --show-gate --max-new-tokens 12 "
        f"--prompt {shlex.quote(question['question'])}",
    )
    assert answer.strip()
