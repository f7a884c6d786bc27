"""OpenAI's own client: plain, streamed, with images, with levels, and what it makes of errors."""

from pathlib import Path
from typing import Any

import openai
import pytest

from alignshared import InputError
from aligntrain.inference.generate import Question, generate_answers
from aligntrain.inference.load import load_for_inference
from aligntrain.serve import Settings
from aligntrain.serve.server import Server
from tests.trainer import tiny
from tests.trainer.serve.serving import (
    ASKED,
    NAME,
    Running,
    image_part,
    question,
    running,
    saved_run,
)


@pytest.fixture
def client(server: Running) -> Any:
    with server.client() as one:
        yield one.chat.completions


@pytest.fixture(scope="module")
def loaded(run: Path) -> tuple[Any, Any]:
    return load_for_inference(run, device="cpu")


def expected(
    loaded: tuple[Any, Any],
    level: int | None = None,
    image: int = 1,
    new: int = 12,
    guidance: float = 1.0,
) -> Any:
    content = [{"type": "image", "image": tiny.picture(image)}, {"type": "text", "text": ASKED}]
    asked = Question([{"role": "user", "content": content}], level)
    return next(generate_answers(*loaded, [asked], max_new_tokens=new, guidance=guidance))


def test_an_answer(client: Any, loaded: tuple[Any, Any]) -> None:
    said = client.create(model=NAME, messages=question(ASKED, image_part()), max_tokens=12)
    wanted = expected(loaded)
    assert said.choices[0].message.content.strip() == wanted.text
    assert said.choices[0].message.role == "assistant"
    assert said.choices[0].finish_reason == ("stop" if wanted.finished else "length")
    assert said.usage.completion_tokens == wanted.tokens
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    assert said.usage.prompt_tokens > tiny.IMAGE_TOKENS
    assert said.model == NAME
    assert "gate" not in said.model_extra


def test_a_stream_is_the_answer_in_pieces(client: Any) -> None:
    asked = {"model": NAME, "messages": question(ASKED, image_part()), "max_tokens": 40}
    whole = client.create(**asked)
    chunks = list(client.create(**asked, stream=True, stream_options={"include_usage": True}))
    *told, usage = chunks
    assert told[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in told]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 1
    assert [chunk.choices[0].finish_reason for chunk in told if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in client.create(**asked, stream=True))


@pytest.mark.parametrize("level", [1, 4])
def test_a_level_takes_the_place_of_the_gate(
    client: Any, loaded: tuple[Any, Any], level: int
) -> None:
    said = client.create(
        model=NAME, messages=question(ASKED, image_part()), max_tokens=12,
        extra_body={"level": level, "gate": True},
    )  # fmt: skip
    assert said.choices[0].message.content.strip() == expected(loaded, level).text
    assert said.gate is None  # it was not asked
    written = client.create(
        model=NAME, messages=question(f"<level_{level}>{ASKED}", image_part()), max_tokens=12
    )
    assert written.choices[0].message.content == said.choices[0].message.content
    assert written.usage.prompt_tokens == said.usage.prompt_tokens


