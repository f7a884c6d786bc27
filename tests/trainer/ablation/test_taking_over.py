"""What an ablation that is called again keeps: finished runs, the questions, and the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignshared import InputError
from aligntrain import terminal
from aligntrain.ablation.compare import LOSS, RIGHT_ALL
from aligntrain.ablation.design import load_design
from aligntrain.ablation.report import Outcome
from aligntrain.ablation.runner import ablate, open_ablation
from aligntrain.ablation.runs import runs_of
from aligntrain.ablation.score import choose_questions

pytestmark = pytest.mark.usefixtures("in_process")


def seeds_of(outcome: Outcome, metric: str) -> dict[str, list[int]]:
    found = next(c for c in outcome.comparisons if c.metric == metric)
    return {line.variant: sorted(line.values) for line in found.lines}


@pytest.mark.slow
def test_a_part_of_it_keeps_the_rest_and_the_questions(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "out"
    first = open_ablation(design, *data, output=folder, seeds=1, only=["none"])
    ablate(first, questions=questions)
    part = open_ablation(design, *data, output=folder, seeds=2, only=["mean"])
    outcome = ablate(part)
    assert outcome.failed == {}
    wanted = {"adaptive": [0, 1], "mean": [0, 1], "none": [0]}
    assert list(seeds_of(outcome, LOSS)) == list(wanted)  # in the order of the file
    assert [c.metric for c in outcome.comparisons] == [
        LOSS, RIGHT_ALL, "right, group", "right, is_this"
    ]  # fmt: skip
    assert all(seeds_of(outcome, c.metric) == wanted for c in outcome.comparisons)
    page = (folder / "ablation.md").read_text(encoding="utf-8")
    assert "3 variants, 2 seeds; 8 of 8 runs are finished" in page
    assert "## Right answers, all (6 questions, percent; the best constant answer to each" in page
    assert "group (4 questions, percent; the best constant answer has 75.0)" in page
    assert "other questions" in page
    terminal.show_outcome(outcome)
    assert "group (4 questions, percent; the best constant" in capsys.readouterr().out
    kept = load_design(folder / "ablation.yaml")
    assert len(kept.variants) == 5
    assert kept.seeds == (0, 1)
    fewer = ablate(open_ablation(design, *data, output=folder, seeds=1, only=["mean"]))
    assert fewer.comparisons == outcome.comparisons


def test_other_questions_are_refused_before_anything_runs(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    ablation = open_ablation(design, *data, output=folder, seeds=1, only=["adaptive"])
    ablate(ablation, questions=questions, kinds=["group"])
    report = (folder / "ablation.md").read_bytes()
    other = questions.with_name("other.json")
    other.write_text(json.dumps(json.loads(questions.read_text())[:3]), encoding="utf-8")
    more = open_ablation(design, *data, output=folder, seeds=2, only=["mean"])
    asked: list[dict[str, Any]] = [{"questions": other}, {"kinds": ["is_this"]}]
    for words in asked:
        with pytest.raises(InputError, match=r"answered other questions.*questions\.json.*group"):
            ablate(more, **words)
    before = questions.read_text()
    questions.write_text(before.replace("symbols", "signs"), encoding="utf-8")
    with pytest.raises(InputError, match=r"1 finished run in .* as it was then"):
        ablate(more)
    questions.write_text(before, encoding="utf-8")
    (folder / "asked.json").unlink()  # as no version before kept it
    with pytest.raises(InputError, match="give the questions of before, or another --output"):
        ablate(more)
    assert (folder / "ablation.md").read_bytes() == report
    assert not (folder / "finetune/mean-seed0").exists()


def test_what_cannot_be_asked_any_more_keeps_its_loss(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path
) -> None:
    ablation = open_ablation(design, *data, output=tmp_path / "out", seeds=1, only=["mean"])
    ablate(ablation, questions=questions)
    (tmp_path / "out/finetune/mean-seed0/held-out.json").unlink()
    outcome = ablate(ablation)
    assert outcome.failed == {}
    assert outcome.unasked == ["finetune/mean-seed0"]
    assert seeds_of(outcome, LOSS) == {"adaptive": [0], "mean": [0]}
    assert seeds_of(outcome, "right, group") == {"adaptive": [0]}
    page = (tmp_path / "out/ablation.md").read_text(encoding="utf-8")
    assert "## Not asked" in page


def test_kinds_are_asked_as_if_the_others_were_not_there(questions: Path, tmp_path: Path) -> None:
    records = json.loads(questions.read_text())
    alone = questions.with_name("alone.json")
    alone.write_text(json.dumps([r for r in records if r["kind"] == "group"]), encoding="utf-8")
    chosen = choose_questions(tmp_path, questions, ["group"], ("", 0.0))
    assert chosen.sha256 == choose_questions(tmp_path, alone, [], ("", 0.0)).sha256
    assert chosen.sha256 != choose_questions(tmp_path, questions, [], ("", 0.0)).sha256
    with pytest.raises(InputError, match="no question of the kind groop; there are group, is_this"):
        choose_questions(tmp_path, questions, ["groop"], ("", 0.0))


@pytest.mark.slow
def test_losses_that_were_measured_on_other_rows_are_not_compared(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    ablate(
        open_ablation(design, *data, output=folder, seeds=1, only=["adaptive"]),
        questions=questions,
    )
    other = ["log.validate_samples=2"]
    outcome = ablate(
        open_ablation(design, *data, output=folder, seeds=1, only=["mean"], overrides=other)
    )
    assert set(outcome.failed) == {"finetune/adaptive-seed0"}
    assert "log.validate_samples null, and that of the others is with 2" in str(outcome.failed)
    assert seeds_of(outcome, LOSS) == {"mean": [0]}
    # Versions are those of the runs, which need not be this program's.
    path = folder / "pretrain/adaptive-seed0/run.json"
    path.write_text(path.read_text().replace('"torch": "', '"torch": "0.'), encoding="utf-8")
    ablate(open_ablation(design, *data, output=folder, seeds=1, only=["mean"], overrides=other))
    said = json.loads((folder / "ablation.json").read_text())["versions"]["torch"]
    assert len(said) == 2
    assert f"torch {' and '.join(said)}" in (folder / "ablation.md").read_text(encoding="utf-8")


def test_a_pretraining_has_one_folder_whichever_variants_are_chosen(
    design: Path, data: tuple[str, str], tmp_path: Path
) -> None:
    text = design.read_text(encoding="utf-8").replace("seeds:", "baseline: none\nseeds:")
    design.write_text(text.replace("  none: {", "  local: [model.mixing=local]\n  none: {"))
    some = runs_of(load_design(design, seeds=1, only=["local"]), tmp_path)
    start = next(c.start for c in some if c.variant == "local")
    assert start == tmp_path / "pretrain/adaptive-seed0"
    assert [c.name for c in some][:2] == ["pretrain/none-seed0", "finetune/none-seed0"]
    everything = {c.folder: c for c in runs_of(load_design(design), tmp_path)}
    assert all(everything[run.folder] == run for run in some)


@pytest.mark.slow
def test_other_seeds_without_their_pretraining_are_named(
    design: Path, data: tuple[str, str], questions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    ablate(
        open_ablation(design, *data, output=folder, seeds=1, only=["adaptive"]),
        questions=questions,
    )
    shutil.rmtree(folder / "pretrain/adaptive-seed0")
    text = design.read_text(encoding="utf-8").replace("seeds: [0, 1]", "seeds: [1]")
    design.write_text(text, encoding="utf-8")
    outcome = ablate(open_ablation(design, *data, output=folder, only=["adaptive"]))
    assert set(outcome.failed) == {"finetune/adaptive-seed0"}
    assert seeds_of(outcome, LOSS) == {"adaptive": [1]}
