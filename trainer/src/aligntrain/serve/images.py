"""Images of a request, from `data:` URLs or public http addresses.

Fetching guards against server-side request forgery: a host is resolved once, all its addresses must
be public, and the connection goes to one of these addresses, so DNS rebinding gains nothing.
Redirects are checked in the same way. No proxy, cookie or key is used.
"""

import asyncio
import base64
import binascii
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

from alignshared.images import ImageError, decode_image
from alignshared.rejects import Reason
from aligntrain.serve.protocol import APIError

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The IP addresses of a host, given with its port."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NEVER = [
    ipaddress.ip_network(one)
    for one in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "3fff::/20")
]
"""What some version of Python or all of them call global: a cloud's services to its own machines
(Azure's here, Oracle's in the next), protocol assignments, 6to4 relays, documentation.
"""
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "aligntrain"}


class FetchError(Exception):
    """An image could not be fetched; the message continues `the image …`."""


def is_public(address: str) -> bool:
    """Whether the IP `address`, and any IPv4 address embedded in it, is globally routable."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inside = [ip.sixtofour, *(ip.teredo or ())]
        if ip.is_site_local or any(one is not None and not is_public(str(one)) for one in inside):
            return False
    if any(ip in network for network in _NEVER):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def resolve(host: str, port: int) -> list[str]:
    """Resolve `host` with the system's resolver."""
    loop = asyncio.get_running_loop()
    found: list[Any] = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches images of at most `size` bytes within `seconds`, redirects included.

    `resolve` and `transport` (a new httpx transport per image, which sees addresses only) can be
    replaced, for example to go through a proxy.
    """

    size: int = 20_000_000
    seconds: float = 10.0
    redirects: int = 3
    resolve: Resolve = resolve
    transport: Callable[[], httpx.AsyncBaseTransport] | None = None

    async def fetch(self, address: str, most: int | None = None) -> bytes:
        """Fetch `address`, at most `most` bytes if that is less than `size`.

        Raises:
            FetchError: the address is not public, too large, too slow, not an image, or missing.
        """
        try:
            async with asyncio.timeout(self.seconds):
                return await self._follow(
                    address, self.size if most is None else min(self.size, most)
                )
        except TimeoutError as error:
            raise FetchError(f"did not come within {self.seconds:g} seconds") from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise FetchError(f"cannot be fetched ({type(error).__name__})") from error

    async def _follow(self, address: str, most: int) -> bytes:
        async with httpx.AsyncClient(
            transport=self.transport and self.transport(),
            trust_env=False,
            follow_redirects=False,
            timeout=self.seconds,
        ) as client:
            url = _url(address)
            for _ in range(self.redirects + 1):
                response = await self._get(client, url)
                try:
                    if not response.has_redirect_location:
                        return await self._read(response, most)
                    url = _url(str(url.join(response.headers["Location"])))
                finally:
                    await response.aclose()
        raise FetchError(f"is behind more than {self.redirects} redirects")

    async def _get(self, client: httpx.AsyncClient, url: httpx.URL) -> httpx.Response:
        """The response from the first reachable address of the host."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await self.resolve(url.host, port)
        except (OSError, UnicodeError) as error:  # a label of a name may be too long, or empty
            raise FetchError("has a host that is not found") from error
        if not addresses or not all(is_public(one) for one in addresses):
            raise FetchError("has a host that is not on the public internet")
        failed: httpx.HTTPError | None = None
        for one in addresses:
            request = client.build_request(
                "GET",
                url.copy_with(host=one),
                headers={**_HEADERS, "Host": url.netloc.decode("ascii")},
                # The certificate must be that of the host's name.
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            )
            try:
                return await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error
        raise failed or FetchError("cannot be fetched")

    async def _read(self, response: httpx.Response, most: int) -> bytes:
        headers = response.headers
        if response.status_code != 200:
            raise FetchError(f"cannot be fetched (status {response.status_code})")
        if not headers.get("Content-Type", "").lower().startswith("image/"):
            raise FetchError("is of no image's type")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise FetchError("came compressed, which was not asked for")
        left = ", which is what the images before it have left" if most < self.size else ""
        too_large = f"has more than {most:,} bytes{left}"
        length = headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > most:
            raise FetchError(too_large)
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > most:
                raise FetchError(too_large)
        return bytes(data)


def _url(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
        host = url.host  # decoded only now
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError("has no address that can be read") from error
    if url.scheme not in ("http", "https") or not host:
        raise FetchError("is at no http or https address")
    if (url.port or 0) > 65535:
        raise FetchError(f"is at port {url.port}, which there is not")
    if url.userinfo:
        raise FetchError("has an address with a user's name in it")
    return url


def is_data_url(url: str) -> bool:
    """Whether `url` contains the image itself."""
    return url[:5].lower() == "data:"


def from_data_url(url: str, place: str) -> bytes:
    """Decode the base64 data URL `url` of an image, found at `place` of the request."""
    head, comma, data = url.partition(",")
    kind, _, coding = head[5:].lower().partition(";")
    if not comma or coding.rpartition(";")[2].strip() != "base64":
        raise refused(place, "is no data URL in base64, as in data:image/png;base64,iVBOR…")
    if not kind.startswith("image/"):
        raise refused(place, f"is of type {kind[:80] or 'unknown'}, not of an image's")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(place, f"is no base64 ({error})") from error


def decode(data: bytes, pixels: int, place: str) -> Image.Image:
    """Decode `data` to RGB as training does; its `pixels` are limited before decoding."""
    try:
        return decode_image(data, max_pixels=pixels)
    except ImageError as problem:
        if problem.reason == Reason.TOO_MANY_PIXELS:
            raise refused(place, f"is too large: {problem.detail}") from problem
        raise refused(
            place, f"holds no image that can be read ({problem.reason.value}: {problem.detail})"
        ) from problem


def refused(place: str, why: str) -> APIError:
    """The error for the image at `place`."""
    return APIError(
        400, f"the image at {place} {why.rstrip('.')}.", code="invalid_image", param=place
    )
