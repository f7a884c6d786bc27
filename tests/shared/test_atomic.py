import os
from pathlib import Path

import pytest

from alignshared import atomic


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    atomic.write(tmp_path / "text", "ä\r\n")
    atomic.write(tmp_path / "bytes", b"\x00\n")
    atomic.write(tmp_path / "bytes", b"again")
    assert tree(tmp_path) == {"text": "ä\r\n".encode(), "bytes": b"again"}


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_that_fails_leaves_the_one_before(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic.file(path, shared=shared) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert tree(tmp_path) == {"file": b"before"}


def test_writers_of_a_shared_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic.file(path, shared=True) as first:
        first.write_text("first")
        with atomic.file(path, shared=True) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert tree(tmp_path) == {"file": b"first"}


def test_a_folder_appears_whole_over_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    left = atomic.temporary_name(path)
    left.mkdir(parents=True)
    (left / "half").touch()
    path.mkdir()
    with atomic.folder(path) as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "file").write_text("whole")
        assert not list(path.iterdir())
    assert tree(tmp_path) == {"a/folder/inner/file": b"whole"}


def test_a_folder_that_holds_something_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "before").touch()
    with pytest.raises(OSError, match="not empty"), atomic.folder(path) as unfinished:
        (unfinished / "after").touch()
    assert tree(tmp_path) == {"folder/before": b""}
    with atomic.folder(path, replace=True) as unfinished:
        (unfinished / "after").touch()
    assert tree(tmp_path) == {"folder/after": b""}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, replace, rename = os.fsync, os.replace, os.rename

    def flushed(handle: int) -> None:
        order.append(f"flush {os.path.basename(os.readlink(f'/proc/self/fd/{handle}'))}")
        flush(handle)

    def replaced(source: Path, target: Path) -> None:
        order.append(f"rename {target.name}")
        replace(source, target)

    def renamed(source: Path, target: Path) -> None:
        order.append(f"rename {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "rename", renamed)
    atomic.write(tmp_path / "file", "")
    with atomic.folder(tmp_path / "folder") as unfinished:
        (unfinished / "inside").touch()
    assert order == [
        "flush .unfinished-file", "rename file", f"flush {tmp_path.name}",
        "flush inside", "flush .unfinished-folder", "rename folder", f"flush {tmp_path.name}",
    ]  # fmt: skip
