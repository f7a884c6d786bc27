"""A trained model behind HTTP: OpenAI's chat endpoint with pictures, and a page to try it.

From the request inwards: `connections` (closed where nothing comes), `app` (routes), `access` (who
may ask), `schema` (what may be asked), `pictures` and `fetching` (what is to be seen), `prompts`
(what the model reads), `service` (as many as there is room for), `engine` (one thread that writes
all answers together), `streaming` and `replies` (what goes back). `server` runs them.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from alignshared import InputError
from aligntrain.serve.settings import Limits, Settings

__all__ = ["Limits", "Settings", "serve"]

_NEEDED = ("httpx", "prometheus_client", "starlette", "uvicorn")


def serve(
    folder: str | Path,
    settings: Settings | None = None,
    *,
    ready: Callable[[str, str], None] = lambda _name, _url: None,
) -> None:
    """Serve the model in `folder` until SIGINT or SIGTERM; see `server.Server`.

    `ready` is called with the model's name and the server's address when it can be asked.

    Raises:
        InputError: there is no such model, it cannot be loaded, the port is taken, or what serving
            needs is not installed.
        AlignError: the model failed in a way from which the server cannot go on.
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
