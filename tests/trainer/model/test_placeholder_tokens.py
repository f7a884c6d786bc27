"""Placeholders are tokens: in the vocabulary, for levels in a prompt, and never from text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from alignshared import InputError
from aligntrain.inference.chat import Chat
from aligntrain.inference.generate import Question, generate_answers, messages_of
from aligntrain.model import AlignGPTConfig, AlignGPTProcessor, build_model, build_processor
from aligntrain.prompts.encode import Encoder
from aligntrain.prompts.placeholders import marks_of
from tests.trainer import tiny
from tests.trainer.model.test_modeling import batch, pixels, row
from tests.trainer.rows import chat_tokenizer, layout_of, llama_tokenizer

LEVELS = 4
IMAGE, ALIGN, LEVEL = 260, 261, {k: 261 + k for k in range(1, LEVELS + 1)}


def audible(**choices: Any) -> Any:
    """A tiny model and its processor, in which levels make a difference."""
    model = tiny.model(**choices)
    with torch.no_grad():
        model.model.alignment.table.mul_(40)
    return model, tiny.processor(model.config)


def folder_with(place: Path, vocabulary: int) -> tuple[str, str]:
    """A tower, and an LLM of `vocabulary` rows behind a tokenizer of 260 tokens."""
    torch.manual_seed(0)
    tiny.model().model.vision_tower.save_pretrained(place / "tower")
    tiny.image_processor().save_pretrained(place / "tower")
    LlamaForCausalLM(tiny.text_config(vocab_size=vocabulary)).save_pretrained(place / "llm")
    tiny.tokenizer().save_pretrained(place / "llm")
    return str(place / "tower"), str(place / "llm")


def test_every_id_is_of_the_vocabulary() -> None:
    model, processor = audible()
    given = processor(text="<image>\nwhat?", images=tiny.picture(1))
    assert given["input_ids"].max() < model.config.text_config.vocab_size == 320
    embeddings = model.get_input_embeddings()(given["input_ids"])
    assert torch.equal(model.model.embed(**given)[0][0, -5:], embeddings[0, -5:])  # of the text
    assert processor.image_token == "<image>"
    assert processor.image_token_id == model.config.image_token_id == IMAGE
    tokens = processor.tokenizer.convert_ids_to_tokens(given["input_ids"][0])
    assert tokens[:3] == ["<s>", "<align>", "<image>"]
    assert len(processor.tokenizer) == model.config.token_count == 260 + 2 + LEVELS


@pytest.mark.parametrize(("vocabulary", "size"), [(260, 320), (320, 320), (400, 400)])
def test_where_they_go(vocabulary: int, size: int, tmp_path: Path) -> None:
    """Into free rows, as Qwen's tables have, else into new ones that are a multiple of 64."""
    names = folder_with(tmp_path, vocabulary)
    model = build_model(*names, levels=LEVELS)
    processor = build_processor(*names, model.config)
    assert model.config.image_token_id == processor.image_token_id == IMAGE
    assert model.config.llm_vocab_size == vocabulary
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert layer.weight.shape[0] == model.config.text_config.vocab_size == size
        assert not layer.weight[vocabulary:].any()
    given = processor(text="<level_2><image>\nwhat?", images=tiny.picture(1))
    logits = model(**given).logits
    written = [id_ for id_ in range(size) if logits[0, 0, id_] > torch.finfo(logits.dtype).min]
    free = [*range(260 + 2 + LEVELS, vocabulary)]
    assert written == [*range(260), *free]
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(**given).logits, logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").convert_tokens_to_ids(
        marks_of(LEVELS)
    ) == [IMAGE, ALIGN, *LEVEL.values()]
    again = AlignGPTProcessor.from_pretrained(tmp_path / "model")
    assert again.layout == processor.layout


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_no_row_of_theirs_is_trained(tied: bool, packed: bool) -> None:
    model = tiny.model(text_config=tiny.text_config(tie_word_embeddings=tied)).train()
    if packed:
        assert model.prepare_packing() is None
    given = batch(row(1, 2, 3), row(4, images=0)) | {"pixel_values": pixels(1)}
    options = {"packed": True, "logits_bytes": 2000} if packed else {}
    model(**given, labels=given["input_ids"], **options).loss.backward()
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert layer.weight.grad[:260].any()
        assert not layer.weight.grad[260:].any()


