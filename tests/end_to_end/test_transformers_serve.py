"""An exported model with levels under `transformers serve`, asked by OpenAI's client."""

import base64
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import APIConnectionError, OpenAI

from aligntrain.export.model import export_model
from aligntrain.inference.generate import Question, generate_answers, messages_of
from tests.trainer import tiny

pytestmark = pytest.mark.slow

IMAGE = tiny.picture(1, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
"""Of the tower's size: whatever library resizes, its pixels stay."""
ASKED = "what is it?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The folder of an export, and the model and processor that it was made from."""
    folder = tmp_path_factory.mktemp("serve")
    made, processor = tiny.saved(folder / "model", mixing="adaptive")
    with torch.no_grad():
        made.model.alignment.table.normal_(generator=torch.Generator().manual_seed(2))
    made.save_pretrained(folder / "model")
    export_model(folder / "model", folder / "llava", "llava", level="2")
    return folder / "llava", made, processor


@pytest.fixture(scope="module")
def client(model: tuple[Path, Any, Any]) -> Iterator[OpenAI]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "transformers", "serve", "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    asking = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        for _ in range(120):
            try:
                asking.models.list()
                break
            except APIConnectionError:
                assert server.poll() is None
                time.sleep(1)
        yield asking
    finally:
        server.terminate()
        server.wait(30)


def say(client: OpenAI, folder: Path, **options: Any) -> str:
    buffer = BytesIO()
    IMAGE.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content: Any = [{"type": "image_url", "image_url": {"url": url}}]
    content.append({"type": "text", "text": ASKED})
    answer = client.chat.completions.create(
        model=str(folder), messages=[{"role": "user", "content": content}],
        max_tokens=12, temperature=0, extra_body=options,
    )  # fmt: skip
    return str(answer.choices[0].message.content)


def test_each_level_answers_as_ours_does(model: tuple[Path, Any, Any], client: OpenAI) -> None:
    folder, made, processor = model
    questions = (Question(messages_of(ASKED, [IMAGE]), level) for level in (1, 2, 3, 4))
    ours = [one.text for one in generate_answers(made, processor, questions, max_new_tokens=12)]
    assert len(set(ours)) > 1  # the levels are heard
    theirs = [
        say(client, folder, chat_template_kwargs={"level": str(level)}) for level in (1, 2, 3, 4)
    ]
    assert [_text(said) for said in theirs] == [_text(said) for said in ours]
    assert say(client, folder) == theirs[1]


def _text(said: str) -> str:
    """What a random model says, without bytes that are no text, which each decodes in its way."""
    return re.sub(r"[^ -~]+", "?", said).strip("?")
