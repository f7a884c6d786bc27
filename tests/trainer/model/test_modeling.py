"""What the model does with images, levels, labels and text-only rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Gemma2Config,
    GPT2Config,
    PhiConfig,
    Qwen2Config,
)

from alignshared import InputError
from aligntrain.model import AlignGPTConfig, AlignGPTForConditionalGeneration
from aligntrain.model.losses import label_positions
from tests.trainer import tiny

BOS, PAD = 256, 258
IMAGE, ALIGN = 260, 261
L = tiny.IMAGE_TOKENS


def row(*text: int, images: int = 1, align: bool = True) -> list[int]:
    return [BOS, *([ALIGN] if align and images else []), *([IMAGE] * L * images), *text]


def batch(*rows: list[int], side: str = "right") -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids, mask = [], []
    for one in rows:
        pad = longest - len(one)
        ids.append([*one, *[PAD] * pad] if side == "right" else [*[PAD] * pad, *one])
        mask.append([1] * len(one) + [0] * pad if side == "right" else [0] * pad + [1] * len(one))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def pixels(count: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=generator)


def vectors(model: Any, **given: Any) -> torch.Tensor:
    """What stands in the alignment place of the first row."""
    embeddings, _ = model.model.embed(**given)
    place = (given["input_ids"][0] == ALIGN).nonzero().item()
    return embeddings[0, place]


def test_sizes_follow_from_the_configuration() -> None:
    config = tiny.config()
    assert config.image_tokens == 9
    assert (config.image_token_id, config.align_token_id) == (260, 261)
    assert tiny.config(vision_feature_select="full").image_tokens == 10
    assert tiny.config(vision_config=tiny.siglip_config()).image_tokens == 9
    wide = tiny.model(levels=6, gate_hidden=5)
    assert wide.model.alignment.table.shape == (6, 32)
    assert wide.model.alignment.gate[0].weight.shape == (5, 9)
    assert wide.model.alignment.gate[2].weight.shape == (5, 5)


def test_parameter_names_are_those_promised() -> None:
    names = [name for name, _ in tiny.model().named_parameters()]
    own = [
        name for name in names if ".vision_tower." not in name and ".language_model." not in name
    ]
    layers = [f"{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert sorted(own) == sorted(
        ["model.alignment.table"]
        + [f"model.projector.{layer}" for layer in layers]
        + [f"model.alignment.gate.{layer}" for layer in layers]
    )


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"mixing": "both"}, "mixing is 'both'"),
        ({"gate_text": "answer"}, "gate_text"),
        ({"vision_feature_select": "cls"}, "vision_feature_select"),
        ({"levels": 1}, "levels is 1"),
        ({"vision_feature_layer": -9}, "3 layers"),
        ({"vision_config": tiny.text_config()}, "vision_config is a llama"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(choices: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny.config(**choices)


@pytest.mark.parametrize("mixing", ["adaptive", "local", "global", "mean"])
def test_mixing(mixing: str) -> None:
    model = tiny.model(mixing=mixing)
    given = batch(row(1, 2, 3)) | {"pixel_values": pixels(1)}
    table = model.model.alignment.table
    output = model(**given)
    vector = vectors(model, **given)
    if mixing in ("adaptive", "local"):
        gated = output.gate_weights[0] @ table[:3]
        expected = gated + table[3] if mixing == "adaptive" else gated
        torch.testing.assert_close(output.gate_weights.sum(dim=1), torch.ones(1))
    else:
        assert output.gate_weights is None
        assert model.model.alignment.gate is None
        expected = table[3] if mixing == "global" else table[:3].mean(dim=0) + table[3]
    torch.testing.assert_close(vector, expected)


def test_a_given_level_is_its_row_of_the_table() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3)) | {"pixel_values": pixels(1)}
    for level in (1, 2, 3, 4):
        vector = vectors(model, **given, levels=torch.tensor([level]))
        torch.testing.assert_close(vector, model.model.alignment.table[level - 1])
    assert model(**given, levels=torch.tensor([2])).gate_weights is None


def test_the_level_of_a_row_of_text_means_nothing() -> None:
    model = tiny.model()
    given = batch(row(1), row(2, images=0)) | {"pixel_values": pixels(1)}
    logits = [model(**given, levels=torch.tensor([1, k])).logits for k in (0, 4, 9)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_none_is_llava() -> None:
    model = tiny.model(mixing="none")
    assert model.model.alignment is None
    given = batch(row(1, 2, align=False)) | {"pixel_values": pixels(1)}
    assert model(**given).gate_weights is None
    with pytest.raises(InputError, match="mixing none"):
        model(**given, levels=torch.tensor([1]))


def test_the_gate_sees_the_prompt_alone() -> None:
    """What an answer says does not change the vector, as it cannot at inference."""
    answers = [batch(row(1, 2, 7, 8)), batch(row(1, 2, 9, 10))]
    labels = torch.full_like(answers[0]["input_ids"], -100)
    labels[0, -2:] = 1
    for gate_text, same in (("prompt", True), ("full", False)):
        model = tiny.model(gate_text=gate_text)
        weights = [
            model(**one, pixel_values=pixels(1), labels=labels).gate_weights for one in answers
        ]
        assert torch.equal(*weights) == same
    model = tiny.model()
    asked = model(**batch(row(1, 2)), pixel_values=pixels(1)).gate_weights
    trained = model(**answers[0], pixel_values=pixels(1), labels=labels).gate_weights
    torch.testing.assert_close(trained, asked)


def test_several_images_give_the_gate_the_mean_of_their_similarities() -> None:
    model = tiny.model()
    alignment, tower = model.model.alignment, model.model
    images = pixels(2)
    output = model(**batch(row(1, 2, 3, images=2)), pixel_values=images)
    text = tower.get_input_embeddings()(torch.tensor([1, 2, 3])).mean(dim=0)
    similarities = tower.image_tokens(images) @ text
    expected = alignment.gate(similarities.mean(dim=0, keepdim=True))
    torch.testing.assert_close(output.gate_weights, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_in_a_batch_is_the_row_alone(side: str) -> None:
    """Whatever its neighbours, whichever side the padding; text-only rows stay in place."""
    model = tiny.model()
    images = pixels(3)
    rows = [row(1, 2, 3), row(4, 5, 6, 7, 8, images=0), row(9, images=2), row(10, images=0)]
    together = model(**batch(*rows, side=side), pixel_values=images)
    per_row = [images[:1], None, images[1:], None]
    for i, (one, own) in enumerate(zip(rows, per_row, strict=True)):
        alone = model(**batch(one), pixel_values=own)
        mask = batch(*rows, side=side)["attention_mask"][i].bool()
        torch.testing.assert_close(together.logits[i][mask], alone.logits[0], rtol=1e-4, atol=1e-5)
    assert together.gate_weights[[1, 3]].abs().sum() == 0


@pytest.mark.parametrize(
    ("mixing", "levels"),
    [("adaptive", None), ("adaptive", [0, 0]), ("mean", None), ("mean", [0, 0]), ("none", None)],
)
def test_a_batch_of_text_touches_every_trainable_parameter(
    mixing: str, levels: list[int] | None
) -> None:
    model = tiny.model(mixing=mixing).train()
    model.model.vision_tower.requires_grad_(False)
    given = batch(row(1, 2, images=0), row(3, 4, 5, images=0))
    output = model(
        **given, labels=given["input_ids"], levels=torch.tensor(levels) if levels else None
    )
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            if "projector" in name or "alignment" in name:
                assert not parameter.grad.any(), name
    model.eval()
    quiet = model(**given, labels=given["input_ids"])
    torch.testing.assert_close(output.loss, quiet.loss)


def test_a_gate_that_trains_takes_part_where_levels_are_given() -> None:
    model = tiny.model().train()
    given = batch(row(1, 2))
    output = model(
        **given, pixel_values=pixels(1), levels=torch.tensor([2]), labels=given["input_ids"]
    )
    output.loss.backward()
    assert not model.model.alignment.gate[0].weight.grad.any()


def test_a_frozen_tower_keeps_no_graph() -> None:
    model = tiny.model()
    model.model.vision_tower.requires_grad_(False)
    seen: list[bool] = []
    model.model.vision_tower.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    model(**batch(row(1)), pixel_values=pixels(1))
    model.model.vision_tower.requires_grad_(True)
    model(**batch(row(1)), pixel_values=pixels(1))
    assert seen == [False, True]


def test_placeholders_are_never_predicted() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3))
    output = model(**given, pixel_values=pixels(1), labels=given["input_ids"].clone())
    assert output.sample_tokens.tolist() == [3]


def test_nothing_to_predict_is_a_loss_of_zero() -> None:
    model = tiny.model()
    given = batch(row(1, 2))
    labels = torch.full_like(given["input_ids"], -100)
    output = model(**given, pixel_values=pixels(1), labels=labels)
    assert output.loss.item() == 0
    output.loss.backward()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (batch(row(1)), "places for 1 images, but pixel_values hold 0"),
        (batch(row(1)) | {"pixel_values": pixels(2)}, "pixel_values hold 2"),
        (batch(row(1)[:-3]) | {"pixel_values": pixels(1)}, "no multiple of the 9"),
        (batch(row(1, align=False)) | {"pixel_values": pixels(1)}, "0 alignment placeholders"),
        (batch(row(1)) | {"pixel_values": pixels(1)[..., :8]}, "vision tower reads"),
        (batch(row(1)) | {"pixel_values": pixels(1), "levels": torch.tensor([5])}, "level 5"),
        (batch(row(1)) | {"pixel_values": pixels(1), "levels": torch.tensor([0])}, "level 0"),
        (batch(row(1)) | {"pixel_values": pixels(1), "levels": torch.tensor([1, 1])}, "one level"),
        ({"inputs_embeds": torch.zeros(1, 2, 32), "pixel_values": pixels(1)}, "inputs_embeds"),
        ({}, "neither"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny.model()(**given)


@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, tied: bool) -> None:
    text = tiny.text_config(tie_word_embeddings=tied)
    model = tiny.model(text_config=text, mixing="local", gate_text="full", levels=5)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert isinstance(AutoConfig.from_pretrained(tmp_path), AlignGPTConfig)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, AlignGPTForConditionalGeneration)
    assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    assert (loaded.config.mixing, loaded.config.gate_text, loaded.config.levels) == (
        "local", "full", 5,
    )  # fmt: skip
    theirs = loaded.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    given = batch(row(1, 2)) | {"pixel_values": pixels(1)}
    assert torch.equal(loaded(**given).logits, model(**given).logits)


def test_a_new_table_is_xavier_uniform() -> None:
    table = tiny.model(levels=8).model.alignment.table
    bound = (6 / (8 + 32)) ** 0.5
    assert table.abs().max() <= bound
    assert table.abs().max() > 0.8 * bound


@pytest.mark.parametrize(
    "text",
    [
        Qwen2Config(
            vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        ),
        PhiConfig(
            vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4,
        ),
        Gemma2Config(
            vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0,
        ),
        GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=4),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_any_causal_lm(text: Any, tmp_path: Path) -> None:
    """Heads with biases and caps on logits included: the LLM is taken whole."""
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    model = tiny.model(text_config=text)
    given = batch(row(1, 2, 3), row(4, images=0), side="left") | {"pixel_values": pixels(1)}
    output = model(**given, labels=given["input_ids"])
    output.loss.backward()
    own = output.logits[..., : model.config.llm_vocab_size]
    assert own.shape[-1] == 260
    if text.model_type == "gemma2":
        assert own.abs().max() <= 1.0
    new = model.generate(**given, max_new_tokens=3, do_sample=False, pad_token_id=PAD)
    assert new.shape == (2, given["input_ids"].shape[1] + 3)
    model.save_pretrained(tmp_path)
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**given).logits, model(**given).logits)


def test_a_siglip_tower() -> None:
    model = tiny.model(vision_config=tiny.siglip_config())
    output: Any = model.get_image_features(pixels(2))
    assert output.pooler_output.shape == (2, 9, 32)
    assert model(**batch(row(1, 2)), pixel_values=pixels(1)).gate_weights.shape == (1, 3)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny.model().train()
        model.model.vision_tower.requires_grad_(False)
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        given = batch(row(1, 2, 3))
        model(
            **given, pixel_values=pixels(1), labels=given["input_ids"], use_cache=False
        ).loss.backward()
        gradients.append(model.model.projector[0].weight.grad)
    torch.testing.assert_close(*gradients)


def test_attention_kernels_are_passed_to_both_towers(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    loaded = AlignGPTForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.bfloat16
    )
    for part in (loaded.model.vision_tower, loaded.model.language_model):
        assert part.config._attn_implementation == "eager"
        assert part.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gate_computes_in_float32(dtype: torch.dtype) -> None:
    """Dot products beyond float16's range still give weights that sum to one."""
    model = tiny.model().to(dtype)
    with torch.no_grad():
        model.model.projector[2].bias.fill_(3e3)
        model.get_input_embeddings().weight[5] = 3e3
    output = model(**batch(row(5, 5)), pixel_values=pixels(1).to(dtype))
    assert output.gate_weights.dtype == torch.float32
    torch.testing.assert_close(output.gate_weights.sum(dim=1), torch.ones(1))