def test_none_is_ever_written() -> None:
    model, processor = audible()
    with torch.no_grad():  # the greatest scores were theirs
        model.get_output_embeddings().weight.mul_(-1)
        model.get_output_embeddings().weight[260:] = 40 * model.model.alignment.table[0]
    given = processor(text=["<level_1><image>a", "bc"], images=tiny.picture(1))
    length = given["input_ids"].shape[1]
    for options in (
        {"do_sample": False},
        {"do_sample": True, "temperature": 30.0},
        {"num_beams": 3},
        {"do_sample": False, "guidance_scale": 700.0},
    ):
        ids = model.generate(**given, max_new_tokens=8, **options)
        assert ids[:, length:].max() < 260


def test_a_level_in_a_prompt_is_that_level() -> None:
    model, processor = audible()
    image = tiny.picture(1)
    plain = processor(text="<image>\nwhat?", images=image)
    mixed = model(**plain)
    for level in range(1, LEVELS + 1):
        forced = model(**plain, levels=torch.tensor([level]))
        for text in (f"<level_{level}><image>\nwhat?", f"<s><level_{level}><image>\nwhat?"):
            given = processor(text=text, images=image)
            assert given["input_ids"][0, 1] == LEVEL[level]
            said = model(**given)
            assert torch.equal(said.logits, forced.logits)
            assert said.gate_weights is None
        assert not torch.equal(forced.logits, mixed.logits)


def test_rows_of_levels_and_of_the_mix_in_one_batch() -> None:
    model, processor = audible()
    images = [tiny.picture(i) for i in range(3)]
    texts = ["<image>ab", "<level_3><image>abc", "<image>a", "text"]
    together = processor(text=texts, images=images, padding_side="left")
    output = model(**together)
    assert output.gate_weights[[1, 3]].abs().sum() == 0
    for i, text in enumerate(texts):
        alone = model(**processor(text=text, images=images[i : i + 1] or None))
        torch.testing.assert_close(output.logits[i, -1], alone.logits[0, -1], rtol=1e-4, atol=1e-5)
        if i in (0, 2):
            torch.testing.assert_close(output.gate_weights[i : i + 1], alone.gate_weights)
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = model.generate(**together, **options)
    assert torch.equal(cached, model.generate(**together, **options, use_cache=False))


def test_chat_generate_and_templates_agree_about_levels() -> None:
    model, processor = audible()
    image = tiny.picture(1)
    chat = Chat(model, processor)
    expected = "".join(chat.answer("What?", image, level=3, max_new_tokens=6))
    chat.reset()
    assert "".join(chat.answer("<level_3>What?", image, max_new_tokens=6)) == expected
    assert chat.gate_weights is None
    assert chat.history[0] == ("user", "What?")  # the next question is not of level 3
    with pytest.raises(InputError, match="no level 9"):
        chat.answer("<level_9>What?", image)
    asked = Question(messages_of("What?", [image]), 3)
    assert [a.text for a in generate_answers(model, processor, [asked], max_new_tokens=6)] == [
        expected
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    whole = processor.apply_chat_template(messages_of("What?", [image]), level=3, **options)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "<level_3><image>\nWhat?"}], add_generation_prompt=True
    )
    assert prompt.startswith("<level_3>A chat between")
    given = processor(text=prompt, images=image)
    assert given["input_ids"].tolist() == whole["input_ids"].tolist()
    ids = model.generate(**given, max_new_tokens=6, do_sample=False)
    new = processor.tokenizer.decode(ids[0, given["input_ids"].shape[1] :]).partition("</s>")[0]
    assert new.strip() == expected


