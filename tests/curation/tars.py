"""Tars for tests, good and hostile."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.curation.pictures import photo

Member = tuple[str, bytes | tarfile.TarInfo]


def sample(key: str, seed: int = 0, **metadata: Any) -> list[Member]:
    """The members of a whole sample, in the order in which WebDataset's writer has them."""
    members: list[Member] = [(f"{key}.jpg", photo(seed))]
    if metadata:
        members.append((f"{key}.json", json.dumps(metadata).encode()))
    return [*members, (f"{key}.txt", f"a picture of {key}".encode())]


def write_tar(path: Path, members: Sequence[Member], **options: Any) -> Path:
    """A tar of `members`: names with their content, or a header that is no file's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, options.pop("mode", "w"), **options) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
                continue
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def good_tar(path: Path, count: int = 6, mode: str = "w", **metadata: Any) -> Path:
    """A tar of `count` whole samples `000000000`, `000000001` and so on."""
    keys = [f"{n:09d}" for n in range(count)]
    members = [m for n, key in enumerate(keys) for m in sample(key, n, **metadata)]
    return write_tar(path, members, mode=mode)


def link(kind: bytes, to: str = "/etc/passwd") -> tarfile.TarInfo:
    """The header of a link to `to`, of a device or of a pipe."""
    header = tarfile.TarInfo()
    header.type = kind
    header.linkname = to
    return header
