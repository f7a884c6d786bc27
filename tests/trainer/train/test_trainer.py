"""Training: what is learned, what is measured, and when a run stops."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from alignshared import AlignError, ContractError, InputError
from aligntrain.runs.folder import result_of
from aligntrain.train.checkpoint import newest_checkpoint
from aligntrain.train.run import prepare
from aligntrain.train.trainer import step_seed
from tests.trainer import rows, runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, two datasets, and a finished pre-training in `pretrained`."""
    place = tmp_path_factory.mktemp("place")
    recipe = runs.recipe_file(place)
    runs.pairs(place / "pairs")
    runs.talks(place / "talks")
    prepare("pretrain", place / "pairs", recipe=recipe, output=place / "pretrained")
    runs.train(place / "pretrained")
    return place


def pretrain(place: Path, output: Path, *overrides: str) -> list[dict[str, Any]]:
    recipe = place / "tiny.yaml"
    prepare("pretrain", place / "pairs", recipe=recipe, output=output, overrides=overrides)
    return runs.train(output)


def finetune(place: Path, output: Path, *overrides: str, **options: Any) -> list[dict[str, Any]]:
    data, start = options.get("data", place / "talks"), options.get("start", place / "pretrained")
    prepare(
        "finetune", data, recipe=place / "tiny.yaml", output=output, start=start,
        overrides=overrides,
    )  # fmt: skip
    return runs.train(output)


def test_pretraining_learns_projector_and_table_alone(place: Path, tmp_path: Path) -> None:
    lines = pretrain(place, tmp_path / "run", "max_steps=12", "optimizer.lr=3e-2")
    losses = runs.losses(lines)
    assert list(losses) == list(range(1, 13))
    assert losses[12] < losses[1] - 0.3
    assert set(lines[0]["learning_rate"]) == {"projector", "table"}
    assert set(lines[0]["loss_by_level"]) <= {"1", "2", "3", "4"}
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    llm = load_file(place / "llm" / "model.safetensors")
    for name, value in llm.items():
        kept, added = exported[f"model.language_model.{name}"].tensor_split([len(value)])
        assert torch.equal(kept, value), name
        assert not added.any()  # rows of the placeholders


def test_finetuning_learns_the_rest_and_leaves_the_table(place: Path, tmp_path: Path) -> None:
    lines = finetune(place, tmp_path / "run", "max_steps=12")
    losses = runs.losses(lines)
    assert losses[12] < losses[1] - 0.3
    gates = [line for line in lines if "gate_weights" in line]
    assert all(sum(line["gate_weights"]) == pytest.approx(1.0) for line in gates)
    assert gates
    before, after = (
        load_file(run / "export" / "adapter.safetensors")
        for run in (place / "pretrained", tmp_path / "run")
    )
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in before if name != "model.alignment.table"}


