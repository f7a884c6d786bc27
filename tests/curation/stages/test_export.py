"""What is exported and read again is the same, whatever the ids are; half an export never looks
whole.
"""

import gc
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from aligncurate import bucket, export, ingest, sample, score, validate
from aligncurate.cli import app
from aligncurate.exports.hugging_face import feature_of
from aligncurate.sources import open_source
from aligncurate.sources.files import read_image
from aligncurate.sources.llava import LlavaSource
from aligncurate.stages.export import read_export
from aligncurate.stages.settings import Format
from alignshared import Dataset, InputError, Parent
from alignshared.atomic import UNFINISHED
from alignshared.schema import with_features
from tests.curation.datasets import (
    cosines,
    files_in,
    replace_rows,
    write_levelled_dataset,
    write_scored_dataset,
)
from tests.curation.inputs import record, rows_of, score_good_pairs, write_llava
from tests.curation.inputs import rows as source_rows
from tests.curation.pictures import animated_gif, encoded, noise, photo

FORMATS: list[Format] = ["llava", "webdataset", "hf"]

HOSTILE_IDS = [
    "../../../../outside", "/etc/passwd", "..", ".", "", "a/b/c", "a\\b", "A", "a", "con",
    "nul.txt", "x" * 3_000, "line\nfeed\r\n", "tab\t\0zero", "\u202egnp.exe", "e\u0301", "\u00e9",
    "~", "$(id)",
    "name.tar.gz", "00000/000000001.jpg", '"quoted"', "-rf", "emoji \U0001f600", " ", "%2e%2e%2f",
]  # fmt: skip
CAPTIONS = ["plain", "two\nlines", '"quoted" \\ \u2028 line', "emoji \U0001f600", "<image>", " "]


def varied(folder: Path, count: int = 26) -> Dataset:
    """Levelled pairs with hostile ids, pictures in several formats, and columns of the source."""
    dataset = write_levelled_dataset(
        folder, cosines(count), 8, ids=HOSTILE_IDS[:count], shards=4, images=False
    )
    pictures = [
        photo(1), encoded(noise(2)), encoded(noise(3), "WEBP"), animated_gif(),
        encoded(noise(4), "BMP"), encoded(noise(5), "TIFF"), b"no picture at all",
    ]  # fmt: skip
    rows = rows_of(dataset)
    for i, row in enumerate(rows):
        row["image"] = {"bytes": pictures[i % 7], "path": f"../{i}.jpg"}
        row["caption"] = CAPTIONS[i % len(CAPTIONS)]
        row["language"] = None if i % 5 == 0 else "de"
        row["tags"] = [f"tag {i}", None]
        row["weight"] = float("nan") if i == 3 else i / 7
        row["digest"] = b"\xff\x00"
        row["day"] = None
    schema = pa.schema(
        [
            *dataset.schema,
            ("language", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("weight", pa.float64()),
            ("digest", pa.binary()),
            ("day", pa.date32()),
        ]
    )
    return replace_rows(dataset, pa.Table.from_pylist(rows, with_features(schema)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return varied(tmp_path_factory.mktemp("varied") / "bucket")


def picture_of(row: dict[str, Any]) -> bytes:
    return row["image"]["bytes"]


def records_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "pairs.json").read_text(encoding="utf-8"))


SUFFIXES = ["jpg", "png", "webp", "gif", "bmp", "tif", "bin"]


# LLaVA


def test_llava_is_what_the_authors_trainer_reads(tmp_path: Path, source: Dataset) -> None:
    done = export(source.location, tmp_path / "out", format="llava", pairs_per_file=10)
    records = records_of(tmp_path / "out")
    rows = rows_of(source)
    assert (done.rows, done.pictures, done.without_picture) == (26, 26, 0)
    assert [r["id"] for r in records] == [row["id"] for row in rows]
    # What `--data_path pairs.json --image_folder .` of that trainer makes of a record.
    for i, (found, row) in enumerate(zip(records, rows, strict=True)):
        assert found["image"] == f"images/{i // 10:05d}/{i:09d}.{SUFFIXES[i % 7]}"
        assert (tmp_path / "out" / found["image"]).read_bytes() == picture_of(row)
        assert type(found["similarity"]) is int
        assert found["similarity"] == row["level"] - 1
        human, gpt = found["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].count("<image>") == 1
        assert gpt["value"] == row["caption"]
        assert found["score"] == row["score"]
    assert {r["similarity"] for r in records} == set(range(8))


def test_llava_comes_back_through_its_own_source(tmp_path: Path) -> None:
    pictures = [photo(i) for i in range(20)]
    ids = [id_ for id_ in HOSTILE_IDS if id_][:20]  # an empty id is derived anew
    dataset = write_levelled_dataset(
        tmp_path / "bucket", cosines(20), 8, ids=ids, images=False, shards=3
    )
    rows = rows_of(dataset)
    for row, content in zip(rows, pictures, strict=True):
        row["image"]["bytes"] = content
    dataset = replace_rows(dataset, pa.Table.from_pylist(rows, dataset.schema))
    export(dataset.location, tmp_path / "out", format="llava", pairs_per_file=7)
    again = LlavaSource(str(tmp_path / "out" / "pairs.json"))
    found = source_rows(again, tmp_path / "work")
    assert [row["id"] for row in found] == ids
    assert [row["caption"] for row in found] == [row["caption"] for row in rows]
    assert [read_image(again.image_root, r["image"]["path"]) for r in found] == pictures


def test_llava_keeps_conversations_and_text_alone(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}] * 2
    records = [record("seen"), {"id": "said", "conversations": turns}]
    data = write_llava(tmp_path / "in", records, {"seen.jpg": photo()})
    dataset = ingest(data, tmp_path / "ingest", image_root=str(tmp_path / "in" / "images"))
    done = export(dataset.location, tmp_path / "out", format="llava")
    seen, said = records_of(tmp_path / "out")
    assert seen["conversations"] == records[0]["conversations"]
    assert said == {"id": "said", "conversations": turns}
    assert (done.pictures, done.without_picture) == (1, 1)


def test_llava_without_levels_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scored = write_scored_dataset(tmp_path / "score", cosines(9))
    with caplog.at_level(logging.WARNING, "aligncurate"):
        export(scored.location, tmp_path / "plain", format="llava")
    assert "has no levels, so pairs.json has no `similarity`" in caplog.text
    assert all("similarity" not in r for r in records_of(tmp_path / "plain"))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "aligncurate"):
        export(bucket(scored.location, levels=3).location, tmp_path / "three", format="llava")
    assert "has 3 levels and the trainer of AlignGPT's authors has 8" in caplog.text


