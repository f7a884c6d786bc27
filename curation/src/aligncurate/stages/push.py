"""push: a finished export to the Hugging Face Hub."""

from pathlib import Path

from aligncurate.settings import Location
from aligncurate.stages.export import MARKER, read_export
from aligncurate.stages.settings import Format
from alignshared import InputError, Storage
from alignshared.hub import Destination, Pushed, upload
from alignshared.manifest import MANIFEST_FILE
from alignshared.stores.filesystems import is_remote

_REPLACES = ("data/*.parquet", "*.tar")
"""Files of an earlier upload that would add pairs to a newer one."""


def push(export: Location, destination: Destination, *, dry_run: bool = False) -> Pushed:
    """Upload `export`, a finished export as WebDataset tars or for Hugging Face, to the Hub.

    What is uploaded are the tars or Parquet files, the card and `export.json`; `aligncurate score
    --input hf://datasets/OWNER/NAME` and `datasets.load_dataset` read them. A `dry_run` checks
    everything and uploads nothing.

    Raises:
        InputError: there is no finished export, it is of another format, or the repository cannot
            be used (see `Destination`).
        AlignError: the upload failed.
    """
    storage = Storage(export)
    if storage.exists(MANIFEST_FILE):
        raise InputError(
            f"{storage.location} is a dataset, not an export; write one with `aligncurate export "
            "--format hf` or `--format webdataset`, and push that."
        )
    if not storage.exists(MARKER):
        raise InputError(
            f"{storage.location} is not a finished export: it has no {MARKER}; finish it with "
            "`aligncurate export`."
        )
    found = read_export(export)
    check_pushable(found.format, found.location)
    files = [*(file.file for file in found.files), MARKER]
    return upload(Path(found.location), files, destination, replaces=_REPLACES, dry_run=dry_run)


def check_pushable(format: Format, location: Location | None) -> None:
    """Raise InputError unless an export of `format` at `location` can be pushed."""
    if format == "llava":
        raise InputError(
            "an export as LLaVA JSON has a file for each image, too many for the Hub; give "
            "--format hf or webdataset."
        )
    if location is not None and is_remote(str(location)):
        raise InputError(
            f"{location} is not on this machine, from where it would be uploaded; name a folder "
            "here with --output."
        )
