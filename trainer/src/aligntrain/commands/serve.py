"""`aligntrain serve`."""

from typing import Annotated

import typer

from alignshared.console import results
from aligntrain import terminal


def serve(
    model: Annotated[str, typer.Argument(help="A run folder, or a model's own.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Model name for clients; by default the folder's name.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ALIGNTRAIN_API_KEY", help="Require this API key."),
    ] = None,
    allow_image_urls: Annotated[
        bool,
        typer.Option(
            "--allow-image-urls", help="Fetch images from public http and https addresses."
        ),
    ] = False,
    batch: Annotated[int, typer.Option(help="Maximum requests decoded together.")] = 16,
    queue: Annotated[int, typer.Option(help="Maximum requests in the queue.")] = 128,
    timeout: Annotated[float, typer.Option(help="Time limit of a request, in seconds.")] = 300.0,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 1024,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens of a prompt; by default the model's context.")
    ] = None,
    max_images: Annotated[int, typer.Option(help="Maximum images of a request.")] = 8,
    max_pixels: Annotated[
        float, typer.Option(help="Maximum size of an image, in megapixels.")
    ] = 50,
    max_body: Annotated[float, typer.Option(help="Maximum size of a request, in megabytes.")] = 20,
) -> None:
    """Serve a trained model: an OpenAI-compatible chat endpoint and a web page."""
    from aligntrain.serve import Limits, Settings, serve

    limits = Limits(
        body=round(max_body * 1e6),
        images=max_images,
        pixels=round(max_pixels * 1e6),
        prompt_tokens=max_prompt_tokens,
        new_tokens=max_new_tokens,
        rows=batch,
        queue=queue,
        timeout=timeout,
    )
    terminal.hide_loading()
    settings = Settings(host, port, api_key, name, allow_image_urls, limits)
    say = "{} answers: {}/v1 for OpenAI's clients, {} for a browser"
    serve(model, settings, ready=lambda name, url: results.print(say.format(name, url, url)))
