"""`search` finds what plain arithmetic over all embeddings finds, with the CLIP that made them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from typer.testing import CliRunner, Result

from aligncurate import bucket, search
from aligncurate.cli import app
from aligncurate.core.clip import ClipModel, resolve_clip, resolve_recorded
from aligncurate.stages.search import write_sheet
from alignshared import ContractError, Dataset, InputError, ModelInfo
from tests.curation.clips import TINY_CONFIG, write_tiny_clip
from tests.curation.datasets import write_scored_dataset
from tests.curation.inputs import rows_of, score_good_pairs
from tests.curation.planted import demo_pictures, planted_rows, score_planted
from tests.curation.stages.test_report import Page


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return score_planted(tmp_path_factory.mktemp("planted"), planted_rows())


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["search", *map(str, arguments)])


def embeddings(dataset: Dataset, side: str) -> np.ndarray:
    rows = np.array([row[f"{side}_embedding"] for row in rows_of(dataset)], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_text_finds_what_a_full_sort_finds(planted: Dataset) -> None:
    result = search(planted.location, text="a red fire engine", top=7)
    query = ClipModel(resolve_clip("demo"), "fp32").embed_captions(["a red fire engine"])[0][0]
    cosines = embeddings(planted, "image") @ query
    order = np.argsort(-cosines, kind="stable")[:7]
    rows = rows_of(planted)
    assert [hit.id for hit in result.hits] == [rows[i]["id"] for i in order]
    np.testing.assert_allclose([hit.cosine for hit in result.hits], cosines[order], atol=1e-5)
    assert {result.hits[0].id, result.hits[1].id} == {"fire engine", "engine-jpeg"}
    first = rows[int(order[0])]
    hit = result.hits[0]
    assert (hit.rank, hit.caption, hit.score) == (1, first["caption"], first["score"])
    assert hit.image == first["image"]["bytes"]
    assert hit.level is None


def test_over_captions_the_texts_are_compared(planted: Dataset) -> None:
    result = search(planted.location, text="something else entirely", over="captions", top=1)
    assert result.hits[0].id == "heart-again"
    assert result.hits[0].cosine == pytest.approx(1, abs=1e-3)


def test_a_picture_finds_itself_and_its_copies(planted: Dataset, tmp_path: Path) -> None:
    (tmp_path / "heart.png").write_bytes(demo_pictures()["blue heart"][0])
    result = search(planted.location, image=tmp_path / "heart.png", top=2)
    assert [hit.id for hit in result.hits] == ["blue heart", "heart-again"]
    assert result.hits[0].cosine == pytest.approx(1, abs=1e-3)
    assert result.image == demo_pictures()["blue heart"][0]


def test_more_than_there_are_gives_all_in_order(planted: Dataset) -> None:
    hits = search(planted.location, text="a frog", top=100).hits
    assert len(hits) == planted.manifest.rows
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    cosines = [hit.cosine for hit in hits]
    assert cosines == sorted(cosines, reverse=True)


def test_levels_are_shown_and_layout_changes_nothing(planted: Dataset, tmp_path: Path) -> None:
    levelled = bucket(planted.location, tmp_path / "bucket", levels=3)
    hits = search(levelled.location, text="pizza", top=4).hits
    plain = search(planted.location, text="pizza", top=4).hits
    assert [(h.id, h.cosine) for h in hits] == [(h.id, h.cosine) for h in plain]
    levels = {row["id"]: row["level"] for row in rows_of(levelled)}
    assert [hit.level for hit in hits] == [levels[hit.id] for hit in hits]


def test_without_embeddings_it_says_what_to_do(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "score", [0.1, 0.2])
    with pytest.raises(ContractError, match=r"no embeddings of its images.*--embeddings"):
        search(tmp_path / "score", text="a cat")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "one of --text and --image"),
        ({"text": "a", "image": "b"}, "one of --text and --image"),
        ({"text": "  "}, "--text is empty"),
        ({"text": "a", "top": 0}, r"--top must be at least 1 \(got 0\)"),
        ({"text": "a", "over": "sounds"}, "--over sounds is unknown; give images or captions"),
        ({"image": "nothing.png"}, "--image nothing.png cannot be read: No such file"),
        ({"image": __file__}, "cannot be shown to the model"),
    ],
)
def test_queries_that_cannot_be(planted: Dataset, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        search(planted.location, **options)


# The CLIP that made the embeddings


def test_a_moved_model_is_named_with_weights(tmp_path: Path) -> None:
    clip = write_tiny_clip(tmp_path / "clip")
    dataset = score_good_pairs(tmp_path, str(clip), 4, embeddings=True)
    before = search(dataset.location, text="a picture of good1")
    moved = clip.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="is not there any more; name the folder"):
        search(dataset.location, text="a picture of good1")
    after = search(dataset.location, text="a picture of good1", weights=str(moved))
    assert [(h.id, h.cosine) for h in after.hits] == [(h.id, h.cosine) for h in before.hits]
    with pytest.raises(InputError, match="is no folder"):
        search(dataset.location, text="a", weights=str(tmp_path / "nowhere"))


def test_other_weights_are_refused(tmp_path: Path, tiny_clip: str) -> None:
    dataset = score_good_pairs(tmp_path, tiny_clip, 4, embeddings=True)
    config = {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"layers": 1}}
    other = write_tiny_clip(tmp_path / "other", **config)
    with pytest.raises(InputError, match=r"is not what the embeddings were made with.*--weights"):
        search(dataset.location, text="a", weights=str(other))


def test_weights_of_a_tag_keep_what_the_tag_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"the weights")
    plain = resolve_clip("ViT-B-32", str(file))
    info = ModelInfo("ViT-B-32", "openai", plain.weights_sha256, 224, "fp32")
    assert not plain.quick_gelu
    found = resolve_recorded(info, str(file))
    tag = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    assert found.quick_gelu
    assert tuple(found.preprocess["mean"]) == tuple(tag["mean"])
    assert (found.name, found.weights, found.weights_path) == ("ViT-B-32", "openai", str(file))
    gone = ModelInfo("ViT-B-32", "/gone/b32.safetensors", plain.weights_sha256, 224, "fp32")
    with pytest.raises(InputError, match="not there any more; name where they lie"):
        resolve_recorded(gone)
    with pytest.raises(InputError, match="is no file"):
        resolve_recorded(gone, str(tmp_path / "none"))


# What a user sees


def test_the_table_has_a_line_for_each_hit(planted: Dataset) -> None:
    done = run("--input", planted.location, "--text", "a frog", "--top", "3")
    assert done.exit_code == 0, done.output
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["rank", "cosine", "id", "score", "level", "caption"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    hits = search(planted.location, text="a frog", top=3).hits
    assert [line.split()[2] for line in lines] == [hit.id for hit in hits]


def test_json_is_for_programs(planted: Dataset) -> None:
    done = run("--input", planted.location, "--text", "a frog", "--top", "2", "--json")
    told = json.loads(done.stdout)
    assert told["query"] == {"text": "a frog"}
    assert told["rows"] == 15
    assert told["model"]["name"] == "demo"
    assert [hit["rank"] for hit in told["hits"]] == [1, 2]
    assert set(told["hits"][0]) == {"rank", "cosine", "id", "caption", "score", "level", "path"}


def test_the_sheet_stands_alone_and_keeps_texts_texts(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = planted_rows()[:4]
    rows[0] = (evil, rows[0][1], evil)
    dataset = score_planted(tmp_path, rows)
    out = tmp_path / "deep" / "sheet.html"
    done = run("--input", dataset.location, "--text", evil, "--html", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.all("script") == []
    assert page.text.count(evil) >= 3
    assert len(page.all("img")) == 4
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))


def test_sheets_are_html_files(planted: Dataset, tmp_path: Path) -> None:
    result = search(planted.location, text="a")
    with pytest.raises(InputError, match=r"give a file that ends in \.html"):
        write_sheet(result, tmp_path / "pairs.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_sheet(result, tmp_path / "file" / "x.html")
    both = run("--input", planted.location, "--text", "a", "--json", "--html", "x.html")
    assert both.exit_code == 2
    assert "leave one of them out" in both.stderr


def test_hits_come_from_the_rows_that_they_name(planted: Dataset) -> None:
    # Shards have five rows: a place is counted over all of them.
    by_id = {row["id"]: row for row in rows_of(planted)}
    for hit in search(planted.location, text="anything", top=15).hits:
        assert hit.caption == by_id[hit.id]["caption"]
        assert hit.image == by_id[hit.id]["image"]["bytes"]
