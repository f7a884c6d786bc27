"""pyarrow file systems for locations: on disk, in object stores, on the Hugging Face Hub."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from alignshared.errors import InputError, one_line
from alignshared.stores.options import StorageOptions

_QUERY = re.compile(r"\?\w+=")
_OPEN_AT_ONCE = 16
_PROBE_TIMEOUT_S = 10


def is_remote(location: str) -> bool:
    """Whether `location` is a URI of an object store rather than a path on this machine."""
    return "://" in location


def normal_location(location: str | os.PathLike[str]) -> str:
    """Return `location` as an absolute path, or as a URI without trailing slash.

    Raises:
        InputError: it is a URI that carries options or credentials, or names no bucket.
    """
    text = os.fspath(location)
    if not is_remote(text):
        return os.path.abspath(text)
    scheme, _, rest = text.partition("://")
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise InputError(
                f"{text} names another machine; give file:///path of a file on this one."
            )
        return os.path.abspath(unquote(parts.path))
    rest = rest.rstrip("/")
    bucket = rest.partition("/")[0]
    if scheme in ("s3", "gs", "gcs") and (_QUERY.search(rest) or "@" in bucket or ":" in bucket):
        raise InputError(  # does not quote the location, which may hold a secret
            f"a location {scheme}://… may not carry options or credentials; give them with "
            "--storage-options, or in the environment."
        )
    if not bucket:
        raise InputError(f"{text} names no bucket; give {scheme}://bucket/folder.")
    return f"{scheme}://{rest}"


def lies_within(location: str, folder: str) -> bool:
    """Whether `location` is `folder` or inside it, after resolving local links."""
    places = (normal_location(place) for place in (location, folder))
    inner, outer = (place if is_remote(place) else os.path.realpath(place) for place in places)
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")


def public_name(location: str | os.PathLike[str]) -> str:
    """Return `location` as others may read it, without the folders of this machine.

    A path below the current folder becomes relative to it, any other its last two names. URIs and
    names of models stay as they are.
    """
    text = os.fspath(location)
    if not is_place(text):
        return text
    path, here = Path(os.path.abspath(Path(text).expanduser())), Path.cwd()
    above_home = Path.home() != here and Path.home().is_relative_to(here)
    if path != here and path.is_relative_to(here) and not above_home:
        return path.relative_to(here).as_posix()
    return last_names(os.fspath(path))


def last_names(location: str) -> str:
    """Return the last two names of a path of this machine, or a URI as it is."""
    return location if is_remote(location) else "/".join(Path(location).absolute().parts[1:][-2:])


def is_place(location: str) -> bool:
    """Return whether `location` is a path of this machine, rather than a URI or a model's name."""
    if not location or "://" in location:
        return False
    return location.startswith((os.sep, ".", "~")) or Path(location).exists()


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


def open_filesystem(location: str, options: StorageOptions) -> tuple[fs.FileSystem, str]:
    """Return the file system of `location`, as normalised by `normal_location`, and its path there.

    Raises:
        InputError: the file system is unknown or unreachable.
    """
    if not is_remote(location):
        return fs.LocalFileSystem(), location
    scheme, _, path = location.partition("://")
    try:
        if scheme == "s3":
            return _s3(options, _region(options, path.partition("/")[0]), os.getpid()), path
        if scheme in ("gs", "gcs"):
            return _gcs(options, os.getpid()), path
        if scheme == "hf":
            return _hub(os.getpid()), path
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InputError(f"{location} cannot be opened: {one_line(error)}.") from error


# A client costs a thread pool and a handshake, so it is shared, but not with a forked process,
# which lacks the threads.
@lru_cache(_OPEN_AT_ONCE)
def _s3(options: StorageOptions, region: str, _process: int) -> fs.FileSystem:
    endpoint, scheme = _endpoint(options)
    return fs.S3FileSystem(
        access_key=options.access_key,
        secret_key=options.secret_key,
        session_token=options.session_token,
        anonymous=options.anonymous,
        region=region,
        endpoint_override=endpoint,
        scheme=scheme,
        connect_timeout=options.connect_timeout,
        request_timeout=options.request_timeout,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=options.retries),
        allow_delayed_open=True,  # one request instead of three for a small file
    )


def _endpoint(options: StorageOptions) -> tuple[str | None, str | None]:
    """`host:port` and scheme; options take precedence over the environment."""
    given = (
        options.endpoint_override
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    if given is None or "://" not in given:
        return given, options.scheme
    scheme, _, host = given.rstrip("/").partition("://")
    return host, options.scheme or scheme


def _region(options: StorageOptions, bucket: str) -> str:
    known = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if known:
        return known
    if _endpoint(options)[0]:
        return "us-east-1"  # other stores than Amazon's have one region, and take this for it
    return _region_of(bucket)


@lru_cache(_OPEN_AT_ONCE)
def _region_of(bucket: str) -> str:
    return fs.resolve_s3_region(bucket)


@lru_cache(_OPEN_AT_ONCE)
def _gcs(options: StorageOptions, _process: int) -> fs.FileSystem:
    host = options.endpoint_override and options.endpoint_override.rpartition("://")[2]
    given: dict[str, Any] = {"scheme": options.scheme, "endpoint_override": host}
    return fs.GcsFileSystem(
        anonymous=options.anonymous, **{key: value for key, value in given.items() if value}
    )


@lru_cache(1)
def _hub(_process: int) -> fs.FileSystem:
    """Paths are `datasets/owner/name[@revision]/…`."""
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
        with hub_errors_as_os_errors():
            return super().get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        with hub_errors_as_os_errors():
            return super().get_file_info_selector(selector)

    def open_input_stream(self, path: str) -> Any:
        with hub_errors_as_os_errors():
            return super().open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        with hub_errors_as_os_errors():
            return super().open_input_file(path)


@contextmanager
def hub_errors_as_os_errors() -> Iterator[None]:
    """Raise OSError, with its first line, for whatever the Hub's client raises in the block."""
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP client, and with it the error types, varies with the version.
    client_errors = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception)]
    try:
        yield
    except tuple(kind for kind in client_errors if kind is not Exception) as error:
        raise OSError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
