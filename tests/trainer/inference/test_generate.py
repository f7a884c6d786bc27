"""Many questions at once: each answered as if it were asked alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from alignshared import InputError
from aligntrain.inference.chat import Chat
from aligntrain.inference.generate import Answer, Question, generate_answers, model_inputs
from tests.trainer import tiny


def question(text: str, *pictures: Any, level: int | None = None) -> Question:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    content = [*shown, {"type": "text", "text": text}]
    return Question([{"role": "user", "content": content}], level)


MIXED = [
    question("what?", tiny.picture(1)),
    question("and how many of them are there, would you say, on the left?", tiny.picture(2)),
    question("no picture here, only words, and rather many of them"),
    question("which?", tiny.picture(3), level=1),
    question("which of these?", tiny.picture(3), level=4),
    question("hm"),
    question("both of them", tiny.picture(4), tiny.picture(5, 9, 30)),
    question("where is it?", tiny.picture(6, 40, 8), level=2),
    question("a b c d e f g", tiny.picture(7)),
]
"""Of all lengths, with and without pictures, some with a level."""


@pytest.fixture(scope="module")
def asked() -> tuple[Any, Any]:
    model = tiny.model(3, text_config=tiny.text_config(max_position_embeddings=1024))
    with torch.no_grad():
        model.model.alignment.table.mul_(20)  # the levels are heard
    # So many ends that some answers reach one.
    model.generation_config.eos_token_id = [257, *range(0, 256, 13)]
    return model, tiny.processor(model.config)


def answers(asked: tuple[Any, Any], questions: Any = MIXED, **options: Any) -> list[Answer]:
    return list(generate_answers(*asked, questions, **{"max_new_tokens": 16, **options}))


@pytest.mark.parametrize("size", [2, 3, 4, 9, 20])
def test_the_size_of_a_batch_changes_no_text(asked: tuple[Any, Any], size: int) -> None:
    alone = answers(asked)
    together = answers(asked, batch_size=size)
    assert [one.text for one in together] == [one.text for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens, one.finished) == (other.tokens, other.finished)
        assert (one.gate_weights is None) == (other.gate_weights is None)
        assert one.gate_weights is None or one.gate_weights == pytest.approx(other.gate_weights)
    assert {one.finished for one in alone} == {True, False}
    assert len({one.text for one in alone}) > 3


def test_each_is_answered_as_in_a_chat(asked: tuple[Any, Any]) -> None:
    for one, said in zip(MIXED, answers(asked, batch_size=4), strict=True):
        *shown, text = one.messages[0]["content"]
        if len(shown) > 1:
            continue
        chat = Chat(*asked)
        picture = shown[0]["image"] if shown else None
        pieces = chat.answer(text["text"], picture, level=one.level, max_new_tokens=16)
        ends = asked[0].generation_config.eos_token_id[1:]
        last = [asked[1].tokenizer.decode([token]) for token in ends]
        told = "".join(pieces).strip()
        assert told in {said.text, *((said.text + end).strip() for end in last)}
        gate = chat.gate_weights
        assert said.gate_weights == (None if gate is None else pytest.approx(gate))


def test_the_gate_speaks_where_there_is_a_picture_and_no_level(asked: tuple[Any, Any]) -> None:
    for one, said in zip(MIXED, answers(asked, batch_size=9), strict=True):
        pictured = len(one.messages[0]["content"]) > 1
        assert (said.gate_weights is not None) == (pictured and one.level is None)
        if said.gate_weights is not None:
            assert sum(said.gate_weights) == pytest.approx(1)


def test_tokens_are_counted_to_the_end(asked: tuple[Any, Any]) -> None:
    for said in answers(asked, batch_size=9):
        assert said.tokens <= 16
        assert said.finished or said.tokens == 16
        if said.text.isascii():
            assert len(said.text) <= said.tokens


def test_an_answer_may_end_with_its_last_token(asked: tuple[Any, Any]) -> None:
    whole = next(one for one in answers(asked) if one.finished)
    place = [one.finished for one in answers(asked)].index(True)
    same = answers(asked, [MIXED[place]], max_new_tokens=whole.tokens)[0]
    assert same == whole
    if whole.tokens > 1:
        assert not answers(asked, [MIXED[place]], max_new_tokens=whole.tokens - 1)[0].finished


def test_a_pretrained_model_captions_until_the_line_ends() -> None:
    model = tiny.model()
    processor = tiny.processor(model.config, template="plain")
    llm = model.model.language_model
    line_feed = processor.tokenizer("\n", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        llm.model.norm.weight.zero_()
    llm.lm_head.bias = torch.nn.Parameter(torch.zeros(llm.lm_head.out_features))
    llm.lm_head.bias.data[line_feed] = 1.0
    said = list(generate_answers(model, processor, [question("never read", tiny.picture(1))] * 2))
    assert [(one.text, one.tokens, one.finished) for one in said] == [("", 1, True)] * 2
    with pytest.raises(InputError, match="only captions images, and there is none"):
        list(generate_answers(model, processor, [question("what?")]))


def test_the_likeliest_token_is_taken_whatever_the_model_prefers(asked: tuple[Any, Any]) -> None:
    model, processor = asked
    plain = answers(asked)
    kept = model.generation_config.repetition_penalty
    model.generation_config.repetition_penalty = 5.0
    try:
        assert list(generate_answers(model, processor, MIXED, max_new_tokens=16)) == plain
    finally:
        model.generation_config.repetition_penalty = kept


PICTURED = [one for one in MIXED if len(one.messages[0]["content"]) > 1]
"""Those that guidance can steer: with a level, and with the gate's mix."""


