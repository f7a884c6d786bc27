"""The manifest: contents and provenance of a dataset. It is written last; a folder without it is an
unfinished run.
"""

import hashlib
import json
import sys
from dataclasses import asdict, field, replace
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from alignshared.errors import ContractError, printable
from alignshared.levels import LevelEdges, LevelStatistics, Scheme
from alignshared.schema import CONTRACT, SCHEMA_VERSION, SCORE_COLUMN, Count, score_column
from alignshared.shards import ShardInfo
from alignshared.stores.filesystems import public_name
from alignshared.stores.storage import Storage

MANIFEST_FILE = "manifest.json"
LEVELS_FILE = "levels.json"
REJECTS_FOLDER = "rejects"
RUN_FOLDER = ".run"
"""State of an unfinished run: its configuration, its lock and records of what is finished."""

STATISTICS_FILE = "statistics.json"
"""Summary cached beside the manifest by readers; safe to delete."""

_OTHER_FIELDS = ("missing", "missing_argument", "unexpected_keyword_argument")
"""Pydantic's error types for missing and extra fields."""

_OPTIONAL_OF_MODEL = ("view", "long_captions", "decode")


@dataclass(frozen=True, slots=True, config=CONTRACT)
class ModelInfo:
    """The CLIP used for scoring, with everything needed to reproduce the scores.

    `view` is `crop` or `pad`, `long_captions` `mean`, `decode` `fast`; None is the default: the
    model's own framing, truncation, decoding every pixel.
    """

    name: str
    weights: str
    weights_sha256: str
    image_size: Count
    precision: str
    view: str | None = None
    long_captions: str | None = None
    decode: str | None = None

    def named(self) -> "ModelInfo":
        """Return it with names in place of folders of this machine (see `public_name`)."""
        name = public_name(self.name.removeprefix("local-dir:"))
        return replace(self, name=name, weights=public_name(self.weights))


@dataclass(frozen=True, slots=True, config=CONTRACT)
class Parent:
    """A dataset or source that this dataset was made from; `sha256` is its manifest's digest."""

    location: str
    sha256: str | None


@dataclass(frozen=True, slots=True, config=CONTRACT)
class DuplicateInfo:
    """Result of a dedup run; `exact` + `near` pairs were left out.

    `clusters` kept pairs represent others, the largest representing `largest` - 1. Near pairs form
    `chains` components, the longest with `longest` pairs. `search` records the method and recall of
    the near-duplicate search; None if there was none.
    """

    exact: Count
    near: Count
    clusters: Count
    largest: Count
    chains: Count
    longest: Count
    search: dict[str, Any] | None
    shards: list[ShardInfo]

    @property
    def count(self) -> int:
        """Number of pairs left out."""
        return self.exact + self.near


@dataclass(frozen=True, slots=True, config=CONTRACT)
class Manifest:
    """Description of a dataset; `rejects` counts by reason, `config` is the full configuration.

    With several scoring models, `models` holds all of them by name, including `model`, the one
    behind `score`; scores of `name` are in the column `score_<name>`.

    `edges` part the numbers in the column `by`; None is `score`.

    `left_out` counts usable input pairs that the stage was configured to drop (filter) or did not
    draw (sample): rows in = rows + rejects + left out. `duplicates` describes a dedup run, whose
    `left_out` are all duplicates.
    """

    stage: str
    rows: Count
    rejects: dict[str, Count]
    shards: list[ShardInfo]
    reject_shards: list[ShardInfo]
    config: dict[str, Any]
    parents: list[Parent]
    package: str
    created: str
    model: ModelInfo | None = None
    scheme: str | None = None
    edges: list[float] | None = None
    level_statistics: list[LevelStatistics] | None = None
    by: str | None = None
    models: dict[str, ModelInfo] | None = None
    left_out: Count = 0
    duplicates: DuplicateInfo | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def reject_count(self) -> int:
        """Number of pairs rejected, for any reason."""
        return sum(self.rejects.values())

    @property
    def level_edges(self) -> LevelEdges | None:
        """Edges of a levelled dataset; None without levels."""
        if self.edges is None or self.scheme is None:
            return None
        return LevelEdges(tuple(self.edges), cast(Scheme, self.scheme), self.by or SCORE_COLUMN)

    def scorer(self, column: str) -> ModelInfo | None:
        """Return the model that gave the scores in `column`, if one did."""
        if column == SCORE_COLUMN:
            return self.model
        models = (self.models or {}).items()
        return next((model for name, model in models if score_column(name) == column), None)


def write_manifest(storage: Storage, manifest: Manifest) -> str:
    """Write `manifest.json`, which completes the dataset; return its SHA-256."""
    fields = asdict(manifest)
    models = [model for model in (fields["model"], *(fields["models"] or {}).values()) if model]
    # Unused newer fields are left out, so that older readers still work.
    for record, names in [(fields, ("by", "models")), *((m, _OPTIONAL_OF_MODEL) for m in models)]:
        for name in names:
            if record[name] is None:
                del record[name]
    return storage.write_json(MANIFEST_FILE, fields)


def read_manifest(storage: Storage) -> Manifest:
    """Read the manifest of the dataset in `storage`.

    Raises:
        ContractError: the manifest is missing, invalid or of another schema version.
    """
    return _parse(_manifest_bytes(storage), storage.location)


def manifest_digest(storage: Storage) -> str:
    """SHA-256 of `manifest.json`, recorded by children as lineage."""
    return hashlib.sha256(_manifest_bytes(storage)).hexdigest()


def _manifest_bytes(storage: Storage) -> bytes:
    if not storage.exists(""):
        raise ContractError(
            f"{storage.location} is not a dataset: there is no such folder; name the folder of a "
            "finished run."
        )
    if not storage.exists(MANIFEST_FILE):
        raise ContractError(
            f"{storage.location} is not a dataset: it has no {MANIFEST_FILE}; name the folder of a "
            "finished run, or run the command that writes it again to finish it."
        )
    return storage.read_bytes(MANIFEST_FILE)


def _parse(data: bytes, location: str) -> Manifest:
    try:
        fields = json.loads(data)
        version = fields["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(
            f"{MANIFEST_FILE} in {location} is not a manifest; write the dataset again."
        ) from error
    if str(version) != str(SCHEMA_VERSION):
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        remedy = "upgrade this package" if newer else "write the dataset again"
        raise ContractError(
            f"{location} has schema version {version}, this version reads {SCHEMA_VERSION}; "
            f"{remedy}."
        )
    # Null if unused, but always present.
    lacking = [name for name in ("model", "level_statistics") if name not in fields]
    try:
        if not lacking:
            return TypeAdapter(Manifest).validate_json(data)
        problem = f"lacks or adds a field ({', '.join(lacking)})"
    except ValidationError as error:
        problem = _problem(error)
    raise ContractError(f"{MANIFEST_FILE} in {location} {problem}; write the dataset again.")


def _problem(error: ValidationError) -> str:
    """Describe what is wrong with a manifest, by field name."""
    problems = [problem for problem in error.errors(include_url=False) if problem["loc"]]
    other = [problem for problem in problems if problem["type"] in _OTHER_FIELDS]
    names = [".".join(map(str, problem["loc"])) for problem in (other or problems)[:4]]
    listed = printable(", ".join(names))
    if not names:
        return "is not a manifest"
    return f"lacks or adds a field ({listed})" if other else f"holds something wrong in {listed}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(TypeAdapter(Manifest).json_schema(), indent=2) + "\n")
