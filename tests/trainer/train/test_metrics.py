"""What a run records says what happened."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignshared.console import progress, watched
from aligntrain.train.metrics import Flops, Sums
from aligntrain.train.phases import apply_phase
from aligntrain.train.trainer import rate_factor, total_steps, warmup_steps
from tests.trainer import tiny

CPU = torch.device("cpu")


def batch(
    levels: list[int], lengths: list[int], images: int = 0, weights: list[float] | None = None
) -> dict[str, Any]:
    longest = max(lengths)
    mask = torch.tensor([[int(at < length) for at in range(longest)] for length in lengths])
    return {
        "attention_mask": mask,
        "levels": torch.tensor(levels),
        "weights": None if weights is None else torch.tensor(weights),
        "ids": [f"row-{at}" for at in range(len(levels))],
        "pixel_values": torch.zeros(images, 3, 2, 2) if images else None,
    }


def output(
    losses: list[float],
    tokens: list[int],
    gate: list[list[float]] | None = None,
    scored: int = 1,
) -> Any:
    return SimpleNamespace(
        logits=torch.empty(len(losses), scored, 1),
        sample_loss=torch.tensor(losses),
        sample_tokens=torch.tensor(tokens),
        gate_weights=None if gate is None else torch.tensor(gate),
    )


def test_losses_are_means_over_tokens_not_over_rows() -> None:
    sums = Sums(4, CPU)
    sums.add(batch([1, 3], [4, 6]), output([2.0, 1.0], [1, 3]))
    sums.add(batch([3], [2]), output([5.0], [1]))
    assert sums.loss == pytest.approx((2 * 1 + 1 * 3 + 5 * 1) / 5)
    assert sums.loss_by_level == {"1": pytest.approx(2.0), "3": pytest.approx((3 + 5) / 4)}
    assert (sums["read"], sums["places"], sums["rows"]) == (12, 14, 3)


def test_weights_multiply_losses_and_tokens() -> None:
    sums = Sums(4, CPU)
    sums.add(batch([1, 3], [4, 6], weights=[0.25, 0.5]), output([2.0, 1.0], [1, 3]))
    sums.add(batch([3], [2], weights=[0.125]), output([5.0], [1]))
    assert sums.loss == pytest.approx((0.25 * 2 + 0.5 * 1 * 3 + 0.125 * 5) / (0.25 + 1.5 + 0.125))
    assert sums.loss_by_level["3"] == pytest.approx((0.5 * 1 * 3 + 0.125 * 5) / 1.625)
    small = Sums(4, CPU)
    small.add(batch([1], [2], weights=[0.001]), output([2.0], [1]))
    assert small.loss == pytest.approx(2.0)  # the sum of weights is below 1


def test_rows_without_a_level_count_for_the_whole_only() -> None:
    sums = Sums(4, CPU)
    sums.add(batch([0, 9], [2, 2]), output([1.0, 3.0], [1, 1]))
    assert sums.loss == 2.0
    assert sums.loss_by_level == {}


def test_the_gate_is_that_of_rows_with_an_image() -> None:
    sums = Sums(4, CPU)
    gate = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]
    sums.add(batch([0, 0, 0], [2, 2, 2], images=2), output([1.0] * 3, [1] * 3, gate))
    assert sums.gate["gate_weights"] == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert sums.gate["gate_entropy"] == pytest.approx(math.log(3) / 2)
    assert Sums(4, CPU).gate == {}


def test_sums_of_steps_add_up() -> None:
    one, other, both = (Sums(4, CPU) for _ in range(3))
    for parts, loss in (((one, both), 1.0), ((other, both), 3.0)):
        for part in parts:
            part.add(batch([2], [3]), output([loss], [1]))
    one.merge(other)
    assert torch.equal(one.vector, both.vector)
    assert one.loss == 2.0


def test_flops_count_what_is_multiplied() -> None:
    model = tiny.model()
    llm = sum(p.numel() for p in model.model.language_model.parameters())
    head = model.config.vocab_size * 32  # rows of placeholders and padding are multiplied too
    layers = llm - 2 * head
    sums = Sums(4, CPU)
    sums.add(batch([1], [10], images=1), output([1.0], [1], scored=3))
    tower = sum(p.numel() for p in model.model.vision_tower.parameters())
    apart = 12 * 2 * 32 * 10 * 10 + 2 * tower * tiny.IMAGE_TOKENS
    apply_phase(model, "pretrain")
    assert Flops.of(model).count(sums) == 4 * (layers * 10 + head * 3) + apart
    apply_phase(model, "finetune")
    assert Flops.of(model).count(sums) == 6 * (layers * 10 + head * 3) + apart


def test_progress_without_a_console_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("pretrain", 2, None) as show:
        show(1, "loss 2.0", "pretrain: step 1 of 2", last=True)
    assert list(watched([1, 2], "title", 2, None)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    factors = [rate_factor(step, 100, 0.03, "cosine") for step in range(100)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[3 + 48] == pytest.approx(0.5, abs=0.02)
    assert 0 < factors[-1] < 0.001
    assert all(0 < factor <= 1 for factor in factors)


def test_a_constant_rate_stays() -> None:
    assert [rate_factor(step, 5, 0.0, "constant") for step in range(5)] == [1.0] * 5
    assert rate_factor(0, 1, 0.03, "cosine") == 0.5  # a run of one step learns something too


def test_there_are_no_other_steps() -> None:
    with pytest.raises(ValueError, match="no step 5"):
        rate_factor(5, 5, 0.0, "cosine")


@pytest.mark.parametrize(
    ("max_steps", "epochs", "per_epoch", "steps"),
    [(7, 3.0, 10, 7), (None, 1.0, 2180, 2180), (None, 0.5, 5, 2), (None, 0.01, 5, 1)],
)
def test_steps_of_a_run(max_steps: int | None, epochs: float, per_epoch: int, steps: int) -> None:
    assert total_steps(max_steps, epochs, per_epoch) == steps


def test_warm_up_is_rounded_up() -> None:
    assert [warmup_steps(total, 0.03) for total in (1, 50, 100, 2180)] == [1, 2, 3, 66]
    assert warmup_steps(10, 1.0) == 10
