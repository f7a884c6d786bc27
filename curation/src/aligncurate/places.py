"""Where datasets go when no --output is given, and which one is meant when no --input is given."""

from pathlib import Path

from alignshared import Dataset, InputError
from alignshared.manifest import MANIFEST_FILE

DATA_ROOT = Path("data")
"""Relative to where the command runs: `data/<name>/<stage>`."""


READABLE_STAGES = ("sample", "filter", "bucket", "score")
"""Stages of which the newest dataset is meant where something is to be shown or checked. What is to
be sorted into levels is the newest scored one: a subset is named.
"""


def default_output(name: str, stage: str) -> str:
    """`data/<name>/<stage>`."""
    return str(DATA_ROOT / name / stage)


def sibling_output(dataset: Dataset, stage: str) -> str:
    """The folder `stage` beside `dataset`: `data/demo/score` leads to `data/demo/bucket`."""
    parent, _, _ = dataset.location.rstrip("/").rpartition("/")
    return f"{parent}/{stage}"


def newest_dataset(*stages: str) -> Dataset:
    """The dataset of one of `stages` under `data/` that was finished last.

    Raises:
        InputError: there is none.
    """
    manifests = [p for stage in stages for p in DATA_ROOT.glob(f"*/{stage}/{MANIFEST_FILE}")]
    if not manifests:
        wanted = " or ".join(f"{DATA_ROOT}/*/{stage}" for stage in stages)
        raise InputError(
            f"no finished dataset lies in {wanted} under {Path.cwd()}; name one with --input, or "
            f"run aligncurate {stages[-1]} first."
        )
    return Dataset(max(manifests, key=lambda p: p.stat().st_mtime_ns).parent)
