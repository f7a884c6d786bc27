"""Pairs as the web has them, made from the demo's drawings, in the layout each contender reads.

JPEG files of 224 to 500 pixels a side, a drawing on a textured ground, some 40 KB each, as in
LLaVA-Pretrain; captions of one to five of the demo's phrases. Speed depends on sizes and lengths
and not on what is seen, so what matters is that every contender gets the same bytes.
"""

import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from alignshared import demo

CACHE = Path("~/.cache/alignstack/benchmarks").expanduser()
TARS = 4

_STRAIGHT = str.maketrans({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
_JOINTS = (" and ", " with ", ", ", " next to ")
_PHRASES = (1, 2, 3, 4, 5)
_SHARES = (20, 45, 25, 8, 2)
_SIZES = ((300, 224), (336, 336), (400, 300), (448, 336), (300, 400), (500, 375), (224, 224))


@dataclass(frozen=True, slots=True)
class Corpus:
    """The first `count` pairs: a LLaVA JSON beside the `images` folder, tar files of `.jpg` and
    `.txt`, and data-juicer's JSON Lines.
    """

    folder: Path
    count: int

    @property
    def images(self) -> Path:
        """Folder of the pictures of all corpora."""
        return self.folder.parent / "images"

    @property
    def llava(self) -> Path:
        """LLaVA JSON."""
        return self.folder / "pairs.json"

    @property
    def juicer(self) -> Path:
        """data-juicer's JSON Lines, with absolute paths."""
        return self.folder / "juicer.jsonl"

    @property
    def tars(self) -> list[Path]:
        """The same number of pairs in each, in order."""
        return [self.folder / f"{number}.tar" for number in range(TARS)]

    def captions(self) -> dict[str, str]:
        """The caption of each pair by its id, which is also the stem of its picture's name."""
        records = json.loads(self.llava.read_text(encoding="utf-8"))
        return {record["id"]: record["caption"] for record in records}


def demo_drawings() -> list[dict[str, Any]]:
    """Return the rows of the demo pairs, of each drawing the first: `image` and `caption`."""
    rows = pq.read_table(demo.pairs_path(), columns=["image", "caption"]).to_pylist()
    drawings: dict[str, dict[str, Any]] = {}
    for row in rows:
        drawings.setdefault(row["image"]["path"], row)
    return list(drawings.values())


def make_corpus(count: int) -> Corpus:
    """Write the first `count` pairs in all layouts, unless an earlier run did."""
    # The folder is named after the demo pairs that the corpus is made of.
    digest = hashlib.sha256(demo.pairs_path().read_bytes()).hexdigest()
    root = CACHE / f"corpus-{digest[:8]}"
    corpus = Corpus(root / f"first-{count}", count)
    if corpus.llava.exists():
        return corpus
    records = _records(count)
    corpus.images.mkdir(parents=True, exist_ok=True)
    corpus.folder.mkdir(exist_ok=True)
    drawings = [row["image"]["bytes"] for row in demo_drawings()]
    for number, record in enumerate(records):
        path = corpus.images / record["image"]
        if not path.exists():
            path.write_bytes(_picture(drawings[number % len(drawings)], number))
    lines = [_juicer_line(record, corpus.images) for record in records]
    corpus.juicer.write_text("\n".join(lines) + "\n", encoding="utf-8")
    per_tar = -(-count // TARS)
    for number, path in enumerate(corpus.tars):
        _write_tar(path, records[number * per_tar : (number + 1) * per_tar], corpus.images)
    corpus.llava.write_text(json.dumps(records), encoding="utf-8")
    return corpus


def _records(count: int) -> list[dict[str, Any]]:
    captions = pq.read_table(demo.pairs_path(), columns=["caption"])["caption"].to_pylist()
    # open_clip's tokenizer straightens quotes and that of transformers, in data-juicer, does not.
    phrases = list(dict.fromkeys(caption.translate(_STRAIGHT) for caption in captions))
    chance = random.Random(0)
    known: set[str] = set()
    records: list[dict[str, Any]] = []
    while len(records) < count:
        number = chance.choices(_PHRASES, _SHARES)[0]
        caption = phrases[len(records) % len(phrases)]
        for _ in range(number - 1):
            caption += chance.choice(_JOINTS) + chance.choice(phrases)
        if caption not in known:  # equal captions would be embedded once by some contenders
            known.add(caption)
            id_ = f"{len(records):06d}"
            records.append({"id": id_, "image": f"{id_}.jpg", "caption": caption})
    return records


def _picture(drawing: bytes, number: int) -> bytes:
    chance = np.random.default_rng(number)
    width, height = _SIZES[number % len(_SIZES)]
    coarse = Image.fromarray(chance.integers(40, 216, (5, 5, 3), dtype=np.uint8))
    ground = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    ground = ground + chance.normal(0, 8, (height, width, 1)).astype(np.float32)
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    side = int(min(width, height) * chance.uniform(0.5, 0.9))
    figure = Image.open(io.BytesIO(drawing)).convert("RGB").resize((side, side))
    mask = figure.convert("L").point([255] * 246 + [0] * 10)  # its white ground stays out
    left, top = (int(chance.integers(0, room + 1)) for room in (width - side, height - side))
    picture.paste(figure, (left, top), mask)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _juicer_line(record: dict[str, Any], images: Path) -> str:
    line = {
        "id": record["id"],
        "text": f"<__dj__image> {record['caption']}",
        "images": [str(images / record["image"])],
    }
    return json.dumps(line)


def _write_tar(path: Path, records: list[dict[str, Any]], images: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for record in records:
            tar.add(images / record["image"], arcname=record["image"])
            caption = record["caption"].encode()
            entry = tarfile.TarInfo(f"{record['id']}.txt")
            entry.size = len(caption)
            tar.addfile(entry, io.BytesIO(caption))
