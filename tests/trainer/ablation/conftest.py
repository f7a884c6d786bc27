"""A small ablation: its design, its data, and runs that are made in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aligntrain.train import main as worker
from aligntrain.train import run as running
from tests.trainer import rows, runs

DESIGN = """
recipe: {recipe}
set: [max_steps=2, checkpoint.every=2, log.validate_every=2]
seeds: [0, 1]
variants:
  adaptive: []
  mean: [model.mixing=mean]
  levels-3: [model.levels=3, data.levels=quantile]
  random-levels: [data.levels=random]
  none: {{pretrain: [model.mixing=none], finetune: [model.mixing=none]}}
"""


def short_talks(count: int) -> list[dict[str, Any]]:
    made = rows.talk_rows(count, text_every=9)
    for row in made:
        row["conversations"][1]["value"] = "yes"
    return made


@pytest.fixture
def design(tmp_path: Path) -> Path:
    path = tmp_path / "design.yaml"
    path.write_text(DESIGN.format(recipe=runs.recipe_file(tmp_path)), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, str]:
    pairs = runs.pairs(tmp_path / "pairs")
    talks = rows.write_rows(tmp_path / "talks", short_talks(40))
    return pairs.location, talks.location


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two kinds about one picture, four of the one and two of the other."""
    folder = tmp_path / "asked"
    folder.mkdir()
    (folder / "a.png").write_bytes(rows.picture(0))
    kinds = {"group": ["flags", "flags", "Flags.", "symbols"], "is_this": ["yes", "no"]}
    records = [
        {"id": f"{kind}-{n}", "image": "a.png", "question": f"{kind} {n}?", "answer": answer}
        | {"kind": kind}
        for kind, answers in kinds.items()
        for n, answer in enumerate(answers)
    ]
    (folder / "questions.json").write_text(json.dumps(records), encoding="utf-8")
    return folder / "questions.json"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs are made in this process, which is quicker; `launch` has its own tests."""

    def work(folder: Path, *, resume: bool, **_: Any) -> None:
        with runs.as_worker():
            worker.work(folder, resume=resume)

    monkeypatch.setattr(running, "launch", work)
    yield