@pytest.mark.parametrize(("level", "guidance"), [(2, 3.0), (None, 4), (4, 0.5)])
def test_guidance_exaggerates_level_or_mix(
    client: Any, loaded: tuple[Any, Any], level: int | None, guidance: float
) -> None:
    asked: dict[str, Any] = {
        "model": NAME, "messages": question(ASKED, image_part()), "max_tokens": 40,
        "extra_body": {"level": level, "guidance": guidance, "gate": True},
    }  # fmt: skip
    said = client.create(**asked)
    wanted = expected(loaded, level, new=40, guidance=guidance)
    assert said.choices[0].message.content.strip() == wanted.text
    assert wanted.text != expected(loaded, level, new=40).text
    assert said.usage.completion_tokens == wanted.tokens
    assert (said.gate is None) == (level is not None)
    chunks = client.create(**asked, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == said.choices[0].message.content
    plain = client.create(**{**asked, "extra_body": {"level": level}})
    assert plain.usage.prompt_tokens == said.usage.prompt_tokens  # of one prompt
    for none in (1, None):
        one = client.create(**{**asked, "extra_body": {"level": level, "guidance": none}})
        assert one.choices[0].message.content == plain.choices[0].message.content


def test_a_server_has_a_level_for_requests_without_one(run: Path, loaded: tuple[Any, Any]) -> None:
    with running(run, level=3) as one, one.client() as client:
        (card,) = client.models.list()
        assert card.level == 3  # pyright: ignore[reportAttributeAccessIssue]
        asked: dict[str, Any] = {"model": NAME, "messages": question(ASKED, image_part())}

        def said(**steering: Any) -> str:
            create = client.chat.completions.create
            answer = create(**asked, max_tokens=40, extra_body=steering).choices[0].message.content
            return (answer or "").strip()

        assert said() == expected(loaded, 3, new=40).text != expected(loaded, new=40).text
        assert said(level=1) == expected(loaded, 1, new=40).text
        assert said(guidance=3) == expected(loaded, 3, new=40, guidance=3.0).text
        # Text has no level.
        client.chat.completions.create(model=NAME, messages=question(), max_tokens=2)
    wrong = Server(run, Settings(port=0, device="cpu", level=9))
    with pytest.raises(InputError, match="there is no level 9; give one from 1 to 4"):
        wrong.run()


def test_levels_are_heard(loaded: tuple[Any, Any]) -> None:
    assert len({expected(loaded, level).text for level in (None, 1, 2, 3, 4)}) > 2


def test_the_gate_tells_its_weights(client: Any, loaded: tuple[Any, Any]) -> None:
    asked: dict[str, Any] = {"model": NAME, "max_tokens": 3, "extra_body": {"gate": True}}
    said = client.create(messages=question(ASKED, image_part(2)), **asked)
    assert said.gate == pytest.approx(expected(loaded, image=2, new=3).gate_weights, abs=1e-6)
    assert sum(said.gate) == pytest.approx(1)
    first = next(iter(client.create(messages=question(ASKED, image_part(2)), stream=True, **asked)))
    assert first.gate == pytest.approx(said.gate)
    assert client.create(messages=question("no image"), **asked).gate is None


def test_a_conversation_with_a_system_message(client: Any) -> None:
    first = question(ASKED, image_part())
    said = client.create(model=NAME, messages=first, max_tokens=8)
    # As clients do, the message goes back as it came.
    more = [
        {"role": "system", "content": "Be brief."}, *first, said.choices[0].message,
        {"role": "user", "content": "And what else?"},
    ]  # fmt: skip
    longer = client.create(model=NAME, messages=more, max_tokens=8)
    without = client.create(model=NAME, messages=more[1:], max_tokens=8)
    assert without.usage.prompt_tokens > said.usage.prompt_tokens
    # The template has a longer system message of its own.
    assert longer.usage.prompt_tokens < without.usage.prompt_tokens


def test_several_pictures_and_parts(client: Any) -> None:
    both = client.create(
        model=NAME, messages=question(ASKED, image_part(1), image_part(2)), max_tokens=4
    )
    one = client.create(model=NAME, messages=question(ASKED, image_part(1)), max_tokens=4)
    assert both.usage.prompt_tokens >= one.usage.prompt_tokens + tiny.IMAGE_TOKENS


def test_stops_and_seeds(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": NAME,
        "messages": question(ASKED, image_part(3)),
        "max_tokens": 40,
    }
    whole = client.create(**asked).choices[0].message.content
    stop = whole[8:10]
    cut = client.create(**asked, stop=[stop, "never said"])
    assert cut.choices[0].message.content == whole[: whole.find(stop)]
    assert cut.choices[0].finish_reason == "stop"
    asked |= {"temperature": 1.4, "top_p": 0.95}
    drawn = [client.create(**asked, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_models(server: Running) -> None:
    with server.client() as client:
        (model,) = client.models.list()
        assert (model.id, model.levels, model.gate) == (NAME, 4, True)  # pyright: ignore[reportAttributeAccessIssue]
        assert client.models.retrieve(NAME) == model
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("another")


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("changes", "error", "said", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "no model 'gpt-5' here", "model"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens cannot be", "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "temperature cannot be", "temperature"),
        ({"n": 0}, openai.BadRequestError, "n cannot be", "n"),
        ({"n": 17}, openai.BadRequestError, "17 answers are asked for", "n"),
        ({"top_logprobs": 21}, openai.BadRequestError, "top_logprobs cannot", "top_logprobs"),
        ({"presence_penalty": 3}, openai.BadRequestError, "cannot be", "presence_penalty"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias is not", "logit_bias"),
        ({"tools": [TOOL]}, openai.BadRequestError, "the model cannot call tools", "tools"),
        (
            {"tools": [TOOL], "tool_choice": "required"},
            openai.BadRequestError, "set tool_choice to none", "tools",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            openai.BadRequestError, "valid list", "messages[0].content",
        ),
        ({"messages": []}, openai.BadRequestError, "messages cannot be", "messages"),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "stop cannot be", "stop"),
        ({"extra_body": {"level": 9}}, openai.BadRequestError, "no level 9; give one", None),
        ({"extra_body": {"guidance": 0}}, openai.BadRequestError, "greater than 0", "guidance"),
        ({"extra_body": {"guidance": 1001}}, openai.BadRequestError, "equal to 1000", "guidance"),
        ({"extra_body": {"guidance": "x"}}, openai.BadRequestError, "guidance cannot", "guidance"),
        (
            {"extra_body": {"guidance": 2}, "messages": question("no picture")},
            openai.BadRequestError, "guidance is by the level of an image", None,
        ),
        ({"extra_body": {"magic": 1}}, openai.BadRequestError, "no parameter magic", "magic"),
        (
            {"extra_body": {"level": 1}, "messages": question("no picture")},
            openai.BadRequestError, "a level is that of an image", None,
        ),
        ({"messages": question("<image> what?")}, openai.BadRequestError, "the mark <image>", None),
        (
            {"messages": [{"role": "assistant", "content": "yes"}]},
            openai.BadRequestError, "the last message is not the user's", "messages",
        ),
        (
            {"messages": [{"role": "system", "content": [image_part()]}, *question()]},
            openai.BadRequestError, "only the user's may", None,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "sound"}]}]},
            openai.BadRequestError, "messages[0].content[0]", "messages[0].content[0]",
        ),
        (
            {"messages": question(ASKED, {"type": "image_url", "image_url": {"url": 3}})},
            openai.BadRequestError, "valid string", "messages[0].content[1].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            openai.BadRequestError, "valid string", "messages[0].content[0].text",
        ),
        (
            {"messages": [
                {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}, *question(),
            ]},
            openai.BadRequestError, "not supported here", "messages[0].tool_calls",
        ),
    ],
)  # fmt: skip
def test_errors_are_the_clients_own(
    client: Any, changes: dict[str, Any], error: type[Any], said: str, param: str | None
) -> None:
    asked = {"model": NAME, "messages": question(ASKED, image_part()), "max_tokens": 5}
    with pytest.raises(error) as caught:
        client.create(**{**asked, **changes})
    assert said in str(caught.value)
    assert caught.value.type == "invalid_request_error"
    if param:
        assert caught.value.param == param


