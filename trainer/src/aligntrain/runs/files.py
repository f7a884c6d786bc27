"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write `file` under another name, and rename it."""
    unfinished = file.with_name(f".unfinished-{file.name}")
    unfinished.write_text(text, encoding="utf-8", newline="")  # lines end as `text` has them
    os.replace(unfinished, file)
