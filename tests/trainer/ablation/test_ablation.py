"""Ablations: which runs they come to, what their differences are worth, and what goes wrong."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from alignshared import AlignError, InputError
from aligntrain.ablation.compare import LOSS, compare, expected_by_chance
from aligntrain.ablation.design import PACKAGE, load_design
from aligntrain.ablation.report import draw
from aligntrain.ablation.runner import ablate, open_ablation
from aligntrain.ablation.runs import runs_of
from aligntrain.charts import svg
from aligntrain.cli import app
from aligntrain.recipes.load import shipped
from aligntrain.train import run as running


def test_what_ships_can_be_read() -> None:
    assert shipped(PACKAGE) == ["demo", "paper"]
    demo = load_design("demo")
    names = list(demo.variants)
    assert {"adaptive", "local", "global", "mean", "levels-4", "levels-6", "levels-10"} < set(names)
    assert {"random-table", "random-levels", "none"} < set(names)
    assert load_design("paper").recipe == "vicuna-7b"


def test_pretraining_is_shared_where_it_is_the_same(tmp_path: Path) -> None:
    runs = runs_of(load_design("demo", seeds=1), tmp_path)
    pretrained = [run.folder.name for run in runs if run.phase == "pretrain"]
    assert pretrained == [
        f"{name}-seed0"
        for name in ("adaptive", "levels-4", "levels-6", "levels-10", "random-levels", "none")
    ]
    start = {run.variant: run.start.name for run in runs if run.start is not None}
    assert len(start) == 10
    for name in ("adaptive", "local", "global", "mean", "random-table"):
        assert start[name] == "adaptive-seed0"
    assert start["levels-6"] == "levels-6-seed0"
    two = runs_of(load_design("demo", seeds=2, only=["mean"]), tmp_path)
    assert [run.name for run in two] == [
        f"{phase}/{name}-seed{seed}"
        for seed in (0, 1)
        for phase, name in (
            ("pretrain", "adaptive"),
            ("finetune", "adaptive"),
            ("finetune", "mean"),
        )
    ]


def test_differences_are_paired_and_judged() -> None:
    values = {
        "worse": {0: 1.11, 1: 2.10, 2: 3.12},
        "base": {0: 1.0, 1: 2.0, 2: 3.0},
        "noise": {0: 1.3, 1: 1.9, 2: 2.9},
        "few": {1: 1.0, 2: 2.0},
        "one": {7: 1.0},
    }
    found = {line.variant: line for line in compare(LOSS, values, "base").lines}
    assert next(iter(found)) == "base"
    verdicts = {name: line.verdict for name, line in found.items()}
    assert verdicts == {
        "base": "baseline",
        "worse": "worse",
        "noise": "within noise",
        "few": "too few seeds to say",
        "one": "no seed of the baseline to compare with",
    }
    # The seeds differ by 1.0, the pairs by 0.01: not pairing would hide the difference.
    difference = found["worse"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.11)
    # By hand: sd 0.01, so 4.3027 * 0.01 / sqrt(3).
    assert difference.high - difference.mean == pytest.approx(0.02484, abs=1e-5)
    right = compare("right, group", {"base": values["base"], "up": values["worse"]}, "base")
    assert right.lines[1].verdict == "better"  # more right answers are better, more loss is not
    assert expected_by_chance([compare(LOSS, values, "base")]) == pytest.approx(2 / 20)


def test_the_figure_is_well_formed_and_escaped() -> None:
    values = {"base": {0: 0.1, 1: 0.2, 2: 0.3}, "a": {0: 0.2, 1: 0.2, 2: 0.2}}
    one = ElementTree.fromstring(svg(draw([compare("right, <b>", values, "base")])))
    texts = [element.text for element in one.iter() if element.text]
    assert "right, <b>" in texts
    assert "a" in texts


def test_nothing_in_the_figure_is_cut_or_squeezed() -> None:
    long = "a-variant-with-quite-a-long-name"
    values = {"base": {0: 0.1, 1: 0.2, 2: 0.3}, long: {0: 0.2, 1: 0.2, 2: 0.2}}
    two = {"base": {0: 0.1, 1: 0.2}, "two": {0: 0.2, 1: 0.2}}
    drawn = [compare(f"right, {'kind of question ' * 3}{n}", values, "base") for n in range(7)]
    figure = ElementTree.fromstring(svg(draw([*drawn, compare(LOSS, two, "base")])))
    assert (
        float(figure.attrib["width"].removesuffix("pt")) < 1200
    )  # three panels side by side, and no more
    texts = [element for element in figure.iter() if element.text]
    names = [element for element in texts if element.text == long]
    assert len(names) == 3  # beside each row of panels
    assert all(float(element.attrib["x"]) > 6 * len(long) for element in names)
    assert max(len(e.text or "") for e in texts if (e.text or "").startswith("right, ")) <= 36
    # The interval of two seeds would be 12.7 standard errors to each side.
    wide = [e for e in figure.iter() if "stroke-width: 2;" in e.attrib.get("style", "")]
    assert len(wide) == 7


def test_all_of_it(design: Path, data: tuple[str, str], tmp_path: Path, in_process: None) -> None:
    """Five variants, two seeds: made, judged, written; and taken over when it is called again."""
    ablation = open_ablation(design, *data, output=tmp_path / "out", only=["mean", "none"])
    assert ablation.seconds_left is None
    outcome = ablate(ablation)
    assert outcome.failed == {}
    assert sum(run.phase == "pretrain" for run in ablation.runs) == 4
    metrics = {comparison.metric: comparison for comparison in outcome.comparisons}
    assert LOSS in metrics
    assert len(metrics) >= 2  # held-out rows had short answers to ask for
    loss = {line.variant: line for line in metrics[LOSS].lines}
    assert {name: len(line.values) for name, line in loss.items()} == {
        "adaptive": 2, "mean": 2, "none": 2
    }  # fmt: skip
    assert loss["none"].verdict == "too few seeds to say"
    assert loss["none"].values != loss["adaptive"].values
    folder = ablation.output
    page = (folder / "ablation.md").read_text(encoding="utf-8")
    assert "| `none` | 2 |" in page
    assert (folder / "ablation.csv").read_text(encoding="utf-8").startswith("metric,variant,seed,")
    written = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    assert written["runs"]["finetune/mean-seed1"]["start"] == "adaptive-seed1"
    ElementTree.parse(folder / "ablation.svg")
    kept = {path.name for path in (folder / "finetune/mean-seed0/export").iterdir()}
    assert "adapter.safetensors" in kept
    assert not any(name.startswith("model") for name in kept)

    again = ablate(open_ablation(design, *data, output=folder, only=["mean", "none"]))
    assert again.comparisons == outcome.comparisons
    planned = open_ablation(design, *data, output=folder)
    assert {run.variant for run in planned.left} == {"levels-3", "random-levels"}
    assert planned.seconds_left is not None


@pytest.mark.slow
def test_levels_made_anew_are_trained_on(
    design: Path, data: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each run in a process of its own: two as a user has them, the others forked."""
    given: dict[str, Any] = {"output": tmp_path / "out", "seeds": 1}
    baseline = open_ablation(design, *data, **given, only=["adaptive"])
    assert len(baseline.runs) == 2
    assert ablate(baseline, keep_models=True).failed == {}
    request.getfixturevalue("forked")
    ablation = open_ablation(design, *data, **given, only=["levels-3", "random-levels"])
    assert len(ablation.left) == 4
    assert ablate(ablation, keep_models=True).failed == {}
    import aligntrain

    model, _ = aligntrain.load_model(tmp_path / "out/finetune/levels-3-seed0")
    assert model.config.levels == 3


