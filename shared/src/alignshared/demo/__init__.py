"""The demo's files: pairs and held-out images, the CLIP that scores them, and a small LLM."""

from pathlib import Path

_FOLDER = Path(__file__).parent

MODELS = ("demo", "demo-smollm2")
"""Names of the models that ship: of the demo's small LLM, and of SmolLM2."""


def pairs_path() -> Path:
    """Return the Parquet file of the demo pairs, see docs/demo.md."""
    return _FOLDER / "pairs.parquet"


def further_path() -> Path:
    """Return the Parquet file of further drawings, which no pair is from, for conversations."""
    return _FOLDER / "further.parquet"


def held_out_path() -> Path:
    """Return the Parquet file of the test images: drawings by a vendor that no pair is from."""
    return _FOLDER / "held_out.parquet"


def clip_path() -> Path:
    """Return the folder of the demo CLIP in open_clip's `local-dir:` form."""
    return _FOLDER / "clip"


def llm_path() -> Path:
    """Return the folder of the demo's language model in transformers' form."""
    return _FOLDER / "llm"


def model_path(name: str = "demo") -> Path:
    """Return the folder of a fine-tuned model, one of `MODELS`, as a run exports it."""
    return _FOLDER / "models" / name
