"""The commands and options that users' fingers and scripts know.

A change of the list is a change for users, so CHANGELOG.md tells of it.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import aligncurate.cli
import aligntrain.cli

APPS = {"aligncurate": aligncurate.cli.app, "aligntrain": aligntrain.cli.app}

SURFACE = """
aligncurate --debug
aligncurate --version
aligncurate bucket --by
aligncurate bucket --edges
aligncurate bucket --input
aligncurate bucket --levels
aligncurate bucket --output
aligncurate bucket --overwrite
aligncurate bucket --scheme
aligncurate bucket --storage-options
aligncurate bucket --workers
aligncurate dedup --chains
aligncurate dedup --exact-only
aligncurate dedup --input
aligncurate dedup --keep
aligncurate dedup --output
aligncurate dedup --overwrite
aligncurate dedup --recall
aligncurate dedup --storage-options
aligncurate dedup --threshold
aligncurate dedup --workers
aligncurate export --format
aligncurate export --input
aligncurate export --output
aligncurate export --overwrite
aligncurate export --pairs-per-file
aligncurate export --private
aligncurate export --push-to-hub
aligncurate export --storage-options
aligncurate export --workers
aligncurate filter --dry-run
aligncurate filter --input
aligncurate filter --language
aligncurate filter --levels
aligncurate filter --max-aspect
aligncurate filter --max-caption
aligncurate filter --max-score
aligncurate filter --min-caption
aligncurate filter --min-score
aligncurate filter --min-size
aligncurate filter --output
aligncurate filter --overwrite
aligncurate filter --storage-options
aligncurate filter --top
aligncurate filter --where
aligncurate filter --workers
aligncurate ingest --image-root
aligncurate ingest --input
aligncurate ingest --output
aligncurate ingest --overwrite
aligncurate ingest --retry-failed
aligncurate ingest --shard-rows
aligncurate ingest --skip-failed
aligncurate ingest --storage-options
aligncurate ingest --unit-timeout
aligncurate inspect --input
aligncurate inspect --storage-options
aligncurate push --dry-run
aligncurate push --private
aligncurate push export
aligncurate push repo
aligncurate report --against
aligncurate report --examples
aligncurate report --input
aligncurate report --output
aligncurate report --storage-options
aligncurate sample --input
aligncurate sample --output
aligncurate sample --overwrite
aligncurate sample --per-level
aligncurate sample --rows
aligncurate sample --seed
aligncurate sample --storage-options
aligncurate sample --workers
aligncurate score --batch-size
aligncurate score --decode
aligncurate score --embeddings
aligncurate score --engine
aligncurate score --gpus
aligncurate score --gpus-per-worker
aligncurate score --image-root
aligncurate score --input
aligncurate score --long-captions
aligncurate score --main
aligncurate score --memory-per-worker
aligncurate score --model
aligncurate score --output
aligncurate score --overwrite
aligncurate score --precision
aligncurate score --ray-address
aligncurate score --retry-failed
aligncurate score --shard-rows
aligncurate score --skip-failed
aligncurate score --storage-options
aligncurate score --unit-timeout
aligncurate score --verbose
aligncurate score --view
aligncurate score --weights
aligncurate score --workers
aligncurate search --html
aligncurate search --image
aligncurate search --input
aligncurate search --json
aligncurate search --over
aligncurate search --storage-options
aligncurate search --text
aligncurate search --top
aligncurate search --weights
aligncurate validate --input
aligncurate validate --storage-options
aligntrain --debug
aligntrain --version
aligntrain ablate --finetune-data
aligntrain ablate --keep-models
aligntrain ablate --kinds
aligntrain ablate --nproc
aligntrain ablate --only
aligntrain ablate --output
aligntrain ablate --plan
aligntrain ablate --pretrain-data
aligntrain ablate --questions
aligntrain ablate --recipe
aligntrain ablate --seeds
aligntrain ablate --set
aligntrain ablate design
aligntrain caption --batch-size
aligntrain caption --data
aligntrain caption --guidance
aligntrain caption --level
aligntrain caption --max-new-tokens
aligntrain caption --output
aligntrain caption --prompt
aligntrain caption model
aligntrain chat --guidance
aligntrain chat --image
aligntrain chat --level
aligntrain chat --max-new-tokens
aligntrain chat --prompt
aligntrain chat --show-gate
aligntrain chat --temperature
aligntrain chat model
aligntrain convert --llm
aligntrain convert --vision-tower
aligntrain convert output
aligntrain convert source
aligntrain eval --against
aligntrain eval --batch-size
aligntrain eval --benchmarks
aligntrain eval --data
aligntrain eval --judge-model
aligntrain eval --judge-url
aligntrain eval --level
aligntrain eval --limit
aligntrain eval --max-new-tokens
aligntrain eval --output
aligntrain eval checkpoint
aligntrain export --format
aligntrain export --level
aligntrain export --private
aligntrain export --push-to-hub
aligntrain export model
aligntrain export output
aligntrain gate --batch-size
aligntrain gate --by
aligntrain gate --data
aligntrain gate --limit
aligntrain gate --output
aligntrain gate --sweep
aligntrain gate --sweep-limit
aligntrain gate checkpoint
aligntrain merge --private
aligntrain merge --push-to-hub
aligntrain merge output
aligntrain merge run
aligntrain plan --data
aligntrain plan --gpus
aligntrain plan --recipe
aligntrain plan --rows
aligntrain plan --set
aligntrain plan phase
aligntrain prepare --data
aligntrain prepare --from
aligntrain prepare --output
aligntrain prepare --recipe
aligntrain prepare --set
aligntrain prepare phase
aligntrain push --dry-run
aligntrain push --private
aligntrain push model
aligntrain push repo
aligntrain run --data
aligntrain run --from
aligntrain run --nproc
aligntrain run --output
aligntrain run --private
aligntrain run --profile
aligntrain run --push-to-hub
aligntrain run --recipe
aligntrain run --resume
aligntrain run --set
aligntrain run phase
aligntrain serve --allow-host
aligntrain serve --allow-image-urls
aligntrain serve --allow-origin
aligntrain serve --api-key
aligntrain serve --batch
aligntrain serve --host
aligntrain serve --level
aligntrain serve --max-body
aligntrain serve --max-images
aligntrain serve --max-new-tokens
aligntrain serve --max-pixels
aligntrain serve --max-prompt-tokens
aligntrain serve --max-total-tokens
aligntrain serve --name
aligntrain serve --port
aligntrain serve --queue
aligntrain serve --timeout
aligntrain serve model
""".strip().splitlines()


def surface(name: str, command: Any) -> Iterator[str]:
    """`name` if it takes nothing, else one line for each option and each command's own lines."""
    lines = [
        f"{name} {option}"
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option != "--help"
    ]
    for child, subcommand in getattr(command, "commands", {}).items():
        lines += surface(f"{name} {child}", subcommand)
    yield from lines or [name]


def command_names() -> list[list[str]]:
    """Every command as a list of words, the apps themselves first."""
    named = {tuple(word for word in line.split() if not word.startswith("-")) for line in SURFACE}
    return [list(words) for words in sorted(named)]


def test_commands_and_options_are_those_promised() -> None:
    found = [line for name, app in APPS.items() for line in surface(name, get_command(app))]
    assert sorted(found) == SURFACE


def test_the_list_is_sorted() -> None:
    assert sorted(SURFACE) == SURFACE


@pytest.mark.parametrize("words", command_names(), ids=" ".join)
def test_help_answers(words: list[str]) -> None:
    answer = CliRunner().invoke(APPS[words[0]], [*words[1:], "--help"])
    assert answer.exit_code == 0, answer.output
    assert "Usage" in answer.output


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_no_arguments_show_the_help(app: typer.Typer) -> None:
    assert "Usage" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_unknown_commands_are_bad_arguments(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["sort-of"]).exit_code == 2
