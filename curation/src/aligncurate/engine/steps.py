"""Items through steps on Ray Data. Its settings, and the reasons:

- Steps with different resources are not fused, so decoding stays apart from a GPU; a single step on
  CPU keeps pixels inside the actor.
- An AlignError in a step is returned as a result and raised here, since Ray returns only the text
  of an error raised while an actor starts.
- Errors of single rows are handled inside the steps, those of single items by the worker. Ray's own
  tolerance (`max_errored_blocks`) would drop a whole block for one bad row and call it success.
- Ray retries items of dead workers endlessly; the ledger counts the deaths and fails the item.
- Ray Data can wait forever for a lost item, so the ledger is checked while results are awaited.
- One item at a time in each actor, and one waiting: more would be lost with it.
"""

import pickle
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from aligncurate.engine.ledger import Standing, start_ledger
from aligncurate.engine.worker import ITEM, POSITION, Bench, Function, call, make_or_fail
from aligncurate.units.records import UNIT_ATTEMPTS
from alignshared import AlignError
from alignshared.stores.options import carrying_storage_options

_LOOK_EVERY_S = 5.0
_GRACE_S = 180.0
"""Added to an item's time-out, for Ray to start another worker on a busy machine."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the work: `make()` builds a function that is called with each item.

    With `actors`, it is built once in each of that many actors, or up to `most` if work and
    resources allow; without, in every task, so it must be cheap. `gpus` (of one GPU, if a
    fraction) and `memory_gib` are per actor.
    """

    make: Callable[[], Function]
    actors: int | None = None
    gpus: float = 0.0
    most: int | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """`timeout_s`: maximum time without progress of an item, in seconds."""

    timeout_s: float = 600.0


def map_on_ray(
    steps: Sequence[Step], items: Sequence[Any], limits: Limits = Limits()
) -> Iterator[Any]:
    """Pass `items` through `steps` on the connected cluster; yield results in order of
    completion, with an ItemFailure for each failed item.

    Raises:
        AlignError: a step raised it, no item made progress for too long, or the cluster failed.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    ledger = start_ledger(UNIT_ATTEMPTS)
    dataset = ray.data.from_items(
        [{POSITION: i, ITEM: pickle.dumps(item)} for i, item in enumerate(items)],
        override_num_blocks=len(items),
    )
    run = secrets.token_hex(8)
    for number, step in enumerate(steps):
        bench = Bench(run, number, ledger, limits.timeout_s)
        dataset = dataset.map_batches(**_map_options(step, bench))
    try:
        yield from _awaited(dataset, ledger, limits.timeout_s)
    finally:
        ray.kill(ledger)


def _map_options(step: Step, bench: Bench) -> dict[str, Any]:
    import ray

    common = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": 1}
    make = carrying_storage_options(step.make)
    if step.actors is None:
        return {"fn": partial(_call_in_task, make, bench), **common}
    pool = ray.data.ActorPoolStrategy(
        min_size=step.actors,
        max_size=max(step.actors, step.most or 0),
        max_tasks_in_flight_per_actor=2,
    )
    if step.memory_gib is not None:
        common["memory"] = int(step.memory_gib * _GIB)
    return {
        "fn": _actor(make, bench),
        "compute": pool,
        "num_gpus": step.gpus or None,
        **common,
    }


def _actor(make: Callable[[], Function], bench: Bench) -> type:
    # The class carries `make` itself, since a constructor argument may have left the object store
    # when an actor is restarted.
    class Worker:
        """Holds the function made by a step, with its model for instance."""

        def __init__(self) -> None:
            self._function = make_or_fail(make)

        def __call__(self, batch: pa.Table) -> pa.Table:
            return call(self._function, bench, batch)

    return Worker


def _call_in_task(make: Callable[[], Function], bench: Bench, batch: pa.Table) -> pa.Table:
    return call(make_or_fail(make), bench, batch)


_END = object()


def _awaited(dataset: Any, ledger: Any, timeout_s: float) -> Iterator[Any]:
    """The results of `dataset`, fetched in a background thread so that a stall is detected."""
    results: queue.Queue[Any] = queue.Queue()
    over = threading.Event()
    thread = threading.Thread(target=_fetch, args=(dataset, results, over), daemon=True)
    thread.start()
    try:
        while True:
            try:
                result = results.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                _look(ledger, timeout_s)
                continue
            if result is _END:
                return
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        over.set()


def _fetch(dataset: Any, results: "queue.Queue[Any]", over: threading.Event) -> None:
    from ray.exceptions import RayError

    try:
        for row in dataset.iter_rows():
            results.put(pickle.loads(row[ITEM]))
            if over.is_set():
                return
        results.put(_END)
    except RayError as error:
        results.put(_explained(error))
    except BaseException as error:  # noqa: BLE001 raised again by the consumer
        results.put(error)


def _look(ledger: Any, timeout_s: float) -> None:
    """Check for recent progress of any item."""
    import ray

    standing: Standing = ray.get(ledger.standing.remote(), timeout=timeout_s + _GRACE_S)
    if standing.idle_s <= timeout_s + _GRACE_S:
        return
    places = [f"item {item} on {place}" for item, place in sorted(standing.in_hand.items())]
    doing = f"in hand: {', '.join(places[:5])}" if places else "no worker has an item in hand"
    room = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
    raise AlignError(
        f"nothing has moved on Ray for {standing.idle_s:.0f} seconds ({doing}; the cluster has "
        f"{room['CPU']:g} CPUs and {room['GPU']:g} GPUs); see whether its nodes have room for the "
        "workers, and run the same command to resume."
    )


def _explained(error: Exception) -> AlignError:
    detail = str(error).strip().splitlines()
    return AlignError(
        f"the run on Ray failed: {detail[-1] if detail else type(error).__name__}; finished shards "
        "are kept, run the same command to resume (--verbose shows Ray's log)."
    )
