"""The aligncurate command: parse, call one library function, print.

Nothing heavy is imported at the top, so that --help answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="aligncurate",
    help="Score image-text pairs with CLIP, sort them into alignment levels, report on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Input = Annotated[
    Optional[Path],  # noqa: UP045 typer reads the annotation
    typer.Option(help="Dataset to read; by default the newest one under data/ that fits."),
]
_Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder to write; by default beside the input."),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what a run left there.")]


@app.command()
def score(
    input: Annotated[
        str,
        typer.Option(
            help="demo, laion-cc-sbu, a LLaVA .json or .jsonl file, or a file, folder or glob of "
            "Parquet.",
        ),
    ],
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder to write; by default data/<name>/score."),
    ] = None,
) -> None:
    """Give every image-text pair its CLIP score."""
