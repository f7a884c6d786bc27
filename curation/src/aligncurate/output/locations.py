"""Where datasets go when no --output is given, which one is meant when no --input is given, and
where nothing may be written.
"""

from pathlib import Path

from alignshared import Dataset, InputError
from alignshared.filesystems import is_remote, lies_within
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
    """The folder `stage` beside `dataset`: `data/demo/score` leads to `data/demo/bucket`.

    Raises:
        InputError: the dataset is a whole bucket of an object store, and nothing lies beside it.
    """
    parent, _, _ = dataset.location.rstrip("/").rpartition("/")
    if is_remote(dataset.location) and parent.endswith(":/"):
        raise InputError(
            f"{dataset.location} is a whole bucket, so nothing can lie beside it; name a folder "
            "with --output."
        )
    return f"{parent}/{stage}"


def refuse_to_write_over(output: str, *read: str | None) -> None:
    """Raise InputError if one of the places that are `read` is `output` or lies in it.

    --overwrite would delete what is to be read.
    """
    for place in read:
        if place is not None and lies_within(place, output):
            raise InputError(
                f"the output {output} is the input or holds it; name another folder with --output."
            )


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
