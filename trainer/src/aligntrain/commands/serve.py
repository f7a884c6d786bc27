"""`aligntrain serve`."""

from typing import Annotated

import typer

from aligntrain import terminal


def serve(
    model: Annotated[str, typer.Argument(help="A run folder, or a model's own.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; by default its folder's name.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ALIGNTRAIN_API_KEY", help="Answer who knows this key alone."),
    ] = None,
    allow_image_urls: Annotated[
        bool,
        typer.Option(
            "--allow-image-urls", help="Fetch pictures from public http and https addresses."
        ),
    ] = False,
    batch: Annotated[int, typer.Option(help="Answers that are written together.")] = 16,
    queue: Annotated[int, typer.Option(help="Requests that may wait beside them.")] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 300.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 1024,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt; by default what the model reads.")
    ] = None,
    max_images: Annotated[int, typer.Option(help="Most pictures of a request.")] = 8,
    max_pixels: Annotated[float, typer.Option(help="Largest picture, in millions of pixels.")] = 50,
    max_body: Annotated[float, typer.Option(help="Largest request, in megabytes.")] = 20,
) -> None:
    """Serve a trained model: OpenAI's chat endpoint with pictures, and a page to try it."""
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
    serve(model, settings, ready=terminal.show_server)
