"""The model's numbers are those of the authors' code, as tests/trainer/oracle.py reads it."""

from typing import Any

import pytest
import torch

from tests.trainer import tiny
from tests.trainer.oracle import IMAGE, Answer, Oracle, forward

BOS = 256
KEYS = {
    "mm_projector.0.weight": "model.projector.0.weight",
    "mm_projector.0.bias": "model.projector.0.bias",
    "mm_projector.2.weight": "model.projector.2.weight",
    "mm_projector.2.bias": "model.projector.2.bias",
    "align_indicators.indicator_embs": "model.alignment.table",
    "gated_weight_layer.mlp.0.weight": "model.alignment.gate.0.weight",
    "gated_weight_layer.mlp.0.bias": "model.alignment.gate.0.bias",
    "gated_weight_layer.mlp.2.weight": "model.alignment.gate.2.weight",
    "gated_weight_layer.mlp.2.bias": "model.alignment.gate.2.bias",
}
SAMPLES: list[tuple[list[int], list[int]]] = [
    ([BOS, 11, 12, IMAGE, 13, 14, 15, 16, 257], [-100] * 6 + [15, 16, 257]),
    ([BOS, IMAGE, 21, 22, 257], [-100] * 3 + [22, 257]),
    ([BOS, 31, 32, 33, 34, 35, 257], [-100] * 4 + [34, 35, 257]),
    ([BOS, 41, 42, 43, 44, IMAGE, 45, 46, 47, 257], [-100] * 7 + [46, 47, 257]),
]


def images_of(samples: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    count = sum(IMAGE in ids for ids, _ in samples)
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=generator)


def our_batch(config: Any, samples: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """The same samples with placeholders, padded on the right."""
    rows: list[list[int]] = []
    targets: list[list[int]] = []
    for ids, labels in samples:
        row: list[int] = []
        target: list[int] = []
        for position, (token, label) in enumerate(zip(ids, labels, strict=True)):
            if token == IMAGE:
                row += [config.image_token_id] * config.image_tokens
                target += [-100] * config.image_tokens
            else:
                row.append(token)
                target.append(label)
            if position == 0 and IMAGE in ids and config.has_table:
                row.append(config.align_token_id)
                target.append(-100)
        rows.append(row)
        targets.append(target)
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [258] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        ),
        "labels": torch.tensor([row + [-100] * (longest - len(row)) for row in targets]),
    }


def ask_oracle(model: Any, images: torch.Tensor, levels: list[int] | None) -> tuple[Oracle, Answer]:
    named = dict(model.named_parameters())
    weights = {
        theirs: named[ours].detach().clone().requires_grad_()
        for theirs, ours in KEYS.items()
        if ours in named
    }
    llm, vocabulary = model.model.language_model, model.config.llm_vocab_size
    oracle = Oracle(weights, model.model.vision_tower, llm, vocabulary)
    stack = iter(images)
    samples = [
        (ids, labels, next(stack) if IMAGE in ids else None, levels[i] - 1 if levels else None)
        for i, (ids, labels) in enumerate(SAMPLES)
    ]
    return oracle, forward(oracle, samples)


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
@pytest.mark.parametrize("mixing", ["adaptive", "none"])
def test_loss_logits_gate_and_gradients(phase: str, mixing: str) -> None:
    model = tiny.model(mixing=mixing, gate_text="full")
    model.model.vision_tower.requires_grad_(False)
    model.model.language_model.requires_grad_(phase == "finetune")
    images = images_of(SAMPLES)
    levels = [2, 4, 1, 1] if phase == "pretrain" and mixing != "none" else None
    oracle, expected = ask_oracle(model, images, levels)
    expected.loss.backward()
    llm_gradients = {
        name: p.grad.clone()
        for name, p in model.model.language_model.named_parameters()
        if p.grad is not None
    }
    model.zero_grad()

    given = [2, 4, 0, 1] if levels else None
    output = model(
        **our_batch(model.config, SAMPLES),
        pixel_values=images,
        levels=torch.tensor(given) if given else None,
    )
    output.loss.backward()

    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-6)
    for row, logits in zip(output.logits, expected.logits, strict=True):
        torch.testing.assert_close(
            row[: len(logits), : oracle.vocabulary], logits, rtol=1e-4, atol=1e-5
        )
    if phase == "finetune" and mixing == "adaptive":
        for row, alpha in zip(output.gate_weights, expected.alphas, strict=True):
            expected_row = torch.zeros(3) if alpha is None else alpha
            torch.testing.assert_close(row, expected_row, rtol=1e-5, atol=1e-6)
    else:
        assert output.gate_weights is None
    named = dict(model.named_parameters())
    for theirs, weight in oracle.weights.items():
        if weight.grad is None:  # the gate in pre-training
            continue
        torch.testing.assert_close(named[KEYS[theirs]].grad, weight.grad, rtol=1e-4, atol=1e-6)
    for name, parameter in model.model.language_model.named_parameters():
        if phase == "finetune":
            torch.testing.assert_close(
                parameter.grad, llm_gradients[name], rtol=1e-4, atol=1e-6, msg=name
            )
        else:
            assert parameter.grad is None


def test_the_gate_decides_something() -> None:
    """The oracle would also agree with a gate that is stuck."""
    model = tiny.model(gate_text="full")
    _, answer = ask_oracle(model, images_of(SAMPLES), None)
    alphas = torch.stack([alpha for alpha in answer.alphas if alpha is not None])
    assert alphas.std(dim=0).max() > 1e-3


def test_sample_losses_are_those_of_each_row_alone() -> None:
    model = tiny.model(gate_text="full")
    images = images_of(SAMPLES)
    batch = our_batch(model.config, SAMPLES)
    together = model(**batch, pixel_values=images)
    used = 0
    for row, sample in enumerate(SAMPLES):
        own = images[used : used + 1] if IMAGE in sample[0] else None
        used += own is not None
        alone = model(**our_batch(model.config, [sample]), pixel_values=own)
        torch.testing.assert_close(together.sample_loss[row], alone.loss.detach())
    assert together.sample_tokens.tolist() == [3, 2, 3, 3]
    weights = together.sample_tokens.float()
    mean = (together.sample_loss * weights).sum() / weights.sum()
    torch.testing.assert_close(mean, together.loss.detach())
    assert not together.sample_loss.requires_grad
