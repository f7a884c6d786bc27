"""Where a benchmark's data lies: files in a folder, or a snapshot of them from the Hub."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from alignshared import InputError
from alignshared.hub import require_hub
from alignshared.pictures import ImageError, decode_image, to_rgb
from aligntrain.evaluate.benchmarks import Benchmark

GQA_PICTURES = "testdev_balanced_images"
"""GQA's questions and pictures are two tables."""
_NUMBERED = re.compile(r"-\d+-of-(\d+)(?:-[0-9a-f]+)?\.parquet$")


@dataclass(frozen=True, slots=True)
class Data:
    """The files of one benchmark, and what they are called in results: a folder, or an id on the
    Hub with its commit. `pictures` are GQA's. With `at`, a revision, they are names of files that
    are yet to be fetched from the Hub.
    """

    files: list[str]
    source: str
    revision: str | None = None
    pictures: list[str] | None = None
    at: str | None = None

    @property
    def mark(self) -> dict[str, Any]:
        """By what it is known again: the commit, or the sizes of files in a folder."""
        if self.revision is not None:
            return {"revision": self.revision, "files": None}
        sizes = {Path(file).name: Path(file).stat().st_size for file in self.files}
        return {"revision": None, "files": sizes}


def find_data(benchmark: Benchmark, folder: str | Path | None, revision: str | None) -> Data:
    """The data of `benchmark`: below `folder`, or on the Hub at `revision`, where it is only found
    and not `fetched`.

    In a folder that is `NAME.parquet`, for MMBench also its own `NAME.tsv`, or `NAME/` with Parquet
    files as the Hub has them (`[CONFIG/]SPLIT-00000-of-00001.parquet`, at any depth).

    Raises:
        InputError: it is not there, or not all of it; says which file is looked for, from where,
            and put where.
    """
    if folder is None:
        return _from_hub(benchmark, revision)
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the benchmarks' files as data.")
    single = [root / f"{benchmark.name}.{ending}" for ending in ("parquet", "tsv")]
    alone = [str(file) for file in single if file.is_file()][:1]
    inside = root / benchmark.name
    names = [path.relative_to(inside).as_posix() for path in sorted(inside.rglob("*.parquet"))]
    rows, pictures = _needed(benchmark, names)
    lacking = None if alone else _lacking(benchmark, rows, pictures)
    if lacking:
        raise InputError(f"{benchmark.title}: {lacking} in {root}; {_wanted(benchmark, root)}.")
    files = alone or [str(inside / name) for name in rows]
    return Data(files, str(root), pictures=[str(inside / name) for name in pictures] or None)


def fetched(benchmark: Benchmark, data: Data) -> Data:
    """`data` with its files on this machine.

    They are asked for by the name that was given for the revision, so that the Hub's client also
    finds them by that name when there is no network.

    Raises:
        InputError: the Hub does not give them.
    """
    if data.at is None:
        return data
    from huggingface_hub import hf_hub_download

    local: dict[str, str] = {}
    try:
        for name in (*data.files, *(data.pictures or [])):
            local[name] = hf_hub_download(data.source, name, repo_type="dataset", revision=data.at)
    except OSError as error:  # what the Hub's client raises is one
        raise _unreachable(benchmark, error) from error
    if any(data.revision not in Path(file).parts for file in local.values()):
        raise InputError(
            f"{benchmark.title}: {data.at} of the Hub's {data.source} has changed while it was "
            "fetched; run the command again."
        )
    pictures = data.pictures and [local[name] for name in data.pictures]
    return replace(data, files=[local[n] for n in data.files], pictures=pictures, at=None)


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


def _needed(benchmark: Benchmark, names: list[str]) -> tuple[list[str], list[str]]:
    pictures = split_files(names, benchmark, GQA_PICTURES) if benchmark.name == "gqa" else []
    return split_files(names, benchmark), pictures


def _lacking(benchmark: Benchmark, rows: list[str], pictures: list[str]) -> str | None:
    """What is missing among the files found, in words; None where it is all there."""
    if not rows:
        return "no data"
    if benchmark.name == "gqa" and not pictures:
        return f"no {GQA_PICTURES}/"
    for names in (rows, pictures):
        counts = [match for name in names if (match := _NUMBERED.search(name))]
        if counts and len(counts) < int(counts[0][1]):
            return f"only {len(counts)} of {int(counts[0][1])} files like {names[0]}"
    return None


def _from_hub(benchmark: Benchmark, revision: str | None) -> Data:
    from huggingface_hub import HfApi

    try:
        require_hub()
    except OSError as error:
        return _from_cache(benchmark, revision, error)
    try:
        info = HfApi().dataset_info(benchmark.hub, revision=revision)
    except OSError as error:  # what the Hub's client raises is one
        raise _unreachable(benchmark, error) from error
    rows, pictures = _needed(benchmark, [one.rfilename for one in info.siblings or []])
    lacking = _lacking(benchmark, rows, pictures)
    if lacking:
        raise InputError(
            f"{benchmark.title}: the Hub's {benchmark.hub} at {info.sha} has {lacking} for the "
            f"split {benchmark.split}; give another revision as {benchmark.name}@REVISION."
        )
    return Data(rows, benchmark.hub, info.sha, pictures or None, at=revision or "main")


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
    if _lacking(benchmark, rows, pictures):
        raise _unreachable(benchmark, reason)
    paths = [[str(Path(place) / name) for name in some] for some in (rows, pictures)]
    return Data(paths[0], benchmark.hub, Path(place).name, paths[1] or None)


def _unreachable(benchmark: Benchmark, reason: OSError) -> InputError:
    said = " ".join(str(reason).split())[:200].rstrip(".")
    return InputError(
        f"{benchmark.title}: its data is not here and the Hub cannot give it ({said}); "
        f"{_wanted(benchmark, 'FOLDER')}, and give FOLDER as --data."
    )


_LONGEST_REFERENCE = 64
"""No picture in base64 is as short; MMBench's own files name another row's `index` instead."""


class Elsewhere:
    """Pictures of other rows: `rows[place[key]]` has that of a row whose `column` is `key`."""

    def __init__(self, rows: Any, place: Mapping[Any, int], column: str) -> None:
        self._rows = rows
        self._place = place
        self._column = column

    def picture(self, row: Mapping[str, Any]) -> Any:
        """The cell that holds the picture of `row`.

        Raises:
            InputError: no row has it.
        """
        key = row[self._column]
        place = self._place.get(str(key))
        if place is None:
            raise InputError(f"no row holds the picture {key}; get the whole benchmark anew.")
        return self._rows[place]["image"]


def pictures_of(row: Mapping[str, Any], elsewhere: Elsewhere | None = None) -> list[Image.Image]:
    """The pictures of `row`, in RGB; from `elsewhere` where it has none itself.

    Raises:
        InputError: one cannot be read.
    """
    cell = row.get("image")
    missing = cell is None or (isinstance(cell, str) and len(cell) <= _LONGEST_REFERENCE)
    if elsewhere is not None and missing:
        cell = elsewhere.picture(row)
    cells = cell if isinstance(cell, list) else [cell]
    try:
        return [_picture(one) for one in cells]
    except (ImageError, OSError, binascii.Error, TypeError) as error:
        raise InputError(
            f"a picture of the benchmark cannot be read ({error}); get that file anew."
        ) from error


def _picture(cell: Any) -> Image.Image:
    if isinstance(cell, Image.Image):
        return to_rgb(cell)
    if isinstance(cell, str):
        return decode_image(base64.b64decode(cell, validate=True))
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") else Path(cell["path"]).read_bytes()
    return decode_image(cell)
