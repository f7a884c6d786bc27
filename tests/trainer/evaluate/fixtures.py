"""Small benchmarks in the form of the Hub's, and a model whose every answer is known."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from PIL import ImageDraw
from typer.testing import CliRunner

from aligntrain.cli import app
from aligntrain.runs.folder import EXPORT
from tests.trainer import tiny

TEN = ["red", "red", "red", "A", "blue", "blue", "blue", "blue", "blue", "blue"]


def drawing(place: int) -> Pictures.Image:
    """A disk on a wide ground; another for each place."""
    picture = Pictures.new("RGB", (48, 30), (30 * place % 256, 90, 200))
    ImageDraw.Draw(picture).ellipse((4 + place, 4, 24 + place, 24), fill=(250, 40 * place % 256, 9))
    return picture


def table(file: Path, rows: list[dict[str, Any]], *, lists: bool = False) -> Path:
    """`rows` with pictures as a Parquet file that says which column they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(rows)
    features = Features({**data.features, "image": List(Image()) if lists else Image()})
    data.cast(features).to_parquet(str(file))
    return file


def encoded(place: int) -> dict[str, Any]:
    out = io.BytesIO()
    drawing(place).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": f"{place}.png"}


def pope(folder: Path, each: int = 2) -> Path:
    """Three splits, yes and no in turn: always yes is right half the time, F1 2/3."""
    rows = [
        {
            "question_id": str(i), "question": f"Is there a disk{' at all' * (i % 3)}?",
            "answer": "yes" if i % 2 == 0 else "no", "category": split, "image": encoded(i),
        }
        for split in ("random", "popular", "adversarial") for i in range(each)
    ]  # fmt: skip
    return table(folder / "pope" / "data" / "test-00000-of-00001.parquet", rows)


def mme(folder: Path, pictures: int = 3) -> Path:
    rows = [
        {
            "question_id": f"count/{i}.png", "category": "count", "image": encoded(i),
            "question": f"Are there {n} disks? Please answer yes or no.", "answer": answer,
        }
        for i in range(pictures) for n, answer in ((1, "Yes"), (2, "No"))
    ]  # fmt: skip
    return table(folder / "mme.parquet", rows)


def textvqa(folder: Path) -> Path:
    rows = [
        {
            "question_id": i, "question": "What does IBM write?", "answers": TEN,
            "ocr_tokens": ["IBM", str(i)], "image": encoded(i),
        }
        for i in range(2)
    ]  # fmt: skip
    return table(folder / "textvqa.parquet", rows)


def vqav2(folder: Path, split: str) -> Path:
    answered = split == "validation"
    rows = [
        {
            "question_id": 10 + i, "question": "Which colour?", "image": encoded(i),
            "answers": [{"answer": text, "answer_id": j} for j, text in enumerate(TEN)]
            if answered else None,
        }
        for i in range(2)
    ]  # fmt: skip
    name = "vqav2-val" if answered else "vqav2"
    file = folder / name / "data" / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = List({"answer": Value("string"), "answer_id": Value("int64")})
    features = Features(
        {
            "question_id": Value("int64"), "question": Value("string"), "image": Image(),
            "answers": shape,
        }
    )  # fmt: skip
    Dataset.from_list(rows, features=features).to_parquet(str(file))
    return file


def vizwiz(folder: Path, name: str = "vizwiz") -> Path:
    rows = [
        {
            "question_id": f"VizWiz_test_0000000{i}.jpg", "question": "what is this?",
            "image": encoded(i), "answers": ["A"] * 2 + ["unanswerable"] * 8,
        }
        for i in range(2)
    ]  # fmt: skip
    return table(folder / f"{name}.parquet", rows)


