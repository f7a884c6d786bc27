"""What transformers and the libraries around it expect of a model and a processor."""

import base64
import io
from typing import Any

import pytest
import torch
from transformers import AutoModelForMultimodalLM, LlamaModel

from alignshared import InputError
from tests.trainer import tiny
from tests.trainer.model.test_modeling import batch, pixels, row


def processor() -> Any:
    return tiny.processor(tiny.config())


def test_sizes_and_parts_have_their_usual_names() -> None:
    model = tiny.model()
    config = model.config
    assert config.vocab_size == config.text_config.vocab_size == 320
    assert config.hidden_size == 32
    assert config.image_token_index == config.image_token_id == 260
    assert config.image_seq_length == config.image_tokens == 9
    assert isinstance(model.get_decoder(), LlamaModel)
    assert "vocab_size" not in config.to_dict()  # but in that of the LLM
    assert isinstance(AutoModelForMultimodalLM.from_config(config), type(model))


def test_what_does_not_fit_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="places for 1 images"):
        tiny.model()(**batch(row(1)))
    with pytest.raises(ValueError, match="but 0 images are given"):
        processor()(text="<image>")


def test_labels_that_are_shifted_already() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3), row(4, 5, images=0)) | {"pixel_values": pixels(1)}
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels >= 260, -100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    whole, same = model(**given, labels=labels), model(**given, shift_labels=shifted)
    torch.testing.assert_close(same.loss, whole.loss)
    assert same.sample_tokens.tolist() == whole.sample_tokens.tolist()
    torch.testing.assert_close(same.gate_weights, whole.gate_weights)


def test_image_features_come_as_llavas_do() -> None:
    model = tiny.model()
    output: Any = model.get_image_features(pixels(2), output_attentions=False)
    assert torch.equal(output.pooler_output, model.model.image_tokens(pixels(2)))
    assert output.last_hidden_state.shape == (2, 10, 16)
    assert len(output.hidden_states) == 4
    as_tuple = model.get_image_features(pixels(2), return_dict=False)
    assert torch.equal(as_tuple[1], output.pooler_output)


def test_generation_from_embeddings() -> None:
    model = tiny.model()
    given = batch(row(1, 2, 3), row(4), side="left") | {"pixel_values": pixels(2)}
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = model.generate(**given, **options)[:, given["input_ids"].shape[1] :]
    with torch.no_grad():
        merged, _ = model.model.embed(**given)
    mask = given["attention_mask"]
    found = model.generate(inputs_embeds=merged, attention_mask=mask, **options)
    assert found.tolist() == expected.tolist()


def test_a_processor_takes_the_words_of_transformers() -> None:
    make, image = processor(), tiny.picture(1)
    texts = ["<image>\nab", "a rather longer one"]
    plain = make(text=texts, images=image)
    padded = make(text=texts, images=image, padding="max_length", max_length=64)
    assert padded["input_ids"].shape == (2, 64)
    assert padded["attention_mask"].sum() == plain["attention_mask"].sum()
    eights = make(text=texts, images=image, text_kwargs={"pad_to_multiple_of": 8})
    assert eights["input_ids"].shape[1] % 8 == 0
    cut = make(text="a rather longer one", truncation=True, max_length=6)
    assert cut["input_ids"].tolist() == [plain["input_ids"][1][:6].tolist()]
    with pytest.raises(InputError, match="the first 6 of 14 tokens, max_length, end before"):
        make(text=texts, images=image, truncation=True, max_length=6)
    bare = make(text="ab", add_special_tokens=False, return_tensors=None)
    assert bare["input_ids"] == [make.tokenizer("ab", add_special_tokens=False).input_ids]
    types = make(text=texts, images=image, return_mm_token_type_ids=True)["mm_token_type_ids"]
    assert torch.equal(types == 1, plain["input_ids"] == make.image_token_id)
    raw = make(images=image, images_kwargs={"do_normalize": False, "do_rescale": False})
    assert raw["pixel_values"].max() > 100
    data = make._get_num_multimodal_tokens(image_sizes=[(30, 20), (9, 9)])
    assert data.num_image_tokens == [9, 9]
    assert "pixel_values" not in make(text=["a", "b"], images=[[], []])


def test_parts_of_openai() -> None:
    encoded = io.BytesIO()
    tiny.picture(1).save(encoded, "PNG")
    url = "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
    options = {"tokenize": True, "return_dict": True}
    text = {"type": "text", "text": "What?"}
    own = {"type": "image", "image": tiny.picture(1)}
    expected = processor().apply_chat_template(
        [{"role": "user", "content": [own, text]}], **options
    )
    for where in (url, {"url": url}):
        part = {"type": "image_url", "image_url": where}
        turn = [{"role": "user", "content": [part, text]}]
        given = processor().apply_chat_template(turn, **options)
        assert torch.equal(given["input_ids"], expected["input_ids"])
        torch.testing.assert_close(given["pixel_values"], expected["pixel_values"])
