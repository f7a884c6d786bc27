"""A folder of pictures with captions beside them."""

from pathlib import Path

import pytest

from aligncurate import Execution, score
from aligncurate.sources import open_source
from alignshared import InputError
from tests.curation.inputs import reject_rows, rejects, rows, rows_of
from tests.curation.pictures import photo
from tests.curation.stores import Store

LOCAL = Execution(engine="local", workers=1)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


GOOD = {
    "cats/1.jpg": photo(1),
    "cats/1.txt": b"a cat\n",
    "cats/1.json": b"{}",
    "dogs/1.v2.PNG": photo(2),
    "dogs/1.v2.txt": "ein Hund – groß".encode(),
    "notes.md": b"# pictures",
}


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
def test_pictures_and_captions_at_any_depth(
    tmp_path: Path, request: pytest.FixtureRequest, remote: bool, tiny_clip: str
) -> None:
    folder = str(write(tmp_path / "pictures", GOOD))
    if remote:
        store: Store = request.getfixturevalue("s3")
        folder = store.put_folder(tmp_path / "pictures", "some/pictures")
    source = open_source(folder)
    assert source.name == "pictures"
    dataset = score(folder, tmp_path / "out", model=tiny_clip, execution=LOCAL)
    found = {row["id"]: row for row in rows_of(dataset)}
    assert {id_: row["caption"] for id_, row in found.items()} == {
        "cats/1": "a cat",
        "dogs/1.v2": "ein Hund – groß",
    }
    assert found["cats/1"]["image"] == {"bytes": photo(1), "path": "cats/1.jpg"}
    assert dataset.manifest.reject_count == 0


def test_what_is_not_a_pair_is_a_reject(tmp_path: Path, tiny_clip: str) -> None:
    secret = write(tmp_path, {"secret.txt": b"secret", "secret.jpg": photo(1)})
    folder = write(
        tmp_path / "in",
        GOOD
        | {
            "lonely.jpg": photo(3),
            "wordless.txt": b"a caption without a picture",
            "empty.jpg": photo(4),
            "empty.txt": b" \n",
            "latin.jpg": photo(5),
            "latin.txt": "Müsli".encode("latin-1"),
            "twice.jpg": photo(6),
            "twice.png": photo(7),
            "twice.txt": b"which of the two?",
            "long.jpg": photo(8),
            "long.txt": b"x" * 2_000_000,
            "broken.jpg": b"no picture",
            "broken.txt": b"a broken picture",
            "spy.jpg": photo(9),
            "thief.txt": b"a stolen picture",
        },
    )
    (folder / "spy.txt").symlink_to(secret / "secret.txt")
    (folder / "thief.jpg").symlink_to(secret / "secret.jpg")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "gone.txt").write_text("a link that leads nowhere")
    dataset = score(folder, tmp_path / "out", model=tiny_clip, execution=LOCAL)
    assert {row["id"] for row in rows_of(dataset)} == {"cats/1", "dogs/1.v2", "twice"}
    assert {(row["id"], row["reason"]) for row in reject_rows(dataset)} == {
        ("lonely", "no_caption"),
        ("wordless", "no_image"),
        ("empty", "empty_caption"),
        ("latin", "invalid_utf8"),
        ("twice", "duplicate_id"),
        ("long", "malformed_record"),
        ("broken", "not_an_image"),
        ("spy", "path_outside_root"),
        ("thief", "path_outside_root"),
        ("gone", "path_outside_root"),
    }


def test_a_name_that_is_not_text_spoils_itself(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    name = str(tmp_path).encode() + b"/\xff"
    for suffix in (b".jpg", b".txt"):
        Path((name + suffix).decode(errors="surrogateescape")).write_bytes(photo(1))
    source = open_source(str(tmp_path))
    assert [row["id"] for row in rows(source, tmp_path / "work")] == ["cats/1", "dogs/1.v2"]
    assert [r.reason for r in rejects(source, tmp_path / "work")] == ["invalid_utf8"]


def test_a_folder_without_pictures_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, {"notes.md": b"nothing here"})
    with pytest.raises(InputError, match=r"give demo, .* or a folder of images") as caught:
        open_source(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
