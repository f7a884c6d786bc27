"""Items through steps on Ray Data. Its settings, and the reasons:

- Steps with different resources are not fused, so decoding stays apart from a GPU; a single step on
  CPU keeps pixels inside the actor.
- An AlignError in a step is returned as a result and raised here, since Ray returns only the text
  of an error raised while an actor starts.
- Errors of single rows are handled inside the steps, those of single items by the worker. Ray's own
  tolerance (`max_errored_blocks`) would drop a whole block for one bad row and call it success.
- Ray retries items of dead workers endlessly; the ledger, an actor beside the driver, counts the
  deaths and fails the item.
- Ray Data can wait forever for a lost item, so the ledger is checked while results are awaited.
- One item at a time in each actor, and one waiting: more would be lost with it.
"""

import pickle
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aligncurate.engine.worker import ITEM, POSITION, Bench, Function, call, make_or_fail
from aligncurate.settings import UNIT_TIMEOUT_S
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


class Ledger:
    """Counts of one run. Items are identified by their position in the run's list."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._begun: Counter[tuple[int, int]] = Counter()
        self._in_hand: dict[tuple[int, int], str] = {}
        self._failed: dict[int, str] = {}
        self._moved = time.monotonic()

    def begin(self, item: int, step: int, place: str) -> str | None:
        """Register `item` with a worker on host `place`; return the failure reason if it has
        failed.
        """
        self._moved = time.monotonic()
        key = item, step
        if item in self._failed:
            return self._failed[item]
        lost_at = self._in_hand.get(key, place)
        self._begun[key] += 1
        if self._begun[key] > self._attempts:
            self.fail(
                item,
                f"its worker died {self._attempts} times, the last time on {lost_at}; too little "
                "memory is the usual cause",
            )
            return self._failed[item]
        self._in_hand[key] = place
        return None

    def end(self, item: int, step: int) -> None:
        """Mark `item` as done; its earlier worker deaths no longer count."""
        self._moved = time.monotonic()
        self._in_hand.pop((item, step), None)
        self._begun.pop((item, step), None)

    def fail(self, item: int, reason: str) -> None:
        """Mark `item` as failed, not to be retried."""
        self._moved = time.monotonic()
        self._failed.setdefault(item, reason)
        for key in [key for key in self._in_hand if key[0] == item]:
            del self._in_hand[key]

    def heartbeat(self) -> None:
        """Record progress of some item."""
        self._moved = time.monotonic()

    def standing(self) -> tuple[float, dict[int, str]]:
        """Return the seconds since the last progress, and the host of each item in hand."""
        in_hand = {item: place for (item, _), place in self._in_hand.items()}
        return time.monotonic() - self._moved, in_hand


def map_on_ray(
    steps: Sequence[Step], items: Sequence[Any], timeout_s: float = UNIT_TIMEOUT_S
) -> Iterator[Any]:
    """Pass `items` through `steps` on the connected cluster; yield results in order of
    completion, with an ItemFailure for each failed item, or without progress for `timeout_s`
    seconds.

    Raises:
        AlignError: a step raised it, no item made progress for too long, or the cluster failed.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    ledger = _start_ledger()
    dataset = ray.data.from_items(
        [{POSITION: i, ITEM: pickle.dumps(item)} for i, item in enumerate(items)],
        override_num_blocks=len(items),
    )
    run = secrets.token_hex(8)
    for number, step in enumerate(steps):
        bench = Bench(run, number, ledger, timeout_s)
        dataset = dataset.map_batches(**_map_options(step, bench))
    try:
        yield from _awaited(dataset, ledger, timeout_s)
    finally:
        ray.kill(ledger)


def _start_ledger() -> Any:
    """Start a ledger on this node, without a CPU; return its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
    beside_driver = NodeAffinitySchedulingStrategy(here, soft=True)
    return actor.options(scheduling_strategy=beside_driver).remote(UNIT_ATTEMPTS)


def _map_options(step: Step, bench: Bench) -> dict[str, Any]:
    import ray

    common = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": 1}
    make = carrying_storage_options(step.make)
    if step.actors is None:
        return {"fn": lambda batch: call(make_or_fail(make), bench, batch), **common}
    pool = ray.data.ActorPoolStrategy(
        min_size=step.actors,
        max_size=max(step.actors, step.most or 0),
        max_tasks_in_flight_per_actor=2,
    )
    if step.memory_gib is not None:
        common["memory"] = int(step.memory_gib * _GIB)
    return {"fn": _actor(make, bench), "compute": pool, "num_gpus": step.gpus or None, **common}


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

    idle_s, in_hand = ray.get(ledger.standing.remote(), timeout=timeout_s + _GRACE_S)
    if idle_s <= timeout_s + _GRACE_S:
        return
    places = [f"item {item} on {place}" for item, place in sorted(in_hand.items())]
    doing = f"in hand: {', '.join(places[:5])}" if places else "no worker has an item in hand"
    room = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
    raise AlignError(
        f"nothing has moved on Ray for {idle_s:.0f} seconds ({doing}; the cluster has "
        f"{room['CPU']:g} CPUs and {room['GPU']:g} GPUs); see whether its nodes have room for the "
        "workers, and run the same command to resume."
    )


def _explained(error: Exception) -> AlignError:
    detail = str(error).strip().splitlines()
    return AlignError(
        f"the run on Ray failed: {detail[-1] if detail else type(error).__name__}; finished shards "
        "are kept, run the same command to resume (--verbose shows Ray's log)."
    )
