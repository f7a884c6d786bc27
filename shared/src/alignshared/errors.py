"""Every error a user can meet, as one tree.

    AlignError           the run failed; exit code 1
    └── InputError       bad arguments or bad input; exit code 2
        ├── ContractError    a dataset that does not keep the contract
        └── ArgumentError    arguments of a Python function that do not fit; a ValueError too

The message is one sentence that says what is wrong, where, and what to do. Commands print it
without a traceback; anything that is not an AlignError is a bug and keeps its traceback.
"""

from collections.abc import Collection
from difflib import get_close_matches


class AlignError(Exception):
    """The run failed for a reason that the message explains."""

    exit_code = 1


class InputError(AlignError):
    """The arguments or the input are unusable."""

    exit_code = 2


class ContractError(InputError):
    """A dataset violates the contract."""


class ArgumentError(InputError, ValueError):
    """Arguments of a model or processor do not fit: a ValueError, as libraries around it expect."""


def one_line(error: object, limit: int | None = None) -> str:
    """Return the text of `error` on one line, cut to `limit` characters, without a final period."""
    return " ".join(str(error).split())[:limit].rstrip(".")


def printable(text: str) -> str:
    """Return `text` with a space for every control character, which might steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def hint(name: str, known: Collection[str]) -> str:
    """Return the closest of `known` to `name` as a question, or all of `known`."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
