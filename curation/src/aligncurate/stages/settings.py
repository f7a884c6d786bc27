"""Settings of the stages, one class each: keyword arguments of its function and options of its
command. Imports little, for a fast `--help`.

A field `Annotated[TYPE, HELP]` is an option; a third part gives the command-line type where
Python accepts more. A field that holds other settings stands for their fields.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, ClassVar, Literal, get_args

from aligncurate.settings import (
    UNIT_TIMEOUT_S,
    Conditions,
    Decode,
    Execution,
    Location,
    LongCaptions,
    OnProgress,
    Over,
    Precision,
    ShowProgress,
    View,
    require_at_least,
    require_one_of,
    silent,
)
from alignshared.errors import InputError

Format = Literal["llava", "webdataset", "hf"]
Keep = Literal["best", "first"]
Chains = Literal["split", "whole"]

Input = Annotated[
    Location | None, "Dataset to read; by default the newest suitable one in data/.", str | None
]
Output = Annotated[
    Location | None, "Folder to write; by default a sibling of the input.", str | None
]
ImageRoot = Annotated[
    str | None, "Folder that paths of images start from; by default the input's own."
]
Workers = Annotated[int | None, "Threads; by default one per core."]
Overwrite = Annotated[bool, "Replace the dataset or unfinished run in the output."]
RetryFailed = Annotated[bool, "Try units again that failed in earlier runs."]
SkipFailed = Annotated[bool, "Leave failed units out: their rows become rejects."]

SHOWN_STAGES = ("sample", "filter", "bucket", "score")


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """Arguments of `score` and options of `aligncurate score`."""

    input: Annotated[
        Location,
        "demo, laion-cc-sbu, a LLaVA .json or .jsonl, Parquet or WebDataset tars (file, folder, "
        "glob), or a folder of images; on disk, s3://, gs://, hf://datasets/.",
        str,
    ]
    output: Annotated[
        Location | None, "Folder to write; by default data/<name>/score.", str | None
    ] = None
    image_root: ImageRoot = None
    model: Annotated[
        str | Sequence[str] | None,
        "open_clip architecture, hf-hub: name, folder, or demo. By default demo for the demo "
        "pairs, else ViT-L-14-336. Given several times, as MODEL or NAME=MODEL, each writes "
        "score_NAME.",
        list[str] | None,
    ] = None
    weights: Annotated[
        str | Sequence[str] | None,
        "Pretrained tag or weights file of an architecture; by default openai. With several "
        "models NAME=WEIGHTS.",
        list[str] | None,
    ] = None
    main: Annotated[
        str | None, "Which of several models gives score and embeddings; by default the first."
    ] = None
    view: Annotated[
        View | None, "Crop an image's centre or pad it to a square; by default the model's own way."
    ] = None
    long_captions: Annotated[
        LongCaptions, "Cut captions that are too long, or take the mean of their windows."
    ] = "truncate"
    decode: Annotated[
        Decode, "fast: decode JPEGs much larger than the model's input at reduced scale."
    ] = "exact"
    precision: Annotated[
        Precision | Literal["auto"],
        "auto: fp32 on CPU, bf16 on GPU.",
        Literal["auto", "fp32", "bf16", "fp16"],
    ] = "auto"
    batch_size: Annotated[
        int | None, "Pairs per forward pass; by default 64 on CPU, 256 on GPU."
    ] = None
    shard_rows: Annotated[
        int | None, "Pairs per shard; by default 256 to 1,024, by their number."
    ] = None
    embeddings: Annotated[bool, "Also write both embeddings, as float16 unit vectors."] = False
    overwrite: Overwrite = False
    retry_failed: RetryFailed = False
    skip_failed: SkipFailed = False
    execution: Execution = field(default_factory=Execution)
    show_progress: ShowProgress | None = None

    def __post_init__(self) -> None:
        require_at_least(1, batch_size=self.batch_size, shard_rows=self.shard_rows)
        require_one_of("--view", self.view or "crop", get_args(View))
        require_one_of("--long-captions", self.long_captions, get_args(LongCaptions))
        require_one_of("--decode", self.decode, get_args(Decode))
        require_one_of("--precision", self.precision, ("auto", *get_args(Precision)))


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """Arguments of `ingest`."""

    input: Annotated[Location, "LLaVA instruction data: a .json or .jsonl with conversations.", str]
    output: Annotated[
        Location | None, "Folder to write; by default data/<name>/ingest.", str | None
    ] = None
    _: KW_ONLY
    image_root: ImageRoot = None
    shard_rows: Annotated[
        int | None, "Records per shard; by default 256 to 1,024, by their number."
    ] = None
    unit_timeout: Annotated[
        float, "Seconds without progress after which a unit counts as failed."
    ] = UNIT_TIMEOUT_S
    retry_failed: RetryFailed = False
    skip_failed: SkipFailed = False
    overwrite: Overwrite = False
    on_progress: OnProgress = silent

    def __post_init__(self) -> None:
        require_at_least(1, shard_rows=self.shard_rows)


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """Arguments of `bucket`."""

    stages: ClassVar[tuple[str, ...]] = ("score",)
    input: Input = None
    output: Output = None
    _: KW_ONLY
    levels: Annotated[int | None, "Number of levels; 8 by default."] = None
    edges: Annotated[
        Location | None, "levels.json of an earlier run whose edges to use.", str | None
    ] = None
    scheme: Annotated[
        Literal["quantile", "equal-width"], "Levels of equal size, or of equal width in score."
    ] = "quantile"
    by: Annotated[
        str | None,
        "Column of numbers to sort by, such as score_NAME; by default score, or that of --edges.",
    ] = None
    workers: Workers = None
    overwrite: Overwrite = False
    on_progress: OnProgress = silent

    def __post_init__(self) -> None:
        if self.levels is not None and self.edges is not None:
            raise InputError(
                "--levels and --edges were both given; give --levels to find edges in the data, or "
                "--edges to use those of an earlier run."
            )
        require_one_of("--scheme", self.scheme, ("quantile", "equal-width"))


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """Arguments of `filter`."""

    stages: ClassVar[tuple[str, ...]] = ("bucket", "score")
    conditions: Conditions
    input: Input = None
    output: Output = None
    _: KW_ONLY
    workers: Workers = None
    overwrite: Overwrite = False
    on_progress: OnProgress = silent


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """Arguments of `sample`."""

    stages: ClassVar[tuple[str, ...]] = ("filter", "bucket")
    input: Input = None
    output: Output = None
    _: KW_ONLY
    rows: Annotated[int | None, "Pairs in all, as evenly from the levels as possible."] = None
    per_level: Annotated[int | None, "Pairs of each level."] = None
    seed: Annotated[int, "Another seed draws other pairs."] = 0
    workers: Workers = None
    overwrite: Overwrite = False
    on_progress: OnProgress = silent

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.per_level is None):
            raise InputError(
                "give either --rows, the pairs in all, or --per-level, the pairs of each level."
            )
        require_at_least(1, rows=self.rows, per_level=self.per_level, workers=self.workers)


@dataclass(frozen=True, slots=True)
class DedupSettings:
    """Arguments of `dedup`.

    The default threshold is the lowest in benchmarks/dedup_planted.py, on planted copies and
    merely similar images, that loses at most one in twenty images of the hardest kind, drawings.
    """

    stages: ClassVar[tuple[str, ...]] = ("bucket", "score")
    input: Input = None
    output: Output = None
    _: KW_ONLY
    threshold: Annotated[float, "Least cosine of the image embeddings of near duplicates."] = 0.99
    keep: Annotated[Keep, "Which pair stays: the best scored, or the first in the dataset."] = (
        "best"
    )
    exact_only: Annotated[bool, "Only images of the same bytes; no embeddings needed."] = False
    chains: Annotated[
        Chains,
        "Of A near B near C: split leaves out pairs near to the one that stays, whole all but one.",
    ] = "split"
    recall: Annotated[float, "Least share of near pairs to find, where not all are compared."] = (
        0.99
    )
    workers: Workers = None
    overwrite: Overwrite = False
    on_progress: OnProgress = silent

    def __post_init__(self) -> None:
        for option, share in (("--threshold", self.threshold), ("--recall", self.recall)):
            if not 0 < share <= 1:
                raise InputError(f"{option} must be above 0 and at most 1 (got {share}).")
        require_one_of("--keep", self.keep, get_args(Keep))
        require_one_of("--chains", self.chains, get_args(Chains))


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Arguments of `search`."""

    stages: ClassVar[tuple[str, ...]] = ("bucket", "score")
    input: Input = None
    _: KW_ONLY
    text: Annotated[str | None, "What to look for, in words."] = None
    image: Annotated[
        Location | None, "File of an image to look for, instead of words.", str | None
    ] = None
    top: Annotated[int, "Pairs to give."] = 10
    over: Annotated[Over, "Which embeddings to compare with."] = "images"
    weights: Annotated[
        str | None, "Where the weights that the pairs were scored with lie now, if moved."
    ] = None
    on_progress: OnProgress = silent

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise InputError("give one of --text and --image: what to look for.")
        if self.text is not None and not self.text.strip():
            raise InputError("--text is empty; say what to look for.")
        require_at_least(1, top=self.top)
        if self.over not in get_args(Over):
            raise InputError(f"--over {self.over} is unknown; give images or captions.")


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Arguments of `report`."""

    stages: ClassVar[tuple[str, ...]] = SHOWN_STAGES
    input: Input = None
    output: Output = None
    _: KW_ONLY
    against: Annotated[
        Location | None, "Another scored dataset to compare the input with.", str | None
    ] = None
    examples: Annotated[int, "Example pairs to show of each level."] = 8
    on_progress: OnProgress = silent

    def __post_init__(self) -> None:
        require_at_least(1, examples=self.examples)


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """Arguments of `export`."""

    stages: ClassVar[tuple[str, ...]] = ("sample", "filter", "bucket")
    input: Input = None
    output: Output = None
    _: KW_ONLY
    format: Annotated[Format, "LLaVA JSON with images, WebDataset tars, or Hugging Face datasets."]
    pairs_per_file: Annotated[
        int | None, "Pairs in a tar or Parquet file, or in a folder of images."
    ] = None
    workers: Workers = None
    overwrite: Annotated[bool, "Replace the export in the output."] = False
    on_progress: OnProgress = silent

    def __post_init__(self) -> None:
        require_one_of("--format", self.format, get_args(Format))
        require_at_least(1, pairs_per_file=self.pairs_per_file)


@dataclass(frozen=True, slots=True)
class ValidateSettings:
    """Arguments of `validate` and, but for progress, of `inspect`."""

    stages: ClassVar[tuple[str, ...]] = SHOWN_STAGES
    input: Input = None
    _: KW_ONLY
    on_progress: OnProgress = silent
