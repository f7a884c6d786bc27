"""Demo data shipped with the package: real pairs and a small CLIP to score them."""

from pathlib import Path


def pairs_path() -> Path:
    """The Parquet file of demo pairs: Noto drawings with captions, see docs/demo-clip.md."""
    return Path(__file__).parent / "pairs.parquet"


def clip_path() -> Path:
    """The folder of the demo CLIP in open_clip's `local-dir:` form (config and safetensors)."""
    return Path(__file__).parent / "clip"
