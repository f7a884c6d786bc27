"""A Hub on this machine that has one dataset, whose `main` may move on."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Files = dict[str, bytes]


@dataclass
class Hub:
    """The files of each commit, and which of these `main` is."""

    commits: dict[str, Files]
    main: str


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = re.fullmatch(r"/(api/)?datasets/[^/]+/[^/]+(?:/[a-z]+/([^/]+)/?(.*))?", self.path)
        commit = self.hub.main if asked is None or asked[2] in (None, "main") else asked[2]
        files = self.hub.commits.get(commit, {})
        headers = {"X-Repo-Commit": commit}
        if asked and asked[1]:
            siblings = [{"rfilename": name} for name in files]
            about = {"id": "owner/name", "sha": commit, "siblings": siblings, "private": False}
            self._answer(200, json.dumps(about).encode(), headers)
        elif asked and asked[3] in files:
            tag = {"ETag": f'"{hash(files[asked[3]]):x}"'}
            self._answer(200, files[asked[3]], headers | tag)
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(hub: Hub, cache: Path) -> Iterator[None]:
    """`hub` is what the Hub's client asks, and it keeps files in `cache`."""
    from huggingface_hub import constants

    handler = type("Handler", (_Handler,), {"hub": hub})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        pytest.MonkeyPatch.context() as m,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        m.setattr(constants, "HF_HUB_OFFLINE", False)
        m.setattr(constants, "HF_HUB_CACHE", str(cache))
        m.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        m.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield
        server.shutdown()


@contextmanager
def unreachable(cache: Path) -> Iterator[None]:
    """No Hub; what was kept in `cache` is there."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as m:
        m.setattr(constants, "HF_HUB_OFFLINE", True)
        m.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield
