"""Settings and limits of a server."""

import ipaddress
import re
from dataclasses import dataclass, field, fields

from alignshared import InputError

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*?#@]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request.

    `body`: bytes of the request, images included. `images`: images in a request; `pixels`:
    pixels of one image. `prompt_tokens`, `new_tokens`: tokens read and generated, None for the
    model's own limit. `rows`: answers decoded together; `total_tokens`: these rows times the tokens
    of the longest, None for what fits into memory; `queue`: requests that may wait. `timeout`:
    seconds from arrival to the end of the answer.
    """

    body: int = 20_000_000
    images: int = 8
    pixels: int = 50_000_000
    prompt_tokens: int | None = None
    new_tokens: int = 1024
    rows: int = 16
    total_tokens: int | None = None
    queue: int = 128
    timeout: float = 300.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            least = 0 if one.name in ("images", "queue") else 1
            if value is not None and value < least:
                raise InputError(f"the limit {one.name} is {value}; give {least} or more.")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a server.

    `port` 0 picks a free one. `name` is the model's name for clients, by default its folder's.
    Without `api_key` anyone who can reach the port may ask. `image_urls` allows images at public
    http addresses. `device` is torch's, by default a GPU if there is one. `level` is that of
    requests with an image that name none. `hosts` are names at which a local server without a key
    answers beside its own, and `origins` those of web pages that may ask (`*`: any, with a key).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    name: str | None = None
    image_urls: bool = False
    limits: Limits = field(default_factory=Limits)
    device: str | None = None
    level: int | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise InputError("the API key is empty; give one, or leave it out.")
        if not ((key := self.api_key or "").isascii() and key.isprintable()):
            raise InputError(
                "the API key can have letters, digits and signs of ASCII; give another."
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"there is no port {self.port}; give one from 0 to 65535.")
        for host in self.hosts:
            if not _HOST.fullmatch(host):
                raise InputError(
                    f"{host!r} is no host name; give one such as host.docker.internal."
                )
        for origin in self.origins:
            if origin == "*" and self.api_key is None:
                raise InputError(
                    "any web page could use the model; give an API key, or name the origins."
                )
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InputError(
                    f"{origin!r} is no origin; give one such as http://localhost:3000, without a "
                    "path."
                )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an IP address without brackets, is this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