def test_a_run_that_fails_is_named_and_the_rest_goes_on(
    design: Path, data: tuple[str, str], tmp_path: Path, in_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    work: Any = vars(running)["launch"]

    def fail(folder: Path, **options: Any) -> None:
        if folder.name == "none-seed0":
            raise AlignError("the loss | is `no` number.")
        work(folder, **options)

    monkeypatch.setattr(running, "launch", fail)
    ablation = open_ablation(design, *data, output=tmp_path / "out", seeds=1, only=["none"])
    outcome = ablate(ablation)
    assert set(outcome.failed) == {"pretrain/none-seed0", "finetune/none-seed0"}
    assert [line.variant for line in outcome.comparisons[0].lines] == ["adaptive"]
    page = (tmp_path / "out/ablation.md").read_text(encoding="utf-8")
    assert "`pretrain/none-seed0`: the loss \\| is 'no' number" in page
    monkeypatch.setattr(running, "launch", work)
    assert ablate(ablation).failed == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variants: {a: []}", "lacks the key recipe; add it"),
        ("recipe: demo", "lacks the key variants; add it"),
        ("recipe: demo\nvariants: {}", "variants in .* should name at least one"),
        ("recipe: demo\nvariant: {a: []}", "unknown key variant; did you mean variants"),
        (
            "recipe: demo\nvariants: {a: model.mixing=mean}",
            "variants.a.pretrain in .* should be a",
        ),
        ("recipe: demo\nvariants: {a: [model.mixin=mean]}", "model.mixin"),
        (
            "recipe: demo\nvariants: {'../a': []}",
            "letters, digits and hyphens, as it names",
        ),
        (
            "recipe: demo\nvariants: {a: {tune: []}}",
            "variants.a.tune .* 'pretrain' or",
        ),
        ("recipe: demo\nbaseline: b\nvariants: {a: []}", "no variant b; there are a"),
        ("recipe: demo\nbaseline: mena\nvariants: {mean: []}", "did you mean mean"),
        ("recipe: demo\nseeds: [x]\nvariants: {a: []}", "seeds.0 in .* should be a valid integer"),
        ("recipe: demo\nseeds: []\nvariants: {a: []}", "seeds in .* should name at least one"),
        ("- a", "is no ablation"),
        ("a: [", "is not valid YAML in line 1"),
    ],
)
def test_designs_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "design.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        load_design(path)


def test_a_variant_may_change_one_phase_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "design.yaml"
    path.write_text("recipe: demo\nset: [max_steps=7]\nvariants:\n  4:\n  a: {finetune: [seed=1]}")
    design = load_design(path)
    assert (design.baseline, design.seeds) == ("4", (0, 1, 2))
    assert design.variants == {
        "4": {"pretrain": ["max_steps=7"], "finetune": ["max_steps=7"]},
        "a": {"pretrain": ["max_steps=7"], "finetune": ["max_steps=7", "seed=1"]},
    }


def test_the_command_plans_and_refuses(tmp_path: Path) -> None:
    def answer(*words: str) -> Any:
        return CliRunner().invoke(app, ["ablate", *words], catch_exceptions=False)

    planned = answer("--plan", "--output", str(tmp_path / "out"), "--seeds", "1")
    assert planned.exit_code == 0, planned.output
    assert "16 of 16 runs are left" in planned.output
    assert not (tmp_path / "out").exists()
    assert "did you mean demo?" in " ".join(answer("dem", "--plan").output.split())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear", encoding="utf-8")
    refused = answer("--plan", "--output", str(tmp_path / "mine"))
    assert refused.exit_code == 2
    assert "something else than an ablation" in refused.output
