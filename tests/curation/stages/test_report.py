"""The report is one file that opens offline and shows the data, whatever stands in it."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligncurate.reporting.examples import Group, read_examples
from aligncurate.reporting.format import dataset_name
from aligncurate.reporting.summary import summarise
from aligncurate.stages.report import report
from alignshared import ContractError, Dataset, InputError, Parent, Reason, Reject, Storage
from tests.curation.datasets import picture, write_levelled_dataset, write_scored_dataset

SCORES = np.random.default_rng(5).normal(0.25, 0.05, 48).astype(np.float32).tolist()
FIGURES = ("histogram.png", "levels.png", "gallery.png")
VOID = {"meta", "img", "br", "path"}


class Page(HTMLParser):
    """Tags with attributes, and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def levelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a levelled dataset in `bucket`, its parent in `score` and its `report`."""
    root = tmp_path_factory.mktemp("demo")
    rejects = [Reject(f"bad-{i}", f"{i}.png", Reason.MISSING_FILE, "gone") for i in range(5)]
    demo = [Parent("demo", None)]
    parent = write_scored_dataset(root / "score", SCORES, rejects=rejects, parents=demo)
    write_levelled_dataset(root / "bucket", SCORES, parent=parent)
    report(root / "bucket", examples=3)
    return root


def test_it_lies_beside_the_dataset_with_its_figures(levelled: Path) -> None:
    assert sorted(p.name for p in (levelled / "report").iterdir()) == sorted(
        ("report.html", *FIGURES)
    )


def test_the_page_stands_alone(levelled: Path) -> None:
    page = page_of(levelled / "report")
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    html = (levelled / "report" / "report.html").read_text(encoding="utf-8")
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_tells_the_numbers(levelled: Path) -> None:
    page = page_of(levelled / "report")
    manifest = Dataset(levelled / "bucket").manifest
    assert f"{np.float32(SCORES).mean():.4f}" in page.text
    assert "48 image–text pairs" in page.text
    assert manifest.level_statistics
    for statistics in manifest.level_statistics:
        assert f"{statistics.mean:.4f}" in page.text
    for edge in manifest.edges or ():
        assert f"{edge:.6f}" in page.text
    assert "missing_file" in page.text  # of the parent
    assert "bad-0" in page.text
    assert str(levelled / "score") in page.text
    assert "ViT-L-14-336" in page.text
    assert "execution.workers" in page.text


def test_pictures_are_shown_inside_the_page(levelled: Path) -> None:
    images = page_of(levelled / "report").all("img")
    assert len(images) == 4 * 3
    for image in images:
        assert re.match(r"data:image/(png|jpeg);base64,", image["src"] or "")
        assert image["alt"]


def test_figures_are_png(levelled: Path) -> None:
    for name in FIGURES:
        with Image.open(levelled / "report" / name) as figure:
            figure.load()
            assert figure.format == "PNG"
            assert figure.width > 800
            assert len(figure.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_the_same_data_gives_the_same_report(levelled: Path, tmp_path: Path) -> None:
    report(levelled / "bucket", tmp_path / "again", examples=3)
    for name in ("report.html", *FIGURES):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (levelled / "report" / name).read_bytes(), name


def choose_examples(dataset: Dataset, examples: int) -> list[Group]:
    return read_examples(dataset, summarise(dataset, examples).shortlist, examples)


def test_examples_belong_to_their_level_and_not_to_the_layout(tmp_path: Path) -> None:
    chosen = []
    for shards in (1, 5):
        dataset = write_levelled_dataset(tmp_path / str(shards), SCORES, shards=shards)
        edges = dataset.manifest.level_edges
        assert edges
        groups = choose_examples(dataset, 4)
        assert [group.level for group in groups] == [4, 3, 2, 1]
        for group in groups:
            scores = np.array([example.score for example in group.examples], dtype=np.float32)
            assert len(scores) == 4
            assert set(edges.assign(scores).tolist()) == {group.level}
            assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        chosen.append([(e.id, e.caption, e.image) for g in groups for e in g.examples])
    assert chosen[0] == chosen[1]
    for name, caption, image in chosen[0]:
        number = int(name.removeprefix("pair-"))
        assert caption == f"caption number {number}"
        assert image == picture(number)


def test_an_unlevelled_dataset_shows_its_ends_and_its_middle(tmp_path: Path) -> None:
    scores = [i / 100 for i in range(41)]
    dataset = write_scored_dataset(tmp_path / "score", scores)
    highest, middle, lowest = choose_examples(dataset, 3)
    assert [e.id for e in highest.examples] == ["pair-0040", "pair-0039", "pair-0038"]
    assert [e.id for e in middle.examples] == ["pair-0021", "pair-0020", "pair-0019"]
    assert [e.id for e in lowest.examples] == ["pair-0002", "pair-0001", "pair-0000"]
    files = report(tmp_path / "score")
    assert files.levels is None
    assert files.histogram
    assert files.gallery
    assert "Highest scores" in page_of(tmp_path / "report").text


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'\"`</style><style>*{display:none}",
    "{{ 7 * 7 }} {% raw %}",
    "<!-- a",
    "\u202eright to left\x00\x1b[31m",
    "x" * 10_000,
    "",
]


@pytest.mark.parametrize("where", ["captions", "ids"])
def test_texts_of_the_data_stay_texts(tmp_path: Path, where: str) -> None:
    texts: dict[str, Any] = {where: HOSTILE}
    plain = write_scored_dataset(tmp_path / "plain", SCORES[:8], captions=["a"] * 8, ids=["b"] * 8)
    write_scored_dataset(tmp_path / "hostile", SCORES[:8], **texts)
    report(plain.location, tmp_path / "one")
    report(tmp_path / "hostile", tmp_path / "two")
    page = page_of(tmp_path / "two")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in page_of(tmp_path / "one").tags]
    assert all(set(i) == {"src", "width", "height", "alt"} for i in page.all("img"))
    assert HOSTILE[0] in page.text
    assert HOSTILE[1] in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\x1b" not in page.text
    assert "x" * 200 not in page.text


def test_texts_of_rejects_parents_and_configuration_stay_texts(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rejects = [Reject(evil, evil, Reason.NO_IMAGE, evil)]
    write_scored_dataset(
        tmp_path / evil.replace("/", "-"), SCORES, rejects=rejects, parents=[Parent(evil, None)]
    )
    report(tmp_path / evil.replace("/", "-"), tmp_path / "report")
    page = page_of(tmp_path / "report")
    assert page.all("script") == []
    assert page.text.count(evil) >= 3


def test_pictures_that_cannot_be_shown_are_said_to_be_missing(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "score", SCORES[:6], shards=1)
    path = tmp_path / "score" / "shard-00000.parquet"
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[0]["bytes"] = b"no picture"
    images[1]["bytes"] = images[1]["bytes"][:40]
    images[2]["bytes"] = None
    images[3]["bytes"] = b""
    images[4] = None
    field = table.schema.field("image")
    pq.write_table(table.set_column(1, field, pa.array(images, field.type)), path)
    report(tmp_path / "score", examples=6)
    page = page_of(tmp_path / "report")
    shown = len(page.all("img"))
    assert shown == 3  # one pair, in each of the three groups
    assert page.text.count("image cannot be decoded") == 2 * 3
    assert page.text.count("image not in the dataset") == 3 * 3


def test_an_empty_dataset_has_a_page_without_figures(tmp_path: Path) -> None:
    rejects = [Reject("a", None, Reason.NO_IMAGE, "none")]
    write_scored_dataset(tmp_path / "score", [], shards=1, rejects=rejects)
    files = report(tmp_path / "score")
    assert (files.histogram, files.levels, files.gallery) == (None, None, None)
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["report.html"]
    page = page_of(tmp_path / "report")
    assert "nothing to draw" in page.text
    assert "no_image" in page.text


def test_scores_that_are_none_are_left_out(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "score", [0.25, None, float("nan"), 0.35])
    report(tmp_path / "score")
    assert "Histogram of 2 scores from 0.2500 to 0.3500" in str(
        page_of(tmp_path / "report").all("div")
    )


def test_an_unscored_dataset_is_refused(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "ingest", SCORES, shards=1)
    path = tmp_path / "ingest" / "shard-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["score"]), path)
    with pytest.raises(ContractError, match=r"no column score .*run the stage that adds it"):
        report(tmp_path / "ingest")
    assert not (tmp_path / "report").exists()


def test_a_damaged_shard_is_one_sentence(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path / "bucket", SCORES, shards=2)
    path = tmp_path / "bucket" / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:-50] + b"x" * 50)
    with pytest.raises(ContractError, match=str(tmp_path)):
        report(tmp_path / "bucket")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "score", SCORES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.tex, which no report wrote.*--output"):
        report(tmp_path / "score", tmp_path / "mine")
    with pytest.raises(InputError, match="which no report wrote"):
        report(tmp_path / "score", tmp_path / "score")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_report_is_replaced_with_all_of_its_figures(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path / "bucket", SCORES)
    write_scored_dataset(tmp_path / "score", SCORES)
    report(tmp_path / "bucket")
    report(tmp_path / "score")
    names = {p.name for p in (tmp_path / "report").iterdir()}
    assert names == {"report.html", "histogram.png", "gallery.png"}


def test_the_number_of_examples_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--examples must be at least 1 \(got 0\)"):
        report(tmp_path, examples=0)


def test_every_pair_is_read_once(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path / "bucket", SCORES)
    read: list[int] = []
    report(tmp_path / "bucket", on_progress=lambda done, rejects=0: read.append(done))
    assert sum(read) == len(SCORES)


def test_the_name_is_that_of_the_folder_above_a_stage(tmp_path: Path) -> None:
    assert dataset_name(write_scored_dataset(tmp_path / "cats" / "score", [0.1])) == "cats"
    assert dataset_name(write_scored_dataset(tmp_path / "dogs", [0.1])) == "dogs"


@pytest.mark.slow
def test_pandas_is_not_needed(levelled: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pandas'] = None; from aligncurate import report;"
        "report(sys.argv[1], sys.argv[2])"
    )
    bucket, output = str(levelled / "bucket"), str(tmp_path / "out")
    subprocess.run([sys.executable, "-c", code, bucket, output], check=True)
    assert Storage(output).exists("report.html")


def test_pictures_lose_what_is_not_pixels(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "score", [0.3], shards=1)
    path = tmp_path / "score" / "shard-00000.parquet"
    table = pq.read_table(path)
    secret = Image.new("RGB", (40, 30), "teal")
    exif = secret.getexif()
    exif[0x010E] = "taken at home"
    encoded = io.BytesIO()
    secret.save(encoded, "JPEG", exif=exif)
    assert b"taken at home" in encoded.getvalue()
    field = table.schema.field("image")
    images = pa.array([{"bytes": encoded.getvalue(), "path": "x"}], field.type)
    pq.write_table(table.set_column(1, field, images), path)
    report(tmp_path / "score")
    for image in page_of(tmp_path / "report").all("img"):
        content = re.sub("^data:[^,]*,", "", image["src"] or "")
        assert b"taken at home" not in base64.b64decode(content)
