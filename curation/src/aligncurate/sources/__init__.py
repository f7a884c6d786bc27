"""Sources of pairs: one short file each, all the same to the stages."""

from pathlib import Path

from aligncurate.sources.source import RawBatch, Source, Unit
from alignshared import InputError, demo

__all__ = ["RawBatch", "Source", "Unit", "open_source"]


def open_source(source: str, image_root: str | None = None) -> Source:
    """The source that `source` names: `demo`, `laion-cc-sbu`, a LLaVA JSON or JSONL file, or
    Parquet.

    `image_root` is the folder that paths of pictures are relative to; by default the one that the
    JSON or Parquet lies in.

    Raises:
        InputError: nothing of the kind is there.
    """
    from aligncurate.sources import laion
    from aligncurate.sources.llava import LlavaSource
    from aligncurate.sources.parquet import ParquetSource

    if source == "demo":
        return ParquetSource(str(demo.pairs_path()), name="demo")
    if source == laion.NAME:
        return laion.laion_cc_sbu(image_root)
    if source.endswith((".json", ".jsonl")) and not Path(source).is_dir():
        return LlavaSource(source, image_root)
    if source.endswith(".parquet") or "*" in source or Path(source).is_dir():
        return ParquetSource(source, image_root)
    raise InputError(
        f"--input {source} is not known: give demo, {laion.NAME}, a LLaVA .json or .jsonl file, or "
        "a file, folder or glob of Parquet."
    )