def test_a_score_that_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    scored = write_scored_dataset(tmp_path / "score", [0.5, float("nan"), None], images=False)
    export(scored.location, tmp_path / "out", format="llava")
    assert [r.get("score") for r in records_of(tmp_path / "out")] == [0.5, None, None]


def test_exported_pairs_are_scored_and_levelled_alike(tmp_path: Path, tiny_clip: str) -> None:
    levelled = bucket(score_good_pairs(tmp_path, tiny_clip).location, levels=3)
    export(levelled.location, tmp_path / "export", format="llava")
    again = score(tmp_path / "export" / "pairs.json", tmp_path / "again", model=tiny_clip)
    second = bucket(again.location, tmp_path / "again-levels", levels=3)
    names = ("id", "caption", "score", "level", "conversations", "width", "height")
    assert [{name: row[name] for name in names} for row in rows_of(second)] == [
        {name: row[name] for name in names} for row in rows_of(levelled)
    ]


# WebDataset


@contextmanager
def webdataset_leaves_files_open() -> Iterator[None]:
    """It closes a tar when the collector comes by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def samples_of(folder: Path, shuffle: int = 0) -> list[dict[str, Any]]:
    from webdataset.compat import WebDataset

    tars = sorted(str(path) for path in folder.glob("*.tar"))
    with webdataset_leaves_files_open():
        dataset: Any = WebDataset(tars, shardshuffle=bool(shuffle) and len(tars))
        return list(dataset.shuffle(shuffle) if shuffle else dataset)


@pytest.mark.parametrize("shuffle", [0, 100])
def test_webdataset_reads_its_tars(tmp_path: Path, source: Dataset, shuffle: int) -> None:
    done = export(source.location, tmp_path / "out", format="webdataset", pairs_per_file=10)
    assert [(file.file, file.rows) for file in done.files] == [
        ("00000.tar", 10), ("00001.tar", 10), ("00002.tar", 6), ("README.md", 0),
    ]  # fmt: skip
    samples = samples_of(tmp_path / "out", shuffle)
    rows = rows_of(source)
    keys = [sample["__key__"] for sample in samples]
    assert sorted(keys) == [f"{i:09d}" for i in range(26)]
    assert (keys == sorted(keys)) == (not shuffle)
    for sample_, row in ((s, rows[int(s["__key__"])]) for s in samples):
        suffix = SUFFIXES[int(sample_["__key__"]) % 7]
        assert sample_[suffix] == picture_of(row)
        assert sample_["txt"].decode() == row["caption"]
        told = json.loads(sample_["json"])
        assert told["id"] == row["id"]
        assert told["score"] == row["score"]
        assert told["level"] == row["level"]
        assert told["tags"] == row["tags"]
        assert told["weight"] == (None if row["weight"] != row["weight"] else row["weight"])
        assert not told.keys() & {"image", "digest"}


def test_its_tars_are_a_source_of_the_same_pairs(tmp_path: Path, source: Dataset) -> None:
    export(source.location, tmp_path / "out", format="webdataset", pairs_per_file=10)
    again = open_source(str(tmp_path / "out"))
    found = source_rows(again, tmp_path / "work")
    there = [
        row for number, row in enumerate(rows_of(source))
        if row["caption"].strip() and SUFFIXES[number % 7] != "bin"
    ]  # fmt: skip
    there[4]["id"] = "00000/000000004"  # it had none
    assert 15 < len(there) < 26
    for name in ("id", "caption"):
        assert [row[name] for row in found] == [row[name] for row in there]
    assert [row["image"]["bytes"] for row in found] == [picture_of(row) for row in there]


def test_webdataset_decodes_pictures(tmp_path: Path) -> None:
    from webdataset.compat import WebDataset

    dataset = write_scored_dataset(tmp_path / "score", cosines(5))
    export(dataset.location, tmp_path / "out", format="webdataset")
    tar = str(tmp_path / "out" / "00000.tar")
    with webdataset_leaves_files_open():
        pairs: Any = WebDataset(tar, shardshuffle=False).decode("pil").to_tuple("png", "txt")
        found = [(picture.size, caption) for picture, caption in pairs]
    assert found == [((48, 32), f"caption number {i}") for i in range(5)]


def test_tars_hold_nothing_but_plain_files_with_plain_names(
    tmp_path: Path, source: Dataset
) -> None:
    import re
    import tarfile

    export(source.location, tmp_path / "out", format="webdataset")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 26 * 3
    assert all(member.isreg() and (member.mtime, member.uid) == (0, 0) for member in members)
    assert all(re.fullmatch(r"\d{9}\.[a-z]+", member.name) for member in members)


# Hugging Face


def load(folder: Path, cache: Path) -> Any:
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(cache), split="train")


def test_datasets_loads_the_folder(tmp_path: Path, source: Dataset) -> None:
    import datasets

    export(source.location, tmp_path / "out", format="hf", pairs_per_file=9)
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == [
        f"train-0000{i}-of-00003.parquet" for i in range(3)
    ]
    loaded = load(tmp_path / "out", tmp_path / "cache")
    assert isinstance(loaded.features["image"], datasets.Image)
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    rows = rows_of(source)
    for name in ("id", "caption", "score", "level", "image", "tags", "language", "conversations"):
        assert list(raw[name]) == [row[name] for row in rows], name
    assert loaded[0]["image"].size == (90, 60)
    assert loaded.info.splits["train"].num_examples == 26


def test_what_hugging_face_gets_can_be_scored_again(tmp_path: Path, tiny_clip: str) -> None:
    levelled = bucket(score_good_pairs(tmp_path, tiny_clip).location, levels=3)
    export(levelled.location, tmp_path / "export", format="hf")
    again = score(tmp_path / "export", tmp_path / "again", model=tiny_clip)
    assert "level" not in again.schema.names
    names = ("id", "caption", "score", "width", "height")
    assert [{name: row[name] for name in names} for row in rows_of(again)] == [
        {name: row[name] for name in names} for row in rows_of(levelled)
    ]


@pytest.mark.parametrize("embedding", [False, True])
def test_the_card_names_types_as_datasets_does(source: Dataset, embedding: bool) -> None:
    import datasets

    schema = source.schema
    if embedding:
        schema = schema.append(pa.field("image_embedding", pa.list_(pa.float16(), 4)))
    schema = schema.append(pa.field("origin", pa.struct([("site", pa.list_(pa.int64()))])))
    schema = schema.append(pa.field("nested", pa.list_(pa.list_(pa.int8()))))
    schema = schema.append(pa.field("at", pa.timestamp("us")))
    features: Any = datasets.Features.from_arrow_schema(with_features(schema))
    assert [{"name": f.name} | feature_of(f) for f in schema] == features._to_yaml_list()


def test_the_card_tells_lineage_and_leaves_the_licence_open(tmp_path: Path) -> None:
    demo = [Parent("demo | <b>", None)]
    scored = write_scored_dataset(tmp_path / "secret-folder" / "score", cosines(40), parents=demo)
    levelled = bucket(scored.location, levels=4)
    export(sample(levelled.location, per_level=5).location, tmp_path / "out", format="hf")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    header = card.split("---\n")[1]
    assert "license" not in header
    assert "num_examples: 20" in header
    assert "## Licence" in card
    rows = [
        line for line in card.splitlines() if line.startswith(("| sample", "| bucket", "| sco"))
    ]
    assert rows == [
        f"| sample | 20 | 0 | 20 | `{Dataset(tmp_path / 'secret-folder' / 'sample').digest}` |",
        f"| bucket | 40 | 0 | 0 | `{levelled.digest}` |",
        f"| score | 40 | 0 | 0 | `{scored.digest}` |",
    ]
    assert "secret-folder" not in card
    assert "<b>" not in card


# All formats


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_beside_the_folder(
    tmp_path: Path, source: Dataset, format: Format
) -> None:
    inner = tmp_path / "a" / "b" / "out"
    export(source.location, inner, format=format)
    assert [
        path.relative_to(tmp_path) for path in tmp_path.rglob("*") if "out" not in path.parts
    ] == [Path("a"), Path("a/b")]
    names = [path.name for path in inner.rglob("*")]
    assert not any(name.startswith(UNFINISHED) or name == ".run" for name in names)
    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize("format", FORMATS)
def test_workers_change_no_byte(tmp_path: Path, source: Dataset, format: Format) -> None:
    for workers in (1, 4):
        out = tmp_path / str(workers)
        export(source.location, out, format=format, pairs_per_file=5, workers=workers)
    one, four = files_in(tmp_path / "1"), files_in(tmp_path / "4")
    assert one.keys() == four.keys()
    assert {name for name in one if one[name] != four[name]} <= {"export.json"}


@pytest.mark.parametrize("format", FORMATS)
def test_the_marker_tells_what_is_there(tmp_path: Path, source: Dataset, format: Format) -> None:
    import hashlib

    done = export(source.location, tmp_path, format=format, pairs_per_file=10)
    told = json.loads((tmp_path / "export.json").read_text())
    assert told["rows"] == done.rows == 26
    place = "/".join(Path(source.location).parts[-2:])
    assert told["parents"] == [{"location": place, "sha256": source.digest}]
    assert told["edges"] == source.manifest.edges
    assert told["config"]["format"] == format
    for file in done.files:
        content = (tmp_path / file.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)


@pytest.mark.parametrize("format", FORMATS)
def test_an_interrupted_export_goes_on_and_never_looks_finished(
    tmp_path: Path, source: Dataset, format: Format
) -> None:
    def stop(done: int, rejects: int = 0) -> None:
        if done:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    options: dict[str, Any] = {"format": format, "pairs_per_file": 5, "workers": 1}
    others: dict[str, Any] = options | {"pairs_per_file": 6}
    with pytest.raises(KeyboardInterrupt):
        export(source.location, out, on_progress=stop, **options)
    assert not (out / "export.json").exists()
    assert not (out / "pairs.json").exists()
    assert not (out / "README.md").exists()
    with pytest.raises(InputError, match=r"no export\.json"):
        read_export(out)
    with pytest.raises(InputError, match="holds an unfinished run with another configuration"):
        export(source.location, out, **others)
    written = {
        p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and ".run" not in p.parts
    }
    assert written
    export(source.location, out, **options)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    export(source.location, tmp_path / "quiet", **options)
    quiet, resumed = files_in(tmp_path / "quiet"), files_in(out)
    assert quiet.keys() == resumed.keys()
    assert {name for name in quiet if quiet[name] != resumed[name]} <= {"export.json"}


def test_what_was_taken_away_is_written_again(tmp_path: Path, source: Dataset) -> None:
    seen = 0

    def stop_late(done: int, rejects: int = 0) -> None:
        nonlocal seen
        seen += done
        if seen > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(
            source.location, tmp_path / "out", format="webdataset", pairs_per_file=5, workers=1,
            on_progress=stop_late,
        )  # fmt: skip
    os.remove(tmp_path / "out" / "00001.tar")
    done = export(source.location, tmp_path / "out", format="webdataset", pairs_per_file=5)
    assert done.rows == len(samples_of(tmp_path / "out")) == 26


def test_a_finished_export_is_left_alone(
    tmp_path: Path, source: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    first = export(source.location, tmp_path / "out", format="llava")
    before = files_in(tmp_path / "out")
    with caplog.at_level(logging.INFO, "aligncurate"):
        assert export(source.location, tmp_path / "out", format="llava", workers=3) == first
    assert "finished already" in caplog.text
    assert files_in(tmp_path / "out") == before
    with pytest.raises(InputError, match="format is 'llava' there and 'hf' here"):
        export(source.location, tmp_path / "out", format="hf")
    export(source.location, tmp_path / "out", format="hf", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "data", "export.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("notes", "is not empty and holds no export.json"),
        ("dataset", "is not empty and holds no export.json"),
        ("input", "is the input or holds it"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_other_folders_are_left_alone(
    tmp_path: Path, what: str, message: str, overwrite: bool
) -> None:
    source = write_scored_dataset(tmp_path / "input", cosines(4), images=False)
    write_scored_dataset(tmp_path / "dataset", cosines(4), images=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    before = files_in(tmp_path)
    with pytest.raises(InputError, match=message):
        export(source.location, tmp_path / what, format="hf", overwrite=overwrite)
    assert files_in(tmp_path) == before


def test_stages_do_not_write_over_an_export(tmp_path: Path, source: Dataset) -> None:
    export(source.location, tmp_path / "out", format="llava")
    with pytest.raises(InputError, match="is not empty and holds no dataset"):
        sample(source.location, tmp_path / "out", rows=3, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "--format must be llava, webdataset or hf .got csv"),
        ({"format": "hf", "pairs_per_file": 0}, "--pairs-per-file must be at least 1 .got 0"),
        ({"format": "hf", "workers": 0}, "--workers must be at least 1 .got 0"),
    ],
)
def test_arguments_that_cannot_be(
    tmp_path: Path, source: Dataset, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export(source.location, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_pairs_that_span_shards_and_row_groups(tmp_path: Path) -> None:
    # 700 pairs in two shards of two row groups each, cut at 300.
    dataset = write_scored_dataset(
        tmp_path / "score", np.linspace(0, 1, 700, dtype=np.float32).tolist(), shards=2
    )
    export(dataset.location, tmp_path / "out", format="webdataset", pairs_per_file=300)
    found = [json.loads(sample_["json"])["id"] for sample_ in samples_of(tmp_path / "out")]
    assert found == [f"pair-{i:04d}" for i in range(700)]


def test_the_command_tells_what_it_wrote(workdir: Path) -> None:
    write_levelled_dataset(workdir / "data" / "mine" / "bucket", cosines(12), 4)
    told = CliRunner().invoke(app, ["export", "--format", "llava"])
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("data/mine/export-llava: 12 pairs in 1 file, ")
    assert told.stdout.endswith("and 12 pictures beside\n")
    assert "4 levels" in told.stderr
    assert CliRunner().invoke(app, ["export", "--format", "csv"]).exit_code == 2
    assert CliRunner().invoke(app, ["export"]).exit_code == 2
    shown = CliRunner().invoke(app, ["inspect", "--input", "data/mine/export-llava"])
    assert shown.exit_code == 2
    assert validate("data/mine/bucket").ok
