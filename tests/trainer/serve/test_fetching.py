"""Images from http addresses: from the public internet alone, and little of it."""

import asyncio
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from aligntrain.serve.images import Fetcher, FetchError, is_public
from aligntrain.serve.service import FETCHING
from aligntrain.serve.settings import Limits
from tests.trainer import tiny
from tests.trainer.serve.serving import ASKED, body, encoded, question, running

PUBLIC = "93.184.215.14"
PICTURE = encoded(tiny.picture(1))


class Images(BaseHTTPRequestHandler):
    """A host with images, and with what is none."""

    seen: list[tuple[str, dict[str, str]]]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # pyright: ignore[reportAttributeAccessIssue]
        if self.path == "/slow":
            time.sleep(1.5)
        target = self.path.removeprefix("/to/")
        kinds = {"/page": "text/html"}
        headers = {"Content-Type": kinds.get(self.path, "image/png")}
        if target != self.path:
            headers["Location"] = target
        if self.path == "/zip":
            headers["Content-Encoding"] = "gzip"
        data = PICTURE + b"\0" * (50_000 if self.path == "/large" else 0)
        if self.path != "/endless":
            headers["Content-Length"] = str(len(data))
        self.send_response(302 if target != self.path else 404 if self.path == "/gone" else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client has had enough
            self.wfile.write(data)
            if self.path == "/endless":
                self.wfile.write(b"\0" * 10_000_000)


class ToLocal(httpx.AsyncHTTPTransport):
    """Stands in for the internet: its one public address is the server of this test."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host == PUBLIC, "it connects to what was checked"
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return await super().handle_async_request(request)


@pytest.fixture
def host() -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Images) as server:
        server.daemon_threads = True
        server.seen = []  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


NAMES = {
    "images.example": [PUBLIC],
    "inside.example": ["10.0.0.8"],
    "loop.example": ["127.0.0.1"],
    "half.example": [PUBLIC, "192.168.1.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
}


class Names:
    """A resolver that counts, and of which a name may mean something else the second time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host == "rebinds.example":
            return [PUBLIC] if self.asked.count(host) == 1 else ["127.0.0.1"]
        if host not in NAMES:
            raise OSError("no such host")
        return NAMES[host]


class Waiting(Names):
    """One that takes its time, and says how many waited for it at once."""

    now = most = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.2)
        self.now -= 1
        return await super().__call__(host, port)


def fetch(host: Any, address: str, **options: Any) -> tuple[bytes, Names]:
    names = Names()
    fetcher = Fetcher(
        **{"size": 20_000, "seconds": 5.0, "resolve": names, **options},
        transport=lambda: ToLocal(host.server_address[1]),
    )
    return asyncio.run(fetcher.fetch(address)), names


@pytest.mark.parametrize(
    "address",
    [
        "http://images.example/a.png",
        "http://images.example:8080/a.png?b=c",
        "http://images.example/to//b.png",
        "http://images.example/to/http://images.example/to/http://images.example/c.png",
        "http://rebinds.example/once.png",
    ],
)
def test_pictures_of_the_public_internet(host: Any, address: str) -> None:
    data, names = fetch(host, address)
    assert data == PICTURE
    path, headers = host.seen[-1]
    assert path.rpartition("?")[0] or path.endswith(".png")
    assert headers["Host"].startswith(names.asked[0])
    assert not {"Cookie", "Authorization"} & set(headers)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://inside.example/a.png", "not on the public internet"),
        ("http://loop.example/a.png", "not on the public internet"),
        ("http://half.example/a.png", "not on the public internet"),
        ("http://mapped.example/a.png", "not on the public internet"),
        ("http://images.example/to/http://loop.example/a.png", "not on the public internet"),
        ("http://rebinds.example/to/http://rebinds.example/a.png", "not on the public internet"),
        ("http://images.example/to/ftp://images.example/a.png", "no http or https address"),
        ("http://images.example/to/file:///etc/passwd", "no http or https address"),
        ("http://nobody.example/a.png", "host that is not found"),
        ("http://me:secret@images.example/a.png", "user's name"),
        ("http:///a.png", "no http or https address"),
        ("file:///etc/passwd", "no http or https address"),
        ("http://images.example/" + "to//" * 5 + "a.png", "more than 3 redirects"),
        ("http://images.example/page", "of no image's type"),
        ("http://images.example/large", "more than 20,000 bytes"),
        ("http://images.example/endless", "more than 20,000 bytes"),
        ("http://images.example/zip", "came compressed"),
        ("http://images.example/gone", "status 404"),
        ("https://images.example/a.png", "cannot be fetched"),
        ("http://images.example:99999/a.png", "at port 99999"),
        ("http://images.example/to/http://xn--/", "cannot be fetched"),
        ("http://images.example/to/http://[::1", "cannot be fetched|can be read"),
    ],
)
def test_what_is_not_fetched(host: Any, address: str, said: str) -> None:
    with pytest.raises(FetchError, match=said):
        fetch(host, address)


