"""What OpenAI's client can ask beside a question: choices, log-probabilities, penalties."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from alignshared import InputError
from aligntrain.inference.load import load_for_inference
from aligntrain.serve import Limits, Settings
from tests.trainer import tiny
from tests.trainer.serve.serving import (
    ASKED,
    NAME,
    Running,
    body,
    image_part,
    prompt,
    question,
    running,
)

IMAGE = image_part()


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as one:
        yield one


def asked(**changes: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": question(ASKED, IMAGE), "max_tokens": 20, **changes}


def test_more_tokens_than_the_server_writes_are_capped(long_run: Path) -> None:
    with running(long_run, limits=Limits(new_tokens=9)) as one, one.client() as client:
        said: Any = client.chat.completions.create(**asked(max_tokens=4096))
        assert said.choices[0].message.content == "!" * 9
        assert said.choices[0].finish_reason == "length"
        (warning,) = said.warnings
        assert "4096 new tokens are asked for, and the answer has at most 9" in warning
        first: Any = next(iter(client.chat.completions.create(**asked(max_tokens=99, stream=True))))
        assert "99 new tokens" in first.warnings[0]
        within: Any = client.chat.completions.create(**asked(max_tokens=9))
        assert "warnings" not in within.model_extra


def test_several_choices(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    said = create(**asked(n=3, seed=5, temperature=1.5))
    texts = [choice.message.content for choice in said.choices]
    assert [choice.index for choice in said.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    # Each is what its seed says alone.
    alone = [create(**asked(seed=5 + place, temperature=1.5)) for place in range(3)]
    assert texts == [one.choices[0].message.content for one in alone]
    assert said.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert said.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    greedy = create(**asked(n=2, temperature=0)).choices
    assert greedy[0].message.content == greedy[1].message.content
    # Who asks for two wants two.
    drawn = create(**asked(n=2)).choices
    assert drawn[0].message.content != drawn[1].message.content


def test_several_choices_in_a_stream(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    whole = create(**asked(n=3, seed=5, temperature=1.5))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = create(**asked(n=3, seed=5, temperature=1.5, **options))
    texts, reasons = [""] * 3, [None] * 3
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert last.usage == whole.usage


def test_log_probabilities_are_the_models(client: openai.OpenAI, run: Path) -> None:
    model, processor = load_for_inference(run, device="cpu")
    create: Any = client.chat.completions.create
    said = create(**asked(logprobs=True, top_logprobs=3)).choices[0]
    told = said.logprobs.content
    parts = [{"type": "image", "image": tiny.picture(1)}, {"type": "text", "text": ASKED}]
    given = prompt(processor, [{"role": "user", "content": parts}])
    ids = torch.tensor([given.input_ids])
    with torch.inference_mode():
        output = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=given.pixel_values
        )
    wanted = output.logits[0, -1].log_softmax(-1).topk(3)
    assert told[0].logprob == pytest.approx(wanted.values[0].item(), abs=1e-4)
    assert [one.logprob for one in told[0].top_logprobs] == pytest.approx(
        wanted.values.tolist(), abs=1e-4
    )
    names = [processor.tokenizer.decode([one]) for one in wanted.indices.tolist()]
    assert [one.token for one in told[0].top_logprobs] == names
    assert all(one.logprob == one.top_logprobs[0].logprob for one in told)  # greedy
    whole = [one for one in told if "\ufffd" not in one.token]
    assert all(bytes(one.bytes).decode() == one.token for one in whole)
    assert all(one.bytes is None for one in told if "\ufffd" in one.token)
    # The same in a stream, and what is drawn is told before temperature and penalties.
    chunks = create(**asked(logprobs=True, top_logprobs=3, stream=True))
    pieces = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs is not None]
    assert [one.logprob for piece in pieces for one in piece] == [one.logprob for one in told]
    other = create(
        **asked(logprobs=True, top_logprobs=1, temperature=1.9, seed=1, presence_penalty=1)
    ).choices[0]
    assert other.logprobs.content[0].top_logprobs[0].logprob == pytest.approx(told[0].logprob)
    assert create(**asked()).choices[0].logprobs is None


def test_penalties_make_an_answer_say_other_things(long_run: Path) -> None:
    """A model to which all tokens are alike says the first one, and with a penalty each once."""
    with running(long_run) as one, one.client() as client:
        create: Any = client.chat.completions.create
        assert create(**asked(max_tokens=5)).choices[0].message.content == "!!!!!"
        for penalty in ({"presence_penalty": 0.5}, {"frequency_penalty": 0.5}):
            said = create(**asked(max_tokens=5, **penalty)).choices[0]
            assert said.message.content == '!"#$%'
        fond = create(**asked(max_tokens=5, presence_penalty=-1)).choices[0]
        assert fond.message.content == "!!!!!"


def test_of_few_tokens_the_likeliest_are_drawn(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create

    def said(**changes: Any) -> str:
        extra = {k: changes.pop(k) for k in ("top_k", "min_p") if k in changes}
        return create(**asked(**changes, extra_body=extra)).choices[0].message.content

    greedy = said()
    assert said(top_k=1) == said(top_k=1, temperature=2, seed=3) == greedy
    assert said(min_p=1.0, seed=3) == greedy
    assert said(top_k=-1, seed=3) == said(top_k=0, seed=3) == said(seed=3, min_p=0) != greedy
    assert said(top_k=2, seed=3, temperature=2) != greedy
    with pytest.raises(openai.BadRequestError, match="min_p cannot be"):
        said(min_p=2)


def test_messages_as_clients_write_them(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    plain = IMAGE["image_url"]["url"]
    with_text = [{"role": "user", "content": [
        {"type": "text", "text": ASKED}, {"type": "image_url", "image_url": plain}]}]  # fmt: skip
    assert create(**asked(messages=with_text)).choices == create(**asked()).choices
    first = question(ASKED, IMAGE)
    for empty in ({"content": None}, {"content": ""}, {}):
        said = [*first, {"role": "assistant", "tool_calls": [], **empty}, *question("And?")]
        assert create(**asked(messages=said)).choices[0].message.content


def test_completions_of_texts(client: openai.OpenAI, run: Path) -> None:
    model, processor = load_for_inference(run, device="cpu")
    create: Any = client.completions.create
    said = create(model=NAME, prompt="a kite", max_tokens=8)
    ids = processor.tokenizer("a kite", return_tensors="pt")
    with torch.inference_mode():
        wanted = model.generate(**ids, max_new_tokens=8, do_sample=False)[
            0, ids.input_ids.shape[1] :
        ]
    assert said.object == "text_completion"
    assert said.choices[0].text == processor.tokenizer.decode(wanted, skip_special_tokens=True)
    assert said.usage.prompt_tokens == ids.input_ids.shape[1]
    # By ids, several, and each several times.
    by_ids = create(model=NAME, prompt=ids.input_ids[0].tolist(), max_tokens=8)
    assert by_ids.choices == said.choices
    many = create(model=NAME, prompt=["a kite", "two dogs"], n=2, temperature=0, max_tokens=8)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == said.choices[0].text
    other = create(model=NAME, prompt="two dogs", max_tokens=8)
    assert many.choices[2].text == many.choices[3].text == other.choices[0].text
    assert many.usage.prompt_tokens == said.usage.prompt_tokens + other.usage.prompt_tokens
    chunks = list(create(model=NAME, prompt="a kite", max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == said.choices[0].text
    assert chunks[-1].choices[0].finish_reason == said.choices[0].finish_reason


def test_completions_tell_log_probabilities(client: openai.OpenAI) -> None:
    create: Any = client.completions.create
    said = create(model=NAME, prompt="a kite", max_tokens=8, logprobs=2).choices[0]
    told = said.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)
    for value, likeliest in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert value == max(likeliest.values()) < 0
        assert sum(map(math.exp, likeliest.values())) <= 1
    for offset, token in zip(told.text_offset, told.tokens, strict=True):
        if "\ufffd" not in said.text:
            assert said.text[offset:].startswith(token)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ""}, None),
        ({"prompt": []}, "prompt"),
        ({"prompt": "<image> what?"}, "holds the mark <image>"),
        ({"prompt": [10_000_000]}, "special token"),
        ({"prompt": [5, 260]}, "special token"),  # that of an image
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "x" * 20_000}, "the limit is 1024"),
        ({"prompt": ["x"] * 17}, "17 answers are asked for"),
        ({"prompt": "x", "echo": True}, "echo is not supported"),
        ({"prompt": "x", "suffix": "y"}, "suffix is not supported"),
        ({"prompt": "x", "level": 1}, "no parameter level"),
    ],
)
def test_completions_that_cannot_be(server: Running, changes: Any, said: str | None) -> None:
    asked = {"model": NAME, "max_tokens": 2, **changes}
    answered = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60, trust_env=False)
    if said is None:  # this tokenizer begins each text with a token of its own
        assert answered.status_code == 200
        return
    assert answered.status_code == 400, answered.text
    assert said in answered.json()["error"]["message"]


def test_pages_of_other_origins(run: Path, server: Running) -> None:
    page = {"Origin": "http://localhost:3000"}
    preflight = {**page, "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,x-stainless-os"}  # fmt: skip
    path = "/v1/chat/completions"
    with running(run, origins=("http://localhost:3000",)) as one:
        allowed = httpx.options(one.url + path, headers=preflight, trust_env=False)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == page["Origin"]
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
        answered = one.post(body(max_tokens=2), headers=page)
        assert answered.headers["access-control-allow-origin"] == page["Origin"]
        refused = one.post(body(model="other"), headers=page)  # errors can be read too
        assert refused.headers["access-control-allow-origin"] == page["Origin"]
        other = {**preflight, "Origin": "http://evil.example"}
        assert httpx.options(one.url + path, headers=other, trust_env=False).status_code == 400
        assert (
            one.post(body(max_tokens=2), headers={**page, "Host": "evil.example"}).status_code
            == 403
        )
    assert httpx.options(server.url + path, headers=preflight, trust_env=False).status_code == 405
    with running(run, origins=("*",), api_key="secret") as one:
        allowed = httpx.options(one.url + path, headers=preflight, trust_env=False)
        assert allowed.headers["access-control-allow-origin"] == "*"
        assert one.post(body(), headers=page).status_code == 401


def test_names_of_the_local_host(run: Path, server: Running) -> None:
    named = {"Host": "host.docker.internal:8000"}
    assert server.get("/v1/models", headers=named).status_code == 403
    with running(run, hosts=("Host.Docker.internal",)) as one:
        assert one.get("/v1/models", headers=named).status_code == 200
        assert one.get("/v1/models").status_code == 200
        assert one.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"origins": ("*",)}, "any web page could use the model; give an API key"),
        ({"origins": ("localhost:3000",)}, "is no origin"),
        ({"origins": ("http://a.example/page",)}, "is no origin"),
        ({"hosts": ("http://a.example",)}, "is no host name"),
    ],
)
def test_names_that_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(**settings)
