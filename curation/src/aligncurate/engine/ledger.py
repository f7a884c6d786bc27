"""The ledger of a run: which worker has which item, how often its worker died, which items failed.

It is an actor of its own beside the driver and needs no CPU. Without it a fault would have no end:
Ray gives a task whose worker died to the next worker, again and again, whatever killed it.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Standing:
    """Seconds since the last progress, and the host of each item in hand."""

    idle_s: float
    in_hand: dict[int, str]


class Ledger:
    """Counts of one run. An item is named by its position in the run's list."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._begun: Counter[tuple[int, int]] = Counter()
        self._in_hand: dict[tuple[int, int], str] = {}
        self._failed: dict[int, str] = {}
        self._moved = time.monotonic()

    def begin(self, item: int, step: int, place: str) -> str | None:
        """A worker on host `place` takes `item`; return the reason not to, if it has failed."""
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
        """A worker is done with `item`; its earlier deaths no longer count."""
        self._moved = time.monotonic()
        self._in_hand.pop((item, step), None)
        self._begun.pop((item, step), None)

    def fail(self, item: int, reason: str) -> None:
        """Record that `item` is not to be tried again."""
        self._moved = time.monotonic()
        self._failed.setdefault(item, reason)
        for key in [key for key in self._in_hand if key[0] == item]:
            del self._in_hand[key]

    def heartbeat(self) -> None:
        """Some item has made progress."""
        self._moved = time.monotonic()

    def standing(self) -> Standing:
        """State of the run."""
        in_hand = {item: place for (item, _), place in self._in_hand.items()}
        return Standing(time.monotonic() - self._moved, in_hand)


def start_ledger(attempts: int) -> Any:
    """The handle of a new ledger on this node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
    beside_driver = NodeAffinitySchedulingStrategy(here, soft=True)
    return actor.options(scheduling_strategy=beside_driver).remote(attempts)
