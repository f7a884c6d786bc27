"""Ray Data: the only place that imports ray.

Items (units of work) go through one or more steps. An item is one row of the Ray dataset, so Ray
never cuts it in two, and results come back as they are ready.
"""

from aligncurate.engine.cluster import Cluster, connected
from aligncurate.engine.steps import Limits, Step, map_on_ray
from aligncurate.engine.worker import ItemFailure

__all__ = ["Cluster", "ItemFailure", "Limits", "Step", "connected", "map_on_ray"]
