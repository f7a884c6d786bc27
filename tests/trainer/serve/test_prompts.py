"""What a request's prompt takes of the server while it is made."""

import json
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from aligntrain.serve.protocol import APIError, ChatRequest, read_request
from aligntrain.serve.service import Prompter
from aligntrain.serve.settings import Limits
from tests.trainer import tiny
from tests.trainer.serve.serving import ASKED, body, image_part, question


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    model = tiny.model(text_config=tiny.text_config(max_position_embeddings=1024))
    return Prompter(model, tiny.processor(model.config), Limits())


def read(**changes: Any) -> ChatRequest:
    return read_request(json.dumps(body(**changes)).encode(), ChatRequest)


def test_pictures_are_in_memory_one_at_a_time(prompter: Prompter) -> None:
    seen: list[weakref.ref[Image.Image]] = []

    def images() -> Iterator[Image.Image]:
        for seed in range(3):
            assert all(one() is None for one in seen)
            held = [tiny.picture(seed)]
            seen.append(weakref.ref(held[0]))
            yield held.pop()

    request = read(messages=question(ASKED, *[image_part()] * 3))
    prompt, _ = prompter.prompt(request, images())
    assert prompt.pixel_values is not None
    assert prompt.pixel_values.shape[0] == len(seen) == 3


def test_no_picture_is_decoded_for_what_is_too_long(prompter: Prompter) -> None:
    def images() -> Iterator[Image.Image]:
        raise AssertionError("it was decoded")
        yield

    with pytest.raises(APIError, match="the limit is 1024"):
        prompter.prompt(read(messages=question("x" * 1100, image_part())), images())
