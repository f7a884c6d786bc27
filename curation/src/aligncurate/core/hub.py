"""Files of the Hugging Face Hub: cached or downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from alignshared.stores.filesystems import require_hub


class HubError(Exception):
    """A file is neither cached nor available; the message is a clause with the reason."""


def hub_file(repo: str, names: Sequence[str], kind: Literal["model", "dataset"] = "model") -> Path:
    """Return the first file of `names` in `repo`.

    Raises:
        HubError: none is cached, and the Hub has none or does not respond.
    """
    for name in names:
        cached = try_to_load_from_cache(repo, name, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached)
    try:
        require_hub()
    except OSError as error:
        raise HubError(_first_line(error)) from error
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, repo_type=kind))
        except (OSError, ValueError, HfHubHTTPError) as error:
            if not isinstance(error, EntryNotFoundError) or name == names[-1]:
                raise HubError(_first_line(error)) from error
    raise HubError(f"{repo} has none of {', '.join(names)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
