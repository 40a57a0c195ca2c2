"""The user's handles: to workers, tensors, modules, plans and optimizers that are somewhere else."""

from runtime.remote.group import RemotePlanGroup, WorkerGroup
from runtime.remote.handle import ObjectView, WorkerHandle
from runtime.remote.module import RemoteModule
from runtime.remote.optimizer import RemoteOptimizer
from runtime.remote.plan import RemotePlan
from runtime.remote.pointer import RemotePointer
from runtime.remote.recording import Recording, record
from runtime.remote.tensor import RemoteTensor, RemoteValueError
from runtime.remote.virtual import VirtualWorker, me

__all__ = [
    "ObjectView",
    "Recording",
    "RemoteModule",
    "RemoteOptimizer",
    "RemotePlan",
    "RemotePlanGroup",
    "RemotePointer",
    "RemoteTensor",
    "RemoteValueError",
    "VirtualWorker",
    "WorkerGroup",
    "WorkerHandle",
    "me",
    "record",
]
