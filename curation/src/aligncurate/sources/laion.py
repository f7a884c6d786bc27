"""`laion-cc-sbu`: the 558K pairs of LLaVA-Pretrain, from a folder or from the Hugging Face Hub."""

import zipfile
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from aligncurate.sources.llava import LlavaSource
from alignshared import InputError

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
        records = Path(image_root) / _RECORDS
        if not records.is_file():
            raise InputError(
                f"{records} is not there; place {_RECORDS} of {_REPO} in {image_root}, beside the "
                f"folders of its {_PICTURES}."
            )
        return LlavaSource(str(records), image_root, NAME)
    try:
        records = hf_hub_download(_REPO, _RECORDS, repo_type="dataset")
        pictures = _unpacked(hf_hub_download(_REPO, _PICTURES, repo_type="dataset"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"{NAME} is not in the Hugging Face cache and cannot be downloaded; download "
            f"{_RECORDS} and {_PICTURES} of the dataset {_REPO} elsewhere, unpack both into one folder, and "
            "give it as --image-root."
        ) from error
    return LlavaSource(records, str(pictures), NAME)


def _unpacked(archive: str) -> Path:
    folder = _CACHE.expanduser() / "images"
    done = folder / _UNPACKED
    if not done.exists():
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)  # members cannot leave the folder: zipfile strips what would
        done.touch()
    return folder