def gqa(folder: Path) -> None:
    """Two tables, as on the Hub: questions, and pictures that several share."""
    place = folder / "gqa"
    questions = [
        {"id": f"q{i}", "imageId": f"n{i % 2}", "question": "Which?", "answer": "A" if i else "b"}
        for i in range(3)
    ]
    file = place / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    Dataset.from_list(questions).to_parquet(str(file))
    pictures = [{"id": f"n{i}", "image": encoded(i)} for i in range(2)]
    table(place / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", pictures)


def scienceqa(folder: Path) -> Path:
    rows = [
        {
            "question": "Which?", "choices": ["a dog", "an ox"], "answer": answer,
            "hint": "Look." if answer else "", "image": encoded(answer),
        }
        for answer in (0, 1, 0)
    ]  # fmt: skip
    name = "test-00000-of-00001-0123456789abcdef.parquet"
    return table(folder / "scienceqa" / "ScienceQA-IMG" / name, rows)


def seed(folder: Path) -> Path:
    rows = [
        {
            "question_id": str(i), "question": "How many?", "answer": answer, "data_type": kind,
            "question_type_id": 5, **{f"choice_{c}": f"{c}{c}" for c in "abcd"},
            "image": [encoded(i)] * (3 if kind == "video" else 1),
        }
        for i, (answer, kind) in enumerate(
            [("A", "image"), ("A", "video"), ("B", "image"), ("A", "image"), ("C", "image")]
        )
    ]  # fmt: skip
    return table(folder / "seed.parquet", rows, lists=True)


def mmbench(folder: Path, name: str = "mmbench") -> Path:
    """MMBench's own file: tabs, pictures in base64, later rotations naming the first one's row.

    Always A is right in both rotations of question 1, which has one option, and in one of 2's.
    """
    picture = base64.b64encode(encoded(1)["bytes"]).decode()
    other = base64.b64encode(encoded(2)["bytes"]).decode()
    rows = [
        ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"),
        (1, "Which?", "", "red", "", "", "", "A", "colour", picture),
        (2, "Which one?", "Look up.", "red", "blue", "", "", "A", "colour", other),
        (1_000_002, "Which one?", "Look up.", "blue", "red", "", "", "B", "colour", "2"),
    ]
    file = folder / f"{name}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ("\t".join(map(str, row)) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def llava_bench(folder: Path) -> Path:
    rows = [
        {
            "question_id": i, "question": f"Describe {i}.", "caption": "A disk.",
            "gpt_answer": f"A disk {i}.", "category": category, "image": encoded(i),
        }
        for i, category in enumerate(("conv", "detail", "complex"))
    ]  # fmt: skip
    return table(folder / "llava-bench.parquet", rows)


def mm_vet(folder: Path) -> Path:
    rows = [
        {
            "question_id": f"v1_{i}", "question": "What is x?", "answer": "1<AND>2",
            "capability": capability, "image": encoded(i),
        }
        for i, capability in enumerate(("ocr,math", "rec", "rec,know"))
    ]  # fmt: skip
    return table(folder / "mm-vet.parquet", rows)


def everything(folder: Path) -> Path:
    """All fourteen."""
    for make in (pope, mme, textvqa, gqa, scienceqa, seed, mmbench, llava_bench, mm_vet):
        make(folder)
    mmbench(folder, "mmbench-cn")
    for split in ("testdev", "validation"):
        vqav2(folder, split)
    vizwiz(folder)
    vizwiz(folder, "vizwiz-val")
    return folder


def run_that_says_a(folder: Path) -> Path:
    """A run's folder with a tiny model whose likeliest token is always `A`."""
    export = folder / EXPORT
    torch.manual_seed(0)
    text = tiny.text_config(max_position_embeddings=4096)
    model, _ = tiny.saved(export, text_config=text)
    with torch.no_grad():
        model.model.language_model.model.norm.weight.zero_()  # all tokens are as likely: the first
    model.save_pretrained(export)
    file = export / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    first = next(word for word, id_ in words.items() if id_ == 0)
    words[first], words["A"] = words["A"], 0
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def random_run(folder: Path) -> Path:
    """A run's folder with a tiny random model, which says something else to everything."""
    torch.manual_seed(0)
    text = tiny.text_config(max_position_embeddings=4096)
    tiny.saved(folder / EXPORT, text_config=text)
    return folder


def command(*words: Any) -> Any:
    """What `aligntrain eval` says."""
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def result(output: Path, name: str) -> dict[str, Any]:
    """What an evaluation in `output` has kept of a benchmark."""
    return json.loads((output / name / "result.json").read_text(encoding="utf-8"))
