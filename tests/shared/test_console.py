"""Progress, tables and messages of both command lines."""

import io

import pytest
from rich.console import Console

from alignshared import console
from alignshared.console import progress, section, table, watched
from alignshared.errors import printable


def test_a_log_gets_an_occasional_line_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    log = Console(file=out, force_terminal=False, soft_wrap=True)
    with progress("score", 3, log) as show:
        show(1, "1/s", "score: 1 of 3")
        monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
        show(2, "1/s", "score: 2 of 3")
        monkeypatch.setattr(console, "LINE_EVERY_S", 10.0)
        show(3, "1/s", "score: 3 of 3", last=True)
    assert out.getvalue() == "score: 2 of 3\nscore: 3 of 3\n"


def test_a_terminal_gets_a_bar_with_its_state() -> None:
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=100)
    with progress("score", 3, terminal, begun=1, transient=False) as show:
        show(3, "7 pairs/s", "score: 3 of 3", last=True)
    assert "3/3" in out.getvalue()
    assert "7 pairs/s" in out.getvalue()
    assert "score: 3 of 3" not in out.getvalue()


def test_watched_items_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    log = Console(file=out, force_terminal=False, soft_wrap=True)
    assert list(watched("ab", "pope", 2, log)) == ["a", "b"]
    first, second = out.getvalue().splitlines()
    assert first.startswith("pope: 1 of 2, ")
    assert second.startswith("pope: 2 of 2, ")
    assert second.endswith("/s, 0:00:00 left")


def test_a_table_has_its_first_columns_flush_left(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table("name", "rows")
    rows.add_row("a", "1")
    section("parts", rows)
    assert capsys.readouterr().out == "\nparts\nname  rows\na        1\n"


def test_control_characters_become_spaces() -> None:
    assert printable("a\x1b[2Jb\n") == "a [2Jb "