def test_what_asks_for_nothing_is_no_error(client: Any) -> None:
    client.create(
        model=NAME, messages=question(), max_completion_tokens=2, n=1, presence_penalty=0,
        response_format={"type": "text"}, user="somebody", tools=[TOOL], tool_choice="none",
        frequency_penalty=0, logprobs=False, stream=None,
        stream_options=None, prompt_cache_key="a",
        extra_body={"gate": None, "prompt_cache_retention": "24h", "prompt_cache_options": {}},
    )  # fmt: skip
    chunks = client.create(
        model=NAME, messages=question(), max_tokens=2, stream=True,
        stream_options={"include_usage": None},
    )  # fmt: skip
    assert all(chunk.choices for chunk in chunks)


def test_who_says_how_to_draw_has_it_drawn(client: Any) -> None:
    """At OpenAI's temperature of 1, where none is given."""
    asked: dict[str, Any] = {
        "model": NAME, "messages": question(ASKED, image_part(3)), "max_tokens": 40,
    }  # fmt: skip

    def said(**changes: Any) -> str:
        return client.create(**asked, **changes).choices[0].message.content

    assert said(seed=3) == said(seed=3, temperature=1) != said()
    assert said(top_p=1e-6) == said() == said(seed=3, temperature=0)
    assert said(top_p=0.99) != said()


def test_the_api_key(run: Path) -> None:
    with running(run, api_key="open sesame") as guarded:
        with guarded.client(api_key="open sesame") as client:
            client.chat.completions.create(model=NAME, messages=question(), max_tokens=2)
        for wrong in ("open sesam", "open sesame!", "ключ"):
            answered = guarded.get(
                "/v1/models", headers={"Authorization": f"Bearer {wrong}".encode()}
            )
            assert answered.status_code == 401
        with guarded.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model=NAME, messages=question())
        assert guarded.get("/metrics").status_code == 401
        assert guarded.get("/health").status_code == 200
        assert guarded.get("/").status_code == 200


def test_a_model_that_only_captions(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    model, _ = load_for_inference(run, device="cpu")
    tiny.processor(model.config, template="plain").save_pretrained(run / "export")
    with running(run) as one, one.client() as client:
        said = client.chat.completions.create(
            model=NAME, messages=question("not read", image_part()), max_tokens=6
        )
        assert said.usage is not None
        assert said.usage.prompt_tokens == tiny.IMAGE_TOKENS + 2  # BOS and the level's place
        with pytest.raises(openai.BadRequestError, match="only captions images"):
            client.chat.completions.create(model=NAME, messages=question())


def test_a_model_without_levels(tmp_path: Path) -> None:
    run = saved_run(tmp_path, mixing="none")
    with running(run, name="plain") as one, one.client() as client:
        asked: dict[str, Any] = {"model": "plain", "messages": question(ASKED, image_part())}
        said: Any = client.chat.completions.create(**asked, max_tokens=3, extra_body={"gate": True})
        assert said.gate is None
        with pytest.raises(openai.BadRequestError, match="no levels"):
            client.chat.completions.create(**asked, extra_body={"level": 1})
        with pytest.raises(openai.BadRequestError, match="leave the guidance out"):
            client.chat.completions.create(**asked, extra_body={"guidance": 2})
