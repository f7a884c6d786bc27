"""How a run may be executed: what is asked for in words, and what is refused."""

from typing import Any

import pytest

from aligncurate import Execution
from aligncurate.engine import Cluster
from aligncurate.scoring.execution import _cpu_pool, _gpu_pool, device_of, engine_of
from aligncurate.settings import Pool
from alignshared import InputError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": "two"}, "--workers must be a number"),
        ({"workers": "0"}, "--workers must be at least 1 .got 0"),
        ({"workers": "8..2"}, "--workers must name the smaller number first"),
        ({"workers": "2..8", "engine": "local"}, "--workers 2..8 is for --engine ray"),
        ({"gpus": "-1"}, "--gpus must be at least 0 .got -1"),
        ({"gpus": 2, "engine": "local"}, "--engine local uses one GPU, not 2"),
        ({"gpus_per_worker": 2.0}, "--gpus-per-worker must be above 0 and at most 1.*got 2"),
        ({"gpus_per_worker": 0.0}, "--gpus-per-worker must be above 0 and at most 1.*got 0"),
        ({"memory_per_worker": 0.0}, "--memory-per-worker must be above 0 .got 0"),
        ({"unit_timeout": -1.0}, "--unit-timeout must be above 0 .got -1"),
        ({"ray_address": "auto", "engine": "local"}, "--ray-address goes with --engine ray"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        Execution(**options)


@pytest.mark.parametrize(
    ("options", "engine"),
    [({}, "local"), ({"workers": "2..8"}, "ray"), ({"gpus": "1..4"}, "ray"),
     ({"ray_address": "auto"}, "ray"), ({"workers": 50}, "local")],
)  # fmt: skip
def test_what_one_process_cannot_do_goes_to_ray(options: dict[str, Any], engine: str):
    assert engine_of(Execution(**options), 100) == engine


def test_a_driver_needs_no_gpu():
    assert device_of(Execution(ray_address="10.0.0.1:6379", gpus="1..8")) == "cuda"
    assert device_of(Execution(ray_address="10.0.0.1:6379", gpus=0)) == "cpu"


@pytest.mark.parametrize(
    ("options", "pool"),
    [
        ({"workers": "2..8"}, Pool(2, 8)),
        ({"workers": "2..90"}, Pool(2, 40)),
        ({"workers": 3}, Pool(3, 3)),
        ({"workers": 50}, Pool(5, 5)),
        ({"ray_address": "auto"}, Pool(5, 5)),
    ],
)
def test_actors_leave_a_cpu_free_but_on_clusters_that_grow(options: dict[str, Any], pool: Pool):
    assert _cpu_pool(Execution(engine="ray", **options), Cluster(cpus=6, gpus=0), 40) == pool


@pytest.mark.parametrize(
    ("options", "pool"),
    [
        ({}, Pool(2, 2)),
        ({"gpus_per_worker": 0.5}, Pool(4, 4)),
        ({"gpus": "1..8", "gpus_per_worker": 0.25}, Pool(4, 32)),
        ({"gpus": "0..4"}, Pool(1, 4)),
    ],
)
def test_gpus_are_shared_out(options: dict[str, Any], pool: Pool):
    execution = Execution(ray_address="auto", **options)
    assert _gpu_pool(execution, Cluster(cpus=6, gpus=2), 40) == pool
