"""Packed rows give the losses and gradients of padded ones, whatever the LLM."""

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from alignshared import InputError
from tests.trainer import tiny
from tests.trainer.model.test_modeling import batch, pixels, row

SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "pad_token_id": 258, "initializer_range": 0.2,
}  # fmt: skip
WINDOW = 8
"""Shorter than a row with an image, so that the layers' windows are at work."""

LLMS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "smollm3": SmolLM3Config(**SIZES | {"num_hidden_layers": 4}),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=WINDOW),
    "phi": PhiConfig(**SIZES),
    "phi3": Phi3Config(**SIZES),
    "gpt2": GPT2Config(
        vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256,
        initializer_range=0.2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
}  # fmt: skip


def samples(side: str = "right", **given: Any) -> dict[str, torch.Tensor]:
    """Rows of several lengths, one with two images, one with none; the last tokens are learned."""
    rows = [row(*range(1, 20)), row(5, 6, 7), row(9, 8, 7, 6, images=2), row(1, 2, 3, images=0)]
    made = batch(*rows, side=side)
    labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    prompt = labels.clone()
    for place, one in enumerate(rows):
        start = 0 if side == "right" else labels.shape[1] - len(one)
        prompt[place, start : start + len(one) - 2] = -100
    return {**made, "labels": prompt, "pixel_values": pixels(4), **given}


def run(model: Any, given: dict[str, torch.Tensor], **options: Any) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    output = model(**given, use_cache=False, **options)
    output.loss.backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, given: dict[str, torch.Tensor]) -> None:
    padded, gradients = run(model, given)
    assert model.prepare_packing() is None
    packed, packed_gradients = run(model, given, packed=True)
    torch.testing.assert_close(packed.loss, padded.loss)
    torch.testing.assert_close(packed.sample_loss, padded.sample_loss)
    torch.testing.assert_close(packed.sample_tokens, padded.sample_tokens)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", LLMS)
def test_packed_rows_train_as_padded_ones(name: str) -> None:
    model = tiny.model(text_config=LLMS[name]).train()
    assert_same(model, samples())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_may_stand_on_either_side(side: str) -> None:
    assert_same(tiny.model().train(), samples(side))


def test_levels_are_those_of_each_sample() -> None:
    assert_same(tiny.model().train(), samples(levels=torch.tensor([1, 3, 2, 0])))


def test_gradient_checkpointing_keeps_samples_apart() -> None:
    model = tiny.model().train()
    padded, gradients = run(model, samples())
    model.prepare_packing()
    model.model.language_model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}
    )
    packed, packed_gradients = run(model, samples(), packed=True)
    torch.testing.assert_close(packed.loss, padded.loss)
    torch.testing.assert_close(packed_gradients, gradients, rtol=1e-3, atol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_still_a_gradient() -> None:
    model = tiny.model().train()
    model.prepare_packing()
    given = samples()
    given["labels"] = torch.full_like(given["labels"], -100)
    output, gradients = run(model, given, packed=True)
    assert output.loss == 0
    assert all(not gradient.any() for gradient in gradients.values())


def test_a_prepared_model_still_generates() -> None:
    model = tiny.model()
    given = {k: v for k, v in samples("left").items() if k != "labels"}
    before = model.generate(**given, max_new_tokens=5, do_sample=False)
    model.prepare_packing()
    torch.testing.assert_close(model.generate(**given, max_new_tokens=5, do_sample=False), before)


def test_a_recurrent_llm_is_not_packed() -> None:
    config = Qwen3Config(**SIZES, head_dim=8)
    model = tiny.model(text_config=config)
    model.model.language_model.config.layer_types = ["linear_attention", "full_attention"]
    assert model.prepare_packing() == "it has layers of linear_attention"


def test_packing_needs_a_mask_and_labels() -> None:
    model = tiny.model()
    given = samples()
    del given["labels"]
    with pytest.raises(InputError, match="labels"):
        model(**given, packed=True)