@pytest.mark.parametrize("size", [2, 6])
def test_guidance_is_the_same_in_any_batch(asked: tuple[Any, Any], size: int) -> None:
    alone = answers(asked, PICTURED, guidance=3.0)
    together = answers(asked, PICTURED, guidance=3.0, batch_size=size)
    assert [one.text for one in together] == [one.text for one in alone]
    plain = answers(asked, PICTURED)
    assert sum(one.text != other.text for one, other in zip(alone, plain, strict=True)) > 3
    for one, other in zip(alone, plain, strict=True):  # the gate's weights are of the prompt
        assert one.gate_weights == other.gate_weights


def test_guidance_is_that_of_the_levels_branch(asked: tuple[Any, Any]) -> None:
    """At a guidance of nearly 0 the model without the vector answers, whatever the level."""
    model, _ = asked
    bare = tiny.model(3, mixing="none", text_config=tiny.text_config(max_position_embeddings=1024))
    weights = {name: value for name, value in model.state_dict().items() if "alignment" not in name}
    bare.load_state_dict(weights)
    bare.generation_config.eos_token_id = model.generation_config.eos_token_id
    without = [Question(one.messages) for one in PICTURED]
    plain = answers((bare, tiny.processor(bare.config)), without)
    near = answers(asked, PICTURED, guidance=1e-6)
    assert [one.text for one in near] == [one.text for one in plain]
    assert [one.text for one in near] != [one.text for one in answers(asked, PICTURED)]


def test_guidance_of_one_changes_nothing(asked: tuple[Any, Any]) -> None:
    assert answers(asked, guidance=1.0) == answers(asked)  # without a picture too


def test_sampling_follows_the_seed(asked: tuple[Any, Any]) -> None:
    said: list[list[str]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        said.append([one.text for one in answers(asked, temperature=2.0, batch_size=4)])
    assert said[0] == said[1] != said[2]


def test_sampling_with_guidance_follows_the_seed(asked: tuple[Any, Any]) -> None:
    said: list[list[str]] = []
    for seed, guidance in ((1, 2.0), (1, 2.0), (1, 1.0), (2, 2.0)):
        torch.manual_seed(seed)
        drawn = answers(asked, PICTURED, temperature=2.0, batch_size=4, guidance=guidance)
        said.append([one.text for one in drawn])
    assert said[0] == said[1]
    assert said[0] not in said[2:]


def test_questions_are_taken_as_they_are_needed(asked: tuple[Any, Any]) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Question]:
        for place in range(1000):
            taken.append(place)
            yield MIXED[0]

    first = generate_answers(*asked, endless(), batch_size=2, max_new_tokens=2)
    next(first)
    assert taken == [0, 1]
    assert answers(asked, []) == []


