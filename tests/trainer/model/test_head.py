"""Losses of logits in pieces are those of all logits at once, whatever the LLM."""

from typing import Any

import pytest
import torch

from tests.trainer import tiny
from tests.trainer.model.test_packing import LLMS, run, samples

ROWS = 3
IN_PIECES: dict[str, Any] = {"packed": True, "logits_bytes": ROWS * 4 * tiny.VOCABULARY}
WITH_MORE_THAN_A_HEAD = {"gemma2"}
"""It caps its logits."""


@pytest.mark.parametrize("name", LLMS)
def test_pieces_train_as_the_whole(name: str) -> None:
    model = tiny.model(text_config=LLMS[name]).train()
    padded, gradients = run(model, samples())
    model.prepare_packing()
    packed, packed_gradients = run(model, samples(), **IN_PIECES)
    torch.testing.assert_close(packed.loss, padded.loss)
    torch.testing.assert_close(packed.sample_loss, padded.sample_loss)
    torch.testing.assert_close(packed.sample_tokens, padded.sample_tokens)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-3, atol=1e-5)
    assert (packed.logits is None) == (name not in WITH_MORE_THAN_A_HEAD)


def test_a_frozen_llm_passes_its_gradient_on() -> None:
    model = tiny.model().train()
    model.model.language_model.requires_grad_(False)
    padded, gradients = run(model, samples())
    model.prepare_packing()
    packed, packed_gradients = run(model, samples(), **IN_PIECES)
    torch.testing.assert_close(packed.loss, padded.loss)
    assert packed_gradients.keys() == gradients.keys()
    assert all(gradient.any() for name, gradient in gradients.items() if "projector" in name)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-3, atol=1e-5)


def test_rows_without_labels_have_no_loss() -> None:
    model = tiny.model().train()
    model.prepare_packing()
    given: dict[str, Any] = samples()
    given["labels"][1:] = -100
    output, _ = run(model, given, **IN_PIECES)
    assert output.sample_tokens.tolist() == [2, 0, 0, 0]
    assert output.sample_loss[0] > 0
    assert not output.sample_loss[1:].any()
