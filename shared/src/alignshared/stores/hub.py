"""`hf://` locations: reading datasets from the Hugging Face Hub."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pyarrow import fs

from alignshared.errors import InputError

_PROBE_TIMEOUT_S = 10


def require_hub() -> None:
    """Raise OSError with the cause unless the Hub responds.

    The Hub's own client tries for half a minute, a line of log for each try.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # Any answer will do.
    except OSError as error:
        raise OSError(f"{constants.ENDPOINT} does not answer: {_first_line(error)}") from error


def hub_filesystem() -> fs.FileSystem:
    """The Hub as a pyarrow file system; paths are `datasets/owner/name[@revision]/…`.

    Raises:
        InputError: huggingface-hub is not installed.
        OSError: the Hub does not respond.
    """
    return _hub_filesystem(os.getpid())


@lru_cache(1)
def _hub_filesystem(_process: int) -> fs.FileSystem:
    try:
        from huggingface_hub import HfFileSystem
    except ImportError as error:
        raise InputError(
            "hf:// locations need huggingface-hub; install it with `pip install huggingface-hub`."
        ) from error
    require_hub()
    return fs.PyFileSystem(_HubHandler(HfFileSystem()))


class _HubHandler(fs.FSSpecHandler):
    """Raises OSError for whatever the Hub's client raises, as other file systems do."""

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        with _as_os_error():
            return super().get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        with _as_os_error():
            return super().get_file_info_selector(selector)

    def open_input_stream(self, path: str) -> Any:
        with _as_os_error():
            return super().open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        with _as_os_error():
            return super().open_input_file(path)


@contextmanager
def _as_os_error() -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP client, and with it the error types, varies with the version.
    client_errors = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception)]
    try:
        yield
    except tuple(kind for kind in client_errors if kind is not Exception) as error:
        raise OSError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
