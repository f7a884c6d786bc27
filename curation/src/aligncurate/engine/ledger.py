"""Ledger of a run: items in progress by worker, worker deaths per item, failed items.

It is an actor beside the driver and needs no CPU. Without it Ray would pass an item that kills
its worker to the next worker without end.
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

    def standing(self) -> Standing:
        """State of the run."""
        in_hand = {item: place for (item, _), place in self._in_hand.items()}
        return Standing(time.monotonic() - self._moved, in_hand)


def start_ledger(attempts: int) -> Any:
    """Start a ledger on this node; return its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
    beside_driver = NodeAffinitySchedulingStrategy(here, soft=True)
    return actor.options(scheduling_strategy=beside_driver).remote(attempts)
