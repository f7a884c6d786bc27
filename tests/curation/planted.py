"""Datasets with planted duplicates, scored with a real CLIP and embeddings."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from aligncurate import Execution, score
from alignshared import Dataset, demo
from alignshared.images import decode_image

DIFFERENT = (
    "blue heart", "fire engine", "pizza", "frog", "flamingo", "hospital", "octopus", "rose",
    "bomb", "volcano",
)  # fmt: skip
"""Concepts whose drawings the demo CLIP does not take for each other."""


def demo_pictures() -> dict[str, tuple[bytes, str]]:
    """Picture and caption, by concept, of the demo's test images of `DIFFERENT`."""
    table = pq.read_table(demo.held_out_path(), columns=["concept", "image", "caption"])
    return {
        row["concept"]: (row["image"]["bytes"], row["caption"])
        for row in table.to_pylist()
        if row["concept"] in DIFFERENT
    }


def as_jpeg(data: bytes, quality: int = 85) -> bytes:
    """The picture in another file, with what JPEG loses."""
    out = io.BytesIO()
    decode_image(data).save(out, "JPEG", quality=quality)
    return out.getvalue()


def twice_as_large(data: bytes) -> bytes:
    """The picture resized, as PNG."""
    picture, out = decode_image(data), io.BytesIO()
    size = (2 * picture.width, 2 * picture.height)
    picture.resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def score_planted(
    folder: Path, rows: list[tuple[str, bytes, str]], *, embeddings: bool = True
) -> Dataset:
    """`folder/score`: ids, pictures and captions of `rows`, scored with the demo CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(zip(("id", "image", "caption"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, folder / "pairs.parquet")
    return score(
        str(folder / "pairs.parquet"),
        folder / "score",
        model="demo",
        embeddings=embeddings,
        shard_rows=5,
        execution=Execution(engine="local", workers=1),
    )


def planted_rows() -> list[tuple[str, bytes, str]]:
    """The ten pictures, and of the first four: the same bytes under another caption, a JPEG, a
    larger one, the same bytes again.
    """
    pictures = demo_pictures()
    rows = [(concept, *pictures[concept]) for concept in DIFFERENT]
    heart, engine, pizza, frog = (pictures[concept] for concept in DIFFERENT[:4])
    return [
        *rows,
        ("heart-again", heart[0], "something else entirely"),
        ("engine-jpeg", as_jpeg(engine[0]), engine[1]),
        ("pizza-large", twice_as_large(pizza[0]), pizza[1]),
        ("frog-b", frog[0], frog[1]),
        ("frog-a", frog[0], frog[1]),
    ]
