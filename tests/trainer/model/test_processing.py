"""From prompts and pictures to what the model reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from alignshared import InputError
from aligntrain.model import AlignGPTProcessor
from aligntrain.prompts.conversation import Conversation, Exchange
from aligntrain.prompts.templates import vicuna_v1
from tests.trainer import tiny

BOS = 256


def processor(**options: Any) -> AlignGPTProcessor:
    return tiny.processor(tiny.config(), **options)


def test_prompts_get_placeholders_and_padding() -> None:
    given = processor()(text=["<image>\nab", "abc"], images=tiny.picture(1), padding_side="right")
    assert given["input_ids"].shape == (2, 2 + 9 + 3)
    ids = given["input_ids"][0].tolist()
    assert ids[:3] == [BOS, 261, 260]
    assert ids.count(260) == 9
    assert 261 not in given["input_ids"][1].tolist()
    assert given["attention_mask"].sum(dim=1).tolist() == [14, 4]
    assert given["pixel_values"].shape == (1, 3, 12, 12)
    left = processor()(text=["a", "abc"], padding_side="left")
    assert left["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_one_prompt_and_lists_without_tensors() -> None:
    lists = processor()(text="ab", return_tensors=None)
    assert lists["input_ids"] == [
        [BOS, *processor().tokenizer("ab", add_special_tokens=False).input_ids]
    ]
    uneven = processor()(text=["a", "ab"], padding=False, return_tensors=None)
    assert [len(ids) for ids in uneven["input_ids"]] == [2, 3]
    assert processor()(images=[tiny.picture(1)])["pixel_values"].shape[0] == 1


def test_without_mixing_there_is_no_alignment_place() -> None:
    given = tiny.processor(tiny.config(mixing="none"))(text="<image>", images=tiny.picture(1))
    assert 261 not in given["input_ids"]


@pytest.mark.parametrize(
    ("text", "images"), [("a", 1), ("<image>", 0), (["<image>", "<image>"], 1)]
)
def test_images_and_marks_are_counted(text: Any, images: int) -> None:
    with pytest.raises(InputError, match=f"but {images} images"):
        processor()(text=text, images=[tiny.picture(i) for i in range(images)] or None)


def test_images_come_as_lists_of_lists_too() -> None:
    pictures = [[tiny.picture(1)], [tiny.picture(2), tiny.picture(3)]]
    given = processor()(text=["<image>", "<image><image>"], images=pictures)
    assert given["pixel_values"].shape[0] == 3


def test_pad_keeps_the_whole_picture_on_the_mean_colour() -> None:
    """As the authors: int(mean * 255) around a picture in the middle."""
    wide = Image.new("RGB", (36, 12), (255, 255, 255))
    padded, cropped = processor(aspect="pad"), processor(aspect="crop")
    mean = torch.tensor(padded.image_processor.image_mean)
    std = torch.tensor(padded.image_processor.image_std)

    def colours(pixels: torch.Tensor) -> torch.Tensor:
        return ((pixels[0] * std[:, None, None] + mean[:, None, None]) * 255).round()

    seen = colours(padded.pixel_values([wide]))
    grey = torch.tensor([int(value * 255) for value in padded.image_processor.image_mean])
    assert torch.equal(seen[:, 0, 0], grey.float())
    assert torch.equal(seen[:, 6, 6], torch.full((3,), 255.0))
    assert colours(cropped.pixel_values([wide])).min() == 255


def test_a_line_of_a_picture_makes_no_square_of_gigabytes() -> None:
    line = Image.new("1", (100_000, 500), 1)  # 6 KB as a PNG; its square would be 30 GB
    seen = processor(aspect="pad").pixel_values([line])
    assert seen.shape == (1, 3, 12, 12)
    assert len(seen[0, 0].unique()) > 1  # it is seen, on the mean colour


def test_pictures_up_to_the_largest_square_are_padded_as_they_are() -> None:
    wide = tiny.picture(1, 4096, 1000)
    grey = tuple(int(value * 255) for value in processor().image_processor.image_mean)
    square = Image.new("RGB", (4096, 4096), grey)
    square.paste(wide, (0, 1548))
    assert torch.equal(*(processor().pixel_values([one]) for one in (wide, square)))


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    _, before = tiny.saved(tmp_path)
    after = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(after, AlignGPTProcessor)
    assert after.layout == before.layout
    assert (after.aspect, after.template, after.chat_template) == (
        before.aspect, before.template, before.chat_template,
    )  # fmt: skip
    given = {"text": "<image>\nwhat?", "images": tiny.picture(4)}
    for name, value in before(**given).items():
        assert torch.equal(value, after(**given)[name]), name


QUESTION = [
    {
        "role": "user",
        "content": [{"type": "image", "image": tiny.picture(1)}, {"type": "text", "text": "What?"}],
    }
]


def test_vicuna_prompts_are_those_of_training() -> None:
    prompt = processor().apply_chat_template(QUESTION, add_generation_prompt=True)
    learned = vicuna_v1(Conversation(None, (Exchange("<image>\nWhat?", "This."),)), "</s>")
    assert prompt + " This.</s>" == learned.text
    whole = [*QUESTION, {"role": "assistant", "content": "This."}]
    assert processor().apply_chat_template(whole) == learned.text


def test_plain_prompts_are_the_image_alone() -> None:
    plain = processor(template="plain")
    assert plain.apply_chat_template(QUESTION, add_generation_prompt=True) == "<image>"


def test_chat_is_the_tokenizers_own_template() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    own = AlignGPTProcessor.for_model(
        tiny.config(), tiny.image_processor(), tiny.tokenizer(chat_template=template),
        template="chat",
    )  # fmt: skip
    assert own.apply_chat_template(QUESTION) == "[user]<image>\nWhat?"


def test_a_conversation_becomes_what_the_model_reads() -> None:
    given = processor().apply_chat_template(
        [QUESTION, QUESTION], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert given["pixel_values"].shape[0] == 2
    assert (given["input_ids"] == 260).sum(dim=1).tolist() == [9, 9]
    ids = processor().apply_chat_template(QUESTION, tokenize=True)
    assert ids.shape[0] == 1


def test_a_part_of_another_kind_is_refused() -> None:
    turn = [{"role": "user", "content": [{"type": "video", "url": "x"}]}]
    with pytest.raises(InputError, match="'video'"):
        processor().apply_chat_template(turn)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    small = tiny.config(text_config=tiny.text_config(vocab_size=100))
    with pytest.raises(InputError, match="260 tokens"):
        tiny.processor(small)


@pytest.mark.parametrize(("name", "value"), [("aspect", "stretch"), ("template", "v0")])
def test_unknown_choices_are_refused(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"{name} is '{value}'"):
        processor(**{name: value})
