"""A storage server that fails, dawdles and goes away: the same dataset, or one sentence and the
same dataset later.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aligncurate import ingest
from alignshared import AlignError, Dataset, Storage
from alignshared.stores.lock import LEASE_S
from tests.curation.faults.killing import PAIRS, SHARD_ROWS, write_input
from tests.curation.faults.storage_server import BUCKET, Weather, s3_behind_proxy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Weather]:
    with s3_behind_proxy() as weather:
        yield weather


@pytest.fixture
def weather(server: Weather) -> Iterator[Weather]:
    server.fail_every, server.delay_s, server.failures = 0, 0.0, 0
    yield server
    server.fail_every, server.delay_s = 0, 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    write_input(folder)
    return folder


def run(folder: Path, output: str | Path) -> Dataset:
    pairs, images = folder / "in" / "pairs.json", folder / "in" / "images"
    return ingest(pairs, output, image_root=str(images), shard_rows=SHARD_ROWS)


def assert_as_quiet(folder: Path, done: Dataset) -> None:
    """The shards on the server are those of the quiet run on disk, byte for byte."""
    quiet = run(folder, folder / "quiet")
    assert done.manifest.rows + done.manifest.reject_count == PAIRS
    assert done.manifest.shards == quiet.manifest.shards
    assert done.manifest.reject_shards == quiet.manifest.reject_shards
    for shard in [*done.manifest.shards, *done.manifest.reject_shards]:
        content = done.storage.read_bytes(shard.file)
        assert hashlib.sha256(content).hexdigest() == shard.sha256


def test_every_fourth_request_fails_and_all_are_slow(folder: Path, weather: Weather):
    weather.fail_every, weather.delay_s = 4, 0.01
    done = run(folder, f"s3://{BUCKET}/unsteady")
    assert weather.failures > 10
    weather.fail_every = 0
    assert_as_quiet(folder, done)


def test_a_server_that_goes_away_is_one_sentence(folder: Path, weather: Weather):
    output = f"s3://{BUCKET}/gone"
    before = weather.requests

    def stop(done: int, rejects: int = 0) -> None:
        if weather.requests > before + 60:
            weather.fail_every = 1

    pairs, images = folder / "in" / "pairs.json", folder / "in" / "images"
    with pytest.raises(AlignError, match=r"cannot be written in s3://pairs/gone") as caught:
        ingest(pairs, output, image_root=str(images), shard_rows=SHARD_ROWS, on_progress=stop)
    assert caught.value.exit_code == 1
    weather.fail_every = 0
    units = Storage(f"{output}/.run/units").names()
    assert 0 < len(units) < PAIRS // SHARD_ROWS
    assert_as_quiet(folder, run(folder, output))


def lease(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "host": "elsewhere",
        "pid": 4711,
        "started": None,
        "since": "2026-01-02T03:04:05+00:00",
        "token": "theirs",
        "seen": time.time(),
    }
    return json.dumps(fields | changes).encode()


def test_a_lease_is_kept_from_others_until_it_runs_out(folder: Path, weather: Weather):
    output = Storage(f"s3://{BUCKET}/leased")
    output.write_bytes(".run/lock", lease())
    with pytest.raises(AlignError, match="is being written by process 4711 on elsewhere since"):
        run(folder, output.location)
    output.write_bytes(".run/lock", lease(seen=time.time() - LEASE_S - 1))
    assert_as_quiet(folder, run(folder, output.location))
    assert not output.exists(".run/lock")


@pytest.mark.parametrize(
    ("pid", "started"), [(2**22 + 1, None), (os.getpid(), 1)], ids=["no process", "a later process"]
)
def test_a_lease_of_a_dead_process_of_this_host_is_taken_over(
    folder: Path, weather: Weather, pid: int, started: int | None
):
    output = Storage(f"s3://{BUCKET}/dead-{pid}")
    output.write_bytes(".run/lock", lease(host=socket.gethostname(), pid=pid, started=started))
    assert run(folder, output.location).manifest.rows
