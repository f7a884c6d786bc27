"""An S3 server of this machine behind a proxy that fails and dawdles as it is told."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BUCKET = "pairs"
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Weather:
    """What the proxy does: answers 500 to every `fail_every`-th request (all, if 1; none, if 0),
    and waits before each answer.
    """

    fail_every: int = 0
    delay_s: float = 0.0
    requests: int = 0
    failures: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def next_fails(self) -> bool:
        """Count one more request; whether it is to fail."""
        with self._guard:
            self.requests += 1
            fails = self.fail_every > 0 and self.requests % self.fail_every == 0
            self.failures += fails
            return fails


@contextmanager
def s3_behind_proxy() -> Iterator[Weather]:
    """A server with one bucket; the environment points to its proxy."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    weather = Weather()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(host, port, weather))
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        made = http.client.HTTPConnection(host, port)
        made.request("PUT", f"/{BUCKET}")
        assert made.getresponse().status == 200
        made.close()
        try:
            yield weather
        finally:
            proxy.shutdown()
            proxy.server_close()
            thread.join()
            server.stop()


def _handler(host: str, port: int, weather: Weather) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self._body()
            time.sleep(weather.delay_s)
            if weather.next_fails():
                self.send_response(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            ahead = http.client.HTTPConnection(host, port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            ahead.request(self.command, self.path, body, headers)
            answer = ahead.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP | {"date", "server"}:
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", size or str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            ahead.close()

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
