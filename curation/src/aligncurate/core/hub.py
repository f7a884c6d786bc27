"""Files of the Hugging Face Hub: from its cache on this machine, else by download."""

import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

_PROBE_TIMEOUT_S = 10


class HubError(Exception):
    """A file is neither in the cache nor to be had; the message is a clause that says why."""


def hub_file(repo: str, names: Sequence[str], kind: Literal["model", "dataset"] = "model") -> Path:
    """The first file of `names` that `repo` has.

    Raises:
        HubError: none is in the cache, and the Hub has none or does not answer.
    """
    for name in names:
        cached = try_to_load_from_cache(repo, name, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached)
    _require_hub()
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, repo_type=kind))
        except (OSError, ValueError, HfHubHTTPError) as error:
            if not isinstance(error, EntryNotFoundError) or name == names[-1]:
                raise HubError(_first_line(error)) from error
    raise HubError(f"{repo} has none of {', '.join(names)}")


def _require_hub() -> None:
    # The Hub's own client tries for half a minute, a line of log for each try.
    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # It answers, which is all that was asked.
    except OSError as error:
        raise HubError(f"{constants.ENDPOINT} does not answer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
