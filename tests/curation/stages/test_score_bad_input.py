"""Bad input costs its own pair and no other: each has a reject with its reason, or the run says in
one sentence what is wrong.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from aligncurate import Execution, score
from alignshared import Dataset, InputError
from tests.curation import pictures
from tests.curation.clips import write_tiny_clip
from tests.curation.inputs import (
    good_pairs,
    record,
    reject_rows,
    rejects_of,
    rows_of,
    score_good_pairs,
    write_llava,
    write_parquet,
)

LOCAL = Execution(engine="local", workers=1)
Score = Callable[..., Dataset]


@pytest.fixture
def score_json(tmp_path: Path, tiny_clip: str) -> Score:
    """Score records, given as Python values or as the bytes of the JSON file."""

    def run(records: Any, files: dict[str, bytes] | None = None) -> Dataset:
        path = write_llava(tmp_path / "in", [], files or {})
        data = records if isinstance(records, bytes) else json.dumps(records).encode()
        path.write_bytes(data)
        return score(
            path,
            tmp_path / "out",
            image_root=str(tmp_path / "in" / "images"),
            model=tiny_clip,
            execution=LOCAL,
        )

    return run


GOOD_FILES = {
    "good.jpg": pictures.photo(0),
    "cmyk.jpg": pictures.cmyk_jpeg(),
    "grey16.png": pictures.grey_16_bit_png(),
    "palette.png": pictures.palette_png(),
    "transparent.png": pictures.transparent_png(),
    "animated.gif": pictures.animated_gif(),
    "rotated.jpg": pictures.rotated_jpeg(),
    "sub/folder/deep.jpg": pictures.photo(5),
}
BAD_FILES = {
    "truncated.jpg": (pictures.truncated_jpeg(), "corrupt_image"),
    "empty.jpg": (b"", "empty_file"),
    "text.jpg": (b"This is a letter, not a picture.\n" * 40, "not_an_image"),
    "bomb.png": (pictures.png_that_claims(30_000, 30_000), "too_many_pixels"),
    "just-too-large.png": (pictures.png_that_claims(9_500, 9_500), "too_many_pixels"),
    "line.png": (pictures.encoded(Image.new("RGB", (9_000, 1))), "too_many_pixels"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
}


def test_every_kind_of_picture_is_scored_or_rejected_with_its_reason(score_json: Score):
    files = GOOD_FILES | {name: data for name, (data, _) in BAD_FILES.items()}
    dataset = score_json([record(name, name) for name in files], files)
    rows = {row["id"]: row for row in rows_of(dataset)}
    assert rows.keys() == GOOD_FILES.keys()
    assert all(np.isfinite(row["score"]) for row in rows.values())
    assert rejects_of(dataset) == {name: reason for name, (_, reason) in BAD_FILES.items()}
    assert dataset.manifest.rows + dataset.manifest.reject_count == len(files)
    assert (rows["rotated.jpg"]["width"], rows["rotated.jpg"]["height"]) == (60, 90)
    assert (rows["good.jpg"]["width"], rows["good.jpg"]["height"]) == (90, 60)
    assert rows["good.jpg"]["image"] == {"bytes": GOOD_FILES["good.jpg"], "path": "good.jpg"}


def test_a_path_may_not_leave_the_image_root(score_json: Score, tmp_path: Path):
    outside, beside = tmp_path / "secret.jpg", tmp_path / "in" / "images-too" / "x.jpg"
    images = tmp_path / "in" / "images"
    for folder in (images, beside.parent):
        folder.mkdir(parents=True)
    for picture in (outside, beside):
        picture.write_bytes(pictures.photo(1))
    (images / "link.jpg").symlink_to(outside)
    (images / "inside.jpg").symlink_to("good.jpg")
    paths = {
        "up": "../../secret.jpg",
        "absolute": str(outside),
        "link": "link.jpg",
        "neighbour": "../images-too/x.jpg",
        "good": "good.jpg",
        "linked inside": "inside.jpg",
        "absolute inside": str(images / "good.jpg"),
    }
    records = [record(id_, path) for id_, path in paths.items()]
    dataset = score_json(records, {"good.jpg": pictures.photo(0)})
    left = ["up", "absolute", "link", "neighbour"]
    assert rejects_of(dataset) == dict.fromkeys(left, "path_outside_root")
    assert {row["id"] for row in rows_of(dataset)} == paths.keys() - set(left)


def test_what_is_no_file_is_missing(score_json: Score, tmp_path: Path):
    (tmp_path / "in" / "images" / "folder.jpg").mkdir(parents=True)
    os.mkfifo(tmp_path / "in" / "images" / "pipe.jpg")
    names = ["gone.jpg", "folder.jpg", "pipe.jpg", "nul\0.jpg", "x" * 5000 + ".jpg"]
    records = [record(str(i), name) for i, name in enumerate(names)]
    dataset = score_json([*records, record("good")], {"good.jpg": pictures.photo(0)})
    assert rejects_of(dataset) == {str(i): "missing_file" for i in range(len(names))}
    assert [row["id"] for row in rows_of(dataset)] == ["good"]


def test_captions_and_records_of_every_kind(score_json: Score):
    records = [
        record("good"),
        record("good", caption="the same id again"),
        record("empty", "good.jpg", " \n"),
        record("long", "good.jpg", "a long story of a cat. " * 435),
        record("one long word", "good.jpg", "ab" * 5000),
        record("old damage", "good.jpg", "caf\ufffd au lait"),
        {"id": "null", "image": "good.jpg", "caption": None},
        {"id": "number", "image": "good.jpg", "caption": 7},
        {"id": "no caption", "image": "good.jpg"},
        {"id": "no answer", "image": "good.jpg", "conversations": [{"from": "human"}]},
        {"id": "odd turns", "image": "good.jpg", "conversations": "none"},
        {"id": "no image", "caption": "a cat"},
        {"id": "null image", "image": None, "caption": "a cat"},
        {"id": "two images", "image": ["good.jpg", "good.jpg"], "caption": "a cat"},
        {"image": "good.jpg", "caption": "no id"},
        {"id": 7, "image": "good.jpg", "caption": "a number for an id"},
        "not a record",
        None,
    ]
    dataset = score_json(records, {"good.jpg": pictures.photo(0)})
    rows = {row["id"]: row for row in rows_of(dataset)}
    assert rows.keys() == {
        "good", "long", "one long word", "old damage", "pairs-000000014", "7"
    }  # fmt: skip
    assert {id_: row["caption_truncated"] for id_, row in rows.items()} == dict.fromkeys(
        rows, False
    ) | {"long": True, "one long word": True}
    assert len(rows["long"]["caption"]) > 10_000
    assert [(r["id"], r["reason"]) for r in reject_rows(dataset)] == [
        ("good", "duplicate_id"),
        ("empty", "empty_caption"),
        ("null", "no_caption"),
        ("number", "no_caption"),
        ("no caption", "no_caption"),
        ("no answer", "no_caption"),
        ("odd turns", "no_caption"),
        ("no image", "no_image"),
        ("null image", "no_image"),
        ("two images", "malformed_record"),
        ("pairs-000000016", "malformed_record"),
        ("pairs-000000017", "malformed_record"),
    ]
    assert dataset.manifest.rows + dataset.manifest.reject_count == len(records)


def test_invalid_utf8_in_json_spoils_one_record(score_json: Score):
    data = json.dumps([record(n, "good.jpg", f"caption {n}") for n in "abcd"]).encode()
    data = data.replace(b"caption b", b"caption \xff b").replace(b'"id": "c"', b'"id": "c\xc3"')
    dataset = score_json(data, {"good.jpg": pictures.photo(0)})
    assert [row["id"] for row in rows_of(dataset)] == ["a", "d"]
    rejects = reject_rows(dataset)
    assert [(r["id"], r["reason"]) for r in rejects] == [
        ("b", "invalid_utf8"),
        ("pairs-000000002", "invalid_utf8"),
    ]
    assert "caption \ufffd b" in rejects[0]["detail"]


def test_invalid_utf8_and_nulls_in_parquet_spoil_their_rows(tmp_path: Path, tiny_clip: str):
    raw = pa.array([b"fine", b"bad \xff", None, b"fine too", b"\xe2\x82", b"ok"])
    binary_ids = pa.array([b"a", b"b", b"c", b"d\xfe", b"e", b"f"])
    path = write_parquet(
        tmp_path / "in.parquet",
        {
            "id": pa.Array.from_buffers(pa.string(), 6, binary_ids.buffers()),
            "image": [pictures.photo(i) for i in range(5)] + [None],
            "caption": pa.Array.from_buffers(pa.string(), 6, raw.buffers()),
            "note": pa.Array.from_buffers(pa.string(), 6, raw.buffers()),
        },
    )
    dataset = score(path, tmp_path / "out", model=tiny_clip, execution=LOCAL)
    assert [row["id"] for row in rows_of(dataset)] == ["a"]
    assert [(r["id"], r["reason"]) for r in reject_rows(dataset)] == [
        ("b", "invalid_utf8"),
        ("c", "no_caption"),
        ("in-000000003", "invalid_utf8"),
        ("e", "invalid_utf8"),
        ("f", "no_image"),
    ]


def test_text_columns_of_the_sources_own_come_out_readable(tmp_path: Path, tiny_clip: str):
    raw = pa.array([b"fine", b"bad \xff"])
    path = write_parquet(
        tmp_path / "in.parquet",
        {
            "image": [pictures.photo(0)] * 2,
            "caption": ["a", "b"],
            "note": pa.Array.from_buffers(pa.string(), 2, raw.buffers()),
        },
    )
    dataset = score(path, tmp_path / "out", model=tiny_clip, execution=LOCAL)
    assert [row["note"] for row in rows_of(dataset)] == ["fine", "bad \ufffd"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"id": "a", "image": "a.jpg"}', "not a JSON list of records"),
        (b'"pairs"', "not a JSON list of records"),
        (b"", "not a JSON list of records"),
        (b"GIF89a", "not a JSON list of records"),
        ("[]".encode("utf-16"), "not a JSON list of records"),
        (b'[{"id": "a", "image": "a.jpg"}, {"id": "b", "ima', "cut short"),
        (b'[{"id": "a",, "image": "a.jpg"}]', "damaged JSON"),
        (b"[]", "there are no pairs in"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_one_sentence(
    score_json: Score, data: bytes, says: str, tmp_path: Path
):
    with pytest.raises(InputError, match=says) as caught:
        score_json(data)
    assert_one_sentence(caught.value, names="pairs.json")
    # The folder is not held by a run that never was: the mended file goes through.
    dataset = score_json([record("good")], {"good.jpg": pictures.photo(0)})
    assert dataset.manifest.rows == 1


def test_an_input_that_is_not_there_is_one_sentence(tmp_path: Path, tiny_clip: str):
    for name in ("gone.json", "gone.jsonl", "gone.parquet", "gone-*.parquet", "gone"):
        with pytest.raises(InputError) as caught:
            score(tmp_path / name, tmp_path / "out", model=tiny_clip, execution=LOCAL)
        assert_one_sentence(caught.value, names=name)
    with pytest.raises(InputError, match=r"--image-root .*no folder"):
        score(good_pairs(tmp_path / "in", 1), image_root=str(tmp_path / "nowhere"))


def test_an_unknown_model_names_its_neighbours(tmp_path: Path):
    with pytest.raises(InputError, match=r"architectures near it: .*ViT-B-32") as caught:
        score(good_pairs(tmp_path / "in", 1), tmp_path / "out", model="ViT-B32")
    assert_one_sentence(caught.value, names="ViT-B32")
    assert not (tmp_path / "out").exists()


def test_an_unknown_tag_names_the_known_ones(tmp_path: Path):
    with pytest.raises(InputError, match=r"its tags are .*openai") as caught:
        score(good_pairs(tmp_path / "in", 1), tmp_path / "out", model="ViT-B-32", weights="laion9b")
    assert_one_sentence(caught.value, names="laion9b")


def test_an_output_that_is_not_empty_is_left_as_it_is(tmp_path: Path, tiny_clip: str):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    pairs = good_pairs(tmp_path / "in", 1)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty and holds no dataset") as caught:
            score(pairs, out, model=tiny_clip, overwrite=overwrite)
        assert_one_sentence(caught.value, names="thesis.txt")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("place", ["file", "file/under", "/proc/alignstack/out", "/sys/out"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, tiny_clip: str, place: str
):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / place
    with pytest.raises(
        InputError, match=r"cannot be written to|is a file; name a folder"
    ) as caught:
        score(good_pairs(tmp_path / "in", 1), out, model=tiny_clip)
    assert_one_sentence(caught.value, names=str(out))


def test_overwriting_never_deletes_what_is_to_be_read(tmp_path: Path, tiny_clip: str):
    first = score_good_pairs(tmp_path, tiny_clip, 3)
    with pytest.raises(InputError, match="is the input or holds it"):
        score(first.location, first.location, model=tiny_clip, batch_size=2, overwrite=True)
    assert Dataset(first.location).manifest.rows == 3


def test_when_nothing_can_be_scored_the_rejects_are_kept_and_a_warning_says_why(
    score_json: Score, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, "aligncurate"):
        dataset = score_json([record("a"), record("b"), record("c", caption=" ")])
    assert dataset.manifest.rows == 0
    assert dataset.manifest.rejects == {"missing_file": 2, "empty_caption": 1}
    assert [shard.rows for shard in dataset.manifest.shards] == [0]
    assert "none of the 3 pairs could be scored" in caplog.text
    assert "2 missing_file, 1 empty_caption" in caplog.text


def test_scores_that_are_no_numbers_are_rejects(tmp_path: Path):
    clip = write_tiny_clip(tmp_path / "clip")
    weights = load_file(clip / "open_clip_model.safetensors")
    token = int(open_clip.SimpleTokenizer().encode("zebra")[0])
    weights["token_embedding.weight"][token] = float("nan")
    save_file(weights, clip / "open_clip_model.safetensors")
    names = ["cat", "zebra", "dog"]
    path = write_llava(
        tmp_path / "in",
        [record(name, caption=name) for name in names],
        {f"{name}.jpg": pictures.photo(i) for i, name in enumerate(names)},
    )
    dataset = score(
        path,
        tmp_path / "out",
        image_root=str(tmp_path / "in" / "images"),
        model=str(clip),
        execution=LOCAL,
    )
    assert [row["id"] for row in rows_of(dataset)] == ["cat", "dog"]
    assert rejects_of(dataset) == {"zebra": "non_finite_score"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, r"--batch-size must be at least 1 \(got 0\)"),
        ({"shard_rows": -1}, r"--shard-rows must be at least 1 \(got -1\)"),
        ({"precision": "int8"}, r"--precision must be .*\(got int8\)"),
        ({"precision": "fp16", "execution": Execution(gpus=0)}, "fp16 needs a GPU"),
        ({"weights": "openai"}, "brings its own weights"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(
    tmp_path: Path, tiny_clip: str, options: dict[str, Any], says: str
):
    with pytest.raises(InputError, match=says):
        score(good_pairs(tmp_path / "in", 1), tmp_path / "out", model=tiny_clip, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"gpus": -1},
        {"engine": "spark"},
        {"engine": "local", "ray_address": "auto"},
        {"engine": "local", "gpus": 2},
    ],
)
def test_executions_that_cannot_be_are_refused(options: dict[str, Any]):
    with pytest.raises(InputError):
        Execution(**options)


def assert_one_sentence(error: InputError, *, names: str) -> None:
    """The message is one line, ends like a sentence, and names the thing that it is about."""
    text = str(error)
    assert error.exit_code == 2
    assert "\n" not in text
    assert text.endswith(".")
    assert names in text