def test_what_takes_too_long(host: Any) -> None:
    with pytest.raises(FetchError, match=r"within 0\.3 seconds"):
        fetch(host, "http://images.example/slow", seconds=0.3)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1",
        "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1",
        "fec0::1",
        "2001:db8::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
        "2002:7f00:1::", "2002:a00:1::1", "no address", "",
        "192.0.0.192", "168.63.129.16", "192.88.99.1", "3fff::1", "::ffff:192.0.0.192",
        "64:ff9b::a83f:8110", "100.100.100.200", "fd00:ec2::254",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["a" * 64 + ".com", "a..b", "xn--"])
def test_names_that_cannot_be(host: str) -> None:
    with pytest.raises(FetchError, match=r"host that is not found|no address that can be read"):
        asyncio.run(Fetcher().fetch(f"http://{host}/x"))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
    ],
)
def test_the_machines_own_resolver_is_checked(host: str) -> None:
    with pytest.raises(FetchError, match=r"not on the public internet|host that is not found"):
        asyncio.run(Fetcher().fetch(f"http://{host}/a.png"))


def test_a_server_that_fetches(run: Path, host: Any) -> None:
    fetcher = Fetcher(resolve=Names(), transport=lambda: ToLocal(host.server_address[1]))

    def asked(url: str) -> dict[str, Any]:
        return body(messages=question(ASKED, {"type": "image_url", "image_url": {"url": url}}))

    with running(run, fetcher=fetcher) as server:
        sent = server.post(body())
        fetched = server.post(asked("http://images.example/a.png"))
        assert fetched.json()["choices"] == sent.json()["choices"]
        refused = server.post(asked("http://inside.example/a.png"))
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_image"
        assert "not on the public internet" in refused.json()["error"]["message"]


def test_what_is_fetched_for_a_request_is_limited_in_all(run: Path, host: Any) -> None:
    fetcher = Fetcher(resolve=Names(), transport=lambda: ToLocal(host.server_address[1]))
    part = {"type": "image_url", "image_url": {"url": "http://images.example/a.png"}}
    limits = Limits(body=len(PICTURE) * 5 // 2)
    with running(run, fetcher=fetcher, limits=limits) as server:
        assert server.post(body(messages=question(ASKED, part, part))).status_code == 200
        refused = server.post(body(messages=question(ASKED, *[part] * 3)))
        assert refused.status_code == 400
        said = refused.json()["error"]["message"]
        assert f"more than {limits.body - 2 * len(PICTURE):,} bytes, which is what" in said


def test_few_requests_have_their_pictures_fetched_at_once(run: Path, host: Any) -> None:
    names = Waiting()
    fetcher = Fetcher(resolve=names, transport=lambda: ToLocal(host.server_address[1]))
    part = {"type": "image_url", "image_url": {"url": "http://images.example/a.png"}}
    with running(run, fetcher=fetcher) as server, ThreadPoolExecutor(10) as pool:
        asked = body(messages=question(ASKED, part), max_tokens=1)
        fetched = [pool.submit(server.post, asked) for _ in range(10)]
        assert server.post(body(max_tokens=1)).status_code == 200  # others do not wait for them
        assert {one.result().status_code for one in fetched} == {200}
    assert names.most == FETCHING


def test_what_the_server_fails_at_is_counted(run: Path) -> None:
    async def broken(host: str, port: int) -> list[str]:
        raise TypeError("a bug")

    part = {"type": "image_url", "image_url": {"url": "http://images.example/a.png"}}
    with running(run, fetcher=Fetcher(resolve=broken)) as server:
        assert server.post(body(messages=question(ASKED, part))).status_code == 500
        assert 'aligntrain_requests_total{status="500"} 1.0' in server.get("/metrics").text


def test_a_server_that_was_told_to_fetch_does_so_with_care(run: Path) -> None:
    with running(run, image_urls=True) as server:
        part = {"type": "image_url", "image_url": {"url": f"{server.url}/health"}}
        refused = server.post(body(messages=question(ASKED, part)))
        assert refused.status_code == 400
        assert "not on the public internet" in refused.json()["error"]["message"]
