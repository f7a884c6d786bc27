"""Ids and labels of the templates, against LLaVA's way of counting and against their own text."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignshared import InputError
from aligntrain.prompts.conversation import InvalidSample, Turn, read_conversation
from aligntrain.prompts.encode import Encoder, Tokens
from aligntrain.prompts.placeholders import IGNORE_INDEX, join, tokenize_pieces
from aligntrain.prompts.placeholders import SYSTEM as VICUNA_SYSTEM
from tests.trainer.rows import chat_tokenizer, layout_of, llama_tokenizer

TALK = (
    Turn("human", "What is in the picture?\n<image>"),
    Turn("gpt", "A red kite on a beach."),
    Turn("human", "What colour is it?"),
    Turn("gpt", "Red"),
)
IMAGE = -200
WORDS = st.text("abcdeikno .,?é☂\n", min_size=1, max_size=30).filter(lambda text: text.strip())


def llava_ids(tokenizer: Any, prompt: str) -> list[int]:
    """LLaVA's `tokenizer_image_token`: pieces with their BOS, which is kept once."""
    pieces = [tokenizer(piece).input_ids for piece in prompt.split("<image>")]
    ids = [tokenizer.bos_token_id]
    for number, piece in enumerate(pieces):
        assert piece[0] == tokenizer.bos_token_id
        ids += ([IMAGE] if number else []) + piece[1:]
    return ids


def llava_vicuna(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """LLaVA's `preprocess_v1`, which counts the tokens of each round to place its mask."""
    prompt = VICUNA_SYSTEM + " "
    for question, answer in turns:
        prompt += f"USER: {question} ASSISTANT: {answer}</s>"
    ids = llava_ids(tokenizer, prompt)
    labels = list(ids)
    labels[0] = IGNORE_INDEX
    at = 1
    for round_ in prompt.split("</s>")[:-1]:
        asked = round_.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        masked = len(llava_ids(tokenizer, asked)) - 2
        labels[at : at + masked] = [IGNORE_INDEX] * masked
        at += len(llava_ids(tokenizer, round_))
    assert at == len(ids), "tokenization mismatch"
    return ids, labels


def as_llava(tokens: Tokens, tokenizer: Any) -> tuple[list[int], list[int]]:
    """`tokens` with one id -200 for each image and no alignment place."""
    layout = layout_of(tokenizer)
    ids: list[int] = []
    labels: list[int] = []
    for at, (id_, label) in enumerate(zip(tokens.ids, tokens.labels, strict=True)):
        follows = at and tokens.ids[at - 1] == layout.image_token_id
        if id_ == layout.align_token_id or (id_ == layout.image_token_id and follows):
            assert label == IGNORE_INDEX
            continue
        ids.append(IMAGE if id_ == layout.image_token_id else id_)
        labels.append(label)
    return ids, labels


def encoder(name: str, tokenizer: Any, max_length: int = 2048, **layout: Any) -> Encoder:
    return Encoder(tokenizer, layout_of(tokenizer, **layout), name, max_length)


def learned(tokens: Tokens, tokenizer: Any) -> str:
    return tokenizer.decode([label for label in tokens.labels if label != IGNORE_INDEX])


def test_plain_agrees_with_llava() -> None:
    tokenizer = llama_tokenizer()
    tokens = encoder("plain", tokenizer)("a red kite on a beach", [], 1)
    ids, labels = as_llava(tokens, tokenizer)
    assert ids == llava_ids(tokenizer, "<image>a red kite on a beach\n")
    assert labels == [IGNORE_INDEX, IGNORE_INDEX, *ids[2:]]
    assert tokens.ids[1] == layout_of(tokenizer).align_token_id
    assert tokens.images == 1


def test_plain_keeps_a_mark_in_the_caption_as_text() -> None:
    tokenizer = llama_tokenizer()
    tokens = encoder("plain", tokenizer)("the tag <image>", [], 1)
    assert learned(tokens, tokenizer).strip() == "the tag <image>"
    assert tokens.ids.count(layout_of(tokenizer).image_token_id) == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.booleans())
def test_vicuna_agrees_with_llava(turns: list[tuple[str, str]], has_image: bool) -> None:
    tokenizer = llama_tokenizer()
    row = [
        turn
        for question, answer in turns
        for turn in (Turn("human", question), Turn("gpt", answer))
    ]
    expected = list(turns)
    if has_image:
        row[0] = Turn("human", f"{turns[0][0]}<image>")
        expected[0] = ("<image>\n" + turns[0][0].strip(), turns[0][1])
    tokens = encoder("vicuna_v1", tokenizer)(None, row, int(has_image))
    assert as_llava(tokens, tokenizer) == llava_vicuna(tokenizer, expected)


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), chat_tokenizer()], ids=["llama", "bpe"])
def test_vicuna_learns_answers_and_their_end(tokenizer: Any) -> None:
    tokens = encoder("vicuna_v1", tokenizer)(None, TALK, 1)
    end = tokenizer.eos_token
    spaceless = learned(tokens, tokenizer).replace(f"{end} ", end).strip()
    assert spaceless == f"A red kite on a beach.{end}Red{end}"


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), chat_tokenizer()], ids=["llama", "bpe"])
@pytest.mark.parametrize("align", [True, False])
def test_ids_are_those_that_the_processor_writes(tokenizer: Any, align: bool) -> None:
    layout = layout_of(tokenizer, align=align)
    prompt = (
        f"{VICUNA_SYSTEM} USER: <image>\nWhat is in the picture? ASSISTANT: A red kite on a beach."
        f"{tokenizer.eos_token}USER: What colour is it? ASSISTANT: Red{tokenizer.eos_token}"
    )
    tokens = encoder("vicuna_v1", tokenizer, align=align)(None, TALK, 1)
    assert tokens.ids == join(tokenize_pieces(tokenizer, prompt), layout)
    assert (layout.align_token_id in tokens.ids) == align


