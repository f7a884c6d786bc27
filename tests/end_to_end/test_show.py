"""The page at the end of the quickstart: whole, escaped, fit for any screen, or refused."""

import json
import re
import sys
import webbrowser
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser

from alignshared.demo import held_out_path

LEVELS = 8
IMAGES = 15
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def shape(scripts: Any) -> Any:
    return scripts("figures")


@pytest.fixture(scope="module")
def show(scripts: Any) -> Any:
    return scripts("show")


def interval(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "count": 40}


def image(place: int, drawing: Any, shown: int) -> dict[str, Any]:
    """The record of a test image; at the middle level it says a group, above its name."""
    weights = [0.7, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02]
    answers = [
        {
            "question": "What is this?", "expected": "a cat", "said": said, "right": right,
            "weights": weights,
        }
        for said, right in (("a cat", True), (f"a {EVIL}", False))
    ]  # fmt: skip
    return {
        "id": drawing.id,
        "name": f"name {place} {EVIL}",
        "group": "animals and nature",
        "captions": [f"a picture of caption {level} {EVIL}" for level in range(1, LEVELS + 1)],
        "kinds": ["other"] * 3 + ["group"] * 3 + ["right name"] * 2,
        "answers": answers if place < shown else [],
    }


@pytest.fixture(scope="module")
def content(scripts: Any, shape: Any) -> dict[str, Any]:
    """Figures as JSON has them."""
    drawings = scripts("build_instructions").read_drawings(held_out_path())[:IMAGES]
    matrix = [
        {
            "level": own, "count": 5, "mix": 9.25,
            "losses": [1.5 + abs(own - forced) for forced in range(1, LEVELS + 1)],
        }
        for own in range(1, LEVELS + 1)
    ]  # fmt: skip
    return {
        "pretrained": f"runs/{EVIL}",
        "finetuned": "runs/demo-finetune",
        "levels": LEVELS,
        "losses": {"matrix": matrix, "gained": interval(1.25), "lost": interval(0.75)},
        "images": [image(place, one, shape.SHOWN) for place, one in enumerate(drawings)],
        "retrieval": interval(0.5),
        "questions": {
            "name": {"accuracy": interval(0.3), "constant": 0.01, "untrained": None},
            "group": {"accuracy": interval(0.625), "constant": 0.2, "untrained": 0.125},
        },
        "curves": {
            phase: {
                "samples": 64, "training": [[5, 2.0], [10, 1.5], [15, 1.25]],
                "held_out": [[15, 1.3]],
            }
            for phase in ("pretrain", "finetune")
        },
        "created": "2026-11-30T12:00:00+00:00",
        "plain": {
            "run": f"runs/plain {EVIL}",
            "captions": [f"a picture of plainly {place} {EVIL}" for place in range(IMAGES)],
            "kinds": ["group"] * (IMAGES - 3) + ["right name"] * 3,
            "gained": interval(2.125),
        },
    }  # fmt: skip