def test_a_line_says_all_that_is_measured(place: Path) -> None:
    line = json.loads((place / "pretrained" / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "step", "epoch", "loss", "loss_by_level", "learning_rate", "gradient_norm", "tokens_per_s",
        "samples_per_s", "padding", "data_wait_s", "step_s",
    } == line.keys()  # fmt: skip
    assert line["gradient_norm"] > 0
    assert 0 <= line["padding"] < 1


def test_the_held_out_loss_is_measured_and_not_learned(place: Path, tmp_path: Path) -> None:
    often = pretrain(place, tmp_path / "often", "log.validate_every=1")
    seldom = pretrain(place, tmp_path / "seldom")
    assert runs.losses(often) == runs.losses(seldom)
    assert list(runs.held_out(often)) == [1, 2, 3, 4, 5, 6]
    assert runs.held_out(often)[6] == runs.held_out(seldom)[6]


def test_a_validation_may_take_a_part_of_the_held_out(place: Path, tmp_path: Path) -> None:
    whole = pretrain(place, tmp_path / "whole", "max_steps=1")
    part = pretrain(place, tmp_path / "part", "max_steps=1", "log.validate_samples=3")
    counts = [lines[-1]["validation_samples"] for lines in (whole, part)]
    assert counts[0] > counts[1] == 3


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_the_micro_batch_does_not_change_what_is_learned(
    place: Path, tmp_path: Path, phase: str
) -> None:
    work = pretrain if phase == "pretrain" else finetune
    expected: dict[int, float] = {}
    for size in (8, 4, 1):
        found = runs.losses(work(place, tmp_path / f"micro-{size}", f"batch.micro_size={size}"))
        expected = expected or found
        assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_give_the_same_losses(place: Path, tmp_path: Path, stage: int) -> None:
    plain = runs.losses(finetune(place, tmp_path / "plain"))
    found = runs.losses(finetune(place, tmp_path / "zero", f"zero_stage={stage}"))
    assert found == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_gradient_checkpointing_changes_nothing(place: Path, tmp_path: Path, stage: int) -> None:
    options = (f"zero_stage={stage}", "max_steps=3")
    plain = runs.losses(finetune(place, tmp_path / "plain", *options))
    found = finetune(place, tmp_path / "saving", *options, "gradient_checkpointing=true")
    assert runs.losses(found) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("stage", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_logits_in_pieces_change_nothing(place: Path, tmp_path: Path, stage: int) -> None:
    options = (f"zero_stage={stage}", "max_steps=3")
    plain = runs.losses(finetune(place, tmp_path / "plain", *options))
    found = finetune(place, tmp_path / "pieces", *options, "batch.logits_mb=0.01")
    assert runs.losses(found) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_gradient_checkpointing_goes_through_a_frozen_llm(
    place: Path, tmp_path: Path, stage: int
) -> None:
    options = (f"zero_stage={stage}", "max_steps=3")
    lines = {
        saving: pretrain(place, tmp_path / saving, *options, f"gradient_checkpointing={saving}")
        for saving in ("false", "true")
    }
    assert runs.losses(lines["true"]) == pytest.approx(runs.losses(lines["false"]), abs=1e-5)
    norms = [
        [line["gradient_norm"] for line in found if "loss" in line] for found in lines.values()
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert min(norms[1]) > 0


@pytest.mark.parametrize("text_every", [1, 1000])
def test_batches_of_one_kind_train(place: Path, tmp_path: Path, text_every: int) -> None:
    runs.talks(tmp_path / "talks", 24, text_every)
    lines = finetune(place, tmp_path / "run", "zero_stage=3", data=tmp_path / "talks")
    assert len(runs.losses(lines)) == 6


@pytest.mark.parametrize("mixing", ["local", "global", "mean", "none"])
def test_every_mixing_trains_through_both_phases(place: Path, tmp_path: Path, mixing: str) -> None:
    options = (f"model.mixing={mixing}", "max_steps=2")
    first = tmp_path / "first"
    pretrain(place, first, *options)
    lines = finetune(place, tmp_path / "second", *options, start=first)
    assert len(runs.losses(lines)) == 2
    assert ("gate_weights" in lines[0]) == (mixing == "local")


def test_the_export_is_a_model_of_transformers(place: Path) -> None:
    folder = place / "pretrained" / "export"
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    assert model.config.levels == runs.LEVELS
    assert processor.layout.image_tokens == model.config.image_tokens
    assert (folder / "adapter.safetensors").is_file()


def test_finetuning_goes_on_from_a_finetuned_model(place: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    before = finetune(place, first)
    after = finetune(place, tmp_path / "second", "seed=1", start=first)
    assert runs.held_out(after)[3] < runs.held_out(before)[3]
    gate = "model.alignment.table"
    weights = [
        load_file(run / "export" / "adapter.safetensors") for run in (first, tmp_path / "second")
    ]
    assert torch.equal(weights[0][gate], weights[1][gate])


def test_a_random_table_for_the_ablation(place: Path, tmp_path: Path) -> None:
    name = "model.alignment.table"
    learned = load_file(place / "pretrained" / "export" / "adapter.safetensors")
    finetune(place, tmp_path / "run", "model.table=random", "max_steps=1")
    used = load_file(tmp_path / "run" / "export" / "adapter.safetensors")
    assert not torch.equal(used[name], learned[name])


def test_a_damaged_shard_is_refused_before_anything_starts(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "pairs", tmp_path / "pairs")
    file = next((tmp_path / "pairs").glob("*.parquet"))
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    given = {"recipe": place / "tiny.yaml", "output": tmp_path / "run"}
    with pytest.raises(ContractError, match="not what its manifest lists"):
        prepare("pretrain", tmp_path / "pairs", **given)
    prepare("pretrain", tmp_path / "pairs", overrides=["data.verify=false"], **given)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_loss_that_is_no_number_stops_the_run(place: Path, tmp_path: Path, stage: int) -> None:
    run = tmp_path / "run"
    options = ("optimizer.lr=1e38", "optimizer.warmup_ratio=0", "checkpoint.every=1")
    with pytest.raises(AlignError, match=r"of step 2 is not a finite number, at the samples pair-"):
        pretrain(place, run, f"zero_stage={stage}", *options)
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.step == 1
    failed = json.loads((run / "failed-step.json").read_text())
    assert failed["step"] == 2
    assert len(failed["samples"]) == 8
    assert result_of(run) is None


def test_too_many_rejects_stop_the_run(place: Path, tmp_path: Path) -> None:
    broken = rows.pair_rows(48, runs.LEVELS)
    for row in broken[::2]:
        row["image"] = {"bytes": b"no picture", "path": row["image"]["path"]}
    rows.write_rows(tmp_path / "pairs", broken, levels=runs.LEVELS)
    prepare("pretrain", tmp_path / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run")
    with pytest.raises(AlignError, match="more than data"):
        runs.train(tmp_path / "run")


def test_some_rejects_are_counted(place: Path, tmp_path: Path) -> None:
    broken = rows.pair_rows(48, runs.LEVELS)
    # A micro-batch of one row that cannot be used is a step without labels for this rank.
    broken[5]["image"] = {"bytes": b"no picture", "path": "5.png"}
    rows.write_rows(tmp_path / "pairs", broken, levels=runs.LEVELS)
    prepare(
        "pretrain", tmp_path / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run",
        overrides=["batch.micro_size=1", "data.max_reject_share=0.2", "data.validation_share=0"],
    )  # fmt: skip
    runs.train(tmp_path / "run")
    ending = result_of(tmp_path / "run")
    assert ending is not None
    assert ending["rejected"] == {"corrupt_image": 1}


def test_data_with_other_levels_is_refused_before_anything_starts(
    place: Path, tmp_path: Path
) -> None:
    runs.pairs(tmp_path / "pairs", levels=3)
    with pytest.raises(InputError, match="has 3 levels and the recipe 4"):
        prepare("pretrain", tmp_path / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="is not sorted into levels"):
        prepare("pretrain", place / "talks", recipe=place / "tiny.yaml", output=tmp_path / "run")


def test_finetuning_wants_something_to_start_from(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none in"):
        finetune(place, tmp_path / "run", start=None)
    assert len(runs.losses(finetune(place, tmp_path / "run", start="none"))) == 6
    # Beside a finished pre-training, that is it.
    prepare("finetune", place / "talks", recipe=place / "tiny.yaml", output=place / "tuned")


def test_a_start_with_other_levels_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="levels"):
        finetune(place, tmp_path / "run", "model.levels=6")


def test_every_step_and_rank_has_the_seed_that_it_always_had() -> None:
    assert step_seed(0, 0, 0) == 3010437511937009226
    assert step_seed(7, 12345, 3) == 515891581965521043
