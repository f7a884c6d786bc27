"""The page in a real browser without a window: a picture, a question, an answer, the levels."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from aligntrain.serve import Limits
from tests.trainer import tiny
from tests.trainer.serve.serving import (
    ASKED,
    NAME,
    Running,
    body,
    data_url,
    encoded,
    question,
    running,
    saved_run,
)  # fmt: skip

LONG = 3900
SHORT = 24
STOP_WHEN_WRITING = """() => {
    new MutationObserver((_, observer) => {
        const text = document.querySelector(".answer .text")?.textContent ?? "";
        const stop = document.querySelector("#stop");
        if (!text.includes("!!!") || stop.hidden) return;
        observer.disconnect();
        stop.click();
    }).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""
WATCH_BUSY = """() => {
    window.busy = [];
    new MutationObserver((records) => {
        for (const { target } of records) {
            if (!target.matches(".text, .answer")) continue;
            const now = target.closest(".answer").getAttribute("aria-busy");
            if (window.busy.at(-1) !== now || !window.busy.length) window.busy.push(now);
        }
    }).observe(
        document.querySelector("#turns"), {subtree: true, childList: true, attributes: true}
    );
}"""
PICTURE = encoded(tiny.picture(1, 200, 140))


pytestmark = pytest.mark.slow


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """The page of `server`; what it logs as an error or asks of others fails the test."""
    yield from opened(browser, server)


def opened(browser: Browser, server: Running, **options: Any) -> Iterator[Page]:
    one = browser.new_page(**options)
    wrong: list[str] = []
    one.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on("request", lambda asked: wrong.append(asked.url) if outside(asked.url, server) else None)
    one.goto(server.url)
    expect(one.locator("#model")).to_have_text(NAME)
    yield one
    one.close()
    # Refusals are logged by the browser itself.
    assert not [said for said in wrong if "status of 4" not in said]


def outside(url: str, server: Running) -> bool:
    return not url.startswith((server.url, "data:", "blob:"))


def choose(page: Page, data: bytes = PICTURE, kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": kind, "buffer": data})
    expect(page.locator("#remove")).to_be_visible()


def ask(page: Page, text: str = ASKED) -> None:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


def shorten(page: Page) -> None:
    """Open the settings and have answers of SHORT tokens."""
    page.locator("summary").click()
    page.locator("#longest").fill(str(SHORT))


def answer(page: Page, place: int = -1) -> str:
    """The text of an answer, when it is whole."""
    expect(page.locator(".answer.writing")).to_have_count(0, timeout=30_000)
    return page.locator(".answer .text").nth(place).text_content() or ""


def said(server: Running, **changes: Any) -> tuple[str, list[float] | None]:
    """What the server answers to a client that asks the same."""
    part = {"type": "image_url", "image_url": {"url": data_url(PICTURE)}}
    asked = {"messages": question(ASKED, part), "max_tokens": 256, "gate": True, **changes}
    answered = server.post(body(**asked)).json()
    return answered["choices"][0]["message"]["content"], answered["gate"]


def test_a_picture_a_question_and_the_gate(page: Page, server: Running) -> None:
    expect(page.locator("#send")).to_be_disabled()
    choose(page)
    ask(page)
    text, gate = said(server)
    assert answer(page) == text
    assert gate is not None
    shown = page.locator("#bars .bar .value").all_text_contents()
    assert shown == [f"{weight:.2f}" for weight in gate] + ["+1"]
    assert f"level 1: {gate[0]:.2f}" in (page.locator("#bars").get_attribute("aria-label") or "")
    expect(page.locator(".answer .tag")).to_have_text("auto")


def test_levels_by_keyboard_and_the_same_question_again(page: Page, server: Running) -> None:
    choose(page)
    ask(page)
    first = answer(page)
    page.locator("#level").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#level-name")).to_have_text("level 2")
    page.locator(".again").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(2)
    assert answer(page, 0) == first
    assert answer(page, 1) == said(server, level=2)[0] != first
    expect(page.locator(".answer .tag").nth(1)).to_have_text("level 2")
    shown = page.locator("#bars .bar .value").all_text_contents()
    assert shown == ["", "1.00", "", ""]


def test_guidance_is_among_the_settings(page: Page, server: Running) -> None:
    choose(page)
    shorten(page)
    expect(page.locator("#guidance-name")).to_have_text("none")
    page.locator("#guidance").fill("4")
    expect(page.locator("#guidance-name")).to_have_text(re.compile("4: exaggerates the level"))
    page.locator("#level").fill("2")
    ask(page)
    asked = {"level": 2, "max_tokens": SHORT}
    guided, plain = said(server, guidance=4, **asked)[0], said(server, **asked)[0]
    assert answer(page) == guided != plain
    expect(page.locator(".answer .tag")).to_have_text("level 2, guidance 4")
    page.locator("#guidance").fill("1")
    page.locator(".again").click()
    expect(page.locator(".answer")).to_have_count(2)
    assert answer(page) == plain
    expect(page.locator(".answer .tag").nth(1)).to_have_text("level 2")


def test_the_level_of_the_server_is_where_the_page_begins(browser: Browser, run: Path) -> None:
    with running(run, level=3) as server:
        for page in opened(browser, server):
            expect(page.locator("#level-name")).to_have_text("level 3")
            assert page.locator("#ticks span").all_text_contents() == ["1", "2", "3", "4"]
            expect(page.locator("#ticks .on")).to_have_text("3")
            choose(page)
            shorten(page)
            ask(page)
            assert answer(page) == said(server, max_tokens=SHORT)[0]
            expect(page.locator(".answer .tag")).to_have_text("level 3")


def test_a_model_without_levels_has_neither_level_nor_guidance(
    browser: Browser, tmp_path: Path
) -> None:
    with running(saved_run(tmp_path, mixing="none")) as server:
        for page in opened(browser, server):
            shorten(page)
            expect(page.locator("#guidance")).to_be_hidden()
            expect(page.locator("#level")).to_be_hidden()
            choose(page)
            ask(page)
            assert answer(page)
            expect(page.locator(".answer .tag")).to_have_text("")


def test_a_conversation_goes_on_and_begins_anew(page: Page) -> None:
    choose(page)
    ask(page)
    answer(page)
    ask(page, "and what else?")
    answer(page)
    expect(page.locator(".question")).to_have_text([ASKED, "and what else?"])
    page.locator("#fresh").click()
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#preview")).to_be_visible()  # the picture stays
    page.locator("#remove").click()
    expect(page.locator("#preview")).to_be_hidden()


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(page: Page, how: str) -> None:
    page.evaluate(
        """([how, data]) => {
            const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "a.png", {type: "image/png"}));
            const options = {bubbles: true, cancelable: true};
            document.dispatchEvent(how === "drop"
                ? new DragEvent("drop", {dataTransfer: transfer, ...options})
                : new ClipboardEvent("paste", {clipboardData: transfer, ...options}));
        }""",
        [how, base64.b64encode(PICTURE).decode()],
    )
    expect(page.locator("#preview")).to_be_visible()


def test_each_answer_shows_its_image(page: Page, server: Running) -> None:
    choose(page)
    shorten(page)
    ask(page)
    first = answer(page)
    other = encoded(tiny.picture(2, 200, 140))
    choose(page, other)
    ask(page)
    second = answer(page)
    part = {"type": "image_url", "image_url": {"url": data_url(other)}}
    # The second is of another conversation, and the first can still be read.
    assert second == said(server, messages=question(ASKED, part), max_tokens=SHORT)[0]
    assert page.locator(".answer .text").all_text_contents() == [first, second]
    images = page.locator(".answer .about")
    shown = [images.nth(place).get_attribute("src") for place in range(2)]
    assert shown == [data_url(PICTURE), data_url(other)]
    expect(page.locator(".again")).to_have_count(1)
    page.locator("#remove").click()
    ask(page, "no image")
    answer(page)
    expect(images).to_have_count(2)
    page.locator("#fresh").click()
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#fresh")).to_be_disabled()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_gate_stands_where_its_answer_is(browser: Browser, server: Running, width: int) -> None:
    for page in opened(browser, server, viewport={"width": width, "height": 800}):
        choose(page)
        shorten(page)
        ask(page)
        answer(page)
        on_phone = width < 700
        chart = page.locator(".answer .mix")
        expect(chart).to_be_visible(visible=on_phone)
        expect(page.locator("#gate")).to_be_visible(visible=not on_phone)
        expect(page.locator(".answer .small")).to_be_visible(visible=not on_phone)
        expect(page.locator(".answer .small .label")).to_have_text("levels 1 to 3")
        assert page.locator(".mix .bar .value").all_text_contents() == (
            page.locator("#bars .bar .value").all_text_contents()
        )
        expect(chart.locator("figcaption")).to_have_text("Weight of each level in this answer")
        page.locator("#level").fill("2")
        page.locator(".again").click()
        answer(page)
        expect(page.locator(".answer").nth(1).locator(".mix")).to_be_hidden()  # nothing is mixed


def test_the_page_says_what_the_model_knows(browser: Browser, tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    card = "# A model\n\n## What it knows\n\nKites <b>and\ndogs</b>. More of it.\n\n## More\n\nx\n"
    with running(run) as server:
        for page in opened(browser, server):
            expect(page.locator("#knows")).to_be_hidden()
    (run / "export" / "README.md").write_text(card, encoding="utf-8")
    with running(run) as server:
        for page in opened(browser, server):
            expect(page.locator("#knows")).to_have_text("What it knows: Kites <b>and dogs</b>.")


def test_what_is_refused_is_said(page: Page) -> None:
    choose(page, b"no picture at all")
    ask(page)
    expect(page.locator("#trouble")).to_contain_text("holds no image that can be read")
    expect(page.locator("#question")).to_have_value(ASKED)  # nothing is lost
    choose(page)
    ask(page)
    assert answer(page)
    expect(page.locator("#trouble")).to_be_hidden()


def test_what_fails_again_can_be_asked_again(browser: Browser, run: Path) -> None:
    with running(run) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#model")).to_have_text(NAME)
        choose(page)
        ask(page)
        first = answer(page)
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.locator(".again").click()
        expect(page.locator("#trouble")).to_contain_text("does not answer")
        expect(page.locator(".answer .again")).to_have_count(1)
        page.unroute("**/v1/chat/completions")
        page.locator(".again").click()
        expect(page.locator(".answer")).to_have_count(2)
        assert answer(page) == first
        page.close()


def test_a_new_conversation_takes_nothing_of_what_was_asked(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda _: None)  # no word comes
    ask(page, "the first")
    expect(page.locator(".answer.writing")).to_be_visible()
    left = page.evaluate(
        """async () => {
            document.querySelector("#fresh").click();
            await new Promise((done) => setTimeout(done, 200));
            return document.querySelector("#question").value;
        }"""
    )
    assert left == ""
    page.unroute("**/v1/chat/completions")
    ask(page, "the second")
    assert answer(page)
    expect(page.locator(".question")).to_have_text(["the second"])


def test_an_answer_is_read_out_when_it_is_whole(page: Page) -> None:
    ask(page)
    answer(page)
    page.evaluate(WATCH_BUSY)
    ask(page, "and what else?")
    answer(page)
    assert page.evaluate("window.busy") == ["true", None]
    expect(page.get_by_role("log").get_by_role("listitem")).to_have_count(2)


def test_answers_are_text_and_no_markup(page: Page) -> None:
    ask(page, "<b>bold</b><img src=x onerror=alert(1)>")
    expect(page.locator(".question")).to_have_text("<b>bold</b><img src=x onerror=alert(1)>")
    assert page.locator("#turns b, #turns img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_any_width(browser: Browser, server: Running, width: int, scheme: Any) -> None:
    size: Any = {"width": width, "height": 800}
    for page in opened(browser, server, viewport=size, color_scheme=scheme):
        choose(page)
        ask(page, "word " * 30 + "x" * 60)
        answer(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = map(int, re.findall(r"\d+", paper)[:3])
        assert (red + green + blue > 384) == (scheme == "light")


def test_the_page_asks_for_the_key(browser: Browser, run: Path) -> None:
    with running(run, api_key="sesame") as guarded:
        page = browser.new_page()
        page.goto(guarded.url)
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#trouble")).to_contain_text("missing or wrong")
        page.locator("#key").fill("sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text(NAME)
        expect(page.locator("#key-form")).to_be_hidden()
        page.close()


def test_an_answer_can_be_stopped(browser: Browser, long_run: Path) -> None:
    with running(long_run, limits=Limits(new_tokens=LONG)) as server:
        for page in opened(browser, server):
            page.locator("summary").click()
            page.locator("#longest").fill(str(LONG))
            # Within the page, as the answer would be whole before a click from outside arrives.
            page.evaluate(STOP_WHEN_WRITING)
            ask(page)
            text = answer(page)
            assert 3 <= len(text) < LONG
            expect(page.locator("#send")).to_be_visible()
