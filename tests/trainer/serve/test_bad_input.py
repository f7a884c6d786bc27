"""What clients may send, meaning well or not: the right status, and the others are served."""

import gc
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from aligntrain.serve.protocol import APIError, ChatRequest, read_request
from aligntrain.serve.settings import Limits
from tests.trainer import tiny
from tests.trainer.serve.serving import (
    ASKED,
    NAME,
    Running,
    body,
    data_url,
    encoded,
    image_part,
    question,
    running,
)  # fmt: skip


@pytest.fixture(scope="module")
def small(run: Path) -> Iterator[Running]:
    """A server with small limits."""
    limits = Limits(
        body=400_000, images=3, pixels=10_000, prompt_tokens=200, new_tokens=20, timeout=20
    )
    with running(run, limits=limits) as one:
        yield one


@pytest.fixture(autouse=True)
def serves_on(small: Running) -> Iterator[None]:
    """Whatever a test has done, the next one is answered."""
    yield
    answered = small.post(body())
    assert answered.status_code == 200, answered.text


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels, in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
WHOLE = encoded(tiny.picture(1))
PICTURES: dict[str, tuple[str, str]] = {
    "bomb": (data_url(bomb(60_000)), "is too large: "),
    "large": (data_url(bomb(101)), "is too large: 101 x 101 pixels"),
    "cut off": (data_url(WHOLE[:60]), "holds no image that can be read"),
    "text": (data_url(b"no image"), "not_an_image"),
    "empty": (data_url(b""), "empty_file"),
    "script": (
        data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "not_an_image",
    ),
    "program": (data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/x-eps"), "not_an_image"),
    "html": (data_url(b"<html>", "text/html"), "is of type text/html"),
    "base64": ("data:image/png;base64,!!!!", "is no base64"),
    "no base64": ("data:image/png,abc", "is no data URL in base64"),
    "address": ("http://127.0.0.1/a.png", "this server fetches none"),
    "file": ("file:///etc/passwd", "this server fetches none"),
    "path": ("/etc/passwd", "this server fetches none"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_cannot_be_used(small: Running, name: str) -> None:
    url, said = PICTURES[name]
    answered = small.post(body(messages=question(ASKED, part(url))))
    assert answered.status_code == 400
    error = answered.json()["error"]
    assert error["code"] == "invalid_image"
    assert error["param"] == "messages[0].content[1]"
    assert said in error["message"]


def test_a_line_of_a_picture_is_no_bomb(server: Running) -> None:
    """Padded as it is, it would take 30 GB."""
    line = Image.new("1", (100_000, 500), 1)
    answered = server.post(body(messages=question(ASKED, part(data_url(encoded(line))))))
    assert answered.status_code == 200


def test_two_hundred_pictures(small: Running) -> None:
    answered = small.post(body(messages=question(ASKED, *[image_part()] * 200)))
    assert answered.status_code == 400
    assert answered.json()["error"]["code"] == "too_many_images"
    assert "200 images, and the limit is 3" in answered.json()["error"]["message"]


@pytest.mark.parametrize("length", [300, 100_000])
def test_an_endless_prompt(small: Running, length: int) -> None:
    answered = small.post(body(messages=question("x" * length)))
    assert answered.status_code == 400
    assert answered.json()["error"]["code"] == "context_length_exceeded"


def test_an_answer_has_the_room_that_a_long_prompt_leaves(long_run: Path) -> None:
    with running(long_run, limits=Limits(prompt_tokens=4096, new_tokens=5000)) as server:
        answered = server.post(body(messages=question("x" * 3900), max_tokens=4000)).json()
        assert answered["choices"][0]["finish_reason"] == "length"
        assert answered["usage"]["total_tokens"] == 4096
        room = answered["usage"]["completion_tokens"]
        assert answered["warnings"] == [
            f"4000 new tokens are asked for, and the answer has at most {room}: the server's "
            "limit, or what the model's context has room for."
        ]
        full = server.post(body(messages=question("x" * (3900 + room))))
        assert full.status_code == 400
        assert "and 1 new tokens, and the limit is 4096" in full.json()["error"]["message"]


NAMES = {f"a{i}": 1 for i in range(30_000)}
EMPTY = {"type": "text", "text": ""}
CROWDS: dict[str, dict[str, Any]] = {
    "messages of numbers": {"messages": [1] * 100_000},
    "empty messages": {"messages": [{"role": "user", "content": ""}] * 20_000},
    "parts of numbers": {"messages": [{"role": "user", "content": [1] * 100_000}]},
    "empty parts": {"messages": [{"role": "user", "content": [EMPTY] * 20_000}]},
    "stops": {"stop": [1] * 100_000},
    "parameters": NAMES,
    "names in a part": {"messages": [{"role": "user", "content": [EMPTY | NAMES]}]},
}


@pytest.mark.parametrize("name", CROWDS)
def test_a_crowd_is_refused_at_once(server: Running, name: str) -> None:
    """Each error of a million was made a text, while nobody else was served."""
    asked = json.dumps({"model": NAME, "messages": question(), **CROWDS[name]}).encode()
    began = time.process_time()
    with pytest.raises(APIError) as caught:
        read_request(asked, ChatRequest)
    assert time.process_time() - began < 0.5
    assert len(caught.value.sentence) < 200
    assert server.post(json.loads(asked)).status_code == 400


def test_more_messages_than_the_model_reads(small: Running) -> None:
    answered = small.post(body(messages=[{"role": "user", "content": ""}] * 201))
    assert answered.json()["error"]["code"] == "context_length_exceeded"
    assert "more than 200 tokens" in answered.json()["error"]["message"]


@pytest.mark.parametrize(
    "changes",
    [{"x" * 100_000: 1}, {"messages": [{"role": "user", "content": [{"type": "x" * 100_000}]}]}],
    ids=["name", "type"],
)
def test_what_was_sent_is_not_quoted_at_length(small: Running, changes: dict[str, Any]) -> None:
    answered = small.post(body(**changes))
    assert answered.status_code == 400
    assert len(answered.text) < 1000


def test_a_body_that_is_too_large(small: Running) -> None:
    answered = small.post(body(messages=question("x" * 500_000)))
    assert answered.status_code == 413
    assert answered.json()["error"]["type"] == "invalid_request_error"

    def pieces() -> Iterator[bytes]:  # no length is told beforehand
        yield from [b" " * 10_000] * 50

    headers = {"Content-Type": "application/json"}
    path = f"{small.url}/v1/chat/completions"
    assert httpx.post(path, content=pieces(), headers=headers).status_code == 413


def test_a_body_that_never_ends_is_cut_off(small: Running) -> None:
    head = HEAD + b"Content-Length: 99999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(small.url.rpartition(":")[2]))) as raw:
        raw.sendall(head)
        raw.settimeout(10)
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}'],
)
def test_malformed_json(small: Running, content: bytes) -> None:
    answered = httpx.post(
        f"{small.url}/v1/chat/completions", content=content,
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert answered.status_code == 400
    assert answered.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", None])
def test_other_content_types(small: Running, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answered = httpx.post(
        f"{small.url}/v1/chat/completions", content=json.dumps(body()), headers=headers
    )
    assert answered.status_code == 415
    assert "send application/json" in answered.json()["error"]["message"]


def test_paths_and_methods_that_are_not_there(small: Running) -> None:
    assert small.get("/v1/embeddings").json()["error"]["type"] == "invalid_request_error"
    assert small.get("/v1/embeddings").status_code == 404
    assert small.get("/v1/chat/completions").status_code == 405
    assert small.get("/static/../access.py").status_code == 404
    assert small.get("/static/%2e%2e/access.py").status_code == 404


def test_a_page_from_elsewhere_cannot_ask(small: Running) -> None:
    answered = small.post(body(), headers={"Host": "evil.example"})
    assert answered.status_code == 403
    assert small.post(body(), headers={"Host": "localhost:1234"}).status_code == 200


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def number(server: Running, name: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.split()[0] == name)


def test_a_client_that_goes_in_mid_stream(long_run: Path) -> None:
    with running(long_run, limits=Limits(rows=1, new_tokens=3000)) as server:
        asked = body(max_tokens=3000, stream=True)
        path = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", path, json=asked, timeout=60) as answered:
            lines = answered.iter_lines()
            for _ in range(8):
                next(lines)
        wait_for(lambda: number(server, "aligntrain_rows") == 0)
        assert number(server, "aligntrain_new_tokens_total") < 3000
        assert number(server, "aligntrain_requests_in_flight") == 0
        assert server.post(body(max_tokens=3)).json()["choices"][0]["message"]["content"] == "!!!"


def test_a_client_that_goes_while_it_waits(long_run: Path) -> None:
    with running(long_run, limits=Limits(rows=1, new_tokens=3000)) as server:
        path = f"{server.url}/v1/chat/completions"
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(path, json=body(max_tokens=3000), timeout=0.2)
        wait_for(lambda: number(server, "aligntrain_requests_in_flight") == 0)
        wait_for(lambda: number(server, "aligntrain_rows") == 0)
        assert 'status="499"' in server.get("/metrics").text


@pytest.mark.slow
def test_a_request_is_let_go_while_it_is_answered(long_run: Path) -> None:
    """With its images, of which there may be many megabytes of text."""
    gc.collect()  # what earlier tests left
    with running(long_run, limits=Limits(rows=1, new_tokens=1500)) as server:
        asked = body(max_tokens=1500)
        waiting = threading.Thread(target=lambda: server.post(asked))
        waiting.start()
        wait_for(lambda: number(server, "aligntrain_new_tokens_total") > 5)
        held = [one for one in gc.get_objects() if type(one) is ChatRequest]
        assert number(server, "aligntrain_requests_in_flight") == 1
        assert not held
        waiting.join(60)


def test_a_full_queue_says_when_to_come_again(long_run: Path) -> None:
    with running(long_run, limits=Limits(rows=1, queue=1, new_tokens=3000)) as server:
        path = f"{server.url}/v1/chat/completions"
        asked = body(max_tokens=3000, stream=True)
        with httpx.stream("POST", path, json=asked, timeout=60) as first:
            lines = first.iter_lines()  # without which httpx hangs up
            next(lines)
            waiting = threading.Thread(target=lambda: server.post(body(max_tokens=2)))
            waiting.start()
            wait_for(lambda: number(server, "aligntrain_requests_in_flight") == 2)
            answered = server.post(body(max_tokens=2))
            assert answered.status_code == 429
            assert 1 <= int(answered.headers["Retry-After"]) <= 60
            assert answered.json()["error"]["type"] == "rate_limit_error"
            with server.client() as client, pytest.raises(openai.RateLimitError):
                client.chat.completions.create(model=NAME, messages=question())
        waiting.join(60)
        # A client that is patient gets its answer.
        with server.client(max_retries=5) as client:
            said = client.chat.completions.create(model=NAME, messages=question(), max_tokens=2)
            assert said.choices[0].message.content == "!!"


def test_answers_that_take_too_long(long_run: Path) -> None:
    with running(long_run, limits=Limits(new_tokens=3000, timeout=1)) as server:
        # The model writes some hundred tokens a second.
        answered = server.post(body(max_tokens=3000))
        assert answered.status_code == 408
        assert answered.headers["x-should-retry"] == "false"
        with server.client(max_retries=2) as client, pytest.raises(openai.APIStatusError):
            client.chat.completions.create(model=NAME, messages=question(), max_tokens=3000)
        counted = 'aligntrain_requests_total{status="408"}'
        assert number(server, counted) == 2  # the client has not asked again
        assert answered.json()["error"]["code"] == "timeout"
        with server.client() as client, pytest.raises(openai.APIError, match="not ready in time"):
            list(client.chat.completions.create(
                model=NAME, messages=question(), max_tokens=3000, stream=True))  # fmt: skip
        wait_for(lambda: number(server, "aligntrain_rows") == 0)
        assert server.post(body(max_tokens=2)).status_code == 200


def test_a_client_that_sends_nothing(long_run: Path) -> None:
    with running(long_run, limits=Limits(timeout=1)) as server:
        port = int(server.url.rpartition(":")[2])
        head = HEAD + b"Content-Length: 10\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(head)
            raw.settimeout(10)
            assert raw.recv(100).startswith(b"HTTP/1.1 408")