@pytest.mark.parametrize(
    ("choices", "text", "says"),
    [
        ({}, "<level_5><image>", "no level 5; give one from 1 to 4"),
        ({}, "<level_0><image>", "no level 0"),
        ({}, "<level_2>what?", "has no image"),
        ({"mixing": "none"}, "<level_2><image>", "mixing none and no levels"),
    ],
)
def test_levels_that_are_not_there(choices: dict[str, Any], text: str, says: str) -> None:
    processor = tiny.processor(tiny.config(**choices))
    images = [tiny.picture(1)] * text.count("<image>") or None
    with pytest.raises(InputError, match=says):
        processor(text=text, images=images)


WORDS = "a <level_3> and <align>, <level_12> <image>"


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), chat_tokenizer()], ids=["llama", "bpe"])
@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "chat"])
def test_marks_in_captions_and_answers_are_their_characters(tokenizer: Any, template: Any) -> None:
    if template == "chat" and not tokenizer.chat_template:
        pytest.skip("no template of its own")
    from aligntrain.prompts.conversation import Turn

    config = tiny.config(text_config=tiny.text_config(vocab_size=len(tokenizer)))
    processor = AlignGPTProcessor.for_model(config, tiny.image_processor(), tokenizer)
    talk = (Turn("human", "<image>\nwhat is <level_1>?"), Turn("gpt", WORDS.strip("<image> ")))
    turns = () if template == "plain" else talk
    known = Encoder(tokenizer, layout_of(tokenizer, tiny.IMAGE_TOKENS), template, 512)
    own = Encoder(processor.tokenizer, processor.layout, template, 512)
    caption = WORDS if template == "plain" else None
    assert own(caption, turns, 1) == known(caption, turns, 1)
    ids = own(caption, turns, 1).ids
    assert sum(id_ > config.align_token_id for id_ in ids) == 0
    assert ids.count(config.align_token_id) == 1
    assert ids.count(config.image_token_id) == tiny.IMAGE_TOKENS


def test_marks_within_a_prompt_are_text() -> None:
    processor = tiny.processor(tiny.config())
    ids = processor(text="a <level_2> or <align>", images=None)["input_ids"][0]
    assert ids.max() < 260
    parts = messages_of("<level_2>What?", [tiny.picture(1)])
    given = processor.apply_chat_template(parts, tokenize=True, return_dict=True)
    assert given["input_ids"][0, 1] == ALIGN
    assert "<level_2>What?" in processor.tokenizer.decode(given["input_ids"][0])
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="begins with the mark of a level"):
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "<level_2>x"}]}], bare
        )


def test_a_tokenizer_that_has_some_of_them_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<align>"], special_tokens=True)
    with pytest.raises(InputError, match="not one after the other"):
        AlignGPTProcessor.for_model(tiny.config(), tiny.image_processor(), tokenizer)


def test_tokens_that_a_user_adds_come_behind_them() -> None:
    model, processor = audible()
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(["<place>"])
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    given = processor(text="<image>at <place>", images=tiny.picture(1))
    new = model.config.token_count - 1
    assert new == tokenizer.convert_tokens_to_ids("<place>") == given["input_ids"][0, -1]
    output = model(**given, labels=given["input_ids"])
    assert output.loss.isfinite()
    assert output.logits[0, 0, new] > torch.finfo(torch.float32).min
    assert output.logits[0, 0, new - 1] == torch.finfo(torch.float32).min


def test_models_of_earlier_versions_are_told() -> None:
    text = {"model_type": "llama", "vocab_size": 260}
    saved = {"text_config": text, "image_token_id": 260, "align_token_id": 261}
    with pytest.raises(InputError, match="aligntrain convert MODEL OUTPUT"):
        AlignGPTConfig.from_dict(saved)
