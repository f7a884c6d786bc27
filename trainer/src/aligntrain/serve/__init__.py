"""OpenAI-compatible HTTP server for a trained model, with a page to try it.

From the request inwards: `server` (process, connections), `app` (routes, access), `completions`
(a request and its response), `protocol` and `responses` (OpenAI's bodies), `service` (admission,
prompts), `images` (data URLs, fetching), `engine` (continuous batching), `decoding` (its rows),
`grammar` (answers in JSON).
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from alignshared import InputError
from aligntrain.serve.settings import Limits, Settings

__all__ = ["Limits", "Settings", "serve"]

_NEEDED = ("httpx", "llguidance", "prometheus_client", "psutil", "starlette", "uvicorn")


def serve(
    folder: str | Path,
    settings: Settings | None = None,
    *,
    ready: Callable[[str, str], None] = lambda _name, _url: None,
) -> None:
    """Serve the model in `folder` until SIGINT or SIGTERM; see `server.Server`.

    `ready` is called with the model's name and the server's address once the model is loaded.

    Raises:
        InputError: the model does not exist, cannot be loaded or has no such level, the port is
            taken, or the serving dependencies are not installed.
        AlignError: the model failed and the server cannot continue.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"serving needs {', '.join(missing)}, which is not installed; run "
            "`pip install 'aligntrain[serve]'`."
        )
    from aligntrain.serve.server import Server

    server = Server(folder, settings or Settings())
    server.run(lambda: ready(server.name, server.url))
