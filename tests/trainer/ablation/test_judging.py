"""What is refused before anything trains, and what asking a model may come to."""

import errno
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignshared import AlignError, InputError
from aligntrain.ablation.compare import LOSS
from aligntrain.ablation.design import load_design
from aligntrain.ablation.runner import ablate, open_ablation
from aligntrain.ablation.score import score_run
from aligntrain.cli import app
from aligntrain.evaluate.short_answers import read_questions
from aligntrain.model import AlignGPTForConditionalGeneration
from aligntrain.train import run as running
from tests.trainer import rows

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.levels=quantile", "would undo data.levels=random of the variant random-levels"),
        ("model.levels=6", "would undo model.levels=4 of the variant levels-4"),
        ("seed=7", "say how many with --seeds"),
    ],
)
def test_no_override_undoes_a_variant(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_design("demo", overrides=[override])
    answer = CliRunner().invoke(app, ["ablate", "demo", "--plan", "--set", override])
    assert answer.exit_code == 2


def test_an_override_of_what_no_chosen_variant_changes_is_taken() -> None:
    design = load_design("demo", overrides=["data.levels=random"], only=["mean"])
    assert design.resolved("mean", "pretrain", 0).data.levels == "random"


def test_the_numbers_of_levels_differ_in_nothing_else() -> None:
    for name in ("demo", "paper"):
        design = load_design(name)
        settings = {v: design.resolved(v, "pretrain", 0).settings for v in design.variants}
        for levels in ("levels-4", "levels-6", "levels-10"):
            model = {**settings[levels]["model"], "levels": 8}
            assert {**settings[levels], "model": model} == settings["adaptive"]


def test_nothing_to_judge_by_is_refused(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path
) -> None:
    none = ["data.validation_share=0"]
    ablation = open_ablation(design, *data, output=tmp_path / "out", overrides=none)
    with pytest.raises(InputError, match="no run could be judged; give --questions"):
        ablate(ablation)
    assert not (tmp_path / "out").exists()
    some = open_ablation(
        design, *data, output=tmp_path / "out", overrides=none, seeds=1, only=["adaptive"]
    )
    assert next(c.metric for c in ablate(some, questions=questions).comparisons) == "right, all"


def test_data_that_some_runs_could_not_use_are_refused(
    design: Path, data: tuple[str, str], tmp_path: Path
) -> None:
    flat = rows.write_rows(tmp_path / "flat", rows.pair_rows(24))  # with scores, without levels
    ablation = open_ablation(design, flat.location, data[1], output=tmp_path / "out")
    with pytest.raises(InputError, match="level"):
        ablate(ablation)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_was_asked_is_gone(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path
) -> None:
    """On a GPU the next training needs its memory."""
    ablation = open_ablation(design, *data, output=tmp_path / "out", seeds=1, only=["adaptive"])
    ablate(ablation, questions=questions, keep_models=True)
    run = ablation.runs[1]
    asked = read_questions(questions)

    def models() -> int:
        return sum(type(one) is AlignGPTForConditionalGeneration for one in gc.get_objects())

    gc.collect()
    before = models()
    gc.disable()
    try:
        (run.folder / "held-out.json").unlink()
        assert not score_run(run, asked).unasked
        assert models() == before
        (questions.parent / "a.png").write_bytes(b"no picture")
        (run.folder / "held-out.json").unlink()
        with pytest.raises(AlignError, match=r"a\.png") as caught:
            score_run(run, asked)
        assert models() == before  # though the error is still held here
        assert caught.value
    finally:
        gc.enable()


def test_a_damaged_model_costs_its_own_answers_alone(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    work: Any = vars(running)["launch"]

    def damage(folder: Path, **options: Any) -> None:
        work(folder, **options)
        if folder == tmp_path / "out/finetune/adaptive-seed0":
            (folder / "export/model.safetensors").write_bytes(b"\xff" * 100)

    monkeypatch.setattr(running, "launch", damage)
    ablation = open_ablation(design, *data, output=tmp_path / "out", seeds=1, only=["mean"])
    outcome = ablate(ablation, questions=questions)
    assert set(outcome.failed) == {"finetune/adaptive-seed0"}
    assert "is damaged" in str(outcome.failed)
    assert [line.variant for line in outcome.comparisons[0].lines] == ["mean"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_stops_it(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    work: Any = vars(running)["launch"]

    def fill(folder: Path, **options: Any) -> None:
        work(folder, **options)
        (folder / ".unfinished-held-out.json").symlink_to("/dev/full")

    monkeypatch.setattr(running, "launch", fill)
    ablation = open_ablation(design, *data, output=tmp_path / "out", seeds=1, only=["mean"])
    with pytest.raises(AlignError, match=r"there is no room left for .*adaptive-seed0") as caught:
        ablate(ablation, questions=questions)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert not (tmp_path / "out/finetune/mean-seed0").exists()


@pytest.mark.slow
def test_bars_are_drawn_while_questions_are_asked_and_not_while_others_train(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Training draws bars of its own on the same terminal."""
    shown: list[str] = []
    counted: list[int] = []

    @contextmanager
    def bars() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
        shown.append("bars")
        yield lambda _what, _count: counted.append
        shown.pop()

    work: Any = vars(running)["launch"]

    def look(folder: Path, **options: Any) -> None:
        assert not shown
        work(folder, **options)

    monkeypatch.setattr(running, "launch", look)
    ablation = open_ablation(design, *data, output=tmp_path / "out", seeds=1, only=["mean"])
    outcome = ablate(ablation, questions=questions, progress=bars)
    assert outcome.failed == {}
    assert outcome.comparisons[0].metric == LOSS
    assert counted == [1] * 12  # six questions of each of two runs
