"""`response_format`: answers of a model that says anything are JSON, and keep their schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
import torch
from pydantic import BaseModel, Field

from alignshared import InputError
from aligntrain.serve import Limits
from aligntrain.serve.decoding import Sampler
from aligntrain.serve.grammar import Grammars
from aligntrain.serve.request import Failed, Sampling
from tests.trainer import rows, tiny
from tests.trainer.serve.serving import (
    ASKED,
    NAME,
    Running,
    image_part,
    question,
    running,
)

TOKENIZERS = {
    "bytes": tiny.tokenizer(),
    "llama": rows.llama_tokenizer(),
    "chat": rows.chat_tokenizer(),
}
WORD = {"type": "string", "maxLength": 6}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "recursive": {
        "$defs": {"node": {
            "type": "object",
            "properties": {
                "kind": {"enum": ["cat", "dog"]},
                "in": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["kind", "in"], "additionalProperties": False,
        }},
        "$ref": "#/$defs/node",
    },
    "choice": {"anyOf": [{"type": "string", "pattern": "^a{2,4}é$"}, {"type": "null"}]},
    "date": {"type": "string", "format": "date"},
    "tuple": {
        "type": "array", "prefixItems": [{"type": "boolean"}, {"const": "☃"}], "items": False,
        "minItems": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_is_drawn_keeps_the_schema(name: str, schema: str) -> None:
    """Of logits that say nothing, also where the embedding table has rows that are no tokens."""
    tokenizer = TOKENIZERS[name]
    grammar = Grammars(tokenizer, [tokenizer.eos_token_id]).of(SCHEMAS[schema])
    logits = torch.zeros(len(tokenizer) + 37)
    told: set[str] = set()
    for seed in range(8):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), grammar.copy())
        ids: list[int] = []
        while not sampler.complete and len(ids) < 400:
            token = sampler.draw(logits)
            assert isinstance(token, int)
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        jsonschema.validate(json.loads(text), SCHEMAS[schema])
        told.add(text)
    assert len(told) > 1


def test_what_is_not_numbers_or_too_much_fails() -> None:
    tokenizer = TOKENIZERS["bytes"]
    grammars = Grammars(tokenizer, [tokenizer.eos_token_id])
    broken = Sampler(Sampling(temperature=1.0), grammars.of({}))
    failed = broken.draw(torch.full((len(tokenizer),), torch.nan))
    assert isinstance(failed, Failed)
    lost = grammars.of(SCHEMAS["date"])
    lost.accept(0)
    failed = Sampler(Sampling(), lost).draw(torch.zeros(len(tokenizer)))
    assert isinstance(failed, Failed)
    assert failed.final
    assert "could not be held to the response_format" in failed.sentence


def test_a_tokenizer_without_bytes_is_said_to_have_none() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "</s>": 1, "a": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(InputError, match=r"of which bytes a token is .*; leave response_format"):
        Grammars(tokenizer, [1]).of({})


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as one:
        yield one


class Animal(BaseModel, extra="forbid"):
    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=9)
    friends: list[Literal["me", "you"]] = Field(max_length=2)


def asked(**changes: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": question(ASKED, image_part()), "max_tokens": 200, **changes}


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "any", "schema": schema}}


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.5, "seed": 3}])
def test_a_class_of_pydantic(client: openai.OpenAI, changes: dict[str, Any]) -> None:
    said = client.chat.completions.parse(**asked(response_format=Animal, **changes))
    assert isinstance(said.choices[0].message.parsed, Animal)
    assert said.choices[0].finish_reason == "stop"
    # The same in a stream, in which it comes in pieces.
    with client.chat.completions.stream(**asked(response_format=Animal, **changes)) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == (
            said.choices[0].message.parsed
        )


def test_levels_guidance_and_choices_with_a_schema(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    said = create(
        **asked(
            response_format=schema_format(Animal.model_json_schema()), n=3, seed=2, logprobs=True,
            frequency_penalty=0.5, extra_body={"level": 2, "guidance": 3},
        )
    )  # fmt: skip
    for choice in said.choices:
        Animal.model_validate_json(choice.message.content)
    assert len({choice.message.content for choice in said.choices}) > 1
    text: Any = client.completions.create(
        model=NAME, prompt="a kite", max_tokens=200,
        extra_body={"response_format": schema_format({"enum": ["kite", "dog"]})},
    )  # fmt: skip
    assert json.loads(text.choices[0].text) in ("kite", "dog")


def test_any_object(long_run: Path) -> None:
    """A model that would go on for ever with white space, or what else it likes, may not."""
    with running(long_run, limits=Limits(new_tokens=50)) as one, one.client() as client:
        create: Any = client.chat.completions.create
        said = create(**asked(max_tokens=9, response_format={"type": "json_object"})).choices[0]
        assert said.message.content.startswith("{")
        assert said.message.content != "!" * 9
        plain = create(**asked(max_tokens=9, response_format={"type": "text"})).choices[0]
        assert plain.message.content == "!" * 9


def test_neighbours_do_not_matter(server: Running) -> None:
    """Answers with a schema and without one are written together as they are alone."""
    from concurrent.futures import ThreadPoolExecutor

    questions = [
        asked(max_tokens=60, response_format=schema_format(Animal.model_json_schema())),
        asked(max_tokens=60),
        asked(max_tokens=30, response_format=schema_format(SCHEMAS["recursive"]), seed=1),
        asked(max_tokens=30, seed=1, presence_penalty=1),
    ]
    alone = [server.post(one).json()["choices"] for one in questions]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: server.post(one).json()["choices"], questions * 2))
    assert together == alone * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "xml"}, "response_format cannot be"),
        ({"type": "json_schema"}, "response_format.json_schema cannot be: Field required"),
        (schema_format(3), "response_format.json_schema.schema cannot be"),
        (schema_format({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
        (schema_format({"type": "strin"}), "Invalid type: strin"),
        (schema_format({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (schema_format({"$ref": "http://127.0.0.1/a.json"}), "does not fetch"),
        (schema_format({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable"),
        (schema_format({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema_format({"x-guidance": {"lenient": True}, "not": {}}), "Unimplemented keys"),
    ],
)
def test_schemas_that_cannot_be_kept(client: openai.OpenAI, given: Any, said: str) -> None:
    create: Any = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as caught:
        create(**asked(response_format=given))
    assert said in caught.value.message
    assert str(caught.value.param).startswith("response_format")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "((a{0,1000}){0,1000}b{0,1000}){0,1000}"},
        {"anyOf": [{"type": "string", "pattern": f".*{i}.{{200}}"} for i in range(300)]},
        {"properties": {f"p{i}": {"type": "string", "pattern": f"a.*{i}"} for i in range(3000)}},
    ],
    ids=["repeats", "many", "properties"],
)
def test_a_schema_that_is_too_much_blocks_nobody(server: Running, schema: Any) -> None:
    answered = server.post(asked(max_tokens=5, response_format=schema_format(schema)))
    assert answered.status_code in (200, 400, 503), answered.text
    if answered.status_code != 200:
        assert len(answered.json()["error"]["message"]) < 500
        assert answered.elapsed.total_seconds() < 20
    assert server.post(asked(max_tokens=2)).status_code == 200
