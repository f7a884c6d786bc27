"""Dataset cards: `README.md` beside an export, in the Hub's form, with its levels and lineage."""

from collections.abc import Iterator
from typing import Any

from aligncurate.reporting.format import count_text, printable, score_text, share_text
from aligncurate.reporting.lineage import ancestors
from alignshared import Dataset, ShardInfo, Storage
from alignshared.schema import SCORE_COLUMN

CARD_FILE = "README.md"


def write_card(output: Storage, dataset: Dataset, files: str, **header: Any) -> ShardInfo:
    """Write the card of the export in `output`, whose split `train` is the `files` of a pattern.

    `header` has further fields of `DatasetCardData`.
    """
    from huggingface_hub import DatasetCardData

    split = {"split": "train", "path": files}
    data = DatasetCardData(configs=[{"config_name": "default", "data_files": [split]}], **header)
    text = "\n".join(_text(dataset))
    card = f"---\n{data.to_yaml()}\n---\n\n{text}\n".encode()
    return ShardInfo(CARD_FILE, 0, len(card), output.write_bytes(CARD_FILE, card))


def _text(dataset: Dataset) -> Iterator[str]:
    manifest = dataset.manifest
    model = manifest.model and manifest.model.named()
    yield from (f"# {count_text(manifest.rows, 'image-text pair')}", "")
    if model:
        yield (
            f"`score` is the cosine of image and caption by CLIP {_cell(model.name)} (weights "
            f"{_cell(model.weights)}, {model.precision}, {model.image_size} px, SHA-256 "
            f"`{_cell(model.weights_sha256)}`)."
        )
        yield ""
    if manifest.level_statistics and manifest.edges:
        yield from ("## Levels", "")
        by = _cell(manifest.by or SCORE_COLUMN)
        yield from (f"`level` is 1 plus the number of edges that are not above `{by}`.", "")
        yield f"| level | from {by} | pairs | share | mean {by} |"
        yield "|--:|--:|--:|--:|--:|"
        for level, edge in zip(manifest.level_statistics, (None, *manifest.edges), strict=True):
            yield (
                f"| {level.level} | {score_text(edge)} | {level.count:,} | "
                f"{share_text(level.share)} | {score_text(level.mean)} |"
            )
        yield ""
    yield from ("## Lineage", "")
    yield "| stage | pairs | rejects | left out | SHA-256 of its manifest |"
    yield "|---|--:|--:|--:|---|"
    yield _lineage_row(dataset.digest, dataset)
    # Locations are left out: they are local to the machine that wrote the card.
    for ancestor in ancestors(dataset):
        yield _lineage_row(ancestor.parent.sha256, ancestor.dataset)
    yield from ("", f"Written by {_cell(manifest.package)}.", "", "## Licence", "")
    yield (
        "Images and captions keep the licences of where they come from. Whoever publishes this "
        "names them here, and as `license` in the header."
    )


def _lineage_row(digest: str | None, dataset: Dataset | None) -> str:
    known = f"`{_cell(digest)}`" if digest else ""
    if dataset is None:
        return f"| source or not at hand | | | | {known} |"
    manifest = dataset.manifest
    return (
        f"| {_cell(manifest.stage)} | {manifest.rows:,} | {manifest.reject_count:,} | "
        f"{manifest.left_out:,} | {known} |"
    )


def _cell(text: str) -> str:
    """Escape `text` for a Markdown table cell."""
    return "".join("_" if c in "|`<>[]&\\" else c for c in printable(text))
