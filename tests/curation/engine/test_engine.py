"""The engine: work put through Ray gives the same shards as in this process, and errors come back
as our sentences.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aligncurate import Execution
from aligncurate.core.clip import resolve_clip
from aligncurate.engine import Cluster, ItemFailure, Step, connected, map_on_ray
from aligncurate.scoring.execution import gpu_steps
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.settings import Pool
from aligncurate.sources import open_source
from alignshared import InputError, Storage
from tests.curation.clips import write_tiny_clip
from tests.curation.engine.work import Fail, FailOn, Square
from tests.curation.inputs import good_pairs, score_good_pairs
from tests.curation.stages.test_score import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray of this machine that the tests share; `score` uses the connection that it finds."""
    with connected(None, 2, verbose=False) as found:
        yield found


def test_an_address_where_no_cluster_is_is_one_sentence(tmp_path: Path, tiny_clip: str):
    # First of the tests: a connection that is there already would be used.
    execution = Execution(engine="ray", ray_address="127.0.0.1:9")
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        score_good_pairs(tmp_path, tiny_clip, 2, execution=execution)


def test_a_run_on_ray_prints_nothing(tmp_path: Path, tiny_clip: str):
    pairs = good_pairs(tmp_path / "in", 3)
    program = (
        "from aligncurate import Execution, score\n"
        f"score({str(pairs)!r}, 'out', image_root='in/images', model={tiny_clip!r},"
        " execution=Execution(engine='ray', workers=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_local_cluster_has_cpus_to_spare(cluster: Cluster):
    assert cluster.cpus == 4


def test_every_item_comes_back_once_from_actors_and_from_tasks(cluster: Cluster):
    for step in (Step(Square()), Step(Square(), actors=2)):
        results = list(map_on_ray([step], list(range(5))))
        assert sorted(square for square, _ in results) == [n * n for n in range(5)]
        assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("actors", [None, 1])
def test_an_error_of_ours_comes_back_as_itself(
    cluster: Cluster, at_start: bool, actors: int | None
):
    failing = Step(Fail(InputError("the file x is damaged; fetch it again."), at_start), actors)
    with pytest.raises(InputError, match=r"^the file x is damaged; fetch it again\.$"):
        list(map_on_ray([failing, Step(Square())], [1]))


def test_an_item_that_fails_is_told_and_the_others_go_on(cluster: Cluster):
    steps = [Step(FailOn(2)), Step(Square())]
    results = sorted(map_on_ray(steps, [1, 2, 3]), key=str)
    assert [result[0] for result in results[:2]] == [1, 9]
    assert results[2] == ItemFailure(1, "ZeroDivisionError: by nothing")


def test_a_model_that_does_not_load_ends_the_run_with_its_sentence(
    cluster: Cluster, tmp_path: Path
):
    folder = write_tiny_clip(tmp_path / "broken")
    (folder / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged"):
        score_good_pairs(tmp_path, str(folder), 3, execution=Execution(engine="ray", workers=1))
    assert not (tmp_path / "out" / ".run").exists()


def test_ray_gives_the_same_dataset_as_this_process(
    cluster: Cluster, tmp_path: Path, tiny_clip: str
):
    options: dict[str, Any] = {"shard_rows": 7, "batch_size": 3, "embeddings": True}
    local = score_good_pairs(tmp_path, tiny_clip, 20, **options)
    execution = Execution(engine="ray", workers=2)
    ray = score_good_pairs(
        tmp_path, tiny_clip, 20, **options, output=tmp_path / "ray", execution=execution
    )
    assert ray.manifest.config["execution"]["engine"] == "ray"
    assert_same(local, ray)


def test_decoding_apart_from_the_model_gives_the_same_shards(
    cluster: Cluster, tmp_path: Path, tiny_clip: str
):
    source = open_source(str(good_pairs(tmp_path / "in", 20)), str(tmp_path / "in" / "images"))
    output = Storage(tmp_path / "steps").location
    spec = ScoringSpec(source, resolve_clip(tiny_clip), "fp32", "cpu", 3, False, output)
    units = source.plan(Storage(tmp_path / "work"), 7)
    steps = gpu_steps(spec, Pool(1, 1), Execution())
    assert [(step.actors, step.gpus) for step in steps] == [(None, 0), (1, 0), (None, 0)]
    cuda = gpu_steps(dataclasses.replace(spec, device="cuda"), Pool(2, 2), Execution())
    assert [step.gpus for step in cuda] == [0, 1, 0]
    records = sorted(map_on_ray(steps, units), key=lambda record: record.index)
    local = score_good_pairs(tmp_path, tiny_clip, 20, shard_rows=7, batch_size=3)
    assert [record.shard for record in records] == local.manifest.shards


def test_more_workers_than_units_or_cpus_do_not_hang(
    cluster: Cluster, tmp_path: Path, tiny_clip: str
):
    dataset = score_good_pairs(
        tmp_path, tiny_clip, 4, execution=Execution(engine="ray", workers=50), shard_rows=1
    )
    assert dataset.manifest.rows == 4
