"""The server as a process: it starts, says where, and ends when it is told to."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from alignshared import AlignError, InputError
from aligntrain.cli import app
from aligntrain.serve import Limits, Settings
from aligntrain.serve.server import Connection, Server
from tests.trainer.serve.serving import NAME, body, running

SILENT_AFTER_ONE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"
"""A whole request and the beginning of another, after which uvicorn's own time does not run."""


@contextmanager
def process(run: Path, *options: str, **environment: str) -> Iterator[tuple[Any, str]]:
    """`aligntrain serve` of `run` on a free port, and its address."""
    command = [sys.executable, "-m", "aligntrain.cli", "serve", str(run), "--port", "0", *options]
    code = "from aligntrain.cli import main; main()"
    command[1:3] = ["-c", code]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )  # fmt: skip
    try:
        line = started.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        found = re.search(r"answers: (http://\S+)/v1", line)
        assert found, line + started.stderr.read()  # pyright: ignore[reportOptionalMemberAccess]
        yield started, found[1]
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(long_run: Path, sent: signal.Signals) -> None:
    with process(long_run, ALIGNTRAIN_API_KEY="secret") as (server, url):
        assert httpx.get(f"{url}/health").json() == {"status": "ready"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer secret"}
        # What is being answered is answered to its end.
        asked = body(stream=True, max_tokens=100)
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=asked, headers=key
        ) as answered:
            lines = answered.iter_lines()
            next(lines)
            server.send_signal(sent)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait(20) == 0
        said = server.stderr.read()
        assert "Traceback" not in said
        assert "secret" not in said


def test_health_says_when_it_is_ready(run: Path) -> None:
    server = Server(run, Settings(port=0, device="cpu"))
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,))
    load, wait = server._load, threading.Event()
    server._load = lambda told: (wait.wait(30), load(told))  # type: ignore[method-assign, assignment]
    url = server.url
    thread.start()
    try:
        assert httpx.get(f"{url}/health").status_code == 503
        refused = httpx.post(f"{url}/v1/chat/completions", json=body())
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        assert httpx.get(f"{url}/v1/models").json()["data"] == []
        wait.set()
        assert ready.wait(60)
        assert httpx.get(f"{url}/health").json() == {"status": "ready"}
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == NAME
    finally:
        wait.set()
        server.stop()
        thread.join(60)


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be loaded"):
        Server(tmp_path, Settings(port=0)).run()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_thread_that_dies_ends_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligntrain.serve.engine import Engine

    def broken(_: Engine) -> Any:
        raise TypeError("a bug")

    monkeypatch.setattr(Engine, "_next_requests", broken)
    server = Server(run, Settings(port=0, device="cpu"))
    url = server.url
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            server.run(lambda: threading.Thread(target=ask).start())
        except AlignError as error:
            failed.append(error)

    answered: list[int] = []

    def ask() -> None:
        answered.append(httpx.post(f"{url}/v1/chat/completions", json=body()).status_code)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(60)
    assert answered == [503]
    assert "its model failed (a bug)" in str(failed[0])


def test_the_page_and_its_files_are_all_there_is_to_load(run: Path) -> None:
    with running(run) as server:
        page = server.get("/")
        assert page.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert name.startswith("/static/")
            assert server.get(name).status_code == 200
        static = Path(sys.modules["aligntrain.serve.app"].__file__ or "").with_name("static")
        for file in static.iterdir():
            text = file.read_text(encoding="utf-8").replace(
                'xmlns="http://www.w3.org/2000/svg"', ""
            )
            assert "://" not in text, file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "holds no finished model"),
        (["RUN", "--api-key", " "], "the API key is empty"),
        (["RUN", "--batch", "0"], "the limit rows is 0; give 1 or more"),
        (["RUN", "--host", "192.0.2.77"], "cannot be listened on"),
        (["RUN", "--port", "99999"], "there is no port 99999"),
        (["RUN", "--api-key", "schlüssel"], "can have letters, digits and signs of ASCII"),
        (["RUN", "--api-key", "two\nlines"], "can have letters, digits and signs of ASCII"),
    ],
)
def test_arguments_that_cannot_be(run: Path, arguments: list[str], said: str) -> None:
    given = [str(run) if one == "RUN" else one for one in arguments]
    answered = CliRunner().invoke(app, ["serve", *given])
    assert answered.exit_code == 2
    assert said in " ".join(answered.output.split())


def test_every_local_address_is_one(run: Path) -> None:
    with running(run, host="127.0.0.2") as server:
        assert "//127.0.0.2:" in server.url
        assert server.get("/v1/models").status_code == 200
        for host, status in (
            ("[::1]:80", 200),
            ("LOCALHOST", 200),
            ("127.0.0.1.evil.example", 403),
        ):
            assert server.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost: loc", SILENT_AFTER_ONE])
def test_connections_that_say_nothing_are_closed(
    run: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 0.5)
    with running(run) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(said)
            while raw.recv(1000):
                pass


def test_a_request_may_take_longer_than_its_head(
    long_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 0.2)
    with running(long_run, limits=Limits(new_tokens=300)) as server:
        data = json.dumps(body(max_tokens=300)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            raw.sendall(head + data[:10])
            time.sleep(0.6)
            raw.sendall(data[10:])
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_port_that_is_taken(run: Path) -> None:
    with running(run) as server, pytest.raises(InputError, match="cannot be listened on"):
        Server(run, Settings(port=int(server.url.rpartition(":")[2])))


def test_a_server_for_all_without_a_key_is_warned_of(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("aligntrain"), "propagate", True)
    server = Server(run, Settings(host="0.0.0.0", port=0))
    server._socket.close()
    assert "everybody who reaches 0.0.0.0 may ask" in caplog.text


def test_limits_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match="the limit timeout is 0"):
        Limits(timeout=0)
