"""`laion-cc-sbu`: the 558K pairs of LLaVA-Pretrain, from a folder or from the Hugging Face Hub."""

import zipfile
from pathlib import Path

from aligncurate.core.hub import HubError, hub_file
from aligncurate.sources.llava import LlavaSource
from alignshared import InputError, Storage
from alignshared.filesystems import normal_location

NAME = "laion-cc-sbu"
_REPO = "liuhaotian/LLaVA-Pretrain"
_RECORDS = "blip_laion_cc_sbu_558k.json"
_PICTURES = "images.zip"
_CACHE = Path("~/.cache/alignstack/laion-cc-sbu")
_UNPACKED = ".unpacked"


def laion_cc_sbu(image_root: str | None = None) -> LlavaSource:
    """The records and pictures in `image_root`, or from the Hub into the cache (28 GB, unpacked 28
    GB more).

    Raises:
        InputError: they are not there and cannot be downloaded.
    """
    if image_root is not None:
        records = f"{normal_location(image_root)}/{_RECORDS}"
        if not Storage(image_root).exists(_RECORDS):
            raise InputError(
                f"{records} is not there; place {_RECORDS} of {_REPO} in {image_root}, beside the "
                f"folders of its {_PICTURES}."
            )
        return LlavaSource(records, image_root, NAME)
    try:
        records = hub_file(_REPO, [_RECORDS], "dataset")
        pictures = _unpacked(hub_file(_REPO, [_PICTURES], "dataset"))
    except HubError as error:
        raise InputError(
            f"{NAME} is not in the Hugging Face cache and cannot be downloaded ({error}); download "
            f"{_RECORDS} and {_PICTURES} of the dataset {_REPO} elsewhere, unpack both into one "
            "folder, and give it as --image-root."
        ) from error
    return LlavaSource(str(records), str(pictures), NAME)


def _unpacked(archive: Path) -> Path:
    folder = _CACHE.expanduser() / "images"
    done = folder / _UNPACKED
    if not done.exists():
        try:
            with zipfile.ZipFile(archive) as files:
                files.extractall(folder)  # zipfile itself keeps members inside the folder
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(
                f"{archive} cannot be unpacked into {folder}: {error}; make room there, or unpack "
                "it elsewhere and give that folder as --image-root."
            ) from error
        done.touch()
    return folder