def test_chat_is_the_tokenizers_own_template() -> None:
    tokenizer = chat_tokenizer()
    tokens = encoder("chat", tokenizer)(None, TALK, 1)
    asked = [
        {"role": "user", "content": "<image>\nWhat is in the picture?"},
        {"role": "assistant", "content": "A red kite on a beach."},
        {"role": "user", "content": "What colour is it?"},
        {"role": "assistant", "content": "Red"},
    ]
    text = tokenizer.apply_chat_template(asked, tokenize=False)
    assert tokens.ids == join(tokenize_pieces(tokenizer, text), layout_of(tokenizer))
    assert learned(tokens, tokenizer) == "A red kite on a beach.<|im_end|>Red<|im_end|>"


def test_chat_keeps_a_system_message() -> None:
    tokenizer = chat_tokenizer()
    tokens = encoder("chat", tokenizer)(None, (Turn("system", "Be brief."), *TALK[2:]), 0)
    assert tokenizer.decode(tokens.ids).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert layout_of(tokenizer).align_token_id not in tokens.ids


def test_chat_template_that_rewrites_the_past_is_refused() -> None:
    tokenizer = chat_tokenizer()
    forgetful = (
        "{% for m in messages %}{{ m.role }}: "
        "{% if loop.last or m.role == 'user' %}{{ m.content }}{% else %}...{% endif %}\n"
        "{% endfor %}"
    )
    tokenizer.chat_template, before = forgetful, tokenizer.chat_template
    try:
        with pytest.raises(InputError, match=r"answers cannot be found.*vicuna_v1"):
            encoder("chat", tokenizer)
        tokenizer.chat_template = None
        with pytest.raises(InputError, match=r"has no chat template; set data.template"):
            encoder("chat", tokenizer)
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize("name", ["vicuna_v1", "chat"])
def test_truncation_is_at_the_end_of_an_exchange(name: str) -> None:
    tokenizer = chat_tokenizer()
    whole = encoder(name, tokenizer)(None, TALK, 1)
    short = encoder(name, tokenizer, len(whole.ids) - 1)(None, TALK, 1)
    first = encoder(name, tokenizer)(None, TALK[:2], 1)
    assert not whole.truncated
    assert short.truncated
    assert short.ids == first.ids == whole.ids[: len(first.ids)]
    assert short.labels == first.labels


def test_truncation_cuts_an_answer_that_is_too_long_alone() -> None:
    tokenizer = llama_tokenizer()
    row = (Turn("human", "What?"), Turn("gpt", "word " * 500))
    tokens = encoder("vicuna_v1", tokenizer, 200)(None, row, 0)
    assert tokens.truncated
    assert len(tokens.ids) == 200
    assert tokens.labels[-1] == tokens.ids[-1] != tokenizer.eos_token_id


def test_truncation_loses_images_with_their_turns() -> None:
    tokenizer = chat_tokenizer()
    turns = (
        Turn("human", "<image> one?"),
        Turn("gpt", "1"),
        Turn("human", "<image> two?"),
        Turn("gpt", "2"),
    )
    whole = encoder("chat", tokenizer)(None, turns, 2)
    assert whole.images == 2
    assert encoder("chat", tokenizer, len(whole.ids) - 1)(None, turns, 2).images == 1


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ((), 0, "no conversation"),
        ((Turn("human", "a"),), 0, "no question with an answer"),
        ((Turn("human", "a"), Turn("human", "b")), 0, "'human' is followed by 'human'"),
        ((Turn("human", "a"), Turn("bot", "b")), 0, "'bot' is unknown"),
        ((Turn("human", "a"), Turn("gpt", " ")), 0, "turn 2 is empty"),
        ((*TALK[:2], Turn("human", "<image>?"), Turn("gpt", "b")), 1, "2 marks"),
        ((Turn("human", "a" * 4000), Turn("gpt", "b")), 0, "hold nothing to learn"),
    ],
)
def test_unusable_rows_say_why(turns: Sequence[Turn], images: int, message: str) -> None:
    with pytest.raises(InvalidSample, match=message):
        encoder("vicuna_v1", llama_tokenizer(), 300)(None, turns, images)


def test_marks_of_one_image() -> None:
    def questions(*texts: str, images: int = 1) -> list[str]:
        turns = [turn for text in texts for turn in (Turn("human", text), Turn("gpt", "a"))]
        return [e.question for e in read_conversation(turns, images).exchanges]

    assert questions("What?<image>") == ["<image>\nWhat?"]
    assert questions("<image> and <image>") == ["<image>\nand"]
    assert questions("<image>") == ["<image>"]
    assert questions("What?", "And?") == ["<image>\nWhat?", "And?"]
    assert questions("Who?", "<image> And?") == ["Who?", "<image>\nAnd?"]
    assert questions("a <image> b <image>", images=2) == ["<image>\n<image>\na  b"]
    assert questions("the tag <image>", images=0) == ["the tag <image>"]


def test_leading_answer_and_trailing_question_are_left_out() -> None:
    tokenizer = llama_tokenizer()
    vicuna = encoder("vicuna_v1", tokenizer)
    longer = (Turn("gpt", "Hello."), *TALK, Turn("human", "And?"))
    assert vicuna(None, longer, 1) == vicuna(None, TALK, 1)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"data.template vicuna is unknown; give plain, vicuna_v1"):
        encoder("vicuna", llama_tokenizer())
    with pytest.raises(InputError, match=r"data.max_length 5 has no room"):
        encoder("plain", llama_tokenizer(), 5)
