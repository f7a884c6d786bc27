"""Benchmark data: find the files in a folder or on the Hub, fetch them, and read their rows."""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from alignshared import InputError
from alignshared.errors import one_line
from alignshared.images import ImageError, decode_image, to_rgb
from alignshared.stores.filesystems import require_hub
from aligntrain.evaluate.benchmarks import Benchmark, Row

if TYPE_CHECKING:
    from datasets import Dataset

GQA_IMAGES = "testdev_balanced_images"
"""Configuration of GQA's separate image table."""
_NUMBERED = re.compile(r"-\d+-of-(\d+)(?:-[0-9a-f]+)?\.parquet$")
_LONGEST_REFERENCE = 64
"""Cells up to this length are row indices, as in MMBench's own files; base64 images are longer."""


@dataclass(frozen=True, slots=True)
class Data:
    """Files of one benchmark and their source: a folder, or a Hub id with its commit.

    `images` are the files of GQA's image table. With `hub_revision`, `files` and `images` are names
    on the Hub that are not fetched yet.
    """

    files: list[str]
    source: str
    revision: str | None = None
    images: list[str] = field(default_factory=list[str])
    hub_revision: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Commit, or file sizes in a folder."""
        if self.revision is not None:
            return {"revision": self.revision, "files": None}
        sizes = {Path(file).name: Path(file).stat().st_size for file in self.files}
        return {"revision": None, "files": sizes}


def find_data(benchmark: Benchmark, folder: str | Path | None, revision: str | None) -> Data:
    """Find the data of `benchmark` below `folder`, or on the Hub at `revision` without fetching it.

    A folder holds `NAME.parquet`, for MMBench also its own `NAME.tsv`, or `NAME/` with Parquet
    files named as on the Hub (`[CONFIG/]SPLIT-00000-of-00001.parquet`, at any depth).

    Raises:
        InputError: files are missing; names them, their source and where to put them.
    """
    if folder is None:
        return _from_hub(benchmark, revision)
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the benchmarks' files as data.")
    rows, images, missing = _select_below(benchmark, root / benchmark.name)
    for ending in ("tsv", "parquet"):
        if (single := root / f"{benchmark.name}.{ending}").is_file():
            rows, missing = [str(single)], None
    if missing:
        raise InputError(
            f"{benchmark.title}: {missing} in {root}; {_instruction(benchmark, root)}."
        )
    return Data(rows, str(root), images=images)


def fetch(benchmark: Benchmark, data: Data) -> Data:
    """Return `data` with its files on this machine.

    Raises:
        InputError: the Hub does not serve them.
    """
    if data.hub_revision is None:
        return data
    from huggingface_hub import hf_hub_download

    # Fetched by the revision's given name, so that the Hub's client finds it offline by that name.
    revision, local = data.hub_revision, dict[str, str]()
    try:
        for name in (*data.files, *data.images):
            local[name] = hf_hub_download(data.source, name, repo_type="dataset", revision=revision)
    except OSError as error:  # includes the errors of the Hub's client
        raise _unreachable(benchmark, error) from error
    if any(data.revision not in Path(file).parts for file in local.values()):
        raise InputError(
            f"{benchmark.title}: {revision} of the Hub's {data.source} has changed while it was "
            "fetched; run the command again."
        )
    files, images = ([local[name] for name in names] for names in (data.files, data.images))
    return replace(data, files=files, images=images, hub_revision=None)


def split_files(names: Iterable[str], benchmark: Benchmark, config: str | None = None) -> list[str]:
    """Return the sorted Parquet files of the benchmark's split among `names`."""
    config = config or benchmark.config
    pattern = re.compile(rf"{re.escape(benchmark.split)}(-\d+-of-\d+(-[0-9a-f]+)?)?\.parquet")
    matching = [name for name in names if pattern.fullmatch(PurePosixPath(name).name)]
    if config is None:  # other configurations, like POPE's `Full`, have folders of their own
        return sorted(n for n in matching if {*PurePosixPath(n).parts[:-1]} <= {"data", "default"})
    return sorted(name for name in matching if config in PurePosixPath(name).parts[:-1])


Selection = tuple[list[str], list[str], str | None]
"""Files with the rows and, for GQA, with the images, and what is missing; None if nothing is."""


def _select(benchmark: Benchmark, names: list[str]) -> Selection:
    rows, gqa = split_files(names, benchmark), benchmark.name == "gqa"
    images = split_files(names, benchmark, GQA_IMAGES) if gqa else []
    if not rows or (gqa and not images):
        return rows, images, f"no {GQA_IMAGES}/" if rows else "no data"
    for some in (rows, images):
        counts = [int(match[1]) for name in some if (match := _NUMBERED.search(name))]
        if counts and len(counts) < counts[0]:
            return rows, images, f"only {len(counts)} of {counts[0]} files like {some[0]}"
    return rows, images, None


def _select_below(benchmark: Benchmark, root: Path) -> Selection:
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.parquet"))]
    rows, images, missing = _select(benchmark, names)
    return [str(root / name) for name in rows], [str(root / name) for name in images], missing


def _instruction(benchmark: Benchmark, root: str | Path) -> str:
    config = f"{benchmark.config}/" if benchmark.config else "data/"
    images = f" and {GQA_IMAGES}/" if benchmark.name == "gqa" else ""
    return (
        f"put {config}{benchmark.split}-*.parquet{images} of "
        f"https://huggingface.co/datasets/{benchmark.hub} below {root}/{benchmark.name}/"
    )