@pytest.mark.parametrize(
    ("wrong", "options", "said"),
    [
        (question("x", level=2), {}, "a level is that of an image, and there is none"),
        (question("x", tiny.picture(1), level=5), {}, "there is no level 5; give one from 1 to 4"),
        (question("x", tiny.picture(1), level=0), {}, "there is no level 0"),
        (question("x" * 1000), {}, "longer than the 1024 that the model reads"),
        (question("x"), {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        (question("x"), {"temperature": -1.0}, r"temperature at least 0 \(got -1.0\)"),
        (question("x"), {"batch_size": 0}, "batch_size must be at least 1"),
        (question("x"), {"guidance": 0}, r"guidance must be above 0 and at most 1000.*\(got 0\)"),
        (question("x"), {"guidance": -2.5}, r"\(got -2.5\)"),
        (question("x"), {"guidance": float("nan")}, r"\(got nan\)"),
        (question("x"), {"guidance": float("inf")}, r"\(got inf\)"),
        (question("x"), {"guidance": 1e39}, r"\(got 1e\+39\)"),
        (question("x"), {"guidance": 2.0}, "guidance is by the level of an image, and there is"),
    ],
)
def test_what_cannot_be_asked(
    asked: tuple[Any, Any], wrong: Question, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        answers(asked, [MIXED[0], wrong], **{"batch_size": 2, **options})


def test_the_longest_row_of_a_batch_does_not_count_for_the_others(asked: tuple[Any, Any]) -> None:
    """A short question has room for its answer beside a long one that would have none."""
    long = question("x" * 700)
    assert len(answers(asked, [long, MIXED[0]], batch_size=2, max_new_tokens=100)) == 2


def length(asked: tuple[Any, Any], one: Question) -> int:
    return model_inputs(*asked, [one.messages])["input_ids"].shape[1]


def test_a_long_question_is_answered_in_what_room_is_left(
    asked: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked[0].generation_config, "eos_token_id", 257)
    most = 1024 - length(asked, question("")) - 3
    long, short = question("x" * most), MIXED[0]
    assert length(asked, long) == 1024 - 3
    alone = answers(asked, [short])
    assert alone[0].tokens == 16
    for size in (1, 2):
        said = answers(asked, [long, short], batch_size=size, shorten=True)
        assert (said[0].tokens, said[0].finished) == (3, False)
        assert said[1].text == alone[0].text
    with pytest.raises(InputError, match="longer than the 1024 that the model reads"):
        answers(asked, [long, short])


def test_a_question_without_room_for_an_answer_is_named(asked: tuple[Any, Any]) -> None:
    filling = question("x" * (1024 - length(asked, question(""))))
    named = Question(filling.messages, name="pope, row 7")
    with pytest.raises(InputError, match="pope, row 7 has 1024 tokens, and with an answer is"):
        answers(asked, [MIXED[0], named], batch_size=2, shorten=True)


def test_a_level_of_a_model_without_levels() -> None:
    model = tiny.model(mixing="none")
    processor = tiny.processor(model.config)
    said = list(generate_answers(model, processor, [MIXED[0]], max_new_tokens=4))
    assert said[0].gate_weights is None
    with pytest.raises(InputError, match="mixing none and no levels; leave the level out"):
        list(generate_answers(model, processor, [MIXED[3]]))
    with pytest.raises(InputError, match="mixing none and no levels; leave the guidance out"):
        list(generate_answers(model, processor, [MIXED[0]], guidance=2.0))
