"""pyarrow file systems for locations."""

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from alignshared.errors import InputError, one_line
from alignshared.stores.options import StorageOptions

_S3 = ("s3",)
_GCS = ("gs", "gcs")
_HUB = "hf"
_QUERY = re.compile(r"\?\w+=")
_OPEN_AT_ONCE = 16


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
        return _local_path(text)
    rest = rest.rstrip("/")
    bucket = rest.partition("/")[0]
    if scheme in (*_S3, *_GCS) and (_QUERY.search(rest) or "@" in bucket or ":" in bucket):
        raise InputError(  # does not quote the location, which may hold a secret
            f"a location {scheme}://… may not carry options or credentials; give them with "
            "--storage-options, or in the environment."
        )
    if not bucket:
        raise InputError(f"{text} names no bucket; give {scheme}://bucket/folder.")
    return f"{scheme}://{rest}"


def lies_within(location: str, folder: str) -> bool:
    """Whether `location` is `folder` or inside it, after resolving local links."""
    inner, outer = (_real(normal_location(place)) for place in (location, folder))
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")


def open_filesystem(location: str, options: StorageOptions) -> tuple[fs.FileSystem, str]:
    """Return the file system of `location`, as normalised by `normal_location`, and its path there.

    Raises:
        InputError: the file system is unknown or unreachable.
    """
    if not is_remote(location):
        return fs.LocalFileSystem(), location
    scheme, _, path = location.partition("://")
    try:
        if scheme in _S3:
            return _s3(options, _region(options, path.partition("/")[0]), os.getpid()), path
        if scheme in _GCS:
            return _gcs(options, os.getpid()), path
        if scheme == _HUB:
            from alignshared.stores.hub import hub_filesystem

            return hub_filesystem(), path
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InputError(f"{location} cannot be opened: {one_line(error)}.") from error


def _local_path(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{uri} names another machine; give file:///path of a file on this one.")
    return os.path.abspath(unquote(parts.path))


def _real(location: str) -> str:
    return location if is_remote(location) else os.path.realpath(location)


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
    given: dict[str, Any] = {"scheme": options.scheme, "endpoint_override": _gcs_host(options)}
    return fs.GcsFileSystem(
        anonymous=options.anonymous, **{key: value for key, value in given.items() if value}
    )


def _gcs_host(options: StorageOptions) -> str | None:
    return options.endpoint_override and options.endpoint_override.rpartition("://")[2]
