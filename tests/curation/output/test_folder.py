"""An output folder belongs to one run: fresh, to be gone on with, finished, or another's."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from aligncurate.output.folder import OutputState, open_output, release_output
from alignshared import AlignError, InputError, Storage
from alignshared.stores.lock import release
from tests.curation.datasets import write_scored_dataset

CONFIG: dict[str, Any] = {"model": "demo", "input": {"location": "a", "digest": "1"}, "n": 8}


def claim(
    folder: Path, config: dict[str, Any] | None = None, *, overwrite: bool = False
) -> OutputState:
    return open_output(Storage(folder), config or CONFIG, overwrite=overwrite)


def test_a_new_folder_is_fresh_and_then_begun(tmp_path: Path):
    assert claim(tmp_path / "out") is OutputState.FRESH
    assert claim(tmp_path / "out") is OutputState.BEGUN


def test_how_a_run_is_executed_does_not_make_it_another(tmp_path: Path):
    claim(tmp_path, CONFIG | {"execution": {"workers": 1}})
    assert claim(tmp_path, CONFIG | {"execution": {"workers": 8}}) is OutputState.BEGUN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 9}, "n is 8 there and 9 here"),
        ({"input": {"location": "a", "digest": "2"}}, "input.digest is '1' there and '2' here"),
        ({"more": True}, "more is None there and True here"),
    ],
)
def test_another_configuration_is_refused_with_the_difference_named(
    tmp_path: Path, change: dict[str, Any], says: str
):
    claim(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        claim(tmp_path, CONFIG | change)
    assert "--overwrite" in str(caught.value)
    assert claim(tmp_path) is OutputState.BEGUN


def test_overwriting_begins_anew(tmp_path: Path):
    claim(tmp_path)
    (tmp_path / "shard-00000.parquet").write_bytes(b"half")
    assert claim(tmp_path, CONFIG | {"n": 9}, overwrite=True) is OutputState.FRESH
    assert [path.name for path in tmp_path.iterdir()] == [".run"]


def test_a_finished_dataset_is_finished_for_its_own_configuration_only(tmp_path: Path):
    dataset = write_scored_dataset(tmp_path / "out", [0.1, 0.2])
    assert claim(tmp_path / "out", dataset.manifest.config) is OutputState.FINISHED
    with pytest.raises(InputError, match="holds a dataset with another configuration"):
        claim(tmp_path / "out", dataset.manifest.config | {"batch_size": 1})


def test_foreign_files_are_never_deleted(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"mine\.txt lies there"):
            claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_claim_is_released_only_while_nothing_is_finished(tmp_path: Path):
    claim(tmp_path / "a")
    release_output(Storage(tmp_path / "a"))
    assert claim(tmp_path / "a", {"other": 1}) is OutputState.FRESH
    claim(tmp_path / "b")
    (tmp_path / "b" / "shard-00000.parquet").write_bytes(b"hours of work")
    release_output(Storage(tmp_path / "b"))
    assert claim(tmp_path / "b") is OutputState.BEGUN


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path):
    claimed, over = threading.Event(), threading.Event()

    def write() -> None:
        claim(tmp_path)
        claimed.set()
        over.wait()

    writer = threading.Thread(target=write)
    writer.start()
    claimed.wait()
    with pytest.raises(AlignError, match=rf"is being written by process {os.getpid()} on "):
        claim(tmp_path)
    over.set()
    writer.join()
    assert claim(tmp_path) is OutputState.BEGUN


def test_a_closed_output_is_free_for_another_thread(tmp_path: Path):
    claim(tmp_path)
    release(Storage(tmp_path))
    states: list[OutputState] = []
    other = threading.Thread(target=lambda: states.append(claim(tmp_path)))
    other.start()
    other.join()
    assert states == [OutputState.BEGUN]


def test_what_a_killed_writer_left_half_written_is_swept_away(tmp_path: Path):
    claim(tmp_path)
    left = [
        tmp_path / ".unfinished-shard-00000.parquet-0a1b2c3d",
        tmp_path / "rejects" / ".unfinished-x",
        tmp_path / "shard-00000.parquet.0a1b2c3d.tmp",  # as an older version named it
    ]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    (tmp_path / "shard-00001.parquet").write_bytes(b"whole")
    assert claim(tmp_path) is OutputState.BEGUN
    assert not any(file.exists() for file in left)
    assert (tmp_path / "shard-00001.parquet").exists()
