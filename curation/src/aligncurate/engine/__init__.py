"""Ray Data; nothing else imports ray.

Items (units of work) pass through one or more steps. An item is one row of the Ray dataset, so
it is never split; results arrive in order of completion.
"""

from aligncurate.engine.cluster import Cluster, connected
from aligncurate.engine.steps import Step, map_on_ray
from aligncurate.engine.worker import ItemFailure

__all__ = ["Cluster", "ItemFailure", "Step", "connected", "map_on_ray"]