def test_the_output_is_a_tuple_a_dict_and_has_names() -> None:
    model = tiny.model()
    given = batch(row(1, 2)) | {"pixel_values": pixels(1)}
    output = model(**given, labels=given["input_ids"])
    assert output["loss"] is output.loss is output[0]
    as_tuple = model(**given, labels=given["input_ids"], return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.loss)
    shared = model(**given, labels=given["input_ids"], num_items_in_batch=4)
    torch.testing.assert_close(shared.loss * 4, output.loss * 2)


def test_steps_with_a_cache_count_on_behind_padding() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3), row(4, images=0), side="left")
    read = model(**given, pixel_values=pixels(1), use_cache=True)
    longer = torch.cat([given["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    step = model(
        input_ids=torch.tensor([[5], [6]]),
        attention_mask=longer,
        cache=read.cache,
    )
    alone = model(input_ids=torch.tensor([row(4, 6, images=0)]))
    torch.testing.assert_close(step.logits[1, -1], alone.logits[0, -1], rtol=1e-4, atol=1e-5)


def test_logits_to_keep() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3)) | {"pixel_values": pixels(1)}
    whole, last = model(**given).logits, model(**given, logits_to_keep=1).logits
    assert last.shape[1] == 1
    torch.testing.assert_close(last[:, 0], whole[:, -1])


def test_the_loss_needs_logits_only_where_a_label_follows() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3), row(4, 5, 6, 7)) | {"pixel_values": pixels(2)}
    labels = given["input_ids"].where(given["input_ids"] < 4, -100)
    labels[1, -2:] = 6
    whole = model(**given, labels=labels)
    places = label_positions(labels)
    part = model(**given, labels=labels, logits_to_keep=places)
    assert part.logits.shape[1] == len(places) < labels.shape[1]
    torch.testing.assert_close(part.loss, whole.loss)
    torch.testing.assert_close(part.sample_loss, whole.sample_loss)
    assert part.sample_tokens.tolist() == whole.sample_tokens.tolist()
    last = model(**given, labels=labels, logits_to_keep=2)
    expected = torch.nn.functional.cross_entropy(whole.logits[1, -2:-1], labels[1, -1:])
    torch.testing.assert_close(last.sample_loss[1], expected.detach())
    assert last.sample_tokens.tolist() == [0, 1]


def test_without_a_label_one_position_is_asked_for() -> None:
    assert label_positions(torch.full((2, 5), -100)).tolist() == [0]
