"""A folder is written whole or not at all, and nothing reaches outside it."""

import hashlib
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from alignshared import AlignError, InputError, Storage
from alignshared.stores.storage import HashingSink

OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "..", "a/.."]


def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "new")
    with storage.writing("deep/down/file.bin") as sink:
        sink.write(b"first ")
        sink.write(b"second")
        assert not storage.exists("deep/down/file.bin")
    assert (tmp_path / "new/deep/down/file.bin").read_bytes() == b"first second"
    assert sink.bytes_written == 12
    assert sink.sha256 == hashlib.sha256(b"first second").hexdigest()
    assert storage.child("deep").child("down").names() == ["file.bin"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_the_writer_fails(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(failure), storage.writing("file.bin") as sink:
        sink.write(b"half")
        raise failure
    assert storage.names() == []


def test_the_old_file_stays_when_the_writer_of_the_new_fails(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("file.bin", b"old")
    with pytest.raises(ValueError, match="no"), storage.writing("file.bin") as sink:
        sink.write(b"half of the new")
        raise ValueError("no")
    assert storage.read_bytes("file.bin") == b"old"
    storage.write_bytes("file.bin", b"new")
    assert storage.read_bytes("file.bin") == b"new"
    assert storage.names() == ["file.bin"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    storage = Storage(tmp_path / "inside")
    (tmp_path / "x").write_text("outside")
    for use in (storage.path, storage.open, storage.exists, storage.delete, storage.child):
        with pytest.raises(InputError, match=r"leaves the folder .* use a path inside it"):
            use(name)
    with pytest.raises(InputError, match="leaves the folder"):
        storage.write_bytes(name, b"over it")
    assert (tmp_path / "x").read_text() == "outside"


def test_names_are_sorted_and_of_this_folder_only(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "here")
    assert storage.names() == []
    for name in ("b.txt", "a/deep.txt", "c.txt"):
        storage.write_bytes(name, b"")
    assert storage.names() == ["a", "b.txt", "c.txt"]
    with pytest.raises(InputError, match=r"b\.txt is a file; name a folder"):
        storage.child("b.txt").names()


def test_delete_takes_files_folders_and_what_is_not_there(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("file", "folder/one", "folder/more/two", "kept"):
        storage.write_bytes(name, b"")
    for name in ("file", "folder", "nothing"):
        storage.delete(name)
    assert storage.names() == ["kept"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(InputError, match=f"there is no shard in {tmp_path}"):
        storage.read_bytes("shard")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder in .* cannot be read"):
        storage.read_bytes("folder")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="file/below cannot be written to"):
        Storage(tmp_path / "file" / "below").write_bytes("x", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_said_in_a_sentence() -> None:
    with pa.OSFile("/dev/full", "wb") as raw:
        sink = HashingSink(raw, "/data/score")
        with pytest.raises(AlignError, match="disk is full at /data/score; free some") as full:
            sink.write(b"too much")
    assert full.value.exit_code == 1
    assert sink.bytes_written == 0


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    data = {"caption": "Smørrebrød 🥪", "edges": [0.1, 3.4028234663852886e38], "none": None}
    digest = storage.write_json("data.json", data)
    assert storage.read_json("data.json") == data
    content = (tmp_path / "data.json").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert "Smørrebrød 🥪" in content.decode()


def test_json_that_is_none_is_refused(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("broken.json", b'{"edges": [0.1,')
    with pytest.raises(InputError, match=r"broken\.json in .* is not JSON"):
        storage.read_json("broken.json")
    # NaN is not JSON: other readers stop at it.
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json("nan.json", {"mean": float("nan")})
    assert storage.names() == ["broken.json"]


def test_locations_are_absolute_and_travel_between_processes(workdir: Path) -> None:
    storage = Storage("data")
    assert storage.location == str(workdir / "data")
    storage.write_bytes("x", b"1")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("x") == b"1"
    assert Storage(f"file://{workdir}/data").read_bytes("x") == b"1"


def test_a_location_of_no_known_kind_is_refused() -> None:
    with pytest.raises(InputError, match="gopher://host/data cannot be opened"):
        Storage("gopher://host/data").names()
