"""Opening a dataset, with a one-sentence error for folders that hold none."""

import os

from alignshared import ContractError, Dataset, InputError, Storage
from alignshared.manifest import MANIFEST_FILE, RUN_FOLDER


def open_dataset(location: str | os.PathLike[str]) -> Dataset:
    """Open the dataset at `location`, local or remote.

    Raises:
        ContractError: the folder holds no dataset with a readable manifest.
        InputError: the folder is missing or unreadable.
    """
    storage = Storage(location)
    try:
        if not storage.exists(""):
            raise InputError(f"there is no {storage.location}; name the folder of a dataset.")
        if not storage.exists(MANIFEST_FILE):
            unfinished = (
                f"an unfinished run: it has no {MANIFEST_FILE} yet; give the command that began it "
                "once more and it resumes there"
            )
            other = f"not a dataset: it has no {MANIFEST_FILE}; name the folder of a finished run"
            kind = unfinished if is_unfinished(storage) else other
            raise ContractError(f"{storage.location} is {kind}.")
        return Dataset(location)
    except OSError as error:
        raise InputError(f"{storage.location} cannot be read: {error}.") from error


def is_unfinished(storage: Storage) -> bool:
    """Whether the folder holds a run without a manifest."""
    names = storage.names()
    return RUN_FOLDER in names and MANIFEST_FILE not in names
