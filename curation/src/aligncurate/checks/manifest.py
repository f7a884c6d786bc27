"""Opening a dataset whose manifest may hold anything: every field has its type, or one sentence."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aligncurate.output.folder import RUN_FOLDER
from alignshared import ContractError, Dataset, InputError, Storage
from alignshared.manifest import MANIFEST_FILE

_Test = Callable[[Any], bool]


def open_dataset(location: str | os.PathLike[str]) -> Dataset:
    """The dataset at `location`, with a manifest whose fields have the types of the contract.

    Raises:
        ContractError: the folder holds no dataset, or one whose manifest cannot be read.
        InputError: there is no such folder, or it cannot be read.
    """
    storage = Storage(location)
    try:
        if not storage.exists(""):
            raise InputError(f"there is no {storage.location}; name the folder of a dataset.")
        if not storage.exists(MANIFEST_FILE):
            raise ContractError(_without_manifest(storage))
        _check_fields(storage.read_bytes(MANIFEST_FILE), storage.location)
        return Dataset(location)
    except OSError as error:
        raise InputError(f"{storage.location} cannot be read: {error}.") from error


def is_unfinished(storage: Storage) -> bool:
    """Whether the folder holds what a run left before it wrote its manifest."""
    names = storage.names()
    return RUN_FOLDER in names and MANIFEST_FILE not in names


def _without_manifest(storage: Storage) -> str:
    if is_unfinished(storage):
        return (
            f"{storage.location} is an unfinished run: it has no {MANIFEST_FILE} yet; give the "
            "command that began it once more and it goes on from there."
        )
    return (
        f"{storage.location} is not a dataset: it has no {MANIFEST_FILE}; name the folder of a "
        "finished run."
    )


def _check_fields(data: bytes, location: str) -> None:
    # Whatever is not JSON, or lacks a field, is told by whoever reads the manifest next.
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ContractError(
            f"{MANIFEST_FILE} in {location} is not a manifest; write the dataset again."
        )
    wrong = [name for name, test in _FIELDS.items() if name in fields and not test(fields[name])]
    if wrong:
        raise ContractError(
            f"{MANIFEST_FILE} in {location} holds something else than it should in "
            f"{', '.join(wrong)}; write the dataset again."
        )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return _whole(value) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _optional(test: _Test) -> _Test:
    return lambda value: value is None or test(value)


@dataclass(frozen=True, slots=True)
class _ListOf:
    test: _Test

    def __call__(self, value: Any) -> bool:
        return isinstance(value, list) and all(self.test(item) for item in value)


@dataclass(frozen=True, slots=True)
class _Record:
    fields: Mapping[str, _Test]

    def __call__(self, value: Any) -> bool:
        # A field too many or too few is found by name when the record is read.
        return isinstance(value, dict) and all(
            test(value[name]) for name, test in self.fields.items() if name in value
        )


def _counts_by_reason(value: Any) -> bool:
    return isinstance(value, dict) and all(_count(count) for count in value.values())


_SHARDS = _ListOf(_Record({"file": _text, "rows": _count, "bytes": _count, "sha256": _text}))
_MODEL = _Record(
    {
        "name": _text,
        "weights": _text,
        "weights_sha256": _text,
        "image_size": _count,
        "precision": _text,
        "view": _optional(_text),
        "long_captions": _optional(_text),
        "decode": _optional(_text),
    }
)
_STATISTICS = _Record(
    {
        "level": _count,
        "count": _count,
        "share": _number,
        "mean": _optional(_number),
        "min": _optional(_number),
        "max": _optional(_number),
    }
)


def _models(value: Any) -> bool:
    return isinstance(value, dict) and all(_MODEL(model) for model in value.values())


_DUPLICATES = _Record(
    {
        **dict.fromkeys(("exact", "near", "clusters", "largest", "chains", "longest"), _count),
        "search": _optional(lambda value: isinstance(value, dict)),
        "shards": _SHARDS,
    }
)


_FIELDS: dict[str, _Test] = {
    "schema_version": _whole,
    "stage": _text,
    "rows": _count,
    "rejects": _counts_by_reason,
    "shards": _SHARDS,
    "reject_shards": _SHARDS,
    "config": lambda value: isinstance(value, dict),
    "parents": _ListOf(_Record({"location": _text, "sha256": _optional(_text)})),
    "package": _text,
    "created": _text,
    "model": _optional(_MODEL),
    "models": _optional(_models),
    "scheme": _optional(_text),
    "edges": _optional(_ListOf(_number)),
    "level_statistics": _optional(_ListOf(_STATISTICS)),
    "left_out": _count,
    "duplicates": _optional(_DUPLICATES),
}
