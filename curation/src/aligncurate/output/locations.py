"""Default input and output folders of stages, and protection of inputs from overwriting."""

from pathlib import Path

from alignshared import Dataset, InputError
from alignshared.manifest import MANIFEST_FILE
from alignshared.stores.filesystems import is_remote, lies_within

DATA_ROOT = Path("data")
"""Relative to the working directory: `data/<name>/<stage>`."""


READABLE_STAGES = ("sample", "filter", "bucket", "score")
"""Stages whose newest dataset is shown or checked by default; `bucket` takes the newest scored
one.
"""


def default_output(name: str, stage: str) -> str:
    """Return `data/<name>/<stage>`."""
    return str(DATA_ROOT / name / stage)


def sibling_output(dataset: Dataset, stage: str) -> str:
    """Return the folder `stage` beside `dataset`: `data/demo/bucket` for `data/demo/score`.

    Raises:
        InputError: the dataset is a whole object store bucket, with nothing beside it.
    """
    parent, _, _ = dataset.location.rstrip("/").rpartition("/")
    if is_remote(dataset.location) and parent.endswith(":/"):
        raise InputError(
            f"{dataset.location} is a whole bucket, so nothing can lie beside it; name a folder "
            "with --output."
        )
    return f"{parent}/{stage}"


def refuse_to_write_over(output: str, *read: str | None) -> None:
    """Raise InputError if a location in `read` is `output` or inside it, where --overwrite would
    delete it.
    """
    for place in read:
        if place is not None and lies_within(place, output):
            raise InputError(
                f"the output {output} is the input or holds it; name another folder with --output."
            )


def newest_dataset(*stages: str) -> Dataset:
    """Return the most recently finished dataset of `stages` under `data/`.

    Raises:
        InputError: there is none.
    """
    manifests = [p for stage in stages for p in DATA_ROOT.glob(f"*/{stage}/{MANIFEST_FILE}")]
    if not manifests:
        places = " or ".join(f"{DATA_ROOT}/*/{stage}" for stage in stages)
        raise InputError(
            f"no finished dataset lies in {places} under {Path.cwd()}; name one with --input, or "
            f"run aligncurate {stages[-1]} first."
        )
    return Dataset(max(manifests, key=lambda p: p.stat().st_mtime_ns).parent)
