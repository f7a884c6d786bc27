"""An OpenAI-compatible endpoint on this machine that replies as a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], str | int | tuple[int, Any] | bytes | None]
"""From what is asked to the reply's text (None: it has none), to a status, alone or with a body, or
to bytes in the place of all that HTTP would say.
"""


@contextmanager
def judging(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The base URL of the endpoint, and all that it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "path": self.path, "key": self.headers["Authorization"]})
            said = reply(body)
            if isinstance(said, bytes):
                self.wfile.write(said)
                return
            status, content = said if isinstance(said, tuple) else (said, {"error": "no"})
            if not isinstance(status, int):
                message = {"role": "assistant", "content": said}
                status, content = 200, {"choices": [{"message": message}]}
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.send_header("Retry-After-Ms", "10")  # openai's client would wait for seconds
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
