"""A disk that fills up: one sentence, and the same dataset once there is room."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from alignshared import AlignError
from alignshared.atomic import UNFINISHED
from tests.curation.faults.killing import PAIRS, Job, write_input
from tests.curation.stages.test_score import assert_same

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets root mount nothing")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("stage", ["score", "ingest"])
def test_a_full_disk_is_one_sentence_and_room_is_all_it_takes(
    tmp_path: Path, tiny_clip: str, small_disk: Path, stage: str
):
    write_input(tmp_path)
    quiet = Job(stage, tmp_path, tiny_clip)
    output = str(small_disk / "out")
    with pytest.raises(AlignError, match=r"the disk is full at|cannot be written") as caught:
        quiet(output)
    assert caught.value.exit_code == 1
    finished = list((small_disk / "out").glob("shard-*.parquet"))
    assert finished
    assert not list((small_disk / "out").rglob(f"{UNFINISHED}*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = replace(quiet)(output)
    assert done.manifest.rows + done.manifest.reject_count == PAIRS
    assert_same(done, quiet("quiet"))