@pytest.fixture
def folder(content: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "figures.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def page(content: dict[str, Any], shape: Any, show: Any, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    (folder / "figures.json").write_text(json.dumps(content), encoding="utf-8")
    html = show.render_page(shape.read_figures(folder / "figures.json"))
    (folder / "show.html").write_text(html, encoding="utf-8")
    return folder / "show.html"


class Parsed(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def classes(self, name: str) -> int:
        return sum(name in (attrs.get("class") or "").split() for _, attrs in self.elements)


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def test_figures_are_read_as_they_were_written(
    folder: Path, shape: Any, content: dict[str, Any]
) -> None:
    figures = shape.read_figures(folder / "figures.json")
    shape.write_figures(figures, folder / "again" / "figures.json")
    assert shape.read_figures(folder / "again" / "figures.json") == figures
    assert json.loads((folder / "again" / "figures.json").read_text("utf-8")) == content


def test_the_page_has_all_parts_and_asks_for_nothing(page: Path, shape: Any) -> None:
    parsed = Parsed(page)
    images = [attrs for tag, attrs in parsed.elements if tag == "img"]
    assert len(images) == shape.SHOWN
    assert all((attrs["src"] or "").startswith("data:image/") for attrs in images)
    ids = {attrs.get("id") for _, attrs in parsed.elements}
    assert {"images", "kinds", "matrix", "curves", "figures"} <= ids
    assert parsed.classes("least") == LEVELS
    assert parsed.classes("weights") == 2 * shape.SHOWN
    assert sum(tag == "svg" for tag, _ in parsed.elements) == 2
    for level in (1, 4, 8):
        assert parsed.text.count(f"caption {level} ") == shape.SHOWN
    assert "caption 5" not in parsed.text
    assert parsed.text.count("no levels") == shape.SHOWN + 1  # and once among the bars
    assert parsed.text.count("plainly ") == shape.SHOWN
    for number in ("62.5", "12.5", "1.25 nats", "2.12 nats", "20.0", "a guess among 15", "9.25"):
        assert number in parsed.text
    named = ("src", "href", "xlink:href")
    links = [value for _, attrs in parsed.elements for key in named if (value := attrs.get(key))]
    assert all(link.startswith(("data:", "#")) for link in links)


def test_a_page_without_a_plain_run_says_nothing_of_one(
    content: dict[str, Any], shape: Any, show: Any, tmp_path: Path
) -> None:
    (tmp_path / "figures.json").write_text(json.dumps(content | {"plain": None}), "utf-8")
    html = show.render_page(shape.read_figures(tmp_path / "figures.json"))
    assert "without levels" not in html.lower()
    assert "no levels" not in html.lower()
    assert "2.00 nats less" in html


def test_texts_are_escaped(page: Path) -> None:
    parsed = Parsed(page)
    assert not [tag for tag, _ in parsed.elements if tag in ("script", "iframe", "link")]
    assert EVIL in parsed.text
    assert EVIL not in page.read_text(encoding="utf-8")


def test_lines_for_the_terminal_mark_the_least_of_each_row(folder: Path, shape: Any) -> None:
    lines = list(shape.lines(shape.read_figures(folder / "figures.json")))
    rows = [line for line in lines if re.fullmatch(r" {10,}\d( +[\d.]+\*?){9}", line)]
    assert [line.count("1.50*") for line in rows] == [1] * LEVELS
    assert len({len(line) for line in rows}) == 1
    assert any("level 8 gains 1.25 (1.20 to 1.30), level 1 loses 0.75" in line for line in lines)
    assert any(re.search(r"group .* 62\.5 % .*constant answer 20\.0 %.*12\.5 %", x) for x in lines)


def test_the_script_writes_page_and_picture(
    folder: Path, show: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(show, monkeypatch, folder, "--picture", folder / "picture.png")
    assert (folder / "show.html").read_text("utf-8").startswith("<!doctype html>")
    with Image.open(folder / "picture.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 2 * picture.height > 1000
    assert str(folder / "show.html") in caplog.messages[-1]


def damaged(content: dict[str, Any], what: str) -> str:
    changed = json.loads(json.dumps(content))
    if what == "no JSON":
        return "{"
    if what == "no levels":
        del changed["levels"]
    elif what == "a level short":
        changed["levels"] = LEVELS + 1
    elif what == "captions short":
        del changed["plain"]["captions"][0]
    elif what == "no images":
        changed["images"] = []
    else:
        changed["images"][0]["id"] = "noto-0"
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no file", "figures.json cannot be read"),
        ("no JSON", "holds other figures"),
        ("no levels", r"holds other figures \(levels: Field required\)"),
        ("a level short", "lacks images, or numbers"),
        ("captions short", "lacks images, or numbers"),
        ("no images", "lacks images, or numbers"),
        ("another image", "has no image noto-0"),
    ],
)
def test_a_folder_without_figures_is_refused_in_a_sentence(
    what: str,
    said: str,
    content: dict[str, Any],
    show: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if what != "no file":
        (tmp_path / "figures.json").write_text(damaged(content, what), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        run(show, monkeypatch, tmp_path)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert error.count("\n") == 1
    assert "measure" in error
    assert not (tmp_path / "show.html").exists()


def test_the_page_opens_only_where_there_is_a_screen(
    show: Any, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Windows(webbrowser.BaseBrowser):
        def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
            opened.append(url)
            return True

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "get", Windows)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not show.open_page(page)
    assert not opened
    monkeypatch.setenv("DISPLAY", ":0")
    assert show.open_page(page)
    assert opened == [page.as_uri()]
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("lynx"))
    assert not show.open_page(page)

    def none() -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert not show.open_page(page)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desktop_and_a_phone(
    page: Path, browser: Browser, width: int, scheme: Any
) -> None:
    one = browser.new_page(viewport={"width": width, "height": 850}, color_scheme=scheme)
    wrong: list[str] = []
    one.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    one.on("request", lambda asked: wrong.append(asked.url))
    one.goto(page.as_uri())
    assert one.evaluate("document.documentElement.scrollWidth") == width
    boxes = one.locator(".scroll").evaluate_all(
        "all => all.map(e => e.scrollWidth - e.clientWidth)"
    )
    assert boxes == [0, 0]  # tables need no scrolling of their own either
    shown = one.locator(".narrow-plot" if width < 500 else ".wide-plot")
    assert shown.is_visible()
    loaded = one.locator("img").evaluate_all("all => all.every(e => e.naturalWidth > 0)")
    assert loaded
    one.close()
    assert [url for url in wrong if not url.startswith("data:")] == [page.as_uri()]
