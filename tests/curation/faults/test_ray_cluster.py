"""A local cluster of several nodes: workers, nodes and drivers are killed, items are poison, hang
or pile up before a slow step.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aligncurate import Execution, score
from aligncurate.engine import ItemFailure, Step, connected, map_on_ray
from aligncurate.sources import webdataset
from alignshared import Dataset, InputError
from tests.curation.engine.work import MEGABYTES_EACH, Decode, Meet, Slow, Trouble
from tests.curation.faults.killing import GONE, Job, start, write_input
from tests.curation.stages.test_score import assert_same
from tests.curation.tars import good_tar
from tests.forking import forkserver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]

PAIRS = 240
GPUS = 2
OBJECT_STORE = 120 << 20


def patiently(begin: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to start, which a busy machine may take more than once."""
    for _ in range(3):
        try:
            return begin()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return begin()


class Machines:
    """A head without CPUs, where the driver runs, and nodes that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE}
        self._cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address: str = self._cluster.address
        self.nodes = [self.add(num_gpus=GPUS), self.add()]

    def add(self, **options: Any) -> Any:
        """One more node with two CPUs."""
        options |= {"num_cpus": 2, "object_store_memory": OBJECT_STORE}
        return patiently(lambda: self._cluster.add_node(**options))

    def kill_node(self) -> None:
        """SIGKILL everything on a node other than the driver's, for good."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in reversed(self.nodes) if node.node_id != here)
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def gpus(self) -> int:
        """How many there are."""
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    def worker_pids(self) -> list[int]:
        """The processes of actors of Ray Data on these nodes, and of nobody else's."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.nodes}
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if _is_worker(pid, raylets)
        ]

    def stop(self) -> None:
        self._cluster.shutdown()


def _is_worker(pid: int, raylets: set[int]) -> bool:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text()
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return parent in raylets and title.startswith("ray::MapWorker")


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Machines()
        try:
            with connected(found.address, 0, verbose=False):
                yield found
        finally:
            found.stop()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, tiny_clip: str) -> tuple[Job, Dataset]:
    """The job on the cluster, and what it gives in this process."""
    folder = tmp_path_factory.mktemp("cluster")
    write_input(folder, PAIRS)
    local = Job("score", folder, tiny_clip)
    return replace(local, engine="ray", workers=3), local("quiet")


@contextmanager
def after_units(output: Path, count: int, fault: Callable[[], object]) -> Iterator[list[int]]:
    """Do `fault` once `count` units are finished in `output`; how many were when it was done."""
    finished: list[int] = []
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.002):
            there = len(list((output / ".run" / "units").glob("*.json")))
            if there >= count:
                fault()
                finished.append(there)
                return

    watcher = threading.Thread(target=wait)
    watcher.start()
    try:
        yield finished
    finally:
        over.set()
        watcher.join()


def assert_whole(done: Dataset, calm: Dataset) -> None:
    assert done.manifest.rows + done.manifest.reject_count == PAIRS
    assert done.manifest.rejects == {"missing_file": len(GONE)}
    assert_same(done, calm)


def test_tars_are_looked_through_by_the_workers(
    machines: Machines, tmp_path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
):
    for number in range(5):
        good_tar(tmp_path / "in" / f"{number:05d}.tar", count=4, n=number)
    whole = (tmp_path / "in" / "00003.tar").read_bytes()
    (tmp_path / "in" / "00003.tar").write_bytes(whole[: len(whole) // 2])

    def run(output: str, execution: Execution) -> Dataset:
        return score(tmp_path / "in", tmp_path / output, model=tiny_clip, execution=execution)

    calm = run("quiet", Execution("local", 1))

    def not_here(*_: object) -> None:
        raise AssertionError("the driver read a tar")

    monkeypatch.setattr(webdataset, "index_tar", not_here)
    done = run("cluster", Execution("ray", 2, gpus=0, ray_address=machines.address))
    assert done.manifest.rejects == calm.manifest.rejects == {"damaged_archive": 1}
    assert_same(done, calm)


def test_a_tar_that_cannot_be_used_is_one_sentence(
    machines: Machines, tmp_path: Path, tiny_clip: str
):
    good_tar(tmp_path / "in" / "0.tar", count=2)
    good_tar(tmp_path / "in" / "1.tar", count=2, mode="w:gz")
    execution = Execution("ray", 2, gpus=0, ray_address=machines.address)
    with pytest.raises(InputError, match=r"1\.tar is compressed"):
        score(tmp_path / "in", tmp_path / "out", model=tiny_clip, execution=execution)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_killed_workers_are_replaced(machines: Machines, quiet: tuple[Job, Dataset], seed: int):
    job, calm = quiet
    chance = random.Random(seed)
    killed: list[int] = []

    def kill() -> None:
        killed.append(chance.choice(machines.worker_pids()))
        os.kill(killed[-1], signal.SIGKILL)

    name = f"worker-{seed}"
    with after_units(job.folder / name, chance.randrange(1, 15), kill) as finished:
        done = job(name)
    assert len(killed) == 1
    assert finished[0] < PAIRS // 8
    assert_whole(done, calm)


@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_killed_node_takes_nothing_with_it(
    machines: Machines, quiet: tuple[Job, Dataset], seed: int
):
    job, calm = quiet
    name = f"node-{seed}"
    at = random.Random(seed).randrange(1, 15)
    with after_units(job.folder / name, at, machines.kill_node) as finished:
        done = job(name)
    assert len(finished) == 1
    assert_whole(done, calm)
    machines.nodes.append(machines.add(num_gpus=GPUS - machines.gpus()))


@pytest.mark.parametrize("seed", [5])
def test_a_killed_driver_leaves_what_is_finished(
    machines: Machines, quiet: tuple[Job, Dataset], seed: int
):
    job, calm = quiet
    name = f"driver-{seed}"
    process = start(forkserver(), replace(job, ray_address=machines.address), name)
    at = random.Random(seed).randrange(1, 15)
    kept: dict[Path, int] = {}

    def kill() -> None:
        os.kill(process.pid or 0, signal.SIGKILL)
        shards = (job.folder / name).glob("*.parquet")
        kept.update((shard, shard.stat().st_ino) for shard in sorted(shards)[:1])

    with after_units(job.folder / name, at, kill):
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert_whole(job(name), calm)
    assert kept


def test_what_kills_its_workers_or_hangs_is_named_and_the_others_go_on(machines: Machines):
    items = list(range(6))
    found = list(map_on_ray([Step(Trouble(1, 4), actors=2)], items, timeout_s=5))
    failures = {item.position: item.reason for item in found if isinstance(item, ItemFailure)}
    assert sorted(item for item in found if not isinstance(item, ItemFailure)) == [0, 2, 3, 5]
    assert sorted(failures) == [1, 4]
    assert "its worker died 3 times" in failures[1]
    assert "no progress for 5 seconds" in failures[4]


def test_a_slow_step_holds_back_the_one_before_it(machines: Machines):
    items = list(range(80))  # 320 MiB, where each node's object store holds 120
    done = list(map_on_ray([Step(Decode()), Step(Slow(), actors=1, gpus=1)], items))
    assert sorted(number for number, *_ in done) == items
    events = sorted([(made, 1) for _, made, _, _ in done] + [(over, -1) for _, _, over, _ in done])
    waiting = np.cumsum([change for _, change in events])
    assert waiting.max() * MEGABYTES_EACH < OBJECT_STORE >> 20


def test_several_models_share_a_gpu(machines: Machines, tmp_path: Path):
    steps = [Step(Meet(tmp_path), actors=2, most=3, gpus=0.5)]
    assert len(set(map_on_ray(steps, list(range(8))))) >= 2
