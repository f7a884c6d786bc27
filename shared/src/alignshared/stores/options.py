"""Object store connection settings: endpoint, region, credentials, retries, timeouts.

One set of options applies to the whole process. Unset options come from the environment, as with
any S3 tool: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `~/.aws`. Options are secrets
and never appear in manifests or logs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from alignshared.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class StorageOptions:
    """Keys of `--storage-options KEY=VALUE`; None defers to the environment.

    `endpoint_override` is `host:port` or a URL; `retries` counts attempts at a request; timeouts
    are in seconds.
    """

    endpoint_override: str | None = None
    scheme: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None
    anonymous: bool = False
    retries: int = 5
    connect_timeout: float | None = None
    request_timeout: float | None = None

    def __repr__(self) -> str:
        return "StorageOptions(...)"


_NAMES = tuple(field.name for field in fields(StorageOptions))
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_current = StorageOptions()


def parse_storage_options(pairs: Iterable[str]) -> StorageOptions:
    """Parse `pairs` of the form `KEY=VALUE`.

    Raises:
        InputError: unknown key or invalid value; the message never repeats a value.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if name not in _NAMES:
            known = ", ".join(_NAMES)
            what = repr(name) if equals else "what has no KEY="
            raise InputError(f"--storage-options does not know {what}; give KEY=VALUE of {known}.")
        values[name] = _value(name, text)
    if ("access_key" in values) != ("secret_key" in values):
        raise InputError("--storage-options access_key and secret_key go together; give both.")
    return StorageOptions(**values)


def use_storage_options(options: StorageOptions) -> None:
    """Reach object stores with `options` from now on, in this process and the workers it starts."""
    global _current
    _current = options


def current_storage_options() -> StorageOptions:
    """Options of this process."""
    return _current


def carrying_storage_options(make: Callable[[], T]) -> Callable[[], T]:
    """Wrap `make` for another process, which then uses this one's storage options."""
    return partial(_make_with, _current, make)


def _make_with(options: StorageOptions, make: Callable[[], T]) -> T:
    use_storage_options(options)
    return make()


def _value(name: str, text: str) -> Any:
    try:
        match name:
            case "anonymous":
                return _TRUTHS[text.lower()]
            case "retries" | "connect_timeout" | "request_timeout":
                number = int(text) if name == "retries" else float(text)
                if not number >= 1:
                    raise ValueError(number)
                return number
            case "scheme":
                return {"http": "http", "https": "https"}[text]
            case _:
                return text or None
    except (KeyError, ValueError) as error:
        wanted = {"anonymous": "true or false", "scheme": "http or https"}.get(name, "1 or more")
        raise InputError(f"--storage-options {name} cannot be that; give {wanted}.") from error
