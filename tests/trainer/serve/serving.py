"""Servers of tiny models on free ports of this machine, and what is asked of them."""

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
from PIL import Image

from aligntrain.runs.folder import EXPORT
from aligntrain.serve.engine import Engine
from aligntrain.serve.images import Fetcher
from aligntrain.serve.request import (
    Event,
    Failed,
    Finished,
    PrefillDone,
    Prompt,
    Request,
    Sampling,
    TextDelta,
)
from aligntrain.serve.server import Server
from aligntrain.serve.settings import Limits, Settings
from tests.trainer import tiny

NAME = "tiny-run"
ASKED = "what is it?"


def saved_run(folder: Path, **choices: Any) -> Path:
    """The folder of a finished run, its model able to read 1024 tokens."""
    run = folder / NAME
    text = tiny.text_config(max_position_embeddings=1024)
    model = tiny.model(**{"text_config": text, **choices})
    if model.config.has_table:
        with torch.no_grad():  # levels are heard
            model.model.alignment.table.mul_(20)
    model.save_pretrained(run / EXPORT)
    tiny.processor(model.config).save_pretrained(run / EXPORT)
    return run


def talkative(folder: Path) -> Path:
    """One that writes the same letter until it is stopped: the first token, `!`."""
    run = saved_run(folder)
    model = tiny.model(text_config=tiny.text_config(max_position_embeddings=4096))
    with torch.no_grad():  # of equal scores the first is the likeliest
        model.model.language_model.lm_head.weight.zero_()
    model.save_pretrained(run / EXPORT)
    return run


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    server: Server
    url: str

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        path = "/v1/chat/completions"
        return httpx.post(self.url + path, json=body, timeout=60, trust_env=False, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, trust_env=False, **options)


@contextmanager
def running(
    folder: Path, *, limits: Limits | None = None, fetcher: Fetcher | None = None, **choices: Any
) -> Iterator[Running]:
    """A server of the model in `folder`, from when it is ready until the block ends."""
    settings = Settings(port=0, device="cpu", limits=limits or Limits(), **choices)
    server = Server(folder, settings, fetcher=fetcher)
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,))
    url = server.url
    thread.start()
    try:
        assert ready.wait(60), "the model was not loaded"
        yield Running(server, url)
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(seed: int = 1) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(encoded(tiny.picture(seed)))}}


def question(text: str = ASKED, *images: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]


def body(**changes: Any) -> dict[str, Any]:
    """A request with an image."""
    asked = {"model": NAME, "messages": question(ASKED, image_part()), "max_tokens": 12}
    return {**asked, **changes}


@dataclass
class Told:
    """What an engine tells of one request."""

    events: list[Event] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.done.set()

    @property
    def text(self) -> str:
        return "".join(one.text for one in self.events if isinstance(one, TextDelta))

    @property
    def gate_weights(self) -> list[float] | None:
        begun = self.events[0]
        assert isinstance(begun, PrefillDone), begun
        return begun.gate_weights

    @property
    def ended(self) -> Finished:
        assert self.done.wait(60)
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last


def prompt(
    processor: Any,
    messages: list[dict[str, Any]],
    level: int | None = None,
    guidance: float = 1.0,
) -> Prompt:
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return Prompt(inputs["input_ids"][0].tolist(), inputs.get("pixel_values"), level, guidance)


def request(given: Prompt, new_tokens: int = 12, **options: Any) -> tuple[Request, Told]:
    told = Told()
    sampling = options.pop("sampling", Sampling())
    return Request(given, told, new_tokens, sampling, **options), told


@contextmanager
def started(model: Any, processor: Any, **options: Any) -> Iterator[Engine]:
    engine = Engine(model, processor, **options).start()
    try:
        yield engine
    finally:
        engine.stop()
