"""Default folders: the --output of a stage, its --input, and folders that it must not overwrite."""

from pathlib import Path

from alignshared import Dataset, InputError
from alignshared.manifest import MANIFEST_FILE
from alignshared.stores.filesystems import is_remote, lies_within

DATA_ROOT = Path("data")
"""Relative to where the command runs: `data/<name>/<stage>`."""


READABLE_STAGES = ("sample", "filter", "bucket", "score")
"""Stages whose newest dataset is shown or checked by default. `bucket` takes the newest scored one.
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
    """Raise InputError if one of the locations `read` is `output` or lies in it: --overwrite would
    delete it.
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
        places = " or ".join(f"{DATA_ROOT}/*/{stage}" for stage in stages)
        raise InputError(
            f"no finished dataset lies in {places} under {Path.cwd()}; name one with --input, or "
            f"run aligncurate {stages[-1]} first."
        )
    return Dataset(max(manifests, key=lambda p: p.stat().st_mtime_ns).parent)
