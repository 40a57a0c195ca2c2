"""Workers in Ray actors: one trust domain, on one machine or many. `RayCluster` starts them.

Needs the extra ``ray``. Frames are carried as they are: Ray sees bytes, no tensors and no messages.
"""

from runtime.channels.ray.cluster import RayCluster, RayWorker

__all__ = ["RayCluster", "RayWorker"]
