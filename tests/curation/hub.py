"""A stand-in for the Hugging Face Hub on this machine: what its client asks of a dataset."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_REVISIONS = f"main|v1|{COMMIT}"


class _Hub(ThreadingHTTPServer):
    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.api = re.compile(rf"/api/datasets/{repo}(?:/(revision|tree)/({_REVISIONS})(/.*)?)?")
        self.file = re.compile(rf"/datasets/{repo}/resolve/(?:{_REVISIONS})/(.*)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        paths = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        self._json([e for e in _entries(self.server.files) if e["path"] in paths])

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, file = self.server.api.fullmatch(path), self.server.file.fullmatch(path)
        if api and api[1] == "tree":
            below = (api[3] or "").strip("/")
            self._json([e for e in _entries(self.server.files) if e["path"].startswith(below)])
        elif api:
            self._json({"id": "owner/pairs", "sha": COMMIT, "siblings": [], "private": False})
        elif file and file[1] in self.server.files:
            self._file(self.server.files[file[1]])
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers = {"ETag": '"e"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted is None:
            self._answer(200, data, headers)
            return
        begin, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self._answer(206, data[begin:end], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub(repo: str, files: dict[str, bytes]) -> Iterator[str]:
    """Serve `files` as the dataset `repo` at the revisions `main` and `v1`; gives the endpoint."""
    with _Hub(repo, files) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    folders = {name.rpartition("/")[0] for name in files} - {""}
    listed = [
        {"type": "directory", "path": folder, "oid": "d" * 40, "size": 0} for folder in folders
    ]
    for name, data in files.items():
        listed.append({"type": "file", "path": name, "oid": "f" * 40, "size": len(data)})
    return listed
