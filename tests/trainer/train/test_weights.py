"""Weights of the loss, from a column of the dataset."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from alignshared import ContractError, InputError
from aligntrain.recipes import load_recipe
from aligntrain.runs.folder import is_run, read_metrics
from aligntrain.train.run import prepare, run
from tests.trainer import rows, runs, tiny
from tests.trainer.model import test_packing as packing

WEIGHTS = torch.tensor([0.5, 3.0, 0.0, 1.25])


@pytest.mark.parametrize("name", ["padded", "packed", "in pieces"])
def test_the_loss_is_the_weighted_mean_over_tokens(name: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "padded": {},
        "packed": {"packed": True},
        "in pieces": {"packed": True, "logits_bytes": 4000},
    }
    model, given, run = tiny.model().train(), packing.samples(), packing.run
    model.prepare_packing()
    logits = model(**given).logits[:, :-1]  # [B, T-1, V]
    targets = given["labels"][:, 1:]
    losses = -logits.log_softmax(dim=-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    of_tokens = WEIGHTS[:, None] * (targets != -100)
    expected = (of_tokens * losses).sum() / of_tokens.sum()
    model.zero_grad()
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    output, found = run(model, given, loss_weights=WEIGHTS, **options[name])
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(found, gradients, rtol=1e-3, atol=1e-5)
    part, _ = run(model, given, loss_weights=WEIGHTS, num_items_in_batch=8.0, **options[name])
    torch.testing.assert_close(part.loss, expected * of_tokens.sum() / 8)
    unweighted, _ = run(model, given, **options[name])
    assert torch.equal(output.sample_loss, unweighted.sample_loss)
    nothing, none = run(model, given, loss_weights=torch.zeros(4), **options[name])
    assert nothing.loss == 0
    assert not any(gradient.any() for gradient in none.values())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and pairs with the columns `kept`, of 0 and 1, `worth` and `ones`."""
    place = tmp_path_factory.mktemp("place")
    runs.recipe_file(place)
    write(place / "pairs")
    return place


def write(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """The pairs, row 7 with `changes`."""
    found = [
        row | {"kept": int(i % 3 > 0), "worth": 0.25 * 4 ** (i % 4), "ones": 1.0}
        for i, row in enumerate(rows.pair_rows(48, runs.LEVELS))
    ]
    found[7] |= changes or {}
    extra = {"kept": pa.int8(), "worth": pa.float64(), "ones": pa.float32()}
    rows.write_rows(folder, found, levels=runs.LEVELS, extra=extra)


def train(place: Path, output: Path, *overrides: str, data: str = "pairs") -> list[dict[str, Any]]:
    recipe = place / "tiny.yaml"
    prepare("pretrain", place / data, recipe=recipe, output=output, overrides=overrides)
    return runs.train(output)


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "adapter.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = adapter(one), adapter(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("packing", ["true", "false"])
def test_weights_of_0_and_1_leave_rows_out_to_the_bit(
    place: Path, tmp_path: Path, packing: str
) -> None:
    options = (f"batch.packing={packing}", "batch.micro_size=2", "data.max_reject_share=1")
    found = train(place, tmp_path / "weighted", "data.weight=kept", *options)
    left = rows.pair_rows(48, runs.LEVELS)
    for row in left[::3]:  # cannot be used, and so left out of the same batches
        row["image"] = {"bytes": b"no picture", "path": row["image"]["path"]}
    rows.write_rows(place / "left", left, levels=runs.LEVELS)
    expected = train(place, tmp_path / "left", *options, data="left")
    assert runs.losses(found) == runs.losses(expected)
    assert runs.held_out(found) == runs.held_out(expected)
    assert same(tmp_path / "weighted", tmp_path / "left")


def test_weights_of_1_change_nothing(place: Path, tmp_path: Path) -> None:
    plain = train(place, tmp_path / "plain")
    ones = train(place, tmp_path / "ones", "data.weight=ones")
    assert runs.losses(ones) == runs.losses(plain)
    assert same(tmp_path / "ones", tmp_path / "plain")


@pytest.fixture(scope="module")
def worth(place: Path) -> dict[int, float]:
    """The losses of a run with weights, which are others than without."""
    found = runs.losses(train(place, place / "worth", "data.weight=worth"))
    without = runs.losses(train(place, place / "unweighted"))
    assert min(abs(found[step] - without[step]) for step in found) > 1e-3
    return found


@pytest.mark.parametrize(
    "options",
    [
        ("batch.micro_size=8",),
        ("batch.micro_size=1",),
        ("batch.packing=false", "batch.micro_size=2"),
        ("batch.logits_mb=0.01",),
        ("zero_stage=2", "batch.micro_size=2"),
        ("zero_stage=3",),
    ],
    ids=" ".join,
)
def test_micro_batches_packing_and_stages_give_the_same(
    place: Path, tmp_path: Path, worth: dict[int, float], options: tuple[str, ...]
) -> None:
    found = train(place, tmp_path / "run", "data.weight=worth", *options)
    assert runs.losses(found) == pytest.approx(worth, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_divide_by_the_weights_of_both(
    place: Path, tmp_path: Path, worth: dict[int, float]
) -> None:
    run(
        "pretrain", place / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run", nproc=2,
        overrides=["data.weight=worth", "batch.micro_size=2"],
    )  # fmt: skip
    assert runs.losses(read_metrics(tmp_path / "run")) == pytest.approx(worth, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-0.5, r"pair-0007 has the worth -0\.5 in shard-.*, which is no weight"),
        (None, "pair-0007 has the worth null in"),
        (float("nan"), "has the worth nan in"),
        (float("inf"), "has the worth inf in"),
        (1e300, r"has the worth 1e\+300 in"),
    ],
)
def test_weights_that_are_none_are_refused_before_anything_starts(
    place: Path, tmp_path: Path, value: float | None, said: str
) -> None:
    write(tmp_path / "pairs", {"worth": value})
    with pytest.raises(ContractError, match=said):
        prepare(
            "pretrain", tmp_path / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run",
            overrides=["data.weight=worth"],
        )  # fmt: skip
    assert not is_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("caption", "needs numbers, and the column caption of .* is of type string"),
        ("caption_truncated", "is of type bool"),
        ("image", "is of type struct"),
        ("id", "is of type string"),
        ("worthy", "has no column worthy"),
        ("nothing", "all weights in the column nothing of .* are 0"),
    ],
)
def test_columns_that_are_no_weights(place: Path, tmp_path: Path, column: str, said: str) -> None:
    found = [row | {"nothing": 0} for row in rows.pair_rows(8, runs.LEVELS)]
    rows.write_rows(tmp_path / "pairs", found, levels=runs.LEVELS, extra={"nothing": pa.int32()})
    with pytest.raises(ContractError, match=said):
        prepare(
            "pretrain", tmp_path / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run",
            overrides=[f"data.weight={column}"],
        )  # fmt: skip


def test_an_empty_name() -> None:
    with pytest.raises(InputError, match=r"data\.weight in --set data\.weight="):
        load_recipe("demo", "pretrain", ["data.weight=''"])


def test_conversations_have_weights_too(place: Path, tmp_path: Path) -> None:
    talks = [row | {"kept": i % 2} for i, row in enumerate(rows.talk_rows(48))]
    rows.write_rows(tmp_path / "talks", talks, extra={"kept": pa.int64()})
    prepare(
        "finetune", tmp_path / "talks", recipe=place / "tiny.yaml", output=tmp_path / "run",
        start="none", overrides=["data.weight=kept"],
    )  # fmt: skip
    lines = runs.train(tmp_path / "run")
    assert len(runs.losses(lines)) == 6
    held = next(line for line in lines if "validation_samples" in line)
    assert 0 < held["validation_samples"] < 48 * 0.2


def test_the_key_is_null_where_nobody_sets_it() -> None:
    """So that checkpoints of before it go on."""
    assert load_recipe("demo", "pretrain").settings["data"]["weight"] is None
