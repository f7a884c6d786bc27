"""A stand-in for the Hugging Face Hub on this machine, to write to and to read from.

It speaks what the Hub's client asks of it: who the token's owner is, repositories made and looked
up, uploads (small files in the commit, large ones as Git LFS's), and files and their listing.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

OWNER, TOKEN = "owner", "hf_of_the_owner"
LARGE = 10_000
"""Bytes from which a file goes the way of large ones."""

_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(.*))?)?")
_FILE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)")
_LFS = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """The files of `main`, the number of commits, and what it is."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    commits: int = 0

    @property
    def sha(self) -> str:
        """Of the newest commit."""
        return f"{self.commits:040x}"


class Hub(ThreadingHTTPServer):
    """Repositories by kind (`models`, `datasets`, `spaces`) and name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.role = "write"
        self.refuses: str | None = None
        """Beginning of a path that is answered with an error of the server."""
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Endpoint for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._reply()

    def do_GET(self) -> None:
        self._reply()

    def do_POST(self) -> None:
        self._reply()

    def do_PUT(self) -> None:
        self._reply()

    def _reply(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if self.server.refuses and path.startswith(self.server.refuses):
            self._json({"error": "Forbidden: you may not write here"}, 403)
        elif path == "/":
            self._json({})
        elif path.startswith("/large/"):
            self.server.large[path.removeprefix("/large/")] = body
            self._json({})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/whoami-v2":
            self._who()
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := _LFS.fullmatch(path):
            self._large(json.loads(body))
        elif found := _API.fullmatch(path):
            self._repository(found, body)
        elif found := _FILE.fullmatch(path):
            self._file(self._found(found[1] or "models", found[2]), found[4])
        else:
            self._json({"error": f"nothing at {path}"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def _by_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _found(self, kind: str, name: str) -> Repository | None:
        repository = self.server.repositories.get((kind, name))
        hidden = repository is not None and repository.private and not self._by_owner
        return None if hidden else repository

    def _who(self) -> None:
        if not self._by_owner:
            self._json({"error": "Invalid username or password."}, 401)
            return
        told = {"accessToken": {"role": self.server.role, "displayName": "of the tests"}}
        self._json({"type": "user", "name": OWNER, "orgs": [{"name": "group"}], "auth": told})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        if (kind, name) in self.server.repositories:
            self._json({"error": "You already created this repo"}, 409)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[kind, name] = Repository(private=bool(private))
        self._json({"url": f"{self.server.url}/{'' if kind == 'models' else f'{kind}/'}{name}"})

    def _large(self, asked: dict[str, Any]) -> None:
        objects: list[dict[str, Any]] = []
        for each in asked["objects"]:
            there = each["oid"] in self.server.large
            upload = {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}
            objects.append(each if there else {**each, "actions": upload})
        self._json({"transfer": "basic", "objects": objects})

    def _repository(self, found: re.Match[str], body: bytes) -> None:
        kind, name, what, revision, below = found.groups()
        repository = self._found(kind, name)
        if repository is None or revision not in (None, "main", repository.sha):
            code = "RepoNotFound" if repository is None else "RevisionNotFound"
            self._json({"error": "not found"}, 404, {"X-Error-Code": code})
        elif what == "preupload":
            asked = json.loads(body)["files"]
            self._json({"files": [_plan(repository, file) for file in asked]})
        elif what == "commit":
            self._commit(kind, name, repository, body)
        elif what == "tree":
            inside = (below or "").strip("/")
            self._json([e for e in _entries(repository) if e["path"].startswith(inside)])
        elif what == "paths-info":
            paths = json.loads(body)["paths"]
            self._json([e for e in _entries(repository) if e["path"] in paths])
        else:
            siblings = [{"rfilename": file} for file in repository.files]
            self._json(
                {"id": name, "sha": repository.sha, "private": repository.private,
                 "siblings": siblings, "tags": []}
            )  # fmt: skip

    def _commit(self, kind: str, name: str, repository: Repository, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                content = value["content"]
                assert value["encoding"] == "base64"
                repository.files[value["path"]] = base64.b64decode(content)
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        url = f"{self.server.url}/{'' if kind == 'models' else f'{kind}/'}{name}"
        self._json({"commitUrl": f"{url}/commit/{repository.sha}", "commitOid": repository.sha})

    def _file(self, repository: Repository | None, name: str) -> None:
        if repository is None or name not in repository.files:
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            self._json({"error": "not found"}, 404, {"X-Error-Code": code})
            return
        data = repository.files[name]
        tag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": repository.sha, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, data, headers)
            return
        begin, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self._answer(206, data[begin:end], headers)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._answer(status, json.dumps(value).encode(), kind | (headers or {}))

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """An empty Hub."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.shutdown()


def _plan(repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
    """How a file is to be uploaded, and the digest of that of its name, if there is one."""
    path, large = file["path"], file["size"] >= LARGE
    plan = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if path not in repository.files:
        return plan
    data = repository.files[path]
    return plan | {"oid": hashlib.sha256(data).hexdigest() if large else _blob(data)}


def _blob(data: bytes) -> str:
    """Git's digest of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entries(repository: Repository) -> list[dict[str, Any]]:
    folders = {name.rpartition("/")[0] for name in repository.files} - {""}
    listed = [
        {"type": "directory", "path": folder, "oid": "d" * 40, "size": 0} for folder in folders
    ]
    for name, data in repository.files.items():
        listed.append({"type": "file", "path": name, "oid": _blob(data), "size": len(data)})
    return listed


@contextmanager
def answering(cache: Path, token: str | None = TOKEN) -> Iterator[Hub]:
    """An empty Hub that this process's client asks with `token`, keeping downloads in `cache`."""
    from huggingface_hub import constants

    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # which has a protocol of its own
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache / "no-token"),
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
        }.items():
            patch.setattr(constants, name, value)
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        if token is None:
            patch.delenv("HF_TOKEN", raising=False)
        else:
            patch.setenv("HF_TOKEN", token)
        yield hub


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Of a process that asks `hub` with the owner's token."""
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    return {**os.environ, **told, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
