"""Sources of pairs: one file each, with the same interface for every stage."""

from aligncurate.sources.source import RawBatch, Source, Unit
from alignshared import InputError, demo

__all__ = ["RawBatch", "Source", "Unit", "open_source"]

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_source(source: str, image_root: str | None = None) -> Source:
    """Open `source`: `demo`, `laion-cc-sbu`, or a path or URI of a LLaVA JSON or JSONL file,
    Parquet, WebDataset tars or a folder of images, detected from the contents.

    `image_root` is the folder that image paths are relative to, by default that of the JSON or
    Parquet.

    Raises:
        InputError: no such source exists.
    """
    from aligncurate.sources.folder import FolderSource, is_image
    from aligncurate.sources.listing import find_files, is_folder
    from aligncurate.sources.llava import LAION_NAME, LlavaSource, laion_cc_sbu
    from aligncurate.sources.parquet import ParquetSource
    from aligncurate.sources.webdataset import WebDatasetSource

    if source == "demo":
        pairs = str(demo.pairs_path())
        return ParquetSource(pairs, find_files(pairs), name="demo")
    if source == LAION_NAME:
        return laion_cc_sbu(image_root)
    if source.endswith((".json", ".jsonl")) and not is_folder(source):
        return LlavaSource(source, image_root)
    files = find_files(source)
    names = [file.location for file in files]
    if any(name.endswith(".tar") for name in names):  # img2dataset puts Parquet beside its tars
        return WebDatasetSource(source, files)
    if any(name.endswith(".parquet") for name in names) or source.endswith(".parquet"):
        return ParquetSource(source, files, image_root)
    if is_folder(source) and any(map(is_image, names)):
        return FolderSource(source, files)
    raise InputError(_why_not(source, names))


def _why_not(source: str, names: list[str]) -> str:
    packed = next((name for name in names if name.endswith(_PACKED)), None)
    if packed is not None:
        return (
            f"{packed} is compressed, and parts of it cannot be read on their own; unpack it to a "
            "plain .tar."
        )
    if not names and any(sign in source for sign in "/.*"):
        return f"there is nothing at {source}; name a file, a folder or a glob that is there."
    return (
        f"--input {source} is not known: give demo, laion-cc-sbu, a LLaVA .json or .jsonl file, a "
        "file, folder or glob of Parquet or WebDataset tars, or a folder of images."
    )