def _from_hub(benchmark: Benchmark, revision: str | None) -> Data:
    from huggingface_hub import HfApi

    try:
        require_hub()
    except OSError as error:
        return _from_cache(benchmark, revision, error)
    try:
        info = HfApi().dataset_info(benchmark.hub, revision=revision)
    except OSError as error:  # includes the errors of the Hub's client
        raise _unreachable(benchmark, error) from error
    names = [file.rfilename for file in info.siblings or []]
    rows, images, missing = _select(benchmark, names)
    if missing:
        raise InputError(
            f"{benchmark.title}: the Hub's {benchmark.hub} at {info.sha} has {missing} for the "
            f"split {benchmark.split}; give another revision as {benchmark.name}@REVISION."
        )
    return Data(rows, benchmark.hub, info.sha, images, hub_revision=revision or "main")


def _from_cache(benchmark: Benchmark, revision: str | None, reason: OSError) -> Data:
    """Return previously fetched data, as the Hub does not answer."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            benchmark.hub, repo_type="dataset", revision=revision, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise _unreachable(benchmark, reason) from error
    rows, images, missing = _select_below(benchmark, Path(snapshot))
    if missing:
        raise _unreachable(benchmark, reason)
    return Data(rows, benchmark.hub, Path(snapshot).name, images)


def _unreachable(benchmark: Benchmark, reason: OSError) -> InputError:
    message = one_line(reason, 200)
    return InputError(
        f"{benchmark.title}: its data is not here and the Hub cannot give it ({message}); "
        f"{_instruction(benchmark, 'FOLDER')}, and give FOLDER as --data."
    )


Lookup = Callable[[Row], Any]
"""Function from a row to the cell with its image, stored in another row or table."""


def _lookup(rows: "Dataset", keys: Iterable[Any], column: str) -> Lookup:
    """Return the lookup of the images of `rows`, which have `keys`, by the key in `column`."""
    places = {str(key): place for place, key in enumerate(keys)}

    def cell(row: Row) -> Any:
        if str(row[column]) not in places:
            raise InputError(f"no row holds the image {row[column]}; get the whole benchmark anew.")
        return rows[places[str(row[column])]]["image"]

    return cell


def images_of(row: Row, lookup: Lookup | None = None) -> list[Image.Image]:
    """Return the images of `row` in RGB, from `lookup` if the row has none itself.

    Raises:
        InputError: an image is missing or cannot be read.
    """
    cell = row.get("image")
    missing = cell is None or (isinstance(cell, str) and len(cell) <= _LONGEST_REFERENCE)
    if lookup is not None and missing:
        cell = lookup(row)
    try:
        return [_decode(one) for one in (cell if isinstance(cell, list) else [cell])]
    except (ImageError, OSError, binascii.Error, TypeError) as error:
        raise InputError(
            f"an image of the benchmark cannot be read ({error}); get that file anew."
        ) from error


def _decode(cell: Any) -> Image.Image:
    if isinstance(cell, Image.Image):
        return to_rgb(cell)
    if isinstance(cell, str):
        return decode_image(base64.b64decode(cell, validate=True))
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") else Path(cell["path"]).read_bytes()
    return decode_image(cell)


def read_rows(
    benchmark: Benchmark, data: Data, limit: int | None = None
) -> tuple["Dataset", Lookup | None]:
    """Read the rows of `benchmark`, and the lookup of images stored elsewhere.

    `limit` keeps the first rows, with the last unit complete.

    Raises:
        InputError: a file cannot be read, lacks a column or has no rows.
    """
    rows = _read_table(data.files)
    image_column = "imageId" if data.images else "image"
    missing = [name for name in (*benchmark.columns, image_column) if name not in rows.column_names]
    if missing:
        raise InputError(
            f"{benchmark.title}: {data.files[0]} has no column {missing[0]} (but "
            f"{', '.join(rows.column_names)}); give the file as {benchmark.hub} has it."
        )
    lookup = None
    if data.images:  # GQA
        table = _read_table(data.images)
        lookup = _lookup(table, table["id"], "imageId")
    elif data.files[0].endswith(".tsv"):  # MMBench: later rotations name the first one's row
        lookup = _lookup(rows, rows["index"], "image")
    if benchmark.rows is not None or limit is not None:
        rows = _select_rows(benchmark, rows, limit)
    if len(rows) == 0:
        raise InputError(f"{benchmark.title}: {data.files[0]} has no rows to ask; get it anew.")
    return rows, lookup


def without_images(rows: "Dataset") -> Sequence[Row]:
    """Return `rows` without the column `image`."""
    texts = rows.remove_columns([name for name in rows.column_names if name == "image"])
    return cast("Sequence[Row]", texts)


def _read_table(files: list[Any]) -> "Dataset":
    """Read `files` as one table, images as undecoded bytes."""
    from datasets import Dataset, Image, List
    from datasets.exceptions import DatasetGenerationError

    try:
        if files[0].endswith(".tsv"):
            rows = Dataset.from_csv(files, sep="\t")
        else:
            rows = Dataset.from_parquet(files)
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).split("\n", 1)[0][:200]
        raise InputError(f"{files[0]} cannot be read ({reason}); get it anew.") from error
    assert isinstance(rows, Dataset)
    features: dict[str, Any] = dict(rows.features)
    for column, feature in features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            rows = rows.cast_column(column, List(Image(decode=False)))
    return rows


def _select_rows(benchmark: Benchmark, rows: "Dataset", limit: int | None) -> "Dataset":
    units: dict[Any, list[int]] = {}
    for index, row in enumerate(without_images(rows)):
        if benchmark.rows is None or benchmark.rows(row):
            unit = benchmark.unit(row) if benchmark.unit else index
            units.setdefault(unit, []).append(index)
    selected: list[int] = []
    for indices in units.values():
        if limit is not None and len(selected) >= limit:
            break
        selected += indices
    return rows.select(sorted(selected))
