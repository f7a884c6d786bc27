"""What planning has to read, read by the workers of a cluster.

A plan over tars reads the headers of all of them. From one machine that would be slower than the
scoring that follows, where the tars are many and lie in an object store.
"""

import logging
from dataclasses import dataclass
from typing import Any

from aligncurate.engine import ItemFailure, Limits, Step, connected, map_on_ray
from aligncurate.scoring.execution import Execution
from aligncurate.sources import Source
from aligncurate.sources.source import Preparing
from alignshared import AlignError, Storage

log = logging.getLogger("aligncurate")


@dataclass(frozen=True, slots=True)
class _Prepare:
    """Makes the function that does one part, in a worker."""

    source: Preparing
    work: Storage

    def __call__(self) -> Any:
        return lambda part: self.source.prepare(self.work, part)


def prepare_on_cluster(source: Source, work: Storage, execution: Execution) -> None:
    """Have the cluster at `execution.ray_address` do the parts of `source`; without one, or where
    the source has none, nothing: `plan` does them.

    Raises:
        InputError: a part of the input cannot be used.
        AlignError: a part could not be done, or the cluster failed.
    """
    if not execution.ray_address or not isinstance(source, Preparing):
        return
    parts = source.parts(work)
    if len(parts) < 2:
        return
    log.info("planning: the workers look through %s files of %s.", f"{len(parts):,}", source.name)
    steps = [Step(_Prepare(source, work))]
    with connected(execution.ray_address, 0, verbose=execution.verbose):
        for outcome in map_on_ray(steps, parts, Limits(execution.unit_timeout)):
            if isinstance(outcome, ItemFailure):
                raise AlignError(
                    f"the input could not be planned: {outcome.reason}; mend that, and run the "
                    "same command to go on."
                )
