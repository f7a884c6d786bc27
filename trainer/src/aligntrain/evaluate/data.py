"""Where a benchmark's data lies: files in a folder, or a snapshot of them from the Hub."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from alignshared import InputError
from alignshared.hub import require_hub
from aligntrain.evaluate.benchmarks import Benchmark

GQA_PICTURES = "testdev_balanced_images"
"""GQA's questions and pictures are two tables."""


@dataclass(frozen=True, slots=True)
class Data:
    """The files of one benchmark, and what they are called in results: a folder, or an id on the
    Hub with its commit. `pictures` are GQA's.
    """

    files: list[str]
    source: str
    revision: str | None = None
    pictures: list[str] | None = None

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return Path(self.files[0]).parent


def find_data(benchmark: Benchmark, folder: str | Path | None, revision: str | None) -> Data:
    """The data of `benchmark`: below `folder`, or from the Hub at `revision`.

    In a folder that is `NAME.parquet`, for MMBench also its own `NAME.tsv`, or `NAME/` with Parquet
    files as the Hub has them (`[CONFIG/]SPLIT-00000-of-00001.parquet`, at any depth).

    Raises:
        InputError: it is not there; says which file is looked for, from where, and put where.
    """
    if folder is None:
        return _from_hub(benchmark, revision)
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the benchmarks' files as data.")
    single = [root / f"{benchmark.name}.{ending}" for ending in ("parquet", "tsv")]
    found = [str(file) for file in single if file.is_file()][:1]
    inside = root / benchmark.name
    names = [path.relative_to(inside).as_posix() for path in sorted(inside.rglob("*.parquet"))]
    found = found or [str(inside / name) for name in split_files(names, benchmark)]
    if not found:
        raise InputError(f"{benchmark.title}: no data in {root}; {_wanted(benchmark, root)}.")
    pictures = None
    if benchmark.name == "gqa":
        pictures = [str(inside / name) for name in split_files(names, benchmark, GQA_PICTURES)]
    return Data(found, str(root), pictures=pictures or None)


def split_files(names: Iterable[str], benchmark: Benchmark, config: str | None = None) -> list[str]:
    """Those of the Parquet files `names` that hold the benchmark's split, sorted."""
    config = config or benchmark.config
    pattern = re.compile(rf"{re.escape(benchmark.split)}(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet")
    fitting = [name for name in names if pattern.fullmatch(PurePosixPath(name).name)]
    if config is None:  # others, like POPE's `Full`, lie in folders of their own
        return sorted(n for n in fitting if set(PurePosixPath(n).parts[:-1]) <= {"data", "default"})
    return sorted(name for name in fitting if config in PurePosixPath(name).parts[:-1])


def _wanted(benchmark: Benchmark, root: str | Path) -> str:
    config = f"{benchmark.config}/" if benchmark.config else "data/"
    pictures = f" and {GQA_PICTURES}/" if benchmark.name == "gqa" else ""
    return (
        f"put {config}{benchmark.split}-*.parquet{pictures} of "
        f"https://huggingface.co/datasets/{benchmark.hub} below {root}/{benchmark.name}/"
    )


def _from_hub(benchmark: Benchmark, revision: str | None) -> Data:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        require_hub()
    except OSError as error:
        return _from_cache(benchmark, revision, error)
    api = HfApi()
    try:
        info = api.dataset_info(benchmark.hub, revision=revision)
        names = [one.rfilename for one in info.siblings or []]
        files = _needed(benchmark, names)
        local = {
            name: hf_hub_download(benchmark.hub, name, repo_type="dataset", revision=info.sha)
            for name in (*files[0], *files[1])
        }
    except OSError as error:  # what the Hub's client raises is one
        raise _unreachable(benchmark, error) from error
    if not files[0]:
        raise InputError(
            f"{benchmark.title}: the Hub's {benchmark.hub} at {info.sha} has no file for the split "
            f"{benchmark.split}; give another revision as {benchmark.name}@REVISION."
        )
    pictures = [local[name] for name in files[1]]
    return Data([local[n] for n in files[0]], benchmark.hub, info.sha, pictures or None)


def _needed(benchmark: Benchmark, names: list[str]) -> tuple[list[str], list[str]]:
    pictures = split_files(names, benchmark, GQA_PICTURES) if benchmark.name == "gqa" else []
    return split_files(names, benchmark), pictures


def _from_cache(benchmark: Benchmark, revision: str | None, reason: OSError) -> Data:
    """What an earlier run has fetched, where the Hub does not answer."""
    from huggingface_hub import snapshot_download

    try:
        place = snapshot_download(
            benchmark.hub, repo_type="dataset", revision=revision, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise _unreachable(benchmark, reason) from error
    names = [path.relative_to(place).as_posix() for path in Path(place).rglob("*.parquet")]
    rows, pictures = _needed(benchmark, names)
    if not rows:
        raise _unreachable(benchmark, reason)
    paths = [[str(Path(place) / name) for name in some] for some in (rows, pictures)]
    return Data(paths[0], benchmark.hub, Path(place).name, paths[1] or None)


def _unreachable(benchmark: Benchmark, reason: OSError) -> InputError:
    said = " ".join(str(reason).split())[:200].rstrip(".")
    return InputError(
        f"{benchmark.title}: its data is not here and the Hub cannot give it ({said}); "
        f"{_wanted(benchmark, 'FOLDER')}, and give FOLDER as --data."
    )
